"""Base classes of stages: those that read files, and those that keep or drop rows."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.core.bounds import Bounded
from sft_lab.core.context import StageContext
from sft_lab.core.params import result_params
from sft_lab.core.plugins import version_of

if TYPE_CHECKING:
    from pathlib import Path

    import datasets

    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection


class UsesContext:
    """A stage that may be called without a context and then uses its run's."""

    def attach(self, make_context: Callable[[], StageContext]) -> None:
        """Set the context for calls without one."""
        self._make_context = make_context

    def context_for(self, context: StageContext | None) -> StageContext:
        """Return the context of a call; outside a run it has no tokenizer."""
        make_context: Callable[[], StageContext] = getattr(self, "_make_context", StageContext)
        return context or make_context()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the run: worker processes get the stage alone."""
        return {name: value for name, value in vars(self).items() if name != "_make_context"}


class ReadsFiles:
    """A stage that needs files, or something else that a machine may lack."""

    def check(self) -> list[str]:
        """Return what this machine lacks for it, one message each, naming key or file."""
        return []

    def files(self) -> list[Path]:
        """Return the files it reads, whose content is part of the run's data."""
        return []

    def contents(self) -> dict[Path, bytes]:
        """Return the content of files that it reads only once, so that later changes do not matter."""
        return {}


@dataclass
class Selector(Bounded, UsesContext, abc.ABC):
    """A stage that keeps or drops rows: a filter or a dedup. Its dataclass fields are its options."""

    group: ClassVar[str]  # the prefix of the stage's name, as in filter.answered
    version: ClassVar[int] = 1  # raised when the same options give another result

    @abc.abstractmethod
    def select(self, rows: Rows, context: StageContext) -> Selection:
        """Return the decision on each row, in their order."""

    def depends_on(self, context: StageContext) -> dict[str, Any]:  # noqa: ARG002 - most depend on their options alone
        """Return keys of whatever else changes the result, such as the tokenizer."""
        return {}

    def __call__(self, rows: Rows | datasets.Dataset, context: StageContext | None = None) -> Selection:
        """Return the selection of these rows, stored or computed."""
        from sft_lab.core.rows import Rows
        from sft_lab.core.selection import Selection

        context = self.context_for(context)
        view = Rows.of(rows)
        recipe = {
            "version": version_of(self),
            "params": result_params(self),
            **self.depends_on(context),
            "input": view.key,
        }
        entry = context.stage(
            f"{self.group}.{type(self).__name__.lower()}",
            recipe,
            lambda folder: self.select(view, context).save(folder),
        )
        return replace(Selection.load(entry.path, view.ids), source=rows)
