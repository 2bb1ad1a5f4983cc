"""SIGUSR2, by which Slurm announces that it will take a job's machine away."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from sft_lab.core import interrupt


@pytest.fixture
def requeues() -> Iterator[list[int]]:
    """The signals that reached a handler which, as submitit's, requeues the job and exits."""
    requeued: list[int] = []

    def requeue(number: int, _: FrameType | None) -> None:
        requeued.append(number)
        sys.exit(-1)

    before = signal.signal(signal.SIGUSR2, requeue)
    yield requeued
    signal.signal(signal.SIGUSR2, before)


def test_a_job_is_requeued_at_its_next_safe_point(requeues: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    with interrupt.deferred("stopping after this step") as request:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert request
        assert not requeues
        with pytest.raises(SystemExit):
            request.obey()
    assert requeues == [signal.SIGUSR2]
    assert signal.alarm(0) == 0
    assert capfd.readouterr().err == "stopping after this step\n"


def test_a_job_without_a_safe_point_is_requeued_in_time(requeues: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(interrupt.REQUEUE_VARIABLE, "1")
    with interrupt.deferred("stopping after this step"):
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(SystemExit):
            time.sleep(60)
    assert requeues == [signal.SIGUSR2]


def test_without_a_handler_the_signal_is_left_alone() -> None:
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    with interrupt.deferred("stopping after this step"):
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
