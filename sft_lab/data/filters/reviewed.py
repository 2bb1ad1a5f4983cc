"""The filter by a reviewer's decisions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from sft_lab.core.characters import not_json
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.log import log
from sft_lab.core.packages import package_path
from sft_lab.data.filters import Filter
from sft_lab.data.readers import csv_reader
from sft_lab.data.utf8 import not_utf8

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection

DECISIONS = ("keep", "drop", "")


@dataclass
class Reviewed(Filter):
    """Drop rows decided ``drop``; those decided ``keep`` survive dedup.

    The decisions are in a CSV or JSON Lines file with an ``id`` (sft_lab's row id) and a ``decision``: keep, drop, or
    empty for undecided. Other columns are ignored.
    """

    judges_by_id: ClassVar[bool] = True

    path: str = field(default="???", metadata={"changes_result": False})  # the bytes do: see depends_on
    only: bool = False

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = str(package_path(self.path))

    def check(self) -> list[str]:
        """Return an error if the file is missing or has a malformed line."""
        try:
            self._decisions()
        except ConfigError as error:
            return [str(error)]
        return []

    def depends_on(self, context: StageContext) -> dict[str, Any]:  # noqa: ARG002
        """Return a hash of the decisions."""
        return {"decisions": hashlib.sha256(self._content).hexdigest()}

    def files(self) -> list[Path]:
        """Return the file of decisions."""
        return [Path(self.path)]

    def contents(self) -> dict[Path, bytes]:
        """Return the bytes of that file."""
        return {Path(self.path): self._content}

    def insists_on(self) -> set[str]:
        """Return the ids of rows decided ``keep``."""
        return {row_id for row_id, decision in self._decisions().items() if decision == "keep"}

    def select(self, rows: Rows, context: StageContext) -> Selection:  # noqa: ARG002
        """Reasons: ``reviewed_drop``, ``not_reviewed``; no score."""
        from sft_lab.core.selection import Selection

        decisions = self._decisions()
        ids = rows.column("id")
        if absent := len(decisions.keys() - set(ids)):
            log.warning(
                "reviewed: %d of %d decided ids are not among these %d rows; they were held out or dropped earlier, or "
                "the source has changed",
                absent,
                len(decisions),
                len(ids),
            )
        reason_of = {"drop": "reviewed_drop", "keep": "", None: "not_reviewed" if self.only else ""}
        return Selection.of(rows, [reason_of[decisions.get(row_id)] for row_id in ids])

    @cached_property
    def _content(self) -> bytes:
        path = Path(self.path)
        if not path.is_file():
            raise ConfigError(f"filter.reviewed.path={path}: no such file; give a .csv or .jsonl file of decisions")
        return path.read_bytes()

    def _decisions(self) -> dict[str, str]:
        """Return the decision of each decided id.

        Raises:
            ConfigError: for a malformed line, naming file and line.
        """
        path, content = Path(self.path), self._content
        if path.suffix.lower() not in _READERS:
            raise ConfigError(f"filter.reviewed.path={path}: must end in .csv or .jsonl")
        decided: dict[str, tuple[str, int]] = {}
        try:
            with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="") as file:
                for line, record in _READERS[path.suffix.lower()](file, path):
                    row_id, decision = _decision(record, f"{path}, line {line}")
                    previous, previous_line = decided.get(row_id, (decision, line))
                    if decision and previous != decision:
                        raise ConfigError(
                            f"{path}, line {line}: {row_id} is marked {decision}, but "
                            f"{previous} in line {previous_line}; remove one of the two"
                        )
                    if decision:
                        decided[row_id] = previous, previous_line
        except UnicodeDecodeError as error:
            raise ConfigError(str(not_utf8(str(path), error, is_file=True))) from error
        return {row_id: decision for row_id, (decision, _) in decided.items()}


def _decision(record: dict[str, Any], location: str) -> tuple[str, str]:
    if missing := [name for name in ("id", "decision") if name not in record]:
        raise ConfigError(f"{location}: no {' and no '.join(missing)}; the columns are {', '.join(map(str, record))}")
    row_id = str(record["id"] or "").strip()
    decision = str(record["decision"] or "").strip().lower()
    if not row_id:
        raise ConfigError(f"{location}: id is empty; give the row's id or remove the line")
    if decision not in DECISIONS:
        raise ConfigError(f"{location}: decision={record['decision']}: must be keep, drop or empty")
    return row_id, decision


def _csv_lines(file: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv_reader(file)
    try:
        for record in reader:
            if None in record:
                raise ConfigError(f"{path}, line {reader.line_num}: more fields than columns; quote fields with commas")
            yield reader.line_num, record
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: not CSV ({error}); fix the line") from error


def _json_lines(file: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {line}: {not_json(error)}; fix or remove the line") from error
        if not isinstance(record, dict):
            raise ConfigError(
                f"{path}, line {line}: must be an object with id and decision, not a {type(record).__name__}"
            )
        yield line, record


_READERS = {".csv": _csv_lines, ".jsonl": _json_lines}
