"""Models in GGUF files, converted so that they can be trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ModelError
from sft_lab.core.io import digest, follow_mask, sha256_file
from sft_lab.core.packages import missing_package, package_path, saved_path
from sft_lab.training.models import Model
from sft_lab.training.weights import Holding

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Gguf(Model):
    """A GGUF file, converted once into the store and used from there.

    The weights have the precision that the file's quantization left.

    Attributes:
        path: of the file, or ``package:<module>/<path>``.
        sha256: of the file; another file is refused.
        original: the Hub name of the model from which the file was made, for adapter and card; null: unknown.
    """

    path: str = "???"
    sha256: str = "???"
    original: str | None = None

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = saved_path(self.path)

    @property
    def base_name(self) -> str:
        """The model from which the file was made; the converted one exists only in this store."""
        return self.original or ""

    def check(self) -> list[str]:
        """Return an error if the file is missing or the attention is not allowed."""
        problems = super().check()
        if missing := missing_package(self.path):
            return [*problems, f"model.path={self.path}: {missing}; or use model=tiny_random, or a model on the Hub"]
        if not package_path(self.path).is_file():
            problems.append(f"model.path={self.path}: no such file; give a .gguf file")
        return problems

    def key(self, context: StageContext, seed: int) -> str:  # noqa: ARG002
        """Return a key of the file's hash."""
        return digest([self.version, self.sha256])

    def load_tokenizer(self, context: StageContext) -> PreTrainedTokenizerBase:
        """Load the converted tokenizer."""
        folder = self._converted(context)  # before a slow import: a view of the store may not have it
        import transformers

        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(folder, **self.trust())
        return tokenizer

    def config(self, context: StageContext) -> PretrainedConfig:
        """Load the converted config."""
        folder = self._converted(context)
        import transformers

        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(folder, **self.trust())
        return config

    def load_weights(self, context: StageContext, seed: int, holding: Holding) -> PreTrainedModel:  # noqa: ARG002
        """Load the converted weights."""
        import transformers

        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
            self._converted(context), **self.trust(), **self._kwargs(context, holding)
        )
        return model

    def _converted(self, context: StageContext) -> Path:
        """Return the folder with the converted model, stored or converted now."""
        recipe = {"version": self.version, "params": {"sha256": self.sha256}}
        return context.stage("model", recipe, self._convert).path

    def _convert(self, folder: Path) -> None:
        import transformers

        file = package_path(self.path)
        if (actual := sha256_file(file)) != self.sha256:
            raise ModelError(
                f"{file}: SHA-256 is {actual}, not {self.sha256}; reinstall the package it came from, or for your own "
                "file set model.sha256 to its hash"
            )
        # Without dequantize the weights stay packed, get no gradients and cannot be saved.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype="float32",
            trust_remote_code=False,
        )
        if getattr(model.config, "quantization_config", None) is not None:
            del model.config.quantization_config
        model.save_pretrained(folder)
        follow_mask(folder)

        tokenizer = transformers.AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        )
        tokenizer.save_pretrained(folder)
