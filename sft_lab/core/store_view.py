"""A read-only view of the stage store, for commands that plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sft_lab.core.integrity import RECIPE
from sft_lab.core.io import digest
from sft_lab.core.store import Entry, Store


class NotStored(Exception):
    """An entry is not in the store.

    Attributes:
        stage, key: of the entry; for the input of ``entry_once_read``, its name in place of the key.
    """

    def __init__(self, stage: str, key: str) -> None:
        super().__init__(f"{stage} {key}")
        self.stage, self.key = stage, key


class StoreView(Store):
    """A store in which nothing is computed, written or marked as used."""

    def entry(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:  # noqa: ARG002
        """Return the entry of ``recipe``.

        Raises:
            NotStored: if it is not there.
        """
        if entry := self._lookup(stage, recipe):
            return entry
        raise NotStored(stage, digest({"stage": stage, **recipe})[:32])

    def entry_once_read(
        self, stage: str, name: str, recipe: Callable[[], dict[str, Any] | None], compute: Callable[[Path], None]
    ) -> Entry:
        """Return the entry, if its recipe is known.

        Raises:
            NotStored: if it is not there, or its input has not been read yet.
        """
        known = recipe()
        if known is None:
            raise NotStored(stage, name)
        return self.entry(stage, known, compute)

    def keep_sha256(self, files: Sequence[Path]) -> None:
        """Write nothing."""

    def _is_present(self, path: Path) -> bool:
        return (path / RECIPE).exists()
