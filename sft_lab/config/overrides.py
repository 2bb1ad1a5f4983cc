"""The command line's words in Hydra's grammar, and the grid they span."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from sft_lab.config.error_messages import GROUPS, first_line, refuse_none_beside
from sft_lab.config.search_path import read_experiment
from sft_lab.config.text_fields import quote_text
from sft_lab.core.errors import ConfigError, all_problems
from sft_lab.core.option_files import shipped
from sft_lab.core.redaction import MAY_BE_SECRET, holds_secret
from sft_lab.core.text import is_unicode
from sft_lab.run.launch_config import Slurm

# What of Hydra's own settings is read here; the rest is about hydra.main, which nobody calls.
_READ = r"hydra\.(run\.dir|sweep\.dir|mode|searchpath|(sweeper|launcher)\b)"


def key_of(word: str) -> str:
    """Give the key of an override, signs taken off."""
    return word.partition("=")[0].lstrip("+~")


def texts_of(words: Iterable[Override], *, swept: bool = False) -> list[str]:
    """Give overrides as they were written; with ``swept`` those alone that have several values."""
    return [str(word.input_line) for word in words if word.is_sweep_override() or not swept]


def parse(overrides: list[str]) -> list[Override]:
    """Read overrides in Hydra's grammar.

    ``experiment=x`` works too, where Hydra itself wants ``+experiment``, and ``split.filter=[x]`` for ``split/filter``.

    Raises:
        ConfigError: naming every word that is none, and every group that is given no name of an option.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    words: list[Override] = []
    problems = []
    for text in of_submitit(overrides):
        if holds_secret(text):
            problems.append(
                f"{key_of(text)}: holds {MAY_BE_SECRET}, which a config would keep; change it where it came from, "
                "since a command line is seen by others; log in with `hf auth login` or `wandb login`"
            )
            continue
        if not is_unicode(text):
            problems.append(f"{text.encode(errors='backslashreplace').decode()}: is not UTF-8; write it in UTF-8")
            continue
        if not key_of(text):
            problems.append(f"{text or repr(text)}: no key; write key=value")
            continue
        if (key := key_of(text)).startswith("hydra.") and not re.match(_READ, key):
            problems.append(
                f"{key}: has no effect here; hydra.run.dir and hydra.sweep.dir are the settings that are read"
            )
            continue
        try:
            words += parser.parse_overrides([quote_text(_quoted(_spelled(text)))])
            _refuse_group_value(words[-1])
        except HydraException as error:
            problems.append(f"{text}: no override in Hydra's grammar ({first_line(error)}); {_remedy(text)}")
        except ConfigError as error:
            problems.append(str(error))
        except ValueError:  # Python reads no whole number of more than 4300 digits
            problems.append(f"{text}: a number of too many digits; give one below 2**63")
    if problems:
        raise all_problems(problems)
    return words


def _remedy(text: str) -> str:
    key, sign, value = text.partition("=")
    if value.startswith("~"):
        return f'the shell expands no ~ behind key=; write "{key}=$HOME{value[1:]}"'
    return "quote it, \"key='a=b'\", if it holds = , ( { [ or a space" if sign else "write key=value"


# A text in quotes, or a bare one: up to what the grammar reads as a sign.
_TEXT = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s,=:(){}\[\]'"\\](?:[^,=:(){}\[\]'"\\]*[^\s,=:(){}\[\]'"\\])?"""
)


def _quoted(text: str) -> str:
    """Put bare texts with letters beyond ASCII into quotes: Hydra's grammar knows them there alone."""
    key, sign, value = text.partition("=")
    if value.isascii():
        return text

    def quote(found: re.Match[str]) -> str:
        one = found.group()
        return one if one.isascii() or one[0] in "'\"" else f"'{one}'"

    return key + sign + _TEXT.sub(quote, value)


# How Hydra's own plugin for submitit is chosen, and what that comes to here.
_SUBMITIT = {"submitit_slurm": ["launch=slurm"], "submitit_local": ["launch=slurm", "launch.cluster=local"]}


def of_submitit(overrides: list[str]) -> list[str]:
    """Spell ``hydra/launcher=submitit_slurm`` and its settings as ours; that plugin itself is not used.

    Raises:
        ConfigError: for a setting that ours does not have.
    """
    names = [found.name for found in fields(Slurm)]
    chosen = next((_SUBMITIT[word.partition("=")[2]] for word in overrides if _is_submitit(word)), None)
    spelled: list[str] = []
    for word in overrides:
        key = key_of(word).removeprefix("hydra.launcher.")
        ours = {"nodes": "num_machines"}.get(key, key)
        if _is_submitit(word):
            spelled += chosen or []
        elif key == key_of(word) or (chosen is None and ours not in names):
            spelled.append(word)
        elif chosen is None:
            raise ConfigError(
                f"{key_of(word)}: belongs to hydra/launcher=submitit_slurm; write launch=slurm launch.{ours}=..."
            )
        elif ours not in names:
            raise ConfigError(
                f"{key_of(word)}: launch=slurm has no such key; it has {', '.join(names)}; "
                "what sbatch itself takes goes into launch.additional_parameters"
            )
        else:
            spelled.append(f"launch.{ours}={word.partition('=')[2]}")
    return spelled


def _is_submitit(word: str) -> bool:
    return key_of(word) == "hydra/launcher" and word.partition("=")[2] in _SUBMITIT


def _spelled(text: str) -> str:
    if text.startswith("experiment="):
        return f"+{text}"
    if text in ("split.filter=none", "split.filter=null", "split.filter={}"):
        return "split/filter=[]"
    return re.sub(r"^split\.filter=", "split/filter=", text)


def _refuse_group_value(word: Override) -> None:
    group, text = str(word.key_or_group), str(word.input_line).removeprefix("+")
    if word.is_sweep_override() or (group not in GROUPS and "/" not in group) or group.startswith("hydra/"):
        return
    if word.is_delete():
        raise ConfigError(f"{text}: a group cannot be removed; choose another option, {group}=...")
    value: Any = word.value()
    several = group in ("filter", "split/filter", "experiment") and isinstance(value, list)
    if not all(isinstance(name, str) for name in value) if several else not isinstance(value, str):
        names = GlobalHydra.instance().config_loader().get_group_options(group)
        raise ConfigError(f"{text}: must be the name of an option; there are {', '.join(names)}")
    if group in ("filter", "split/filter"):
        refuse_none_beside(value, text)
        if isinstance(value, list) and (twice := next((name for name in value if value.count(name) > 1), None)):
            raise ConfigError(f"{text}: {twice} stands there twice; a filter works once, name it once")


def experiment_name(fixed: list[str]) -> str | None:
    """Give the name of the experiment that was chosen, ``a+b`` for two."""
    names = [word.partition("=")[2].strip("[]").replace(",", "+") for word in fixed if key_of(word) == "experiment"]
    return names[-1] if names else None


def refuse_sweep_settings(words: list[Override], *, swept: bool) -> None:
    """Refuse what a sweep would silently ignore: hydra.run.dir, and hydra.* settings in experiments swept over."""
    for word in words:
        key = key_of(str(word.input_line))
        if swept and key == "hydra.run.dir":
            raise ConfigError(f"{word.input_line}: the folder of a sweep is hydra.sweep.dir")
        if re.match(r"hydra\.(sweeper|launcher)\b", key):
            raise ConfigError(
                f"{key}: is a setting of a sweeper or launcher of Hydra's, and none is chosen; a grid is written "
                "-m seed=1,2, or as hydra.sweeper.params in a file of experiments/; how jobs are started, launch=..."
            )
        if key != "experiment" or not word.is_sweep_override():
            continue
        for name in re.findall(r"[^\s,\[\]]+", str(word.input_line).partition("=")[2]):
            files = [root / f"{name}.yaml" for root in (Path.cwd() / "experiments", shipped("experiments"))]
            if file := next((file for file in files if file.is_file()), None):
                content, _ = read_experiment(file)
                if "hydra" in content or any("hydra/" in str(entry) for entry in content.get("defaults") or []):
                    raise ConfigError(
                        f"{word.input_line}: {name} carries hydra.* settings, which are ignored when experiments are "
                        "swept over; combine two with +experiment=[base,sweep], or run them one after another"
                    )


def grid_of(words: list[Override], swept: set[str], params: Any) -> list[list[str]]:
    """Expand the grid: the command line's values beat those of a sweep file."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    given = {key_of(text) for text in texts_of(words)}
    own = [f"{key}={value}" for key, value in params.items() if key_of(str(key)) not in given]
    axes = [*parse(own), *(word for word in words if key_of(str(word.input_line)) in swept)]
    if not axes:
        return [[]]
    said = " ".join(texts_of(axes))
    if _jobs_of(axes) > MOST_JOBS:
        raise ConfigError(f"{said}: a sweep of over {MOST_JOBS:,} jobs; give fewer values, or several sweeps")
    try:
        batches = BasicSweeper.split_arguments(axes, None)
    except HydraException as error:
        raise ConfigError(f"{said}: {first_line(error)}; write the values, a,b or choice(a,b)") from error
    jobs = [list(job) for batch in batches for job in batch]
    if not jobs:
        raise ConfigError(f"{said}: gives no value at all, so there is no job; write the values, a,b or choice(a,b)")
    return jobs


MOST_JOBS = 10_000  # each is composed and checked before the first starts


def _jobs_of(axes: list[Override]) -> int:
    """Count the jobs of a grid as far as one more than may be: a range may have more values than fit in memory."""
    count = 1
    for axis in axes:
        if axis.is_choice_sweep() or axis.is_range_sweep():
            count *= sum(1 for _ in itertools.islice(axis.sweep_iterator(), MOST_JOBS + 1))
    return count
