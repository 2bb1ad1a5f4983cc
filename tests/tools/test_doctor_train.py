"""``sft-lab doctor --train``: real attempts, one that works, one that is left out and one that fails."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import pytest

from sft_lab.cli.main import main
from sft_lab.tools import doctor_train


@pytest.fixture(autouse=True)
def temporary(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of its own, to see what is left in it."""
    folder = here / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the processor alone, wherever this runs
    return folder


def rows(said: str) -> list[list[str]]:
    lines = [line for line in said.splitlines() if line.startswith("| cpu")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_what_was_tried_is_a_table(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_train, "TRAINERS", ("qlora", "full"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    assert doctor_train.print_attempts("tiny_random") == 0
    said = capsys.readouterr().out
    left_out, full = rows(said)
    assert left_out == ["cpu", "qlora", "", "", "", "", "", "skipped: needs bitsandbytes"]
    assert (full[0], full[1], full[3], full[7]) == ("cpu", "full", "plain", "ok")
    first, last = map(float, full[4].split(" to "))
    assert last < first - 0.2
    assert int(full[5].replace(",", "")) > 0
    assert float(full[6].removesuffix(" GB")) > 0.1
    assert "| device | trainer |" in said
    assert "model=tiny_random; " in said
    assert not any(temporary.iterdir())
    assert [path.name for path in temporary.parent.iterdir()] == ["temporary"]  # nothing in the working folder


@pytest.mark.slow
def test_one_that_should_work_and_does_not(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_train, "TRAINERS", ("lora",))
    model = temporary.parent / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "tokenizer.json").touch()
    option = temporary.parent / "conf" / "model" / "broken.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(f"# No weights.\ndefaults:\n  - /schema/model/pretrained@_here_\nname_or_path: {model}\n")
    assert doctor_train.print_attempts("broken") == 1
    ((*_, result),) = rows(capsys.readouterr().out)
    assert result.startswith("FAILED: ")
    assert len(result) > len("FAILED: ") + 20
    assert not any(temporary.iterdir())


@pytest.mark.slow
def test_no_such_model_is_no_table(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--train", "--model", "tiny_randon"]) == 2
    told = capsys.readouterr()
    assert "model=tiny_randon: no such option; available:" in told.err
    assert "| device |" not in told.out
    assert not any(temporary.iterdir())
