"""sft-lab runs: every folder a line, whatever state it is in, a thousand in seconds."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from sft_lab.cli.main import main
from sft_lab.core.console import console
from sft_lab.core.errors import FolderError
from sft_lab.core.locks import file_lock
from sft_lab.core.run_dir import RunDir
from sft_lab.core.types import RunState
from sft_lab.jobs import list_runs
from sft_lab.tracking import manifest

INSTALLED = manifest.versions()
SUMMARY = {"eval/loss": 2.5, "base/eval_loss": 3.25, "gap": 0.125, "verdict": "healthy", "train_rows": 1200}


def make_run(path: str, *, summary: Any = SUMMARY, packages: Any = INSTALLED, **status: Any) -> RunDir:
    """Make a run folder by hand: the three files that the listing reads."""
    folder = RunDir(Path(path))
    folder.path.mkdir(parents=True)
    status = {"state": RunState.FINISHED, "time": "2026-11-22T05:15:44+00:00", "work": "run", **status}
    for file, content in (
        (folder.status, status),
        (folder.summary, summary),
        (folder.manifest, {"packages": packages}),
    ):
        if content is not None:
            file.write_text(json.dumps({"format": 1, **content}))
    return folder


def only(root: str | None = None) -> list_runs.RunLine:
    (line,) = list_runs.list_runs(Path(root) if root else None)
    return line


def rendered(lines: list[list_runs.RunLine]) -> str:
    with redirect_stdout(io.StringIO()) as output:
        console(250).print(list_runs.table(lines))
    return output.getvalue()


def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)


def now() -> str:
    return manifest.now()


def test_a_finished_run(here: Path) -> None:
    make_run("outputs/2026-11-22/05-15-32")
    assert only() == list_runs.RunLine(
        Path("outputs/2026-11-22/05-15-32"), "finished", "run", "healthy", 3.25, 2.5, 0.125, 1200,
        "2026-11-22T05:15:44+00:00",
    )  # fmt: skip
    text = rendered(list_runs.list_runs())
    for cell in ("outputs/2026-11-22/05-15-32", "finished", "healthy", "3.2500", "2.5000", "0.1250", "1,200", "05:15"):
        assert cell in text
    assert "*" not in text


def test_both_default_places_and_a_named_one(here: Path) -> None:
    assert list_runs.list_runs() == []
    make_run("multirun/sweep-1/seed=1-0123456789ab")
    make_run("outputs/a/b")
    make_run("elsewhere/c")
    assert [str(line.path) for line in list_runs.list_runs()] == ["outputs/a/b", "multirun/sweep-1/seed=1-0123456789ab"]
    assert str(only("elsewhere").path) == "elsewhere/c"
    assert str(only("elsewhere/c").path) == "elsewhere/c"


@pytest.mark.parametrize("root", ["nowhere", "file"])
def test_a_root_that_is_no_folder(here: Path, root: str) -> None:
    Path("file").write_text("mine")
    with pytest.raises(FolderError, match=f"{root}: no such folder"):
        list_runs.list_runs(Path(root))


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED])
def test_states_are_told_as_they_are(here: Path, state: str) -> None:
    make_run("outputs/a", state=state, summary=None, host=socket.gethostname(), pid=2**22 + 1)
    assert (only().state, only().loss, only().verdict) == (state, None, "")


def test_a_prepared_folder(here: Path) -> None:
    make_run("outputs/a", work="prepare", summary=None)
    assert (only().state, only().work) == ("finished", "prepare")


def test_running_by_a_process_that_lives(here: Path) -> None:
    with process() as alive:
        make_run(
            "outputs/a", state=RunState.RUNNING, summary=None, host=socket.gethostname(), pid=alive.pid, time=now()
        )
        assert only().state == "running"
        alive.kill()
        alive.wait()
        assert only().state == "cut off"


def test_a_killed_process_that_nobody_has_buried_is_dead(here: Path) -> None:
    with process() as zombie:
        make_run(
            "outputs/a", state=RunState.RUNNING, summary=None, host=socket.gethostname(), pid=zombie.pid, time=now()
        )
        zombie.kill()
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # dead, and left in the table
        assert only().state == "cut off"


def test_another_process_with_the_same_number_is_not_the_run(here: Path) -> None:
    """After a restart of the machine a number is used again; that process began after the run said running."""
    with process() as other:
        make_run(
            "outputs/a",
            state=RunState.RUNNING,
            host=socket.gethostname(),
            pid=other.pid,
            time="2020-01-01T00:00:00+00:00",
        )
        assert only().state == "cut off"
        other.kill()


def test_running_on_another_machine_cannot_be_known(here: Path) -> None:
    make_run("outputs/a", state=RunState.RUNNING, host="elsewhere", pid=1)
    assert only().state == "running on elsewhere"


@pytest.mark.parametrize("pid", [None, "x", -1, 10**30, "../self", 1.5])
def test_a_strange_process_number_is_no_process(here: Path, pid: object) -> None:
    make_run("outputs/a", state=RunState.RUNNING, host=socket.gethostname(), pid=pid)
    assert only().state == "cut off"


def test_a_status_of_an_older_sft_lab_without_host(here: Path) -> None:
    make_run("outputs/a", state=RunState.RUNNING)
    assert only().state == "running"


def test_other_library_versions_are_marked(here: Path) -> None:
    make_run("outputs/a", packages=INSTALLED | {"torch": "1.0"})
    make_run("outputs/b", packages=INSTALLED | {"gone": "3"})
    make_run("outputs/c")
    first, second, third = list_runs.list_runs()
    assert (first.other_versions, second.other_versions, third.other_versions) == (["torch 1.0"], ["gone 3"], [])
    text = rendered([first, second, third])
    assert text.count("*") == 3  # two lines and what the mark means
    assert "* ran with library versions other than those installed now: gone 3, torch 1.0" in text


def test_a_config_alone_is_a_run_not_started_and_a_conf_folder_is_none(here: Path) -> None:
    Path("place/run").mkdir(parents=True)
    Path("place/run/config.yaml").write_text("format: 1\nseed: 42\n")
    Path("place/conf").mkdir()
    Path("place/conf/config.yaml").write_text("defaults:\n  - dedup: exact\n")
    line = only("place")
    assert (str(line.path), line.state, line.work) == ("place/run", "not started", "")
    RunDir(Path("place/run")).queued.write_text('{"format": 1, "job_id": "12_0"}')
    assert only("place").state == "queued"


def test_what_lies_inside_a_run_is_not_looked_at(here: Path) -> None:
    make_run("outputs/a")
    for name in ("model", "checkpoints", "wandb", "dataset"):
        make_run(f"outputs/a/{name}/inner")
    make_run("multirun/sweep-1/wandb/offline-run-1")
    make_run("multirun/.hidden/run")
    assert [str(line.path) for line in list_runs.list_runs()] == ["outputs/a"]


@pytest.mark.parametrize("name", ["status.json", "summary.json", "manifest.json"])
@pytest.mark.parametrize(
    "content", ["{", "", "[]", "null", "7", '"x"', "\x00", "[" * 5000, "{}", b"\xff\xfe\xfa", None]
)
def test_a_broken_file_is_a_line_that_says_so(here: Path, name: str, content: str | bytes | None) -> None:
    folder = make_run("outputs/a")
    file = folder.path / name
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    make_run("outputs/b")
    if content is None and name == "status.json":  # a folder of that name is no status, and nothing else tells of a run
        assert [line.path.name for line in list_runs.list_runs()] == ["b"]
        return
    broken, intact = list_runs.list_runs()
    assert intact.state == "finished"
    assert [problem.startswith(f"{name}: ") for problem in broken.problems] == ([] if content == "{}" else [True])
    assert (broken.state == "finished") == (name != "status.json")
    assert all(cell in rendered([broken, intact]) for cell in broken.problems)


def test_wrong_values_are_told(here: Path) -> None:
    make_run("outputs/a", summary=SUMMARY | {"eval/loss": "[bold]low", "gap": True, "train_rows": [1]}, packages=[1])
    line = only()
    assert (line.loss, line.gap, line.rows, line.base_loss) == (None, None, None, 3.25)
    assert [problem.partition("=")[0] for problem in line.problems] == [
        "summary.json: eval/loss", "summary.json: gap", "summary.json: train_rows",
        "manifest.json: packages",
    ]  # fmt: skip
    assert "[bold]low" in rendered([line])


def test_a_narrow_terminal_and_a_file_hold_whole_paths(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_runs.show(list_runs.list_runs())
    assert "No runs here yet" in capsys.readouterr().out
    name = "outputs/dedup=semantic-threshold=0.95-learning_rate=1e-05-num_train_epochs=3-0123456789ab"
    make_run(name, state=RunState.FAILED)
    list_runs.show(list_runs.list_runs())
    assert name in capsys.readouterr().out
    with redirect_stdout(io.StringIO()) as output:
        console(90).print(list_runs.table(list_runs.list_runs()))
    text = output.getvalue()
    assert "".join(line[:20].strip() for line in text.splitlines()).find("0123456789ab"[-4:]) > 0
    assert all(cell in text for cell in ("failed", "healthy", "2.5000", "1,200"))


def test_a_path_is_shown_as_it_is(here: Path) -> None:
    name = "outputs/[red]x[/red]:smile:"  # rich's markup, and its name of an emoji
    make_run(name)
    assert name in rendered(list_runs.list_runs())


@pytest.mark.slow
def test_a_thousand_folders(here: Path) -> None:
    """0.2 s of one core of 2026 and 1.5 s to show; a machine ten times slower still keeps this."""
    for number in range(1000):
        folder = make_run(f"multirun/sweep-{number // 50}/seed={number}-0123456789ab")
        (folder.path / "model").mkdir()
        folder.metrics.write_text('{"step": 1}\n' * 1000)
    began = time.process_time()  # however busy the machine is
    lines = list_runs.list_runs()
    listed = time.process_time() - began
    text = rendered(lines)
    assert len(lines) == 1000
    assert text.count("finished") == 1000
    assert listed < 5
    assert time.process_time() - began < 25


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_sweep_is_deleted_only_after_a_yes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        make_run(f"multirun/sweep-1/{name}")
    Path("multirun/sweep-1/sweep.json").write_text("{}")
    Path("multirun/sweep-1/.locks").mkdir()
    make_run("multirun/sweep-2/c")
    for text in ("", "n\n", "no\n", "\n"):
        answer(monkeypatch, text)
        assert main(["runs", "multirun/sweep-1", "--delete"]) == 0
        assert "Delete 2 run folders" in capsys.readouterr().out
        assert len(list(Path("multirun/sweep-1").iterdir())) == 4
    answer(monkeypatch, "y\n")
    assert main(["runs", "multirun/sweep-1", "--delete"]) == 0
    assert "2 run folders deleted" in capsys.readouterr().out
    assert [path.name for path in Path("multirun").iterdir()] == ["sweep-2"]


def test_what_is_at_work_is_never_deleted(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("outputs/done")
    make_run("outputs/elsewhere", state=RunState.RUNNING, host="elsewhere", pid=1)
    held = make_run("outputs/held")
    queued = RunDir(Path("outputs/queued"))
    queued.path.mkdir()
    queued.config.write_text("format: 1\n")
    queued.queued.write_text('{"format": 1, "job_id": "12_0"}')
    answer(monkeypatch, "yes\n")
    with held.claimed():
        assert main(["runs", "outputs", "--delete"]) == 0
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["elsewhere", "held", "queued"]
    output = capsys.readouterr().out
    assert "outputs/elsewhere: running on elsewhere; not deleted" in output
    assert "1 run folder deleted" in output


class _Meanwhile(io.StringIO):
    """A user who answers yes after something has happened."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__("y\n")
        self.happens = happens

    def readline(self, size: int | None = -1, /) -> str:
        self.happens()
        return super().readline(-1 if size is None else size)


def test_what_begins_while_the_question_is_open_stays(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Path("multirun/sweep-1")
    for name in ("a", "b"):
        make_run(f"{sweep}/{name}")
    for name in ("sweep.json", "search.journal", "compare.html"):
        (sweep / name).write_text("{}")
    (sweep / "wandb").mkdir()
    working = [RunDir(sweep / name) for name in ("b", "c")]

    def begin_work() -> None:
        make_run(f"{sweep}/c", state=RunState.RUNNING, summary=None, host=socket.gethostname(), pid=os.getpid())
        for folder in working:
            folder.claim()

    monkeypatch.setattr(sys, "stdin", _Meanwhile(begin_work))
    assert main(["runs", str(sweep), "--delete"]) == 1
    for folder in working:
        folder.release()
        assert folder.status.exists()
    names = sorted(path.name for path in sweep.iterdir())
    assert names == ["b", "c", "compare.html", "search.journal", "sweep.json", "wandb"]
    output = capsys.readouterr().out
    assert "multirun/sweep-1/b: a run has started there; not deleted" in output
    assert "1 run folder deleted" in output


def test_files_of_the_user_in_a_sweep_stay(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sweep in ("multirun/sweep-1", "multirun/sweep-2"):
        make_run(f"{sweep}/a")
        for name in ("sweep.json", "search.json", "search.journal", ".search.journal.lock", "compare.json"):
            Path(sweep, name).write_text("{}")
        for name in ("wandb/run-1", ".locks", ".submitit"):
            Path(sweep, name).mkdir(parents=True)
    Path("multirun/sweep-1/merged").mkdir()
    Path("multirun/sweep-1/merged/model.safetensors").write_text("mine")
    answer(monkeypatch, "y\n")
    assert main(["runs", "multirun", "--delete"]) == 0
    files = [str(path) for path in Path("multirun").rglob("*") if path.is_file()]
    assert files == ["multirun/sweep-1/merged/model.safetensors"]
    assert sorted(path.name for path in Path("multirun").rglob("*")) == ["merged", "model.safetensors", "sweep-1"]


def test_a_search_at_work_keeps_its_record(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("search/a")
    for name in ("sweep.json", "search.journal"):
        Path("search", name).write_text("{}")
    answer(monkeypatch, "y\n")
    with file_lock(Path("search/.search.lock")):
        assert main(["runs", "search", "--delete"]) == 0
    assert {path.name for path in Path("search").iterdir()} >= {"sweep.json", "search.journal"}


def test_the_size_counts_a_shared_file_once_and_only_if_its_last_link_goes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        make_run(f"sweep/{name}")
    Path("sweep/a/weights").write_bytes(bytes(3_000_000))
    Path("sweep/b/weights").hardlink_to("sweep/a/weights")
    for root, size in (("sweep", "3.0 MB"), ("sweep/a", "0.0 MB")):
        answer(monkeypatch, "n\n")
        assert main(["runs", root, "--delete"]) == 0
        assert f", {size}? [y/N]" in capsys.readouterr().out


def test_a_folder_with_a_link_out_of_it_is_not_deleted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run("outputs/a")
    Path("mine").mkdir()
    Path("mine/file").write_text("mine")
    folder.model.symlink_to(Path("mine").absolute())
    answer(monkeypatch, "y\n")
    assert main(["runs", "outputs/a", "--delete"]) == 1
    assert Path("mine/file").exists()
    assert folder.path.exists()


def test_delete_needs_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("outputs/a")
    assert main(["runs", "--delete"]) == 2
    assert "give the folder" in capsys.readouterr().err
