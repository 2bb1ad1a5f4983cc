"""What people type in the place of an option: a file, a name of the Hub, values parted by a space."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sft_lab import compose
from sft_lab.cli.arguments import parse
from sft_lab.config.compose import compose_jobs
from sft_lab.config.error_messages import field_names
from sft_lab.config.other_names import BY_VALUE, OUR_NAMES, our_name
from sft_lab.config.shortcuts import expand
from sft_lab.core.errors import ConfigError
from sft_lab.run.schemas import SCHEMAS
from sft_lab.training.config import Peft


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("dataset=rows.jsonl", ["dataset=file", "dataset.path=rows.jsonl"]),
        ("dataset=my rows.csv.gz", ["dataset=file", "dataset.path=my rows.csv.gz"]),
        ("dataset=s3://bucket/rows", ["dataset=file", "dataset.path=s3://bucket/rows"]),
        ("dataset=./saved", ["dataset=file", "dataset.path=./saved"]),
        ("dataset=a.jsonl,b.parquet", ["dataset=file", "dataset.path=a.jsonl,b.parquet"]),
        ("dataset=tatsu-lab/alpaca", ["dataset=hub", "dataset.name=tatsu-lab/alpaca"]),
        ("model=mistralai/Mistral-7B-v0.3", ["model=hub", "model.name_or_path=mistralai/Mistral-7B-v0.3"]),
        ("model=./mine", ["model=hub", "model.name_or_path=./mine"]),
        ("dataset=starter", ["dataset=starter"]),
        ("dataset=starter,rows.jsonl", ["dataset=starter,rows.jsonl"]),
        ("model=opt_350m", ["model=opt_350m"]),
        ("dataset.path=rows.jsonl", ["dataset.path=rows.jsonl"]),
        ("dataset=none.txt", ["dataset=none.txt"]),
    ],
)
def test_what_a_shortcut_stands_for(typed: str, meant: list[str]) -> None:
    assert expand(typed) == meant


def test_a_folder_with_a_slash_is_a_folder(here: Path) -> None:
    (here / "saved" / "rows").mkdir(parents=True)
    assert expand("dataset=saved/rows") == ["dataset=file", "dataset.path=saved/rows"]


def test_a_file_of_no_known_kind_is_answered_with_the_kinds(here: Path, tiny: list[str]) -> None:
    Path("notes.txt").touch()
    with pytest.raises(ConfigError, match=r"notes\.txt is not a supported file type; give .*\.jsonl"):
        compose([*tiny, "dataset=notes.txt"])


def test_names_of_other_trainers_are_answered_with_keys_that_exist() -> None:
    known = {
        f"{group}.{name}" for group, kinds in SCHEMAS.items() for kind in kinds.values() for name in field_names(kind)
    }
    known |= {*SCHEMAS, *(f"trainer.peft.{name}" for name in field_names(Peft)), "hydra.run.dir", "hydra.sweep.dir"}
    for name in OUR_NAMES:
        answer = our_name(f"trainer.{name}") or ""
        keys = re.findall(
            r"\b(?:trainer|model|dataset|split|template|launch|tracking|hydra|dedup)(?:\.[a-z_]+)*", answer
        )
        assert keys or "SFT_LAB_TRUST_REMOTE_CODE" in answer or "the command sft-lab" in answer
        assert set(keys) - known <= {"dataset.jsonl", "dataset.sources", "dataset.file.jsonl"}, name


ANSWERS = {our_name(name, value) or "" for name, answers in BY_VALUE.items() for value in answers}


# The others need a GPU or a package that this machine may lack.
@pytest.mark.parametrize("answer", sorted(answer for answer in ANSWERS if not re.search("qlora|fp16", answer)))
def test_an_answer_to_a_value_can_be_copied(answer: str, tiny: list[str]) -> None:
    compose([*tiny, *answer.split()])


def test_the_length_of_another_trainer_can_be_copied(tiny: list[str]) -> None:
    run = compose([*tiny, *(our_name("sequence_len", 4096) or "").split()])
    assert run.trainer.max_length == run.split.max_eval_tokens == run.filter["length"].max_tokens == 4096


def test_every_bundled_template_is_known_by_the_key_of_axolotl() -> None:
    options = (Path(__file__).parents[2] / "conf" / "template").glob("*.yaml")
    names = {path.stem for path in options} - {"file"}
    assert len(names) > 5
    assert {name: our_name("chat_template", name) for name in names} == {name: f"template={name}" for name in names}


def test_every_key_in_the_table_of_other_trainers_is_answered_with_ours() -> None:
    page = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text()
    rows = page.partition("\n## Keys\n")[2].partition("\n## ")[0].split("\n| ")[2:]
    theirs = {name for row in rows for name in re.findall(r"`([a-z_]{4,})`", row.partition(" | ")[2])}
    ours = {name for kinds in (*SCHEMAS.values(), {"": Peft}) for kind in kinds.values() for name in field_names(kind)}
    assert len(theirs) > 50
    assert [name for name in sorted(theirs - ours - {*SCHEMAS, "type", "qlora"}) if not our_name(name)] == []


def test_options_of_sbatch_are_answered_with_keys_that_exist() -> None:
    known = {f"launch.{name}" for name in field_names(SCHEMAS["launch"]["slurm"])}
    for name in ("time", "gres", "tasks_per_node", "mem", "exclude"):
        keys = set(re.findall(r"launch\.\w+", our_name(f"launch.{name}") or ""))
        assert keys
        assert keys <= known
    assert our_name("tracking.time") is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("lora_r=8", "lora_r: unknown key; use trainer.peft.r"),
        ("tracking.api_key=x", "tracking.api_key: unknown key; use tracking=wandb after `wandb login`"),
        ("launch.time=9", "launch.time: unknown key; use launch.timeout_min=..., in minutes"),
        (
            "trainer.sequence_len=9",
            "use trainer.max_length=9 filter.length.max_tokens=9 split.max_eval_tokens=9$",
        ),
        ("chat_template=chatml", "chat_template: unknown key; use template=chatml$"),
        ("chat_template=mine.jinja", r"use template=file template\.path=mine\.jinja$"),
        ("chat_template=llama3", r"use template=auto \(the model's own\) or template=file template\.path=FILE$"),
        ("ckpt_path=last.ckpt", "ckpt_path: unknown key; use the command sft-lab exec RUN_DIR$"),
        ("trainer.max_epochs=3", r"use trainer\.num_train_epochs$"),
        ("launch.slurm_qos=x", r"use launch=slurm launch\.qos$"),
        ("launch.slurm_frobnicate=9", "launch.slurm_frobnicate: unknown key; known keys"),
        ("launch.slurm_time=9", r"use launch\.timeout_min=\.\.\., in minutes$"),
        ("adapter=null", "adapter: unknown key; use trainer=full$"),
        ("trainer.neftune_noise_alpha=5", r"SFTConfig with \+trainer\.sft_config\.neftune_noise_alpha=\.\.\."),
    ],
)
def test_a_key_of_another_trainer(typed: str, message: str, tiny: list[str]) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([*tiny, typed])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--dataset", "mine.jsonl"], "settings have no dashes: dataset=VALUE"),
        (["--seed=3"], "settings have no dashes: seed=3"),
        (["--lora_rank", "8"], "unknown option --lora_rank; use trainer.peft.r"),
        (["--cutoff_len", "99"], "use trainer.max_length=99 filter.length.max_tokens=99"),
        (["--cutoff_len=99"], "use trainer.max_length=99 filter.length.max_tokens=99"),
        (["--cutoff_len"], r"use trainer.max_length=... filter.length.max_tokens=..."),
        (["--config", "my.yml"], "--config: takes no file; settings in a YAML file are an experiment: save it as exp"),
        (["--config=my.yml"], "experiments/my.yaml and write +experiment=my (docs/options.md"),
        (["-c", "my.yml"], "-c: takes no file; settings in a YAML file are an experiment"),
        (["seed=1", "--config_file"], "--config_file: takes no file; settings in a YAML file are an experiment"),
    ],
)
def test_settings_typed_as_options(typed: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["train", *typed])
    assert message in capsys.readouterr().err


def test_a_file_is_a_dataset(here: Path, tiny: list[str]) -> None:
    Path("my rows.jsonl").write_text('{"prompt": "Say 1.", "completion": "1!"}\n')
    short = compose([*tiny, "dataset=my rows.jsonl"])
    assert short.hash == compose([*tiny, "dataset=file", "dataset.path=my rows.jsonl"]).hash


def test_a_file_without_its_key_is_answered_with_the_key(here: Path) -> None:
    Path("rows.jsonl").touch()
    with pytest.raises(ConfigError, match=r"rows\.jsonl: has no key; write dataset=rows\.jsonl"):
        compose(["rows.jsonl"])


@pytest.mark.parametrize("typed", ["my.yml", "configs/my.yaml", "+experiment=my.yml", "experiment=configs/my.yaml"])
def test_a_file_of_settings_is_answered_with_how_to_run_one(typed: str, here: Path) -> None:
    with pytest.raises(ConfigError) as error:
        compose([typed])
    assert str(error.value).startswith(f"{typed}: ")
    assert "save it as experiments/my.yaml and write +experiment=my (docs/options.md" in str(error.value)

    Path("experiments").mkdir()
    Path("experiments/my.yaml").write_text("seed: 7\n")
    with pytest.raises(ConfigError, match=r"are an experiment: write \+experiment=my \("):
        compose(["experiments/my.yaml"])
    assert compose(["+experiment=my"]).seed == compose(["+experiment=my.yaml"]).seed == 7


def test_a_saved_config_is_answered_with_replay(here: Path, tiny: list[str]) -> None:
    Path("config.yaml").write_text(compose(tiny).to_yaml())
    with pytest.raises(ConfigError, match=r"config\.yaml: is not an override; .* write sft-lab replay config\.yaml"):
        compose(["config.yaml"])


@pytest.mark.parametrize("typed", [["seed=", "3"], ["seed", "=3"], ["seed", "=", "3"]])
def test_a_space_at_the_equals_sign(typed: list[str], tiny: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose([*tiny, *typed, "dedup.keep=longest"])
    assert str(error.value) == f"{' '.join(typed)}: no space may stand before or after =; write seed=3"


def test_an_empty_value_takes_nothing_from_what_follows(here: Path, tiny: list[str]) -> None:
    run = compose([*tiny, "tracking=wandb", "tracking.notes=", "seed=3"])
    assert (run.tracking.notes, run.seed) == ("", 3)  # type: ignore[attr-defined]


def test_values_with_a_space_between_them(tiny: list[str]) -> None:
    plan = compose_jobs([*tiny, "trainer.learning_rate=1e-4,", "2e-4"], multirun=True)
    assert [job.run.trainer.learning_rate for job in plan.jobs] == [1e-4, 2e-4]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["dedup.threshold", "0.9"], ["dedup.threshold: has no value; write dedup", "0.9: has no key; write"]),
        (["dedup.threshold=0.8,"], ["0.8,: cannot be read as key=value; a value is missing after the last comma"]),
        (["tracking.project='mine"], ["tracking.project='mine: cannot be read as key=value; quote it"]),
    ],
)  # fmt: skip
def test_slips_are_answered_without_a_parsers_words(typed: list[str], message: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose_jobs(typed, multirun=True)
    for part in message:
        assert part in str(error.value)
    assert "expecting" not in str(error.value)


def test_an_arabic_comma_is_refused_only_where_it_cannot_be_read(here: Path, tiny: list[str]) -> None:
    Path("أ، ب.jsonl").write_text('{"prompt": "Say 1.", "completion": "1!"}\n', encoding="utf-8")
    assert compose([*tiny, "dataset=file", "dataset.path=أ، ب.jsonl"]).dataset.named().endswith("أ، ب.jsonl")
    with pytest.raises(ConfigError, match=r"it contains ، \(U\+060C ARABIC COMMA\); type , instead"):
        compose([*tiny, "filter=[answered،length]"])
