"""The site: Sphinx over the repository's Markdown. `make docs` builds it, and any warning is an error.

The source folder is the repository itself, so that README.md is a page and every link means the same here and on a code
host; `include_patterns` names what is read.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "sft_lab"
author = "sft_lab"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["README.md", "README.ar.md", "README.ro.md", "CONTRIBUTING.md", "docs/*.md"]
root_doc = "docs/index"
language = "en"

html_theme = "furo"
html_title = "sft_lab"
html_static_path = ["style"]
html_css_files = ["site.css"]
html_extra_path = ["style/index.html"]  # the site's root leads to docs/index.html
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3  # links to headings are checked, as a code host makes them
highlight_language = "none"  # commands and what they print; Python and YAML blocks say so
smartquotes_action = "D"  # dashes alone; quotes stay as they are written

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# For the code host's weekly job, where there is a network: sphinx-build -b linkcheck.
linkcheck_timeout = 20
linkcheck_retries = 2


def setup(app: Any) -> None:
    """Let the first line of a property be a sentence: napoleon would take what stands before a colon for its type."""

    def keep_whole(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
        if what == "property" and lines:
            lines[0] = lines[0].replace(": ", " – ", 1)

    app.connect("autodoc-process-docstring", keep_whole, priority=1)  # before napoleon
