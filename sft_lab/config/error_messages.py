"""Error messages for configs: one line with file or key, value, limits, and the nearest name or the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import BooleanNode, DictConfig, EnumNode, FloatNode, IntegerNode, ListConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException, ValidationError

from sft_lab.config.other_names import SUBMITIT, our_name, submitit_in_file
from sft_lab.core import plugins
from sft_lab.core.characters import character_hint
from sft_lab.core.errors import ConfigError
from sft_lab.run.schemas import SCHEMAS

GROUPS = (*SCHEMAS, "experiment")

NO_SUCH_KEY = "has no such key"
LOGGING = "-v shows the libraries' output"
UNQUOTED_WORD = "YAML reads an unquoted on, off, yes or no as true or false; quote it, as in 'on'"

# A value elsewhere in the config, or the time in a folder's name: the interpolations that are plain data.
_REFERENCE = re.compile(r"\$\{\.*[\w@/-]+(\.[\w@/-]+|\[\d+\])*\}|\$\{now:[^${}]*\}")
# How the parser of OmegaConf's interpolations begins its errors.
_PARSER_ERROR = re.compile(
    r"^(LexerNoViable|no viable alternative|missing \w+ at|mismatched input|token recognition).*$"
)


# --- keys and options --------------------------------------------------------------------------------------------


def unknown_key(path: str, known: list[str], config: Any = None, choices: dict[str, Any] | None = None) -> str:
    """Return the message for an unknown key, with its new name, the option that has it, the nearest key, or all keys.

    Args:
        path: the key.
        known: the names allowed there.
        config: the config, which may have a key of that name elsewhere.
        choices: the chosen options.
    """
    if (other := our_name(path, _value_at(path, plain_data(config)))) and not re.match(rf"{re.escape(path)}\b", other):
        return f"{path}: unknown key; use {other}"
    parent, _, leaf = path.rpartition(".")
    if leaf in ("True", "False"):
        return f"{path}: {UNQUOTED_WORD}"

    kinds = SCHEMAS.get(parent, {}).items() if parent != "filter" else ()
    if owners := [kind for kind, schema in kinds if leaf in field_names(schema)]:
        option = f"{parent}={choices[parent]}" if choices and parent in choices else f"this {parent}"
        return f"{path}: {option} {NO_SUCH_KEY}; kinds of {parent} with this key: {', '.join(owners)}"
    if namesakes := [key for key, name in all_keys(plain_data(config)) if name == leaf and not key.startswith(path)]:
        return f"{path}: unknown key; did you mean {' or '.join(namesakes)}?"

    if nearest := difflib.get_close_matches(leaf, known if parent else [*known, *GROUPS], n=1, cutoff=0.65):
        return f"{path}: unknown key; did you mean {f'{parent}.' if parent else ''}{nearest[0]}?"
    available = f"known keys: {', '.join(known)}" if known else "no keys are allowed here"
    passed_on = {"trainer": f"; set other fields of TRL's SFTConfig with +trainer.sft_config.{leaf}=..."}.get(
        parent, ""
    )
    if "additional_parameters" in known:
        passed_on = f"; set other sbatch options with launch.additional_parameters={{{leaf}: ...}}"
    return f"{path}: unknown key; {available}{passed_on}"


def field_names(schema: Any) -> list[str]:
    """Return the names of a dataclass's fields; empty for anything else."""
    return [field.name for field in fields(schema)] if is_dataclass(schema) else []


def _value_at(path: str, content: Any) -> Any:
    """Return the value of a key in plain data; empty if there is none."""
    for name in path.split("."):
        content = content.get(name, "") if isinstance(content, dict) else ""
    return content


def all_keys(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path of every key in plain data."""
    for key, value in content.items() if isinstance(content, dict) else ():
        yield f"{path}{key}", key
        yield from all_keys(value, f"{path}{key}.")


def plain_data(config: Any) -> Any:
    """Return a config as dicts and lists, with interpolations unresolved; an empty dict for anything else."""
    return OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else {}


def refused_interpolations(node: Any, path: str = "") -> Iterator[str]:
    """Yield a message for each interpolation that reads the environment or computes rather than refer to a value."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from refused_interpolations(key, path)
            yield from refused_interpolations(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, str) and "${" in _REFERENCE.sub("", node):
        yield (
            f"{path}={node}: reads the environment or computes; a config is data and can refer only to its own values, "
            "as in ${trainer.max_length}; write the value, or let the shell expand it: key=$NAME"
        )


def refuse_none_with_filters(choice: Any, subject: str) -> None:
    """Refuse the empty option ``none`` in a list of filters.

    Raises:
        ConfigError: if the choice is such a list; the message begins with ``subject``.
    """
    if isinstance(choice, list) and "none" in choice and len(choice) > 1:
        raise ConfigError(f"{subject}: none cannot be combined with filters; leave it out, or choose filter=none")


# --- errors of Hydra, OmegaConf and PyYAML -----------------------------------------------------------------------


def explain(error: BaseException, override: str = "") -> str:
    """Return an error of Hydra, OmegaConf or PyYAML in one line: file or key, value, and what is allowed.

    Args:
        error: the error.
        override: the override that was being applied, if known.
    """
    if isinstance(error, ConfigLoadError):  # raised by our own sources
        return str(error)
    problem = _explained(error, override)
    hint = character_hint(problem)
    return f"{problem.partition(';')[0]}; {hint}" if hint else problem


def _explained(error: BaseException, override: str) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_option(error.missing_cfg_file)
    causes = _causes(error)
    text = "\n".join(map(str, causes))
    file = re.search(r"In '([^']+)':", text)
    prefix = f"{_option_file(file.group(1))}: " if file and file.group(1) != "config" else ""

    if problem := _hydra_problem(text):
        return prefix + problem
    cause = causes[-1]
    if isinstance(cause, OmegaConfBaseException) and (key := cause.full_key):
        if "is not a subclass of Filter" in text:
            return f"filter.{key}: this filter is not selected; add it to filter=[...]"
        if isinstance(cause, KeyError | AttributeError):
            return prefix + unknown_key(key, field_names(cause.object_type))

    if match := re.search(r"Error merging override (.+)", text):
        override = match.group(1)
    subject = override.lstrip("+") or getattr(cause, "full_key", None)
    return f"{prefix}{f'{subject}: ' if subject else ''}{first_line(cause)}"


def _option_file(path: str) -> str:
    """Return the path of an option's file, from the working folder if it is below it."""
    sources = GlobalHydra.instance().config_loader().get_sources()
    source: Any = next((source for source in sources if source.is_config(path)), None)
    file = source.file_of(path) if hasattr(source, "file_of") else Path(f"{path}.yaml")
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _hydra_problem(text: str) -> str | None:
    """Return the message for an error of Hydra that has its key only in its text; None for other errors."""
    if match := re.search(r"Could not override '([^']+)'", text):
        return _no_such_group(match.group(1))
    if match := re.search(r"An item is already at '([^']+)'", text):
        return f"{match.group(1)}: is already in the config; write it without +"
    if "hydra.searchpath" in text:
        return "hydra.searchpath: a file cannot set where options are searched for; remove it"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes; Hydra raises some of its own without chaining OmegaConf's."""
    cause = error.__cause__
    if not isinstance(error, OmegaConfBaseException) and isinstance(error.__context__, OmegaConfBaseException):
        cause = error.__context__
    return [error, *(_causes(cause) if cause else [])]


def _no_such_option(path: str) -> str:
    if match := re.fullmatch("schema/([^/]+)/(.+)", path):
        return (
            f"{match.group(1)}: an option has kind {match.group(2)}, which neither sft_lab nor any plug-in "
            f"found here defines; install the package that provides it, or set {plugins.VARIABLE} to its module"
        )
    loader = GlobalHydra.instance().config_loader()
    if "/" not in path and not loader.get_group_options(path):
        configs = ", ".join(name for name in loader.get_group_options("", ObjectType.CONFIG) if name[0] != "_")
        return f"--config-name {path}: no such config; available: {configs}"
    candidates = (path.rpartition("/")[0], path.partition("/")[0])
    group = next((group for group in candidates if loader.get_group_options(group)), path)
    names = loader.get_group_options(group)
    option = path.removeprefix(f"{group}/")
    if group == "hydra/launcher" and option in SUBMITIT:  # on the command line it is translated
        return submitit_in_file(option)
    nearest = _nearest_option(option, names)
    hint = ""
    if group in ("model", "dataset"):
        hint = f"; for one on the Hub write {group}=OWNER/NAME"
    if group in ("hydra/launcher", "hydra/sweeper"):
        kind = group.removeprefix("hydra/")
        ours = {"launcher": "launch=processes, slurm and ray need", "sweeper": "`sft-lab search` needs"}[kind]
        hint = f"; {ours} no Hydra plugin"
        hint += "" if option == "optuna" else f"; to use one anyway: pip install hydra-NAME-{kind}"
    hint += f"; did you mean {nearest}?" if nearest else ""
    return f"{group}={option}: no such option; available: {', '.join(names) or 'none'}{hint}"


def _nearest_option(option: str, names: list[str]) -> str | None:
    """Return the nearest option, by letters and digits alone; of those that begin the same, the longest.

    A model's own name has another case, other signs and a suffix: SmolLM2-135M-Instruct is smollm2_135m.
    """

    def bare(name: str) -> str:
        return re.sub(r"[\W_]", "", name.casefold())

    wanted, known = bare(option), {bare(name): name for name in names}
    beginning = [text for text in known if text and wanted.startswith(text) and len(text) >= len(wanted) / 2]
    nearest = sorted(beginning, key=len)[-1:] or difflib.get_close_matches(wanted, list(known), n=1, cutoff=0.6)
    return known[nearest[0]] if nearest else None


def _no_such_group(key: str) -> str:
    if key in ("hydra/job_logging", "hydra/hydra_logging"):
        return f"{key}: has no effect here; {LOGGING}"
    if key.startswith("hydra"):
        return f"{key}: Hydra has no such setting; sft_lab reads hydra.run.dir and hydra.sweep.dir"
    names = [*GROUPS, "dedup/embedder", "dedup/embedder@decontaminate.embedder"]
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"{key}: no such group; {f'did you mean {nearest[0]}?' if nearest else 'available: ' + ', '.join(names)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error, without OmegaConf's terms."""
    if isinstance(error, OmegaConfBaseException) and (problem := _wrong_value(error)):
        return problem
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("In '")]
    line = lines[0] if lines else type(error).__name__
    line = re.sub(r"^\w+ raised while (resolving interpolation|composing config): ", "", line)
    line = _PARSER_ERROR.sub("contains an interpolation, ${...}, that cannot be parsed; write the value itself", line)
    return re.sub(
        "^Could not delete from config. '(.+)' does not exist.$", r"~\1: is not in the config; leave it out", line
    )


def _wrong_value(error: OmegaConfBaseException) -> str | None:
    """Return the type that a field requires, if an error is about the type of a value; None otherwise."""
    node, value = error.child_node, error.value
    if isinstance(error, ConfigTypeError) and value is None and error.key is not None:
        return "cannot be removed; give it another value"
    if not isinstance(error, ValidationError) or node is None:
        return None
    if value is None:
        return "cannot be null"
    if isinstance(node, EnumNode):
        return f"must be one of {', '.join(node.enum_type.__members__)}"
    if isinstance(node, DictConfig):
        has_fields = is_dataclass(OmegaConf.get_type(node))
        return "is a group of keys; set one of them" if has_fields else "must be a mapping, {a: b}"
    nouns = {IntegerNode: "a whole number", FloatNode: "a number", BooleanNode: "true or false", ListConfig: "a list"}
    noun = next((noun for kind, noun in nouns.items() if isinstance(node, kind)), None)
    if noun is None:
        return None
    if noun == "a list":
        return "must be a list, [a,b]"
    remedy = "; for a sweep write the values without brackets: a,b" if isinstance(value, list | ListConfig) else ""
    return f"must be {noun}, not {str(value)!r}{remedy}"


def yaml_problem(error: BaseException) -> str:
    """Return where and why a text is not YAML."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    if isinstance(error, RecursionError):
        problem = "lists or mappings are nested too deeply"
    return f"not YAML ({f'line {mark.line + 1}: ' if mark else ''}{problem})"


def problems_in(error: ConfigError) -> list[str]:
    """Return the problems in an error, one per line."""
    first, *lines = str(error).splitlines()
    return [line.removeprefix("  - ") for line in lines] if lines and first.endswith("problems:") else [str(error)]
