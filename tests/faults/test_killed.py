"""A run killed at every durable write, and started again by the same command."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import durable_writes as durable
import pytest
import warm_process as attempts

pytestmark = pytest.mark.skipif(not durable.can_trace(), reason="follows system calls by their numbers on x86-64 Linux")

# Where each kind of file is written, and the two that once were not gone on from.
PLACES = [
    ("write", "/run/.config.yaml."),
    ("write", "/table.arrow"),
    ("write", "/checkpoint-2/optimizer.pt"),
    ("write", "/checkpoint-2/trainer_state.json"),
    ("unlinkat", "/checkpoint-1/"),
    ("write", "/run/model/"),
    ("unlinkat", "/checkpoint-2/"),
]


@pytest.fixture(scope="module")
def writes(warm: ProcessPoolExecutor) -> list[durable.Write]:
    """The durable writes of an undisturbed run."""
    return warm.submit(attempts.undisturbed).result()


@pytest.mark.slow
def test_a_run_killed_at_some_writes_ends_the_same(warm: ProcessPoolExecutor, writes: list[durable.Write]) -> None:
    _kill_and_compare(warm, writes, [_number(writes, *place) for place in PLACES])


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
def test_a_run_killed_at_every_write_ends_the_same(warm: ProcessPoolExecutor, writes: list[durable.Write]) -> None:
    _kill_and_compare(warm, writes, list(range(1, len(writes) + 1)))


def _kill_and_compare(warm: ProcessPoolExecutor, writes: list[durable.Write], numbers: list[int]) -> None:
    asked = [(number, (writes[number - 1].pieces + 1) // 2) for number in numbers]
    done = [warm.submit(attempts.killed_and_resumed, *one) for one in asked]
    problems = {}
    for attempt in (one.result() for one in done):
        if attempt.number > _trained(writes)[0] and attempt.number <= _trained(writes)[1] and not attempt.went_on:
            attempt.problems.append("began to train anew, with a whole checkpoint there")
        if attempt.problems:
            problems[attempt.number, attempt.killed_in.call, attempt.killed_in.path] = attempt.problems
    equal = len(numbers) - len(problems)
    print(f"\n{len(writes)} durable writes, {len(numbers)} kills, {equal} resumes equal")
    assert not problems, "\n".join(f"{where}: {what}" for where, what in problems.items())


def _number(writes: list[durable.Write], call: str, part: str) -> int:
    """Give the number of the first such write."""
    return next(number for number, one in enumerate(writes, 1) if one.call.startswith(call) and part in one.path)


def _trained(writes: list[durable.Write]) -> tuple[int, int]:
    """Give the numbers of the last write of the first checkpoint, and of the last before the run is finished."""
    first = max(number for number, one in enumerate(writes, 1) if "/checkpoint-1/" in one.path and "write" in one.call)
    return first, max(number for number, one in enumerate(writes, 1) if "/run/.status.json" in one.path)
