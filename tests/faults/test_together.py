"""Several processes on one store: each result is computed once, and the dead block nobody."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest
import sweep_kills as sweeps

pytestmark = pytest.mark.slow


def test_eight_runs_on_a_cold_store_compute_each_stage_once_and_agree(warm: ProcessPoolExecutor) -> None:
    computed, results = warm.submit(sweeps.together, 8).result()
    assert len(computed) > 8
    assert set(computed.values()) == {1}, computed
    assert results == 1
    print(f"\n8 runs, {len(computed)} stage results, each computed once, {results} outcome")


def test_who_dies_with_a_lock_blocks_nobody(warm: ProcessPoolExecutor) -> None:
    found = warm.submit(sweeps.holder_dies).result()
    assert found == {"waited": True, "died": -9, "code": 0, "again": 0, "differences": []}
