"""Secrets of a login stay where they are: in no file, log, report, record or message of a run, however it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from outside import TINY

from sft_lab.cli.main import main
from sft_lab.core import redaction
from sft_lab.core.run_dir import RunDir

PLANTED = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_EnvironmentEnvironmentEnvironment00",
    "HUGGING_FACE_HUB_TOKEN": "hf_OldNameOldNameOldNameOldNameOldNa",
    "OTHER_API_KEY": "sk-someone-elses-key-0123456789",
}
IN_FILES = {"netrc": "fedcba9876543210fedcba9876543210fedcba98", "token": "hf_FileFileFileFileFileFileFileFileFi"}
TYPED = "hf_TypedTypedTypedTypedTypedTypedTyped"
OLD_KEY = "00aa11bb22cc33dd44ee00aa11bb22cc33dd44ee"  # of W&B; a Git commit looks the same
ALL = [
    *PLANTED.values(), *IN_FILES.values(), TYPED, OLD_KEY, "pa55w0rd-in-a-url", "wandb_v1_TypedTypedTypedTypedTyped",
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who is logged in everywhere."""
    place = tmp_path / "home"
    (place / ".cache" / "huggingface").mkdir(parents=True)
    (place / ".cache" / "huggingface" / "token").write_text(IN_FILES["token"])
    netrc = place / ".netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {IN_FILES['netrc']}\n")
    netrc.chmod(0o600)
    places = {"HOME": str(place), "NETRC": str(netrc), "SFT_LAB_STORE": str(tmp_path / "store")}
    environment = {**os.environ, **PLANTED, **places, "WANDB_MODE": "offline"}
    for name in ("HF_HOME", "HF_TOKEN_PATH", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    return environment


def ran(words: list[str], folder: Path, environment: dict[str, str], before: str = "", after: str = "") -> int:
    """Run a command as a user does; what it said lies beside its files."""
    run = "from sft_lab.cli.main import main\ncode = main(sys.argv[1:])"
    code = f"import os, sys\n{before}\n{run}\n{after}\nsys.exit(code)"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    assert "Traceback" not in done.stderr
    return done.returncode


def holding_secrets(*folders: Path) -> list[str]:
    """Name every file that holds a byte string of a secret, in its content or its own name."""
    found = []
    for file in (file for folder in folders for file in folder.rglob("*")):
        content = file.read_bytes() if file.is_file() else b""
        found += [f"{file}: {secret}" for secret in ALL if secret.encode() in content or secret in str(file)]
    return found


WITH_WANDB = [*(word for word in TINY if not word.startswith("tracking")), "tracking=wandb", "hydra.run.dir=run"]
# As the process: its children too, of which W&B's is one.
LISTENING = """
import pathlib, subprocess, re
def sockets(pid):
    for link in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
        try: target = os.readlink(link)
        except OSError: continue
        if found := re.match(r"socket:\\[(\\d+)\\]", target): yield found[1]
def children(pid):
    yield pid
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split(): yield from children(child)
def look():
    own = {inode for pid in children(os.getpid()) for inode in sockets(pid)}
    tables = [open(f"/proc/net/{name}").readlines()[1:] for name in ("tcp", "tcp6", "udp", "udp6")]
    lines = [line.split() for table in tables for line in table]
    return [line[1] for line in lines if line[9] in own and (line[3] == "0A" or line[3] == "07")]
import sft_lab.tracking.wandb_mirror as mirror
before = mirror.WandbMirror.finish
def finish(self, summary):
    pathlib.Path("listening.txt").write_text("\\n".join(look()) + "\\nlooked\\n")
    return before(self, summary)
mirror.WandbMirror.finish = finish
bound = []
sys.addaudithook(lambda event, about: bound.append(about[1]) if event == "socket.bind" else None)
"""
TELLS = """
import pathlib
pathlib.Path("bound.txt").write_text("".join(f"{one}\\n" for one in bound))
from huggingface_hub import constants
pathlib.Path("telemetry.txt").write_text(f"{constants.HF_HUB_DISABLE_TELEMETRY} {os.environ['WANDB_ERROR_REPORTING']}")
"""


def off_the_mask(mask: int, *folders: Path) -> list[str]:
    """Name what was not made with the mode that the mask leaves."""
    made = [path for folder in folders for path in folder.rglob("*") if not path.is_symlink()]
    assert len(made) > 20
    modes = {path: path.stat().st_mode & 0o777 for path in made}
    return [f"{path}: {mode:o}" for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~mask]


@pytest.mark.slow
def test_files_can_be_read_by_whom_the_mask_lets_read(finished: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert off_the_mask(mask, finished, Path(os.environ["SFT_LAB_STORE"])) == []


@pytest.mark.slow
def test_a_run_keeps_secrets_listens_to_nobody_and_makes_private_files(tmp_path: Path, home: dict[str, str]) -> None:
    work = tmp_path / "work"
    assert ran(WITH_WANDB, work, home, f"os.umask(0o077)\n{LISTENING}", TELLS) == 0
    assert holding_secrets(work, tmp_path / "store") == []
    assert list(work.glob("run/wandb/offline-run-*/*.wandb"))

    *listening, looked = (work / "listening.txt").read_text().split()
    assert looked == "looked"
    loopback = ("0100007F:", "00000000000000000000000001000000:")
    assert [one for one in listening if not one.startswith(loopback)] == []
    assert [
        one for one in (work / "bound.txt").read_text().splitlines() if not one.startswith(("('127.", "('::1'"))
    ] == []
    assert (work / "telemetry.txt").read_text() == "True false"

    assert off_the_mask(0o077, work / "run", tmp_path / "store") == []


@pytest.mark.slow
def test_a_failure_keeps_secrets(tmp_path: Path, home: dict[str, str]) -> None:
    """An error of a library may carry the request that failed."""
    said = (
        f"401 for https://user:pa55w0rd-in-a-url@hub.example with Bearer {PLANTED['HF_TOKEN']} or {IN_FILES['token']}"
    )
    said += f" api_key={PLANTED['WANDB_API_KEY']} {IN_FILES['netrc']} token='{TYPED}' {PLANTED['OTHER_API_KEY']}"
    fail = (
        "from sft_lab.run.training_session import TrainingSession\n"
        f"def fail(*_): raise OSError({said!r})\nTrainingSession.measure_base = fail"
    )
    work = tmp_path / "work"
    assert ran(WITH_WANDB, work, home, fail) == 1
    status = json.loads((work / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "401 for https://<redacted>@hub.example" in status["error"]
    assert "<redacted>" in status["traceback"]
    assert holding_secrets(work, tmp_path / "store") == []


@pytest.mark.parametrize(
    "word",
    [
        f"+wandb.api_key={PLANTED['WANDB_API_KEY']}", f"tracking.api_key={TYPED}", f"+model.token={TYPED}", TYPED,
        f"+model.init_kwargs.token={TYPED}", "+model.init_kwargs.token=shortish", f"tracking.project={TYPED}",
        "tracking.entity=wandb_v1_TypedTypedTypedTypedTyped", f"+trainer.sft_config.hub_token={TYPED}",
        "dataset.path=https://user:pa55w0rd-in-a-url@host/rows.jsonl", f"'tracking.tags=[a,{TYPED}]'",
        f"hydra.run.dir=runs/{TYPED}", f"model.token={TYPED} (", f"tracking.project={IN_FILES['token']}",
        f"tracking.project={OLD_KEY}", f"tracking.entity='{OLD_KEY}'", f"tracking.tags=[a,{OLD_KEY}]",
        f"+trainer.sft_config.run_name={OLD_KEY}", f"+trainer.sft_config={{run_name:{OLD_KEY}}}",
        "tracking.project=https://user:pa55w0rd-in-a-url/and@host/x", "tracking.project=http://u@corp.example:pa55w0rd-in-a-url@host",
    ],
)  # fmt: skip
def test_on_the_command_line_by_mistake(
    word: str, here: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is written, and not said again."""
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    before = sorted(here.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["sft-lab", *WITH_WANDB, word])
    assert main([*WITH_WANDB, "dataset=file", word]) == 2
    said = capsys.readouterr()
    assert [secret for secret in ALL if secret in said.out + said.err] == []
    assert len(said.err.splitlines()) < 6
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("model.token=abc", "model.token=<redacted>"),
        ("{'api_key': 'abc', 'x': 1}", "{'api_key': '<redacted>', 'x': 1}"),
        ("https://a:b@c.example/x and mail a@b.example", "https://<redacted>@c.example/x and mail a@b.example"),
        ("http://hub.example/a@b", "http://hub.example/a@b"),
        (f"Bearer {TYPED}.", "Bearer <redacted>."),
        ("pad_token=<pad> max_new_tokens=40 write key=value hf_tokenizers", None),
        ("3f786850e387550fdab836ed7e6dc881de23001b is a commit", None),
        (f"model.revision={OLD_KEY} dataset.sources.a.revision='{OLD_KEY}'", None),
        (f"trainer.x={{code_revision:{OLD_KEY}}} {{'commit': '{OLD_KEY}'}} model.revision=main,{OLD_KEY}", None),
        (f"models--a--b/snapshots/{OLD_KEY}/x.json git+https://host/a/b@{OLD_KEY}#sha1={OLD_KEY} at: {OLD_KEY}", None),
        (f"path=/snapshots/{OLD_KEY} bigger={OLD_KEY}0", None),
        (f"x=[a,{OLD_KEY}] x={{b:{OLD_KEY}}}", "x=[a,<redacted>] x={b:<redacted>}"),
        (f'"tags": ["a",\n "{OLD_KEY}"]', '"tags": ["a",\n "<redacted>"]'),
        (
            f"https://host/login?key={OLD_KEY} wandb.login(key='{OLD_KEY}').",
            "https://host/login?key=<redacted> wandb.login(key='<redacted>').",
        ),
        ("https://a:b/c@d@host.example/x y@z", "https://<redacted>@host.example/x y@z"),
        ("http://hub.example:8080/a@b http://127.0.0.1:80/?mail=a@b https://a/b:c@d", None),
        ("--api-key=abc --token=abc", "--api-key=<redacted> --token=<redacted>"),
        (f"ghp_{'a1' * 18} sk-proj-{'a1' * 18} AKIA{'A1' * 8}", "<redacted> <redacted> <redacted>"),
        ("task-specific-something-longer sk-learn-is-not-a-key-at-all AKIATA", None),
    ],
)
def test_what_is_taken_out(text: str, left: str | None) -> None:
    assert redaction.redact(text) == (text if left is None else left)


@pytest.mark.parametrize(
    "words",
    [
        [f"--token={TYPED}"], [f"--tok=\x1b]0;x\x07{TYPED}"], ["generate", "run", "--seed", TYPED],
        ["generate", "run", "hi", "--seed", f"\x1b[31m{TYPED}"], ["store", f"\x1b[31m{TYPED}"], ["--cfg", TYPED],
        ["runs", "x", TYPED], ["runs", f"\x1b[31m{TYPED}"], ["compare", f"\x1b[31m{TYPED}"], [f"--wandb-key={OLD_KEY}"],
        ["push", "run", f"\x1b[31m{TYPED}/x"], ["replay", "run", f"model.token={TYPED}"], ["exec", TYPED],
    ],
)  # fmt: skip
def test_a_refused_word_is_not_said_again(words: list[str], here: Path) -> None:
    """By argparse neither, which repeats what it does not know."""
    done = subprocess.run(
        [sys.executable, "-m", "sft_lab", *words], cwd=here, capture_output=True, text=True, check=False
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 2
    assert "Traceback" not in shown
    assert [secret for secret in ALL if secret in shown] == []
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_a_fault_of_ours_tells_no_secret(here: Path, home: dict[str, str]) -> None:
    """Its traceback is shown, and ends with 1."""
    fail = f"def fail(*_): raise KeyError({TYPED!r}, {PLANTED['OTHER_API_KEY']!r})"
    run = "cli.COMMANDS['runs'] = fail\nsys.exit(cli.main(['runs']))"
    code = f"import sys\nfrom sft_lab.cli import main as cli\n{fail}\n{run}"
    done = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError: ('<redacted>', '<redacted>')" in done.stderr
    assert [secret for secret in ALL if secret in done.stdout + done.stderr] == []


def test_a_short_value_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "true")
    assert redaction.redact("it is true") == "it is true"
    monkeypatch.setenv("SOME_TOKEN", "true-enough")
    assert redaction.redact("it is true-enough") == "it is <redacted>"


def test_a_job_that_could_not_say_it_itself(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.mark_failed(f"died with {TYPED}")
    assert json.loads(folder.status.read_text())["error"] == "died with <redacted>"


def test_the_command_in_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    from sft_lab.tracking.manifest import command_line

    commit, key = "3f786850e387550fdab836ed7e6dc881de23001b", "0" * 20 + "a" * 20
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sft-lab", f"model.revision={commit}", key, "a.key=x", "b.token=y"])
    assert command_line() == f"sft-lab model.revision={commit} <redacted> a.key=<redacted> b.token=<redacted>"
    monkeypatch.setattr(sys, "argv", ["sft-lab", f"tracking.project={key}", f"model.name_or_path=snapshots/{commit}"])
    assert command_line() == f"sft-lab tracking.project=<redacted> model.name_or_path=snapshots/{commit}"


@pytest.mark.parametrize("value", [None, "0"])
def test_telemetry_is_off_unless_the_user_turned_it_on(value: str | None) -> None:
    """By the Python interface too, and with -v."""
    names = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: said for name, said in os.environ.items() if name not in (*names, "WANDB_ERROR_REPORTING")}
    environment |= dict.fromkeys(names, value) if value else {}
    code = "import sft_lab, os; print(*(os.environ[name] for name in ('HF_HUB_DISABLE_TELEMETRY', 'DO_NOT_TRACK')))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [value or "1"] * 2
