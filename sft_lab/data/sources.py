"""Sources of raw records. Each of these classes is a dataset option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core.bounds import bounded
from sft_lab.core.errors import SourceError
from sft_lab.core.hub import fall_back_on_cache
from sft_lab.core.io import digest
from sft_lab.core.log import log
from sft_lab.core.packages import saved_path
from sft_lab.core.remote import file_name, local_path
from sft_lab.core.store_view import NotStored, StoreView
from sft_lab.data.load import Dataset, OnError, Record
from sft_lab.data.paths import files_of
from sft_lab.data.readers import KINDS, name_problem, problem_with, read
from sft_lab.data.utf8 import OtherEncoding

if TYPE_CHECKING:
    from sft_lab.core.store import Store

BATCH = 512  # records of a hub set
LOGGED = 3  # broken parts of a file that are named in the log; the others are only counted


@dataclass
class File(Dataset):
    """Files: a path, a URL that fsspec reads, or a glob of either.

    They may be .jsonl, .json, .csv or .arrow, plain or as .gz, .bz2, .xz or .zst, .parquet, or a folder written by
    ``datasets.save_to_disk``.
    """

    path: str = field(default="???", metadata={"changes_result": False})  # the bytes do: see fingerprint

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = saved_path(self.path)

    def named(self) -> str:
        """Return the path."""
        return f"dataset.path={self.path}"

    def check(self) -> list[str]:
        """Return an error for each file that is missing or of a kind that cannot be read."""
        return file_problems(self.named(), self.path)

    def is_known(self, store: Store) -> bool:
        """Return whether every file was read before and has not been touched since; nothing is downloaded."""
        try:
            return store.knows_sha256(self.local_files(store, StoreView(store.root)))
        except NotStored:
            return False

    def fingerprint(self, store: Store) -> str:
        """Return a hash of the files' bytes, in the order in which they are read."""
        return digest(store.sha256_of(self.local_files(store)))

    def local_files(self, store: Store, view: Store | None = None) -> list[Path]:
        """Return the files in order; for remote ones, their copies in the store.

        Args:
            store: where copies are made.
            view: of the store, to look for copies without making any.

        Raises:
            SourceError: if there are no files, or they cannot be copied.
            NotStored: if ``view`` has no copy.
        """
        return [local_path(str(file), store, view) for file in self._listed(store)]

    def _listed(self, store: Store) -> list[Path] | list[str]:
        """Return the files, listed once per run so that records and fingerprint are of the same ones."""
        files: list[Path] | list[str] = store.once(f"files of {self.path}", lambda: files_of(self.path))
        if not files:
            raise SourceError(self.check()[0])
        return files

    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:
        """Yield every record of every file, in order; None for one that cannot be read.

        Raises:
            SourceError: if a file is broken, naming file and line, unless ``on_error=skip``.
        """
        files = self.local_files(store)
        for record in self._records(files, self._listed(store), store):
            yield "", record
        store.store_sha256(files)

    def beginning(self, view: Store, count: int) -> tuple[list[Record | None], bool]:
        """Return the first records, at most ``count``, and whether there are no others; nothing is copied or hashed.

        Raises:
            SourceError: as ``records`` does.
            NotStored: if a remote file is not in the store.
        """
        records = self._records(self.local_files(view, view), self._listed(view), None)
        first = list(islice(records, count))
        return first, next(records, ...) is ...

    def _records(
        self, files: list[Path], names: list[Path] | list[str], store: Store | None
    ) -> Iterator[Record | None]:
        for file, name in zip(files, map(str, names), strict=True):
            broken = 0
            for outcome in read(file, name, store, self.max_record_mb):
                if not isinstance(outcome, SourceError):
                    yield outcome
                    continue
                if self.on_error is OnError.fail:
                    if isinstance(outcome, OtherEncoding):
                        raise outcome
                    raise SourceError(f"{outcome}, or skip broken parts with dataset.on_error=skip") from outcome
                broken += 1
                if broken <= LOGGED:
                    log.warning("load: left out: %s", outcome)
                yield None
            if broken > LOGGED:
                log.warning("load: left out: %d more parts of %s", broken - LOGGED, name)


def file_problems(key: str, path: str) -> list[str]:
    """Return an error for each file named by a path, a URL or a glob that cannot be read.

    Args:
        key: the config key of the path, with its value, for the messages.
        path: the value.
    """
    remedy = f"give the path, URL or glob of {KINDS} files, or a folder of datasets.save_to_disk"
    try:
        files = files_of(path)
    except SourceError as error:
        return [f"{key}: {str(error).removeprefix(f'{path}: ')}"]
    if not files:
        return [f"{key}: no such file; {remedy}"]
    problems = [
        (file, problem_with(file) if isinstance(file, Path) else name_problem(file_name(file))) for file in files
    ]
    return [f"{key}: {file} is {problem}; {remedy}" for file, problem in problems if problem]


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None


@dataclass
class Hub(Dataset):
    """A data set of the Hugging Face Hub; it is downloaded once, and a gated one needs HF_TOKEN or a login."""

    name: str = bounded("???", holds=_is_hub_name, limit="a Hub name, owner/name")
    config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    revision: str = "main"

    def named(self) -> str:
        """Return the name on the Hub."""
        return f"dataset.name={self.name}"

    def fingerprint(self, store: Store) -> str:
        """Return a key of repository, commit and split; a branch name would not identify the content."""
        return digest(["hub", self.name, self._commit_once(store), self.config, self.split, self.eval_split])

    def _commit_once(self, store: Store) -> str:
        """Return the revision's commit, resolved once per run so that records and fingerprint are of the same one."""
        commit: str = store.once(f"commit of {self.name}@{self.revision}", self._commit)
        return commit

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        fall_back_on_cache()
        try:
            return str(HfApi().dataset_info(self.name, revision=self.revision, timeout=20).sha)
        except Exception as error:  # of the client or the libraries below it; all mean that there are no rows
            raise SourceError(f"{self.named()}: {_hub_remedy(error)}") from error

    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:
        """Yield every record of the split, then of ``eval_split`` if it is set; both of the same commit."""
        import datasets
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        if self.name in _PACKAGED_DATASETS_MODULES:
            raise SourceError(f"{self.named()}: is a file format, not a dataset on the Hub; write owner/name")
        commit = self._commit_once(store)
        fall_back_on_cache()
        for split in filter(None, (self.split, self.eval_split)):
            try:
                # With a scheme, since a bare name would mean a local folder of that name, if there is one.
                rows = datasets.load_dataset(f"hf://datasets/{self.name}", self.config, split=split, revision=commit)
            except Exception as error:  # as above
                raise SourceError(f"{self.named()}, split {split}: {_hub_remedy(error)}") from error
            for batch in rows.iter(BATCH):  # memory-mapped; only a batch becomes Python objects
                for values in zip(*batch.values(), strict=True):
                    yield split, dict(zip(batch, values, strict=True))


def _hub_remedy(error: Exception) -> str:
    return (
        f"cannot be loaded from the Hub ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
        "check the network and the name, and for a gated dataset run `hf auth login` or set HF_TOKEN; "
        "for a local copy set dataset=file dataset.path=...; offline, rows loaded before are found if "
        "dataset.revision is their commit"
    )
