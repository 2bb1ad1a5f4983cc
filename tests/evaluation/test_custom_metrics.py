"""Custom metrics: the package in docs/own_metric.md is installed and measured, and problems are reported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

from sft_lab.cli.main import main
from sft_lab.core.tolerant_readers import read
from sft_lab.evaluation.custom_metrics import measure_custom, origins

PAGE = Path(__file__).parents[2] / "docs" / "own_metric.md"
ROWS = [{"id": "1", "prompt": "a?", "reference": "b c"}, {"id": "2", "prompt": "d?", "reference": "e"}]


def block(language: str) -> str:
    """The page's only block in a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return text


def install(site: Path, source: str, entry: str, name: str = "my-metrics") -> None:
    """A package as an installer leaves it."""
    module = entry.partition("=")[2].partition(":")[0].strip()
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(source, encoding="utf-8")
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sft_lab.metrics]\n{entry}\n")


@pytest.fixture
def site(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, on Python's path; nothing of it stays behind the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(here / "site"))
    yield here / "site"
    for name in set(sys.modules) - before:
        if str(here) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def measured(rows: list = ROWS, answers: tuple[str, ...] = ("b b c", "x")) -> tuple[dict[str, float], list[str]]:
    notices: list[str] = []
    return measure_custom(rows, list(answers), notices.append), notices


def test_no_package_no_number(site: Path) -> None:
    assert measured() == ({}, [])
    assert origins() == {}


def test_the_page_s_metric(site: Path) -> None:
    install(site, block("python"), "words = words:words")
    assert measured() == ({"metrics.words.mean": 2.0, "metrics.words.covered": 0.5}, [])
    assert origins() == {"words": "my-metrics 1.0"}
    numbers, (notice,) = measured([], ())
    assert numbers == {}
    assert notice.startswith("metric words of my-metrics 1.0: not measured, since no held-out prompts are answered")


@pytest.mark.parametrize(
    ("body", "numbers", "problem"),
    {
        "raises": (
            "return {'a': 1 / len(rows[9])}",
            {},
            "failed (IndexError: list index out of range in odd.py, line 2)",
        ),
        "exits": ("raise SystemExit(3)", {}, "failed (SystemExit: 3 in odd.py, line 2); its numbers are left out"),
        "no dict": ("return [1.0]", {}, "returned a list; must return a dict of numbers by name"),
        "NaN": ("return {'a': float('nan'), 'b': 2}", {"b": 2.0}, "a=nan is left out, since it is not a finite number"),
        "infinite": ("return {'a': float('inf')}", {}, "a=inf is left out, since it is not a finite number"),
        "text": ("return {'a': '0.5'}", {}, "a='0.5' is left out, since it is not a finite number"),
        "flag": ("return {'a': True}", {}, "a=True is left out"),
        "nothing": ("return {'a': None}", {}, "a=None is left out"),
        "odd key": (
            "return {'a/b': 1, 3: 1, 'c-d': 1}",
            {"c-d": 1.0},
            "'a/b' is left out, since a name must be letters",
        ),
    }.values(),
)
def test_what_is_wrong_is_reported_and_left_out(site: Path, body: str, numbers: dict[str, float], problem: str) -> None:
    install(site, f"def odd(rows, answers):\n    {body}\n", "odd = odd:odd")
    result, notices = measured()
    assert result == {f"metrics.odd.{key}": value for key, value in numbers.items()}
    assert notices[0].startswith(f"metric odd of my-metrics 1.0: {problem}")


def test_a_metric_changes_nothing_for_the_next(site: Path) -> None:
    spoil = "def a(rows, answers):\n    rows[0].clear()\n    answers.clear()\n    return {}\n"
    install(site, spoil, "a = spoil:a", "first")
    install(site, block("python"), "words = words:words")
    assert measured()[0] == {"metrics.words.mean": 2.0, "metrics.words.covered": 0.5}


def test_numpy_numbers_are_numbers(site: Path) -> None:
    install(
        site,
        "import numpy as np\ndef a(rows, answers):\n    return {'x': np.float32(0.5), 'n': np.int64(3)}\n",
        "a = m:a",
    )
    assert measured() == ({"metrics.a.x": 0.5, "metrics.a.n": 3.0}, [])


def test_one_name_of_two_packages_is_none(site: Path) -> None:
    for name in ("first", "second"):
        install(site, block("python"), f"words = {name}:words", name)
    numbers, notices = measured()
    assert numbers == {}
    assert [notice.partition(":")[0] for notice in notices] == [
        "metric words of first 1.0",
        "metric words of second 1.0",
    ]
    assert "another package has a metric with this name" in notices[0]


def test_a_module_that_cannot_be_imported(site: Path) -> None:
    install(site, "import no_such_module\n", "a = broken:a")
    _, (notice,) = measured()
    assert "failed (ModuleNotFoundError: No module named 'no_such_module' in broken.py, line 1)" in notice


@pytest.mark.slow
def test_a_run_measures_it_and_compare_sorts_by_it(
    site: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, block("python"), "words = words:words")
    install(
        site,
        "def bad(rows, answers):\n    return {'x': [r['id'] for r in rows]['y']}\n",
        "bad = bad:bad",
        "bad-metrics",
    )
    assert main(["-m", *tiny, "trainer.learning_rate=1e-4,1e-2", "evaluation.outputs=3", "hydra.sweep.dir=s"]) == 0
    jobs = sorted(path.parent for path in Path("s").glob("*/config.yaml"))
    summaries = {job.name: read(job / "summary.json") for job in jobs}
    for job in jobs:
        summary = summaries[job.name]
        assert {"metrics.words.mean", "base/metrics.words.mean", "metrics.words.covered"} <= summary.keys()
        assert not [key for key in summary if "bad" in key]
        rows = [json.loads(line) for line in (job / "outputs.jsonl").read_text().splitlines()]
        assert summary["metrics.words.mean"] == sum(len(row["tuned"].split()) for row in rows) / 3
        assert summary["base/metrics.words.mean"] == sum(len(row["base"].split()) for row in rows) / 3
        assert read(job / "manifest.json")["metrics"] == {"bad": "bad-metrics 1.0", "words": "my-metrics 1.0"}
        report = (job / "report.html").read_text()
        assert "<td>words.mean</td>" in report
        assert "metric bad of bad-metrics 1.0: failed (TypeError" in report
    capsys.readouterr()

    def order(*options: str) -> list[str]:
        assert main(["compare", "s", "--rank-by", "metrics.words.mean", *options]) == 0
        record = json.loads(Path("s/compare.json").read_text())
        assert record["base"][0]["metrics.words.mean"] == summaries[jobs[0].name]["base/metrics.words.mean"]
        return [job["job"] for job in record["jobs"]]

    falling = sorted(summaries, key=lambda name: -summaries[name]["metrics.words.mean"])
    assert order() == falling
    shown = capsys.readouterr().out
    assert "sorted by metrics.words.mean, highest first" in shown
    assert "words.covered" in shown
    assert order("--lowest-first") == sorted(summaries, key=lambda name: summaries[name]["metrics.words.mean"])
    assert "Words.covered</th>" in Path("s/compare.html").read_text()
    assert main(["compare", "s", "--rank-by", "metrics.word"]) == 2
    message = "compare --rank-by metrics.word: no job has this number; did you mean metrics.words.mean?"
    assert message in capsys.readouterr().err
    assert main(["compare", "s", "--rank-by", "words.covered"]) == 0  # as its column is called
    assert "sorted by metrics.words.covered" in capsys.readouterr().out
    assert main(["compare", "s", "--lowest-first"]) == 2
    assert "--lowest-first: needs --rank-by" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_s_package_installed(here: Path) -> None:
    (here / "pyproject.toml").write_text(block("toml"))
    (here / "words.py").write_text(block("python"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(here / "site"), str(here)], check=True, timeout=PATIENCE)
    code = "from sft_lab.evaluation.custom_metrics import measure_custom\n"
    code += "print(measure_custom([{'reference': 'a'}], ['a b'], print))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here / "site"), str(PAGE.parents[1])])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "{'metrics.words.mean': 2.0, 'metrics.words.covered': 1.0}\n"
