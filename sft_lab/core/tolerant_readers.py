"""Readers of the files in run folders and store entries, and the schemas of these files.

A folder may come from elsewhere, be of another version, or be damaged, so readers report problems and return the rest.
A field may be null unless its type ends in "!".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_lab.core.errors import FolderError
from sft_lab.core.io import LONG, is_number, parse_json, parse_yaml, read_json, read_text

# The name of a type, a list with the schema of its items, or schemas by field, "*" for all other fields.
Schema = str | list[Any] | Mapping[str, Any]

_CHECKS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "flag": lambda value: isinstance(value, bool),
    "number": is_number,
    "scalar": lambda value: not isinstance(value, dict | list),
    "anything": lambda _: True,
}
_STAGE = {
    "stage": "text!", "rows_in": "number!", "rows_kept": "number!", "tokens_in": "number", "tokens_kept": "number",
    "dropped": {"*": "number!"}, "sources": {"*": {"*": "number!"}}, "turns": {"*": "number!"},
}  # fmt: skip
_SHARES = {"counts": ["number!"], "*": "number"}
_TOKENS = {"edges": ["number!"], "limit": "number", "*": {"*": _SHARES}}
_STAGES = (
    "dataset",
    "split",
    "template",
    "dedup",
    "decontaminate",
    "model",
    "trainer",
    "evaluation",
    "store",
    "filter",
)
SCHEMAS: dict[str, Schema] = {
    "status.json": {"state": "text", "pid": "scalar", "format": "number", "*": "text"},
    "manifest.json": {
        "packages": {"*": "text"}, "plugins": {"*": "scalar"}, "git": {"commit": "text", "dirty": "flag"},
        "hardware": {"gpus": ["text"], "cores": "number", "*": "anything"}, "threads": "number", "seed": "number",
        "inputs": {"*": "anything"}, "job": "text", "started": "text", "finished": "text", "precision": "text",
        "command": "text", "template_date": "text", "dataset_fingerprint": "text", "train_fingerprint": "text",
        "held_out_fingerprint": "text", "training_key": "text", "same_as": "text",
        "grouped_by": "text", "groups": "number", "tracking_id": "text",
        "stages": [{"stage": "text!", "key": "text", "hit": "flag", "seconds": "number"}], "*": "anything",
    },
    "waterfall.json": {"stages": [_STAGE], "held_out": [_STAGE], "format": "number"},
    "summary.json": {
        "verdict": "text", "evidence": [{"rule": "text!", "says": "text", "value": "scalar", "limit": "scalar"}],
        "advice": {"says": "text", "override": "text"}, "sources": {"*": {"*": "number"}},
        "same_as": "text", "*": "scalar",
        **dict.fromkeys((
            "eval/loss", "base/eval_loss", "eval/bits_per_byte", "base/eval_bits_per_byte", "gap", "best_eval_loss",
            "best_step", "converged_at", "train_rows", "train_tokens", "eval_rows", "epochs", "steps", "seconds",
            "tokens_per_second", "watching_share", "prompted/eval_loss", "prompted/eval_bits_per_byte", "objective",
        ), "number"),
    },
    "data.json": {
        "notices": ["text!"], "tokens": _TOKENS,
        "conversations": {
            "tokens": "number", "trained_tokens": "number",
            "*": {"turns": {"*": "number"}, "*": "number"},
        },
        "model_rows": [{
            "choice": "text", "id": "text", "*": "number",
            "parts": [{"text": "text", "trained": "flag", "special": "flag", "omitted": "number"}],
        }],
        "*": "anything",
    },
    "recipe.json": {
        "params": {"*": "anything"}, "files": {"*": ["scalar!"]}, "stage": "text", "*": "anything",
    },
    "config.yaml": {
        "seed": "number", **{key: {"*": "anything"} for key in ("choices", *_STAGES)}, "*": "anything",
    },
    "queued.json": {
        "cluster": "text", "job_id": "text!", "work": "text", "logs": "text!", "before": {"*": "anything"},
        "*": "anything",
    },
    "sweep.json": {"*": "anything"},
    "search.json": {
        "measure": "text", "sampler": "text", "pruner": "text", "axes": {"*": "text!"}, "importance": {"*": "number!"},
        "trials": [{
            "number": "number!", "job": "text!", "outcome": "text!", "loss": "number", "values": {"*": "text!"},
            "reason": "text", "*": "anything",
        }],
        "*": "anything",
    },
    "trial.json": {"number": "number!", "measure": "text!", "pruner": "text"},
    "metrics.jsonl": {"step": "number!", "*": "number"},
    "samples.jsonl": {"prompt": "text!", "*": "text"},
}  # fmt: skip
# Prefixes of the keys of custom metrics and of benchmark tasks, on which no verdict depends.
METRICS, TASKS = "metrics.", "tasks."
_RENAMED_METRICS = {"learning_rate": "train/learning_rate", "grad_norm": "train/grad_norm"}


def read(path: Path, problems: list[str] | None = None) -> dict[str, Any]:
    """Return the fields of a JSON file that match its schema; empty if there is no file.

    Args:
        path: of the file; its name decides the schema.
        problems: collects what cannot be read, one line each.

    Raises:
        FolderError: for the first problem, if ``problems`` is None.
    """
    for content in _read(path, lambda file: [read_json(file)], problems):
        if isinstance(content, dict):
            return _fitting(path, content, problems)
        _refuse(path, f"must be an object, not a {type(content).__name__}", problems)
    return {}


def extra_keys(summary: Mapping[str, Any]) -> list[str]:
    """Return the keys of custom metrics and benchmark tasks in a summary."""
    return [key for key, value in summary.items() if key.startswith((METRICS, TASKS)) and is_number(value)]


def read_config(path: Path) -> dict[str, Any]:
    """Return a saved config as plain data; empty if there is no file.

    Raises:
        FolderError: if it is not a saved config.
    """
    try:
        content = parse_yaml(read_text(path))
    except FileNotFoundError:
        return {}
    except FolderError:
        raise
    except (OSError, ValueError) as error:
        raise FolderError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise FolderError(f"{path}: must be a mapping, not a {type(content).__name__}; restore the run's saved config")
    if text := next((text for _, text in _misfits(content, SCHEMAS[path.name], "")), ""):
        raise FolderError(f"{path}: {text}; restore the run's saved config")
    return content


def read_overrides(path: Path) -> list[str] | None:
    """Return the overrides from which a job was composed; None if there is no such file or it is malformed."""
    try:
        content = parse_yaml(read_text(path))
    except (FolderError, OSError, ValueError):
        return None
    return content if isinstance(content, list) and all(isinstance(item, str) for item in content) else None


def read_lines(path: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file, as ``read`` does, without a last line that a kill cut short.

    Raises:
        FolderError: as ``read``.
    """
    rows: list[dict[str, Any]] = []
    # Not splitlines, which also splits at U+2028; a JSON string may hold that.
    lines = _read(path, lambda file: read_text(file, LONG).split("\n"), problems)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        at = f", line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            if number < len(lines):
                _refuse(path, f"is not JSON ({error})", problems, at)
            continue
        if not isinstance(row, dict):
            _refuse(path, f"must be an object, not a {type(row).__name__}", problems, at)
        elif fields := _fitting(path, row, problems, at):
            rows.append(fields)
    return rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the events of ``metrics.jsonl`` under the current names of metrics.

    Raises:
        FolderError: as ``read``.
    """
    return [current_metrics(event) for event in read_lines(path)]


def current_metrics(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event under the current names of metrics; older runs wrote two of them without ``train/``."""
    return {_RENAMED_METRICS.get(name, name): value for name, value in event.items()}


def _fitting(path: Path, content: dict[str, Any], problems: list[str] | None, at: str = "") -> dict[str, Any]:
    schema = SCHEMAS.get(path.name, {"*": "anything"})
    wrong = dict(_misfits(content, schema, ""))
    for text in wrong.values():
        _refuse(path, text, problems, at)
    return {key: value for key, value in content.items() if key not in wrong}


def _read(path: Path, read_file: Callable[[Path], list[Any]], problems: list[str] | None) -> list[Any]:
    """Return what ``read_file`` returns; empty if there is no file or it cannot be read."""
    try:
        return read_file(path)
    except FileNotFoundError:
        return []
    except FolderError as error:
        _refuse(path, str(error).removeprefix(f"{path}: "), problems)
    except (OSError, ValueError) as error:
        _refuse(path, f"cannot be read ({error})", problems)
    return []


def _refuse(path: Path, text: str, problems: list[str] | None, at: str = "") -> None:
    if problems is None:
        raise FolderError(f"{path}{at}: {text}; restore the file, or delete it to continue without it")
    problems.append(f"{path.name}{at}: {text}")


def _misfits(content: dict[str, Any], fields: Any, inside: str) -> Iterator[tuple[str, str]]:
    """Yield each field that does not match its schema, and the problem."""
    for key in fields:
        if str(fields[key])[-1:] == "!" and key != "*" and key not in content:
            yield key, f"{inside}{key} is missing"
    for key, value in content.items():
        if text := _misfit(value, fields.get(key, fields.get("*", "anything")), f"{inside}{key}"):
            yield key, text


def _misfit(value: Any, schema: Schema, name: str) -> str:
    """Return what is wrong with a value; empty if it matches."""
    if isinstance(schema, str):
        kind = schema.removesuffix("!")
        if (value is None and kind == schema) or _CHECKS[kind](value):
            return ""
        return f"{name}={str(value)[:40]!r} is not of type {kind}"
    if value is None:
        return ""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{name}={str(value)[:40]!r} is not a list"
        return next(filter(None, (_misfit(item, schema[0], f"{name}[{at}]") for at, item in enumerate(value))), "")
    if not isinstance(value, dict):
        return f"{name}={str(value)[:40]!r} is not an object"
    return next((text for _, text in _misfits(value, schema, f"{name}.")), "")
