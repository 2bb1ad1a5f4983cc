"""Each experiment that shows a sign on purpose ends with the verdict it is named after; really run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_lab.cli.main import main
from sft_lab.report.html_report import VERDICTS

pytestmark = pytest.mark.slow

SIGNS = sorted(
    path.stem.removeprefix("sign_") for path in (Path(__file__).parents[2] / "experiments").glob("sign_*.yaml")
)


def test_there_is_one_for_every_verdict() -> None:
    assert set(SIGNS) == VERDICTS.keys() - {"not_judged"}


@pytest.mark.parametrize("sign", SIGNS)
def test_the_sign_is_found(sign: str, here: Path) -> None:
    assert main([f"+experiment=sign_{sign}", "tracking=local", "hydra.run.dir=run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["verdict"] == sign
    assert (summary["advice"] is None) == (sign == "healthy")
