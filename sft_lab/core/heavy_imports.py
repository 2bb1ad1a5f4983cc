"""Importing what is heavy: torch, Transformers and TRL make a few million objects, and keep them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """Import without looking for unreachable cycles: looking takes a third of the time, and finds next to nothing.

    What is there afterwards is not looked at again either. Where torch has been imported before nothing is changed: all
    that a notebook or a test holds by then must stay collectable.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
