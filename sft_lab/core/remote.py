"""Remote files, read by fsspec and copied into the store.

Each version of a file (by the ETag, checksum or modification time that its server gives) is copied once and read from
the copy: hash and rows are of the same bytes, and a second run asks only for the version.
"""

from __future__ import annotations

import glob
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sft_lab.core.errors import SftLabError, SourceError
from sft_lab.core.hub import fall_back_on_cache
from sft_lab.core.io import digest, sha256_file
from sft_lab.core.log import log
from sft_lab.core.packages import is_url, package_path

if TYPE_CHECKING:
    from sft_lab.core.store import Store

# What file systems call the version of a file's content, most reliable first.
_VERSION_KEYS = (
    "ETag", "etag", "blob_id", "md5Hash", "content_md5", "Content-MD5", "generation", "sha",
    "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified", "created",
)  # fmt: skip
_RELEASED_WITH_FSSPEC = ("s3fs",)  # needs fsspec of the same version


def file_name(url: str) -> str:
    """Return the name of a URL's file, without query."""
    path = unquote(urlsplit(url).path) if url.startswith(("http://", "https://")) else url
    return PurePosixPath(path).name


def expand(url: str) -> list[str]:
    """Return the URLs of the files that a URL or a glob names, sorted; a name that exists is not a glob.

    Raises:
        SourceError: if they cannot be listed.
    """
    filesystem, path = _filesystem(url)
    if _info(filesystem, url, path):
        return [url]
    if not glob.has_magic(path):
        return []
    try:
        matches = filesystem.glob(path, detail=True)
    except FileNotFoundError:
        return []
    except Exception as error:  # file systems raise errors of many libraries, which all mean that there are no files
        raise _unreadable(url, error) from error
    names = sorted(name for name, info in matches.items() if info.get("type") == "file")
    hidden = PurePosixPath(path).name.startswith(".")
    return [filesystem.unstrip_protocol(name) for name in names if hidden or not file_name(name).startswith(".")]


def missing_file(path: str) -> str:
    """Return what is wrong with the path or URL of a file that must exist; empty if it does."""
    try:
        exists = bool(expand(path)) if is_url(path) else package_path(path).is_file()
    except SftLabError as error:
        return str(error).removeprefix(f"{path}: ")
    return "" if exists else "no such file"


def read_small(url: str) -> bytes | None:
    """Return the content of a small file; None if there is no such file."""
    filesystem, path = _filesystem(url)
    if not _info(filesystem, url, path):
        return None
    try:
        return bytes(filesystem.cat_file(path))
    except Exception as error:  # as in expand
        raise _unreadable(url, error) from error


def local_path(path: str, store: Store, view: Store | None = None) -> Path:
    """Return the local path of a file: itself, or the copy of a URL's file.

    Args:
        path: a path or a URL.
        store: that keeps the copy, and remembers it while it is open.
        view: of the store, to look for a copy without making one.

    Raises:
        SourceError: if it cannot be copied.
        NotStored: if ``view`` has no copy of this version.
    """
    if not is_url(path):
        return package_path(path)
    copy: Path = store.once(f"copy of {path}", lambda: _copy(path, view or store))
    return copy


def _copy(url: str, store: Store) -> Path:
    filesystem, path = _filesystem(url)
    info = _info(filesystem, url, path)
    if info is None:
        raise SourceError(f"{url}: no such file; check the URL")
    version, size, name = _version(info), info.get("size"), file_name(url)
    hashes: list[str] = []

    def recipe() -> dict[str, Any] | None:
        if version:
            return {"version": 1, "url": url, "file": version}
        return {"version": 1, "url": url, "sha256": hashes[0]} if hashes else None  # known when it has been copied

    def compute(folder: Path) -> None:
        log.info("load: copying %s into the store%s", url, f" ({size / 1e6:,.1f} MB)" if size else "")
        try:
            filesystem.get_file(path, str(folder / name))
        except Exception as error:  # as in expand
            raise _unreadable(url, error) from error
        if _version(_info(filesystem, url, path) or {}) != version:
            raise SourceError(f"{url}: changed while it was read; start again when nothing is writing to it")
        copied = (folder / name).stat().st_size
        if size is not None and copied != size:
            raise SourceError(f"{url}: ended after {copied:,} of {size:,} bytes; start again")
        hashes.append(sha256_file(folder / name))

    return store.entry_once_read("remote", digest(url)[:32], recipe, compute).path / name


def _version(info: dict[str, Any]) -> dict[str, str]:
    """Return what identifies the version of a file's content; empty if its server gives nothing that does."""
    key = next((key for key in _VERSION_KEYS if info.get(key)), None)
    return {"size": str(info.get("size")), key: str(info[key])} if key else {}


def _info(filesystem: Any, url: str, path: str) -> dict[str, Any] | None:
    """Return a file system's metadata of a file or folder; None if there is none.

    Raises:
        SourceError: if the file system cannot be reached.
    """
    try:
        return dict(filesystem.info(path))
    except FileNotFoundError as error:
        # fsspec raises this for every failed HTTP request; the cause says which.
        cause = error.__cause__
        is_missing = getattr(cause, "status", 404) in (404, 410) and not isinstance(cause, OSError)
        if is_missing:
            return None
        raise _unreadable(url, cause or error) from error
    except Exception as error:  # as in expand
        raise _unreadable(url, error) from error


def _filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL's scheme, and the path in it.

    Raises:
        SourceError: if the scheme is unknown or its package is not installed.
    """
    import fsspec
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            # aiohttp's default is five minutes for a whole file.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)}
        elif scheme == "hf":
            fall_back_on_cache()
        filesystem, path = url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        package = _package(error, scheme)
        version = f"=={fsspec.__version__}" if package in _RELEASED_WITH_FSSPEC else ""
        raise SourceError(
            f"{url}: {scheme}:// needs the package {package}, which is not installed; run: "
            f"pip install {package}{version}"
        ) from error
    except Exception as error:
        if isinstance(error, ValueError) and scheme not in fsspec.available_protocols():
            raise SourceError(
                f"{url}: unknown scheme {scheme}://; give a path, or a URL such as https://, s3://, gs:// or hf://"
            ) from error
        raise _unreadable(url, error) from error
    return filesystem, path


def _package(error: ImportError, scheme: str) -> str:
    """Return the name of the package whose import failed."""
    causes = (error.name, getattr(error.__cause__, "name", None), getattr(error.__context__, "name", None))
    return next((name.partition(".")[0] for name in causes if name), scheme)


def _unreadable(url: str, error: BaseException) -> SourceError:
    reason = " ".join(str(error).split()) or "no reason given"
    return SourceError(
        f"{url}: cannot be read ({type(error).__name__}: {reason}); check the URL, the network and the "
        "credentials in your environment, or download the file and give its path"
    )
