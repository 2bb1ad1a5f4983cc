"""Publishing against a stand-in for the Hub: a loopback server with the endpoints its real client calls.

The client is the real one. What no stand-in can show: the Hub's own checks, and its Xet storage, whose client is turned
off here, so that large files take the older LFS way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_recorder import TOKEN, StandIn

from sft_lab.core.errors import ConfigError, JobError, UserError
from sft_lab.core.run_dir import RunDir
from sft_lab.tools.push import check_push, push_to_hub

MODEL = {
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": bytes(range(256)) * 9,
    "tokenizer.json": b"{}",
    "README.md": "---\ntags: [sft]\n---\nA card, ä.\n".encode(),
    "more/chat_template.jinja": b"{{ messages }}",
}
DATASET = {
    "README.md": b"---\nconfigs: []\n---\nRows.\n",
    "parquet/train.parquet": b"PAR1 train PAR1",
    "parquet/test.parquet": b"PAR1 test PAR1",
    "dataset_dict.json": b'{"splits": ["train", "test"]}',
    "train/data-00000-of-00001.arrow": b"arrow",
}


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    """A finished run with a model, a data set, and files that are nobody's business."""
    run = RunDir(tmp_path / "run")
    with run.running():
        for name, files in (("model", MODEL), ("dataset", DATASET)):
            for file, content in files.items():
                path = run.path / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        run.log.write_text("secret log")
        (run.path / "wandb").mkdir()
        (run.path / "wandb" / "run.wandb").write_text("secret record")
    return run


def test_a_model_is_all_of_its_folder_and_nothing_else(hub: StandIn, folder: RunDir) -> None:
    assert push_to_hub(folder, "me/mine", repo_type="model", public=False) == f"{hub.url}/me/mine"
    assert hub.files == MODEL
    assert hub.commits == 1
    create = next(json.loads(body) for _, path, _, body in hub.requests if path == "/api/repos/create")
    assert create == {"name": "mine", "organization": "me", "visibility": "private", "type": "model"}


def test_a_data_set_is_its_card_and_its_parquet_files(hub: StandIn, folder: RunDir) -> None:
    assert push_to_hub(folder, "me/rows", repo_type="dataset", public=True) == f"{hub.url}/datasets/me/rows"
    assert hub.files == {
        "README.md": DATASET["README.md"],
        "data/train.parquet": DATASET["parquet/train.parquet"],
        "data/test.parquet": DATASET["parquet/test.parquet"],
    }
    assert hub.private == {"me/rows": False}


def test_a_merged_model_is_published_in_the_adapters_stead(hub: StandIn, folder: RunDir) -> None:
    (says,) = check_push(folder, "me/mine", "model", merged=True)
    assert says == f"{folder.merged}: does not exist; `sft-lab merge {folder.path}` writes it"
    whole = {"config.json": b"{}", "model.safetensors": b"all", "README.md": MODEL["README.md"]}
    folder.merged.mkdir()
    for name, content in whole.items():
        (folder.merged / name).write_bytes(content)
    push_to_hub(folder, "me/mine", repo_type="model", public=False, merged=True)
    assert hub.files == whole
    (says,) = check_push(folder, "me/mine", "dataset", merged=True)
    assert says == "--merged: applies to a model; leave it out with --what dataset"


def test_the_token_is_in_the_header_and_nowhere_else(
    hub: StandIn, folder: RunDir, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        push_to_hub(folder, "me/mine", repo_type="model", public=False)
    for method, path, headers, body in hub.requests:
        if method != "PUT":  # the storage behind an upload address is somebody else's, and gets no token
            assert headers.pop("authorization", headers.pop("Authorization", None)) == f"Bearer {TOKEN}"
        assert TOKEN.encode() not in body + path.encode() + repr(headers).encode()
    shown = capfd.readouterr()
    assert TOKEN not in shown.out + shown.err + caplog.text
    written = b"".join(path.read_bytes() for path in folder.path.rglob("*") if path.is_file())
    assert TOKEN.encode() not in written


def test_a_public_repository_is_refused_unless_asked_for(hub: StandIn, folder: RunDir) -> None:
    hub.private["me/mine"] = False
    with pytest.raises(UserError, match="me/mine: is public, so nothing was sent; add --public"):
        push_to_hub(folder, "me/mine", repo_type="model", public=False)
    assert (hub.files, hub.commits) == ({}, 0)
    assert not [path for _, path, _, _ in hub.requests if "preupload" in path]
    push_to_hub(folder, "me/mine", repo_type="model", public=True)
    assert hub.files == MODEL


def test_a_private_repository_stays_private(hub: StandIn, folder: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    hub.private["me/mine"] = True
    push_to_hub(folder, "me/mine", repo_type="model", public=False)
    assert "stays private" not in caplog.text
    push_to_hub(folder, "me/mine", repo_type="model", public=True)
    assert "me/mine was private before and stays private" in caplog.text
    assert hub.private == {"me/mine": True}


@pytest.mark.parametrize(("status", "kind"), [(401, UserError), (403, UserError), (400, UserError), (500, JobError)])
def test_what_the_hub_refuses_is_one_sentence(hub: StandIn, folder: RunDir, status: int, kind: type[Exception]) -> None:
    hub.refuses = status
    with pytest.raises(kind, match=r"^me/mine: ") as error:
        push_to_hub(folder, "me/mine", repo_type="model", public=False)
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)


def test_a_hub_that_is_not_there_is_one_sentence(hub: StandIn, folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port, where nobody listens
    with pytest.raises(JobError, match=r"^me/mine: not published \(.*\); check the network and push again$"):
        push_to_hub(folder, "me/mine", repo_type="model", public=False)


def test_a_link_out_of_the_model_is_not_followed(hub: StandIn, folder: RunDir) -> None:
    (folder.model / "vocab.json").symlink_to(folder.log)
    with pytest.raises(ConfigError, match=r"vocab\.json: is a link that leads out of .*model"):
        push_to_hub(folder, "me/mine", repo_type="model", public=False)
    assert hub.requests == []


@pytest.mark.parametrize("what", ["model", "dataset"])
def test_a_folder_that_is_itself_a_link_is_not_sent(hub: StandIn, folder: RunDir, what: str, tmp_path: Path) -> None:
    (folder.path / what).rename(tmp_path / "elsewhere")
    (folder.path / what).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"{what}: is a link that leads out of "):
        push_to_hub(folder, "me/mine", repo_type=what, public=False)
    assert hub.requests == []


def test_only_files_of_a_model_are_sent(hub: StandIn, folder: RunDir) -> None:
    for name in (".env", "id_rsa", "key.pem", "notes.txt", "optimizer.pt", ".git/config.json", "secrets.json"):
        (folder.model / name).parent.mkdir(exist_ok=True)
        (folder.model / name).write_text("SECRET")
    push_to_hub(folder, "me/mine", repo_type="model", public=False)
    assert set(hub.files) | {"adapter_model.safetensors"} == set(MODEL)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nobody is logged in; gives the home folder."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_check_finds_no_fault_and_every_fault(
    folder: RunDir, nobody: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = RunDir(tmp_path / "empty")
    bad_name, no_run, no_login = check_push(empty, "mine", "model")
    assert bad_name.startswith("mine: not a repository name; give owner/name")
    assert no_run.startswith(f"{empty.path}: not a finished run folder (no status.json)")
    assert "hf auth login" in no_login
    assert "HF_TOKEN" in no_login
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert check_push(folder, "me/mine", "model") == check_push(folder, "me/mine", "dataset") == []
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_OIDC_RESOURCE", "me/mine")
    assert check_push(folder, "me/mine", "model") == []


@pytest.mark.parametrize(
    ("gone", "what", "says"),
    [
        ("dataset", "dataset", "dataset: does not exist; `sft-lab prepare ...` writes it"),
        ("model", "model", "model: does not exist; `sft-lab ...` writes it"),
        ("model/adapter_config.json", "model", "model: has no config.json or adapter_config.json; write it again"),
        ("model/README.md", "model", "model: has no README.md; write it again: `sft-lab ...`"),
        (
            "dataset/parquet/train.parquet",
            "dataset",
            "dataset: has no train.parquet; write it again: `sft-lab prepare ...`",
        ),
    ],
)
def test_check_says_what_is_missing_and_which_command_makes_it(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch, gone: str, what: str, says: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (folder.path / gone).rename(folder.path / "elsewhere")
    (problem,) = check_push(folder, "me/mine", what)
    assert problem.startswith(f"{folder.path}/{says}")


@pytest.mark.parametrize("state", ["running", "failed", "interrupted"])
def test_a_run_that_did_not_end_well_is_not_published(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder.status.write_text(json.dumps({"state": state}))
    (problem,) = check_push(folder, "me/mine", "model")
    assert f"its status.json says {state}" in problem


@pytest.mark.parametrize("repo", ["mine", "me/", "/mine", "me/mine/more", "me/mi ne", "me/mi--ne", "me/..", "mé/mine"])
def test_names_that_are_no_repository(folder: RunDir, monkeypatch: pytest.MonkeyPatch, repo: str) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (problem,) = check_push(folder, repo, "model")
    assert problem.startswith(f"{repo}: not a repository name")


@pytest.mark.parametrize(
    ("variable", "value", "file"),
    [
        (None, "", "home/.cache/huggingface/token"),
        ("XDG_CACHE_HOME", "cache", "cache/huggingface/token"),
        ("HF_HOME", "hf", "hf/token"),
        ("HF_TOKEN_PATH", "my-token", "my-token"),
    ],
)
def test_the_login_is_found_where_the_hub_s_client_looks(
    folder: RunDir,
    nobody: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str | None,
    value: str,
    file: str,
) -> None:
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / value))
    assert len(check_push(folder, "me/mine", "model")) == 1
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"{TOKEN}\n")
    assert check_push(folder, "me/mine", "model") == []
    asked = "from huggingface_hub import get_token; print(get_token() is not None)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True).stdout == b"True\n"


def test_a_broken_token_is_not_shown(folder: RunDir, nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_two words")
    (problem,) = check_push(folder, "me/mine", "model")
    assert "two" not in problem
    assert "HF_TOKEN" in problem


def test_check_imports_nothing_heavy(folder: RunDir) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from sft_lab.core.run_dir import RunDir\nfrom sft_lab.tools.push import check_push\n"
        f"check_push(RunDir(Path({str(folder.path)!r})), 'me/mine', 'model')\n"
        "print(sorted({'huggingface_hub', 'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
