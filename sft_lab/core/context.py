"""What a stage works with: the store, the tokenizer and the log. A stage never sees the config."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import ModelError, during
from sft_lab.core.hardware import encoding_on_every_core
from sft_lab.core.io import digest, read_json, write_json
from sft_lab.core.log import log
from sft_lab.core.store import Entry, Store, default_root

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from sft_lab.core.rows import Rows

NOTICES = "notices.json"  # in a stored result: what a reader was told when it was computed


class StageContext:
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
            raise ModelError("this stage counts tokens and needs a tokenizer: StageContext(load_tokenizer=...)")
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
