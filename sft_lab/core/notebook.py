"""Notebooks, where there is no terminal and tables are HTML."""

from __future__ import annotations

import builtins
import html
from collections.abc import Iterable, Sequence
from importlib.util import find_spec


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook (Jupyter, Colab, Databricks)."""
    if not hasattr(builtins, "get_ipython"):
        return False
    from rich.console import Console

    return Console().is_jupyter


def shows_widgets() -> bool:
    """Return whether this is a notebook that can draw progress bars."""
    return in_notebook() and bool(find_spec("ipywidgets"))


def html_table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return a table as HTML, with all text escaped."""

    def line(tag: str, cells: Iterable[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{line('th', headings)}{body}</table>"
