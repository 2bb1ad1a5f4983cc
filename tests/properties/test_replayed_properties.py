"""A replay of a replay is the run: equal hash, equal bytes of config, equal numbers, verdict and evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft_lab import compose
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.core.types import Work
from sft_lab.jobs.replay import replay
from sft_lab.jobs.result_numbers import read_result

pytestmark = pytest.mark.slow

TRAPS = ["no", "1e3", "12:30:00", "👩‍👩‍👧 \u202eabc", "e\u0301", "a\nb: c # d"]


def told(folder: RunDir) -> dict[str, Any]:
    """What a run says of itself that a replay must say too."""
    return {
        "config": folder.config.read_bytes(),
        "job": read_json(folder.manifest)["job"],
        "result": read_result(folder, Work.RUN),
        "samples": folder.samples.read_bytes(),
        "outputs": folder.outputs.read_bytes(),
        **{name: read_json(folder.summary)[name] for name in ("verdict", "evidence", "advice")},
    }


def test_a_replay_of_a_replay_is_the_same(here: Path, tiny: list[str]) -> None:
    rows = [{"prompt": f"Say {n}, {TRAPS[n % 6]}", "completion": f"{n}: {TRAPS[n % 5]}."} for n in range(130)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["dataset=file", "dataset.path=rows.jsonl", "trainer.sft_config={logging_first_step: true}",
           "evaluation.prompts=['no','12:30:00','\u202eabc 👩‍👩‍👧']"]  # fmt: skip
    run = compose([*tiny, *own])
    run.execute("run")
    # Each with a store of its own, so that everything is computed again.
    known = told(RunDir(Path("run")))
    before = Path("run")
    for name in ("first", "second"):
        done = replay(before, [f"store.path={here / name}-store"], out=here / name)
        assert done.result == []
        assert not done.changed
        found = told(done.folder)
        store = str(here / f"{name}-store").encode()
        assert found.pop("config").replace(store, b"null") == (here / "run" / "config.yaml").read_bytes()
        assert found == {key: value for key, value in known.items() if key != "config"}
        assert found["job"] == run.hash
        before = done.folder.path
    again = replay(before, ["store.path=null"], out=here / "third")
    assert told(again.folder) == known
