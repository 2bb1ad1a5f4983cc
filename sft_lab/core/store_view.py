"""A read-only view of the stage store, for ``sft-lab plan``."""

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
        stage, key: of the entry; for ``entry_once_read``, the input's name instead of the key.
    """

    def __init__(self, stage: str, key: str) -> None:
        super().__init__(f"{stage} {key}")
        self.stage, self.key = stage, key


class StoreView(Store):
    """A store in which nothing is computed, written or marked as used."""

    def entry(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:  # noqa: ARG002
        """Return the entry of ``recipe``.

        Raises:
            NotStored: if it is missing.
        """
        if entry := self._lookup(stage, recipe):
            return entry
        raise NotStored(stage, digest({"stage": stage, **recipe})[:32])

    def entry_once_read(
        self, stage: str, name: str, recipe: Callable[[], dict[str, Any] | None], compute: Callable[[Path], None]
    ) -> Entry:
        """Return the entry.

        Raises:
            NotStored: if it is missing, or its recipe is unknown because the input has not been read yet.
        """
        known = recipe()
        if known is None:
            raise NotStored(stage, name)
        return self.entry(stage, known, compute)

    def store_sha256(self, files: Sequence[Path]) -> None:
        """Do nothing: a view writes nothing."""

    def _is_present(self, path: Path) -> bool:
        return (path / RECIPE).exists()
