"""Known texts: those in an embedder's scripts whose tokens its tokenizer can distinguish.

A tokenizer without emoji, Arabic digits and most symbols maps them all to its unknown token, so that texts which differ
only in these have a cosine of 1. A byte-level tokenizer knows every text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core.context import StageContext
from sft_lab.core.hardware import encoding_on_every_core
from sft_lab.core.io import write_array
from sft_lab.dedup.embed import Embedder

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.dedup.texts import Texts

VERSION = 1
# Of 1,180 real answers in Latin letters, 12 have more than 1% unknown tokens and 5 more than 5%: lists of emoji or
# symbols, and one with an invisible character. Prose with an occasional emoji stays below.
MAX_UNKNOWN_SHARE = 0.05  # of the tokens of a text
MAX_CHARACTERS = 2048  # of each text that are tokenized; the bundled embedder reads about half of them


def known_texts(texts: Texts, embedder: Embedder, context: StageContext) -> np.ndarray:
    """Return whether the embedder knows each text, stored or computed: bool, shape (texts,).

    A text is known if at least half of its letters are in the embedder's scripts and at most
    ``MAX_UNKNOWN_SHARE`` of its tokens are the tokenizer's unknown token; a blank text is known.
    """
    import numpy as np

    def compute(folder: Path) -> None:
        known = np.fromiter(map(embedder.knows_script, texts), bool, len(texts))
        indices = np.flatnonzero(known)
        shares = _unknown_shares(texts.take(indices), embedder)
        known[indices] = np.fromiter(shares, np.float64, len(indices)) <= MAX_UNKNOWN_SHARE
        write_array(folder / "known.npy", known)

    params = {"embedder": embedder.key(), "scripts": embedder.scripts}
    recipe = {"version": VERSION, "params": params, "input": texts.key}
    # Not a stage of the run: the manifest has the stages that call this.
    known: np.ndarray = np.load(context.store.entry("known", recipe, compute).path / "known.npy")
    return known


def _unknown_shares(texts: Texts, embedder: Embedder) -> Iterator[float]:
    """Yield the share of unknown tokens in each text; 1 for a text without tokens that is not blank."""
    tokenizer = embedder.tokenizer() if len(texts) else None
    if tokenizer is None:
        yield from [0.0] * len(texts)
        return
    for batch in texts.batches():
        beginnings = [text[:MAX_CHARACTERS] for text in batch]
        with encoding_on_every_core():
            encoded = tokenizer(beginnings, add_special_tokens=False, truncation=False, verbose=False)
        for text, ids in zip(beginnings, encoded["input_ids"], strict=True):
            yield ids.count(tokenizer.unk_token_id) / len(ids) if ids else float(bool(text.strip()))
