"""Training rows as the model sees them: stored tokens decoded, split into what trains and what does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from sft_lab.core.text import visible
from sft_lab.core.types import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft_lab.data.preparation import Ready

MAX_CHARACTERS = 3000  # of a row; the middle of a longer one is left out


class Part(TypedDict, total=False):
    """A stretch of a row.

    Either ``text``, whether it is ``trained`` and whether it is ``special``, a control token; or the number of
    characters ``omitted``.
    """

    text: str
    trained: bool
    special: bool
    omitted: int


def view_rows(ready: Ready, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return up to three rows, including the first and the longest: why each was chosen, its id, tokens and parts.

    For a row of several examples, the longest example is shown.
    """
    if not len(ready.rows):
        return []
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special.update(tokenizer.all_special_ids)
    borders = [*ready.first_examples.tolist(), len(ready.tokens)]
    views = []
    for index, choice in sorted(_choose(ready.encoded.lengths(ready.rows)).items()):
        examples = ready.tokens[borders[index] : borders[index + 1]]
        sizes = [*map(len, examples["input_ids"])]
        number = sizes.index(max(sizes))
        trained = [label != IGNORED for label in examples["labels"][number]]
        views.append(
            {
                "choice": choice,
                "id": examples["id"][number],
                "tokens": len(trained),
                "trained_tokens": sum(trained),
                "example": number + 1,
                "examples": len(sizes),
                "parts": _cut(_parts(examples["input_ids"][number], trained, special, tokenizer)),
            }
        )
    return views


def stretches_of(parts: list[Part]) -> Iterator[tuple[str, bool, bool]]:
    """Yield a row's texts, each with whether it trains and whether it is a control token.

    What trains is put in brackets, and invisible characters are escaped.
    """
    for trained, group in itertools.groupby(parts, lambda part: bool(part.get("trained"))):
        if trained:
            yield "⟦", True, False
        for part in group:
            text = _omission(part) if part.get("omitted") else visible(part.get("text") or "")
            yield text, trained, bool(part.get("special"))
        if trained:
            yield "⟧", True, False


def _omission(part: Part) -> str:
    return f"\n[... {part['omitted']:,} characters left out ...]\n"


def _choose(lengths: np.ndarray) -> dict[int, str]:
    """Return the indices of the rows to show, and why each was chosen."""
    longest = int(np.argmax(lengths))
    chosen = {0: "first"} | {longest: "longest" if longest else "first and longest"}
    by_length = np.argsort(lengths, kind="stable")
    for index in np.roll(by_length, -(len(by_length) // 2))[:4].tolist():
        if len(chosen) < 3:
            chosen.setdefault(index, "of median length")
    return chosen


def _parts(ids: list[int], trained: list[bool], special: set[int], tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    parts: list[Part] = []
    start = 0
    for (is_trained, is_special), tokens in itertools.groupby(
        zip(trained, (token in special for token in ids), strict=True)
    ):
        stop = start + len([*tokens])
        parts.append({"text": _decode(ids, start, stop, tokenizer), "trained": is_trained, "special": is_special})
        start = stop
    return parts


def _decode(ids: list[int], start: int, stop: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of some tokens, decoded after the one before them: decoders drop a leading space."""

    def decoded(first: int, last: int) -> str:
        return str(tokenizer.decode(ids[first:last], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before = max(0, start - 1)
    text, prefix = decoded(before, stop), decoded(before, start) if start else ""
    return text.removeprefix(prefix) if text.startswith(prefix) else decoded(start, stop)


def _cut(parts: list[Part]) -> list[Part]:
    """Return the parts with the middle of a long row replaced by the number of characters omitted."""
    total = sum(len(part["text"]) for part in parts)
    if total <= MAX_CHARACTERS:
        return parts
    head: list[Part] = []
    tail: list[Part] = []
    begin = 0
    for part in parts:
        for side, cut in ((head, slice(max(0, MAX_CHARACTERS // 2 - begin))),
                          (tail, slice(max(0, total - MAX_CHARACTERS // 2 - begin), None))):  # fmt: skip
            if text := part["text"][cut]:
                side.append({**part, "text": text})
        begin += len(part["text"])
    return [*head, {"omitted": total - MAX_CHARACTERS, "trained": head[-1]["trained"] and tail[0]["trained"]}, *tail]
