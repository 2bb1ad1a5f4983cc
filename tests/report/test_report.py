"""The report package reads real run folders, written here as a run writes them."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sft_lab.core.errors import FolderError
from sft_lab.core.io import write_json, write_text
from sft_lab.core.run_dir import RunDir
from sft_lab.core.tolerant_readers import read_lines
from sft_lab.report import card, figures, formatting, html_report

HOSTILE = "<script>alert('x')</script>"
ARABIC = "عاصمة فرنسا هي باريس (Paris)."
CONFIG = """format: 1
dataset: {kind: hub, name: theblackcat102/sharegpt-english, path: /srv/sara/secret/rows.jsonl}
filter: {pattern: {kind: pattern, drop: [/etc/passwd]}}
model: {kind: pretrained, name_or_path: HuggingFaceTB/SmolLM2-135M}
trainer: {kind: lora, learning_rate: 0.0002}
store: {path: /srv/sara/cache}
"""
STAGES = [
    {
        "stage": "load", "rows_in": 2000, "rows_kept": 1217, "tokens_in": 9000, "tokens_kept": 9000,
        "dropped": {"begins_with_assistant": 768, "empty": 15},
    },
    {
        "stage": "dedup.semantic", "rows_in": 1217, "rows_kept": 1200, "tokens_in": 9000, "tokens_kept": 8800,
        "dropped": {f"odd $ _reason {HOSTILE}": 17},
    },
]  # fmt: skip
HELD_OUT = [
    {"stage": "usable", "rows_in": 120, "rows_kept": 111, "tokens_in": 900, "tokens_kept": 800, "dropped": {"long": 9}}
]
EVENTS: list[dict[str, Any]] = [
    {"step": 0, "epoch": 0.0, "eval/loss": 2.4, "eval/bits_per_byte": 0.9},
    {"step": 10, "epoch": 0.5, "train/loss": 2.1, "train/learning_rate": 1e-4, "train/grad_norm": 1.2},
    {"step": 10, "epoch": 0.5, "eval/loss": 2.0, "eval/bits_per_byte": 0.8},
    {"step": 20, "epoch": 1.0, "train/loss": 1.8, "train/learning_rate": 5e-5, "train/grad_norm": 1.1},
    {"step": 20, "epoch": 1.0, "eval/loss": 1.8, "eval/bits_per_byte": 0.7},
]
SUMMARY: dict[str, Any] = {
    "eval/loss": 1.8, "base/eval_loss": 2.4, "eval/bits_per_byte": 0.7, "base/eval_bits_per_byte": 0.9,
    "train/loss": 1.8, "train/probe_loss": 1.7, "gap": 0.1, "best_step": 20, "best_eval_loss": 1.8, "converged_at": 20,
    "verdict": "undertrained",
    "evidence": [{"rule": "undertrained", "value": 0.1, "limit": 0.01, "says": "held-out loss changed by -10.0%"}],
    "tokens_per_second": 151.7, "watching_share": 0.2, "objective": 0.7, "steps": 20, "epochs": 1.0,
    "train_rows": 751, "train_tokens": 98304, "eval_rows": 111, "seconds": 812.4,
}  # fmt: skip
SAMPLES = [
    {"prompt": f"Say {HOSTILE}", "base": '<a href="https://a.example">x</a>', "prompted_base": "", "tuned": "a\n    b"},
    {"prompt": "ما هي عاصمة فرنسا؟", "base": "?", "prompted_base": "Paris\u2028", "tuned": ARABIC},
]
MANIFEST: dict[str, Any] = {
    "command": "sft-lab dedup.threshold=0.9", "git": {"commit": "c0ffee", "dirty": True},
    "packages": {"trl": "1.16.0"}, "dataset_fingerprint": "d" * 64, "held_out_fingerprint": "e" * 64,
    "stages": [{"stage": "load", "key": "a" * 64, "hit": True, "seconds": 0.2}],
    "seed": 42, "threads": 2, "hardware": {"processor": "abacus", "cores": 2, "gpus": []},
    "started": "2026-11-22T01:26:04+00:00", "finished": "2026-11-22T01:39:36+00:00", "precision": "bf16",
}  # fmt: skip

Make = Callable[..., RunDir]
PARTS = ("waterfall", "metrics", "summary", "samples", "manifest")


def maker(root: Path) -> Make:
    """Give what writes a run folder: config, and those of the other parts that are named."""

    def write(*parts: str, **other: Any) -> RunDir:
        folder = RunDir(root / "outputs" / "2026-11-22" / "01-26-04")
        content: dict[str, Any] = {
            "waterfall": {"stages": STAGES, "held_out": HELD_OUT},
            "metrics": EVENTS,
            "summary": SUMMARY,
            "samples": SAMPLES,
            "manifest": MANIFEST,
        }
        write_text(folder.config, CONFIG)
        for name in (*parts, *other):
            path: Path = getattr(folder, name)
            value: Any = other[name] if name in other else content[name]
            if path.suffix == ".jsonl":
                write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in value))
            else:
                write_json(path, value)
        return folder

    return write


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run with every part."""
    # It is written before the run is marked finished.
    return html_of(maker(tmp_path_factory.mktemp("whole"))(*PARTS, status={"state": "running"}))


def html_of(folder: RunDir) -> str:
    return html_report.write_report(folder).read_text(encoding="utf-8")


def test_a_run_named_by_its_time_is_titled_by_its_choices(make: Make) -> None:
    folder = make("summary")
    write_text(folder.config, CONFIG + "choices: {dataset: file, dedup: exact, model: local, trainer: lora}\n")
    overrides = ["model=local", "model.name_or_path=HuggingFaceTB/SmolLM2-135M", "trainer.learning_rate=0.0002"]
    overrides.append(f"template.special_tokens=[{'x' * 40}]")
    write_text(folder.hydra / "overrides.yaml", yaml.safe_dump(overrides))
    html = html_of(folder)
    parts = ["sharegpt-english", "exact", "SmolLM2-135M", "lora", "learning_rate=0.0002"]
    assert f">{',<wbr> '.join(f'<bdi>{part}</bdi>' for part in parts)}</h1>" in html
    assert "<bdi>2026-11-22 01-26-04</bdi>" in html


def test_a_whole_run_on_one_page(whole: str) -> None:
    for expected in (
        "<h1><bdi>01-26-04</bdi></h1>", "2026-11-22", "undertrained", "held-out loss changed by -10.0%",
        "2.400 → ", "1.800", "−25.0%, nats per token", "−22.2%, of held-out answers", "+0.100", "13 min 32 s",
        "Of 2,000 conversations, 1,200 are left", "768 begins_with_assistant", "Held-out rows", "9 long",
        "undertrained: yes, since 0.1 is at least 0.01",
        "98,304 tokens read in training: template and every epoch included",
        "dedup.threshold=0.9", "c0ffee", "with uncommitted changes", "from the store", "abacus",
        "learning_rate: 0.0002",
    ):  # fmt: skip
        assert expected in whole
    assert ">running<" not in whole


def test_each_rule_says_whether_and_why_it_holds(make: Make) -> None:
    def rule(name: str, value: float | None, limit: float | None) -> dict[str, Any]:
        return {"rule": name, "value": value, "limit": limit, "says": name}

    evidence = [
        rule("diverged", -0.116, 0.2), rule("overfitting", 0.06, 0.05), rule("underfitting", 0.116, 0.01),
        rule("template_not_learned", 0.75, 0.1), rule("healthy", -0.116, None),
    ]  # fmt: skip
    html = html_of(make(summary={**SUMMARY, "verdict": "healthy", "evidence": evidence}))
    for line in (
        "diverged: no, since −0.116 is below 0.2",
        "overfitting: no, although 0.06 is at least 0.05, since training loss did not keep falling",
        "underfitting: no, since 0.116 is at least 0.01",
        "template not learned: no, since 0.75 is at least 0.1",
    ):
        assert line in html
    assert ": yes" not in html
    short = [rule("not_judged", 1, 3)]
    html = html_of(make(summary={**SUMMARY, "verdict": "not_judged", "evidence": short}))
    assert "not judged: yes, since 1 is below 3" in html


def test_the_page_needs_nothing_beside_it_and_runs_nothing(whole: str) -> None:
    found = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", whole)
    assert found
    assert all(link.startswith(("#", "data:")) for link in found)
    assert "<script" not in whole
    assert "@import" not in whole
    assert "default-src 'none'" in whole


def test_what_comes_from_data_is_escaped_on_the_page(make: Make) -> None:
    folder = make("waterfall", "samples", status={"state": "failed", "error": f"JobError: {HOSTILE}"})
    html = html_of(folder)
    assert html.count("&lt;script&gt;") >= 3  # a sample, a drop reason in the table and in the figure, an error
    assert "<script" not in html
    assert '<a href="https' not in html


def test_every_text_has_its_own_direction_and_its_white_space(whole: str) -> None:
    assert f'dir="auto">{ARABIC}</div>' in whole
    assert 'dir="auto">a\n    b</div>' in whole
    assert "white-space: pre-wrap" in whole


def test_a_name_written_from_right_to_left_turns_nothing_of_ours_round(make: Make) -> None:
    """Names stay at their column's edge, code at its indentation, and numbers stay behind the name they belong to."""
    html = html_of(make("waterfall", status={"state": "failed", "error": "تجربة أولى: 8.3 is too much"}))
    assert '<pre dir="ltr">\u2068تجربة أولى\u2069: 8.3 is too much</pre>' in html
    assert '<pre dir="ltr">format: 1' in html
    assert "<h1><bdi>" in html
    assert formatting.isolate_right_to_left("a تجربة, b, مدن - القاهرة 7 (ب)") == (
        "a \u2068تجربة\u2069, b, \u2068مدن - القاهرة\u2069 7 (\u2068ب\u2069)"
    )


def test_a_file_name_written_from_right_to_left_keeps_its_place_in_a_list(make: Make) -> None:
    folder = make("summary")
    config = "choices: {dataset: file, dedup: exact, trainer: lora}\ndataset: {path: /data/محادثات.jsonl}\n"
    write_text(folder.config, f"format: 1\n{config}")
    write_text(folder.hydra / "overrides.yaml", yaml.safe_dump(["seed=7"]))
    assert "<bdi>محادثات.jsonl</bdi>,<wbr> <bdi>exact</bdi>,<wbr> <bdi>lora</bdi>,<wbr> <bdi>seed=7</bdi></h1>" in (
        html_of(folder)
    )


def test_missing_parts_are_left_out(make: Make) -> None:
    html = html_of(make(status={"state": "failed", "error": "SourceError: rows.jsonl, line 3"}))
    assert "SourceError: rows.jsonl, line 3" in html
    assert "Complete configuration" in html
    for heading in ("What became of the rows", "How training went", "What the models say", "Command", "Held-out loss"):
        assert heading not in html
    assert not list(html_report.write_report(make()).parent.glob("figures/*"))


def test_prepared_data_have_a_page_without_a_verdict(make: Make) -> None:
    html = html_of(make("waterfall", "manifest", status={"state": "finished"}))
    assert "What became of the rows" in html
    assert '<section class="verdict">' not in html
    assert "How training went" not in html


def test_a_run_without_held_out_rows_shows_no_held_out_numbers(make: Make) -> None:
    nothing = {key: None for key in SUMMARY if "eval" in key} | {"gap": None, "best_step": None, "converged_at": None}
    folder = make(summary={**SUMMARY, **nothing, "verdict": "not_judged"}, metrics=EVENTS[1:2])
    html = html_of(folder)
    assert "not judged" in html
    assert "<dt>Held-out loss" not in html
    assert "Best held-out loss" not in card.write_model_card(folder, "").read_text(encoding="utf-8")


def test_an_unknown_verdict_is_shown_as_it_is(make: Make) -> None:
    assert ">brand new<" in html_of(make(summary={"verdict": "brand_new"}))


def test_a_sweeps_job_is_named_by_what_differs(tmp_path: Path) -> None:
    sweep = tmp_path / "threshold_sweep-1a2b"
    write_json(sweep / "sweep.json", {})
    write_text(sweep / "dedup.threshold=0.9-9f8e" / "config.yaml", "format: 1\n")
    html = html_of(RunDir(sweep / "dedup.threshold=0.9-9f8e"))
    assert '<bdi>dedup.threshold=0.9</bdi> <span class="hash">9f8e</span>' in html
    assert "threshold_sweep-1a2b" in html


def test_the_first_dropped_rows_of_each_reason_are_shown(make: Make) -> None:
    folder = make("waterfall")
    columns = {
        "id": [f"row-{number}" for number in range(5)] + ["row-x"],
        "stage": ["load"] * 5 + ["dedup.semantic"],
        "reason": ["empty"] * 5 + [HOSTILE],
        "score": [math.nan] * 5 + [0.97],
        "nearest": [""] * 5 + ["row-y"],
    }
    pq.write_table(pa.table(columns), folder.dropped)
    html = html_of(folder)
    assert "row-2" in html
    assert "row-3" not in html
    assert "0.97" in html
    assert "row-y" in html
    assert "<script" not in html


def test_only_figures_that_this_run_drew_are_shown(make: Make) -> None:
    folder = make("waterfall")
    leads_away = '<meta http-equiv="refresh" content="0; url=https://example.com/elsewhere">'
    for name in ("token_counts", "loss", "waterfall"):
        write_text(folder.figures / f"{name}.svg", f"<svg>{HOSTILE}{leads_away}</svg>")
    html = html_of(folder)
    assert "elsewhere" not in html
    assert 'http-equiv="refresh"' not in html
    assert "<script" not in html
    assert "Token counts" not in html


HOSTILE_RC = {
    "settings": b"font.size: 40\nlines.linewidth: 30\nsvg.fonttype: path\nfigure.dpi: 3\nbackend: module://evil\n"
    b"axes.titlepad: 300\nfigure.facecolor: red\nsavefig.facecolor: red\nsavefig.transparent: True\n",
    "no settings": b"::::\nfont.size\nfont.size: [[[\n",
    "no text": b"font.size: \xff\xfe\n",
}


@pytest.mark.parametrize("name", HOSTILE_RC)
def test_a_matplotlibrc_of_the_working_folder_changes_no_figure(name: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sft_lab.report.style import new_figure, render_svg\n"
        "def draw():\n    figure = new_figure(2); figure.add_subplot().plot([1, 2], label='x'); return figure\n"
        "(Path(sys.argv[1]) / 'one.svg').write_text(render_svg('one', draw))"
    )
    (tmp_path / "strange").mkdir()
    (tmp_path / "clean").mkdir()
    (tmp_path / "strange" / "matplotlibrc").write_bytes(HOSTILE_RC[name])
    strange, clean = (
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / here)], cwd=tmp_path / here, capture_output=True, text=True,
            check=False,
        )
        for here in ("strange", "clean")
    )  # fmt: skip
    assert clean.returncode == 0
    assert (strange.returncode, strange.stderr) == (0, "")
    assert (tmp_path / "strange" / "one.svg").read_text() == (tmp_path / "clean" / "one.svg").read_text()


def test_a_lone_surrogate_does_not_break_the_page(make: Make) -> None:
    folder = make()
    write_text(folder.samples, '{"prompt": "\\ud800", "tuned": "fine"}\n')
    assert "fine" in html_of(folder)


def test_three_figures_with_their_labels(make: Make) -> None:
    written = figures.draw_figures(make("waterfall", "metrics", "summary"))
    assert [path.name for path in written] == ["waterfall.svg", "loss.svg", "optimizer.svg"]
    waterfall, loss, optimizer = ("".join(ET.parse(path).getroot().itertext()) for path in written)
    assert "-768 begins_with_assistant, -15 empty" in waterfall
    assert "_reason" in waterfall  # the dollar sign began no formula
    for label in ("training loss", "held-out loss", "model, 2.400", "best, 1.800 at step 20"):
        assert label in loss
    assert "learning rate" in optimizer
    assert "gradient norm" in optimizer


@pytest.mark.parametrize(
    ("verdict", "converged"), [("healthy", True), ("undertrained", False), ("underfitting", False)]
)
def test_a_loss_still_falling_at_the_end_has_not_converged(make: Make, verdict: str, converged: bool) -> None:
    folder = make("waterfall", "metrics", "summary")
    write_json(folder.summary, {**SUMMARY, "verdict": verdict})
    _, loss, _ = figures.draw_figures(folder)
    assert ("converged at step 20" in loss.read_text()) is converged


NOTHING = {"stage": "load", "rows_in": 0, "rows_kept": 0, "tokens_in": 0, "tokens_kept": 0, "dropped": {}}
# As older runs named them.
DIVERGED = {"step": 10, "epoch": 0.5, "train/loss": None, "learning_rate": 1e-4, "grad_norm": None}


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ({"metrics": EVENTS[1:2]}, ["loss", "optimizer"]),
        ({"metrics": EVENTS[:1]}, ["loss"]),
        ({"metrics": [EVENTS[0], DIVERGED]}, ["loss", "optimizer"]),
        ({"metrics": [DIVERGED]}, ["loss", "optimizer"]),
        ({"metrics": [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 9e9}]}, ["loss"]),
        ({"metrics": [{"step": 1, "train/loss": 0.0}]}, ["loss"]),
        ({"metrics": EVENTS, "summary": {"verdict": None}}, ["loss", "optimizer"]),
        ({"metrics": []}, []),
        ({"waterfall": {"stages": [NOTHING]}}, ["waterfall"]),
        ({"waterfall": {"stages": []}}, []),
    ],
)
@pytest.mark.filterwarnings("error")
def test_figures_at_the_edges(make: Make, parts: dict[str, Any], names: list[str]) -> None:
    folder = make(**parts)
    html = html_of(folder)
    assert sorted(path.stem for path in folder.figures.glob("*.svg")) == sorted(names)
    assert html.count("<svg") == len(names)


def test_a_loss_that_is_no_number_is_marked(make: Make) -> None:
    figures.draw_figures(folder := make(metrics=[*EVENTS, {**DIVERGED, "step": 30}]))
    assert "not a number" in (folder.figures / "loss.svg").read_text(encoding="utf-8")


def test_figures_are_the_same_each_time_and_from_any_thread(make: Make) -> None:
    folder = make("waterfall", metrics=EVENTS[:1])
    before = dict(mpl.rcParams)
    first = [path.read_bytes() for path in figures.draw_figures(folder)]
    with ThreadPoolExecutor(2) as threads:
        drawn = [[path.name for path in paths] for paths in threads.map(figures.draw_figures, [folder] * 2)]
    assert drawn == [["waterfall.svg", "loss.svg"]] * 2
    assert [(folder.figures / name).read_bytes() for name in drawn[0]] == first
    assert dict(mpl.rcParams) == before


def test_ids_in_a_page_are_unique_and_all_links_lead_somewhere(whole: str) -> None:
    ids = re.findall(r' id="([^"]+)"', whole)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', whole)) <= set(ids)


def test_a_line_cut_off_by_a_kill_is_left_out(make: Make) -> None:
    folder = make("metrics")
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 30, "train/lo')
    assert len(read_lines(folder.metrics)) == len(EVENTS)


def test_a_damaged_file_is_named(make: Make) -> None:
    folder = make("metrics")
    write_text(folder.metrics, '{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(FolderError, match=r"metrics\.jsonl, line 2"):
        html_report.write_report(folder)
    folder = make("metrics")
    write_text(folder.summary, "{")
    with pytest.raises(FolderError, match=r"summary\.json"):
        html_report.write_report(folder)


def metadata_of(path: Path) -> dict[str, Any]:
    _, head, _ = path.read_text(encoding="utf-8").split("---\n", 2)
    content: dict[str, Any] = yaml.safe_load(head)
    return content


def test_an_adapters_card(make: Make) -> None:
    folder = make(*PARTS)
    write_json(folder.model / "adapter_config.json", {})
    path = card.write_model_card(folder, "HuggingFaceTB/SmolLM2-135M")
    assert path == folder.model / "README.md"
    assert metadata_of(path) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "sft_lab"],
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "adapter",
        "datasets": ["theblackcat102/sharegpt-english"],
    }
    text = path.read_text(encoding="utf-8")
    for expected in (
        "undertrained, by held-out loss", "held-out loss changed by -10.0%", "| 2.4000 | 1.8000 |", "**Few rows.**",
        "768 begins_with_assistant, 15 empty", "learning_rate: 0.0002", "AutoPeftModelForCausalLM", "sft-lab exec",
        "| trl | 1.16.0 |", "## Limits", "was trained on 751 conversations, fewer than 1,000", "sft-lab merge",
        'from_pretrained("HuggingFaceTB/SmolLM2-135M")', f"| data fingerprint | {'d' * 64} |",
        "GenerationConfig.from_pretrained(path)",
    ):  # fmt: skip
        assert expected in text
    assert "resize_token_embeddings" not in text


def test_an_adapter_with_tokens_of_its_own_says_how_to_make_room_for_them(make: Make) -> None:
    folder = make(*PARTS)
    write_text(folder.config, "template:\n  special_tokens: ['<|im_start|>', '<|im_end|>']\nmodel: {kind: gguf}\n")
    write_json(folder.model / "adapter_config.json", {"trainable_token_indices": {"embed": [7, 8]}, "revision": "v1"})
    text = card.write_model_card(folder, "owner/name").read_text(encoding="utf-8")
    assert "base.resize_token_embeddings(len(tokenizer))  # for <|im_start|> <|im_end|>, which" in text
    assert 'from_pretrained("owner/name", revision="v1")' in text
    assert "came from a quantized file" in text
    assert "On the original weights, the adapter gives" in text


def test_a_merged_models_card(make: Make, tmp_path: Path) -> None:
    folder = make(*PARTS)
    write_json(folder.model / "adapter_config.json", {})
    path = card.write_model_card(folder, "owner/name", tmp_path / "merged")
    assert path == tmp_path / "merged" / "README.md"
    assert metadata_of(path)["base_model_relation"] == "finetune"
    text = path.read_text(encoding="utf-8")
    assert "An adapter merged into the weights of owner/name" in text
    assert "peft" not in text.split("## How to load it")[1].split("## How to reproduce it")[0].lower()


def test_the_sources_of_a_mixture_are_in_the_metadata(make: Make) -> None:
    folder = make(*PARTS)
    write_text(
        folder.config,
        "dataset: {kind: mixture, sources: {a: {name: owner/a}, b: {path: rows.jsonl}, c: {name: owner/c}}}\n",
    )
    assert metadata_of(card.write_model_card(folder, ""))["datasets"] == ["owner/a", "owner/c"]


def test_the_hub_reads_the_card(make: Make) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = make(*PARTS)
    for adapter in (False, True):
        if adapter:
            write_json(folder.model / "adapter_config.json", {})
        found = hub.ModelCard.load(card.write_model_card(folder, "HuggingFaceTB/SmolLM2-135M"))
        assert found.data.library_name == ("peft" if adapter else "transformers")
        assert found.data.base_model == "HuggingFaceTB/SmolLM2-135M"
        assert found.data.base_model_relation == ("adapter" if adapter else "finetune")
        assert found.data.pipeline_tag == "text-generation"
        assert found.data.datasets == ["theblackcat102/sharegpt-english"]


def test_a_card_says_nothing_of_the_machine_it_was_made_on(make: Make) -> None:
    folder = make(*PARTS, summary={**SUMMARY, "train_rows": 1000})
    path = card.write_model_card(folder, "/srv/sara/models/own")
    text = path.read_text(encoding="utf-8")
    assert "base_model" not in metadata_of(path)
    assert "sara" not in text
    assert "rows.jsonl" in text
    assert "/etc/passwd" in text  # a pattern, not a path
    assert "AutoModelForCausalLM" in text
    assert "Few rows" not in text


def test_what_comes_from_data_stays_text_on_the_card(make: Make) -> None:
    stage = {**STAGES[0], "dropped": {f"a|b\n# head {HOSTILE} [x](y)": 3}}
    folder = make(waterfall={"stages": [stage]})
    write_text(folder.config, "trainer:\n  note: |-\n    ```\n    </details>\n")
    text = card.write_model_card(folder, "").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "3 a&#124;b # head &#60;script&#62;" in text
    assert "````yaml\n" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owner/name", True), ("a/b/c", False), ("/tmp/x", False), ("./x", False), ("gpt2", False), ("", False)],
)
def test_names_of_the_hub(name: str, expected: bool) -> None:
    assert card.is_hub_name(name) is expected


def test_a_folder_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not card.is_hub_name("models/own")


def test_a_config_that_is_no_yaml_is_named(make: Make) -> None:
    folder = make()
    write_text(folder.config, "a: [")
    with pytest.raises(FolderError, match=r"config\.yaml: is not YAML"):
        card.write_model_card(folder, "")
    write_text(folder.config, "- a\n")
    with pytest.raises(FolderError, match="must be a mapping, not a list"):
        card.write_model_card(folder, "")


@pytest.mark.parametrize("name", figures.FIGURE_NAMES)
def test_a_figure_left_over_without_its_data_is_neither_shown_nor_kept(make: Make, name: str) -> None:
    folder = make("summary")
    write_text(folder.figures / f"{name}.svg", '<svg><text>left over</text><meta http-equiv="refresh"/></svg>')
    html = html_of(folder)
    assert "left over" not in html
    assert 'http-equiv="refresh"' not in html
    assert not (folder.figures / f"{name}.svg").exists()


def test_a_curve_without_the_chosen_threshold_is_drawn(make: Make) -> None:
    folder = make("summary")
    write_json(folder.data, {"thresholds": {"curve": [[0.7, 3], [1.0, 9]]}})
    assert "How many rows each threshold would keep." in html_of(folder)
