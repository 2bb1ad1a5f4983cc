"""A view of the stage store for commands that look ahead: nothing is computed, written or marked as used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sft_lab.core.io import digest
from sft_lab.core.store import RECIPE, Entry, Store


class NotStored(Exception):
    """What was looked for is not in the store.

    Attributes:
        stage, key: of the entry; ``""`` where the key depends on a file that nobody has read yet.
    """

    def __init__(self, stage: str, key: str) -> None:
        super().__init__(f"{stage} {key}")
        self.stage, self.key = stage, key


class StoreView(Store):
    """A store that is only looked into: nothing is computed, written or marked as used."""

    def entry(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:  # noqa: ARG002
        """Find the entry of ``recipe``.

        Raises:
            NotStored: if it is not there.
        """
        if found := self._found(stage, recipe):
            return found
        raise NotStored(stage, digest({"stage": stage, **recipe})[:32])

    def entry_once_read(
        self, stage: str, name: str, recipe: Callable[[], dict[str, Any] | None], compute: Callable[[Path], None]
    ) -> Entry:
        """Find the entry, if its recipe is known.

        Raises:
            NotStored: if it is not there, or nobody has read its input yet.
        """
        known = recipe()
        if known is None:
            raise NotStored(stage, name)
        return self.entry(stage, known, compute)

    def keep_sha256(self, files: Sequence[Path]) -> None:
        """Write nothing."""

    def _present(self, place: Path) -> bool:
        return (place / RECIPE).exists()
