"""What a command is started in: encodings of the terminal, bytes that are no UTF-8, a user without a home."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft_lab.cli.main import main

SFT_LAB = [sys.executable, "-m", "sft_lab"]
ENCODINGS = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"},  # which most machines lack, and then take C for
    {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
]
USER = 12345


def run(words: list[str | bytes], **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*SFT_LAB, *words], env={**os.environ, **more}, capture_output=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*tiny, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("more", ENCODINGS)
def test_what_an_encoding_lacks_ends_no_command(more: dict[str, str], here: Path) -> None:
    """The experiment's description is shown in --help."""
    (here / "experiments").mkdir()
    (here / "experiments" / "größe.yaml").write_text("# @package _global_\n# عاصمة.\nseed: 1\n", encoding="utf-8")
    done = run(["--help"], **more)
    assert done.returncode == 0, done.stderr
    assert b"\\u0639" in done.stdout
    done = run(["runs", "größe/عاصمة"], **more)
    assert done.returncode == 2
    assert b"no such folder" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("more", ENCODINGS)
def test_a_run_and_what_follows_end_well(more: dict[str, str], here: Path, tiny: list[str], finished: Path) -> None:
    """The starter set has Arabic prompts, which are printed at the end, and compare prints a minus sign."""
    commands: list[list[str | bytes]] = [
        [*tiny, "hydra.run.dir=run"], ["compare", "run", str(finished), "--out", "comparison"], ["runs", "."],
        ["store", "list"], ["generate", "run", "Größe عاصمة", "--max-new-tokens", "4", "--base"], ["doctor", "run"],
        ["replay", "run", "--out", "again"], ["promote", "run", "mine"], ["merge", "run"], ["plan", *tiny],
    ]  # fmt: skip
    for words in commands:
        done = run(words, **more)
        assert (words, done.returncode, done.stderr.decode(errors="replace")[-500:] if done.returncode else "") == (
            words, 0, "",
        )  # fmt: skip
        assert b"Traceback" not in done.stderr
    for name in ("report.html", "config.yaml", "samples.jsonl", "run.log"):
        assert Path("run", name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "piped", "message"),
    [
        ([b"Gr\xffe"], b"", b"prompt: byte 3 (0xff) is not UTF-8"),
        (["hi", "--system", b"\xe4"], b"", b"--system: byte 1 (0xe4) is not UTF-8"),
        (["-"], b"a\xe4", b"standard input: byte 2 (0xe4) is not UTF-8"),
    ],
)
def test_a_prompt_that_is_no_utf8_is_refused(
    words: list[str | bytes], piped: bytes, message: bytes, here: Path
) -> None:
    done = subprocess.run([*SFT_LAB, "generate", "run", *words], input=piped, capture_output=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("more", ENCODINGS[:1])
def test_a_prompt_is_read_as_utf8_whatever_the_locale(more: dict[str, str], finished: Path) -> None:
    words = ["--max-new-tokens", "8"]
    right, typed = (run(["generate", str(finished), "Größe عاصمة", *words], **other).stdout for other in ({}, more))
    piped = subprocess.run(
        [*SFT_LAB, "generate", str(finished), "-", *words], input="Größe عاصمة".encode(), env={**os.environ, **more},
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert right == typed == piped


# --- a user id that the system does not know ---------------------------------------------------------------------

nobody = pytest.mark.skipif(
    not shutil.which("setpriv") or os.getuid() != 0, reason="takes on another user id, which root alone can"
)


def as_nobody(words: list[str], temporary: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user id without a home and a name; it may read what root may, where Python is installed."""
    capabilities = "+dac_read_search,+dac_override"
    ids = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    unset = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "SFT_LAB_STORE", "XDG_CACHE_HOME", "HF_HOME", "NETRC")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        ["setpriv", *ids, "--inh-caps", capabilities, "--ambient-caps", capabilities, sys.executable, *words],
        env={**environment, "TMPDIR": str(temporary), **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def anybodys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder in which every user may write, as in /tmp; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "tmp").mkdir()
        for path in (folder, folder / "tmp"):
            path.chmod(0o777)
        monkeypatch.chdir(folder)
        yield folder / "tmp"


@nobody
def test_a_user_without_a_home_has_a_cache_of_its_own(anybodys: Path) -> None:
    done = as_nobody(["-m", "sft_lab", "store", "list"], anybodys)
    assert done.returncode == 0, done.stderr
    home = anybodys / f"sft_lab-{USER}"
    assert f"in {home}/.cache/sft_lab" in done.stdout
    assert f"user id {USER} has no home folder: caches go to {home}" in done.stderr
    assert (home.stat().st_uid, stat.S_IMODE(home.stat().st_mode)) == (USER, 0o700)
    named = as_nobody(["-m", "sft_lab", "store", "list"], anybodys, HOME=str(anybodys), SFT_LAB_STORE="s")
    assert (named.returncode, named.stderr) == (0, "")


@nobody
@pytest.mark.parametrize("kind", ["another's", "open", "link", "file"])
def test_anothers_folder_is_no_home(kind: str, anybodys: Path) -> None:
    """Whoever may write in /tmp could have made it before."""
    home = anybodys / f"sft_lab-{USER}"
    if kind == "link":
        home.symlink_to(anybodys)
    elif kind == "file":
        home.touch()
    else:
        home.mkdir()
        if kind == "open":
            home.chmod(0o777)
            os.chown(home, USER, USER)
    done = as_nobody(["-m", "sft_lab", "store", "list"], anybodys)
    assert done.returncode == 2
    assert "set HOME to a folder that you own" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@nobody
def test_the_python_interface_works_without_a_home(anybodys: Path) -> None:
    code = "import getpass, sft_lab; print(sft_lab.compose([]).store.open().root, getpass.getuser())"
    done = as_nobody(["-c", code], anybodys)
    assert done.stdout.split() == [f"{anybodys}/sft_lab-{USER}/.cache/sft_lab", f"uid{USER}"], done.stderr


@nobody
@pytest.mark.slow
def test_a_user_without_a_home_runs(anybodys: Path, tiny: list[str]) -> None:
    """With W&B, which asks for the user's name and folders too."""
    commands = [
        [*(word for word in tiny if not word.startswith("tracking")), "hydra.run.dir=run"],
        ["generate", "run", "hi", "--max-new-tokens", "4"],
        ["doctor"],
    ]
    for words in commands:
        done = as_nobody(["-m", "sft_lab", *words], anybodys, WANDB_MODE="offline")
        assert (words, done.returncode, done.stderr if done.returncode else "") == (words, 0, "")
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["run", "tmp"]
