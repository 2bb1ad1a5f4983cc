"""sft-lab prepare: the data stages alone, what they leave, and that others can use it."""

from __future__ import annotations

import csv
import html
import itertools
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir

MINHASH = ["dedup=minhash", "decontaminate.method=exact", "model=tiny_random", "tracking=local", "threads=1"]


def prepared(overrides: list[str]) -> RunDir:
    assert main(["prepare", *overrides]) == 0
    (folder,) = [path.parent for path in Path.cwd().rglob("status.json")]
    return RunDir(folder)


def talks(path: Path, answers: list[str]) -> Path:
    lines = [{"prompt": f"Tell me about number {n}, please.", "completion": text} for n, text in enumerate(answers)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("count", [60, 5, 1])
def test_rows_too_few_to_train_on_are_shown_all_the_same(
    count: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = talks(here / "rows.jsonl", [f"{LONG}{n}." for n in range(count)])
    words = [*MINHASH, "dedup=none", "dataset=file", f"dataset.path={rows}"]
    folder = prepared([*words, "hydra.run.dir=prepared"])
    shown = capsys.readouterr()
    problem = "training would be refused: split.min_eval_rows=8: only"
    assert shown.err.count(problem) == 1
    assert "Waterfall" in shown.out
    kept = read_json(folder.waterfall)["stages"][-1]["rows_kept"]
    assert 0 < kept <= count
    assert len(datasets.load_from_disk(folder.dataset)["train"]) == kept
    assert read_json(folder.data)["model_rows"]
    assert problem in html.unescape(folder.report.read_text(encoding="utf-8"))
    assert main([*words, "hydra.run.dir=run"]) == 2
    assert "split.min_eval_rows=8: only" in capsys.readouterr().err
    assert not (here / "run").exists()


@pytest.mark.parametrize("words", [["filter.length.max_tokens=3"], ["filter=answered"]])
def test_rows_that_all_fail_a_filter_are_shown_before_the_error(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["" if words == ["filter=answered"] else f"{LONG}{n}." for n in range(60)]
    rows = talks(here / "rows.jsonl", answers)
    job = [*MINHASH, "dataset=file", f"dataset.path={rows}", *words, "hydra.run.dir=prepared"]
    for _ in range(2):  # a failed job is done again
        assert main(["prepare", *job]) == 1
        shown = capsys.readouterr()
        assert shown.err.count("sft-lab: no training rows are left (split dropped") == 1
        assert "Waterfall" in shown.out
        assert "Data set" not in shown.out
        assert ("check that prompts and answers are under keys" in shown.err) == (words == ["filter=answered"])
    folder = RunDir(here / "prepared")
    assert read_json(folder.status)["state"] == "failed"
    assert not folder.dataset.exists()
    assert read_json(folder.waterfall)["stages"][-1]["rows_kept"] == 0
    dropped = pq.read_table(folder.dropped).to_pylist()
    assert {row["reason"] for row in dropped} >= {"held_out", "empty_answer" if "" in answers else "over_max_tokens"}
    assert "rows.jsonl" in folder.report.read_text(encoding="utf-8")


def test_rows_that_fill_no_batch_are_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = talks(here / "rows.jsonl", [f"{LONG}{n}." for n in range(3)])
    words = [*MINHASH, "dataset=file", f"dataset.path={rows}", "split.eval_share=0", "dedup=none"]
    prepared([*words, "trainer.sft_config.dataloader_drop_last=true", "hydra.run.dir=prepared"])
    assert "training would be refused: trainer.per_device_train_batch_size=" in capsys.readouterr().err


def test_records_of_which_none_is_usable_leave_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"from": "gpt", "value": "Hello."}, {"from": "human", "value": "Hi."}]
    (here / "rows.jsonl").write_text(f"{json.dumps({'conversations': turns})}\n" * 9)
    assert main(["prepare", *MINHASH, "dataset=file", "dataset.path=rows.jsonl", "hydra.run.dir=prepared"]) == 2
    error = capsys.readouterr().err
    assert "no usable record (9 records read): 9 begins_with_assistant" in error
    assert "dataset.leading_assistant=cut keeps" in error
    assert [path.name for path in here.iterdir()] == ["rows.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("dedup", ["exact", "none"])
def test_the_advice_about_labels_keeps_the_rows(dedup: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few answers to many prompts: compared by answer, every row equals a held-out one."""
    rows = talks(here / "rows.jsonl", ["positive" if n % 3 else "negative" for n in range(120)])
    words = [*MINHASH, f"dedup={dedup}", "dataset=file", f"dataset.path={rows}"]
    assert main(["prepare", *words, "hydra.run.dir=lost"]) == 1
    errors = capsys.readouterr().err
    advised = ["decontaminate.on=both"] + ["dedup.on=both"] * (dedup != "none")
    advice = f"{' '.join(advised)} compares prompts too"
    assert (
        f"decontaminate drops 100% of the rows, most of them as equals_held_out; if that was not intended, {advice}"
        in errors
    )
    assert f"equals_held_out); {advice}" in errors
    assert any(advice in notice for notice in read_json(Path("lost/data.json"))["notices"])
    assert main(["prepare", *words, *advised, "hydra.run.dir=kept"]) == 0
    stages = {stage["stage"]: stage for stage in read_json(Path("kept/waterfall.json"))["stages"]}
    assert stages["tokenize"]["rows_kept"] == stages["split"]["rows_kept"]
    assert "if that was not intended" not in capsys.readouterr().err


def test_the_advice_about_labels_is_given_by_dedup_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = talks(here / "rows.jsonl", ["Yes." if n % 2 else "No." for n in range(60)])
    prepared([*MINHASH, "dedup=exact", "decontaminate.method=none", "dataset=file", f"dataset.path={rows}",
              "split.eval_share=0.3"])  # fmt: skip
    errors = capsys.readouterr().err
    assert re.search(
        r"dedup\.exact drops 9\d% of the rows, most of them as duplicate; .*dedup\.on=both compares", errors
    )


def test_copies_are_not_advised_to_be_compared_by_prompt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = talks(here / "rows.jsonl", [f"{LONG}{n}." for n in range(20)])
    rows.write_text(rows.read_text() * 3)
    words = [*MINHASH, "dedup=exact", "dataset=file", f"dataset.path={rows}", "split.eval_share=0"]
    prepared(words)
    assert "most of them as duplicate; if that was not intended, dedup=none keeps copies" in capsys.readouterr().err


@pytest.mark.slow
def test_the_advice_about_length_keeps_the_rows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = talks(here / "rows.jsonl", [LONG * (n % 10 + 1) + str(n) for n in range(100)])
    words = [*MINHASH, "dedup=none", "dataset=file", f"dataset.path={rows}"]
    short = ["filter.length.max_tokens=150", "trainer.max_length=200", "split.max_eval_tokens=150"]
    prepared([*words, *short, "split.min_eval_rows=1"])
    match = re.search(
        r"filter\.length drops \d+% of the rows, most of them as over_max_tokens; if that was not intended, "
        r"(filter\.length\.max_tokens=(\d+) trainer\.max_length=(\d+) split\.max_eval_tokens=\2) keeps (\d+)% of the "
        r"rows; dataset\.turns=first shortens a row",
        capsys.readouterr().err,
    )
    assert match
    assert int(match[3]) == int(match[2]) + 256  # room for the template
    assert int(match[4]) >= 95
    assert main(["prepare", *words, *match[1].split(), "hydra.run.dir=longer"]) == 0
    stages = {stage["stage"]: stage for stage in read_json(Path("longer/waterfall.json"))["stages"]}
    assert stages["filter.length"]["rows_kept"] == pytest.approx(
        stages["filter.length"]["rows_in"] * int(match[4]) / 100, abs=1
    )
    first = ["dataset.turns=first", "hydra.run.dir=first"]
    assert main(["prepare", *words, *short, "split.min_eval_rows=1", *first]) == 0
    assert re.search(r"split\.max_eval_tokens=\d+ keeps \d+% of the rows$", capsys.readouterr().err, re.MULTILINE)


def test_rows_too_long_for_training_alone_get_its_key(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = talks(here / "rows.jsonl", [LONG * (n % 10 + 1) + str(n) for n in range(100)])
    words = [*MINHASH, "dedup=none", "dataset=file", f"dataset.path={rows}", "filter=answered", "split.min_eval_rows=1"]
    prepared([*words, "trainer.max_length=200", "split.max_eval_tokens=200"])
    assert re.search(
        r"tokenize drops \d+% of the rows, most of them as over_max_length; if that was not intended, "
        r"trainer\.max_length=\d+ keeps \d+% of the rows; dataset\.turns=first",
        capsys.readouterr().err,
    )


@pytest.mark.slow
def test_a_length_that_a_filter_takes_back_is_noticed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = talks(here / "rows.jsonl", [f"{LONG}{n}." for n in range(60)])
    words = [*MINHASH, "dataset=file", f"dataset.path={rows}", "split.min_eval_rows=1"]
    doubt = (
        "trainer.max_length=4096: filter.length.max_tokens=1024 drops longer rows before training sees them; "
        "filter.length.max_tokens=4096 split.max_eval_tokens=4096 keeps and measures them"
    )
    advised = ["filter.length.max_tokens=4096", "split.max_eval_tokens=4096"]
    for others, expected in ((["trainer.max_length=4096"], 1), (["trainer.max_length=4096", *advised], 0), ([], 0)):
        assert main(["plan", *words, *others]) == 0
        assert capsys.readouterr().out.count(f"Warning: {doubt}") == expected
    folder = prepared([*words, "trainer.max_length=4096"])
    assert capsys.readouterr().err.count(doubt) == 1
    assert doubt in read_json(folder.data)["notices"]


def test_a_learning_rate_that_must_diverge_is_noticed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = talks(here / "rows.jsonl", [f"{LONG}{n}." for n in range(60)])
    for rate, expected in (("1e4", True), ("2e-3", False)):
        assert main(["plan", *MINHASH, f"dataset={rows}", f"trainer.learning_rate={rate}"]) == 0
        output = capsys.readouterr().out
        assert ("Warning: trainer.learning_rate=10000: training will most likely diverge" in output) == expected


LONG = "The river runs past the old mill, under the stone bridge and through the meadows to the sea, slowly, number "


def test_what_prepare_leaves(here: Path) -> None:
    folder = prepared([*MINHASH])
    there = {path.name for path in folder.path.iterdir()}
    assert {"config.yaml", "manifest.json", "status.json", "waterfall.json", "dropped.parquet", "data.json", "dataset",
            "figures", "report.html", "run.log", "review.csv", ".hydra"} == there  # fmt: skip
    status = read_json(folder.status)
    assert (status["state"], status["work"]) == ("finished", "prepare")
    found = read_json(folder.data)
    last = read_json(folder.waterfall)["stages"][-1]["rows_kept"]
    assert sum(found["tokens"]["after"]["both"]["counts"]) == last
    assert sum(one["after"] for one in found["languages"]) == last
    assert {one["code"] for one in found["languages"]} >= {"en", "ar"}
    assert found["thresholds"]["measure"] == "jaccard"
    by_stage = {stage["stage"]: stage for stage in read_json(folder.waterfall)["stages"]}
    dedup = by_stage["dedup.minhash"]
    assert found["thresholds"]["rows"] == found["thresholds"]["compared"] == dedup["rows_in"]
    assert found["thresholds"]["kept"] == dict(found["thresholds"]["curve"])[0.8] == dedup["rows_kept"]
    kept = [rows for _, rows in found["thresholds"]["curve"]]
    assert kept == sorted(kept)
    for name in ("tokens", "thresholds", "similarity", "waterfall"):
        assert (folder.figures / f"{name}.svg").exists()
    page = folder.report.read_text(encoding="utf-8")
    assert 'class="badge' not in page  # no state and no verdict
    assert "Near-duplicates" in page


@pytest.mark.slow
def test_the_threshold_curve_is_what_each_threshold_would_keep(here: Path) -> None:
    rows = talks(here / "rows.jsonl", [f"{LONG}{n % 7} {'x' * (n % 5)}." for n in range(60)])
    common = [*MINHASH, "dataset=file", f"dataset.path={rows}", "split.eval_share=0.2", "split.min_eval_rows=1"]
    curve: dict[float, int] = {}
    kept = {}
    for threshold in (0.75, 0.9, 0.97):
        run = compose([*common, f"dedup.threshold={threshold}"])
        run.prepare_only(here / str(threshold))
        folder = RunDir(here / str(threshold))
        curve |= dict(read_json(folder.data)["thresholds"]["curve"])
        kept[threshold] = read_json(folder.waterfall)["stages"][-1]["rows_kept"]
    assert kept == {threshold: curve[threshold] for threshold in kept}
    assert kept[0.75] < kept[0.97]


@pytest.mark.slow
def test_a_row_wrongly_called_a_duplicate_is_brought_back(here: Path) -> None:
    folder = prepared(MINHASH)
    with folder.review.open(encoding="utf-8-sig", newline="") as file:
        pairs = list(csv.DictReader(file))
    wrong = next(pair["id"] for pair in pairs if pair["was"] == "dropped")
    decisions = here / "decisions.csv"
    decisions.write_text(f"id,decision\n{wrong},keep\n", encoding="utf-8")
    reviewed = ["filter=[answered,length,reviewed]", f"filter.reviewed.path={decisions}"]
    compose([*MINHASH, *reviewed]).prepare_only(here / "again")
    assert "decided ids are not among" not in (here / "again" / "run.log").read_text()  # held-out rows were not asked
    before, after = (ids(RunDir(path)) for path in (folder.path, here / "again"))
    assert set(after) - set(before) == {wrong}
    assert set(before) <= set(after)


@pytest.mark.slow
def test_a_spreadsheet_recognizes_the_pairs_and_the_filter_reads_them_as_they_are(here: Path) -> None:
    """The byte order mark is what makes Excel read UTF-8; folders of before have none."""
    letter = "عزيزي العميل، شكرا لتواصلك معنا، سنرد على رسالتك في أقرب وقت ممكن"
    rows = talks(here / "rows.jsonl", [letter, f"{letter} اليوم", *(f"{LONG}{n}." for n in range(9))])
    common = [*MINHASH, "dataset=file", f"dataset.path={rows}", "split.eval_share=0"]
    compose(common).prepare_only(here / "first")
    folder = RunDir(here / "first")
    content = folder.review.read_bytes()
    assert content.startswith(b"\xef\xbb\xbfid,decision,")
    with folder.review.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    pair = next(pair for pair in table if letter in (pair["text"], pair["nearest_text"]))
    assert pair["was"] == "dropped"
    decided = content.replace(f"{pair['id']},,".encode(), f"{pair['id']},keep,".encode())
    assert decided != content
    for name, text in (("as_it_is", decided), ("of_before", decided.removeprefix(b"\xef\xbb\xbf"))):
        (here / f"{name}.csv").write_bytes(text)
        reviewed = ["filter=[answered,length,reviewed]", f"filter.reviewed.path={here / name}.csv"]
        compose([*common, *reviewed]).prepare_only(here / name)
        assert pair["id"] in ids(RunDir(here / name))
    assert pair["id"] not in ids(folder)


@pytest.mark.slow  # loads the bundled embedder
def test_the_report_says_to_how_many_rows_the_threshold_applies(here: Path) -> None:
    """Rows that the embedder does not know are neither near nor far by its measure."""
    cities = ["القاهرة", "بغداد", "دمشق", "الرباط", "صنعاء"]
    english = ["The capital of France is Paris.", "Whisk one part vinegar into three parts oil."]
    rows = talks(here / "rows.jsonl", [*(f"سافر الرجل إلى {city} لزيارة أخيه" for city in cities), *english])
    semantic = ["dedup=semantic", *MINHASH[1:], "dataset=file", f"dataset.path={rows}", "split.eval_share=0"]
    compose(semantic).prepare_only(here / "semantic")
    folder = RunDir(here / "semantic")
    assert read_json(folder.data)["thresholds"]["compared"] == 2
    note = "The threshold applies to 2 of these rows; the rest are in scripts or symbols the embedder does not know."
    page = html.unescape(folder.report.read_text(encoding="utf-8"))
    assert f"keeps 7 of 7. {note}</p>" in page
    assert "dedup.fallback=minhash also finds near-duplicates among them" in page  # its notice


def ids(folder: RunDir) -> list[str]:
    return list(datasets.load_from_disk(folder.dataset)["train"]["id"])


@pytest.mark.slow
def test_the_same_command_finds_a_prepared_folder_and_a_run_goes_on_in_it(
    here: Path, tiny: list[str], capsys: Any
) -> None:
    place = [*tiny, f"hydra.run.dir={here / 'run'}"]
    assert main(["prepare", *place]) == 0
    when = (here / "run" / "report.html").stat().st_mtime_ns
    assert main(["prepare", *place]) == 0
    assert (here / "run" / "report.html").stat().st_mtime_ns == when
    assert "already finished" in capsys.readouterr().err
    assert main([*place]) == 0
    assert read_json(here / "run" / "summary.json")["steps"] > 0
    assert main(["prepare", *place]) == 2
    assert "has a finished run" in capsys.readouterr().err


def test_a_dropped_row_can_be_read_in_the_report(here: Path) -> None:
    folder = prepared(MINHASH)
    beginnings = read_json(folder.data)["dropped"]
    assert any(text.endswith("→ (nothing)") for text in beginnings.values())  # its answer was empty
    page = folder.report.read_text(encoding="utf-8")
    assert all(row_id in page for row_id in beginnings)


def test_the_bundled_rows_have_no_path_of_ones_own(here: Path, capsys: Any) -> None:
    talks(here / "mine.jsonl", [f"{LONG}{n}." for n in range(40)])
    assert main(["prepare", *MINHASH, "dataset.path=mine.jsonl"]) == 2
    assert "dataset=starter is the bundled data; for your own files set dataset=file" in capsys.readouterr().err
    assert not (here / "outputs").exists()


@pytest.mark.slow
def test_a_sweep_over_thresholds_is_prepared_side_by_side(here: Path, capsys: Any) -> None:
    assert main(["prepare", "-m", *MINHASH, "dedup.threshold=0.7,0.95"]) == 0
    jobs = sorted((here / "multirun").glob("sweep-data-*/*/dataset"))
    assert len(jobs) == 2
    told = capsys.readouterr().out
    assert "0.7" in told
    assert "finished" in told


@pytest.mark.slow
def test_trl_trains_on_the_data_set_unchanged(here: Path) -> None:
    import torch
    import trl
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import sft_lab

    folder = prepared(MINHASH)
    data = datasets.load_from_disk(folder.dataset)
    assert set(data) == {"train", "test"}
    assert set(data["train"].column_names) == {"id", "messages", "text"}
    tokenizer = AutoTokenizer.from_pretrained(Path(sft_lab.__file__).parent / "training" / "tiny_tokenizer_files")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    config = trl.SFTConfig(output_dir=str(here / "trl"), max_steps=2, per_device_train_batch_size=2, report_to="none",
                           use_cpu=True, bf16=False, max_length=256)  # fmt: skip
    trainer = trl.SFTTrainer(
        model, config, train_dataset=data["train"], eval_dataset=data["test"], processing_class=tokenizer
    )
    # What TRL made of the messages is the text that we rendered.
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]) == data["train"][0]["text"]
    assert trainer.train().global_step == 2


def test_causes_and_unused_turns_are_in_log_report_and_files(here: Path, capsys: Any) -> None:
    def talk(n: int, *more: dict[str, Any]) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                {"role": "assistant", "content": f"It is {n}."},
                *more,
            ]
        }

    end = {"role": "user", "content": "Thanks."}
    image = {"role": "user", "content": [{"type": "image_url"}]}
    records = [*map(talk, range(20)), talk(20, end), talk(21, image), talk(22, image), {"messages": 7}]
    rows = here / "rows.jsonl"
    rows.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    folder = prepared([*MINHASH, "dedup=none", "dataset=file", f"dataset.path={rows}", "split.min_eval_rows=1"])
    printed, logged = capsys.readouterr()
    causes = (
        "load: 2 not_text (content has a part of type 'image_url'; e.g. row 21-not_text), 1 unreadable (a conversation"
    )
    assert causes in logged
    report = html.unescape(folder.report.read_text(encoding="utf-8"))
    assert causes in report
    assert "trailing_user_turn" in report
    assert "21 read, 21 used, 1 trailing_user_turn" in printed
    stages = read_json(folder.waterfall)["stages"]
    assert stages[1]["turns"] == {"read": 21, "used": 21, "trailing_user_turn": 1}
    assert all(before["rows_kept"] == after["rows_in"] for before, after in itertools.pairwise(stages))
    dropped = pq.read_table(folder.dropped).to_pylist()
    assert dropped[0]["cause"] == "content has a part of type 'image_url'"


TOOL_TEMPLATE = """\
{%- if tools -%}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content -%}{{ '<think>' + message.reasoning_content + '</think>' }}{%- endif -%}
{{ message.content }}
{%- for call in message.tool_calls or [] -%}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


@pytest.mark.slow
def test_trl_renders_tools_and_thoughts_of_the_data_set_as_we_do(here: Path) -> None:
    """Tools with different fields in one table: each row has its own and no nulls of the others."""
    import torch
    import trl
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import sft_lab

    def tool(name: str, **properties: str) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}},
        ]}  # fmt: skip

    records: list[dict[str, Any]] = []
    for n in range(20):
        user = {"role": "user", "content": f"How warm is it in town {n}?"}
        result = {"role": "tool", "tool_call_id": "c", "content": str(n)}
        answer = {"role": "assistant", "content": f"{n} degrees.", "reasoning_content": f"It says {n}."}
        records.append(
            {"messages": [user, call("weather", town=n), result, answer], "tools": [tool("weather", town="int")]}
        )
        user = {"role": "user", "content": f"How late is it in zone {n}?"}
        records.append({"messages": [user, call("clock", zone=f"Z{n}")], "tools": [tool("clock", zone="string")]})
        records.append({"messages": [user | {"content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]})
    (here / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (here / "tools.jinja").write_text(TOOL_TEMPLATE, encoding="utf-8")
    folder = prepared([
        *MINHASH, "dedup=none", "dataset=file", "dataset.path=rows.jsonl", "template=file", "template.path=tools.jinja",
        "split.min_eval_rows=1",
    ])  # fmt: skip
    data = datasets.load_from_disk(folder.dataset)
    assert set(data["train"].column_names) == {"id", "messages", "tools", "text"}
    by_first = {record["messages"][0]["content"]: record for record in records}
    for row in data["train"]:
        assert row["messages"] == by_first[row["messages"][0]["content"]]["messages"]
        assert row["tools"] == by_first[row["messages"][0]["content"]].get("tools")

    tokenizer = AutoTokenizer.from_pretrained(Path(sft_lab.__file__).parent / "training" / "tiny_tokenizer_files")
    tokenizer.chat_template = TOOL_TEMPLATE
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    config = trl.SFTConfig(output_dir=str(here / "trl"), max_steps=1, per_device_train_batch_size=2, report_to="none",
                           use_cpu=True, bf16=False, max_length=512)  # fmt: skip
    trainer = trl.SFTTrainer(model, config, train_dataset=data["train"], processing_class=tokenizer)
    assert [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset] == data["train"]["text"][:]
    assert trainer.train().global_step == 1


def test_tokens_are_in_the_data_set_if_they_are_wanted(here: Path) -> None:
    """The labels are the input where the answer is, and it is the answer, its end of turn included."""
    from transformers import AutoTokenizer

    import sft_lab

    data = datasets.load_from_disk(prepared([*MINHASH, "prepare.tokens=true"]).dataset)
    tokenizer = AutoTokenizer.from_pretrained(Path(sft_lab.__file__).parent / "training" / "tiny_tokenizer_files")
    for row in [*data["train"], *data["test"]]:
        assert tokenizer.decode(row["input_ids"]) == row["text"]
        trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert trained == [label for label in row["labels"] if label != -100]
        last = row["messages"][-1]["content"].strip()
        assert tokenizer.decode(trained).rstrip().endswith(f"{last}<|im_end|>")


HIDING_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content and loop.last -%}{{ '<think>' + message.reasoning_content + '</think>' }}{%- endif -%}
{{ message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def test_a_row_of_several_examples_comes_once_for_each_with_its_tokens(here: Path) -> None:
    from transformers import AutoTokenizer

    import sft_lab

    thoughtful = {"role": "assistant", "content": "It is.", "reasoning_content": "Is it?"}
    records = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                thoughtful,
                {"role": "user", "content": "So?"},
                thoughtful,
            ]
        }
        for n in range(12)
    ]
    (here / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (here / "hiding.jinja").write_text(HIDING_TEMPLATE, encoding="utf-8")
    folder = prepared([
        *MINHASH, "dedup=none", "dataset=file", "dataset.path=rows.jsonl", "template=file",
        "template.path=hiding.jinja", "split.eval_share=0", "prepare.tokens=true",
    ])  # fmt: skip
    train = datasets.load_from_disk(folder.dataset)["train"]
    assert len(train) == 2 * len(set(train["id"][:])) == 24
    tokenizer = AutoTokenizer.from_pretrained(Path(sft_lab.__file__).parent / "training" / "tiny_tokenizer_files")
    for row in train:
        assert tokenizer.decode(row["input_ids"]) == row["text"]
        trained = [label for label in row["labels"] if label != -100]
        assert "<think>Is it?</think>It is.<|im_end|>" in tokenizer.decode(trained)


def test_the_parquet_files_stand_alone(here: Path) -> None:
    folder = prepared(MINHASH)
    whole = datasets.load_from_disk(folder.dataset)
    for split in ("train", "test"):
        alone = datasets.Dataset.from_parquet(
            str(folder.dataset / "parquet" / f"{split}.parquet"), cache_dir=str(here / "cache")
        )
        assert alone["text"][:] == whole[split]["text"][:]
    card = (folder.dataset / "README.md").read_text(encoding="utf-8")
    assert "path: data/train.parquet" in card
    assert str(here) not in card


def test_plain_text_is_trained_whole(here: Path) -> None:
    rows = here / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{LONG}{n}."}) + "\n" for n in range(40)), encoding="utf-8")
    folder = prepared([*MINHASH, "dedup=none", "dataset=file", f"dataset.path={rows}", "split.min_eval_rows=1"])
    data = datasets.load_from_disk(folder.dataset)
    assert set(data["train"].column_names) == {"id", "text"}
    run = compose([*MINHASH, "dedup=none", "dataset=file", f"dataset.path={rows}", "split.min_eval_rows=1"])
    from sft_lab.core.context import StageContext

    context = StageContext(run.store.open(), lambda: run.model.tokenizer(context))
    ready = run.prepare(context).train.tokens
    assert ready["labels"][:] == ready["input_ids"][:]


def test_an_own_benchmark_is_kept_out_of_the_training_rows(here: Path) -> None:
    rows = talks(here / "rows.jsonl", [f"{LONG}{n}." for n in range(40)])
    questions = here / "questions.jsonl"
    questions.write_text(json.dumps({"question": "Tell me about number 3, PLEASE."}) + "\n", encoding="utf-8")
    folder = prepared([
        *MINHASH, "dedup=none", "dataset=file", f"dataset.path={rows}", "split.eval_share=0",
        f"decontaminate.against=[{questions}]",
    ])  # fmt: skip
    stage = next(one for one in read_json(folder.waterfall)["stages"] if one["stage"] == "decontaminate")
    assert stage["dropped"] == {"equals_benchmark": 1}
    (found,) = read_json(folder.data)["contaminated"]
    assert found["reason"] == "equals_benchmark"
    before = read_json(folder.manifest)["dataset_fingerprint"]
    questions.write_text(json.dumps({"question": "What?"}) + "\n", encoding="utf-8")
    run = compose([*MINHASH, "dataset=file", f"dataset.path={rows}", f"decontaminate.against=[{questions}]"])
    assert run.data_fingerprint(run.store.open()) != before


@pytest.mark.slow
def test_a_mixture_is_followed_source_by_source(here: Path, tiny: list[str]) -> None:
    chats = talks(here / "chats.jsonl", [f"{LONG}{n}." for n in range(60)])
    more = talks(here / "more.jsonl", [f"Number {n} is a fine number to have." for n in range(60)])
    sources = f"dataset.sources={{chats: {{path: {chats}, share: 3}}, more: {{path: {more}, share: 1}}}}"
    run = compose([*tiny, "dataset=mixture", sources, "split.eval_share=0.3"])
    run.execute(here / "run")
    folder = RunDir(here / "run")
    stages = read_json(folder.waterfall)["stages"]
    last = stages[-1]["sources"]
    assert sum(one["rows_kept"] for one in last.values()) == stages[-1]["rows_kept"]
    assert last["chats"]["rows_kept"] / last["more"]["rows_kept"] == pytest.approx(3, rel=0.1)
    summary = read_json(folder.summary)
    found = summary["sources"]
    assert set(found) == {"chats", "more"}
    weighted = sum(one["eval/loss"] * one["eval_tokens"] for one in found.values())
    assert weighted / sum(one["eval_tokens"] for one in found.values()) == pytest.approx(summary["eval/loss"])
    assert sum(one["eval_rows"] for one in found.values()) == summary["eval_rows"]
    assert [one["source"] for one in read_json(folder.data)["sources"]] == ["chats", "more"]


def test_held_out_rows_unlike_the_training_rows_are_spoken_of(here: Path, capsys: Any) -> None:
    folder = prepared([*MINHASH, "filter=[answered,length,language]", "filter.language.keep=[ar]"])
    errors = capsys.readouterr().err
    assert "would also drop" in errors
    assert re.search(
        r"filter\.language drops \d+% of the rows, most of them as other_language; if that was not intended, add their "
        r"languages to filter\.language\.keep",
        errors,
    )
    assert any("split.filter=[language]" in notice for notice in read_json(folder.data)["notices"])
    assert "split.filter=[language]" in folder.report.read_text(encoding="utf-8")


def test_long_rows_that_go_with_most_of_the_tokens_are_spoken_of(here: Path, capsys: Any) -> None:
    short = [f"{number} is the number after {number - 1}." for number in range(90)]
    file = talks(here / "rows.jsonl", [*short, *(LONG * 30 + str(number) for number in range(10))])
    words = [*MINHASH, "dataset=file", f"dataset.path={file}", "split.max_eval_tokens=200"]
    folder = prepared([*words, "filter.length.max_tokens=200", "split.min_eval_rows=2"])
    said = (
        r"filter\.length drops \d+% of the rows but \d+% of the tokens, since they are long conversations; if the "
        r"model should learn from them, filter\.length\.max_tokens=\d+ "
    )
    assert re.search(said, capsys.readouterr().err)
    assert any(re.match(said, notice) for notice in read_json(folder.data)["notices"])


def test_what_the_model_is_for_cannot_be_swept(here: Path, capsys: Any) -> None:
    asked = [*MINHASH, "split.filter=[language]", "split.filter.language.keep=[ar],[en]"]
    assert main(["prepare", "-m", *asked]) == 2
    assert "cannot be swept" in capsys.readouterr().err
    assert main(["prepare", "-m", *MINHASH, "split.filter=[language],[]"]) == 2
    assert list(here.iterdir()) == []


def test_a_saved_config_holds_the_held_out_filters(here: Path) -> None:
    from sft_lab import config

    run = compose([*MINHASH, "split.filter=[language]", "split.filter.language.keep=[en]"])
    path = here / "config.yaml"
    path.write_text(run.to_yaml(), encoding="utf-8")
    again = config.load(path)
    assert again.hash == run.hash != compose(MINHASH).hash
    assert again.split.filter["language"].keep == ["en"]
