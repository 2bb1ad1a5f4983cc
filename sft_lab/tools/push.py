"""``sft-lab push``: upload a run's model or data set to the Hugging Face Hub, and nothing else from its folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sft_lab.core.errors import FolderError, JobError, UserError, all_problems
from sft_lab.core.log import log
from sft_lab.core.redaction import hub_token, redact
from sft_lab.core.run_dir import RunDir
from sft_lab.core.text import count_of, one_line
from sft_lab.core.types import RunState

# What can be published, and the command that writes it.
REPO_TYPES = {"model": "`sft-lab ...`", "dataset": "`sft-lab prepare ...`"}
MAX_ERROR = 300  # characters

# What Transformers, PEFT and tokenizers save: weights, configs, vocabularies, templates, card.
_MODEL_FILE = re.compile(
    r"README\.md|[\w.-]+\.(?:safetensors|jinja)|[\w.-]+\.safetensors\.index\.json|merges\.txt|vocab\.(?:txt|json)"
    r"|(?:\w+_)?config\.json|tokenizer\.(?:json|model)|[\w.-]+\.(?:spm|tiktoken)|sentencepiece\.bpe\.model|spiece\.model"
    r"|(?:added_tokens|special_tokens_map|chat_template)\.json"
)
_REPO = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def push_to_hub(folder: RunDir, repo: str, *, repo_type: str, public: bool, merged: bool = False) -> str:
    """Upload a run's model or data set to the Hub in one commit, and return its URL.

    A model is the model files of ``model/`` or ``merged/``; a data set is its card and its parquet files, as
    ``data/*.parquet``. The endpoint is the Hub's own or ``HF_ENDPOINT``.

    Args:
        folder: a finished run.
        repo: ``owner/name``; created if it does not exist.
        repo_type: ``model`` or ``dataset``.
        public: whether everyone may see it; otherwise the repository must be private.
        merged: whether to upload the model that `sft-lab merge` wrote.

    Raises:
        UserError: for problems of ``check_push``, a public repository without ``public``, or a refused token.
        JobError: when the Hub cannot be reached or fails.
    """
    if problems := check_push(folder, repo, repo_type, merged=merged):
        raise all_problems(problems)
    from huggingface_hub import CommitOperationAdd, HfApi

    files = _files_to_send(_source_folder(folder, repo_type, merged=merged), repo_type)
    # True: the client finds the token itself, since one of a login by browser must be renewed.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=True)
    try:
        url = str(api.create_repo(repo, repo_type=repo_type, private=not public, exist_ok=True))
        is_private = api.repo_info(repo, repo_type=repo_type).private is True
        if is_private or public:
            size = sum(path.stat().st_size for path in files.values())
            log.info("push: %s, %.1f MB, to %s", count_of(len(files), "file"), size / 1e6, url)
            adds = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            api.create_commit(repo, adds, commit_message=f"sft-lab push: {repo_type}", repo_type=repo_type)
    except Exception as error:  # the client raises dozens of types; none may show a traceback
        raise _describe_error(repo, error) from error

    if not (is_private or public):
        raise UserError(f"{url}: is public, so nothing was sent; add --public, make it private, or choose another")
    if is_private and public:
        log.warning(
            "push: %s was private before and stays private; to make it public, change its settings on the Hub", url
        )
    return url


def check_push(folder: RunDir, repo: str, repo_type: str, *, merged: bool = False) -> list[str]:
    """Return what keeps a run from being published, without heavy imports or the network."""
    if merged and repo_type != "model":
        return [f"--merged: applies to a model; leave it out with --what {repo_type}"]
    problems = []
    if not _REPO.fullmatch(repo):
        problems.append(f"{repo}: not a repository name; give owner/name in letters, digits and single - _ .")
    return [*problems, *_check_folder(folder, repo_type, merged=merged), *login_problems()]


def _check_folder(folder: RunDir, repo_type: str, *, merged: bool) -> list[str]:
    """Return the problems with the files to upload."""
    if (state := folder.state()) != RunState.FINISHED:
        reason = f"its status.json says {state}" if state else "no status.json"
        return [f"{folder.path}: not a finished run folder ({reason}); give the folder of a finished run"]
    source = _source_folder(folder, repo_type, merged=merged)
    if not source.is_dir():
        command = f"`sft-lab merge {folder.path}`" if merged else REPO_TYPES[repo_type]
        return [f"{source}: does not exist; {command} writes it"]
    try:
        _files_to_send(source, repo_type)
    except FolderError as error:
        return [str(error)]
    return []


def login_problems() -> list[str]:
    """Return problems with the login to the Hub, without showing the token."""
    try:
        token = hub_token()
    except OSError as error:
        return [f"{error.filename}: the login cannot be read ({error.strerror}); run `hf auth login` again"]
    if not token and not os.environ.get("HF_OIDC_RESOURCE"):  # the latter: a CI's own login
        return ["no login for the Hub; run `hf auth login`, or set HF_TOKEN to a token with write access"]
    if not re.fullmatch(r"[!-~]*", token):
        return ["the Hub token contains an invalid character; run `hf auth login`, or set HF_TOKEN again"]
    return []


def _source_folder(folder: RunDir, repo_type: str, *, merged: bool) -> Path:
    return folder.merged if merged else folder.path / repo_type


def _files_to_send(source: Path, repo_type: str) -> dict[str, Path]:
    """Return the files to upload, by their names in the repository.

    Raises:
        FolderError: if one is missing, or is outside the folder.
    """
    if repo_type == "model":
        paths = [path for path in sorted(source.rglob("*")) if _is_model_file(path, source)]
        files = {path.relative_to(source).as_posix(): path for path in paths}
        needed = [source / "config.json", source / "adapter_config.json"]
    else:
        files = {f"data/{path.name}": path for path in sorted((source / "parquet").glob("*.parquet"))}
        needed = [source / "parquet" / "train.parquet"]
        if (source / "README.md").is_file():
            files["README.md"] = source / "README.md"

    missing = [] if any(path.is_file() for path in needed) else [" or ".join(path.name for path in needed)]
    if "README.md" not in files:
        missing.append("README.md")
    if missing:
        raise FolderError(f"{source}: has no {' and no '.join(missing)}; write it again: {REPO_TYPES[repo_type]}")

    root = source.parent.resolve() / source.name  # the folder itself must not be a link either
    for path in (source, *files.values()):
        if not path.resolve().is_relative_to(root):
            raise FolderError(f"{path}: is a link that leads out of {root}; replace it by the file, or remove it")
    return files


def _is_model_file(path: Path, source: Path) -> bool:
    """Return whether training or merging writes such a file; hidden files never count."""
    is_hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
    return not is_hidden and _MODEL_FILE.fullmatch(path.name) is not None and path.is_file()


def _describe_error(repo: str, error: Exception) -> UserError | JobError:
    """Return an error of the Hub's client in one line, as the user's error or the network's."""
    reason = f"{type(error).__name__}: {one_line(redact(str(error)), MAX_ERROR)}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return UserError(f"{repo}: the Hub rejects the token ({reason}); it needs write access there")
    if status == 400 or isinstance(error, ValueError):
        return UserError(f"{repo}: the Hub rejects the upload ({reason})")
    return JobError(f"{repo}: not published ({reason}); check the network and push again")
