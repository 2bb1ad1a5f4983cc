"""Models: what is tuned, and its tokenizer."""

from __future__ import annotations

import abc
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, ModelError
from sft_lab.core.hub import fall_back_on_cache
from sft_lab.core.io import digest, follow_mask, sha256_file
from sft_lab.core.log import log
from sft_lab.core.model_files import loaded_files, pickled
from sft_lab.core.packages import missing_package, package_path, saved_path
from sft_lab.training.peft_config import refuse_other_adapters_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Set by the fields above them; a second place for one thing would let them disagree.
OWN_KWARGS = {"dtype", "torch_dtype", "revision", "attn_implementation", "quantization_config"}
# Would run code from elsewhere or load pickles, carry a secret into the config, or lead a login somewhere else.
REFUSED_KWARGS = {
    "trust_remote_code", "code_revision", "custom_generate", "use_kernels", "allow_all_kernels", "kernel_config",
    "use_safetensors", "weights_only", "token", "use_auth_token", "proxies", "cache_dir", "offload_folder",
}  # fmt: skip
TRUST = "SFT_LAB_TRUST_REMOTE_CODE"  # names the one model whose own code may run: no config of a stranger can say so


@dataclass
class Model(Bounded, abc.ABC):
    """What every model option has.

    Attributes:
        dtype: of the weights: ``auto`` (float32 on a CPU, else the checkpoint's own), ``float32``, ``bfloat16``,
            ``float16``.
        attn_implementation: Transformers' name (``sdpa``, ``eager``, ``flash_attention_2``); null: its own choice.
        init_kwargs: passed to ``from_pretrained`` as they are; outside what sft_lab promises.
    """

    version: ClassVar[int] = 1

    dtype: str = bounded("auto", choices=DTYPES)
    attn_implementation: str | None = bounded(
        None, holds=lambda name: "/" not in name, limit="a name without /, which would be code of a hub"
    )
    init_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse ``init_kwargs`` that are set elsewhere, or not at all."""
        super().__post_init__()
        if own := sorted(OWN_KWARGS & set(self.init_kwargs)):
            raise ConfigError(f"init_kwargs={own}: set these by the model's own keys, or not at all")
        if refused := sorted(REFUSED_KWARGS & set(self.init_kwargs)):
            raise ConfigError(
                f"init_kwargs={refused}: not to be set; code of others is never run, weights are safetensors, and a "
                "login comes from `hf auth login` or HF_TOKEN"
            )

    @property
    def base_name(self) -> str:
        """What others can find the model by: its name on the Hub, a local one's folder, empty for a made-up one."""
        return ""

    @property
    def base_revision(self) -> str | None:
        """The revision of that name on the Hub, None where there is none to tell."""
        return None

    @abc.abstractmethod
    def check(self) -> list[str]:
        """Say what is wrong with the world as this model needs it."""

    def files(self) -> list[Path]:
        """Return every local file that loading it reads."""
        return []

    @abc.abstractmethod
    def key(self, context: StageContext, seed: int) -> str:
        """A key of the weights: content or commit, never a name alone."""

    @abc.abstractmethod
    def load_tokenizer(self, context: StageContext) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""

    def tokenizer(self, context: StageContext, special_tokens: Sequence[str] = ()) -> PreTrainedTokenizerBase:
        """Load the tokenizer, ready for batches: with a padding token, the end of text where it has none.

        Args:
            context: the run's tools.
            special_tokens: which the template needs; those the tokenizer lacks are added, their ids kept in its
                ``new_tokens``.

        Raises:
            ModelError: if it has no end-of-text token to stand in.
        """
        tokenizer = self.load_tokenizer(context)
        known = tokenizer.get_vocab()
        if missing := [token for token in special_tokens if token not in known]:
            tokenizer.add_tokens(missing, special_tokens=True)
            tokenizer.new_tokens = sorted(tokenizer.convert_tokens_to_ids(missing))
            log.info("model: %d tokens added for the template: %s", len(missing), " ".join(missing))
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ModelError("model: its tokenizer has neither a padding nor an end-of-sequence token")
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def trust(self) -> dict[str, bool]:
        """Return whether the model's own code may run."""
        return {"trust_remote_code": False}

    @abc.abstractmethod
    def config(self, context: StageContext) -> PretrainedConfig:
        """Load the model's shape, without its weights."""

    @abc.abstractmethod
    def load_weights(self, context: StageContext, seed: int, *, four_bit: bool) -> PreTrainedModel:
        """Load the weights as they come."""

    def load(self, context: StageContext, seed: int, *, four_bit: bool = False) -> PreTrainedModel:
        """Load the weights, trainable, with a row for each token that was added to the tokenizer.

        Args:
            context: for the tokenizer.
            seed: of a random model.
            four_bit: held in 4 bits, under an adapter.

        Raises:
            ModelError: if the weights cannot be loaded, or so held.
        """
        model = self.load_weights(context, seed, four_bit=four_bit)
        rows = model.get_input_embeddings().weight.shape[0]
        if context.tokenizer.vocab_size > rows:
            raise ModelError(
                f"model: its tokenizer has {context.tokenizer.vocab_size:,} tokens, its weights know {rows:,}; put the "
                "tokenizer beside it that it was trained with"
            )
        if context.new_tokens:
            _make_rows(model, len(context.tokenizer), context.new_tokens)
        return model

    def arithmetic(self) -> dict[str, Any]:
        """Return what changes a model's numbers beside its files: dtype as it is here, attention, ``init_kwargs``."""
        return self._kwargs(four_bit=False)

    def _kwargs(self, *, four_bit: bool) -> dict[str, Any]:
        import torch

        own_dtype = "auto" if torch.cuda.is_available() else "float32"
        attention = {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        held = four_bits() if four_bit else {}
        return {"dtype": own_dtype if self.dtype == "auto" else self.dtype, **attention, **held, **self.init_kwargs}


def four_bits() -> dict[str, Any]:
    """Keys of ``from_pretrained`` for weights in 4 bits as the QLoRA paper has them.

    Raises:
        ModelError: without bitsandbytes or a GPU.
    """
    import torch
    import transformers

    if not (torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes")):
        raise ModelError(
            "trainer.quantization=nf4: needs bitsandbytes and a GPU that PyTorch can use; trainer=lora needs neither"
        )
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16,
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _make_rows(model: PreTrainedModel, size: int, new: list[int]) -> None:
    """Give each new token the mean of what the model knows, the same wherever it is made.

    A matrix grows only where it is too small: many have rows to spare, which were never trained.
    """
    import torch

    if model.get_input_embeddings().weight.shape[0] < size:
        model.resize_token_embeddings(size, mean_resizing=False)
    known = torch.ones(size, dtype=torch.bool)
    known[new] = False
    head = model.get_output_embeddings()
    with torch.no_grad():
        for values in (model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)):
            if values is not None:
                values[new] = values[:size][known.to(values.device)].float().mean(dim=0).to(values.dtype)


@dataclass
class Pretrained(Model):
    """A model of the Hugging Face Hub, or a folder that ``save_pretrained`` wrote."""

    name_or_path: str = bounded("???", holds=bool, limit="a folder, or a hub name owner/name")
    revision: str = "main"

    def __post_init__(self) -> None:
        """Make a folder's path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.name_or_path = saved_path(self.name_or_path, or_hub_name=True)

    def check(self) -> list[str]:
        """A name that looks like a folder is one."""
        path = Path(self.name_or_path)
        if path.is_dir():
            if not (path / "config.json").is_file():
                return [f"model.name_or_path={self.name_or_path}: the folder has no config.json"]
            return pickled(f"model.name_or_path={self.name_or_path}", path)
        looks_local = self.name_or_path.startswith((".", "/", "~")) or self.name_or_path.count("/") > 1
        if looks_local:
            return [f"model.name_or_path={self.name_or_path}: no such folder; give a folder or a hub name owner/name"]
        return []

    @property
    def base_name(self) -> str:
        """The Hub name, or the folder."""
        return self.name_or_path

    @property
    def base_revision(self) -> str | None:
        """The revision of a hub model that is not its newest."""
        return None if self.revision == "main" or Path(self.name_or_path).is_dir() else self.revision

    def trust(self) -> dict[str, bool]:
        """Whether the model's own code may run; said each time, since left open Transformers asks on the terminal."""
        trusted = os.environ.get(TRUST, "")
        return {"trust_remote_code": bool(trusted) and saved_path(trusted, or_hub_name=True) == self.name_or_path}

    def files(self) -> list[Path]:
        """Return every file of a local folder that config, weights, tokenizer or templates may be read from."""
        root = Path(self.name_or_path)
        return loaded_files(root, str(self.init_kwargs.get("subfolder") or "")) if root.is_dir() else []

    def key(self, context: StageContext, seed: int) -> str:  # noqa: ARG002
        """Files of a folder by content; a hub model by its resolved commit."""
        if files := self.files():
            root = Path(self.name_or_path)
            return digest([(os.path.relpath(file, root), context.store.sha256(file)) for file in files])
        return digest([self.name_or_path, getattr(self.config(context), "_commit_hash", None) or self.revision])

    def load_tokenizer(self, context: StageContext) -> PreTrainedTokenizerBase:  # noqa: ARG002
        """Load the tokenizer of the folder or hub model."""
        tokenizer: PreTrainedTokenizerBase = self._loaded(
            "tokenizer",
            lambda auto: auto.AutoTokenizer.from_pretrained(self.name_or_path, revision=self.revision, **self.trust()),
        )
        if not tokenizer.is_fast:
            raise ModelError(
                f"model.name_or_path={self.name_or_path}: only a slow tokenizer, which cannot place answers"
            )
        return tokenizer

    def config(self, context: StageContext) -> PretrainedConfig:  # noqa: ARG002
        """Load the config of the folder or hub model."""
        config: PretrainedConfig = self._loaded(
            "config",
            lambda auto: auto.AutoConfig.from_pretrained(self.name_or_path, revision=self.revision, **self.trust()),
        )
        return config

    def load_weights(self, context: StageContext, seed: int, *, four_bit: bool) -> PreTrainedModel:  # noqa: ARG002
        """Load safetensors weights; a checkpoint in pickle form is refused, since it could run code."""
        self._loaded("adapter", lambda _: refuse_other_adapters_of(self.name_or_path, self.revision, self.init_kwargs))
        model: PreTrainedModel = self._loaded(
            "model",
            lambda auto: auto.AutoModelForCausalLM.from_pretrained(
                self.name_or_path,
                revision=self.revision,
                use_safetensors=True,
                **self.trust(),
                **self._kwargs(four_bit=four_bit),
            ),
        )
        return model

    def _loaded(self, what: str, load: Any) -> Any:
        import transformers

        if not Path(self.name_or_path).is_dir():
            fall_back_on_cache()
        try:
            return load(transformers)
        except Exception as error:  # a broken folder of a stranger makes the library raise anything
            first = (str(error).strip().splitlines() or [""])[0]
            if "trust_remote_code" in str(error):
                first = "it needs Python code of its own"
                place = f"read that code, then {TRUST}={self.name_or_path} lets it run, for this model alone"
            else:
                place = "look into the folder" if Path(self.name_or_path).is_dir() else self._hub_advice()
            raise ModelError(
                f"model.name_or_path={self.name_or_path}: the {what} cannot be loaded ({first}); {place}"
            ) from error

    def _hub_advice(self) -> str:
        return (
            f"is there a page https://huggingface.co/{self.name_or_path}, and a network? For a gated model accept its "
            "terms on that page, then `hf auth login` or HF_TOKEN; without a hub use model=smollm2_135m_bundled or "
            "model=local"
        )


@dataclass
class Gguf(Model):
    """A GGUF file made trainable again: converted once into the store, used from there.

    The weights are what the file's quantization left of the original ones.

    Attributes:
        path: of the file, or ``package:<module>/<path>``.
        sha256: of the file; another one is refused.
        original: the Hub name of the model that the file was made from, for adapter and card; null: none is known.
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
        """The model the file was made from: the converted one lies in a store that nobody else has."""
        return self.original or ""

    def check(self) -> list[str]:
        """The file is there."""
        if missing := missing_package(self.path):
            return [f"model.path={self.path}: {missing}; or use model=tiny_random, or a hub model"]
        return [] if package_path(self.path).is_file() else [f"model.path={self.path}: no such file; give a .gguf file"]

    def key(self, context: StageContext, seed: int) -> str:  # noqa: ARG002
        """The pinned hash of the file."""
        return digest([self.version, self.sha256])

    def _converted(self, context: StageContext) -> Path:
        import transformers

        def convert(folder: Path) -> None:
            file = package_path(self.path)
            found = sha256_file(file)
            if found != self.sha256:
                raise ModelError(
                    f"{file}: SHA-256 is {found}, must be {self.sha256}; reinstall the package it came "
                    "from, or for a file of your own give its hash as model.sha256"
                )
            # Without dequantize the weights stay packed: no gradient reaches them and they cannot be saved.
            gguf = transformers.GgufConfig(dequantize=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, quantization_config=gguf, dtype="float32", trust_remote_code=False
            )
            if getattr(model.config, "quantization_config", None) is not None:
                del model.config.quantization_config
            model.save_pretrained(folder)
            follow_mask(folder)
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, trust_remote_code=False
            )
            tokenizer.save_pretrained(folder)

        return context.stage("model", {"version": self.version, "params": {"sha256": self.sha256}}, convert).path

    def load_tokenizer(self, context: StageContext) -> PreTrainedTokenizerBase:
        """Load the converted tokenizer."""
        import transformers

        folder = self._converted(context)
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return tokenizer

    def config(self, context: StageContext) -> PretrainedConfig:
        """Load the converted config."""
        import transformers

        folder = self._converted(context)
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return config

    def load_weights(self, context: StageContext, seed: int, *, four_bit: bool) -> PreTrainedModel:  # noqa: ARG002
        """Load the converted weights."""
        import transformers

        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
            self._converted(context), trust_remote_code=False, **self._kwargs(four_bit=four_bit)
        )
        return model
