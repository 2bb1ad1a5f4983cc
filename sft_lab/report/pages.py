"""Templates of pages and cards, and how both are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core.io import write_text
from sft_lab.core.text import visible
from sft_lab.report import formatting

if TYPE_CHECKING:
    import jinja2


def template_environment(*folders: Path) -> jinja2.Environment:
    """Return the templates of these folders and of this package; values put into HTML are escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": formatting.format_count,
        "decimal": formatting.format_decimal,
        "significant": formatting.format_significant,
        "seconds": formatting.format_seconds,
        "share_of": formatting.format_share,
        "css_share_of": formatting.css_share,
        "isolated": formatting.isolate_right_to_left,
        "visible": visible,
    }
    return environment


def write_page(path: Path, text: str) -> None:
    """Write a page or card; a lone surrogate, which JSON may hold and UTF-8 cannot, becomes a question mark."""
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
