"""Train the tokenizer of ``model=tiny_random`` on the starter set: ``python benchmarks/train_tiny_tokenizer.py``."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import sft_lab
from sft_lab.training.tiny_random import TOKENIZER_FOLDER

VOCABULARY_SIZE = 4096
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PACKAGE = Path(sft_lab.__file__).parent


def train_tokenizer(conversations: Path) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the texts of a ShareGPT file."""
    rows = [json.loads(line)["conversations"] for line in conversations.read_text(encoding="utf-8").splitlines()]
    texts = [turn["value"] for row in rows if isinstance(row, list) for turn in row]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes, so that no text is unknown
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    template = PACKAGE / "data" / "templates" / "chatml.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        chat_template=template.read_text(encoding="utf-8"),
    )


if __name__ == "__main__":
    train_tokenizer(PACKAGE / "starter" / "conversations.jsonl").save_pretrained(TOKENIZER_FOLDER)
