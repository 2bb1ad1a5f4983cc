"""Sweeps run by a Hydra sweeper or launcher of the user's choice; each of its tasks gets a job folder."""

from __future__ import annotations

import copy
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.config.compose import Job, Plan, build_job, compose_raw, sweep_subdir
from sft_lab.config.error_messages import explain
from sft_lab.config.overrides import experiment_name, key_of, parse, texts_of, translate_submitit
from sft_lab.config.search_path import OptionSearchPath, hydra_session, launcher_of
from sft_lab.config.validation import refuse_hydra_settings
from sft_lab.core.errors import ConfigError, SftLabError
from sft_lab.core.log import log

CHOOSERS = ("hydra/sweeper", "hydra/launcher")
# Hydra would write its own files next to the job folders, and replace our logging by its own.
_NO_OUTPUT = [
    "hydra.output_subdir=null",
    "hydra.sweep.subdir=.",
    "+hydra/job_logging=none",
    "+hydra/hydra_logging=none",
]
_FAILURE_RATE = "max_failure_rate"  # a sweeper's own rule for failed jobs: of Optuna's and Nevergrad's
_BATCHES = "sft_lab"  # the launcher below, where the user chooses none
_PLUGIN_MODULE = f"hydra_plugins.{_BATCHES}"

Outcome = float | SftLabError


def is_driven_by_hydra(overrides: list[str]) -> bool:
    """Return whether the command line chooses a Hydra sweeper or launcher; submitit's is translated to ours."""
    return any(key_of(text) in CHOOSERS for text in translate_submitit(overrides))


def run_hydra_sweep(
    overrides: list[str],
    run_jobs: Callable[[Plan], list[Outcome]],
    config_dir: str | None,
    config_name: str | None,
) -> list[SftLabError]:
    """Let Hydra run a sweep, and return the failures of the jobs that ran in this process.

    A failed job does not end the sweep. A sweeper with a rule for failures gets an exception, and may let all jobs of
    a batch fail unless the user limits that; other sweepers get NaN as the objective.

    Args:
        overrides: the command line's overrides, which choose the sweeper, the launcher or both.
        run_jobs: creates the folders of a plan's jobs, runs them and returns the objective of each, or its failure.
        config_dir: a further folder of options.
        config_name: of the config to compose, instead of ``config``.

    Raises:
        ConfigError: if Hydra refuses it.
    """
    _register_launcher()
    with hydra_session(config_dir, config_name):
        parsed = parse(overrides)
        swept = texts_of(parsed, only_swept=True)
        fixed = [text for text in texts_of(parsed) if text not in swept]
        refuse_hydra_settings(compose_raw([text for text in fixed if not re.match("hydra[./]", key_of(text))]))

        # Hydra writes its own record, multirun.yaml, into its sweep folder, even if none of its jobs is there.
        sweep_dir = [] if _sets(fixed, "hydra.sweep.dir") else ["hydra.sweep.dir=multirun/hydra"]
        launcher = [] if _sets(fixed, "hydra/launcher") else [f"hydra/launcher={_BATCHES}"]
        arguments = [*texts_of(parsed), *launcher, *sweep_dir, *_NO_OUTPUT]
        subdir = next((override.value() for override in parsed if override.key_or_group == "hydra.sweep.subdir"), None)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        name = OptionSearchPath.config_name
        task = _Task(run_jobs, experiment_name(fixed), frozenset(fixed), subdir)
        try:
            with launcher_of(fixed):
                sweeper = hydra.config_loader.load_configuration(name, arguments, RunMode.MULTIRUN).hydra.sweeper
                if _FAILURE_RATE in sweeper and not _sets(fixed, f"hydra.sweeper.{_FAILURE_RATE}"):
                    arguments.append(f"hydra.sweeper.{_FAILURE_RATE}=1.0")
                task.raises = _FAILURE_RATE in sweeper or str(sweeper._target_).endswith(".BasicSweeper")
                hydra.multirun(name, task, arguments, with_log_configuration=False)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error
        except SftLabError:
            if not task.failures:
                raise
        return task.failures


@dataclass
class _Task:
    """What a Hydra launcher is to call with the config of each job.

    Attributes:
        run_jobs: as for ``run_hydra_sweep``.
        name: of the experiment.
        fixed: overrides that all jobs share.
        subdir: ``hydra.sweep.subdir`` as the user wrote it.
        raises: whether a failure is raised; if not, the objective is NaN.
        failures: of the jobs that this process ran.
    """

    run_jobs: Callable[[Plan], list[Outcome]]
    name: str | None
    fixed: frozenset[str]
    subdir: Any
    raises: bool = True
    failures: list[SftLabError] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> float:
        """Run a job for a launcher of Hydra's own."""
        settings: Any = HydraConfig.get()  # a DictConfig, whatever its type says
        (outcome,) = self.run([(config, settings)])
        return self.value(outcome)

    def run(self, configs: Sequence[tuple[DictConfig, DictConfig]]) -> list[Outcome]:
        """Run jobs together, each given by its config and Hydra's node; equal ones run once."""
        jobs = [self._job(config, settings) for config, settings in configs]
        distinct = {job.run.hash: job for job in jobs if isinstance(job, Job)}
        settings = configs[0][1]
        sweep_dir = str(settings.sweep.dir) if _sets(self.fixed, "hydra.sweep.dir") else None
        plan = Plan([*distinct.values()], True, self.name, None, sweep_dir)
        results = dict(zip(distinct, self.run_jobs(plan) if distinct else [], strict=True))
        outcomes = [results[job.run.hash] if isinstance(job, Job) else job for job in jobs]
        self.failures += [outcome for outcome in outcomes if isinstance(outcome, SftLabError)]
        return outcomes

    def value(self, outcome: Outcome) -> float:
        """Return what the sweeper gets for a job.

        Raises:
            SftLabError: the job's failure, for a sweeper that has a rule for it.
        """
        if isinstance(outcome, SftLabError):
            if self.raises:
                raise outcome
            return math.nan
        return outcome

    def _job(self, config: DictConfig, settings: DictConfig) -> Job | SftLabError:
        composed = copy.deepcopy(config)
        OmegaConf.set_readonly(composed, value=False)
        OmegaConf.set_struct(composed, value=False)
        composed.hydra = {"runtime": {"choices": settings.runtime.choices}, "job": settings.job}
        composed.hydra.sweep = {"subdir": "???" if self.subdir is None else self.subdir}
        overrides = [str(text) for text in settings.overrides.task if str(text) not in self.fixed]
        try:
            subdir = sweep_subdir(composed, settings.job.num, overrides)
            return build_job(composed, sorted(self.fixed), overrides, subdir)
        except ConfigError as error:
            log.error("job %d: %s", settings.job.num, error)
            return error


class BatchLauncher(Launcher):
    """Gives all jobs that a sweeper proposes together to ``launch=``, which runs as many at once as it can."""

    __module__ = _PLUGIN_MODULE

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert isinstance(self.task, _Task)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # where sweepers write their results
        configs = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            OmegaConf.set_readonly(config.hydra, value=False)
            config.hydra.job.update({"num": number, "id": str(number)})
            configs.append((config, config.hydra))
        returns = []
        for overrides, outcome in zip(job_overrides, self.task.run(configs) if configs else [], strict=True):
            failed = isinstance(outcome, SftLabError) and self.task.raises
            job_return = JobReturn(
                overrides=list(overrides), status=JobStatus.FAILED if failed else JobStatus.COMPLETED
            )
            job_return.return_value = outcome if failed else self.task.value(outcome)
            returns.append(job_return)
        return returns


def _sets(overrides: Iterable[str], key: str) -> bool:
    return any(key_of(text) == key for text in overrides)


def _register_launcher() -> None:
    """Make our launcher known to Hydra, which builds and locates plugins in the package ``hydra_plugins`` alone."""
    try:
        importlib.import_module("hydra_plugins")
    except ImportError:  # no plugin is installed
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    module = sys.modules.setdefault(_PLUGIN_MODULE, ModuleType(_PLUGIN_MODULE))
    setattr(module, BatchLauncher.__name__, BatchLauncher)
    Plugins.instance().register(BatchLauncher)
    node = {"_target_": f"{_PLUGIN_MODULE}.{BatchLauncher.__name__}"}
    ConfigStore.instance().store(group="hydra/launcher", name=_BATCHES, node=node)
