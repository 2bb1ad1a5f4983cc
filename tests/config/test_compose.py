"""Composition: each kind of mistake is answered in one line that names key, value, limit and remedy."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from sft_lab import config
from sft_lab.cli.main import main
from sft_lab.config.error_messages import all_keys
from sft_lab.core.errors import ConfigError
from sft_lab.run.config import Run
from sft_lab.run.identity import completed

# Words of libraries that a user must not have to read.
RAW = re.compile(r"Traceback|full_key|object_type|reference_type|omegaconf|DictConfig|Error merging|exception", re.I)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Everything here works from any folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_LAB_STORE", str(tmp_path / "store"))


def refused(overrides: list[str], *, multirun: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        config.compose_jobs(overrides, multirun=multirun)
    message = str(caught.value)
    assert not RAW.search(message), message
    return message


def experiment(text: str, name: str = "mine") -> Path:
    file = Path("experiments") / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"# @package _global_\n{text}", encoding="utf-8")
    return file


# One row a mistake: what was typed, and what the message must say.
MISTAKES = {
    # unknown keys, however they are spelled
    "unknown key": (["dedup.treshold=0.9"], ["dedup.treshold", "did you mean dedup.threshold?"]),
    "unknown key with +": (["+dedup.treshold=0.9"], ["dedup.treshold", "did you mean dedup.threshold?"]),
    "unknown key with ++": (["++dedup.treshold=0.9"], ["dedup.treshold", "did you mean dedup.threshold?"]),
    "unknown nested key": (["dedup.embedder.promt=x"], ["did you mean dedup.embedder.prompt?"]),
    "unknown key of a filter": (["+filter.length.max_token=9"], ["did you mean filter.length.max_tokens?"]),
    "unknown filter": (["+filter.foo.bar=1"], ["filter.foo", "this filter is not selected"]),
    "filter that is not chosen": (
        ["filter=answered", "filter.length.max_tokens=9"],
        ["filter.length", "add it to filter=[...]"],
    ),
    "key of another place": (["max_new_tokens=9"], ["did you mean evaluation.max_new_tokens?"]),
    "key of another option": (["dedup=none", "dedup.threshold=0.9"], ["dedup=none has no such key", "semantic"]),
    "adapter key of full": (["trainer=full", "trainer.peft.r=8"], ["trainer=full has no such key", "lora"]),
    "key with nothing near": (["store.xyzzy=1"], ["store.xyzzy", "known keys: path"]),
    "the record of choices": (["+choices.dedup=exact"], ["choices: records the chosen options"]),
    # groups and options
    "wrong group": (["datset=starter"], ["datset", "did you mean dataset?"]),
    "wrong group with +": (["+datset=starter"], ["datset", "did you mean dataset?"]),
    "wrong experiment group": (["+experimnt=quickstart"], ["did you mean experiment?"]),
    "wrong option": (["dedup=semantc"], ["dedup=semantc", "exact, minhash, none, semantic", "did you mean semantic?"]),
    "wrong option in a list": (["filter=[answered,lenth]"], ["filter=lenth", "did you mean length?"]),
    "wrong embedder": (["dedup/embedder=gte_larg"], ["dedup/embedder=gte_larg", "did you mean gte_large?"]),
    "wrong place of a group": (["dedup/embedder@foo=gte_large"], ["dedup/embedder@foo", "no such group"]),
    "wrong experiment": (["experiment=quickstrat"], ["did you mean quickstart?"]),
    "wrong experiment of two": (["+experiment=[quickstart,nope]"], ["experiment=nope", "quickstart"]),
    "wrong launcher of hydra": (["hydra/launcher=foo"], ["hydra/launcher=foo", "no such option"]),
    "filter null": (["filter=null"], ["filter=null", "answered"]),
    "experiment null": (["experiment=null"], ["experiment=null", "quickstart"]),
    "group a number": (["model=7"], ["model=7", "tiny_random"]),
    "group a mapping": (["dedup={a:1}"], ["dedup={a:1}", "semantic"]),
    "none beside others": (["filter=[none,answered]"], ["filter=[none,answered]", "none cannot be combined"]),
    # values
    "text for a number": (["trainer.num_train_epochs=abc"], ["trainer.num_train_epochs=abc", "must be a number"]),
    "fraction for a count": (["trainer.max_steps=1.5"], ["trainer.max_steps=1.5", "must be a whole number"]),
    "bool for a count": (["seed=true"], ["seed=true", "must be a whole number"]),
    "text for a bool": (["rerun=maybe"], ["rerun=maybe", "true or false"]),
    "mapping for a number": (["dedup.threshold={a:1}"], ["dedup.threshold={a:1}", "must be a number"]),
    "null for a number": (["dedup.threshold=null"], ["dedup.threshold=null", "cannot be null"]),
    "nothing for a number": (["trainer.learning_rate="], ["trainer.learning_rate=", "must be a number"]),
    "wrong enum": (["dedup.keep=longst"], ["dedup.keep=longst", "first, longest, singletons"]),
    "wrong enum of tracking": (["tracking.mode=offlin"], ["tracking.mode=offlin", "auto, online, offline, disabled"]),
    "key removed": (["~trainer.learning_rate"], ["~trainer.learning_rate", "cannot be removed"]),
    "existing key with +": (["+dedup.threshold=0.9"], ["dedup.threshold", "without +"]),
    "unset variable": (["trainer.optim=${oc.env:SFT_LAB_NOT_SET}"], ["SFT_LAB_NOT_SET"]),
    "half an interpolation": (
        ["trainer.optim='${a'"],
        ["trainer.optim", "an interpolation, ${...}, that cannot be parsed"],
    ),
    "an interpolation without its end": (["seed='${oc.env:X'"], ["seed", "that cannot be parsed"]),
    "missing": (["dataset=file"], ["dataset.path", "no value", "dataset.path=..."]),
    "all missing at once": (["dataset=file", "model=local"], ["dataset.path", "model.name_or_path", "2 problems"]),
    # grammar
    "comma without -m": (["dedup.threshold=0.8,0.9"], ["dedup.threshold=0.8,0.9", "-m"]),
    "filters without brackets": (["filter=answered,length"], ["filter=answered,length", "-m"]),
    "two equal signs": (["trainer.optim=a=b"], ["trainer.optim=a=b", "quote it"]),
    "no equal sign": (["trainer.optim"], ["trainer.optim: has no value; write trainer.optim="]),
    "two bad words at once": (["=3", "foo"], ["2 problems", "foo", "=3"]),
    # limits
    "above a limit": (["trainer.peft.lora_dropout=1"], ["trainer.peft.lora_dropout=1.0", "below 1"]),
    "below a limit": (["trainer.learning_rate=0"], ["trainer.learning_rate=0.0", "above 0"]),
    "infinite": (["trainer.learning_rate=inf"], ["trainer.learning_rate=inf", "finite"]),
    "nested limit": (["dedup.embedder.batch_tokens=0"], ["dedup.embedder.batch_tokens=0", "at least 1"]),
    "nested limit with its own name": (["trainer.peft.r=0"], ["trainer.peft.r=0", "at least 1"]),
    "verdict limit": (["evaluation.limits.min_evaluations=1"], ["evaluation.limits.min_evaluations=1", "at least 2"]),
    "filter limit": (["filter.length.max_tokens=-1"], ["filter.length.max_tokens=-1", "at least 1"]),
    "root limit": (["threads=0"], ["threads=0", "at least 1"]),
    "share": (["split.eval_share=1"], ["split.eval_share=1.0", "below 1"]),
    "limits of two stages at once": (
        ["dedup.threshold=2", "split.eval_share=-1"],
        ["2 problems", "dedup.threshold=2.0", "split.eval_share=-1.0"],
    ),
    "wrong columns": (["dataset.columns={foo:q}"], ["dataset.columns", "prompt"]),
    "filter against max_length": (
        ["filter.length.max_tokens=2000"],
        ["filter.length.max_tokens=2000", "trainer.max_length=1280", "lower"],
    ),
    "held-out rows against max_length": (
        ["split.max_eval_tokens=2000"],
        ["split.max_eval_tokens=2000", "trainer.max_length=1280", "raise"],
    ),
    "set by sft_lab": (["trainer.sft_config.bf16=true"], ["trainer.sft_config", "bf16"]),
    # the world
    "no such file": (["dataset=file", "dataset.path=/no/such.jsonl"], ["dataset.path=/no/such.jsonl", "no such file"]),
}


@pytest.mark.parametrize(("overrides", "says"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_refused_in_one_clear_message(overrides, says):
    message = refused(overrides)
    for part in says:
        assert part in message
    problems = message.splitlines()
    assert len(problems) == 1 or (len(problems) == int(problems[0].split()[0]) + 1), message


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_renamed_keys_are_answered_with_ours(sign):
    renamed = {
        "trainer.warmup_ratio": "trainer.warmup_steps",
        "trainer.max_seq_length": "trainer.max_length",
        "trainer.evaluation_strategy": "trainer.eval_steps",
        "trainer.report_to": "tracking=wandb",
        "logger": "tracking",
        "report_to": "tracking=wandb",
        "max_seq_length": "trainer.max_length",
    }
    message = refused([f"{sign}{old}=1" for old in renamed])
    assert message.startswith("7 problems:")
    for old, new in renamed.items():
        assert f"{old}: unknown key; use {new}" in message


# --- what composes ---------------------------------------------------------------------------------------------


def test_one_run_object_of_stages():
    run = config.compose(["dedup.threshold=0.9", "trainer.peft.r=4"])
    assert isinstance(run, Run)
    assert type(run.dedup).__name__ == "Semantic"
    assert (run.dedup.threshold, run.trainer.peft.r) == (0.9, 4)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("filter=[answered,length]", ["answered", "length"]),
        ("filter=[length,answered]", ["length", "answered"]),
        ("filter=answered", ["answered"]),
        ("filter=none", ["none"]),
        ("~filter.length", ["answered"]),
        ("+filter@filter.second=length", ["answered", "length", "second"]),
    ],
)
def test_filters_keep_their_order_and_are_recorded(word, names):
    run = config.compose([word])
    assert run.choices["filter"] == names
    assert list(run.filter) == [name for name in names if name != "none"]


def test_mappings_take_new_keys_without_plus():
    run = config.compose(["dataset.columns={prompt: q, answer: a}", "trainer.sft_config.adam_beta2=0.95"])
    assert run.dataset.columns == {"prompt": "q", "answer": "a"}
    assert run.trainer.sft_config == {"adam_beta2": 0.95}


def test_each_embedder_of_dedup_and_decontaminate_is_chosen_apart():
    run = config.compose(["dedup/embedder=gte_large"])
    assert run.dedup.embedder.name_or_path == "thenlper/gte-large"
    assert run.decontaminate.embedder.name_or_path.startswith("package:")
    assert run.choices["dedup/embedder"] == "gte_large"


# --- experiments -----------------------------------------------------------------------------------------------

BASE = "defaults:\n  - override /model: tiny_random\ntrainer:\n  learning_rate: 3e-3\n"
SWEEP = (
    "hydra:\n  mode: MULTIRUN\n  sweep:\n    dir: {place}\n  sweeper:\n    params:\n"
    "      trainer.learning_rate: 1e-4,1e-3\n      dedup.threshold: choice(0.8,0.9)\n"
)


@pytest.mark.parametrize("word", ["experiment=mine", "+experiment=mine", "+experiment=[mine]"])
def test_experiment_of_the_working_folder(word):
    experiment(BASE)
    plan = config.compose_jobs([word], multirun=False)
    assert (plan.name, plan.swept, plan.jobs[0].run.choices["model"]) == ("mine", False, "tiny_random")


def test_the_command_line_beats_the_experiment():
    experiment(BASE)
    run = config.compose(["experiment=mine", "trainer.learning_rate=1e-5", "model=opt_350m"])
    assert (run.trainer.learning_rate, run.choices["model"]) == (1e-5, "opt_350m")


SLURM = "defaults:\n  - override /launch: slurm\nlaunch: {cluster: local, partition: gpu, num_processes: 2}\nseed: 7\n"


@pytest.mark.parametrize("option", ["serial", "processes", "ray"])
@pytest.mark.parametrize("text", [SLURM, "launch: {partition: gpu, num_processes: 2}\nseed: 7\n"])
def test_another_launcher_drops_what_only_the_experiments_own_has(text, option):
    experiment(text)
    run = config.build(config.compose_config(["experiment=mine", f"launch={option}"]))
    assert type(run.launch).__name__.lower() == option
    assert (run.launch.num_processes, run.seed) == (2, 7)


def test_the_same_launcher_keeps_the_experiments_settings():
    experiment("launch: {partition: gpu}\n")
    (job,) = config.compose_jobs(["experiment=mine", "launch=slurm"], multirun=False, to_start=False).jobs
    assert job.run.launch.partition == "gpu"


def test_a_launch_key_without_its_launcher_is_refused():
    experiment(SLURM)
    assert "launch=serial has no such key" in refused(["experiment=mine", "launch=serial", "launch.partition=x"])
    experiment("launch: {partitoin: gpu}\n")
    assert "launch.partitoin: unknown key" in refused(["experiment=mine", "launch=serial"])
    experiment("launch: {partition: gpu}\n")
    assert "kinds of launch with this key: slurm" in refused(["experiment=mine"])


def test_an_experiment_needs_no_package_line():
    Path("experiments").mkdir()
    Path("experiments/plain.yaml").write_text("seed: 7\n")
    assert config.compose(["+experiment=plain"]).seed == 7


def test_a_sweep_file_sweeps_by_itself(tmp_path):
    experiment(SWEEP.format(place=tmp_path / "place"))
    plan = config.compose_jobs(["experiment=mine"], multirun=False)
    assert plan.swept
    assert plan.sweep_dir == str(tmp_path / "place")
    assert [(job.run.trainer.learning_rate, job.run.dedup.threshold) for job in plan.jobs] == [
        (1e-4, 0.8), (1e-4, 0.9), (1e-3, 0.8), (1e-3, 0.9),
    ]  # fmt: skip
    assert all(list(job.axes) == ["trainer.learning_rate", "dedup.threshold"] for job in plan.jobs)


@pytest.mark.parametrize(
    ("word", "rates"), [("trainer.learning_rate=5e-5", {5e-5}), ("trainer.learning_rate=5e-5,6e-5", {5e-5, 6e-5})]
)
def test_the_command_line_beats_the_params_of_a_sweep_file(word, rates):
    experiment(SWEEP.format(place="here"))
    plan = config.compose_jobs(["experiment=mine", word, "hydra.sweep.dir=there"], multirun=False)
    assert {job.run.trainer.learning_rate for job in plan.jobs} == rates
    assert len(plan.jobs) == 2 * len(rates)
    assert plan.sweep_dir == "there"


def test_two_experiments_combine():
    experiment(BASE, "base")
    experiment(SWEEP.format(place="x"), "sweep")
    plan = config.compose_jobs(["+experiment=[base,sweep]"], multirun=False)
    assert (plan.name, len(plan.jobs)) == ("base+sweep", 4)
    assert plan.jobs[0].run.choices["model"] == "tiny_random"


def test_sweeping_over_experiments_with_hydra_settings_is_refused():
    experiment(BASE, "base")
    experiment(SWEEP.format(place="x"), "sweep")
    message = refused(["+experiment=base,sweep"], multirun=True)
    assert "sweep has hydra.* settings" in message
    assert "+experiment=[base,sweep]" in message


def test_sweeping_over_plain_experiments():
    experiment("seed: 1\n", "one")
    experiment("seed: 2\n", "two")
    plan = config.compose_jobs(["experiment=one,two"], multirun=True)
    assert [(job.axes, job.run.seed) for job in plan.jobs] == [({"experiment": "one"}, 1), ({"experiment": "two"}, 2)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dedup:\n  on: prompt\n", ["mine.yaml", "dedup.True", "quote it", "'on'"]),
        ("defaults:\n  - override /dedup: off\n", ["mine.yaml", "override /dedup", "quote it"]),
        ("trainer:\n  lr: 1\n", ["mine.yaml", "trainer.lr", "trainer.learning_rate"]),
        ("dedup:\n  treshold: 1\n", ["mine.yaml", "did you mean dedup.threshold?"]),
        ("logger: wandb\n", ["mine.yaml", "logger", "tracking"]),
        ("trainer:\n  max_steps: abc\n", ["mine.yaml", "trainer.max_steps", "'abc'", "must be a whole number"]),
        ("trainer:\n  max_steps: -7\n", ["trainer.max_steps=-7", "above 0"]),
        ("trainer: {lr: [3\n", ["mine.yaml", "not YAML", "line"]),
        ("defaults:\n  - override /dedup: semantc\n", ["dedup=semantc", "did you mean semantic?"]),
        ("defaults:\n  - override /dedpu: exact\n", ["mine.yaml", "dedpu", "did you mean dedup?"]),
        ("seed: ${threads\n", ["mine.yaml: contains an interpolation, ${...}, that cannot be parsed"]),
        ("defaults:\n  - override /filter: [none, length]\n", ["mine.yaml", "none cannot be combined"]),
        ("- a\n- list\n", ["mine.yaml", "keys and values"]),
    ],
)
def test_a_mistake_in_an_experiment_names_file_and_key(text, says):
    experiment(text)
    message = refused(["experiment=mine"])
    for part in says:
        assert part in message
    assert len(message.splitlines()) == 1


# --- own folders -----------------------------------------------------------------------------------------------


def test_the_working_folders_options_come_first():
    for place, seed in ((Path("experiments/quickstart.yaml"), 77), (Path("conf/dedup/exact.yaml"), None)):
        place.parent.mkdir(parents=True)
        text = (
            f"# @package _global_\nseed: {seed}\n"
            if seed
            else "defaults: [/schema/dedup/exact@_here_, _self_]\nkeep: longest\n"
        )
        place.write_text(text)
    run = config.compose(["experiment=quickstart", "dedup=exact"])
    assert run.seed == 77
    assert run.dedup.keep.name == "longest"


def test_a_further_folder_of_options(tmp_path):
    folder = tmp_path / "more, options"
    (folder / "dedup").mkdir(parents=True)
    (folder / "dedup" / "mine.yaml").write_text("defaults: [/schema/dedup/exact@_here_, _self_]\nkeep: singletons\n")
    plan = config.compose_jobs(["dedup=mine"], multirun=False, config_dir=str(folder))
    assert plan.jobs[0].run.dedup.keep.name == "singletons"
    with pytest.raises(ConfigError, match="--config-dir /no/such: no such folder"):
        config.compose_jobs([], multirun=False, config_dir="/no/such")
    assert "dedup=mine" in refused(["dedup=mine"])  # it was for that one command


def test_broken_yaml_in_an_own_option_names_the_file():
    Path("conf/dedup").mkdir(parents=True)
    Path("conf/dedup/mine.yaml").write_text("keep: [first\n")
    message = refused(["dedup=mine"])
    assert "conf/dedup/mine.yaml: not YAML (line" in message


# --- sweeps ----------------------------------------------------------------------------------------------------


def test_a_sweep_over_an_option_without_the_swept_key_is_refused_with_the_remedy():
    message = refused(["dedup=none,semantic", "dedup.threshold=0.8,0.9"], multirun=True)
    assert "dedup.threshold: dedup=none has no such key" in message
    assert "run two sweeps, each with only the keys its options have, then sft-lab compare" in message
    assert "job dedup=none dedup.threshold=0.8, job dedup=none dedup.threshold=0.9" in message


def test_all_bad_jobs_are_named_in_one_message():
    message = refused(["trainer.learning_rate=0,1e-4,-1", "split.eval_share=0.1,2"], multirun=True)
    assert message.startswith("3 problems:")
    assert "trainer.learning_rate=0.0: must be above 0 (job trainer.learning_rate=0 split.eval_share=0.1, " in message
    assert "trainer.learning_rate=-1.0" in message
    assert message.count("split.eval_share=2.0: must be") == 1
    assert "(job trainer.learning_rate=0.0001 split.eval_share=0.1" not in message


def test_a_problem_of_every_job_is_told_once():
    assert refused(["seed=1,2,3", "trainer.lr=1"], multirun=True) == (
        "trainer.lr: unknown key; use trainer.learning_rate"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trainer.lr=1,2"], "trainer.learning_rate"),
        (["seed=1,1"], "are the same job"),
        (["tracking=local,wandb"], "are the same job"),
        (["trainer.learning_rate=interval(0,1)"], "choice(a,b)"),
        (["seed=1,2", "hydra.run.dir=x"], "hydra.sweep.dir"),
        (["dedup=exact,semantc"], "did you mean semantic?"),
    ],
)
def test_bad_sweeps(words, says):
    assert says in refused(words, multirun=True)


def test_an_axis_may_bring_the_option_that_a_fixed_key_belongs_to():
    plan = config.compose_jobs(["model=smollm2_135m,opt_350m", "model.revision=abc"], multirun=True)
    assert [job.run.model.revision for job in plan.jobs] == ["abc", "abc"]


def test_sweep_grammar():
    plan = config.compose_jobs(["seed=range(1,4)", "dedup=glob(e*)"], multirun=True)
    assert [job.axes for job in plan.jobs] == [{"seed": str(seed), "dedup": "exact"} for seed in (1, 2, 3)]


@pytest.mark.parametrize(
    ("swept", "values"),
    [
        ("range(0.7,0.95,0.1)", ["0.7", "0.8", "0.9"]),  # Hydra's own are 0.7999999999999999 and so on
        ("sort(range(0.75,0.9,0.05),reverse=true)", ["0.85", "0.8", "0.75"]),
        ("range(0.6,0.9,0.1)", ["0.6", "0.7", "0.8"]),
        ("range(0.5,1)", ["0.5"]),
    ],
)
def test_a_range_is_as_exact_as_it_is_written(swept, values):
    plan = config.compose_jobs([f"dedup.threshold={swept}", "dedup=minhash"], multirun=True)
    assert [job.axes["dedup.threshold"] for job in plan.jobs] == values


def test_a_range_down_to_zero_does_not_have_it():
    plan = config.compose_jobs(["split.eval_share=range(0.4,0,-0.1)"], multirun=True)
    assert [job.axes["split.eval_share"] for job in plan.jobs] == ["0.4", "0.3", "0.2", "0.1"]


def test_compose_gives_one_run_only():
    experiment(SWEEP.format(place="x"))
    with pytest.raises(ConfigError, match="this experiment is a sweep"):
        config.compose(["experiment=mine"])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("dataset.path=بيانات.jsonl", "بيانات.jsonl"),
        ("dataset.path=/srv/données jolies.jsonl", "/srv/données jolies.jsonl"),
        ("dataset.path='بيانات (1).jsonl'", "بيانات (1).jsonl"),
        (
            "evaluation.prompts=[اذكر ثلاث مدن، من فضلك, 'a, é', Name one]",
            ["اذكر ثلاث مدن، من فضلك", "a, é", "Name one"],
        ),
        ("dataset.columns={prompt: سؤال, answer: جواب}", {"prompt": "سؤال", "answer": "جواب"}),
    ],
)
def test_a_bare_value_may_have_letters_of_any_script(word, value):
    """Hydra's grammar knows them in quotes alone, and an Arabic file name is no reason to learn of that."""
    key = word.partition("=")[0].split(".")
    for name in ("بيانات.jsonl", "بيانات (1).jsonl"):
        Path(name).write_text("{}")
    config_ = config.compose_config(["dataset=file", "dataset.path=x.jsonl", word])
    found = config_[key[0]][key[1]]
    assert (found if isinstance(found, str) else type(value)(found)) == value


def test_several_values_of_any_script_are_a_sweep():
    plan = config.compose_jobs(["evaluation.baseline.system_prompt=أجب,Antworte schön,b"], multirun=True)
    assert [job.run.evaluation.baseline.system_prompt for job in plan.jobs] == ["أجب", "Antworte schön", "b"]


# --- saved configs ---------------------------------------------------------------------------------------------


# Options of every group; together they have every schema that a run can hold.
OPTIONS = {
    "dataset": ["starter", "file dataset.path=rows.jsonl", "hub dataset.name=a/b", "smoltalk", "sharegpt_english"],
    "dedup": ["none", "exact", "semantic"],
    "template": ["auto", "chatml", "plain", "mistral"],
    "model": ["tiny_random", "smollm2_135m_bundled", "opt_350m"],
    "trainer": ["lora", "full", "smoke"],
    "filter": ["none", "[length,answered]"],
    "tracking": ["local", "tensorboard", "wandb"],
}


@pytest.mark.parametrize("round_", range(max(map(len, OPTIONS.values()))))
def test_a_saved_config_is_the_same_run_again(round_, tmp_path):
    Path("rows.jsonl").write_text("{}\n")
    words = [f"{group}={options[round_ % len(options)]}" for group, options in OPTIONS.items()]
    run = config.compose(" ".join(words).split())
    file = tmp_path / "config.yaml"
    file.write_text(run.to_yaml(), encoding="utf-8")
    again = config.load(file)
    assert (again.saved(), again.hash) == (run.saved(), run.hash)
    assert again.to_yaml() == file.read_text(encoding="utf-8")
    assert same_types(run, again)


def same_types(one: object, other: object) -> bool:
    if not is_dataclass(one):
        return one == other
    return type(one) is type(other) and all(
        same_types(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
    )


@pytest.fixture(scope="module")
def saved() -> str:
    return config.compose(["model=tiny_random", "dedup=exact", "tracking=local"]).to_yaml()


def load(text: str, overrides: list[str] | None = None) -> Run:
    file = Path("config.yaml")
    file.write_text(text, encoding="utf-8")
    return config.load(file, overrides)


def test_a_config_saved_before_a_bound_on_records_is_the_same_job(saved):
    without = "".join(line for line in saved.splitlines(keepends=True) if "max_record_mb" not in line)
    assert without != saved
    assert load(without).hash == load(saved).hash == load(saved, ["dataset.max_record_mb=1"]).hash


def test_overrides_of_a_saved_config(saved):
    assert load(saved, ["trainer.learning_rate=1e-5", "seed=3"]).seed == 3


HOSTILE = {
    "interpolation": (lambda text: text.replace("seed: 42", "seed: ${oc.env:HOME}"), "interpolation"),
    "escaped interpolation": (lambda text: text.replace("optim: adamw_torch", "optim: \\${oc.env:HOME}"), "interpol"),
    "target in a stage": (
        lambda text: text.replace("  kind: exact", "  kind: exact\n  _target_: os.system"),
        "_target_",
    ),
    "target in a free mapping": (
        lambda text: text.replace("sft_config: {}", "sft_config: {a: {_target_: os.system}}"),
        "trainer.sft_config.a._target_",
    ),
    "target at the root": (lambda text: text + "_target_: os.system\n", "_target_"),
    "python tag": (lambda text: text + "x: !!python/object/apply:os.system ['touch pwned']\n", "not YAML"),
    "python name": (lambda text: text.replace("seed: 42", "seed: !!python/name:os.system"), "not YAML"),
    "unknown kind": (lambda text: text.replace("kind: exact", "kind: exakt"), "dedup.kind=exakt: must be one of none"),
    "kind that is a list": (lambda text: text.replace("kind: exact", "kind: [exact]"), "dedup.kind=['exact']"),
    "no kind": (lambda text: text.replace("  kind: exact\n", ""), "dedup.kind=None"),
    "unknown key": (lambda text: text.replace("  kind: exact", "  kind: exact\n  kep: first"), "dedup.kep"),
    "unknown key at the root": (lambda text: text + "sead: 1\n", "did you mean seed?"),
    "key that is a number": (lambda text: text + "1: 2\n", "1: unknown key"),
    "wrong type": (lambda text: text.replace("seed: 42", "seed: abc"), "seed=abc"),
    "wrong type in a stage": (lambda text: text.replace("keep: first", "keep: fist"), "dedup.keep"),
    "out of range": (lambda text: text.replace("max_steps: -1", "max_steps: -7"), "trainer.max_steps=-7"),
    "not finite": (lambda text: text.replace("weight_decay: 0.0", "weight_decay: .inf"), "trainer.weight_decay=inf"),
    "stage that is text": (lambda text: re.sub(r"dedup:\n(  .*\n)+", "dedup: exact\n", text), "dedup.kind=None"),
    "filters that are a list": (lambda text: re.sub(r"\nfilter:\n(  .*\n)+", "\nfilter: [a]\n", text), "filter=['a']"),
    "filters that are null": (lambda text: re.sub(r"\nfilter:\n(  .*\n)+", "\nfilter: null\n", text), "filter=None"),
    "missing stage": (lambda text: re.sub(r"dedup:\n(  .*\n)+", "", text), "missing dedup"),
    "format of tomorrow": (lambda text: text.replace("format: 1", "format: 2"), "format=2: this version"),
    "no format": (lambda text: text.replace("format: 1\n", ""), "format=None"),
    "list at the root": (lambda _: "- format: 1\n", "keys and values"),
    "text at the root": (lambda _: "hello\n", "format=None"),
    "empty": (lambda _: "", "format=None"),
    "not YAML": (lambda text: text + "a: [1\n", "not YAML"),
    "alias into itself": (lambda text: text + "x: &a [*a]\n", "config.yaml"),
}


@pytest.mark.parametrize(("change", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_saved_config_is_refused_and_runs_nothing(saved, change, says):
    text = change(saved)
    assert text != saved
    with pytest.raises(ConfigError) as caught:
        load(text)
    message = str(caught.value)
    assert "config.yaml" in message
    assert says in message
    assert not RAW.search(message), message
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["config.yaml"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("seed=${oc.env:HOME}", "interpolation"),
        ("trainer.lr=1", "trainer.lr"),
        ("dedup=semantic", "dedup.kind"),
        ("trainer.learning_rate=-1", "trainer.learning_rate=-1.0"),
        ("sead=1", "did you mean seed?"),
        ("seed=[1", "not YAML"),
    ],
)
def test_a_bad_override_of_a_saved_config(saved, word, says):
    with pytest.raises(ConfigError) as caught:
        load(saved, [word])
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00broken"])
def test_a_saved_config_that_cannot_be_read(content):
    file = Path("config.yaml")
    if content:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        config.load(file)


def test_a_model_is_called_what_others_can_find_it_by():
    """An adapter's config must not name a folder of a store that nobody else has."""

    def called(*words: str) -> tuple[str, str | None]:
        model = config.compose([*words]).model
        return model.base_name, model.base_revision

    assert called("model=smollm2_135m_bundled") == ("HuggingFaceTB/SmolLM2-135M-Instruct", None)
    assert called("model=opt_350m", "model.revision=v2") == ("facebook/opt-350m", "v2")
    assert called("model=tiny_random") == ("", None)
    Path("mine").mkdir()
    Path("mine/config.json").write_text("{}")
    Path("mine/tokenizer.json").touch()
    assert called("model=local", "model.name_or_path=./mine", "model.revision=v2") == (
        str(Path("mine").absolute()),
        None,
    )


def test_a_saved_config_has_every_key(capsys):
    """Those too that later versions added: their defaults are written, though no hash counts them."""
    words = ["model=tiny_random", "trainer=lora"]
    run = config.compose(words)
    saved = yaml.safe_load(run.to_yaml())
    assert main(["--cfg", "job", *words]) == 0
    known = {path for path, _ in all_keys(yaml.safe_load(capsys.readouterr().out))}
    assert {"trainer.peft.config", "dataset.reasoning"} <= known
    assert known - {"plugins"} <= {path for path, _ in all_keys(saved)}
    without = run.saved()
    assert "config" not in without["trainer"]["peft"]
    assert completed(without) == saved
    assert {config.from_saved(content, "config.yaml").hash for content in (saved, without)} == {run.hash}
