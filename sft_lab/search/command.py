"""A command line becomes a space and options of a search; ``hparams_search=NAME`` takes both from a file."""

from __future__ import annotations

import math

from sft_lab.config import SearchSpace, read_space
from sft_lab.core.errors import ConfigError
from sft_lab.core.log import log
from sft_lab.search.hparams_file import FOLDER, read_hparams_file
from sft_lab.search.options import SearchOptions

WIDE = 50.0  # between the ends of an interval above 0: most values of a linear search lie in its upper part


def read_command(
    overrides: list[str],
    axes: list[str],
    *,
    trials: int | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    at_once: int | None = None,
    confirm: int = 0,
    config_dir: str | None = None,
    config_name: str | None = None,
) -> tuple[SearchSpace, SearchOptions]:
    """Return the space and the options of a search.

    Args:
        overrides: of the command line, ``hparams_search=NAME`` among them.
        axes: of ``--over``; they beat a file's.
        trials: as in ``SearchOptions``, like the next four; None: as a file says, else its default.
        sampler: what proposes.
        pruner: what ends jobs.
        at_once: jobs that are proposed together.
        confirm: seeds of the best.
        config_dir: a further folder of options.
        config_name: of the config to compose, instead of ``config``.

    Raises:
        ConfigError: naming every problem.
    """
    names = [text for text in overrides if text.lstrip("+").startswith(f"{FOLDER}=")]
    overrides = [text for text in overrides if text not in names]
    if driven := [text for text in overrides if text.startswith(("hydra/sweeper=", "hydra/launcher="))]:
        raise ConfigError(f"{driven[0]}: works only with sft-lab -m; for a search use --sampler and launch=...")

    seed = None
    for text in names:
        file = read_hparams_file(text.partition("=")[2], config_dir)
        if file.ignored:
            log.warning("%s: ignored: %s", file.path, ", ".join(file.ignored))
        keys = {override.partition("=")[0] for override in [*overrides, *axes]}
        overrides += [axis for axis in file.axes if axis.partition("=")[0] not in keys]
        sampler = sampler or file.sampler
        trials = file.trials if trials is None else trials
        at_once = file.at_once if at_once is None else at_once
        seed = file.seed if seed is None else seed

    space = read_space(overrides, axes, config_dir, config_name)
    options = SearchOptions(trials, sampler or "tpe", pruner or "none", at_once, confirm, seed)
    options.check(space)
    for axis in space.axes:
        if not axis.choices and not axis.is_log and axis.step is None and axis.low > 0 and axis.high / axis.low >= WIDE:
            log.warning(
                "%s=%s: half of the values lie above %g; tag(log, %s) makes equal factors equally likely",
                axis.key, axis.text, math.fsum([axis.low, axis.high]) / 2, axis.text,
            )  # fmt: skip
    return space, options
