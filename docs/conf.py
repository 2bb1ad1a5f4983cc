"""The site: Sphinx over the repository's Markdown. `make docs` builds it, and any warning is an error.

The source folder is the repository itself, so that README.md is a page and every link means the same here and on a code
host; `include_patterns` names what is read.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "sft_lab"
author = "sft_lab"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["README.md", "README.ar.md", "docs/*.md"]
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
smartquotes = False  # --help stays --help

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# For the code host's weekly job, where there is a network: sphinx-build -b linkcheck.
linkcheck_timeout = 20
linkcheck_retries = 2
