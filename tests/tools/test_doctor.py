"""What the doctor finds: on this machine as it is, and with one thing wrong at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from sft_lab.cli.main import main
from sft_lab.core.errors import ModelError
from sft_lab.tools import doctor, doctor_packages
from sft_lab.tools.diagnosis import Diagnosis, Severity

OK, NOTE, PROBLEM = Severity
TOKEN = "hf_doctorsTokenOfNobody"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody is logged in anywhere; gives the home folder."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HF_OIDC_RESOURCE",
                 "HF_ENDPOINT", "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL",
                 "NETRC"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    """Install a package that is nothing but its metadata."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    wants = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{wants}")


@pytest.mark.slow
def test_everything_is_looked_at_and_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    monkeypatch.setenv("SFT_LAB_STORE", str(store))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", TOKEN)
    code = main(["doctor"])
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert {line.split()[1] for line in lines} >= {
        "python", "packages", "devices", "faiss", "store", "hub", "wandb", "bundled"
    }  # fmt: skip
    assert {line.split()[0] for line in lines} <= {OK, NOTE, PROBLEM}
    assert code == int(any(line.startswith(PROBLEM) for line in lines))
    assert f"store     {store}: 0.00 GB" in said
    assert TOKEN not in said
    assert not store.exists()


def test_an_exit_code_of_1_means_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.print_diagnoses([], [Diagnosis(OK, "a", "b"), Diagnosis(NOTE, "a", "b")]) == 0
    assert doctor.print_diagnoses(["Environment: the same."], [Diagnosis(PROBLEM, "hub", "no")]) == 1
    assert capsys.readouterr().out.endswith("Environment: the same.\nproblem  hub       no\n")


def test_versions_are_held_against_the_tested_ranges() -> None:
    (fine,) = doctor_packages.check_packages(["pytest>=1", "packaging", "semhash; extra == 'bench'"])
    assert (fine.severity, fine.message[:45]) == (OK, "2 packages in their tested version ranges; to")
    absent, old = doctor_packages.check_packages(["pytest>=999", "no-such-package<2,>=1", "packaging"])
    assert (old.severity, absent.severity) == (PROBLEM, PROBLEM)
    assert absent.message == "no-such-package is not installed; needs <2,>=1; run: pip install 'no-such-package<2,>=1'"
    assert old.message.endswith("tested with >=999; run: pip install 'pytest>=999'")
    assert [one.severity for one in doctor_packages.check_packages([])] == [NOTE]


def test_sft_lab_itself_is_within_its_ranges() -> None:
    assert "trl" in " ".join(doctor_packages.declared_requirements())
    assert [
        one
        for one in doctor_packages.check_packages(doctor_packages.declared_requirements())
        if one.severity == PROBLEM
    ] == []


@pytest.mark.slow
def test_a_package_that_wants_another_version_is_a_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    distribution(site, "torchaudio", "2.0", "torch==2.0.0", "numpy>=1", "peft==0.1; extra == 'more'")
    distribution(site, "hydra-ray-launcher", "1.2.2", "joblib<1", "no-such-package")
    distribution(site, "joblib", "1.6.0", "numpy>=1")
    monkeypatch.setenv("PYTHONPATH", str(site))
    messages = [diagnosis.message for diagnosis in doctor_packages.check_conflicts()]
    assert all(diagnosis.severity == PROBLEM for diagnosis in doctor_packages.check_conflicts())
    assert [message.partition(", but")[0] for message in messages if message.startswith("torchaudio")] == [
        "torchaudio 2.0 has requirement torch==2.0.0"
    ]
    assert [message for message in messages if message.startswith("hydra-ray-launcher")] == [
        (
            "hydra-ray-launcher 1.2.2 has requirement joblib<1, but you have joblib 1.6.0; "
            "install versions that fit, or uninstall one"
        )
    ]
    assert not [message for message in messages if message.startswith("joblib ") or "no-such-package" in message]


def test_a_pip_that_takes_too_long_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_packages, "PIP_SECONDS", 0.001)
    first, *_ = doctor_packages.check_conflicts()
    assert first == Diagnosis(
        NOTE, "clash", "pip check took more than 0.001 s, so conflicts between packages were not checked"
    )


def test_two_builds_of_faiss_are_one_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write the module faiss; the advice leaves one."""
    distribution(tmp_path / "site", "faiss-gpu", "1.15.1")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (both,) = doctor_packages.check_faiss()
    assert both.severity == PROBLEM
    assert both.message == (
        "faiss-cpu faiss-gpu install the same module; run: pip uninstall -y faiss-cpu faiss-gpu, then "
        "pip install faiss-cpu"
    )


def test_faiss_that_is_missing_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """As metadata and import see it; the error of a search names both builds."""
    from sft_lab.dedup import vector_search

    monkeypatch.setattr(doctor_packages, "FAISS_BUILDS", ())
    find_spec = doctor_packages.importlib.util.find_spec
    monkeypatch.setattr(
        doctor_packages.importlib.util, "find_spec", lambda name: None if name == "faiss" else find_spec(name)
    )
    (missing,) = doctor_packages.check_faiss()
    assert (missing.severity, "only dedup.index=flat needs it" in missing.message) == (NOTE, True)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModelError, match=r"'sft_lab\[faiss\]' for a CPU or 'sft_lab\[gpu\]' for an NVIDIA GPU"):
        vector_search.gpus()


@pytest.mark.parametrize(
    ("torch", "torchvision", "fits"),
    [("2.13.0+cpu", "0.28.0+cpu", True), ("2.13.0", "0.28.0", True), ("2.13.0", "0.28.0+cu130", True),
     ("2.13.0+cpu", "0.28.0", False), ("2.13.0+cu126", "0.28.0+cu130", False)],
)  # fmt: skip
def test_torchvision_of_another_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, torchvision: str, fits: bool
) -> None:
    distribution(tmp_path / "site", "torch", torch)
    distribution(tmp_path / "site", "torchvision", torchvision, "torch==2.13.0")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    messages = [
        diagnosis.message
        for diagnosis in doctor_packages.check_builds()
        if diagnosis.message.startswith(f"torchvision {torchvision} and")
    ]
    assert [message.partition(" and fail")[0] for message in messages] == (
        [] if fits else [f"torchvision {torchvision} and torch {torch} are different builds"]
    )


def test_wandb_without_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text("")
    loaded = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "wandb"}
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    missing, _ = doctor.check_wandb()
    sys.modules.update(loaded)
    assert missing.severity == PROBLEM
    assert "lacks bin/wandb-core" in missing.message
    assert "tracking=local" in missing.message


def test_a_driver_without_a_gpu_that_torch_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch finds a GPU here")
    assert [one.severity for one in doctor.check_devices()] == [OK]
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    driver, _ = doctor.check_devices()
    assert driver.severity == PROBLEM
    assert "finds no GPU; install the torch build" in driver.message
    (searches,) = doctor_packages.check_faiss()
    assert (searches.severity, "searches on the CPU" in searches.message) == (NOTE, True)


def test_a_store_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (found,) = doctor.check_store(file / "store")
    assert found.severity == PROBLEM
    assert found.message == (
        f"{file}/store: cannot be written; set store.path or SFT_LAB_STORE to a folder you can write to, or "
        "sft-lab store prune"
    )
    monkeypatch.setattr(doctor, "MIN_FREE_DISK", 1e30)
    (full,) = doctor.check_store(tmp_path)
    assert full.severity == PROBLEM
    assert "sft-lab store prune" in full.message


def test_the_hub(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (none,) = doctor.check_login()
    assert none.severity == NOTE
    assert "hf auth login" in none.message
    assert none.message.endswith("(not needed for public models and data)")
    place = nobody / ".cache" / "huggingface" / "token"
    place.parent.mkdir(parents=True)
    place.write_text(TOKEN)
    assert [one.severity for one in doctor.check_login()] == [OK]
    monkeypatch.setenv("HF_TOKEN", "hf_two words")
    (broken,) = doctor.check_login()
    assert broken.severity == PROBLEM
    assert "two words" not in broken.message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert [one.severity for one in doctor.check_login()] == [OK]


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert list(doctor.check_network()) == []  # not asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (silent,) = doctor.check_network()
    assert silent.severity == NOTE
    assert silent.message.startswith("the Hub http://127.0.0.1:9 does not answer (")
    assert "HF_ENDPOINT" in silent.message


def test_variables_with_another_effect_than_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, _ in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert list(doctor.check_variables()) == []
    for name, value in (("TRANSFORMERS_CACHE", "/cache"), ("WANDB_DISABLED", "true"), ("WANDB_LOG_MODEL", "end"),
                        ("WANDB_WATCH", "all"), ("WANDB_DIR", "/logs"), ("HF_HUB_OFFLINE", "1"),
                        ("TRANSFORMERS_OFFLINE", "ON"), ("HF_DATASETS_OFFLINE", "True"),
                        ("TOKENIZERS_PARALLELISM", "true"), ("OMP_NUM_THREADS", "0")):  # fmt: skip
        monkeypatch.setenv(name, value)
        (found,) = doctor.check_variables()
        assert found.severity == NOTE
        assert found.message.startswith(f"{name}={value} ")
        monkeypatch.delenv(name)
    for name, value in (("HF_HUB_OFFLINE", "0"), ("TOKENIZERS_PARALLELISM", "false"), ("OMP_NUM_THREADS", "99999")):
        monkeypatch.setenv(name, value)
    assert list(doctor.check_variables()) == []
    assert len(doctor.VARIABLES) == 10


def test_folders_of_downloads_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.check_folders()) == []
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("HF_HOME", str(file / "cache"))
    (cache,) = doctor.check_folders()
    assert (cache.severity, cache.topic) == (PROBLEM, "downloads")
    assert cache.message == f"{file}/cache: cannot be written; set HF_HOME to a writable folder with free space"
    monkeypatch.setattr(doctor, "MIN_FREE_DISK", 1e30)
    monkeypatch.chdir(tmp_path)
    _, runs = doctor.check_folders()
    assert runs.message.startswith(f"{tmp_path}: ")
    assert "GB free, needs" in runs.message
    assert runs.message.endswith("set hydra.run.dir and hydra.sweep.dir, or start in a writable folder with free space")


def test_weights_and_biases(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(one.severity, one.message[:8]) for one in doctor.check_wandb()] == [(NOTE, "offline:")]
    (nobody / ".netrc").write_text(f"machine api.wandb.ai login user password {TOKEN}\n")
    (nobody / ".netrc").chmod(0o600)
    assert list(doctor.check_wandb()) == [Diagnosis(OK, "wandb", "online: logged in")]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert list(doctor.check_wandb()) == [Diagnosis(OK, "wandb", "disabled, as set by WANDB_MODE")]
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    (wrong,) = doctor.check_wandb()
    assert wrong == Diagnosis(
        PROBLEM, "wandb", "WANDB_MODE=dryrun: must be one of online, offline, disabled; unset it or set one of them"
    )


@pytest.mark.slow
def test_what_changed_since_a_run(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"Number {n}?", "answer": f"It is {n}."} for n in range(200)]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = [*tiny, "dataset=file", "dataset.path=rows.jsonl", "trainer.max_steps=1"]
    assert main([*words, "hydra.run.dir=run"]) == 0
    manifest = json.loads(Path("run/manifest.json").read_text())
    manifest["git"] = {}  # whether the checkout has changed since is not what is tested
    manifest["packages"]["trl"] = "0.1"
    Path("run/manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["doctor", "run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Environment: 1 difference"
    Path("rows.jsonl").unlink()
    assert main(["doctor", "run"]) == 1
    said = capsys.readouterr().out
    assert "  trl: was 0.1, is " in said
    assert "\nproblem  run       dataset.path=" in said
    assert main(["doctor", "nowhere"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_where_there_is_no_slurm_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm, ray = doctor.check_launchers()
    assert slurm.severity == NOTE
    assert "sbatch is not on PATH" in slurm.message
    assert ray.topic == "launch"
    for name in ("sbatch", "srun", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert next(doctor.check_launchers()).message == "launch=slurm can be used"


def test_one_thread_is_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert any("; 1 thread on " in diagnosis.message for diagnosis in doctor.check_devices())
