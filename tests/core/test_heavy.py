"""Heavy imports: without garbage collection, unless something was imported before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

FRESH = """
import gc
from sft_lab.core import heavy_imports as heavy
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
from sft_lab.core import heavy_imports as heavy
with heavy.imports():
    pass
assert not gc.isenabled() and gc.get_freeze_count() == 0
"""
RUN = """
import gc, sys
from sft_lab.cli.main import main
assert main([*sys.argv[1:], "hydra.run.dir=run"]) == 0
assert gc.get_freeze_count() > 100_000
"""
LOOK = """
import sys
from sft_lab.cli.main import main
assert main(["plan", *sys.argv[1:]]) == 0
assert not {"torch", "transformers", "peft", "trl", "datasets"} & set(sys.modules)
"""
PLAN = """
import sys
from sft_lab.cli.main import main
assert main(["plan", *sys.argv[1:]]) == 0
assert "trl" not in sys.modules
"""


def test_what_is_imported_first_is_not_collected_and_all_later_is() -> None:
    subprocess.run([sys.executable, "-c", FRESH], check=True, timeout=PATIENCE)


def test_who_has_turned_the_collector_off_keeps_it_so() -> None:
    subprocess.run([sys.executable, "-c", OFF], check=True, timeout=PATIENCE)


def test_plan_imports_no_library_for_a_model_that_is_not_here_yet(here: Path) -> None:
    (here / "rows.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n' * 9, encoding="utf-8")
    words = ["model=smollm2_135m_bundled", "dataset=file", "dataset.path=rows.jsonl", f"store.path={here / 'store'}"]
    subprocess.run([sys.executable, "-c", LOOK, *words], check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("script", [RUN, PLAN])
def test_the_commands_import_what_they_need_and_fast(script: str, here: Path, tiny: list[str]) -> None:
    """A run's imports are frozen, so nothing heavy came before them; who only looks ahead waits for no trainer."""
    words = [*tiny, "trainer.max_steps=1", "evaluation.prompts=[]"]
    subprocess.run([sys.executable, "-c", script, *words], check=True, timeout=PATIENCE)
