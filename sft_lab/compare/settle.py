"""The commands that would settle a near tie: more seeds of the settings that chance may have ordered, and no others."""

from __future__ import annotations

import shlex
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sft_lab.compare.uncertainty import SEEDS_NEEDED
from sft_lab.core.tolerant_readers import read

if TYPE_CHECKING:
    from sft_lab.compare.analyze import Comparison, Setting
    from sft_lab.compare.collect import ComparedJob

MAX_RIVALS = 2  # of the best setting that get more seeds, the nearest first
_OPTIONS = ("--config-dir", "-cd", "--config-name", "-cn")  # which say what overrides are applied to
_LEFT_OUT = ("seed", "rerun")  # overrides that the command sets itself, or that would train again what is there


class Settling(NamedTuple):
    """What would settle a near tie.

    Attributes:
        seeds: number of seeds for each setting, those that it has included.
        settings: number of settings.
        commands: that train the missing seeds; none where the jobs are not those of one sweep, or do not tell how they
            were made.
    """

    seeds: int
    settings: int
    commands: list[str]


def settling_commands(comparison: Comparison) -> Settling:
    """Return what would settle which of the best setting and its nearest rivals is better."""
    settings = [comparison.settings[0], *comparison.rivals[:MAX_RIVALS]]
    fewest = min(len(setting.jobs) for setting in settings)
    seeds = _seeds(settings, SEEDS_NEEDED if fewest < SEEDS_NEEDED else fewest + SEEDS_NEEDED)
    sweeps = {setting.jobs[0].folder.sweep for setting in settings}
    sweep = sweeps.pop()
    if sweep is None or sweeps or any(setting.jobs[0].overrides is None for setting in settings):
        return Settling(len(seeds), len(settings), [])

    ending = [*_ending(seeds, sweep), *_options(settings[0].jobs[0])]
    commands = [shlex.join([*command, *ending]) for command in _commands(settings, seeds)]
    return Settling(len(seeds), len(settings), commands)


def _seeds(settings: list[Setting], count: int) -> list[int]:
    """Return the seeds that some of the settings have, and further ones."""
    seeds = sorted(set().union(*map(_seeds_of, settings)))
    while len(seeds) < count:
        seeds.append(seeds[-1] + 1)
    return seeds


def _seeds_of(setting: Setting) -> set[int]:
    return {int(job.config.get("seed", 0)) for job in setting.jobs}


def _ending(seeds: list[int], sweep: Path) -> list[str]:
    folder = sweep.relative_to(Path.cwd()) if sweep.is_relative_to(Path.cwd()) else sweep
    return [f"seed={','.join(map(str, seeds))}", f"hydra.sweep.dir={folder}"]


def _options(job: ComparedJob) -> list[str]:
    """Return the options of a job's command that name a folder of options or another primary config."""
    with suppress(ValueError):
        texts = shlex.split(read(job.folder.manifest, []).get("command") or "")
        pairs = [[option, value] for option, value in pairwise(texts) if option in _OPTIONS]
        joined = [text for text in texts if text.partition("=")[0] in _OPTIONS and "=" in text]
        return [*(text for pair in pairs for text in pair), *joined]
    return []


def _commands(settings: list[Setting], seeds: list[int]) -> list[list[str]]:
    """Return one command for all settings if they differ in one key, else one for each that lacks seeds; as words."""
    configs = [_by_key(setting.jobs[0].overrides or []) for setting in settings]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    if len(differing) == 1 and all(differing[0] in config for config in configs):
        values = ",".join(dict.fromkeys(config[differing[0]].partition("=")[2] for config in configs))
        configs = [configs[0] | {differing[0]: f"{configs[0][differing[0]].partition('=')[0]}={values}"}]
    else:
        configs = [config for config, setting in zip(configs, settings, strict=True) if set(seeds) - _seeds_of(setting)]
    return [["sft-lab", "-m", *config.values()] for config in configs]


def _by_key(overrides: list[str]) -> dict[str, str]:
    """Return overrides by their keys; of two with one key the later counts."""
    named = {override.partition("=")[0].lstrip("+~"): override for override in overrides}
    return {key: override for key, override in named.items() if key not in _LEFT_OUT}
