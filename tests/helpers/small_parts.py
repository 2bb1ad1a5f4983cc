"""Rows, tokenizer and stage context of these tests, all real and small."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import AutoTokenizer

import sft_lab
from sft_lab.core.context import StageContext
from sft_lab.core.rows import Rows
from sft_lab.core.store import Store
from sft_lab.core.text import content_group

PAIR = tuple[str, str]
_folder = tempfile.TemporaryDirectory()


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(sft_lab.__file__).parent / "training" / "tiny_tokenizer_files")


@cache
def context() -> StageContext:
    """One for all examples: what a stage has stored is found again, which is what users live with."""
    return StageContext(Store(Path(_folder.name)), tokenizer)


def rows_of(pairs: list[PAIR], groups: list[str] | None = None) -> Rows:
    """A table as load makes it, its key by its content alone."""
    columns = {
        "id": [f"{place}-{content_group(*pair)[-12:]}" for place, pair in enumerate(pairs)],
        "prompt": [prompt for prompt, _ in pairs],
        "answer": [answer for _, answer in pairs],
        "messages": [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for prompt, answer in pairs
        ],
        "group": groups or [content_group(*pair) for pair in pairs],
        "source": [""] * len(pairs),
        "source_split": [""] * len(pairs),
    }
    text = datasets.Value("string")
    features = datasets.Features(
        {name: [{"role": text, "content": text}] if name == "messages" else text for name in columns}
    )
    table = datasets.Dataset.from_dict(columns, features=features)
    return Rows(table, np.arange(len(table)), repr((pairs, groups)))
