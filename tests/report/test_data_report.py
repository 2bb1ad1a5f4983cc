"""The data part of the report: figures and page sections made from ``data.json``."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_lab.core.io import write_json
from sft_lab.core.run_dir import RunDir
from sft_lab.report import data_figures, figures, html_report

pytestmark = pytest.mark.filterwarnings("error")

HOSTILE = "<script>alert('x')</script>"
ARABIC = "عاصمة فرنسا هي باريس (Paris)."


def lengths(*counts: int, mean: float = 61.2, highest: int = 90) -> dict[str, Any]:
    return {"counts": list(counts), "mean": mean, "median": 30, "p90": 80, "max": highest}


def pair(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "12-ab", "nearest": "3-cd", "score": 0.953, "text": text, "nearest_text": f"{text} too", **more}


BEFORE = {"prompt": lengths(9, 1, 0, highest=1900), "answer": lengths(2, 7, 1), "both": lengths(0, 6, 4)}
AFTER = {"prompt": lengths(5, 1, 0, mean=40.4), "answer": lengths(2, 4, 0), "both": lengths(0, 6, 0)}
SCRIPTS = [
    {"script": name, "counts": [count, 0, 1], "below": 3}
    for count, name in enumerate(["LATIN", "ARABIC", "CJK", "GREEK", "HEBREW", "THAI", ""])
]
DATA: dict[str, Any] = {
    "notices": [f"34% of the held-out rows would be dropped by {HOSTILE}"],
    "sources": [{"source": f"chats {HOSTILE}", "before": 8, "after": 6}, {"source": ARABIC, "before": 2, "after": 0}],
    "tokens": {"edges": [0, 32, 64, 96], "limit": 64, "before": BEFORE, "after": AFTER},
    "languages": [
        {"code": "en", "language": "English", "before": 8, "after": 5},
        {"code": "", "language": "", "before": 2, "after": 1},
    ],
    "similarity": {"measure": "cosine", "edges": [0.7, 0.8, 0.9, 1.0], "scripts": SCRIPTS},
    "thresholds": {
        "measure": "cosine", "chosen": 0.95, "keep": "first", "kept": 6, "rows": 9,
        "curve": [[0.7, 4], [0.95, 6], [1.0, 9]],
    },
    "pairs": {
        "dropped": [pair(f"{HOSTILE} costs $5 or $6"), pair(ARABIC), pair(""), pair("fourth"), pair("fifth")],
        "kept": [pair("a\n    b", score=0.94)],
    },
    "contaminated": [pair("held $x_1$", reason="near_held_out"), pair("equal", score=None)],
    "longest": [{"id": "7-aa", "tokens": 900, "prompt": f"long {HOSTILE}", "answer": ARABIC}],
    "shortest": [{"id": "8-bb", "tokens": 2, "prompt": "hi", "answer": ""}],
}  # fmt: skip
PARTS_OF_THE_PAGE = {
    "notices": "of the held-out rows would be dropped",
    "sources": "<h3>Sources</h3>",
    "tokens": "90% within",
    "languages": "<h3>Languages</h3>",
    "similarity": "Similarity to the nearest neighbor",
    "thresholds": "0.95 was chosen and keeps 6 of 9",
    "pairs": "Dropped, nearest to the threshold",
    "contaminated": "Training rows that equal or resemble held-out rows",
    "longest": "Longest rows",
    "shortest": "Shortest rows",
}
FIGURES = ["tokens.svg", "thresholds.svg", "similarity.svg"]
SECTIONS = ("What became of the rows", "Before and after", "Near-duplicates", "How training went")


def folder_with(root: Path, data: dict[str, Any]) -> RunDir:
    folder = RunDir(root / "2026-11-22" / "prepared")
    write_json(folder.data, data)
    return folder


def html_of(root: Path, data: dict[str, Any]) -> str:
    return html_report.write_report(folder_with(root, data)).read_text(encoding="utf-8")


def text_of(path: Path) -> str:
    """What is written in a figure; a space between two texts."""
    return " ".join(ET.parse(path).getroot().itertext())


class Balanced(HTMLParser):
    """Fails on an element closed in the wrong place or not at all."""

    VOID = ("meta", "link", "wbr", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """An SVG element without content."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return html_of(tmp_path_factory.mktemp("data"), DATA)


def test_all_parts_on_one_page(whole: str) -> None:
    for expected in (*PARTS_OF_THE_PAGE.values(), "61 → </span>40", "1,900 → </span>90", "near held out", "2 more"):
        assert expected in whole
    assert whole.count("<svg") == 3
    assert whole.count("undetermined") == 1


def test_the_page_is_well_formed_and_needs_nothing_beside_it(whole: str) -> None:
    parser = Balanced()
    parser.feed(whole)
    assert parser.open == []
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", whole)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    ids = re.findall(r' id="([^"]+)"', whole)
    assert len(ids) == len(set(ids))


def test_what_comes_from_data_is_escaped_and_has_its_own_direction(whole: str) -> None:
    assert "<script" not in whole
    assert whole.count("&lt;script&gt;") == 5  # notice, source, both texts of a pair, a long prompt
    assert f"<td><bdi>{ARABIC}</bdi></td>" in whole
    assert f'dir="auto">{ARABIC}</div>' in whole
    assert 'dir="auto">a\n    b</div>' in whole
    assert "costs $5 or $6" in whole


@pytest.mark.parametrize("part", ["tokens", "thresholds", "similarity", "pairs"])
def test_a_missing_part_leaves_nothing_behind(tmp_path: Path, part: str) -> None:
    folder = folder_with(tmp_path, {**DATA, part: None})
    html = html_report.write_report(folder).read_text(encoding="utf-8")
    assert [name for name, text in PARTS_OF_THE_PAGE.items() if text not in html] == [part]
    assert {path.name for path in folder.figures.glob("*")} == set(FIGURES) - {f"{part}.svg"}


@pytest.mark.parametrize("part", PARTS_OF_THE_PAGE)
def test_a_part_alone_has_its_section_and_no_other(tmp_path: Path, part: str) -> None:
    html = html_of(tmp_path, {part: DATA[part]})
    assert [name for name, text in PARTS_OF_THE_PAGE.items() if text in html] == [part]
    assert sum(f"<h2>{heading}</h2>" in html for heading in SECTIONS) == 1


def test_the_threshold_chart_says_how_many_rows_it_covers(tmp_path: Path) -> None:
    note = "The threshold applies to"
    for number, compared in enumerate((2, 9)):
        html = html_of(tmp_path / str(number), {"thresholds": {**DATA["thresholds"], "compared": compared}})
        assert (f"keeps 6 of 9. {note} 2 of these rows; the rest are" in html) == (compared < 9)
        assert (note in html) == (compared < 9)


@pytest.mark.parametrize("data", [{}, {part: type(content)() for part, content in DATA.items()}])
def test_without_data_there_is_no_section(tmp_path: Path, data: dict[str, Any]) -> None:
    assert "<h2>" not in html_of(tmp_path, data)


def test_the_data_stand_before_the_training(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, DATA)
    folder.metrics.write_text('{"step": 1, "train/loss": 2.0}\n', encoding="utf-8")
    html = html_report.write_report(folder).read_text(encoding="utf-8")
    places = [html.index(f"<h2>{heading}</h2>") for heading in SECTIONS]
    assert places == sorted(places)


def test_draw_answers_the_data_figures_too(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, DATA)
    assert [path.name for path in figures.draw_figures(folder)] == FIGURES
    tokens, thresholds, similarity = (text_of(folder.figures / name) for name in FIGURES)
    for label in ("before, 10 rows", "after, 6 rows", "limit 64", "tokens of the prompt", "tokens of both"):
        assert label in tokens
    for label in ("rows kept with keep=first", "chosen: 0.95 keeps 6", "threshold (cosine)"):
        assert label in thresholds
    # ordered by texts; three of seven scripts share the last panel
    for label in (
        "No letters: 10 texts, 30% with no neighbor at 0.70 or above", "Thai: 9 texts", "Hebrew: 8 texts",
        "Greek: 7 texts", "3 others: 15 texts, 60%", "the threshold, 0.95",
    ):  # fmt: skip
        assert label in similarity
    assert "Latin" not in similarity


def similar(*counts: int, below: int) -> dict[str, Any]:
    edges = [0.7 + 0.1 * number for number in range(len(counts) + 1)]
    return {"similarity": {"edges": edges, "scripts": [{"script": "LATIN", "counts": list(counts), "below": below}]}}


ONE = {"prompt": lengths(1), "answer": lengths(1), "both": lengths(1)}
NO_ROWS = {name: lengths(0, 0, 0) for name in BEFORE}


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"tokens": {"edges": [0, 32], "limit": None, "before": ONE, "after": ONE}}, FIGURES[:1]),
        ({"tokens": {"edges": [0, 32], "limit": 5, "before": ONE, "after": None}}, FIGURES[:1]),
        ({"tokens": {**DATA["tokens"], "limit": 96}}, FIGURES[:1]),
        ({"tokens": {**DATA["tokens"], "limit": 4096, "after": NO_ROWS}}, FIGURES[:1]),
        ({"tokens": {**DATA["tokens"], "before": {}}}, FIGURES[:1]),
        ({"tokens": {**DATA["tokens"], "before": {"answer": BEFORE["answer"], "both": None}}}, FIGURES[:1]),
        ({"tokens": {**DATA["tokens"], "before": NO_ROWS, "after": NO_ROWS}}, []),
        ({"thresholds": {"chosen": 0.95, "kept": 1, "curve": [[0.95, 1]]}}, FIGURES[1:2]),
        ({"thresholds": {"chosen": None, "kept": None, "curve": [[0.9, 0], [1.0, 0]]}}, FIGURES[1:2]),
        ({"thresholds": {"chosen": 0.95, "curve": []}}, []),
        (similar(0, below=1), FIGURES[2:]),
        (similar(0, below=0), []),
        (similar(1, 1, 900, below=0), FIGURES[2:]),
        ({"similarity": {"edges": [0.7, 1.0], "scripts": []}}, []),
    ],
)
def test_figures_at_the_edges(tmp_path: Path, data: dict[str, Any], names: list[str]) -> None:
    folder = folder_with(tmp_path, data)
    html_report.write_report(folder)
    assert {path.name for path in folder.figures.glob("*")} == set(names)


@pytest.mark.parametrize("limit", [None, 1, 5_000, 10_000])
def test_a_long_tail_shares_one_bar_that_says_from_where(tmp_path: Path, limit: int | None) -> None:
    counts = [90] * 10 + [1] * 100
    side = {"both": lengths(*counts)}
    edges = [64 * number for number in range(111)]
    folder = folder_with(tmp_path, {"tokens": {"edges": edges, "limit": limit, "before": side, "after": side}})
    text = text_of(figures.draw_figures(folder)[0])
    assert "≥ 640" in text
    assert ("limit 5,000 →" in text) == (limit == 5_000)  # beyond the bars of their own


def test_dollar_signs_begin_no_formula(tmp_path: Path) -> None:
    scripts = [{"script": "$_A$", "counts": [1], "below": 1}]
    folder = folder_with(tmp_path, {"similarity": {"measure": "$c$", "edges": [0.5, 1.0], "scripts": scripts}})
    text = text_of(figures.draw_figures(folder)[0])
    assert "$_a$: 2 texts" in text
    assert "($c$)" in text


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=200),
    limit=st.none() | st.integers(1, 10_000),
)
def test_bars_show_most_rows_and_are_few(counts: list[int], limit: int | None) -> None:
    counts[0] += 1  # no figure is drawn of no row
    edges = [32.0 * number for number in range(len(counts) + 1)]
    per_bar, bars = data_figures.choose_bars(edges, counts, limit)
    assert 1 <= bars <= data_figures.MAX_BARS
    assert bars * per_bar <= len(counts)
    in_bars, last_partial = sum(counts[: bars * per_bar]), sum(counts[bars * per_bar :][:per_bar])
    assert in_bars + last_partial >= data_figures.BINNED_SHARE * sum(counts)
