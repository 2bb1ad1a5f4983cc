"""Hydra drives: a sweeper or launcher the user chose gets the sweep, and each of its tasks a job folder of ours."""

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

from sft_lab.config.compose import Plan, compose_one, hydra, job_of, refuse_hydra_settings
from sft_lab.config.error_messages import explain
from sft_lab.config.overrides import experiment_name, key_of, of_submitit, parse, texts_of
from sft_lab.core.errors import ConfigError

CHOOSERS = ("hydra/sweeper", "hydra/launcher")
# What Hydra would write beside our job folders, and the logging it would set up over ours.
_OURS = ["hydra.output_subdir=null", "hydra.sweep.subdir=.", "+hydra/job_logging=none", "+hydra/hydra_logging=none"]


def is_driven(overrides: list[str]) -> bool:
    """Whether the command line chooses a sweeper or launcher of Hydra's; the one for submitit is spelled as ours."""
    return any(key_of(word) in CHOOSERS for word in of_submitit(overrides))


def drive(overrides: list[str], work: Callable[[Plan], float], config_dir: str | None = None) -> Any:
    """Let Hydra sweep.

    Args:
        overrides: the command line's; they choose the sweeper, the launcher or both.
        work: places and executes a job, given as a plan of one, and answers its objective.
        config_dir: a further folder of options.

    Returns:
        What the sweeper answers.

    Raises:
        ConfigError: for what Hydra refuses.
    """
    with hydra(config_dir):
        words = parse(overrides)
        fixed = [text for text in texts_of(words) if text not in texts_of(words, swept=True)]
        refuse_hydra_settings(compose_one([text for text in fixed if not re.match("hydra[./]", key_of(text))]))
        task = partial(_task, work, experiment_name(fixed), frozenset(fixed))
        # Hydra writes its own record, multirun.yaml, into its sweep folder, even where no job of it lies.
        place = [] if _sweep_dir(fixed) else ["hydra.sweep.dir=multirun/hydra"]
        main = GlobalHydra.instance().hydra
        assert main is not None
        try:
            return main.multirun("config", task, [*texts_of(words), *place, *_OURS], with_log_configuration=False)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error


def _task(work: Callable[[Plan], float], name: str | None, fixed: frozenset[str], config: DictConfig) -> float:
    """One of Hydra's tasks: its config becomes a job of ours."""
    own = HydraConfig.get()
    composed = copy.deepcopy(config)
    OmegaConf.set_readonly(composed, value=False)
    OmegaConf.set_struct(composed, value=False)
    composed.hydra = {"runtime": {"choices": own.runtime.choices}}
    values = [str(word) for word in own.overrides.task if str(word) not in fixed]
    place = str(own.sweep.dir) if _sweep_dir(fixed) else None
    return work(Plan([job_of(composed, sorted(fixed), values)], True, name, None, place))


def _sweep_dir(fixed: Iterable[str]) -> bool:
    return any(key_of(text) == "hydra.sweep.dir" for text in fixed)
