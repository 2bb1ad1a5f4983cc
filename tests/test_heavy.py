"""Importing what is heavy: once without the collector, and never where something is there already."""

from __future__ import annotations

import subprocess
import sys

FRESH = """
import gc
from sft_lab import heavy
with heavy.imports():
    assert not gc.isenabled()
    import torch
assert gc.isenabled()
frozen = gc.get_freeze_count()
assert frozen > 100_000, frozen
with heavy.imports():
    assert gc.isenabled()
assert gc.get_freeze_count() == frozen
"""
OFF = """
import gc
gc.disable()
from sft_lab import heavy
with heavy.imports():
    pass
assert not gc.isenabled() and gc.get_freeze_count() == 0
"""


def test_what_is_imported_first_is_not_collected_and_all_later_is() -> None:
    subprocess.run([sys.executable, "-c", FRESH], check=True, timeout=120)


def test_who_has_turned_the_collector_off_keeps_it_so() -> None:
    subprocess.run([sys.executable, "-c", OFF], check=True, timeout=60)
