"""docs/wrong_inputs.md: what the user is told of each wrong input, as the tests found it.

python tests/bad_input/wrong_table.py    tries all of them and writes it anew
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import wrong_data
import wrong_models
import wrong_places
import wrong_words
from wrong_input import REPOSITORY, Told, Wrong, tried

CASES: list[Wrong] = [*wrong_words.CASES, *wrong_data.CASES, *wrong_models.CASES, *wrong_places.CASES]
FILE = REPOSITORY / "docs" / "wrong_inputs.md"
RENEW = "python tests/bad_input/wrong_table.py"
HEAD = f"""\
# Wrong inputs and their messages

Each of these {len(CASES)} inputs is tested through the command line. Each ends with exit code 2 and this one
message, without a traceback, and leaves nothing behind: no run folder, no lock, no half-written store entry. Those
marked *job failed* are detected only when the job runs: exit code 1, and the run folder has the same message. Rows that
cannot be used are not errors: they are dropped with a reason ([Preparing data](data.md#rows-that-cannot-be-used)).

Generated: `{RENEW}` tries all of them and writes this file again.

| where | what is wrong | message |
|---|---|---|
"""


def line(wrong: Wrong, told: Told) -> str:
    """The row of the table."""
    message = "".join(told.messages).strip().replace("|", "\\|").replace("<", "&lt;")
    message = "<br>".join(part.strip() for part in message.splitlines())
    message = "".join(one if one.isprintable() else repr(one)[1:-1] for one in message)
    return f"| {wrong.place} | {wrong.what}{' (*job failed*)' if wrong.fails else ''} | {message} |\n"


def main() -> None:
    """Try all and write the table."""
    import os

    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TRANSFORMERS_VERBOSITY="error")
    found = []
    for wrong in CASES:
        with tempfile.TemporaryDirectory() as root:
            found.append(line(wrong, tried(wrong, Path(root).resolve())))
        print(found[-1], end="", flush=True)
    FILE.write_text(HEAD + "".join(found), encoding="utf-8")


if __name__ == "__main__":
    main()
