"""Publishing: what of a run folder goes to the Hugging Face Hub, and that nothing else does."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sft_lab.core.errors import FolderError, JobError, UserError, all_problems
from sft_lab.core.log import log
from sft_lab.core.redaction import hub_token, redact
from sft_lab.core.run_dir import FINISHED, RunDir

KINDS = {
    "model": "`sft-lab ...`",
    "dataset": "`sft-lab prepare ...`",
}  # what can be published, by the command that makes it
# What Transformers, PEFT and tokenizers save: weights, configs, vocabularies, templates, card.
_MODEL_FILE = re.compile(
    r"README\.md|[\w.-]+\.(?:safetensors|jinja)|[\w.-]+\.safetensors\.index\.json|merges\.txt|vocab\.(?:txt|json)"
    r"|(?:\w+_)?config\.json|tokenizer\.(?:json|model)|[\w.-]+\.(?:spm|tiktoken)|sentencepiece\.bpe\.model|spiece\.model"
    r"|(?:added_tokens|special_tokens_map|chat_template)\.json"
)
_REPO = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def push(folder: RunDir, repo: str, *, what: str, public: bool, merged: bool = False) -> str:
    """Send a run's model or data set to the Hub, in one commit, and give its URL.

    A model is the files of ``model/``, or of ``merged/``, that a model is made of; a data set is its card and its
    parquet files, as ``data/*.parquet``. The endpoint is the Hub's own or ``HF_ENDPOINT``.

    Args:
        folder: a finished run.
        repo: ``owner/name``; made when it is not there.
        what: ``model`` or ``dataset``.
        public: for everyone to see; else the repository must be private.
        merged: the model that `sft-lab merge` made of an adapter.

    Raises:
        UserError: for what ``check`` finds, a public repository where a private one was asked for, a refused token.
        JobError: when the Hub cannot be reached or fails.
    """
    if problems := check(folder, repo, what, merged=merged):
        raise all_problems(problems)
    from huggingface_hub import CommitOperationAdd, HfApi

    files = _files(_made(folder, what, merged=merged), what)
    # True: the client looks for the token itself, since a login by browser gives one that it must renew.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=True)
    try:
        url = str(api.create_repo(repo, repo_type=what, private=not public, exist_ok=True))
        private = api.repo_info(repo, repo_type=what).private is True
        if private or public:
            size = sum(path.stat().st_size for path in files.values())
            log.info("push: %d files, %.1f MB, to %s", len(files), size / 1e6, url)
            adds = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            api.create_commit(repo, adds, commit_message=f"sft-lab push: {what}", repo_type=what)
    except Exception as error:  # the hub's client raises dozens of types; none may show a traceback
        raise _sentence(repo, error) from error
    if not (private or public):
        raise UserError(f"{url}: is public, and nothing was sent; add --public, make it private, or name another")
    if private and public:
        log.warning("push: %s was private before and stays so; its settings on the Hub make it public", url)
    return url


def check(folder: RunDir, repo: str, what: str, *, merged: bool = False) -> list[str]:
    """Say what stands against publishing, by the standard library alone; empty when nothing does."""
    if what not in KINDS:
        return [f"--what {what}: must be {' or '.join(KINDS)}"]
    if merged and what != "model":
        return [f"--merged: is of a model; leave it out with --what {what}"]
    problems = []
    if not _REPO.fullmatch(repo):
        problems.append(f"{repo}: no repository name; give owner/name in letters, digits and single - _ .")
    return [*problems, *_lacking(folder, what, merged=merged), *login_problems()]


def _lacking(folder: RunDir, what: str, *, merged: bool) -> list[str]:
    """Say what is missing of what shall be sent."""
    if (state := folder.state()) != FINISHED:
        found = f"its status.json says {state}" if state else "it has no status.json"
        return [f"{folder.path}: no finished run folder ({found}); give the folder of a run that ended well"]
    if not (made := _made(folder, what, merged=merged)).is_dir():
        maker = f"`sft-lab merge {folder.path}`" if merged else KINDS[what]
        return [f"{made}: is not there; {maker} makes it"]
    try:
        _files(made, what)
    except FolderError as error:
        return [str(error)]
    return []


def login_problems() -> list[str]:
    """Say what is wrong with the login, never what it is."""
    try:
        token = hub_token()
    except OSError as error:
        return [f"{error.filename}: the login cannot be read ({error.strerror}); run `hf auth login` again"]
    if not token and not os.environ.get("HF_OIDC_RESOURCE"):  # the latter: a CI's own login
        return ["no login for the Hub; run `hf auth login`, or set HF_TOKEN to a token that may write"]
    if not re.fullmatch(r"[!-~]*", token):
        return ["the Hub token has a character that no token has; run `hf auth login`, or set HF_TOKEN anew"]
    return []


def _made(folder: RunDir, what: str, *, merged: bool) -> Path:
    return folder.merged if merged else folder.path / what


def _files(made: Path, what: str) -> dict[str, Path]:
    """Give the files to send by their names in the repository.

    Raises:
        FolderError: if one is missing, or lies outside the folder.
    """
    if what == "model":
        found = {path.relative_to(made).as_posix(): path for path in sorted(made.rglob("*")) if _of_a_model(path, made)}
        needed = [made / "config.json", made / "adapter_config.json"]
    else:
        found = {f"data/{path.name}": path for path in sorted((made / "parquet").glob("*.parquet"))}
        needed = [made / "parquet" / "train.parquet"]
        if (made / "README.md").is_file():
            found["README.md"] = made / "README.md"
    lacking = [] if any(path.is_file() for path in needed) else [" or ".join(path.name for path in needed)]
    if "README.md" not in found:
        lacking.append("README.md")
    if lacking:
        raise FolderError(f"{made}: has no {' and no '.join(lacking)}; make it again: {KINDS[what]}")
    root = made.parent.resolve() / made.name  # where it would be were it no link: all behind one would lie inside
    for path in (made, *found.values()):
        if not path.resolve().is_relative_to(root):
            raise FolderError(f"{path}: is a link out of {root}; put the file itself there, or remove the link")
    return found


def _of_a_model(path: Path, made: Path) -> bool:
    """Whether a file is one that training or merging writes; a hidden one never is."""
    hidden = any(part.startswith(".") for part in path.relative_to(made).parts)
    return not hidden and _MODEL_FILE.fullmatch(path.name) is not None and path.is_file()


def _sentence(repo: str, error: Exception) -> UserError | JobError:
    """Say in one line what the Hub's client met: the user's to mend, or the network's."""
    message = " ".join(redact(str(error)).split())
    said = f"{type(error).__name__}: {message[:300]}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return UserError(f"{repo}: the Hub refuses the token ({said}); it needs the right to write there")
    if status == 400 or isinstance(error, ValueError):
        return UserError(f"{repo}: the Hub refuses what was sent ({said})")
    return JobError(f"{repo}: not published ({said}); check the network and push again")
