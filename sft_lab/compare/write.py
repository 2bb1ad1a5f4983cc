"""Writing ``compare.json`` and ``compare.html``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lab.compare.html_page import render_page
from sft_lab.compare.json_record import to_json
from sft_lab.core.errors import FolderError
from sft_lab.core.io import write_json
from sft_lab.report.pages import write_page

if TYPE_CHECKING:
    from pathlib import Path

    from sft_lab.compare.analyze import Comparison


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write ``compare.json`` and ``compare.html`` into a folder.

    Returns:
        The page's path.

    Raises:
        FolderError: when the folder cannot be written.
    """
    folder = folder.absolute()
    page = folder / "compare.html"
    try:
        write_json(folder / "compare.json", to_json(comparison))
        write_page(page, render_page(comparison, folder))
    except OSError as error:
        message = f"{folder}: cannot be written ({error.strerror}); choose another folder with --out"
        raise FolderError(message) from error
    return page
