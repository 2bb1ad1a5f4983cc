"""One thread, one store for the whole session, no network: set before anything heavy is imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_recorder import TOKEN, StandIn

os.environ.update(
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="passive",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)
# Small and fast: real parts, none of the bundled ones.
TINY = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1"]


@pytest.fixture(scope="session", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests out of the user's store; tests that count work name one of their own."""
    os.environ["SFT_LAB_STORE"] = str(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def _own_wandb_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands start a W&B service of their own, not write through that of an earlier test, with its umask."""
    monkeypatch.delenv("WANDB_SERVICE", raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def foreground() -> Iterator[None]:
    """Let children be started as a shell does in the foreground: what runs the tests may ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides of a run that takes seconds."""
    return [*TINY, "tracking=local"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """Publish to a server on loopback that keeps what it is sent."""
    from huggingface_hub import constants  # with the environment set above

    server = StandIn()
    server.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.end()
