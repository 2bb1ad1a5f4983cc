"""W&B is really used: offline runs written by its client and read back with its own tool."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sft_lab.cli.main import main
from sft_lab.core.io import write_json, write_text
from sft_lab.core.run_dir import RunDir
from sft_lab.core.tolerant_readers import read_metrics
from sft_lab.core.types import Verdict
from sft_lab.tracking.config import Mirror, Mode, Wandb
from sft_lab.tracking.record import Record
from sft_lab.tracking.tracked_run import TrackedRun, summary_values, tracking_id


def inspect(run: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wandb") / "my_sweep"
    words = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1"]
    more = ["trainer.max_steps=4", "evaluation.prompts=[Hello]", "tracking.tags=[one,two]", "tracking.project=mine"]
    assert main(["-m", *words, *more, "trainer.learning_rate=1e-3,2e-3", f"hydra.sweep.dir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_jobs_of_one_process_do_not_mix(sweep: Path) -> None:
    runs = {run.name.split("-", 3)[3]: run for run in (sweep / "wandb").glob("offline-run-*")}
    jobs = sorted(path.parent for path in sweep.glob("*/summary.json"))
    assert len(runs) == len(jobs) == 2
    for job in jobs:
        records = inspect(runs[json.loads((job / "manifest.json").read_text())["tracking_id"]])
        run = next(record["run"] for record in records if record["type"] == "run")
        config = run["config"]["update"]
        assert config["trainer"]["learning_rate"] == float(job.name.rpartition("-")[0].removeprefix("learning_rate_"))
        assert config["trainer"]["peft"]["r"] == 16  # nested as deep as it is
        assert not [key for key in config if "." in key]
        assert (run["run_group"], run["job_type"], run["project"]) == ("my_sweep", "train", "mine")
        assert run["display_name"] == job.name.rpartition("-")[0]
        assert run["tags"] == ["one", "two"]

        text = json.dumps(records)
        for part in ("train/loss", "train/grad_norm", "train/learning_rate", "train/global_step", "train/epoch",
                     "eval/loss", "waterfall", "samples", "outputs", "verdict", "evidence.not_judged.says",
                     "figures/tokens", "figures/waterfall", "languages", "longest", "model_rows"):  # fmt: skip
            assert part in text, part


PREPARE = ["prepare", "model=tiny_random", "trainer=smoke", "dedup=none", "filter=none", "tracking=wandb",
           "decontaminate.method=none", "evaluation.general=null", "threads=1", "dataset.limit=20"]  # fmt: skip


def tracked_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the record ``run`` of each offline run, in their order."""
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    return [next(record["run"] for record in inspect(run) if record["type"] == "run") for run in runs]


@pytest.mark.slow
def test_a_job_in_two_sweep_folders_is_two_runs_and_one_that_goes_on_is_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-m", *PREPARE[1:], "seed=1"]
    for folder in ("mine", "yours"):
        assert main(["prepare", *command, f"hydra.sweep.dir={folder}"]) == 0
        assert f"wandb sync {folder}/wandb/offline-run-*\n" in capsys.readouterr().out
    (status,) = Path("mine").glob("*/status.json")
    status.unlink()
    assert main(["prepare", *command, "hydra.sweep.dir=mine"]) == 0

    mine, yours = tracked_runs(here / "mine"), tracked_runs(here / "yours")
    assert [run["run_group"] for run in (*mine, *yours)] == ["mine", "mine", "yours"]
    assert mine[0]["run_id"] == mine[1]["run_id"] != yours[0]["run_id"]
    assert mine[0]["job_type"] == "prepare"


@pytest.mark.slow
def test_labels(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_JOB_TYPE", "nightly")
    monkeypatch.setenv("WANDB_RUN_GROUP", "not this")
    labels = ["tracking.name=my run", "tracking.notes=why", "tracking.group=a group", "hydra.run.dir=run"]
    assert main([*PREPARE, *labels]) == 0
    (run,) = tracked_runs(here / "run")
    names = ("display_name", "notes", "run_group", "job_type")
    assert [run[name] for name in names] == ["my run", "why", "a group", "nightly"]


@pytest.mark.parametrize(
    ("folder", "choices", "chosen", "name"),
    [
        ("05-48-47", {"model": "opt_350m", "trainer": "lora"}, None, "starter-exact-opt_350m-lora"),
        ("05-48-47-2", {"model": "local", "trainer": "lora"}, None, "starter-exact-base-lora"),
        ("05-48-47", {"model": "opt_350m", "dataset": "file"}, None, "rows.jsonl-exact-opt_350m"),
        ("05-48-47", {"model": "opt_350m"}, "mine", "mine"),
        ("first_try", {"model": "opt_350m"}, None, "first_try"),
        ("sweep/seed=1-0123456789ab", {"model": "opt_350m"}, None, "seed=1"),
        ("sweep/seed=1-0123456789ab", {"model": "opt_350m"}, "mine", "mine-seed=1"),
        ("sweep/0123456789ab", {"model": "opt_350m"}, None, "0123456789ab"),
    ],
)
def test_the_name_of_a_run(folder: str, choices: dict[str, Any], chosen: str | None, name: str, tmp_path: Path) -> None:
    path = tmp_path / folder
    if path.parent != tmp_path:
        write_json(path.parent / "sweep.json", {})
    config = {
        "choices": {"dataset": "starter", "dedup": "exact", **choices},
        "dataset": {"path": "/data/rows.jsonl"},
        "model": {"name_or_path": "/models/base/"},
    }
    assert TrackedRun(RunDir(path), "id", config).name(chosen) == name


def test_jobs_that_would_have_one_name_have_their_hash_behind_it(tmp_path: Path) -> None:
    write_json(tmp_path / "sweep.json", {})
    names = ["lr_1-0123456789ab", "lr_1-ba9876543210", "lr_2-0123456789ab"]
    for name in names:
        (tmp_path / name).mkdir()
    assert [TrackedRun(RunDir(tmp_path / name), "id", {}).name() for name in names] == [*names[:2], "lr_2"]


def test_the_name_of_a_single_run_has_the_values_that_were_set(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "05-48-47")
    overrides = [
        "dedup=exact",
        "trainer.learning_rate=0.001",
        "+seed=7",
        "tracking.project=p",
        "store.path=/s",
        "x=[1]",
    ]
    write_text(folder.hydra / "overrides.yaml", yaml.safe_dump(overrides))
    run = TrackedRun(folder, "id", {"seed": 7, "trainer": {}, "choices": {"dedup": "exact", "model": "opt_350m"}})
    assert run.name() == "exact-opt_350m-learning_rate=0.001-seed=7"


def test_the_kind_of_job(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    assert [TrackedRun(folder, "id", {}, work).job_type for work in ("run", "prepare")] == ["train", "prepare"]
    write_json(folder.trial, {"number": 1})
    assert [TrackedRun(folder, "id", {}, work).job_type for work in ("run", "prepare")] == ["search", "prepare"]


def test_the_id_of_a_folder(tmp_path: Path) -> None:
    """It stays; one of an older version that had none goes on under the id that it had."""
    first, second = RunDir(tmp_path / "a" / "job"), RunDir(tmp_path / "b" / "job")
    ids = [tracking_id(folder, "0123456789ab") for folder in (first, second)]
    assert ids[0] != ids[1]
    assert {known[:13] for known in ids} == {"0123456789ab-"}

    write_json(first.manifest, {"job": "0123456789ab", "tracking_id": ids[1]})
    assert tracking_id(first, "0123456789ab") == ids[1]
    write_json(first.manifest, {"job": "0123456789ab", "tracking_id": "../../else"})
    assert tracking_id(first, "0123456789ab").startswith("0123456789ab-")
    write_json(first.path.parent / "sweep.json", {})
    write_json(first.manifest, {"job": "0123456789ab"})
    assert tracking_id(first, "0123456789ab") == "0123456789ab"


def test_a_verdict_is_sent_as_the_summary_has_it() -> None:
    """W&B takes the name of an enum's member, in capitals."""
    value = summary_values({"verdict": Verdict.HEALTHY})["verdict"]
    assert (type(value), value) == (str, "healthy")


def test_a_summary_has_a_value_for_each_number_of_the_evidence() -> None:
    rules = [("diverged", 0.1, "x"), ("template_not_learned", 0.2, "y"), ("template_not_learned", 0.3, "z")]
    evidence = [{"rule": rule, "value": value, "limit": 0.5, "says": text} for rule, value, text in rules]
    values = summary_values({"evidence": evidence, "advice": {"says": "a"}, "sources": {"s": {"eval/loss": 1.0}}})
    assert values["evidence.diverged.value"] == 0.1
    assert values["evidence.template_not_learned.value"] == 0.2
    assert values["evidence.template_not_learned_2.says"] == "z"
    assert (values["advice.says"], values["sources.s.eval/loss"]) == ("a", 1.0)


def test_metrics_of_an_older_run_have_the_names_of_today(tmp_path: Path) -> None:
    """In a folder that is read, and in one whose training goes on."""
    file = tmp_path / "metrics.jsonl"
    events = [{"step": step, "train/loss": 2.0, "learning_rate": 1e-4, "grad_norm": 0.5} for step in (1, 2, 3)]
    file.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    renamed = {"step": 1, "train/loss": 2.0, "train/learning_rate": 1e-4, "train/grad_norm": 0.5}
    assert read_metrics(file)[0] == renamed
    record = Record(file, Mirror(), from_step=2)
    record({"step": 3, "train/learning_rate": 2e-4})
    assert record.curve("train/learning_rate") == [(1, 1e-4), (2, 1e-4), (3, 2e-4)]
    assert [event.get("train/learning_rate") for event in read_metrics(file)] == [1e-4, 1e-4, 2e-4]


@pytest.mark.parametrize(
    ("config", "environment", "mode"),
    [
        (Mode.auto, {}, "offline"),
        (Mode.auto, {"WANDB_MODE": "disabled"}, "disabled"),
        (Mode.auto, {"WANDB_API_KEY": "x" * 40}, "online"),
        (Mode.auto, {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, "offline"),
        (Mode.offline, {"WANDB_MODE": "online"}, "offline"),
        (Mode.online, {"WANDB_MODE": "offline"}, "online"),
    ],
)
def test_config_beats_environment_beats_login(
    config: Mode, environment: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Wandb(mode=config).resolved_mode() == mode
    online = Wandb(mode=config).going_online()
    assert bool(online) == (mode == "online")
    assert not online or "samples of your texts" in online


@pytest.mark.parametrize(
    ("machine", "server", "mode"),
    [
        ("api.wandb.ai", None, "online"),  # as logins of older clients have it
        ("api.forge.coreweave.com", None, "online"),
        ("wandb.example.org", None, "offline"),
        ("wandb.example.org:8080", "https://wandb.example.org:8080", "online"),
        ("api.wandb.ai", "https://wandb.example.org:8080", "offline"),
    ],
)
def test_a_netrc_is_a_login(
    machine: str, server: str | None, mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For the server of the environment, else for that of `wandb login --host`."""
    (tmp_path / "netrc").write_text(f"machine {machine} login user password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if server:
        (tmp_path / "settings").write_text(f"[default]\nbase_url = {server}\n")
        assert Wandb().resolved_mode() == mode
        (tmp_path / "settings").unlink()
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert Wandb().resolved_mode() == mode
