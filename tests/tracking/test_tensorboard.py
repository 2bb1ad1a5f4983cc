"""TensorBoard's event files, read back with its own reader."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from sft_lab.cli.main import main
from sft_lab.config import compose, from_saved
from sft_lab.core.run_dir import RunDir
from sft_lab.tracking.config import FileMirror, Tracking
from sft_lab.tracking.tracked_run import TrackedRun

SHORT = ["trainer.max_steps=4", "evaluation.prompts=[Hello]", "evaluation.general=null", "evaluation.outputs=0",
         "evaluation.baseline.examples=0", "evaluation.baseline.system_prompt=null"]  # fmt: skip

NEEDS_TRACKIO = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def hyperparameters(events: EventAccumulator) -> dict[str, Any]:
    """Return the plug-in's records by their names."""
    contents = events.PluginTagToContent("hparams")
    return {name: HParamsPluginData.FromString(content) for name, content in contents.items()}


@pytest.mark.slow
def test_a_sweep_beside_wandb(here: Path, tiny: list[str]) -> None:
    axis = "trainer.learning_rate=1e-3,2e-3"
    assert main(["-m", *tiny, *SHORT, "tracking=[wandb,tensorboard]", axis, "hydra.sweep.dir=sweep"]) == 0
    assert len(list(Path("sweep/wandb").glob("offline-run-*"))) == 2

    jobs = [RunDir(path.parent) for path in sorted(Path("sweep").glob("*/summary.json"))]
    assert len(jobs) == 2
    for rate, job in zip((1e-3, 2e-3), jobs, strict=True):
        events = read_events(job.tensorboard)
        lines = [json.loads(line) for line in job.metrics.read_text().splitlines()]
        for name in {name for line in lines for name in line} - {"step", "epoch"}:
            written = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
            assert scalars(events, name) == written, name
        assert scalars(events, "train/epoch")[-1] == (4, pytest.approx(lines[-1]["epoch"]))

        summary = json.loads(job.summary.read_text())
        assert scalars(events, "objective") == [(4, pytest.approx(summary["objective"]))]
        (text,) = events.Tensors("summary/text_summary")
        assert f"| verdict | {summary['verdict']} |" in text.tensor_proto.string_val[0].decode()
        assert "waterfall/text_summary" in events.Tags()["tensors"]

        records = hyperparameters(events)
        start = records["_hparams_/session_start_info"].session_start_info.hparams
        assert start["trainer.learning_rate"].number_value == rate
        assert start["dedup.kind"].string_value == "exact"
        assert "_hparams_/session_end_info" in records


def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    """What was logged behind the checkpoint is taken out; a run that begins anew leaves nothing of the first."""
    folder = RunDir(tmp_path / "run")

    def train(first_step: int, last_step: int, loss: float, *, fails: bool = True) -> list[tuple[int, float]]:
        mirror = Tracking({"tensorboard": FileMirror()}).start(
            TrackedRun(folder, "id", {"seed": 1}, first_step=first_step)
        )
        for step in range(first_step + 1, last_step + 1):
            mirror.log({"step": step, "epoch": 0.0, "train/loss": loss})
        assert bool(mirror.finish(None if fails else {"objective": 1.0, "verdict": "healthy"}))
        events = read_events(folder.tensorboard)
        assert ("_hparams_/session_end_info" in hyperparameters(events)) != fails
        return scalars(events, "train/loss")

    assert train(0, 3, 4.0) == [(1, 4.0), (2, 4.0), (3, 4.0)]
    assert train(2, 4, 5.0) == [(1, 4.0), (2, 4.0), (3, 5.0), (4, 5.0)]
    assert train(0, 2, 6.0, fails=False) == [(1, 6.0), (2, 6.0)]


@pytest.mark.parametrize(
    ("override", "kind", "mirrors", "choice"),
    [
        ("tracking=tensorboard", "local", ["tensorboard"], "tensorboard"),
        ("tracking=[tensorboard]", "local", ["tensorboard"], ["tensorboard"]),
        ("tracking=[wandb,tensorboard]", "wandb", ["tensorboard"], ["wandb", "tensorboard"]),
        ("tracking=[tensorboard,wandb]", "wandb", ["tensorboard"], ["wandb", "tensorboard"]),
        pytest.param("tracking=trackio", "local", ["trackio"], "trackio", marks=NEEDS_TRACKIO),
        pytest.param(
            "tracking=[trackio,tensorboard]",
            "local",
            ["trackio", "tensorboard"],
            ["trackio", "tensorboard"],
            marks=NEEDS_TRACKIO,
        ),
        pytest.param("tracking=[wandb,trackio]", "wandb", ["trackio"], ["wandb", "trackio"], marks=NEEDS_TRACKIO),
        ("tracking=[wandb]", "wandb", [], ["wandb"]),
        ("tracking=[]", "local", [], ["local"]),
        ("tracking=local", "local", [], "local"),
    ],
)
def test_options_are_chosen_in_any_order(override: str, kind: str, mirrors: list[str], choice: Any) -> None:
    run = compose([override])
    saved = run.saved()
    assert (saved["tracking"]["kind"], list(saved["tracking"]["mirrors"])) == (kind, mirrors)
    assert run.choices["tracking"] == choice
    assert from_saved(saved, "config.yaml").saved() == saved
    assert run.hash == compose([]).hash


def test_keys_of_wandb_stay_where_they_are_beside_others() -> None:
    run = compose(["tracking=[wandb,tensorboard]", "tracking.project=mine", "tracking.notes=7"])
    assert (run.saved()["tracking"]["project"], run.saved()["tracking"]["notes"]) == ("mine", "7")
