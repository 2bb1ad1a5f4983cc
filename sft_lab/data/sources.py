"""Sources: where raw records come from. A dataset option is one of these classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core.bounds import bounded
from sft_lab.core.errors import SourceError
from sft_lab.core.hub import fall_back_on_cache
from sft_lab.core.io import digest
from sft_lab.core.log import log
from sft_lab.core.packages import package_path, saved_path
from sft_lab.data.load import Dataset, OnError, Record
from sft_lab.data.paths import expand
from sft_lab.data.readers import KINDS, problem_with, read

if TYPE_CHECKING:
    from sft_lab.core.store import Store

TOLD = 3  # broken places of a source that are named in the log; all are counted


@dataclass
class File(Dataset):
    """Local files: .jsonl, .json and .csv, plain or as .gz, .bz2 or .xz, and .parquet; a path or a glob."""

    path: str = field(default="???", metadata={"changes_result": False})  # the bytes do: see fingerprint

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = saved_path(self.path)

    def named(self) -> str:
        """The path as given."""
        return f"dataset.path={self.path}"

    def files(self) -> list[Path]:
        """Every file that is read, in order."""
        return expand(str(package_path(self.path)))

    def check(self) -> list[str]:
        """Every file is there and of a kind that can be read."""
        return file_problems(self.named(), self.files())

    def is_known(self, store: Store) -> bool:
        """Whether every file was read before and not touched since."""
        return store.know_sha256(self._listed(store))

    def fingerprint(self, store: Store) -> str:
        """SHA-256 over the files' bytes, in the order they are read."""
        return digest(store.sha256_of(self._listed(store)))

    def _listed(self, store: Store) -> list[Path]:
        """List the files once in a run, so that rows and fingerprint are of the same ones."""
        files: list[Path] = store.once(f"files of {self.path}", self.files)
        if not files:
            raise SourceError(self.check()[0])
        return files

    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:
        """Every record of every file, in order; None for one that cannot be read.

        Raises:
            SourceError: naming file and line where a file is broken, unless ``on_error=skip``.
        """
        files = self._listed(store)
        for file in files:
            broken = 0
            for found in read(file, store, self.max_record_mb):
                if not isinstance(found, SourceError):
                    yield "", found
                    continue
                if self.on_error is OnError.fail:
                    raise SourceError(f"{found}, or leave out what is broken with dataset.on_error=skip") from found
                broken += 1
                if broken <= TOLD:
                    log.warning("load: left out: %s", found)
                yield "", None
            if broken > TOLD:
                log.warning("load: left out: %d more places of %s", broken - TOLD, file)
        store.keep_sha256(files)


def file_problems(where: str, files: list[Path]) -> list[str]:
    """Say what is wrong with the files that a key names; empty when all can be read."""
    if not files:
        return [f"{where}: no such file; give the path of a {KINDS} file, or a glob of them"]
    return [
        f"{where}: {file} is {problem}; give the path of a {KINDS} file, or a glob of them"
        for file in files
        if (problem := problem_with(file))
    ]


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None


@dataclass
class Hub(Dataset):
    """A data set of the Hugging Face Hub. Needs a network the first time; a gated one needs HF_TOKEN or a login."""

    name: str = bounded("???", holds=_is_hub_name, limit="a hub name, owner/name")
    config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    revision: str = "main"

    def named(self) -> str:
        """The hub's name."""
        return f"dataset.name={self.name}"

    def fingerprint(self, store: Store) -> str:
        """Repository, resolved commit and split: what the hub holds under a branch name is not content."""
        return digest(["hub", self.name, self._commit_once(store), self.config, self.split, self.eval_split])

    def _commit_once(self, store: Store) -> str:
        """Resolve the revision once in a run: a branch that moves meanwhile must not part rows from fingerprint."""
        commit: str = store.once(f"commit of {self.name}@{self.revision}", self._commit)
        return commit

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        fall_back_on_cache()
        try:
            return str(HfApi().dataset_info(self.name, revision=self.revision, timeout=20).sha)
        except Exception as error:  # of the client or of what it talks through; all mean: no rows
            raise SourceError(f"{self.named()}: {_hub_remedy(error)}") from error

    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:
        """Every record of the split, then of the source's own test split where one is named; of the very commit."""
        import datasets
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        if self.name in _PACKAGED_DATASETS_MODULES:
            raise SourceError(f"{self.named()}: names a kind of file and no repository of the Hub; write owner/name")
        commit = self._commit_once(store)
        fall_back_on_cache()
        for split in filter(None, (self.split, self.eval_split)):
            try:
                # With its scheme, since a bare name would be a local folder of that name before it is a repository.
                rows = datasets.load_dataset(f"hf://datasets/{self.name}", self.config, split=split, revision=commit)
            except Exception as error:  # the hub's client raises dozens of types, all mean: no rows
                raise SourceError(f"{self.named()}, split {split}: {_hub_remedy(error)}") from error
            yield from ((split, dict(record)) for record in rows)


def _hub_remedy(error: Exception) -> str:
    return (
        f"cannot be loaded from the hub ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
        "check the network and the name, and for a gated set run `hf auth login` or set HF_TOKEN; "
        "a local copy works with dataset=file dataset.path=..., and rows that were loaded before are found without a "
        "network when dataset.revision is their commit"
    )
