"""Mixtures: several sources read as a single data set, each with its own share or limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.errors import ConfigError, require
from sft_lab.core.io import digest
from sft_lab.core.packages import saved_path
from sft_lab.data.formats import Format
from sft_lab.data.load import Dataset, OnError, Record, Turns, refuse_columns
from sft_lab.data.sources import File, Hub

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.rows import Rows
    from sft_lab.core.store import Store


@dataclass
class Ingredient(Bounded):
    """One source of a mixture: local files by ``path``, or a set of the hub by ``name``.

    Attributes:
        share: of the mixture's training rows, relative to the other shares; set for all sources or for none.
        limit: the maximum number of its training rows.
    """

    path: str | None = field(default=None, metadata={"changes_result": False})  # the bytes do: see fingerprint
    name: str | None = None
    config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    revision: str = "main"
    format: Format = Format.auto
    columns: dict[str, str] = field(default_factory=dict)
    share: float | None = bounded(None, above=0, changes_result=False)  # applied by the split
    limit: int | None = bounded(None, at_least=1, limit="at least 1, or null for all rows", changes_result=False)

    def __post_init__(self) -> None:
        """Refuse a source of two kinds; make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        if (self.path is None) == (self.name is None):
            raise ConfigError(f"path={self.path}, name={self.name}: set one of the two, not both")
        refuse_columns(self.columns)
        self.path = None if self.path is None else saved_path(self.path)

    def source(self, on_error: OnError, max_record_mb: float) -> Dataset:
        """Return it as a source of its own."""
        if self.path is not None:
            return File(self.format, self.columns, on_error=on_error, max_record_mb=max_record_mb, path=self.path)
        return Hub(
            self.format,
            self.columns,
            on_error=on_error,
            name=self.name or "",
            config=self.config,
            split=self.split,
            eval_split=self.eval_split,
            revision=self.revision,
        )


@dataclass
class Mixture(Dataset):
    """Several sources, read one after another; shares and limits apply only to the training side.

    With shares, the mixture is as large as the scarcest source allows: nothing is repeated. Each source contributes its
    first rows, so that a larger mixture contains a smaller one.
    """

    sources: dict[str, Ingredient] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        require(bool(self.sources), "sources", self.sources, "at least one source: {name: {path: ...}, other: {...}}")
        shared = [name for name, ingredient in self.sources.items() if ingredient.share is not None]
        if 0 < len(shared) < len(self.sources):
            raise ConfigError(f"sources: only {', '.join(shared)} with a share; give one to every source or to none")
        require(not self.columns, "columns", self.columns, "set for each source instead")
        require(self.format is Format.auto, "format", self.format.name, "set for each source instead")

    def named(self) -> str:
        """Return the names of the sources, hashed."""
        return f"dataset.sources={digest([part.named() for part in self.parts().values()])[:12]}"

    def parts(self) -> dict[str, Dataset]:
        """Return every source by its name."""
        return {name: ingredient.source(self.on_error, self.max_record_mb) for name, ingredient in self.sources.items()}

    def check(self) -> list[str]:
        """Return the problems of every source."""
        problems = [(name, problem) for name, part in self.parts().items() for problem in part.check()]
        return [f"dataset.sources.{name}: {problem.removeprefix('dataset.')}" for name, problem in problems]

    def is_known(self, store: Store) -> bool:
        """Return whether every source is known."""
        return all(part.is_known(store) for part in self.parts().values())

    def fingerprint(self, store: Store) -> str:
        """Return a key of every source's name and content."""
        return digest([[name, part.fingerprint(store)] for name, part in self.parts().items()])

    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:
        """Yield every record of every source."""
        for part in self.parts().values():
            yield from part.records(store)

    def surplus(self, train: Rows) -> np.ndarray:
        """Return which training-side rows exceed their source's part of the mixture: bool, shape (rows,)."""
        import numpy as np

        from sft_lab.core.selection import shared_strings

        name_of_row = np.array(shared_strings(train.arrow("source")), dtype=object)
        over = np.ones(len(train), bool)
        for name, quota in self._quotas({name: int((name_of_row == name).sum()) for name in self.sources}).items():
            over[np.flatnonzero(name_of_row == name)[:quota]] = False
        return over

    def _quotas(self, available: dict[str, int]) -> dict[str, int]:
        """Return the number of training rows of each source that shares, limits and ``limit`` allow.

        Args:
            available: the number of rows of each source.
        """
        limits = {name: min(count, self.sources[name].limit or count) for name, count in available.items()}
        weights = {name: float(self.sources[name].share or limits[name]) for name in available}
        total_weight = sum(weights.values())
        if not total_weight:
            return limits
        shares = {name: weight / total_weight for name, weight in weights.items()}
        total = int(min(limits[name] / share for name, share in shares.items() if share) + 1e-9)
        exact = {name: min(total, self.limit or total) * share for name, share in shares.items()}
        quotas = {name: int(rows + 1e-9) for name, rows in exact.items()}
        # Rows lost to rounding go to the largest remainders, so that a limit is met exactly.
        rest = round(sum(exact.values())) - sum(quotas.values())
        for name in sorted(exact, key=lambda name: quotas[name] - exact[name])[:rest]:
            quotas[name] = min(quotas[name] + 1, limits[name])
        return quotas


class Benchmarks(Mixture):
    """Files with which training rows are compared; they are not trained on, and may be prompts without answers."""

    needs_answers = False

    @classmethod
    def of(cls, paths: list[str]) -> Benchmarks:
        """Return the files as a single source, with all turns of their conversations."""
        return cls(turns=Turns.all, sources={str(number): Ingredient(path=path) for number, path in enumerate(paths)})
