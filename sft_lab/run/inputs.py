"""Inputs: every file that a config names, by its key, with the hash of what the run read of it."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import ConfigError, SftLabError, SourceError
from sft_lab.core.io import digest, write_bytes
from sft_lab.core.model_files import loaded_files
from sft_lab.core.packages import package_path
from sft_lab.core.remote import local_path
from sft_lab.data.sources import File
from sft_lab.run.launch_config import ACCELERATE_CONFIGS

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir
    from sft_lab.core.store import Store
    from sft_lab.data.chat_template import Template
    from sft_lab.data.filters import Filter
    from sft_lab.run.config import Run

MAX_COPIED = 2**20  # bytes of all files of one key; as much is copied into the run folder


def named_files(run: Run, store: Store) -> dict[str, tuple[str, list[Path]]]:
    """Return the value of each key that names files, and those files; what installed packages bring is left out."""
    named: dict[str, tuple[str, list[Path]]] = {}
    for name, part in run.dataset.parts().items():
        if isinstance(part, File):
            named[f"dataset.sources.{name}.path" if name else "dataset.path"] = (part.path, _available(part, store))
    if isinstance(held_out := run.split.source(), File):
        named["split.path"] = (held_out.path, _available(held_out, store))
    for key, stage in _stages(run).items():
        if files := stage.files():
            named[f"{key}.path"] = (", ".join(map(str, files)), files)
    for number, path in enumerate(run.decontaminate.against):
        named[f"decontaminate.against.{number}"] = (path, _available(path, store))
    for name, path in run.evaluation.files().items():
        named[f"evaluation.{name}"] = (path, _available(path, store))
    named |= _models(run)
    if run.launch.config_file and (config_file := run.launch.accelerate_config()).parent != ACCELERATE_CONFIGS:
        named["launch.config_file"] = (str(config_file), [config_file])
    return {key: named[key] for key in named if not named[key][0].startswith("package:")}


def _available(source: File | str, store: Store) -> list[Path]:
    """Return the files of a source or a path, remote ones as copied; none where that is impossible."""
    try:
        return source.local_files(store) if isinstance(source, File) else [local_path(source, store)]
    except SourceError:
        return []


def _models(run: Run) -> dict[str, tuple[str, list[Path]]]:
    """Return the folders of the model and of the embedders, with all files that loading them may read."""
    named: dict[str, tuple[str, list[Path]]] = {}
    if files := run.model.files():
        named["model.name_or_path"] = (run.model.base_name, files)
    for key, embedder in run.embedders().items():
        if (folder := package_path(embedder.name_or_path)).is_dir():
            named[f"{key}.name_or_path"] = (embedder.name_or_path, loaded_files(folder, deep=True))
    return named


def _stages(run: Run) -> dict[str, Template | Filter]:
    """Return the stages that may hold the content of a file, by their keys."""
    stages: dict[str, Template | Filter] = {"template": run.template}
    for group, filters in (("filter", run.filter), ("split.filter", run.split.filter)):
        stages |= {f"{group}.{name}": keep for name, keep in filters.items()}
    return stages


def contents(run: Run) -> dict[Path, bytes]:
    """Return the files that the run's stages hold in memory: what they have read counts, not what has followed."""
    read: dict[Path, bytes] = {}
    for stage in _stages(run).values():
        with suppress(OSError, ConfigError):  # a missing file is reported by whoever needs it
            read |= stage.contents()
    return read


def sha256(run: Run, store: Store, files: list[Path]) -> str:
    """Return a hash of what the run has read or will read of some files; of one file, SHA-256 of its bytes."""
    if not files:
        raise FileNotFoundError("no such file")
    read = contents(run)
    unread = [file for file in files if file not in read]
    of_unread = dict(zip(unread, store.sha256_of(unread), strict=True))
    hashes = [of_unread.get(file) or hashlib.sha256(read[file]).hexdigest() for file in files]
    return hashes[0] if len(hashes) == 1 else digest(hashes)


def hashes(run: Run, store: Store) -> dict[str, dict[str, str]]:
    """Return what ``inputs`` in the manifest holds: path and hash by config key."""
    noted = {}
    for key, (value, files) in named_files(run, store).items():
        try:
            noted[key] = {"path": value, "sha256": sha256(run, store, files)}
        except OSError as error:
            noted[key] = {"path": value, "sha256": f"cannot be read: {error}"}
    return noted


def data_fingerprint(run: Run, store: Store) -> str:
    """Return a key of the content of all that the run reads.

    That is the source, a held-out source, benchmarks, question sets, and files of filters such as a person's decisions.
    """
    keys = [run.dataset.fingerprint(store)]
    if source := run.split.source():
        keys.append(source.fingerprint(store))

    filters = [*run.filter.values(), *run.split.filter.values()]
    files = [file for row_filter in filters for file in row_filter.files()]
    sets = [path for path in run.evaluation.files().values() if not path.startswith("package:")]
    files += [local_path(path, store) for path in (*run.decontaminate.against, *sets)]
    keys += [sha256(run, store, [file]) for file in files]
    return keys[0] if len(keys) == 1 else digest(keys)


def current(run: Run, store: Store) -> dict[str, Any]:
    """Return what a run of this config would note of its data now: ``inputs`` and ``dataset_fingerprint``."""
    try:
        fingerprint = data_fingerprint(run, store)
    except (SftLabError, OSError) as error:
        fingerprint = f"cannot be read: {error}"
    return {"inputs": hashes(run, store), "dataset_fingerprint": fingerprint}


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare what two manifests note of the data.

    Args:
        old: a manifest; what it does not note is not compared, since it may be of an older sft_lab or of a run that
            ended early.
        new: another one, or what ``current`` returns.

    Returns:
        The old and the new hash of what differs, by ``key=path``; by ``dataset fingerprint`` where no file does.
    """
    differ: dict[str, tuple[Any, Any]] = {}
    new_inputs = _noted_inputs(new)
    for key, old_input in _noted_inputs(old).items():
        new_input = new_inputs.get(key, {})
        hashes_of_key = old_input.get("sha256"), new_input.get("sha256")
        if "inputs" in new and hashes_of_key[0] != hashes_of_key[1]:
            differ[f"{key}={new_input.get('path', old_input.get('path'))}"] = hashes_of_key

    fingerprints = (old.get("dataset_fingerprint"), new.get("dataset_fingerprint"))
    if not differ and None not in fingerprints and fingerprints[0] != fingerprints[1]:
        differ["dataset fingerprint"] = fingerprints
    return differ


def changes(run: Run, manifest: dict[str, Any], store: Store | None = None) -> list[str]:
    """Return what has changed in the data since a run folder's manifest was written, for a message.

    Each names a file by ``key=path``, or the fingerprint of all data; the list is empty where nothing has changed or
    nothing was noted.

    Args:
        run: of the folder's config.
        manifest: the folder's; empty where there is none yet.
        store: which knows the hashes of files; None: the run's.
    """
    if not ({"inputs", "dataset_fingerprint"} & manifest.keys()):
        return []
    differ = differences(manifest, current(run, store or run.store.open()))
    return [f"{name} (was {shorten(old)}, now {shorten(new)})" for name, (old, new) in differ.items()]


def copy(run: Run, folder: RunDir, store: Store) -> None:
    """Copy the small ones of the named files into the run folder, as the run has read them: ``inputs/<key>/<file>``."""
    read = contents(run)
    for key, (_, files) in named_files(run, store).items():
        with suppress(OSError):  # gone since it was read
            if not files or sum(file.stat().st_size for file in files) > MAX_COPIED:
                continue
        parent = Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            data = read[file] if file in read else _unchanged(file, store)
            if data is not None:
                write_bytes(folder.inputs / key / file.relative_to(parent), data)


def _unchanged(file: Path, store: Store) -> bytes | None:
    """Return a file's bytes, or None where it has changed since the run read it."""
    with suppress(OSError):
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() == store.sha256(file):
            return data
    return None


def _noted_inputs(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return ``inputs`` of a manifest, which may be hostile: a stranger can have written it."""
    inputs = manifest.get("inputs")
    if not isinstance(inputs, dict):
        return {}
    return {key: entry for key, entry in inputs.items() if isinstance(entry, dict)}


def shorten(value: Any) -> str:
    """Return a recorded value as text, of a hash its beginning."""
    text = "absent" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{40,}", text) else text
