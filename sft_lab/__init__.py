"""sft_lab: a lab bench for supervised fine-tuning of language models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_lab import compare
    from sft_lab.api import sweep
    from sft_lab.config.compose import compose
    from sft_lab.run.config import Run

__all__ = ["Run", "compare", "compose", "sweep"]

# The libraries' telemetry is off unless the user has turned it on; they look once, when they are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``sft-lab --help`` stays fast."""
    if name in __all__:
        from sft_lab.core import home

        home.ensure()
    if name == "compose":
        from sft_lab.config import compose

        return compose
    if name == "compare":
        import sft_lab.compare

        return sft_lab.compare
    if name == "sweep":
        from sft_lab.api import sweep

        return sweep
    if name == "Run":
        from sft_lab.run.config import Run

        return Run
    raise AttributeError(f"module 'sft_lab' has no attribute {name!r}")
