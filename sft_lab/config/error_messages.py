"""What a wrong config is told: one line with the place, the value, what there is, and the nearest or the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import DictConfig, OmegaConf

from sft_lab.core import plugins
from sft_lab.core.errors import ConfigError
from sft_lab.dedup.embed import Embedder
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS

GROUPS = (*SCHEMAS, "experiment")


# Names that libraries dropped or other trainers use, and ours.
RENAMED = {
    "trainer.warmup_ratio": "trainer.warmup_steps (a share below 1)",
    "trainer.max_seq_length": "trainer.max_length",
    "trainer.max_seq_len": "trainer.max_length",
    "trainer.evaluation_strategy": "trainer.eval_steps",
    "trainer.eval_strategy": "trainer.eval_steps",
    "trainer.report_to": "tracking=wandb or tracking=local",
    "trainer.lr": "trainer.learning_rate",
    "trainer.epochs": "trainer.num_train_epochs",
    "trainer.batch_size": "trainer.per_device_train_batch_size",
    "trainer.gradient_checkpointing": "trainer.activation_checkpointing",
    "trainer.bf16": "trainer.precision=bf16",
    "trainer.fp16": "trainer.precision",
    "trainer.completion_only_loss": "trainer.loss_on=answer",
    "trainer.assistant_only_loss": "trainer.loss_on=answer",
    "report_to": "tracking=wandb or tracking=local",
    "logger": "tracking",
    "wandb": "tracking",
    "max_seq_length": "trainer.max_length",
    "warmup_ratio": "trainer.warmup_steps (a share below 1)",
    "evaluation_strategy": "trainer.eval_steps",
    "learning_rate": "trainer.learning_rate",
    "model.torch_dtype": "model.dtype",
    "model.trust_remote_code": "SFT_LAB_TRUST_REMOTE_CODE=<the model's name>, for that model alone",
}


NO_SUCH_KEY = "has no such key"


BARE_WORD = "YAML reads a bare on, off, yes or no as true or false; quote it, as in 'on'"


def _fields_of(schema_name: str) -> list[str]:
    """Give the fields of the schema that Hydra calls by this name; none where it is no schema."""
    known = (Run, Embedder, *(schema for kinds in SCHEMAS.values() for schema in kinds.values()))
    return next(([one.name for one in fields(schema)] for schema in known if schema.__name__ == schema_name), [])


def unknown_key(path: str, known: list[str], config: Any = None, choices: dict[str, Any] | None = None) -> str:
    """Answer an unknown key with its new name, the option it belongs to, the nearest key, or all there are.

    Args:
        path: the key.
        known: the names that may stand in its place.
        config: where a key of the same name may stand elsewhere.
        choices: the options chosen.
    """
    if path in RENAMED:
        return f"{path}: unknown key; here it is {RENAMED[path]}"
    parent, _, leaf = path.rpartition(".")
    if leaf in ("True", "False"):
        return f"{path}: {BARE_WORD}"
    kinds = SCHEMAS.get(parent, {}).items() if parent != "filter" else ()
    if owners := [kind for kind, schema in kinds if leaf in {found.name for found in fields(schema)}]:
        chosen = f"{parent}={choices[parent]}" if choices and parent in choices else f"this {parent}"
        return f"{path}: {chosen} {NO_SUCH_KEY}; {parent} of kind {' or '.join(owners)} has it"
    elsewhere = [found for found, key in all_keys(plain_data(config)) if key == leaf and not found.startswith(path)]
    if elsewhere:
        return f"{path}: unknown key; did you mean {' or '.join(elsewhere)}?"
    near = difflib.get_close_matches(leaf, known if parent else [*known, *GROUPS], n=1, cutoff=0.6)
    if near:
        return f"{path}: unknown key; did you mean {f'{parent}.' if parent else ''}{near[0]}?"
    listed = f"known here: {', '.join(known)}" if known else "there are no keys here"
    return f"{path}: unknown key; {listed}"


def all_keys(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key in plain data, with its dotted path."""
    for key, value in content.items() if isinstance(content, dict) else ():
        yield f"{path}{key}", key
        yield from all_keys(value, f"{path}{key}.")


def plain_data(config: Any) -> Any:
    """Give a config as dicts and lists, interpolations as they stand; nothing for what is no config."""
    return OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else {}


# A value elsewhere in the config, and the time in a folder's name: of what ${...} can do, this much is data.
_REFERENCE = re.compile(r"\$\{\.*[\w@/-]+(\.[\w@/-]+|\[\d+\])*\}|\$\{now:[^${}]*\}")


def resolvers(node: Any, path: str = "") -> Iterator[str]:
    """Name the interpolations that do more than refer to a value: they read the environment, or compute."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from resolvers(key, path)
            yield from resolvers(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, str) and "${" in _REFERENCE.sub("", node):
        yield (
            f"{path}={node}: reads the environment or computes; a config is data and may refer to its own values "
            "alone, ${trainer.max_length}; give the value, on the command line by the shell, key=$NAME"
        )


def explain(error: Exception) -> str:
    """Say Hydra's error in one line: where, what was found, what there is."""
    if isinstance(error, ConfigLoadError):  # our own experiment source's
        return str(error)
    if isinstance(error, UnicodeDecodeError):  # Hydra's own reader names no file
        return f"an option file is not UTF-8 ({error.reason}, byte {error.start + 1}); save it as UTF-8"
    text = "\n".join(str(found) for found in _chain(error))
    file = re.search(r"In '([^']+)':", text)
    named = file.group(1).replace("experiment/", "experiments/") if file and file.group(1) != "config" else ""
    where = f"{named}.yaml: " if named else ""
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _no_option(found.group(1))
    if found := re.search(r"Could not override '([^']+)'", text):
        return where + _no_group(found.group(1))
    full_key = re.search(r"full_key: (\S+)", text)
    if found := re.search(r"Key '([^']+)' not in '([^']+)'", text):
        path = full_key.group(1) if full_key else found.group(1)
        return where + unknown_key(path, _fields_of(found.group(2)))
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"{found.group(1)}: is in the config already; write it without +"
    if "is not a subclass of Filter" in text and full_key:
        return f"filter.{full_key.group(1)}: not among the chosen filters; choose it too, filter=[...]"
    if words := next((words for sign, words in _IN_A_FILE.items() if sign in text), None):
        return where + words
    if type(error).__module__.startswith("yaml"):
        return where + not_yaml(error)
    merging = re.search(r"Error merging override (.+)", text)
    place = merging.group(1).lstrip("+") if merging else full_key.group(1) if full_key else ""
    return f"{where}{place}{': ' if place else ''}{first_line(_chain(error)[-1])}"


# What a file says that it may not, by the words Hydra has for it.
_IN_A_FILE = {
    "hydra.searchpath": "hydra.searchpath: set in a file, which names options and not where they lie; take it out",
    "in defaults : bool": f"defaults: {BARE_WORD}",
}


def _chain(error: BaseException) -> list[BaseException]:
    return [error, *(_chain(error.__cause__) if error.__cause__ else [])]


def _no_option(path: str) -> str:
    if found := re.fullmatch("schema/([^/]+)/(.+)", path):
        return (
            f"{found.group(1)}: an option is of kind {found.group(2)}, which neither sft_lab nor a plug-in has here; "
            f"install the package that brings it, or set {plugins.VARIABLE} to its module"
        )
    loader = GlobalHydra.instance().config_loader()
    group = next((group for group in (path.rpartition("/")[0], path.partition("/")[0])
                  if loader.get_group_options(group)), path)  # fmt: skip
    names = loader.get_group_options(group)
    option = path.removeprefix(f"{group}/")
    near = difflib.get_close_matches(option, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    if group in ("hydra/launcher", "hydra/sweeper"):
        kind = group.removeprefix("hydra/")
        ours = "; launch=processes, slurm or ray start jobs without one" if kind == "launcher" else ""
        hint += f"; others are plugins of Hydra's, each a package: pip install hydra-NAME-{kind}{ours}"
    return f"{group}={option}: no such option; there are {', '.join(names) or 'none'}{hint}"


def _no_group(key: str) -> str:
    if key.startswith("hydra"):
        return f"{key}: Hydra has no such setting; hydra.run.dir and hydra.sweep.dir are the ones sft_lab reads"
    names = [*GROUPS, "dedup/embedder", "dedup/embedder@decontaminate.embedder"]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"{key}: no such group; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(names)}"


def first_line(error: BaseException) -> str:
    """Give the first line of an error, in words that do not speak of OmegaConf."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("In '")]
    said = lines[0] if lines else type(error).__name__
    said = re.sub(r"^\w+ raised while (resolving interpolation|composing config): ", "", said)
    said = re.sub(r"^LexerNoViableAltException: .*$", "it stops in the middle", said)
    for pattern, words in _PLAINER:
        said = re.sub(pattern, words, said)
    return said


# What OmegaConf and Hydra say, and what is meant.
_PLAINER = (
    ("^Could not delete from config. '(.+)' does not exist.$", r"~\1: is not in the config; leave it out"),
    ("^field '.+' is not Optional$", "cannot be null"),
    ("^.* does not support deletion$", "cannot be removed; give it another value"),
    ("^Value ('.*') of type .* could not be converted to Integer$", r"must be a whole number, not \1"),
    ("^Value ('.*') of type .* could not be converted to Float$", r"must be a number, not \1"),
    ("^Value ('.*') is not a valid bool.*$", r"must be true or false, not \1"),
    ("^Invalid value '.*', expected one of \\[(.*)\\]$", r"must be one of \1"),
    ("^Invalid value assigned: .* is not a ListConfig, list or tuple.$", "must be a list, [a,b]"),
    ("^Cannot assign .* to Dict.*$", "must be a mapping, {a: b}"),
    ("^Invalid type assigned: .* is not a subclass of .*$", "has keys of its own; set one of those"),
)


def not_yaml(error: Exception) -> str:
    """Say where a file stops being YAML."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    if isinstance(error, RecursionError):
        problem = "lists or mappings are nested too deeply"
    named = f"{mark.name}, " if mark and not mark.name.startswith("<") else ""
    return f"not YAML ({named}{f'line {mark.line + 1}: ' if mark else ''}{problem})"


def lines_of(error: ConfigError) -> list[str]:
    """Give the problems that an error names."""
    lines = str(error).splitlines()
    many = len(lines) > 1 and lines[0].endswith("problems:")
    return [line.removeprefix("  - ") for line in lines[1:]] if many else [str(error)]


def refuse_none_beside(chosen: Any, where: str) -> None:
    """Refuse the empty option ``none`` in a list of filters."""
    if isinstance(chosen, list) and "none" in chosen and len(chosen) > 1:
        raise ConfigError(f"{where}: none stands alone; leave it out, or choose filter=none")
