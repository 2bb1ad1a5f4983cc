"""Training rows as the model sees them, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lab.core import tolerant_readers
from sft_lab.core.console import console

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir


def show_model_rows(folder: RunDir) -> None:
    """Print the data report's rows: trained tokens in brackets and color, control tokens dimmed."""
    from rich.text import Text

    from sft_lab.data.model_view import stretches_of

    out = console()
    out.print("Rows as the model sees them; trained tokens are in ⟦ ⟧")
    for view in tolerant_readers.read(folder.data, []).get("model_rows") or []:
        counts = f"{view.get('tokens') or 0:,} tokens, {view.get('trained_tokens') or 0:,} of them trained on"
        if (view.get("examples") or 1) > 1:
            counts += f"; example {view.get('example')} of {view['examples']} of this row"
        out.print(Text(f"\n{view.get('choice')}, {view.get('id')}: {counts}", style="bold"), soft_wrap=True)
        parts = [part for part in view.get("parts") or [] if part]
        line = Text()
        for text, trained, special in stretches_of(parts):
            line.append(text, " ".join([*(["green"] if trained else []), *(["dim"] if special else [])]))
        out.print(line, soft_wrap=True)
    out.print()
