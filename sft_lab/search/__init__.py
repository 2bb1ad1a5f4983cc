"""A search for the best values of a few keys: Optuna proposes them, and each trial is a job of a sweep folder.

``read_command`` makes a space and options of a command line, ``run_search`` carries the search out.
"""

from sft_lab.search.command import read_command
from sft_lab.search.loop import SearchResult, run_search

__all__ = ["SearchResult", "read_command", "run_search"]
