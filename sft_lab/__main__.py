"""``python -m sft_lab`` is ``sft-lab``."""

from __future__ import annotations

import sys

from sft_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
