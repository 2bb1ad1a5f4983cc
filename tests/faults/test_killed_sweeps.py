"""Sweeps killed by SIGKILL at random moments, and started again by the same command."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest
import sweep_kills as sweeps


@pytest.mark.slow
def test_a_sweep_killed_at_two_moments_ends_the_same(warm: ProcessPoolExecutor) -> None:
    _kill_and_compare(warm, [], 2)


@pytest.mark.faults
@pytest.mark.timeout(3 * 3600)
def test_a_sweep_killed_at_many_moments_ends_the_same(warm: ProcessPoolExecutor) -> None:
    _kill_and_compare(warm, [], 40)


@pytest.mark.faults
@pytest.mark.timeout(3 * 3600)
def test_a_sweep_of_processes_killed_at_many_moments_ends_the_same(warm: ProcessPoolExecutor) -> None:
    _kill_and_compare(warm, sweeps.PROCESSES, 10)


def _kill_and_compare(warm: ProcessPoolExecutor, launch: list[str], wanted: int) -> None:
    seconds = warm.submit(sweeps.undisturbed, launch).result()
    kills, resumes, problems, seed = Counter[str](), 0, dict[int, list[str]](), 0
    while kills.total() < wanted:
        assert seed < 3 * wanted, "the moments fall behind the end"
        seed += 1
        most = min(3, wanted - kills.total())
        found = warm.submit(sweeps.killed, launch, seed, most, seconds).result()
        kills += found.kills
        resumes += found.resumes
        if found.problems:
            problems[seed] = found.problems
    told = ", ".join(f"{count} of the {victim}" for victim, count in sorted(kills.items()))
    print(f"\n{kills.total()} kills ({told}), {resumes} resumes, {seed - len(problems)} of {seed} sweeps equal")
    assert not problems, "\n".join(f"seed {one}: {what}" for one, what in problems.items())
