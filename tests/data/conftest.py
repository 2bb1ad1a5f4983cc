"""Small real tokenizers, and a stage context with its own store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import sft_lab
from sft_lab.core.context import StageContext
from sft_lab.core.store import Store

TINY = Path(sft_lab.__file__).parent / "training" / "tiny_tokenizer_files"


@pytest.fixture(scope="session")
def tiny() -> PreTrainedTokenizerBase:
    """Byte-level BPE with ChatML; <|im_end|> ends a turn; no BOS."""
    return AutoTokenizer.from_pretrained(TINY)


def _copy(tiny: PreTrainedTokenizerBase) -> Tokenizer:
    return Tokenizer.from_str(tiny.backend_tokenizer.to_str())


@pytest.fixture(scope="session")
def with_bos(tiny: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Puts <s> before every text it is given, as Llama's and Mistral's do."""
    backend = _copy(tiny)
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def trims_offsets(tiny: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Leaves white space out of token offsets, as Llama 3's and OPT's do: a token of spaces alone has no width."""
    backend = _copy(tiny)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def reasons(tiny: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """As DeepSeek R1's: turn tokens and <think> are added tokens that are not special."""
    backend = _copy(tiny)
    backend.add_tokens(
        [
            AddedToken(t, special=False, normalized=False)
            for t in ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
        ]
    )
    backend.add_special_tokens(["<｜end▁of▁sentence｜>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<｜end▁of▁sentence｜>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def sentencepiece() -> PreTrainedTokenizerBase:
    """Puts a space before every text and falls back to bytes, as Mistral 7B's does."""
    letters = ["▁", *map(chr, range(33, 127))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁a", "▁<", "</", "s>"]
    merges = [("▁", "a"), ("▁", "<"), ("<", "/"), ("s", ">")]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def context(tmp_path: Path, tiny: PreTrainedTokenizerBase) -> StageContext:
    """The tiny tokenizer and an empty store."""
    return StageContext(Store(tmp_path / "store"), lambda: tiny)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records as a .jsonl file: ``write(record, record, ..., name="rows.jsonl")``."""

    def written(*records: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
        return path

    return written
