"""W&B unreachable, slow or refusing: training goes on, the record is whole, and the end says what to send."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from patience import PATIENCE
from wandb_stand_in import StandIn

from sft_lab.cli.main import main

pytestmark = pytest.mark.slow
FEW = ["trainer.max_steps=3", "trainer.logging_steps=1", "evaluation.prompts=[]", "evaluation.general=null",
       "evaluation.outputs=0", "evaluation.baseline.examples=0", "evaluation.baseline.system_prompt=null"]  # fmt: skip
TINY = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1"]
ONLINE = ["tracking=wandb"]  # as there is a login


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let W&B's client read this test's environment, and not the last one's."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "4")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield
    wandb.teardown()


def record(folder: str) -> list[Any]:
    """What a run told, without its speeds."""
    told = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in event.items() if "second" not in name} for event in told]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = str(tmp_path_factory.mktemp("undisturbed") / "run")
    assert main([*TINY, "tracking=local", *FEW, f"hydra.run.dir={folder}"]) == 0
    return record(folder)


@pytest.mark.parametrize(
    ("at", "harm"),
    [("start", ""), ("start", "refuses"), ("start", "hangs"), ("stream", "refuses"), ("stream", "hangs"),
     ("stream", "closes")],
)  # fmt: skip
def test_a_run_goes_on_without_wandb(
    here: Path, undisturbed: list[Any], tiny: list[str], at: str, harm: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server = StandIn(harm, at)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    if at == "stream" or not harm:
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", str(PATIENCE))
    if not harm:
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", str(PATIENCE))
    try:
        began = time.monotonic()
        assert main([*tiny, *FEW, *ONLINE, "hydra.run.dir=run"]) == 0
        assert time.monotonic() - began < 60
    finally:
        server.end()
    said = capfd.readouterr().err
    assert record("run") == undisturbed
    sync = re.search(r"wandb sync (\S+)", said)
    if not harm:
        assert f"W&B: {server.url}/me/sft_lab/runs/" in said
        assert not sync
        assert "eval/loss" in "".join(server.streamed)
        return
    assert sync
    assert list(Path(sync[1]).glob("*.wandb"))
    assert ("it is recorded offline" in said) == (at == "start")
    assert ("W&B (upload incomplete)" in said) == (at == "stream")


@pytest.mark.parametrize("harm", ["refuses", "hangs", "closes", "gone"])
def test_online_by_hand_is_an_error_before_any_work(
    here: Path, tiny: list[str], harm: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = StandIn(harm, "start")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    if harm == "gone":
        server.end()
    try:
        assert main(["-m", *tiny, *FEW, *ONLINE, "tracking.mode=online", "seed=1,2"]) == 2
    finally:
        server.end()
    reason = "unauthorized" if harm == "refuses" else "no answer within 4 seconds"
    assert capfd.readouterr().err == (
        f"sft-lab: tracking.mode=online: W&B at {server.url} cannot be reached or rejects the login ({reason}); set "
        "tracking.mode=auto (offline if W&B is unavailable)\n"
    )
    assert not list(here.iterdir())


def test_online_by_hand_with_a_server_and_without_a_login(
    here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = StandIn()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", str(PATIENCE))
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", str(PATIENCE))
    try:
        assert main([*tiny, *FEW, *ONLINE, "tracking.mode=online", "hydra.run.dir=run"]) == 0
        assert f"W&B: {server.url}/me/sft_lab/runs/" in capfd.readouterr().err
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("WANDB_MODE", "online")
        assert main(["plan", *tiny, *FEW, *ONLINE]) == 2
    finally:
        server.end()
    assert capfd.readouterr().err == (
        f"sft-lab: WANDB_MODE=online: not logged in to W&B at {server.url}; run `wandb login`, or set "
        "WANDB_MODE=offline, or unset it\n"
    )


def test_nobody_there_at_all(
    here: Path, undisturbed: list[Any], tiny: list[str], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server = StandIn()
    server.end()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    assert main([*tiny, *FEW, *ONLINE, "hydra.run.dir=run"]) == 0
    assert "W&B (offline): wandb sync" in capfd.readouterr().err
    assert record("run") == undisturbed
