"""promote: an experiment file with the differences alone, which gives the run's config again."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sft_lab import config
from sft_lab.core.errors import ConfigError, FolderError, UserError
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs.promote import difference_from, option_of_kind, promote
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS

SUMMARY = {"eval/loss": 2.5, "base/eval_loss": 3.25, "verdict": "healthy"}
MANIFEST = {
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
    "started": "2026-11-22T05:15:32+00:00",
}


def folder_of(run: Run, name: str = "outputs/run") -> RunDir:
    """Write by hand what a finished run's folder says of itself."""
    folder = RunDir(Path(name))
    folder.path.mkdir(parents=True)
    folder.config.write_text(run.to_yaml(), encoding="utf-8")
    status = {"state": "finished", "work": "run"}
    for file, content in ((folder.summary, SUMMARY), (folder.manifest, MANIFEST), (folder.status, status)):
        file.write_text(json.dumps({"format": 1, **content}))
    return folder


def composed(*words: str) -> Run:
    return config.compose_jobs(list(words), multirun=False).jobs[0].run


def kept(run: Run) -> dict[str, Any]:
    """Promote, check that running it gives the same config with the same choices, and give what the file says."""
    file = promote(folder_of(run).path, "mine")
    assert file == Path.cwd() / "experiments" / "mine.yaml"
    assert [found.name for found in file.parent.iterdir()] == ["mine.yaml"]
    again = composed("experiment=mine")
    assert again.hash == run.hash
    assert again.to_yaml().partition("choices:")[0] == run.to_yaml().partition("choices:")[0]  # order too
    said: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return said


def rows(path: str) -> str:
    Path(path).write_text('{"prompt": "a", "answer": "b"}\n')
    return str(Path(path).absolute())


@pytest.mark.slow
def test_a_run_of_the_defaults_says_nothing(here: Path) -> None:
    assert kept(composed()) == {}


@pytest.mark.slow
def test_only_what_differs_stands_there(here: Path, tiny: list[str]) -> None:
    run = composed(*tiny, "trainer.learning_rate=1e-3", "seed=7", "filter=[length,answered]", "rerun=true")
    assert run.rerun
    file = promote(folder_of(run).path, "mine")
    text = file.read_text(encoding="utf-8")
    assert text == (
        "# @package _global_\n"
        "# Kept from the run run: held-out loss 3.2500 base -> 2.5000 tuned, verdict healthy.\n"
        "# Run it: sft-lab +experiment=mine\n"
        f"# From {here}/outputs/run, 2026-11-22T05:15:32+00:00, commit 0123456789ab with uncommitted changes.\n"
        "# This file contains only what differs from the defaults.\n"
        "defaults:\n"
        "- override /dedup: exact\n"
        "- override /model: tiny_random\n"
        "- override /trainer: smoke\n"
        "- override /tracking: local\n"
        "- override /filter:\n"
        "  - length\n"
        "  - answered\n"
        "decontaminate:\n"
        "  method: exact\n"
        "trainer:\n"
        "  learning_rate: 0.001\n"
        "seed: 7\n"
        "threads: 1\n"
    )
    again = composed("experiment=mine")
    assert again.choices == run.choices
    assert list(again.filter) == ["length", "answered"]
    assert not again.rerun
    assert composed("experiment=mine", "seed=8").seed == 8  # the command line beats it


@pytest.mark.parametrize(
    ("words", "chosen", "values"),
    [
        (["dedup=none", "filter=none"], {"dedup": "none", "filter": ["none"]}, {}),
        (["dedup=minhash", "dedup.threshold=0.7"], {"dedup": "minhash"}, {"dedup": {"threshold": 0.7}}),
        (
            ["dedup/embedder=gte_large", "dedup.keep=singletons", "dedup.embedder.batch_tokens=512"],
            {"dedup/embedder": "gte_large"},
            {"dedup": {"keep": "singletons", "embedder": {"batch_tokens": 512}}},
        ),
        (
            ["dedup/embedder@decontaminate.embedder=bge_m3"],
            {"dedup/embedder@decontaminate.embedder": "bge_m3"},
            {},
        ),
        (
            ["split.filter=[language,answered]", "split.filter.language.keep=[en,no]", "template=plain"],
            {"template": "plain", "split/filter": ["language", "answered"]},
            {"split": {"filter": {"language": {"keep": ["en", "no"]}}}},
        ),
        (["dataset=smoltalk", "seed=9"], {"dataset": "smoltalk", "split": "source"}, {"seed": 9}),
        (["dataset=smoltalk", "split=hash"], {"dataset": "smoltalk", "split": "hash"}, {}),
        (["trainer.early_stopping_patience=3", "trainer.precision=fp32", "dataset.limit=null", "split.eval_share=0"],
         {},
         {"trainer": {"early_stopping_patience": 3, "precision": "fp32"}, "dataset": {"limit": None},
          "split": {"eval_share": 0.0}}),
        (["evaluation.prompts=[]", "+trainer.sft_config.adam_beta2=0.95",
          "+trainer.sft_config.lr_scheduler_kwargs={a:[1,null,'on'],b:{}}"],
         {},
         {"evaluation": {"prompts": []},
          "trainer": {"sft_config": {"adam_beta2": 0.95, "lr_scheduler_kwargs": {"a": [1, None, "on"], "b": {}}}}}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
@pytest.mark.slow
def test_shapes(here: Path, words: list[str], chosen: dict[str, Any], values: dict[str, Any]) -> None:
    said = kept(composed(*words))
    overrides = {
        key.removeprefix("override /"): option for entry in said.pop("defaults", []) for key, option in entry.items()
    }
    assert (overrides, said) == (chosen, values)


@pytest.mark.slow
def test_a_mixture_keeps_its_sources_in_their_order(here: Path) -> None:
    second, first = rows("b.jsonl"), rows("a.jsonl")
    run = composed(
        "dataset=mixture",
        f"dataset.sources={{zeta: {{path: {second}, share: 0.7}}, alpha: {{path: {first}, share: 0.3}}}}",
    )
    said = kept(run)
    assert said == {
        "defaults": [{"override /dataset": "mixture"}],
        "dataset": {"sources": {"zeta": {"path": second, "share": 0.7}, "alpha": {"path": first, "share": 0.3}}},
    }


@pytest.mark.slow
def test_values_that_an_option_asks_for(here: Path) -> None:
    path, held_out = rows("my rows.jsonl"), rows("held.jsonl")
    Path("decisions.csv").write_text("id,decision\n")
    run = composed("dataset=file", f"dataset.path='{path}'", "split=file", f"split.path={held_out}",
                   "filter=[reviewed]", "filter.reviewed.path=decisions.csv")  # fmt: skip
    said = kept(run)
    assert said["dataset"] == {"path": path}
    assert said["filter"] == {"reviewed": {"path": str(Path("decisions.csv").absolute())}}
    # A run whose data are elsewhere by now can be kept too: only the config is asked.
    Path("my rows.jsonl").unlink()
    promote(Path("outputs/run"), "later")


def test_a_job_of_a_sweep(here: Path, tiny: list[str]) -> None:
    words = [*tiny, "dedup=none,exact", "trainer.num_train_epochs=1,2"]
    job = config.compose_jobs(words, multirun=True).jobs[3]
    assert job.axes == {"dedup": "exact", "trainer.num_train_epochs": "2"}
    said = kept(job.run)
    assert {"override /dedup": "exact"} in said["defaults"]
    assert said["trainer"] == {"num_train_epochs": 2.0}


# --- options of the working folder's own -----------------------------------------------------------------------------


OWN = {
    "dataset/ours.yaml": "path: rows.jsonl\ncolumns: {prompt: q, answer: a}\n",
    "filter/polite.yaml": "drop: [damn]\n",
    "dedup/embedder/own.yaml": "name_or_path: me/own\nscripts: [ARABIC]\n",
    "template/own.yaml": "path: own.jinja\n",
}
HEADS = {
    "dataset/ours.yaml": "defaults: [/schema/dataset/file@_here_, _self_]\n",
    "filter/polite.yaml": "# @package filter.polite\ndefaults: [/schema/filter/pattern@_here_, _self_]\n",
    "dedup/embedder/own.yaml": "defaults: [/schema/embedder@_here_, _self_]\n",
    "template/own.yaml": "defaults: [/schema/template/jinja@_here_, _self_]\n",
}
OWN_WORDS = [
    "dataset=ours",
    "filter=[polite,answered]",
    "filter.answered.min_answer_chars=3",
    "dedup/embedder=own",
    "template=own",
]


def own_options() -> None:
    rows("rows.jsonl")
    Path("own.jinja").write_text("{{ messages }}")
    for name, text in OWN.items():
        own_option(name, HEADS[name] + text)


def own_option(name: str, text: str) -> None:
    file = Path("conf") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.slow
def test_own_options_are_chosen_by_name(here: Path) -> None:
    own_options()
    said = kept(composed(*OWN_WORDS))
    assert said["defaults"] == [
        {"override /dataset": "ours"},
        {"override /template": "own"},
        {"override /filter": ["polite", "answered"]},
        {"override /dedup/embedder": "own"},
    ]
    assert said["filter"] == {"answered": {"min_answer_chars": 3}}
    assert not {"dedup", "split"} & set(said)


@pytest.mark.slow
def test_own_options_that_are_gone_are_written_as_values(here: Path) -> None:
    own_options()
    run = composed(*OWN_WORDS)
    for name in OWN:
        Path("conf", name).unlink()
    said = kept(run)
    assert said["defaults"] == [
        "/schema/filter/pattern@filter.polite",
        "/schema/filter/answered@filter.answered",
        "_self_",
        {"override /filter": []},
        {"override /dataset": "file"},
        {"override /template": "alpaca"},
    ]
    assert said["dataset"]["columns"] == {"prompt": "q", "answer": "a"}
    assert said["dedup"]["embedder"] == {"name_or_path": "me/own", "scripts": ["ARABIC"], "sha256": None}
    assert list(composed("experiment=mine").filter) == ["polite", "answered"]


@pytest.mark.slow
def test_own_options_that_have_changed(here: Path) -> None:
    """Another kind, and a mapping with a key that an experiment could not take out."""
    own_options()
    run = composed(*OWN_WORDS)
    own_option("template/own.yaml", "defaults: [/schema/template/auto@_here_]\n")
    for name, then, now in (("dataset/ours.yaml", "answer: a", "answer: a, context: c"),
                            ("filter/polite.yaml", "damn", "heck")):  # fmt: skip
        own_option(name, HEADS[name] + OWN[name].replace(then, now))
    said = kept(run)
    assert {"override /dataset": "file"} in said["defaults"]
    assert {"override /template": "alpaca"} in said["defaults"]
    assert said["filter"] == {"polite": {"drop": ["damn"]}, "answered": {"min_answer_chars": 3}}


def test_every_kind_has_a_shipped_option() -> None:
    for group, kinds in SCHEMAS.items():
        for kind in kinds if group != "filter" else ():
            assert option_of_kind(group, kind), f"{group}={kind}"


@pytest.mark.slow
def test_a_run_made_in_python_has_no_choices(here: Path, tiny: list[str]) -> None:
    saved = composed(*tiny, "split.filter=[answered]").saved()
    run = config.from_saved({key: value for key, value in saved.items() if key != "choices"}, "made")
    said = kept(run)
    assert {"override /dedup": "exact"} in said["defaults"]


# --- any value -------------------------------------------------------------------------------------------------------

TRICKY = [
    *("on", "off", "null", "~", "1e-5", "0x10", "012", "1_000", "true", "No", "", " ", "a: b", "- a", "#x", "'", '"'),
    *('it\'s "so"', "\\", "\\n", "\n", "a\n b\n", "\t", "ما هي", "日本", "🎈", "{a: 1}", "[x]", "%", "@", "&a", "*a"),
    *("!x", "?", "|", ">", "2026-11-22", "12:30", "=", "<<", "$", "$x", "\u2028", "\ufeff", ".", "---", "..."),
]
# ${ is refused by every config, ??? means missing, YAML has no lone surrogates, and PyYAML reads NEL as a line feed.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x85")
TEXTS = st.one_of(st.sampled_from(TRICKY), st.text(LETTERS, max_size=20)).filter(
    lambda text: "${" not in text and text != "???"
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


# Two seconds an example: no shrinking, and many values in each.
@settings(
    max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(
    st.lists(TEXTS, min_size=5, max_size=15),
    st.dictionaries(TEXTS, VALUES, max_size=10),
    st.floats(1e-300, 1e300),
    st.lists(TEXTS.filter(lambda text: 1 <= len(text) <= 64), max_size=5),  # what W&B takes as a tag
)
@pytest.mark.slow
def test_any_value(tmp_path_factory, prompts, extra, rate, tags) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("any"))
        saved = defaults().saved()
        saved["evaluation"] |= {"prompts": [*TRICKY, *prompts]}
        saved["evaluation"]["baseline"] |= {"system_prompt": prompts[0]}
        anything = extra | {f"k{text}": text for text in TRICKY}
        saved["trainer"] |= {"sft_config": {"lr_scheduler_kwargs": anything}, "learning_rate": rate}
        project = re.sub(r"[/\\#?%:]", "", prompts[1])[:128] or "mine"  # and as a project
        saved["tracking"] |= {"tags": tags, "project": project}
        said = kept(config.from_saved(saved, "made"))
        assert said["evaluation"]["prompts"] == [*TRICKY, *prompts]


@functools.cache
def defaults() -> Run:
    return composed()


# --- what is refused -------------------------------------------------------------------------------------------------


BAD = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "a\\b",
    "../x",
    "/tmp/x",
    "a b",
    "a,b",
    "1",
    "a=b",
    "[a]",
    "é",
    "null",
    "True",
    ".yaml",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused(here: Path, name: str) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("format: 1\n")
    with pytest.raises(UserError, match="not a valid experiment name"):
        promote(Path("run"), name)
    assert sorted(path.name for path in here.iterdir()) == ["run"]


@pytest.mark.slow
def test_nothing_is_overwritten_without_force(here: Path, tiny: list[str]) -> None:
    folder = folder_of(composed(*tiny))
    file = promote(folder.path, "v1.5.yaml")
    assert file.name == "v1.5.yaml"
    file.write_text("mine")
    with pytest.raises(UserError, match=r"v1\.5\.yaml: already exists; .*--force"):
        promote(folder.path, "v1.5")
    assert file.read_text() == "mine"
    assert promote(folder.path, "v1.5", force=True).read_text() != "mine"
    assert composed("+experiment=v1.5").hash == composed(*tiny).hash


def test_a_shipped_name_is_not_taken_unasked(here: Path, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"quickstart\.yaml: is shipped with sft_lab"):
        promote(folder_of(composed(*tiny)).path, "quickstart")
    assert not Path("experiments").exists()


def test_what_cannot_be_said_is_not_written(here: Path, tiny: list[str]) -> None:
    """The working folder's own defaults are broken: nothing composes from here."""
    folder = folder_of(composed(*tiny))
    Path("conf/dedup").mkdir(parents=True)
    Path("conf/dedup/exact.yaml").write_text("defaults: [/schema/dedup/exact@_here_, _self_]\nkep: first\n")
    with pytest.raises(ConfigError, match="kep"):
        promote(folder.path, "mine")
    assert not Path("experiments").exists()


@pytest.mark.slow
def test_the_proof_finds_what_would_come_out_otherwise(here: Path, tiny: list[str]) -> None:
    Path("experiments").mkdir()
    run = composed(*tiny)
    file = promote(folder_of(run).path, "mine")
    assert difference_from(run, "mine") == ""
    text = file.read_text()
    file.write_text(text.replace("threads: 1", "threads: 2"))
    assert difference_from(run, "mine") == "threads was 1, would be 2"
    file.write_text(text.replace("defaults:\n", "defaults:\n- override /filter: [length, answered]\n"))
    assert difference_from(run, "mine") == "the same keys in another order"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: None, "no such folder"),
        (lambda: Path("run").mkdir(), "no config.yaml"),
        (lambda: (Path("run").mkdir(), Path("run/sweep.json").write_text("{}")), "a sweep of several runs"),
        (lambda: Path("run").write_text("x"), "not a run folder"),
        (lambda: (Path("run").mkdir(), Path("run/config.yaml").write_text("format: 2\n")), "reads format 1"),
    ],
)
def test_folders_that_are_none(here: Path, make, says: str) -> None:
    make()
    with pytest.raises((FolderError, ConfigError), match=re.escape(says)):
        promote(Path("run"), "mine")
    assert not Path("experiments").exists()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (["summary.json"], "finished, no result"),
        (["summary.json", "status.json"], "not started, no result"),
        (["summary.json", "status.json", "manifest.json"], "date unknown, commit unknown"),
    ],
)
def test_a_folder_with_less_in_it(here: Path, tiny: list[str], broken: list[str], says: str) -> None:
    folder = folder_of(composed(*tiny), "outputs/odd\nname")
    for name in broken:
        (folder.path / name).write_text("[7]")
    text = promote(folder.path, "mine").read_text(encoding="utf-8")
    assert says in text
    assert "# From " in text
    assert "odd?name" in text
