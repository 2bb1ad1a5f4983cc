"""What may be shown and kept: text without secrets, and without control characters that a terminal would obey."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

REDACTED = "<redacted>"
_LEAST = 8  # characters; a shorter value of a variable called X_TOKEN is a switch, no secret
_NAMES = re.compile(r"(?:^|_)(?:TOKEN|API_?KEY|SECRET(?:_ACCESS_KEY)?|PASSWORD)$")
# By their shape: tokens of the Hub and of W&B, and what stands before the @ of a URL.
_SHAPES = re.compile(r"\bhf_(?:oauth_|jwt_)?[A-Za-z0-9]{20,}|\bwandb_v\d+_\w{20,}|(?<=://)[^\s/@'\"]+(?=@)")
# By the name before them.
_NAMED = re.compile(
    r"(?i)((?<![a-z0-9_])(?:(?:(?:hf|hub|auth|access|use_auth|wandb)_?)?token|\w*(?:api_?key|password|passwd|secret))"
    r"['\"]?\s*[=:]\s*['\"]?)([^\s'\",;)}\]]+)"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


def redact(text: str) -> str:
    """Take out every secret that is known here, looks like one, or is called one."""
    for secret in known_secrets():
        text = text.replace(secret, REDACTED)
    return _NAMED.sub(rf"\g<1>{REDACTED}", _SHAPES.sub(REDACTED, text))


def holds_secret(text: str, known: Sequence[str] | None = None) -> bool:
    """Whether a secret that is known here, or looks like one, is in a text.

    Args:
        text: to be looked through.
        known: what ``known_secrets`` gives, for whoever asks of many texts; None: asked anew.
    """
    return bool(_SHAPES.search(text)) or any(secret in text for secret in (known_secrets() if known is None else known))


def printable(text: str) -> str:
    r"""Write control characters as ``\x1b``: what strangers wrote must not move cursors or change titles."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Formatter(logging.Formatter):
    """Log lines that may be shown and kept."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line without secrets and control characters."""
        return printable(redact(super().format(record)))


def hub_token() -> str:
    """Find the token where the Hub's own client looks for it; empty when there is none.

    Raises:
        OSError: if its file cannot be read.
    """
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    place = _hub_token_file()
    return place.read_text(encoding="utf-8", errors="replace").strip() if place.is_file() else ""


def _hub_token_file() -> Path:
    env = os.environ
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(env.get("HF_TOKEN_PATH") or f"{home}/token")).expanduser()


def netrc_file() -> Path:
    """Where the W&B client looks for a login."""
    return Path(os.environ.get("NETRC", "~/.netrc")).expanduser()


def known_secrets() -> list[str]:
    """The secrets of this environment and its logins, the longest first: one may be a part of another."""
    found = {value.strip() for name, value in os.environ.items() if _NAMES.search(name)}
    found |= _in_files(_hub_token_file(), netrc_file())
    return sorted((secret for secret in found if len(secret) >= _LEAST), key=len, reverse=True)


@cache
def _in_files(token_file: Path, netrc: Path) -> frozenset[str]:
    """Secrets in the files of the logins; a file that cannot be read gives none to anybody."""
    texts = {}
    for file in (token_file, netrc):
        try:
            texts[file] = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            texts[file] = ""
    passwords = re.findall(r"\bpassword\s+(\S+)", texts[netrc])
    return frozenset({texts[token_file].strip(), *passwords})
