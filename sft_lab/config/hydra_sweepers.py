"""Sweeps run by a Hydra sweeper or launcher of the user's choice; each of its tasks gets a job folder."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.config.compose import Plan, build_job, compose_raw, sweep_subdir
from sft_lab.config.error_messages import explain
from sft_lab.config.overrides import experiment_name, key_of, parse, texts_of, translate_submitit
from sft_lab.config.search_path import OptionSearchPath, hydra_session
from sft_lab.config.validation import refuse_hydra_settings
from sft_lab.core.errors import ConfigError

CHOOSERS = ("hydra/sweeper", "hydra/launcher")
# Hydra would write files of its own beside our job folders, and set up its logging over ours.
_NO_OUTPUT = [
    "hydra.output_subdir=null",
    "hydra.sweep.subdir=.",
    "+hydra/job_logging=none",
    "+hydra/hydra_logging=none",
]


def is_driven_by_hydra(overrides: list[str]) -> bool:
    """Return whether the command line chooses a Hydra sweeper or launcher; submitit's is translated to ours."""
    return any(key_of(text) in CHOOSERS for text in translate_submitit(overrides))


def run_hydra_sweep(
    overrides: list[str],
    run_job: Callable[[Plan], float],
    config_dir: str | None = None,
    config_name: str | None = None,
) -> Any:
    """Let Hydra run a sweep.

    Args:
        overrides: the command line's overrides, which choose the sweeper, the launcher or both.
        run_job: creates the folder of a plan's only job, runs it and returns its objective.
        config_dir: a further folder of options.
        config_name: of the config to compose, instead of ``config``.

    Returns:
        What the sweeper returns.

    Raises:
        ConfigError: if Hydra refuses it.
    """
    with hydra_session(config_dir, config_name):
        parsed = parse(overrides)
        swept = texts_of(parsed, only_swept=True)
        fixed = [text for text in texts_of(parsed) if text not in swept]
        refuse_hydra_settings(compose_raw([text for text in fixed if not re.match("hydra[./]", key_of(text))]))

        subdir = next((override.value() for override in parsed if override.key_or_group == "hydra.sweep.subdir"), None)
        task = partial(_run_task, run_job, experiment_name(fixed), frozenset(fixed), subdir)
        # Hydra writes its own record, multirun.yaml, into its sweep folder, even if none of its jobs is there.
        sweep_dir = [] if _sets_sweep_dir(fixed) else ["hydra.sweep.dir=multirun/hydra"]
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        arguments = [*texts_of(parsed), *sweep_dir, *_NO_OUTPUT]
        try:
            return hydra.multirun(OptionSearchPath.config_name, task, arguments, with_log_configuration=False)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error


def _run_task(
    run_job: Callable[[Plan], float], name: str | None, fixed: frozenset[str], subdir: Any, config: DictConfig
) -> float:
    """Turn a Hydra task into a job and run it."""
    settings = HydraConfig.get()
    composed = copy.deepcopy(config)
    OmegaConf.set_readonly(composed, value=False)
    OmegaConf.set_struct(composed, value=False)
    composed.hydra = {"runtime": {"choices": settings.runtime.choices}, "job": settings.job}
    composed.hydra.sweep = {"subdir": "???" if subdir is None else subdir}
    overrides = [str(text) for text in settings.overrides.task if str(text) not in fixed]
    sweep_dir = str(settings.sweep.dir) if _sets_sweep_dir(fixed) else None
    readable = sweep_subdir(composed, settings.job.num, overrides)
    return run_job(Plan([build_job(composed, sorted(fixed), overrides, readable)], True, name, None, sweep_dir))


def _sets_sweep_dir(overrides: Iterable[str]) -> bool:
    return any(key_of(text) == "hydra.sweep.dir" for text in overrides)
