"""What the optimizers of ``trainer.optim`` need, and what they keep."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

from sft_lab.core.gpus import has_gpu

BITSANDBYTES = {"bitsandbytes": "bitsandbytes"}
# What an optimizer imports beside PyTorch, by the beginning of its name: modules and their packages.
PACKAGES = {
    r"adamw_8bit|adamw_bnb|paged_|ademamix|lion_|rmsprop_bnb": BITSANDBYTES,
    r"adamw_torch_[48]bit": {"torchao": "torchao"},
    r"galore_": {"galore_torch": "galore-torch"} | BITSANDBYTES,
    r"apollo_": {"apollo_torch": "apollo-torch"},
    r"lomo|adalomo": {"lomo_optim": "lomo-optim"},
    r"grokadamw": {"grokadamw": "grokadamw"},
    r"schedule_free_": {"schedulefree": "schedulefree"},
    r"stable_adamw": {"optimi": "torch-optimi"},
}

# Bytes of AdamW's two moments for each trained number; others of AdamW's keep them in the numbers' own type.
SMALL_MOMENTS = {"8bit": 2, "4bit": 1}
# Those that keep something else: moments of projected gradients, or a third moment.
OTHER_STATE = ("galore_", "apollo_", "grokadamw")
# Those whose moments are in no checkpoint.
UNSAVED = r".*_layerwise|adalomo|grokadamw"
# What others keep in a checkpoint beside numbers: the projections of gradients.
PROJECTIONS = {
    "galore_": ("galore_torch.galore_projector.GaLoreProjector",),
    "apollo_": ("apollo_torch.svd_projector.GaLoreProjector", "apollo_torch.random_projector.GradientProjector"),
}


def check_optimizer(optim: str) -> list[str]:
    """Return what keeps an optimizer from going on where it was interrupted."""
    if re.fullmatch(UNSAVED, optim):
        other = optim.removesuffix("_layerwise") if optim.endswith("_layerwise") else "adamw_torch_fused"
        problem = "its state is not in checkpoints, so an interrupted run would end with different weights"
        return [f"trainer.optim={optim}: {problem}; use {other}"]
    return []


def missing_for_optimizer(optim: str) -> list[str]:
    """Return what this machine lacks for an optimizer."""
    packages = next((packages for start, packages in PACKAGES.items() if re.match(start, optim)), {})
    missing = [name for module, name in packages.items() if not importlib.util.find_spec(module)]
    if missing:
        return [f"trainer.optim={optim}: needs {' and '.join(missing)}; run: pip install {' '.join(missing)}"]
    if optim.startswith("galore_adamw_8bit") and not has_gpu():
        return [f"trainer.optim={optim}: needs a GPU, and this machine has none; galore_adamw needs none"]
    return []


def adam_moments(optim: str, numbers: int, own_bytes: int) -> int | None:
    """Return the bytes of AdamW's moments; None for an optimizer that keeps something else.

    Args:
        optim: Transformers' name.
        numbers: that are trained.
        own_bytes: of these numbers in their own type.
    """
    if "adamw" not in optim or optim.startswith(OTHER_STATE):
        return None
    small = next((moments for bits, moments in SMALL_MOMENTS.items() if bits in optim), None)
    return 2 * own_bytes if small is None else small * numbers


def averages_weights(optim: str) -> bool:
    """Return whether an optimizer trains beside an average of its weights, which is its result (schedule-free)."""
    return optim.startswith("schedule_free_")


def put_average(optimizer: Any) -> None:
    """Let the model have the average that a schedule-free optimizer keeps; its next step goes on from before."""
    if callable(average := getattr(optimizer, "eval", None)):
        average()


def let_checkpoints_load(optim: str) -> None:
    """Let PyTorch load a checkpoint of an optimizer that keeps projections in it; it takes nothing but numbers else."""
    import torch

    paths = next((paths for start, paths in PROJECTIONS.items() if optim.startswith(start)), ())
    kinds = [getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in paths]
    torch.serialization.add_safe_globals(kinds)
