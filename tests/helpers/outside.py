"""What hostile tests share: a secret, the words of a tiny run, and the world outside every folder given."""

from __future__ import annotations

from pathlib import Path

SECRET = "s3cr3t-of-the-environment"
TINY = [
    "model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1",
    "evaluation.max_new_tokens=4", "evaluation.outputs=0", "tracking=local",
]  # fmt: skip


class Outside:
    """What lies outside every folder that a command is given.

    Attributes:
        canary: made by code that should not run.
        file: with a content that should stay.
        folder: that holds it, and should hold nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.file = folder / "precious.txt"
        self.file.write_text("precious")
        self.canary = folder.with_name("canary")

    def is_untouched(self) -> bool:
        return (
            not self.canary.exists()
            and [path.name for path in self.folder.rglob("*")] == ["precious.txt"]
            and self.file.read_text() == "precious"
        )
