"""The command line: exit codes, what is written where, and that looking costs nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sft_lab.cli import main
from sft_lab.cli.shell_completion import candidates
from sft_lab.core.option_files import shipped
from sft_lab.core.store import Store

HEAVY = {"torch", "transformers", "datasets", "wandb", "numpy"}
SMALL = ["model=tiny_random", "dedup=exact", "decontaminate.method=exact", "tracking=local", "threads=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, with a store outside it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("SFT_LAB_STORE", str(tmp_path / "store"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sft_lab", *words], capture_output=True, text=True, check=False)


def ended(*words: str) -> int:
    """Exit code of a command in this process; argparse ends by SystemExit."""
    try:
        return main.main(list(words))
    except SystemExit as exit_:
        return int(exit_.code or 0)


def nothing_left() -> bool:
    return list(Path.cwd().iterdir()) == []


# --- looking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--cfg", "job"], 0),
        (["dedup.treshold=0.9"], 2),
        (["-m", "dedup=none,semantic", "dedup.threshold=0.8,0.9"], 2),
    ],
)
def test_nothing_heavy_is_imported_to_look_or_to_refuse(words, code):
    script = (
        "import json, sys\nfrom sft_lab.cli.main import main\n"
        f"sys.argv = ['sft-lab', *{words!r}]\n"
        "try:\n    code = main()\nexcept SystemExit as exit_:\n    code = exit_.code or 0\n"
        "print('\\n' + json.dumps([code, sorted(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found, modules = json.loads(done.stdout.splitlines()[-1])
    assert found == code
    assert HEAVY.isdisjoint(modules)
    assert nothing_left()


def test_help_needs_no_hydra():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sft_lab", "--help"], capture_output=True, text=True, check=True
    )
    assert "sft_lab.cli.main" in done.stderr
    assert not re.search(r"\| +(hydra|omegaconf|yaml)$", done.stderr, re.MULTILINE)
    assert set(re.findall(r"\| +sft_lab\.(\w+)", done.stderr)) == {"cli", "core"}  # and none of a run's stages


@pytest.mark.parametrize("words", [["--help"], ["-h"], *([name, "--help"] for name in main.COMMANDS)])
def test_every_help_has_two_examples_that_are_commands(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert ended(*words) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if len(line) > 100] == []
    examples = re.findall(r"^  sft-lab( .*|)$", shown.partition("examples:\n")[2], re.MULTILINE)
    assert len(examples) >= 2
    if len(words) == 2 and words[0] != "train":
        assert all(example.split()[0] == words[0] for example in examples)


def test_help_lists_every_option_and_the_working_folders_own(capsys):
    own = Path("experiments/my_experiment.yaml")
    own.parent.mkdir()
    own.write_text("# @package _global_\n# What I tried.\nseed: 1\n")
    assert ended("--help") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^    semantic +Rows with nearly the same meaning", shown, re.MULTILINE)
    assert re.search(r"^  dedup/embedder\n    bge_m3 +BAAI", shown, re.MULTILINE)
    assert re.search(r"^    my_experiment +What I tried\.$", shown, re.MULTILINE)
    told = " ".join(shown.split())
    for file in [*shipped("conf").glob("*/**/*.yaml"), *shipped("experiments").glob("*.yaml")]:
        says = next(line for line in file.read_text().splitlines() if line[0] == "#" and "@package" not in line)
        assert f" {file.stem} {says.lstrip('# ')} " in f"{told} "
    assert ended("store", "--help") == 0
    assert "semantic" not in capsys.readouterr().out


def test_version(capsys):
    assert ended("--version") == 0
    shown = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert shown.keys() >= {"sft_lab", "hydra-core", "torch", "python"}


def test_cfg_job_shows_the_composed_config(capsys):
    assert ended("--cfg", "job", "dedup=exact", "trainer.learning_rate=1e-5") == 0
    shown = capsys.readouterr().out
    assert "learning_rate: 1.0e-05" in shown
    assert "hydra" not in shown
    assert nothing_left()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--cfg", "job", "-p", "dedup", "dedup=exact"], "keep: first\n'on': answer\n"),
        (["dedup=exact", "--cfg", "job", "--package", "dedup.keep"], "Keep.first\n"),
        (["-p", "seed", "seed=7", "--cfg", "job"], "7\n"),
        (["--cfg", "job", "-p", "trainer.peft.target_modules"], "- all-linear\n"),
        (["-c", "hydra", "-p", "hydra.sweep", "hydra.sweep.dir=x"], "dir: x\nsubdir: ???\n"),
        (["--cfg", "all", "-p", "hydra.sweep.subdir"], "???\n"),
        (["--cfg", "all", "-p", "seed", "seed=7"], "7\n"),
    ],
)
def test_cfg_job_shows_a_part(words, shown, capsys):
    assert ended(*words) == 0
    assert capsys.readouterr().out == shown


def test_cfg_job_of_a_sweep_file_shows_its_base(capsys):
    own = Path("experiments/mine.yaml")
    own.parent.mkdir()
    own.write_text("# @package _global_\nseed: 7\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n")
    assert ended("--cfg", "job", "-p", "seed", "experiment=mine") == 0
    assert capsys.readouterr().out == "7\n"


def test_a_config_of_the_users_own_may_be_the_primary_one(capsys):
    Path("conf").mkdir()
    Path("conf/mine.yaml").write_text("defaults:\n  - config\n  - override dedup: exact\n  - _self_\nseed: 7\n")
    Path("conf/bare.yaml").write_text("seed: 7\n")
    for words, shown in (
        (["-cn", "mine", "-p", "seed"], "7\n"),
        (["--config-name=mine.yaml", "-p", "seed", "seed=8"], "8\n"),
        (["--config-name", "mine", "-p", "dedup.keep"], "Keep.first\n"),
    ):
        assert ended("--cfg", "job", *words) == 0
        assert capsys.readouterr().out == shown
    assert ended("plan", "--config-name", "mine", "-m", "model=tiny_random", "seed=1,2") == 0
    assert "Dedup" not in capsys.readouterr().out  # which semantic dedup would have announced
    for name, problem in (("bare", "does not extend config"), ("nowhere", "no such config; available: bare")):
        assert ended("plan", "--config-name", name) == 2
        assert f"--config-name {name}: {problem}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("", ["plan", "compare", "dedup", "dedup.", "trainer="]),
        ("pl", ["plan"]),
        ("plan -m dedup=none,exact seed=1,2 trainer.lea", ["trainer.learning_rate="]),
        ("dedup=", ["dedup=exact", "dedup=minhash", "dedup=none", "dedup=semantic"]),
        ("dedup=exact no override dedup.", ["dedup.keep=", "dedup.on="]),
        ("+experiment=qu", ["+experiment=quickstart"]),
        ("dataset=./ro", ["dataset=./rows.jsonl"]),
        ("prepare --mul", ["--multirun"]),
        ("runs mul", ["multirun/"]),
        ("runs multirun/sw", ["multirun/sweep-1/"]),
        ("-cd options dedup=mi", ["dedup=mine", "dedup=minhash"]),
    ],
)
def test_a_shell_offers_what_may_come_next(line, offered):
    Path("multirun/sweep-1").mkdir(parents=True)
    Path("rows.jsonl").touch()
    Path("options/dedup").mkdir(parents=True)
    Path("options/dedup/mine.yaml").touch()
    shown = candidates(f"sft-lab {line}")
    assert offered == shown if line else {*offered} < {*shown}


@pytest.mark.slow
def test_bash_completes_a_command():
    lines = ["sft-lab pl", "sft-lab plan dedup=se"]
    complete = "\n".join(
        f"COMP_LINE='{line}' COMP_CWORD={line.count(' ')}; hydra_bash_completion; echo ${{COMPREPLY[@]}}"
        for line in lines
    )
    folder = Path(sys.executable).parent
    script = (
        f'PATH={folder}:$PATH; eval "$(sft-lab -sc install=bash)"\n{complete}\neval "$(sft-lab -sc uninstall=bash)"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["plan", "dedup=semantic"], "")


@pytest.mark.parametrize("text", ["install=nu", "bash", "show=bash"])
def test_a_shell_that_is_unknown_is_named(text, capsys):
    assert ended("-sc", text) == 2
    assert text.rpartition("=")[2] in capsys.readouterr().err


def test_info_searchpath(capsys):
    assert ended("--info", "searchpath") == 0
    assert str(Path.cwd()) in capsys.readouterr().out


def test_info_searchpath_lists_the_folder_given(tmp_path, capsys):
    assert ended("--config-dir", str(tmp_path), "--info", "searchpath") == 0
    assert f"--config-dir: {tmp_path}\n" in capsys.readouterr().out
    assert ended("--config-dir", str(tmp_path / "nowhere"), "--info", "searchpath") == 2


# --- wrong input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dedup.treshold=0.9"], "did you mean dedup.threshold?"),
        (["train", "dedup.treshold=0.9"], "did you mean dedup.threshold?"),
        (["dedup.threshold=0.8,0.9"], "-m"),
        (["model=SmolLM2-135M-Instruct"], "; did you mean smollm2_135m?\n"),
        (["model=Mistral-7B-Instruct-v0.3"], "; did you mean mistral_7b_instruct?\n"),
        (["model=tiny-random"], "; did you mean tiny_random?\n"),
        (["model=SmolLM2_135M"], "; did you mean smollm2_135m?\n"),
        (["trainer=LoRa"], "; did you mean lora?\n"),
        (["split.eval_share=0,2"], "put -m before the overrides; a decimal has a point: split.eval_share=0.2\n"),
        (
            ["-m", "trainer.learning_rate=0,0002"],
            "must be above 0 (job trainer.learning_rate=0); a decimal has a point",
        ),
        (["trainer.learning_rate=1,5e-5"], "a decimal has a point: trainer.learning_rate=1.5e-5"),
        (["dedup.threshold=0.8,0.9"], "put -m before the overrides\n"),
        (["trainer.learning_rate=0"], "trainer.learning_rate=0.0: must be above 0"),
        (["dataset=file", "dataset.path=/no/such.jsonl"], "/no/such.jsonl"),
        (["--cfg", "job", "dedup.threshold=7"], "dedup.threshold=7.0"),
        (["--cfg", "job", "-p", "dedpu"], "available: dataset"),
        (["--cfg", "job", "-p", "seed.x"], "seed.x"),
        (["--config-path", "conf"], "unknown option --config-path; use --config-dir DIR"),
        (["-m", "hydra.sweeper.params.seed=1,2"], "hydra.sweeper.params.seed: is a setting of a Hydra sweeper"),
        (["-m", "hydra/sweeper=optuna", "seed=1,2"], "available: basic; `sft-lab search` needs no Hydra plugin\n"),
        (["-m", "hydra/sweeper=ax", "seed=1,2"], "pip install hydra-NAME-sweeper"),
        (["-m", "hydra/launcher=joblib", "seed=1,2"], "launch=processes, slurm and ray need no Hydra plugin"),
        (["dedup=exact", "--frobnicate", "seed=1"], "unknown option --frobnicate"),
        (["exec"], "JOB_DIR"),
        (["exec", "nowhere"], "nowhere"),
        (["exec", "nowhere", "seed=1"], "unknown arguments seed=1"),
        (["–m", "seed=1,2"], "–m: – (U+2013 EN DASH) is a dash, not a hyphen; type -m"),
        (["train", "dedup=exact", "—cfg", "job"], "—cfg: — (U+2014 EM DASH) is a dash, not a hyphen; type --cfg"),
        (["exec", "nowhere", "–verbose"], "–verbose: – (U+2013 EN DASH) is a dash, not a hyphen; type --verbose"),
        (["seed＝1"], "seed＝1: it contains ＝ (U+FF1D FULLWIDTH EQUALS SIGN); type = instead"),
        (["store"], "list"),
        (["store", "list", "seed=1"], "seed=1"),
        (["store", "prune", "--older-than", "-1"], "must be a number of days, 0 or more"),
        (["store", "prune", "--older-than", "nan"], "must be a number of days, 0 or more"),
        (["store", "prune", "--older-than", "week"], "week"),
        (["hydra.run.dir=file/run", *SMALL], "file/run"),
    ],
)
def test_wrong_input_ends_with_2_and_leaves_nothing_behind(words, says, capsys):
    blocked = any(word.startswith("hydra.run.dir") for word in words)
    if blocked:
        Path("file").write_text("in the way")
    assert ended(*words) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert "Traceback" not in told.err
    assert told.out == ""
    assert [path.name for path in Path.cwd().iterdir()] == (["file"] if blocked else [])


def test_the_process_ends_with_the_same_code_and_one_line():
    done = run("dedup.treshold=0.9")
    assert done.returncode == 2
    assert done.stderr == "sft-lab: dedup.treshold: unknown key; did you mean dedup.threshold?\n"
    assert done.stdout == ""
    assert nothing_left()


@pytest.mark.parametrize("words", [["-m", "seed=1,1", "dedup=exact"], ["seed=1,1", "dedup=exact", "-m"],
                                   ["seed=1,1", "--multirun", "dedup=exact"], ["train", "seed=1,1", "-m"]])  # fmt: skip
def test_multirun_stands_before_between_or_behind_the_overrides(words, capsys):
    """The grid is expanded wherever -m stands; these twins are refused before anything starts."""
    assert ended(*words) == 2
    assert "seed=1 and seed=1 are the same job" in capsys.readouterr().err


# --- jobs ------------------------------------------------------------------------------------------------------


def finished_sweep(place: Path) -> list[Path]:
    """Folders of a sweep whose jobs are all finished, written by hand."""
    from sft_lab import config
    from sft_lab.jobs import layout

    plan = config.compose_jobs([*SMALL, "seed=1,2", f"hydra.sweep.dir={place}"], multirun=True)
    jobs = layout.create_job_folders(plan)
    for one in jobs:
        one.folder.status.write_text('{"format": 1, "state": "finished"}')
    return [one.folder.path for one in jobs]


def test_a_finished_sweep_is_left_alone_and_ends_with_0(capsys):
    paths = finished_sweep(Path("place").absolute())
    before = {file: file.stat().st_mtime_ns for path in paths for file in path.rglob("*")}
    assert ended("-m", *SMALL, "seed=1,2", "hydra.sweep.dir=place") == 0
    assert {file: file.stat().st_mtime_ns for path in paths for file in path.rglob("*")} == before
    assert "2 jobs in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_fails_ends_with_1_and_says_so_in_its_folder():
    """The starter set holds a row equal to a held-out one, which is found out only when the job runs."""
    done = run(*SMALL, "trainer=smoke", "decontaminate.action=fail", "hydra.run.dir=run")
    assert done.returncode == 1, done.stderr
    status = json.loads(Path("run/status.json").read_text())
    assert status["state"] == "failed"
    assert "decontaminate.action=drop removes them" in status["error"]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sft-lab: ")
    assert "run: " not in last  # there is one folder, and it is named above
    assert "decontaminate.action=drop removes them" in last
    assert "Traceback" not in done.stderr


# --- the store -------------------------------------------------------------------------------------------------


def fill(store: Store, days: dict[str, float]) -> None:
    for stage, idle in days.items():
        entry = store.entry(
            stage, {"params": {"knob": 1}}, lambda folder: folder.joinpath("x").write_bytes(b"0" * 10**6)
        )
        recipe = entry.path / "recipe.json"
        then = recipe.stat().st_mtime - idle * 86400
        os.utime(recipe, (then, then))


def test_an_empty_store(tmp_path, capsys):
    assert ended("store", "list") == 0
    assert f"0 stored results, 0.0 MB in {tmp_path / 'store'}" in capsys.readouterr().out
    assert ended("store", "prune") == 0
    assert "0 stored results removed" in capsys.readouterr().out


def test_a_filled_store(tmp_path, capsys):
    fill(Store(tmp_path / "store"), {"load": 0, "embed": 40, "tokens": 50})
    assert ended("store", "list") == 0
    shown = capsys.readouterr().out
    assert "3 stored results, 3.0 MB" in shown
    assert re.search(r"embed .*40\.0 days", shown)
    assert ended("store", "prune", "--stage", "embed") == 0
    assert "1 stored result removed, 1.0 MB freed" in capsys.readouterr().out
    assert ended("store", "prune", "--older-than", "7") == 0
    assert "1 stored result removed" in capsys.readouterr().out
    assert [entry.stage for entry in Store(tmp_path / "store").listing()] == ["load"]


def test_another_store(tmp_path, capsys):
    fill(Store(tmp_path / "other"), {"load": 0})
    assert ended("store", "list", "--path", str(tmp_path / "other")) == 0
    assert "1 stored result," in capsys.readouterr().out
