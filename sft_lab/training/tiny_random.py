"""A random, tiny model for tests and first tries."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core.bounds import bounded
from sft_lab.core.errors import require
from sft_lab.core.io import digest
from sft_lab.training.models import Model
from sft_lab.training.weights import Holding

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sft_lab.core.context import StageContext


TOKENIZER_FOLDER = Path(__file__).parent / "tiny_tokenizer_files"


@dataclass
class TinyRandom(Model):
    """A random Llama, small enough for tests: all parts are real, and a run takes seconds instead of minutes.

    The weights come from the seed. The tokenizer (byte-level BPE, ChatML) was trained on the starter set by
    ``benchmarks/train_tiny_tokenizer.py`` and is part of the package. The vocabulary is small, since with 49,152 tokens
    the loss alone would take twenty times as long.
    """

    hidden_size: int = bounded(64, at_least=1)
    num_hidden_layers: int = bounded(2, at_least=1)
    num_attention_heads: int = bounded(4, at_least=1)

    def __post_init__(self) -> None:
        """Refuse a width that the attention heads cannot share."""
        super().__post_init__()
        require(
            self.hidden_size % (2 * self.num_attention_heads) == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of twice num_attention_heads={self.num_attention_heads}",
        )

    def key(self, context: StageContext, seed: int) -> str:
        """Return a key of seed, shape and tokenizer."""
        shape = [self.hidden_size, self.num_hidden_layers, self.num_attention_heads]
        return digest([self.version, seed, shape, context.tokenizer_key])

    def load_tokenizer(self, context: StageContext) -> PreTrainedTokenizerBase:  # noqa: ARG002
        """Load the shipped tokenizer."""
        import transformers

        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            TOKENIZER_FOLDER, trust_remote_code=False
        )
        return tokenizer

    def config(self, context: StageContext) -> PretrainedConfig:
        """Return the model's shape, with the tokenizer's vocabulary."""
        import transformers

        tokenizer = context.tokenizer
        return transformers.LlamaConfig(
            dtype="float32",
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    def load_weights(self, context: StageContext, seed: int, holding: Holding) -> PreTrainedModel:
        """Return weights made from the seed; in 4 bits, saved to a folder first, since only loading quantizes."""
        import transformers

        config = self.config(context)
        dtype = self.arithmetic(context, holding)["dtype"]
        transformers.set_seed(seed)
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
        if not holding.four_bit:
            return model
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            quantized: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=False, **self._kwargs(context, holding)
            )
        return quantized
