"""The models to tune, with their tokenizers."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, FolderError, ModelError
from sft_lab.core.hub import fall_back_on_cache
from sft_lab.core.io import digest, read_json
from sft_lab.core.log import log
from sft_lab.core.model_files import loaded_files, pickled_weights
from sft_lab.core.packages import saved_path
from sft_lab.core.text import count_of
from sft_lab.training.peft_config import refuse_other_adapters_of
from sft_lab.training.weights import (
    DTYPES,
    FROZEN,
    Holding,
    device_kwargs,
    four_bit_kwargs,
    keep_trainable,
    refused_attention,
    resolve_dtype,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# They have their own keys; a second way to set them could contradict those.
OWN_KWARGS = {"dtype", "torch_dtype", "revision", "attn_implementation", "quantization_config"}
# They would run foreign code, load pickles, write a secret into the config, or send a login elsewhere.
REFUSED_KWARGS = {
    "trust_remote_code", "code_revision", "custom_generate", "use_kernels", "allow_all_kernels", "kernel_config",
    "use_safetensors", "weights_only", "token", "use_auth_token", "proxies", "cache_dir", "offload_folder",
}  # fmt: skip
TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "tekken")  # how their names begin
TRUST = "SFT_LAB_TRUST_REMOTE_CODE"  # the one model whose own code may run: a config from elsewhere cannot allow it


@dataclass
class Model(Bounded, abc.ABC):
    """The base of all model options.

    Attributes:
        dtype: of the weights: ``auto`` (float32 on a CPU, and wherever all weights are trained; else the checkpoint's
            own, or float16 on a GPU without bf16), ``float32``, ``bfloat16``, ``float16``.
        attn_implementation: Transformers' name (``sdpa``, ``eager``, ``flash_attention_2``), or a kernel of the Hub
            that ``SFT_LAB_TRUST_KERNEL`` names too; null: Transformers' own choice.
        init_kwargs: passed on to ``from_pretrained`` unchanged; sft_lab promises nothing about them.
    """

    version: ClassVar[int] = 1

    dtype: str = bounded("auto", choices=DTYPES)
    attn_implementation: str | None = None
    init_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse ``init_kwargs`` that have their own key or are never allowed."""
        super().__post_init__()
        if own := sorted(OWN_KWARGS & set(self.init_kwargs)):
            raise ConfigError(f"init_kwargs={own}: use the model's own keys for these, or leave them out")
        if refused := sorted(REFUSED_KWARGS & set(self.init_kwargs)):
            raise ConfigError(
                f"init_kwargs={refused}: cannot be set; no code from elsewhere is run, weights must be safetensors, "
                "and for a login use `hf auth login` or HF_TOKEN"
            )

    @property
    def base_name(self) -> str:
        """The model's name on the Hub, or its local folder; empty if it has neither."""
        return ""

    @property
    def base_revision(self) -> str | None:
        """The revision on the Hub; None for the newest."""
        return None

    def check(self) -> list[str]:
        """Return what prevents loading the model on this machine."""
        problem = refused_attention(self.attn_implementation or "")
        return [problem] if problem else []

    def files(self) -> list[Path]:
        """Return every local file that is read to load it."""
        return []

    @abc.abstractmethod
    def key(self, context: StageContext, seed: int) -> str:
        """Return a key of the weights, from their content or commit, never from a name alone."""

    @abc.abstractmethod
    def load_tokenizer(self, context: StageContext) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""

    @abc.abstractmethod
    def config(self, context: StageContext) -> PretrainedConfig:
        """Load the model's shape, without its weights."""

    @abc.abstractmethod
    def load_weights(self, context: StageContext, seed: int, holding: Holding) -> PreTrainedModel:
        """Load the weights, without rows for added tokens."""

    def tokenizer(self, context: StageContext, special_tokens: Sequence[str] = ()) -> PreTrainedTokenizerBase:
        """Load the tokenizer, with its end-of-text token as padding token if it has none.

        Args:
            context: of the run.
            special_tokens: that the template needs; those the tokenizer lacks are added, with their ids in its
                ``new_tokens``.

        Raises:
            ModelError: if it has neither a padding nor an end-of-text token.
        """
        tokenizer = self.load_tokenizer(context)
        vocabulary = tokenizer.get_vocab()
        if missing := [token for token in special_tokens if token not in vocabulary]:
            tokenizer.add_tokens(missing, special_tokens=True)
            tokenizer.new_tokens = sorted(tokenizer.convert_tokens_to_ids(missing))
            log.info("model: %s added for the template: %s", count_of(len(missing), "token"), " ".join(missing))

        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ModelError("model: its tokenizer has neither a padding nor an end-of-sequence token")
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def trust(self) -> dict[str, bool]:
        """Return whether the model's own code may run, as a keyword argument for Transformers."""
        return {"trust_remote_code": False}

    def load(self, context: StageContext, seed: int, holding: Holding = FROZEN) -> PreTrainedModel:
        """Load the weights onto the GPU, if there is one, with a row for each added token.

        Args:
            context: for the tokenizer.
            seed: of a random model.
            holding: how training holds the weights.

        Raises:
            ModelError: if the weights cannot be loaded, or not in 4 bits.
        """
        import torch
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # Training with DeepSpeed leaves its config registered: each process would load a shard and wait for the others.
        unset_hf_deepspeed_config()
        model = self.load_weights(context, seed, holding)
        if holding.four_bit:
            keep_trainable(model)
        if torch.cuda.is_available() and not hasattr(model, "hf_device_map"):
            model.to(torch.cuda.current_device())

        rows = model.get_input_embeddings().weight.shape[0]
        if context.tokenizer.vocab_size > rows:
            raise ModelError(
                f"model: its tokenizer has {context.tokenizer.vocab_size:,} tokens, but its weights only {rows:,}; use "
                "the tokenizer that it was trained with"
            )
        if context.new_tokens:
            _initialize_rows(model, len(context.tokenizer), context.new_tokens)
        return model

    def load_saved(self, folder: Path, context: StageContext, holding: Holding) -> PreTrainedModel:
        """Load this model's weights as ``save_pretrained`` wrote them after full training."""
        import torch
        import transformers

        saved_config = read_json(folder / "config.json")
        for name in ("attn_implementation", "_attn_implementation"):
            if problem := refused_attention(str(saved_config.get(name) or "")):
                raise FolderError(f"{folder / 'config.json'}: {problem}")
        with torch.device("meta"):  # only for its class, since the config in the folder could name other code
            empty = transformers.AutoModelForCausalLM.from_config(
                self.config(context), attn_implementation="eager", **self.trust()
            )
        kwargs = self._kwargs(context, replace(holding, four_bit=False))
        kwargs = {name: value for name, value in kwargs.items() if name not in self.init_kwargs}
        model: PreTrainedModel = type(empty).from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, **kwargs
        )
        return model

    def arithmetic(self, context: StageContext, holding: Holding, *, on_gpu: bool | None = None) -> dict[str, Any]:
        """Return what changes a model's results besides its files: resolved dtype, attention, ``init_kwargs``."""
        dtype = resolve_dtype(self.dtype, holding, lambda: getattr(self.config(context), "dtype", None), on_gpu=on_gpu)
        kwargs: dict[str, Any] = {"dtype": dtype}
        if self.attn_implementation:
            kwargs["attn_implementation"] = self.attn_implementation
        return kwargs | self.init_kwargs

    def _kwargs(self, context: StageContext, holding: Holding) -> dict[str, Any]:
        """Return the arguments of ``from_pretrained`` for how and where the weights are held.

        Raises:
            ModelError: for an attention that the user has not allowed.
        """
        # A model's config may name an attention too.
        attention = self.attn_implementation or getattr(self.config(context), "_attn_implementation", None) or ""
        if problem := refused_attention(attention):
            raise ModelError(problem)
        kernels = {"allow_all_kernels": True} if "/" in attention else {}
        quantization = four_bit_kwargs(holding) if holding.four_bit else {}
        return device_kwargs() | kernels | quantization | self.arithmetic(context, holding)


def _initialize_rows(model: PreTrainedModel, size: int, new_tokens: list[int]) -> None:
    """Set the rows of new tokens to the mean of all others, which is the same on every machine.

    A matrix is resized only if it is too small: many have spare rows that were never trained.
    """
    import torch

    if model.get_input_embeddings().weight.shape[0] < size:
        model.resize_token_embeddings(size, mean_resizing=False)
    is_known = torch.ones(size, dtype=torch.bool)
    is_known[new_tokens] = False
    head = model.get_output_embeddings()
    with torch.no_grad():
        for values in (model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)):
            if values is not None:
                mean = values[:size][is_known.to(values.device)].float().mean(dim=0)
                values[new_tokens] = mean.to(values.dtype)


@dataclass
class Pretrained(Model):
    """A model on the Hugging Face Hub, or a folder written by ``save_pretrained``."""

    name_or_path: str = bounded("???", holds=bool, limit="a folder, or a Hub name, owner/name")
    revision: str = "main"

    def __post_init__(self) -> None:
        """Make a folder's path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.name_or_path = saved_path(self.name_or_path, or_hub_name=True)

    @property
    def _is_folder(self) -> bool:
        return Path(self.name_or_path).is_dir()

    def check(self) -> list[str]:
        """Return what is wrong with a local folder, or with the attention."""
        problems = super().check()
        key = f"model.name_or_path={self.name_or_path}"
        if self._is_folder:
            if not (Path(self.name_or_path) / "config.json").is_file():
                return [*problems, f"{key}: the folder has no config.json"]
            if not any(file.name.startswith(TOKENIZER_FILES) for file in self.files()):
                remedy = "copy the tokenizer files of its base model into it"
                return [*problems, f"{key}: the folder has no tokenizer; {remedy}"]
            return [*problems, *pickled_weights(key, Path(self.name_or_path))]
        looks_local = self.name_or_path.startswith((".", "/", "~")) or self.name_or_path.count("/") > 1
        return (
            [*problems, f"{key}: no such folder; give a folder, or a Hub name, owner/name"] if looks_local else problems
        )

    @property
    def base_name(self) -> str:
        """The Hub name, or the folder."""
        return self.name_or_path

    @property
    def base_revision(self) -> str | None:
        """The revision of a model on the Hub; None for the newest, or for a folder."""
        return None if self.revision == "main" or self._is_folder else self.revision

    def trust(self) -> dict[str, bool]:
        """Return whether the model's own code may run; always set, or Transformers would ask on the terminal."""
        trusted = os.environ.get(TRUST, "")
        return {"trust_remote_code": bool(trusted) and saved_path(trusted, or_hub_name=True) == self.name_or_path}

    def files(self) -> list[Path]:
        """Return the files of a local folder from which config, weights, tokenizer or templates may be read."""
        subfolder = str(self.init_kwargs.get("subfolder") or "")
        return loaded_files(Path(self.name_or_path), subfolder) if self._is_folder else []

    def key(self, context: StageContext, seed: int) -> str:  # noqa: ARG002
        """Return a key of the content of a folder's files, or of a hub model's commit."""
        if files := self.files():
            return digest([(os.path.relpath(file, self.name_or_path), context.store.sha256(file)) for file in files])
        return digest([self.name_or_path, getattr(self.config(context), "_commit_hash", None) or self.revision])

    def load_tokenizer(self, context: StageContext) -> PreTrainedTokenizerBase:  # noqa: ARG002
        """Load the tokenizer of the folder or hub model.

        Raises:
            ModelError: if there is only a slow tokenizer.
        """
        import transformers

        tokenizer: PreTrainedTokenizerBase = self._load(
            "tokenizer",
            lambda: transformers.AutoTokenizer.from_pretrained(
                self.name_or_path, revision=self.revision, **self.trust()
            ),
        )
        if not tokenizer.is_fast:
            raise ModelError(
                f"model.name_or_path={self.name_or_path}: has only a slow tokenizer, which cannot locate answers"
            )
        return tokenizer

    def config(self, context: StageContext) -> PretrainedConfig:  # noqa: ARG002
        """Load the config of the folder or hub model."""
        import transformers

        config: PretrainedConfig = self._load(
            "config",
            lambda: transformers.AutoConfig.from_pretrained(self.name_or_path, revision=self.revision, **self.trust()),
        )
        return config

    def load_weights(self, context: StageContext, seed: int, holding: Holding) -> PreTrainedModel:  # noqa: ARG002
        """Load safetensors weights; a checkpoint of pickles is refused, since it could run code."""
        import transformers

        self._load("adapter", lambda: refuse_other_adapters_of(self.name_or_path, self.revision, self.init_kwargs))
        model: PreTrainedModel = self._load(
            "model",
            lambda: transformers.AutoModelForCausalLM.from_pretrained(
                self.name_or_path,
                revision=self.revision,
                use_safetensors=True,
                **self.trust(),
                **self._kwargs(context, holding),
            ),
        )
        return model

    def _load(self, part: str, load: Callable[[], Any]) -> Any:
        """Return the result of ``load``.

        Raises:
            ModelError: for any error that it raises.
        """
        offline = "" if self._is_folder else fall_back_on_cache()
        try:
            return load()
        except Exception as error:  # for a broken folder, the library may raise anything
            if "trust_remote_code" in str(error):
                reason = "it needs its own Python code"
                remedy = f"read that code, then set {TRUST}={self.name_or_path} to let it run for this model only"
            else:
                reason = (str(error).strip().splitlines() or [""])[0]
                remedy = "check the folder's files" if self._is_folder else self._hub_remedy()
                if offline and "cached files" in reason:
                    reason = f"it is not in the cache, and {offline}"
            raise ModelError(
                f"model.name_or_path={self.name_or_path}: the {part} cannot be loaded ({reason}); {remedy}"
            ) from error

    def _hub_remedy(self) -> str:
        return (
            f"check the network and that https://huggingface.co/{self.name_or_path} exists; for a gated model accept "
            "its terms there, then run `hf auth login` or set HF_TOKEN; offline, use model=smollm2_135m_bundled or "
            "a folder, model=./FOLDER"
        )
