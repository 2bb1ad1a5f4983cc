"""compare.html needs no other file, runs nothing, and filters in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from job_folders import nats_of, write_grid, write_job
from patience import PATIENCE

from sft_lab.compare import analyze, charts, collect_jobs, write_comparison

HOSTILE = "<script>document.title='x'</script>\"'</style>"
ARABIC = "عاصمة فرنسا هي باريس"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_page(path: Path, folder: Path | None = None) -> Path:
    return write_comparison(analyze(collect_jobs([path])), folder or path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_grid(tmp_path_factory.mktemp("grid") / "sweep-1a2b")
    write_job(root / "broken", state="failed", error=f"JobError: {HOSTILE}\nmore", seed=3)
    return write_page(root)


@pytest.fixture(scope="module")
def html(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_page_has_all_its_parts(html):
    for heading in ("Jobs", "Loss curves", "The effect of each axis", "How far from the lowest loss", "Gap and data",
                    "What the models say", "Before you rely on it"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in html
    assert html.count('<tr class="job ') == 13
    assert html.count('<tr class="base-row">') == 1
    assert html.index('<tr class="base-row">') < html.index('<tr class="job ')
    assert html.count('class="star"') >= 2  # in the table and above the samples
    assert "All jobs kept the same 90 training rows" in html


def test_it_needs_no_other_file_and_runs_nothing(html):
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert "learning_rate%3D0.001-dedup%3Dexact-seed%3D1/report.html" in links
    assert all(not re.match(r"[a-z]+:|/", link) or link.startswith("data:") for link in links)
    assert "<script" not in html
    assert "@import" not in html
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html


def test_links_lead_from_the_page_to_the_reports(tmp_path):
    write_job(tmp_path / "runs" / "a b%", nats_of())
    html = write_page(tmp_path / "runs", tmp_path / "out").read_text()
    assert 'href="../runs/a%20b%25/report.html"' in html


def test_what_comes_from_data_is_escaped(tmp_path):
    write_job(tmp_path / "a", nats_of(), dataset__path=HOSTILE, tuned=HOSTILE, prompt=f"{HOSTILE} {ARABIC}")
    write_job(
        tmp_path / "b", nats_of(1.1), dataset__path="x", trainer__note=HOSTILE,
        summary={"verdict": HOSTILE}, choices__dedup=HOSTILE, dedup={"kind": "none"},
    )  # fmt: skip
    write_job(tmp_path / f"c {HOSTILE}".replace("/", "|"), state="failed", error=HOSTILE)
    html = write_page(tmp_path).read_text()
    assert "<script" not in html
    assert html.count("</style>") == 1
    assert html.count("&lt;script&gt;") >= 5
    assert f'dir="auto">{HOSTILE}'.replace("<", "&lt;")[:20] in html


@pytest.mark.parametrize(
    "losses", [[], [None], [float("nan")], [2.0], [2.0, None, 1.0], [0.0, 0.0], [2.0, 900.0], [-1.0, 1e-9]]
)
def test_curves_at_the_edges(losses):
    points = [(float(step), float("nan") if loss is None else loss) for step, loss in enumerate(losses)]
    chart = charts.draw_curves("curves", "label", [charts.JobMark("j0", "job", points)], [2.5], "nats")
    assert (chart is None) == (not any(loss is not None and loss == loss for loss in losses))
    assert "nan" not in str(chart).lower()


def test_a_long_curve_is_thinned_and_keeps_its_end():
    points = [(float(step), step / 10) for step in range(10_001)]
    thinned = charts.thin_curve(points)
    assert len(thinned) <= charts.MAX_POINTS + 1
    assert thinned[-1] == points[-1]
    assert all(abs(y - x / 10) < 1e-6 for x, y in thinned)


def test_a_diverged_job_does_not_flatten_the_others():
    assert charts.find_y_range([2.0, 2.1, 40.0, 2.5], [2.5]) == pytest.approx((1.96, 2.79), abs=0.01)
    assert charts.find_y_range([2.0, 2.1, 2.5], [2.5])[1] == pytest.approx(2.525)


@pytest.mark.slow
def test_a_fifty_job_sweep_stays_small(tmp_path):
    for number in range(50):
        rate = 1e-5 * 1.2**number
        write_job(tmp_path / f"{number}", nats_of(1 + number / 500), trainer__learning_rate=rate)
    page = write_page(tmp_path)
    assert page.stat().st_size < 400_000


def chromium(page: Path, folder: Path) -> str:
    """Return the page's document as Chromium sees it."""
    assert CHROMIUM is not None
    process = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}", "--virtual-time-budget=2000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    return process.stdout


# Counts what the browser shows. The page itself may run nothing, so a copy with another policy runs this.
COUNT_VISIBLE = """<script>
const all = (selector) => [...document.querySelectorAll(selector)];
const visible = (selector) => all(selector).filter((element) => getComputedStyle(element).display != "none").length;
const parts = {rows: "tr.job", curves: "svg .curve", samples: ".strip article.job", settings: ".distances tbody tr"};
const count = () => Object.entries(parts).map(([name, selector]) => name + "=" + visible(selector)).join(" ");
const color = () => getComputedStyle(document.querySelector("tr.job .swatch i")).backgroundColor;
const states = [count()];
const box = (name) => all(".chip").find((chip) => chip.innerText.trim() == name).querySelector("input");
box("0.0001").click(); states.push(count());
box("exact").click(); states.push(count());
box("0.0001").click(); box("exact").click(); states.push(count());
const before = color();
document.querySelector(".by input:not(:checked)").click();
states.push("color " + (before == color() ? "stays" : "changes"));
states.push("wider " + (document.documentElement.scrollWidth > document.documentElement.clientWidth));
document.title = states.join(" | ");
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_chromium_the_page_shows_and_filters(page, html, tmp_path):
    dom = chromium(page, tmp_path / "plain")
    assert dom.count('<tr class="job ') == 13
    assert "<svg" in dom
    copy = tmp_path / "copy.html"
    copy.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", html).replace("</body>", f"{COUNT_VISIBLE}</body>"))
    title = re.search(r"<title>(.*?)</title>", chromium(copy, tmp_path / "copy"))
    assert title is not None
    assert title.group(1).split(" | ") == [
        "rows=13 curves=26 samples=12 settings=5",
        "rows=8 curves=16 samples=8 settings=3",  # the failed job has the rate of 1e-4 too
        "rows=4 curves=8 samples=4 settings=2",
        "rows=13 curves=26 samples=12 settings=5",
        "color changes",
        "wider false",
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_chromium_a_hostile_page_runs_nothing(tmp_path):
    write_job(tmp_path / "a", nats_of(), tuned=HOSTILE, prompt=HOSTILE, summary={"verdict": HOSTILE})
    page = write_page(tmp_path)
    page.write_text(page.read_text().replace("</body>", "<script>document.title='ran'</script></body>"))
    assert "<title>ran</title>" not in chromium(page, tmp_path / "profile")
