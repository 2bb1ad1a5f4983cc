"""SIGUSR2, by which Slurm announces that it will take a job's machine away; Ctrl-C where Python would lose it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace

import pyarrow as pa
import pytest

from sft_lab.core import interrupt, workers

FORK = SimpleNamespace(interrupts=False)  # whether Ctrl-C comes as this process forks; a hook cannot be removed
os.register_at_fork(after_in_parent=lambda: FORK.interrupts and signal.raise_signal(signal.SIGINT))


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


@pytest.mark.usefixtures("foreground")
def test_ctrl_c_while_workers_are_forked_is_neither_lost_nor_half_done(tmp_path: Path) -> None:
    """Python drops what a handler raises in a fork hook: the data stages ran to their end."""
    with workers.forked(pa.table, 2) as submit:
        FORK.interrupts = True
        try:
            with pytest.raises(KeyboardInterrupt):
                submit({"row": [1]}, tmp_path / "block.arrow").result()
        finally:
            FORK.interrupts = False
        submit({"row": [1]}, tmp_path / "block.arrow").result()  # by workers which only wait for the pool's thread
    assert (tmp_path / "block.arrow").exists()


@pytest.mark.usefixtures("foreground")
def test_an_interrupted_exec_does_not_change_the_exit_code(tmp_path: Path) -> None:
    """It makes ``python -m`` end by the signal, and dataclasses call it as modules are imported."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\nfrom sft_lab.cli import main\n"
        "main.COMMANDS['runs'] = lambda *_: exec('raise KeyboardInterrupt')\nsys.exit(main.main(['runs']))\n"
    )
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (130, b"sft-lab: interrupted\n")
