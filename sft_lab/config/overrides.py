"""Command-line overrides in Hydra's grammar, and the grid of jobs that they span."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException

from sft_lab.config.error_messages import (
    GROUPS,
    LOGGING,
    refuse_none_with_filters,
    refused_interpolations,
)
from sft_lab.config.other_names import SUBMITIT, our_name
from sft_lab.config.search_path import EXPERIMENT_PACKAGE, read_option_file
from sft_lab.config.shortcuts import expand, is_data_file
from sft_lab.config.text_fields import quote_text
from sft_lab.core.characters import character_hint, code_of, meant_option
from sft_lab.core.errors import ConfigError, all_problems
from sft_lab.core.option_files import how_to_run, is_yaml, shipped
from sft_lab.core.redaction import MAY_BE_SECRET, holds_secret
from sft_lab.core.text import is_unicode, visible
from sft_lab.run.launch_config import Slurm

MAX_JOBS = 10_000  # each is composed and checked before the first starts

# The settings of Hydra's that have an effect here; the others concern hydra.main, which is not used.
_HYDRA_SETTINGS = (
    r"hydra\.(run\.dir|sweep\.(sub)?dir|job\.config\.override_dirname|mode|searchpath|(sweeper|launcher)\b)"
)
_FILTER_GROUPS = ("filter", "split/filter")
# A text in quotes, or an unquoted one: up to what the grammar reads as a sign.
_TEXT = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s,=:(){}\[\]'"\\](?:[^,=:(){}\[\]'"\\]*[^\s,=:(){}\[\]'"\\])?"""
)


def key_of(override: str) -> str:
    """Return the key of an override, without ``+`` and ``~``."""
    return override.partition("=")[0].lstrip("+~")


def value_of(override: str) -> str:
    """Return the value of an override as it is written."""
    return override.partition("=")[2]


def texts_of(overrides: Iterable[Override], *, only_swept: bool = False) -> list[str]:
    """Return overrides as written; with ``only_swept``, only those with several values."""
    return [str(override.input_line) for override in overrides if override.is_sweep_override() or not only_swept]


def decimal_hint(override: str) -> str:
    """Return how to write a decimal whose comma makes two values of it, as in ``0,2``; empty for other values."""
    key, _, value = override.partition("=")
    is_decimal = re.fullmatch(r"[+-]?(0,\d+|\d+,\d+[eE][+-]?\d+)", value)
    return f"; a decimal has a point: {key}={value.replace(',', '.')}" if is_decimal else ""


def experiment_name(overrides: list[str]) -> str | None:
    """Return the name of the chosen experiment, ``a+b`` for two."""
    names = [value_of(text).strip("[]").replace(",", "+") for text in overrides if key_of(text) == "experiment"]
    return names[-1] if names else None


# --- parsing -------------------------------------------------------------------------------------------------------


def parse(overrides: list[str]) -> list[Override]:
    """Return overrides parsed in Hydra's grammar.

    ``experiment=x`` works too, although Hydra itself wants ``+experiment``; so does ``split.filter=[x]`` for
    ``split/filter``.

    Raises:
        ConfigError: naming every text that is not an override, and every group whose value cannot name an option.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed: list[Override] = []
    problems = []
    texts = []
    for pieces in _split_at_equals(join_values(overrides)):
        if len(pieces) > 1:
            problems.append(f"{' '.join(pieces)}: no space may stand before or after =; write {''.join(pieces)}")
        else:
            texts += pieces
    expanded = [part for override in texts for part in expand(override)]
    for text in translate_submitit(expanded):
        if problem := _problem_before_parsing(text):
            problems.append(problem)
            continue
        try:
            parsed += parser.parse_overrides([quote_text(_quote_non_ascii(_in_hydra_spelling(text)))])
            _refuse_group_value(parsed[-1])
        except HydraException as error:  # whose messages list what its lexer expected
            problems.append(f"{visible(text)}: cannot be read as key=value; {_remedy(text, str(error))}")
        except ConfigError as error:
            problems.append(str(error))
        except ValueError:  # Python refuses whole numbers of more than 4300 digits
            problems.append(f"{text}: the number has too many digits; it must be below 2**63")
    if problems:
        raise all_problems(problems)
    return parsed


def join_values(overrides: list[str]) -> list[str]:
    """Return overrides with values joined that the shell split after a comma: ``key=1,`` and ``2``."""
    joined: list[str] = []
    for text in overrides:
        if joined and joined[-1].endswith(",") and "=" not in text:
            joined[-1] += text
        else:
            joined.append(text)
    return joined


def _split_at_equals(texts: list[str]) -> list[list[str]]:
    """Return each override in its pieces: several where the shell split it at a space before or after its ``=``."""
    overrides: list[list[str]] = []
    for text in texts:
        before = "".join(overrides[-1]) if overrides else ""
        has_value = "=" in before[:-1]
        follows_equals = before.endswith("=") and not has_value and "=" not in text and not text.startswith("~")
        if follows_equals or (before and "=" not in before and text.startswith("=")):
            overrides[-1].append(text)
        else:
            overrides.append([text])
    return overrides


def _problem_before_parsing(text: str) -> str:
    """Return a problem with a text that the grammar does not catch; empty if there is none."""
    key = key_of(text)
    if holds_secret(text):
        return (
            f"{key}: contains {MAY_BE_SECRET}, which the config would store; revoke it, since other users can see "
            "command lines; log in with `hf auth login` or `wandb login`"
        )
    if not is_unicode(text):
        return f"{text.encode(errors='backslashreplace').decode()}: is not UTF-8; write it in UTF-8"
    if not key:
        return f"{text or repr(text)}: no key; write key=value"
    if "=" not in text and not text.startswith("~"):
        return _problem_without_equals(text)
    if not key.startswith("hydra") and re.search(r"\$\{\s*[\w.]+\s*:.*\}", text):  # whose inside may be no grammar
        return next(refused_interpolations(value_of(text), key), "")
    if key == "experiment" and is_yaml(value_of(text)) and not re.fullmatch(r"[\w-]+\.yaml", value_of(text)):
        return f"{text}: must be a name, without folder and ending; {how_to_run(value_of(text))}"
    if key == "hparams_search":
        return f"{text}: describes a search; run it with `sft-lab search {text.lstrip('+')}`"
    if key.startswith("hydra.") and not re.match(_HYDRA_SETTINGS, key):
        hint = (
            LOGGING if key == "hydra.verbose" else "sft_lab reads hydra.run.dir, hydra.sweep.dir and hydra.sweep.subdir"
        )
        return f"{key}: has no effect here; {hint}"
    return ""


def _problem_without_equals(text: str) -> str:
    """Return what a text without ``=`` lacks: the key of a file or value, or the value of a key."""
    if is_yaml(text):
        return f"{text}: is not an override; {how_to_run(text)}"
    if Path(text).is_file() or is_data_file(text):
        return f"{text}: has no key; write dataset={text}"
    if hint := meant_option(text) or character_hint(text):
        return f"{text}: {hint}"
    if text[:1].isalpha():
        return f"{text}: has no value; write {key_of(text)}=..."
    return f"{text}: has no key; write key={text}"


def _remedy(text: str, reason: str) -> str:
    key, _, value = text.partition("=")
    if hint := character_hint(text):
        return hint
    if letter := next((character for character in key if not character.isascii()), ""):
        return f"the key contains {letter} {code_of(letter)}; keys use only Latin letters"
    if match := re.search(r"Unknown function '(\w+)'\s+Available: (\S+)", reason):
        names = match[2].replace(",", ", ")
        return (
            f"Hydra's grammar has no function {match[1]}, only {names}; `sft-lab search` takes interval(a,b) and, for "
            "factors, tag(log, interval(a,b))"
        )
    if match := re.search(r"Error while evaluating '(.+)': (.+)", reason):
        return f"{match[1]}: {match[2]}"
    if value.startswith("~"):
        return f'the shell does not expand ~ after key=; write "{key}=$HOME{value[1:]}"'
    if value.endswith(","):
        return f"a value is missing after the last comma; write several values as {key}=1,2"
    return "quote it, \"key='a=b'\", if it contains = , ( { [ or a space"


def _quote_non_ascii(text: str) -> str:
    """Return an override with quotes around non-ASCII text, which Hydra's grammar allows only in quotes."""
    key, sign, value = text.partition("=")
    if value.isascii():
        return text

    def quote(match: re.Match[str]) -> str:
        item = match.group()
        return item if item.isascii() or item[0] in "'\"" else f"'{item}'"

    return key + sign + _TEXT.sub(quote, value)


def _in_hydra_spelling(text: str) -> str:
    if text.startswith("experiment="):
        return f"+{text}"
    if text in ("split.filter=none", "split.filter=null", "split.filter={}"):
        return "split/filter=[]"
    return re.sub(r"^split\.filter=", "split/filter=", text)


def _refuse_group_value(override: Override) -> None:
    group, text = str(override.key_or_group), str(override.input_line).removeprefix("+")
    is_group = group in GROUPS or ("/" in group and not group.startswith("hydra/"))
    if not is_group or override.is_sweep_override():
        return
    if override.is_delete():
        raise ConfigError(f"{text}: a group cannot be removed; choose another option, {group}=...")

    value: Any = override.value()
    takes_list = group in (*_FILTER_GROUPS, "experiment", "tracking") and isinstance(value, list)
    if not all(isinstance(name, str) for name in (value if takes_list else [value])):
        names = GlobalHydra.instance().config_loader().get_group_options(group)
        raise ConfigError(f"{text}: must be the name of one option: {', '.join(names)}")
    if group == "tracking" and isinstance(value, list) and "local" in value and len(value) > 1:
        raise ConfigError(
            f"{text}: local cannot be combined with others, since every run writes a local record anyway; leave it out"
        )
    if group in _FILTER_GROUPS and isinstance(value, list):
        refuse_none_with_filters(value, text)
        if repeated := next((name for name in value if value.count(name) > 1), None):
            raise ConfigError(f"{text}: filter {repeated!r} is listed twice; list it once")


def translate_submitit(overrides: list[str]) -> list[str]:
    """Return overrides with ``hydra/launcher=submitit_slurm`` and its settings translated to ours.

    Raises:
        ConfigError: for a setting without an equivalent.
    """
    options = next((SUBMITIT[value_of(text)] for text in overrides if _is_submitit(text)), None)
    return [translated for text in overrides for translated in _translate(text, options)]


def _is_submitit(text: str) -> bool:
    return key_of(text) == "hydra/launcher" and value_of(text) in SUBMITIT


def _translate(text: str, options: list[str] | None) -> list[str]:
    """Return one override translated; ``options`` stand for the chosen submitit launcher, if any."""
    if _is_submitit(text):
        return options or []
    setting = key_of(text).removeprefix("hydra.launcher.")
    if setting == key_of(text):
        return [text]
    names = [field.name for field in fields(Slurm)]
    name = setting.removeprefix("slurm_")  # as submitit calls some itself
    name = {"nodes": "num_machines"}.get(name, name)
    is_known = name.partition(".")[0] in names  # of a mapping, also a key below it
    if name == "stderr_to_stdout":
        raise ConfigError(f"{key_of(text)}: leave it out; a job's output and errors are always in one file")
    if not is_known and (ours := our_name(f"launch.{name}")):
        raise ConfigError(f"{key_of(text)}: write {'' if ours.startswith('launch=') else 'launch=slurm '}{ours}")
    if options is None and not is_known:
        return [text]
    if options is None:
        raise ConfigError(
            f"{key_of(text)}: belongs to hydra/launcher=submitit_slurm; write launch=slurm launch.{name}=..."
        )
    if not is_known:
        raise ConfigError(
            f"{key_of(text)}: launch=slurm has no such key; it has {', '.join(names)}; "
            "put other sbatch options into launch.additional_parameters"
        )
    return [f"launch.{name}={value_of(text)}"]


# --- sweeps --------------------------------------------------------------------------------------------------------


def refuse_sweep_settings(overrides: list[Override], *, is_sweep: bool) -> None:
    """Refuse settings that a sweep would silently ignore.

    Raises:
        ConfigError: for hydra.run.dir, settings of a sweeper that is not chosen, and hydra.* settings in experiments
            that are swept over.
    """
    for override in overrides:
        text = str(override.input_line)
        if is_sweep and key_of(text) == "hydra.run.dir":
            raise ConfigError(f"{text}: has no effect on a sweep; set hydra.sweep.dir instead")
        if re.match(r"hydra\.(sweeper|launcher)\b", key_of(text)):
            raise ConfigError(
                f"{key_of(text)}: is a setting of a Hydra sweeper or launcher, and none is selected; write a grid as "
                "-m seed=1,2, or as hydra.sweeper.params in a file in experiments/; launch=... sets how jobs are "
                "started"
            )
        if key_of(text) == "experiment" and override.is_sweep_override():
            _refuse_hydra_settings_in(text)


def _refuse_hydra_settings_in(text: str) -> None:
    for name in re.findall(r"[^\s,\[\]]+", value_of(text)):
        paths = [root / f"{name}.yaml" for root in (Path.cwd() / "experiments", shipped("experiments"))]
        file = next((path for path in paths if path.is_file()), None)
        content = read_option_file(file, EXPERIMENT_PACKAGE)[0] if file else {}
        if "hydra" in content or any("hydra/" in str(entry) for entry in content.get("defaults") or []):
            raise ConfigError(
                f"{text}: {name} has hydra.* settings, which are ignored in a sweep over experiments; combine two "
                "with +experiment=[base,sweep], or run them one after another"
            )


def expand_grid(overrides: list[Override], swept_keys: set[str], params: Any) -> list[list[str]]:
    """Return the overrides of each job of a sweep.

    Args:
        overrides: the command line's overrides, which beat those of a sweep file.
        swept_keys: keys with several values on the command line.
        params: ``hydra.sweeper.params``.

    Raises:
        ConfigError: for an invalid axis, or if there are no jobs or too many.
    """
    keys = {key_of(text) for text in texts_of(overrides)}
    from_file = [f"{key}={value}" for key, value in params.items() if key_of(str(key)) not in keys]
    axes = [*parse(from_file), *(axis for axis in overrides if key_of(str(axis.input_line)) in swept_keys)]
    if not axes:
        return [[]]

    text = " ".join(texts_of(axes))
    if _count_jobs(axes) > MAX_JOBS:
        raise ConfigError(
            f"{text}: the sweep has more than {MAX_JOBS:,} jobs; give fewer values, or run several sweeps"
        )
    jobs = [list(job) for job in itertools.product(*map(_values_of, axes))]
    if not jobs:
        raise ConfigError(f"{text}: has no values, so there are no jobs; list the values as a,b or choice(a,b)")
    return jobs


def _values_of(axis: Override) -> list[str]:
    """Return an override for each value of an axis, in Hydra's spelling."""
    key = axis.get_key_element()
    if not axis.is_sweep_override():
        return [f"{key}={axis.get_value_element_as_str()}"]
    if not axis.is_discrete_sweep():
        raise ConfigError(
            f"{axis.input_line}: is not a list of values; list them as a,b or choice(a,b), or let "
            f"`sft-lab search --over '{axis.input_line}'` choose them"
        )
    return [f"{key}={value}" for value in _exact(axis.sweep_string_iterator(), axis.value())]


def _exact(values: Iterable[str], axis: Any) -> list[str]:
    """Return the values of a range without the error of summed steps.

    Hydra has 0.7999999999999999 in ``range(0.7,0.9,0.1)``, and the excluded end where the error keeps it in.
    """
    numbers = (axis.start, axis.step) if isinstance(axis, RangeSweep) else ()
    if not any(isinstance(number, float) for number in numbers):
        return list(values)
    digits = max(-int(Decimal(str(number)).as_tuple().exponent) for number in numbers)
    error = abs(axis.step) * 1e-6
    inside = [value for value in map(float, values) if not math.isclose(value, axis.stop, rel_tol=0, abs_tol=error)]
    return [str(round(value, digits)) for value in inside]


def _count_jobs(axes: list[Override]) -> int:
    """Return the number of jobs, counted only up to the limit: a range may have more values than fit into memory."""
    count = 1
    for axis in axes:
        if axis.is_choice_sweep() or axis.is_range_sweep():
            count *= sum(1 for _ in itertools.islice(axis.sweep_iterator(), MAX_JOBS + 1))
    return count
