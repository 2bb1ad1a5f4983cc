"""The report shows a run whatever its numbers are, and shows words as words."""

from __future__ import annotations

import math
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_counts import tried
from hypothesis import given
from hypothesis import strategies as st
from row_strategies import TEXTS

from sft_lab.core.io import write_json, write_lines, write_text
from sft_lab.core.run_dir import RunDir
from sft_lab.report import card, html_report

# matplotlib takes its time; what the figures' font lacks, a user's own reasons may hold, is drawn as boxes.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Glyph")]

NUMBER = st.one_of(
    st.floats(0, 12), st.integers(0, 500), st.none(), st.floats(-1e30, 1e30),
    st.sampled_from([math.nan, math.inf, 0, 0.0, -1.5, 1e-30, 3.4e38]),
)  # fmt: skip
COUNT = st.one_of(st.integers(0, 3), st.integers(0, 10**12))
HOSTILE = st.one_of(
    TEXTS, st.sampled_from(["<script>alert(1)</script>", '"><img src=x onerror=a>', "$\\frac{", "$_", "{{ 7*7 }}"])
)
VERDICT = st.sampled_from([*html_report.VERDICTS, "unheard of", None])


@st.composite
def stages(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = draw(COUNT)
    found = []
    for name in draw(st.lists(HOSTILE, max_size=4)):
        gone = draw(st.integers(0, rows))
        dropped = {draw(HOSTILE): gone} if gone else {}
        found.append({"stage": name, "rows_in": rows, "rows_kept": rows - gone, "tokens_in": draw(COUNT),
                      "tokens_kept": draw(COUNT), "dropped": dropped})  # fmt: skip
        rows -= gone
    return found


EVENT = st.fixed_dictionaries(
    {"step": st.integers(0, 10**6)},
    optional=dict.fromkeys(
        ["train/loss", "eval/loss", "train/probe_loss", "train/learning_rate", "grad_norm", "epoch"], NUMBER
    ),
)
EVIDENCE = st.fixed_dictionaries({"rule": HOSTILE, "value": NUMBER, "limit": NUMBER, "says": HOSTILE})
NAMES = ["eval/loss", "base/eval_loss", "eval/bits_per_byte", "base/eval_bits_per_byte", "train/loss", "gap", "seconds",
         "best_eval_loss", "tokens_per_second", "watching_share", "epochs",
         *(name for name, _, _ in html_report.MEASURES)]  # fmt: skip
SUMMARY = st.fixed_dictionaries(
    {},
    optional={**dict.fromkeys(NAMES, NUMBER),
              **dict.fromkeys(["steps", "train_rows", "train_tokens", "eval_rows", "best_step", "converged_at"],
                              st.none() | COUNT),
              "verdict": VERDICT, "evidence": st.lists(EVIDENCE, max_size=2),
              "advice": st.none() | st.fixed_dictionaries({"says": HOSTILE, "override": HOSTILE})},
)  # fmt: skip
SAMPLE = st.fixed_dictionaries({"prompt": HOSTILE, "base": HOSTILE, "prompted_base": HOSTILE, "tuned": HOSTILE})


class Elements(HTMLParser):
    """Which elements there are."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.acts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.acts += [name for name, _ in attrs if name.startswith("on")]


@tried(4, 150)
@given(stages(), stages(), st.lists(EVENT, max_size=8), SUMMARY, st.lists(SAMPLE, max_size=2), HOSTILE)
def test_any_numbers_and_words_make_a_page(
    train: Any, held_out: Any, events: Any, summary: dict[str, Any], samples: Any, words: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = RunDir(Path(place, "2026-11-22", "01-26-04"))
        write_json(folder.waterfall, {"stages": train, "held_out": held_out})
        write_json(folder.summary, summary)
        write_lines(folder.metrics, events)
        write_lines(folder.samples, samples)
        write_json(folder.status, {"state": "failed", "error": words})
        write_text(folder.config, "format: 1\n")
        score = pa.array([math.nan], pa.float32())
        pq.write_table(
            pa.table({"id": [words], "stage": [words], "reason": [words], "score": score, "nearest": [words]}),
            folder.dropped,
        )
        html = html_report.write_report(folder).read_text(encoding="utf-8")
        card.write_model_card(folder, "owner/model")
    found = Elements()
    found.feed(html)
    assert "script" not in found.seen
    assert found.acts == []
    assert "nan%" not in html
