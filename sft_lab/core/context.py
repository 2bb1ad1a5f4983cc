"""The context of a stage: the store, the tokenizer and the log. A stage never sees the config."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.engine import Engine, LocalEngine
from sft_lab.core.errors import ModelError, during
from sft_lab.core.hardware import encoding_on_every_core
from sft_lab.core.io import digest, read_json, write_array, write_json
from sft_lab.core.log import log
from sft_lab.core.store import Entry, Store, default_root

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from sft_lab.core.rows import Rows

NOTICES = "notices.json"  # in a stored result: the notices given while it was computed


class StageContext:
    """What the stages of a run share.

    Args:
        store: of results; None: the user's default store.
        load_tokenizer: returns the tokenizer of the model to be tuned; called when it is first needed.
        template_date: the date for chat templates that use one; None: today, as of the process's first use.
        engine: where blocks of rows are computed; None: in this process.

    Attributes:
        encode: returns the texts and tokens of rows, by the run's template or another one that is passed; None: tokens
            are counted without a template.
    """

    def __init__(
        self,
        store: Store | None = None,
        load_tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None,
        template_date: datetime.date | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.store = store or Store(default_root())
        self.template_date = template_date or today()
        self.entries: list[Entry] = []
        self.notices: list[str] = []
        self.engine = engine or LocalEngine(workers=1)
        self.encode: Callable[..., Any] | None = None
        self._encoded: dict[str, Any] = {}  # by the key of the table
        self._logged = 0  # entries that ``take_new_entries`` has returned
        self._load_tokenizer = load_tokenizer

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model to be tuned."""
        if self._load_tokenizer is None:
            raise ModelError("this stage needs a run's tokenizer; call it as stage(dataset, run.context())")
        return self._load_tokenizer()

    @property
    def new_tokens(self) -> list[int]:
        """The ids that ``Model.tokenizer`` added for the template; the weights have no trained embedding for them."""
        ids: list[int] = getattr(self.tokenizer, "new_tokens", [])
        return ids

    @cached_property
    def tokenizer_key(self) -> str:
        """A hash of the tokenizer's behavior (vocabulary, merges, normalizer, special tokens), not of its name."""
        tokenizer = self.tokenizer
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        return digest({"backend": tokenizer.backend_tokenizer.to_str(), "special": special})

    def stage(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:
        """Return the stored result of a recipe, computed if missing; its notices are logged in both cases."""

        def compute_with_notices(folder: Path) -> None:
            count_before = len(self.notices)
            with during(stage):
                compute(folder)

            if new_notices := self.notices[count_before:]:
                write_json(folder / NOTICES, {"notices": new_notices})

        entry = self.note(self.store.entry(stage, recipe, compute_with_notices))
        if entry.hit and (entry.path / NOTICES).exists():
            for text in read_json(entry.path / NOTICES)["notices"]:
                self.notice(text)
        return entry

    def note(self, entry: Entry) -> Entry:
        """Record a stored result used by this run, for the log and the manifest, and return it."""
        self.entries.append(entry)
        return entry

    def notice(self, text: str) -> None:
        """Log a warning once, however often it comes up; the report repeats it."""
        if text not in self.notices:
            self.notices.append(text)
            log.warning("%s", text)

    def take_new_entries(self) -> list[Entry]:
        """Return the results recorded since the last call, for a stage's log line."""
        entries, self._logged = self.entries[self._logged :], len(self.entries)
        return entries

    def encoded(self, rows: Rows) -> Any:
        """Return the texts and tokens of the whole table behind ``rows``, encoded once for all stages and jobs."""
        import numpy as np

        from sft_lab.core.rows import Rows

        assert self.encode is not None
        if rows.table_key not in self._encoded:
            loaded = Rows(rows.table, np.arange(len(rows.table)), rows.table_key)
            self._encoded[rows.table_key] = self.encode(loaded)
        return self._encoded[rows.table_key]

    def token_counts(self, rows: Rows) -> np.ndarray:
        """Return the tokens of each prompt and answer, template tokens left out: int32, shape (rows, 2)."""
        import numpy as np

        if self.encode:
            encoded_counts: np.ndarray = self.encoded(rows).counts(rows)
            return encoded_counts

        def count(folder: Path) -> None:
            counts = np.zeros((len(rows.table), 2), np.int32)
            for column, name in enumerate(("prompt", "answer")):
                for start in range(0, len(rows.table), 1024):
                    texts = rows.table[start : start + 1024][name]
                    with encoding_on_every_core():
                        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
                    counts[start : start + 1024, column] = [len(ids) for ids in encoded]
            write_array(folder / "counts.npy", counts)

        entry = self.stage("tokens", {"version": 1, "tokenizer": self.tokenizer_key, "input": rows.table_key}, count)
        counts: np.ndarray = np.load(entry.path / "counts.npy")[rows.positions]
        return counts


@cache
def today() -> datetime.date:
    """Return the local date; a process that works past midnight keeps the first one for all its jobs."""
    return datetime.datetime.now().astimezone().date()
