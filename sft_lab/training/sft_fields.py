"""The fields of TRL's SFTConfig, known without the seconds that importing TRL takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# The file of each class in its package, with its beginning: SFTConfig and those that it inherits from.
_CLASSES = {
    "trl": {
        "trainer/sft_config.py": "class SFTConfig(_BaseConfig):",
        "trainer/base_config.py": "class _BaseConfig(TrainingArguments):",
    },
    "transformers": {"training_args.py": "class TrainingArguments:"},
}


def fields_in_source() -> set[str]:
    """Return the fields of the installed SFTConfig by its source; empty if that has another layout."""
    names: set[str] = set()
    for package, files in _CLASSES.items():
        spec = find_spec(package)
        for name, beginning in files.items():
            file = Path(spec.origin or "").parent / name if spec else Path(name)
            text = file.read_text("utf-8") if file.is_file() else ""
            if beginning not in text:
                return set()
            names.update(re.findall(r"^    (\w+):", text, re.MULTILINE))
    return names


def unknown_field_problem(names: Iterable[str], known: set[str]) -> str:
    """Return the problem with names that are no fields of SFTConfig, with the nearest ones; empty if all are."""
    unknown = sorted(set(names) - known)
    if not unknown:
        return ""
    near = [match for name in unknown for match in difflib.get_close_matches(name, known, n=1)]
    remedy = f"did you mean {' or '.join(near)}?" if near else "leave it out"
    return f"trainer.sft_config={unknown}: not a field of TRL {version('trl')}'s SFTConfig; {remedy}"


def check_fields(names: Collection[str]) -> list[str]:
    """Return the problem with names that are no fields of the installed SFTConfig, if there is one."""
    known = fields_in_source() if names else set()
    problem = unknown_field_problem(names, known) if known else ""
    return [problem] if problem else []
