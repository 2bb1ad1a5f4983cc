"""Saved configs and experiments from strangers are data: what is not is refused, and nothing happens."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from outside import SECRET, TINY, Outside

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.config import load
from sft_lab.core.errors import ConfigError
from sft_lab.training.models import Pretrained

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TOUCH = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [CANARY]]"


@cache
def saved() -> str:
    return compose(TINY).to_yaml()


def changed(path: str, value: object) -> str:
    content = yaml.safe_load(saved())
    *above, last = path.split("/")
    node = content
    for name in above:
        node = node[name]
    node[last] = value
    return yaml.safe_dump(content, sort_keys=False)


# Each with a word of what the user is told. CANARY stands for the canary's path.
CONFIGS = {
    "target": (lambda: changed("_target_", "os.system"), "must not name code to run"),
    "target in a filter": (lambda: changed("filter/answered/_target_", "logging.FileHandler"), "must not name code"),
    "target in a free mapping": (
        lambda: changed("trainer/sft_config", {"optim_args": {"_target_": "os.system"}}), "must not name code to run",
    ),
    "environment": (lambda: changed("store/path", "${oc.env:SFT_LAB_TEST_VALUE}"), "contains an interpolation"),
    "environment in a key": (lambda: changed("${oc.env:SFT_LAB_TEST_VALUE}", 1), "contains an interpolation"),
    "decoded": (lambda: changed("seed", "${oc.decode:'${oc.env:SFT_LAB_TEST_VALUE}'}"), "contains an interpolation"),
    "escaped": (lambda: changed("store/path", "\\${oc.env:SFT_LAB_TEST_VALUE}"), "contains an interpolation"),
    "python object": (lambda: f"{saved()}evil: {TOUCH}\n", "could not determine a constructor"),
    "python name": (lambda: f"{saved()}evil: !!python/name:os.system\n", "could not determine a constructor"),
    "python module": (lambda: f"{saved()}evil: !!python/module:antigravity\n", "could not determine a constructor"),
    "a billion laughs": (lambda: f"{saved()}{BOMB}", "its aliases (&, *) expand to more than"),
    "inside itself": (lambda: f"{saved()}evil: &evil [*evil]\n", "or refer to themselves"),
    "deep": (lambda: f"{saved()}evil: {'[' * 500}{']' * 500}\n", "not YAML"),
    "remote code": (lambda: changed("model/trust_remote_code", True), "trust_remote_code"),
    "class as a kind": (lambda: changed("dedup/kind", "subprocess.Popen"), "must be one of none, exact"),
    "list as a kind": (lambda: changed("dedup/kind", ["exact"]), "must be one of none, exact"),
    "login by a field of TRL": (lambda: changed("trainer/sft_config", {"hub_token": "x"}), "set by sft_lab"),
    "publishing by a field of TRL": (lambda: changed("trainer/sft_config", {"push_to_hub": True}), "set by sft_lab"),
    "a token": (lambda: changed("tracking", {"kind": "wandb", "project": "hf_" + "A" * 34}), "tracking.project: c"),
    "a password": (lambda: changed("dataset/path", "https://user:pass1234@host/rows.jsonl"), "dataset.path: contains"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_config_is_data(name: str, tmp_path: Path, outside: Outside) -> None:
    text, told = CONFIGS[name][0](), CONFIGS[name][1]
    file = tmp_path / "config.yaml"
    file.write_text(text.replace("CANARY", str(outside.canary)))
    with pytest.raises(ConfigError) as error:
        load(file)
    assert told in str(error.value)
    assert "\n" not in str(error.value).strip() or "problems:" in str(error.value)
    assert SECRET not in str(error.value)


def test_a_package_is_found_without_importing_it(
    tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find ``a.b`` Python imports ``a``."""
    (tmp_path / "evilpackage" / "sub").mkdir(parents=True)
    for name in ("evilpackage", "evilpackage/sub"):
        (tmp_path / name / "__init__.py").write_text(f"open({str(outside.canary)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("package:evilpackage.sub/rows.jsonl", "package:evilpackage/rows.jsonl"):
        file = tmp_path / "config.yaml"
        file.write_text(changed("dataset/path", path))
        assert "no such file" in load(file).check()[0]


@pytest.mark.parametrize(
    "key", ["trust_remote_code", "code_revision", "token", "use_safetensors", "weights_only", "use_kernels", "proxies"]
)
def test_what_the_loader_may_be_told(key: str) -> None:
    """Nothing that runs code, reads pickles or carries a login."""
    with pytest.raises(ConfigError, match=rf"init_kwargs=\['{key}'\]: cannot be set"):
        Pretrained(name_or_path="owner/name", init_kwargs={key: "x"})


def test_a_kernel_of_the_hub_is_code() -> None:
    with pytest.raises(ConfigError, match="attn_implementation=evil/kernel: is code from the Hub"):
        compose(["model=tiny_random", "dedup=exact", "model.attn_implementation=evil/kernel"])


# What a stranger's experiment says below `# @package _global_`, and a word of what the user is told.
EXPERIMENTS = {
    "environment": ("tracking:\n  project: ${oc.env:SFT_LAB_TEST_VALUE}", "reads the environment"),
    "environment by parts": ("tracking:\n  project: oc\n  entity: ${${tracking.project}.env:SFT_LAB_TEST_VALUE}",
                             "reads the environment"),
    "environment in the defaults": ("defaults:\n  - override /model: ${oc.env:SFT_LAB_TEST_VALUE}",
                                    "reads the environment"),
    "environment in the folder": ("hydra:\n  run:\n    dir: x/${oc.env:SFT_LAB_TEST_VALUE}", "reads the environment"),
    "environment in a sweep": (
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {tracking.project: '${oc.env:SFT_LAB_TEST_VALUE},b'}",
        "reads the environment"),
    "through Hydra": ("hydra:\n  job:\n    env_set:\n      SFT_LAB_EVIL: '1'", "hydra.job.env_set: cannot be set"),
    "callback": ("hydra:\n  callbacks:\n    evil:\n      _target_: logging.FileHandler\n      filename: CANARY",
                 "hydra.callbacks: cannot be set in a file"),
    "working folder": ("hydra:\n  job:\n    chdir: true", "hydra.job.chdir: cannot be set in a file"),
    "search path": ("hydra:\n  searchpath: [pkg://antigravity]", "hydra.searchpath"),
    "launcher's parts": ("hydra:\n  launcher:\n    evil:\n      _target_: logging.FileHandler\n      filename: CANARY",
                         "hydra.launcher"),
    "launcher": ("defaults:\n  - override /hydra/launcher: joblib", "hydra/launcher=joblib"),
    "python object": (f"seed: {TOUCH}", "could not determine a constructor"),
    "a billion laughs": (BOMB, "its aliases"),
    "target": ("model:\n  _target_: os.system", "_target_"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_data(name: str, here: Path, outside: Outside, capsys: pytest.CaptureFixture[str]) -> None:
    content, told = EXPERIMENTS[name]
    (here / "experiments").mkdir()
    text = f"# @package _global_\n{content}\n".replace("CANARY", str(outside.canary))
    (here / "experiments" / "evil.yaml").write_text(text)
    assert main(["plan", "+experiment=evil", *TINY]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert "Traceback" not in said.err
    assert SECRET not in said.out + said.err
    assert sorted(path.name for path in here.iterdir()) == ["experiments", "outside"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["callback", "through Hydra", "launcher's parts"])
def test_an_experiment_is_data_where_hydra_drives(
    name: str, here: Path, outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    content, told = EXPERIMENTS[name]
    (here / "experiments").mkdir()
    text = f"# @package _global_\n{content}\n".replace("CANARY", str(outside.canary))
    (here / "experiments" / "evil.yaml").write_text(text)
    assert main(["-m", "hydra/launcher=basic", "+experiment=evil", *TINY, "seed=1,2"]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside/evil", "/etc/passwd", "..", "a b"])
def test_an_experiment_has_a_name_not_a_path(name: str, here: Path, outside: Outside) -> None:
    (here / "experiments").mkdir()
    assert main(["--cfg", "job", f"+experiment='{name}'", *TINY]) == 2


def test_what_is_data_is_taken(here: Path) -> None:
    """References to own values, the time in a folder's name, anchors."""
    (here / "experiments").mkdir()
    (here / "experiments" / "good.yaml").write_text(
        "# @package _global_\nhydra:\n  run:\n    dir: mine/${now:%Y}-${seed}\n"
        "trainer:\n  max_length: &long 700\nfilter:\n  length:\n    max_tokens: ${trainer.max_length}\n"
        "split:\n  max_eval_tokens: *long\n"
    )
    run = compose(["+experiment=good", *TINY])
    assert run.split.max_eval_tokens == 700
    assert run.filter["length"].max_tokens == 700  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_working_folder_holds_no_code(here: Path, outside: Outside) -> None:
    """A process of a sweep imports what is installed, not what lies beside a stranger's data."""
    (here / "torch.py").write_text(f"open({str(outside.canary)!r}, 'w')\n")
    words = ["prepare", "-m", *TINY, "launch=processes", "dataset.limit=20,30"]
    script = Path(sys.executable).with_name("sft-lab")
    command = [script] if script.exists() else [sys.executable, "-P", "-m", "sft_lab"]
    done = subprocess.run([*map(str, command), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
