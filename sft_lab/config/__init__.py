"""Configs: strict composition with Hydra, and conversion between saved YAML and ``Run``. Nothing else imports Hydra.

User input is composed once, here: the sweep is expanded, and every job is composed, checked for unknown keys and
built before anything starts. All problems are reported in one error.
"""

from __future__ import annotations

from sft_lab.config.compose import Job, Plan, compose, compose_config, compose_jobs, override_list
from sft_lab.config.hydra_sweepers import is_driven_by_hydra, run_hydra_sweep
from sft_lab.config.registry import register_plugins
from sft_lab.config.search_path import describe_search_path
from sft_lab.config.search_space import SearchAxis, SearchSpace, read_space
from sft_lab.config.serialize import build, from_saved, load

__all__ = [
    "Job",
    "Plan",
    "SearchAxis",
    "SearchSpace",
    "build",
    "compose",
    "compose_config",
    "compose_jobs",
    "describe_search_path",
    "from_saved",
    "is_driven_by_hydra",
    "load",
    "override_list",
    "read_space",
    "register_plugins",
    "run_hydra_sweep",
]
