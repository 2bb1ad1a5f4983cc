"""The adapter as PEFT's LoraConfig, and which saved adapters may be loaded."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from sft_lab.core.errors import ConfigError, FolderError
from sft_lab.core.io import read_json
from sft_lab.training.config import ADAPTER_FIELDS, Full, Lora


def build_peft_config(options: Full, model: Any, new_tokens: list[int], *, is_empty: bool = False) -> Any:
    """Return PEFT's LoraConfig; None for full training.

    Args:
        options: of the trainer.
        model: that gets the adapter; it needs no weights.
        new_tokens: ids of added tokens, whose rows are trained beside the adapter.
        is_empty: the model has no weights from which an adapter could be initialized.

    Raises:
        ConfigError: for target modules that the model does not have, or a field that the installed PEFT does not know.
    """
    if not isinstance(options, Lora):
        return None
    import peft

    modules = options.peft.target_modules
    if modules != ["all-linear"]:
        _refuse_unmatched("target_modules", modules, model)
    for key in ("modules_to_save", "target_parameters"):
        _refuse_unmatched(f"config.{key}", options.peft.config.get(key) or [], model)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    if unknown := sorted(set(options.peft.config) - known):
        raise ConfigError(f"trainer.peft.config={unknown}: not a field of PEFT {peft.__version__}'s LoraConfig")
    fields = {
        "task_type": "CAUSAL_LM",
        "r": options.peft.r,
        "lora_alpha": options.peft.lora_alpha,
        "lora_dropout": options.peft.lora_dropout,
        "target_modules": "all-linear" if modules == ["all-linear"] else modules,
        "use_dora": options.peft.use_dora,
        "use_rslora": options.peft.use_rslora,
        "trainable_token_indices": dict.fromkeys(_vocabulary_layers(model), new_tokens) if new_tokens else None,
        **options.peft.config,
    }
    if is_empty:
        fields["init_lora_weights"] = True
    try:
        return peft.LoraConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer.peft: rejected by PEFT: {' '.join(str(error).split())}") from error


def build_loraplus_optimizer(model: Any, args: Any, ratio: float) -> Any:
    """Return the optimizer of the training arguments, with B matrices at ``ratio`` times the learning rate.

    PEFT treats vectors, such as DoRA's magnitudes, like B matrices. Adapters of embeddings keep the learning rate.
    """
    import transformers
    from peft.optimizers import create_loraplus_optimizer

    kind, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
    return create_loraplus_optimizer(
        model,
        kind,
        loraplus_lr_ratio=ratio,
        loraplus_lr_embedding=kwargs["lr"],
        loraplus_weight_decay=args.weight_decay,
        **kwargs,
    )


def _refuse_unmatched(key: str, names: list[str], model: Any) -> None:
    """Refuse names of no module or, for ``target_parameters``, of no parameter, which PEFT would ignore.

    Raises:
        ConfigError: naming them and the closest existing names.
    """
    kind = "parameter" if key.endswith("parameters") else "module"
    parts = dict(model.named_parameters() if kind == "parameter" else model.named_modules())
    missing = [name for name in names if not any(f".{part}".endswith(f".{name}") for part in parts)]
    if not missing:
        return

    if kind == "parameter":
        short = [".".join(name.split(".")[-2:]) for name in parts]
    else:
        with_weights = [name for name, part in parts.items() if getattr(part, "weight", None) is not None]
        short = [name.rpartition(".")[2] for name in with_weights if not name.endswith("norm")]
    known = list(dict.fromkeys(short))
    near = [match for name in missing for match in difflib.get_close_matches(name, known, n=1)]
    raise ConfigError(
        f"trainer.peft.{key}={missing}: the model has no {kind} with this name; "
        + (f"did you mean {' or '.join(near)}?" if near else f"available: {', '.join(known)}")
    )


def _vocabulary_layers(model: Any) -> list[str]:
    """Return the names of the input embeddings and the LM head, which PEFT keeps tied if they are."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]


def refuse_other_adapters(file: Path) -> None:
    """Refuse an ``adapter_config.json`` of a kind that is not trained here: for some, PEFT loads other models or code.

    Raises:
        FolderError: naming the field.
    """
    import peft

    try:
        config: Any = read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{file}: cannot be read ({error}); train it again") from error
    if not isinstance(config, dict):
        raise FolderError(f"{file}: must be an object; train it again")
    if (kind := config.get("peft_type")) != "LORA":
        raise FolderError(f"{file}: peft_type={kind!r}: must be 'LORA', the only type that is loaded")
    defaults = peft.LoraConfig().to_dict()
    for name, value in config.items():
        if name not in ADAPTER_FIELDS and value and value != defaults.get(name):
            raise FolderError(f"{file}: {name} must not be set, since it could make PEFT run code")


def refuse_other_adapters_of(model: str, revision: str | None, init_kwargs: dict[str, Any]) -> None:
    """Apply ``refuse_other_adapters`` to a model's folder or Hub name, whose adapter Transformers loads unasked."""
    from transformers.utils.peft_utils import find_adapter_config_file

    subfolder = str(init_kwargs.get("subfolder") or "")
    if file := find_adapter_config_file(model, revision=revision, subfolder=subfolder):
        refuse_other_adapters(Path(file))
