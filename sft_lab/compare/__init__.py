"""Jobs side by side: which setting is better, by how much, and how certain that is.

Called, the package compares the jobs of some folders: ``sft_lab.compare("multirun/sweep-1a2b3c")``.
``collect_jobs`` reads run folders, ``analyze`` compares the jobs, and what it returns is printed by
``print_comparison`` and written by ``write_comparison``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sft_lab.compare.analyze import Comparison, analyze
from sft_lab.compare.collect import collect_jobs
from sft_lab.compare.job_order import Order
from sft_lab.compare.job_table import print_comparison
from sft_lab.compare.write import write_comparison

__all__ = ["Comparison", "Order", "analyze", "collect_jobs", "compare", "print_comparison", "write_comparison"]


def compare(paths: Sequence[Path | str] | Path | str) -> Comparison:
    """Return the comparison of the jobs in sweep and run folders, as ``sft-lab compare`` shows it; nothing is written.

    Args:
        paths: of the folders, or of a single one.

    Raises:
        FolderError: if a path is not a folder or contains no run folder.
    """
    return analyze(collect_jobs(paths))


class _CallablePackage(ModuleType):
    """Lets ``sft_lab.compare`` be the function too: a package hides a function of its name."""

    __call__ = staticmethod(compare)


sys.modules[__name__].__class__ = _CallablePackage
