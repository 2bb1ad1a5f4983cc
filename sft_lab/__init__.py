"""sft_lab: a lab bench for supervised fine-tuning of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_lab.config import compose
    from sft_lab.run import Run

__all__ = ["Run", "compose"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``sft-lab --help`` stays fast."""
    if name == "compose":
        from sft_lab.config import compose

        return compose
    if name == "Run":
        from sft_lab.run import Run

        return Run
    raise AttributeError(f"module 'sft_lab' has no attribute {name!r}")
