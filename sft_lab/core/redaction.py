"""Removing secrets and terminal control characters from text that is shown or kept."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

REDACTED = "<redacted>"
MAY_BE_SECRET = "what looks like a token, password, signed URL or W&B key (shorten a commit hash to 12 digits)"  # noqa: S105 - no password
_MIN_LENGTH = 8  # characters; a shorter value of a variable X_TOKEN is a switch, not a secret
_NAMES = re.compile(r"(?:^|_)(?:TOKEN|API_?KEY|SECRET(?:_ACCESS_KEY)?|PASSWORD)$")
# By their shape: tokens of the Hub, W&B, GitHub, OpenAI and the like, AWS; signatures and tokens in a URL's query; and
# the credentials before the @ of a URL. They end at the last @ of its host or, after a user and a colon that begins no
# port number, at the last @ of all, since a password may contain / and @.
_SHAPES = re.compile(
    r"hf_(?:oauth_|jwt_)?[A-Za-z0-9]{20,}|wandb_v\d+_\w{20,}|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{22,}"
    r"|(?<![\w-])sk-(?:[A-Za-z0-9]+-)*[A-Za-z0-9_]{20,}|(?<![A-Z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Z0-9])"
    r"|(?<=[?&])(?i:(?:x-(?:amz|goog)-)?(?:signature|credential|security-token)|sig|sas|(?:access_)?token)=[^\s&'\"]{8,}"
    r"|(?<=://)(?:[^\s/:'\"]{1,200}:(?!\d{1,5}/)[^\s'\"]{1,300}|[^\s/'\"]{1,300})(?=@)"
)
# By the name before them.
_NAMED = re.compile(
    r"(?i)((?<![a-z0-9_])(?:(?:(?:hf|hub|auth|access|use_auth|wandb)_?)?token|\w*(?:api[_-]?key|password|passwd|secret))"
    r"['\"]?\s*[=:]\s*['\"]?)(?!unknown key;)([^\s'\",;)}\]]+)"
)
# An old W&B key looks like a Git commit. It counts as a key when it follows the name of a key or an option, unless that
# name is one of a commit; a commit in a sentence, a path or a repository's URL stays.
_KEY_OR_COMMIT = re.compile(r"(?<![\w/.@-])[0-9a-f]{40}(?![\w/@-]|\.\w)")
_LABEL = re.compile(r"""([\w.-]+)(?:=\s*|['"]\s*:\s*|:)['"]?(?:[\[(][^\])]*|[^\s=:{}]*,)?['"]?$""")
_OF_COMMIT = re.compile(
    r"(?i)(?:revision|commit|version|sha1?|hash|digest|checksum|fingerprint|(?<![a-z])(?:ref|rev))s?(?:\.\d+)?$"
)
_LABEL_REACH = 200  # characters before a value in which its name is searched
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all except tab and line feed


def redact(text: str) -> str:
    """Return a text without this environment's secrets and without anything that looks like one or is named as one."""
    for secret in known_secrets():
        text = text.replace(secret, REDACTED)
    text = _KEY_OR_COMMIT.sub(lambda match: REDACTED if _is_key(match) else match[0], _SHAPES.sub(REDACTED, text))
    return _NAMED.sub(rf"\g<1>{REDACTED}", text)


def redact_command(arguments: Sequence[str]) -> str:
    """Return a command line without secrets or arguments that may be a key."""
    without_keys = (re.sub(r"(?<=key=)\S+", REDACTED, argument) for argument in arguments)
    return redact(" ".join(REDACTED if _KEY_OR_COMMIT.fullmatch(text) else text for text in without_keys))


def _is_key(match: re.Match[str]) -> bool:
    label = _LABEL.search(match.string[max(0, match.start() - _LABEL_REACH) : match.start()])
    return label is not None and not _OF_COMMIT.search(label[1])


def holds_secret(text: str, known: Sequence[str] | None = None) -> bool:
    """Return whether a text contains a secret of this environment, or something that looks like one.

    Args:
        text: to search; ``key=value`` for the value of a key, since the name matters too.
        known: the result of ``known_secrets``, for callers with many texts; None: it is computed.
    """
    return (
        bool(_SHAPES.search(text))
        or any(_is_key(match) for match in _KEY_OR_COMMIT.finditer(text))
        or any(secret in text for secret in (known_secrets() if known is None else known))
    )


def printable(text: str) -> str:
    r"""Return text with control characters as ``\x1b``: text from elsewhere must not move the cursor or set titles."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class Formatter(logging.Formatter):
    """Formats log lines without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(redact(super().format(record)))


def hub_token() -> str:
    """Return the token that the Hub's client would use; empty if there is none.

    Raises:
        OSError: if its file cannot be read.
    """
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    file = _hub_token_file()
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""


def _hub_token_file() -> Path:
    env = os.environ
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return _of_user(os.path.expandvars(env.get("HF_TOKEN_PATH") or f"{home}/token"))


def netrc_file() -> Path:
    """Return the file where the W&B client looks for a login."""
    return _of_user(os.environ.get("NETRC", "~/.netrc"))


def _of_user(path: str) -> Path:
    """Return a path with ``~`` expanded; ``Path.expanduser`` would raise where the user has no home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def known_secrets() -> list[str]:
    """Return the secrets of this environment and its logins, longest first: one may be part of another."""
    secrets = {value.strip() for name, value in os.environ.items() if _NAMES.search(name)}
    secrets |= _in_files(_hub_token_file(), netrc_file())
    return sorted((secret for secret in secrets if len(secret) >= _MIN_LENGTH), key=len, reverse=True)


@cache
def _in_files(token_file: Path, netrc: Path) -> frozenset[str]:
    """Return the secrets in the login files; a file that cannot be read has none."""
    texts = {}
    for file in (token_file, netrc):
        try:
            texts[file] = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            texts[file] = ""
    passwords = re.findall(r"\bpassword\s+(\S+)", texts[netrc])
    return frozenset({texts[token_file].strip(), *passwords})
