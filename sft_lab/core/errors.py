"""Every error sft_lab raises on purpose.

    SftLabError
    ├── UserError (ValueError)       the input was wrong: exit code 2, no traceback
    │   ├── ConfigError              an option, an override, a saved config
    │   ├── SourceError              a data file or hub set that cannot be read as rows
    │   ├── ModelError               a model, tokenizer or template that does not fit
    │   └── FolderError              a run folder or store that cannot be used
    ├── JobError (RuntimeError)      a job failed after its input was accepted: exit code 1
    └── Pruned                       no failure: a search ends a hopeless job

A message names file, line or key, the value, the limit and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SftLabError(Exception):
    """Root of the tree above."""

    def __str__(self) -> str:
        """Return the message with very long values shortened, but not the punctuation that follows a value."""
        long_value = re.compile(r"\S{299,}[^\s:;,.]")
        return long_value.sub(lambda value: f"{value[0][:100]}... ({len(value[0]):,} characters)", super().__str__())


class UserError(SftLabError, ValueError):
    """The user's input was wrong."""


class ConfigError(UserError):
    """A key, value or file of the configuration is wrong."""


class SourceError(UserError):
    """A source's rows cannot be read."""


class ModelError(UserError):
    """A model, tokenizer or chat template is missing or does not fit."""


class FolderError(UserError):
    """A run folder or the store cannot be used."""


class JobError(SftLabError, RuntimeError):
    """A job failed while it ran."""


class Pruned(SftLabError):
    """A search has ended a job because others were better at the same point of training."""


@contextmanager
def during(stage: str) -> Iterator[None]:
    """Set ``stage`` on an error raised inside, unless an inner stage has set it: the remedy depends on it."""
    try:
        yield
    except Exception as error:
        error.__dict__.setdefault("stage", stage)
        raise


def all_problems(problems: Iterable[str]) -> ConfigError:
    """Return an error that lists every problem once, each on its own line."""
    lines = list(dict.fromkeys(problems))
    if len(lines) == 1:
        return ConfigError(lines[0])
    return ConfigError(f"{len(lines)} problems:\n" + "\n".join(f"  - {line}" for line in lines))


def require(holds: bool, field: str, value: object, limit: str) -> None:
    """Refuse a field's value in ``__post_init__``; the config layer prefixes the name of the stage.

    Raises:
        ConfigError: if ``holds`` is false, naming field, value and limit.
    """
    if not holds:
        raise ConfigError(f"{field}={value}: must be {limit}")
