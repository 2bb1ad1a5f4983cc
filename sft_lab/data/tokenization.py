"""Tokenization: rendered text becomes ``input_ids`` and ``labels``; a row that is too long is dropped, never cut."""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import ModelError
from sft_lab.core.hardware import encoding_on_every_core
from sft_lab.core.rows import Rows, Selection, load_table, save_table
from sft_lab.core.types import IGNORED

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from sft_lab.core.context import StageContext
    from sft_lab.data.chat_template import Rendered, Template

Offset = tuple[int, int]

VERSION = 2


def tokenize(
    rows: Rows, rendered: Path, template: Template, context: StageContext, *, max_length: int, loss_on_all: bool
) -> tuple[Selection, datasets.Dataset]:
    """Return tokenized rows, computed or from the store.

    Args:
        rows: the rendered rows.
        rendered: the folder of the template stage's result.
        template: whose end-of-turn token must be trained.
        context: tokenizer and store.
        max_length: in tokens, template included; a longer row is dropped (reason ``over_max_length``).
        loss_on_all: label every token; otherwise only the answers and their end-of-turn tokens.

    Returns:
        The selection, and a dataset of the kept rows with ``id``, ``input_ids`` and ``labels``.

    Raises:
        ModelError: if a row has nothing to train on or its end-of-turn token is not trained.
    """
    import datasets

    recipe = {
        "version": VERSION,
        "params": {"max_length": max_length, "loss_on_all": loss_on_all},
        "tokenizer": context.tokenizer_key,
        "input": rendered.name,
    }

    def compute(folder: Path) -> None:
        ends = {template.bind(context).end_of_turn_id, context.tokenizer.eos_token_id}  # of a turn, and of plain text
        texts = load_table(rendered)
        kept: dict[str, list[Any]] = {"id": [], "input_ids": [], "labels": []}
        lengths, reasons = [], []
        for row in _encoded(texts, context):
            ids, labels = row["input_ids"], _labels(row, loss_on_all=loss_on_all)
            lengths.append(len(ids))
            reasons.append("over_max_length" if len(ids) > max_length else "")
            if reasons[-1]:
                continue
            if not loss_on_all and ends.isdisjoint(labels):
                raise ModelError(
                    f"row {row['id']}: the end-of-turn token would not be trained; the template's end-of-turn text is "
                    "not one token of this tokenizer (template=plain ends with EOS)"
                )
            kept["id"].append(row["id"])
            kept["input_ids"].append(ids)
            kept["labels"].append(labels)
        ids_feature = [datasets.Value("int32")]
        features = datasets.Features({"id": datasets.Value("string"), "input_ids": ids_feature, "labels": ids_feature})
        save_table(kept, features, folder)
        Selection.of(rows, reasons, lengths).save(folder)

    entry = context.stage("tokenize", recipe, compute)
    return Selection.load(entry.path), load_table(entry.path)


def prompt_ids(prompt: Rendered, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a rendered prompt; a control token that a user typed is encoded as plain text here too."""
    if prompt.cuts:
        return _encode_in_pieces(tokenizer, prompt.text, prompt.cuts)[0]
    return _encode(tokenizer, [prompt.text])[0][0]


def _encoded(texts: datasets.Dataset, context: StageContext) -> Any:
    for start in range(0, len(texts), 1024):
        batch = texts[start : start + 1024]
        encoded = _encode(context.tokenizer, batch["text"])
        columns = (batch[name] for name in ("id", "text", "spans", "cuts"))
        for row_id, text, spans, cuts, *encoding in zip(*columns, *encoded, strict=True):
            ids, offsets = encoding
            if boundaries := sorted({*cuts, *_merged_starts(text, spans, offsets)}):
                ids, offsets = _encode_in_pieces(context.tokenizer, text, boundaries)
            yield {"id": row_id, "input_ids": ids, "offsets": offsets, "spans": spans}


def _merged_starts(text: str, spans: list[list[int]], offsets: list[Offset]) -> list[int]:
    """Return the starts of answers whose first token begins before them, as white space behind a line break does.

    At generation the model is given the tokens of the prompt alone, so the text is split there. Offsets may leave
    out white space.
    """
    token_starts = [begin for begin, _ in offsets]
    return [
        start
        for start, _ in spans
        if (text[start - 1].isspace() and text[start].isspace())
        or offsets[bisect.bisect_left(token_starts, start) - 1][1] > start > 0
    ]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[list[list[int]], list[list[Offset]]]:
    with encoding_on_every_core():
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def _encode_in_pieces(tokenizer: PreTrainedTokenizerBase, text: str, cuts: list[int]) -> tuple[list[int], list[Offset]]:
    """Encode a text so that no token spans a cut."""
    ids: list[int] = []
    offsets: list[Offset] = []
    for begin, end in itertools.pairwise([0, *cuts, len(text)]):
        piece_ids, piece_offsets = _encode_piece(tokenizer, text[begin:end], leads=begin == 0)
        ids += piece_ids
        offsets += [(first + begin, last + begin) for first, last in piece_offsets]
    return ids, offsets


def _encode_piece(tokenizer: PreTrainedTokenizerBase, piece: str, *, leads: bool) -> tuple[list[int], list[Offset]]:
    """Encode a piece of a text; behind a line break unless it leads, since SentencePiece adds a space."""
    (line_break,), _ = _encode(tokenizer, ["\n"])
    (ids,), (offsets,) = _encode(tokenizer, [piece if leads else f"\n{piece}"])
    if leads:
        return ids, offsets
    if ids[: len(line_break)] != line_break:  # the line break went into the piece's first token
        return _encode_piece(tokenizer, piece, leads=True)
    return ids[len(line_break) :], [(first - 1, last - 1) for first, last in offsets[len(line_break) :]]


def _labels(row: dict[str, Any], *, loss_on_all: bool) -> list[int]:
    """Return the labels of a row: a token is labelled if it holds a character of an answer.

    Tokenizers that trim offsets give a token of nothing but white space no width, at its end: it counts too.
    """
    if loss_on_all:
        return list(row["input_ids"])
    spans = row["spans"]
    return [
        token if any(begin < stop and end > start for start, stop in spans) else IGNORED
        for token, (begin, end) in zip(row["input_ids"], row["offsets"], strict=True)
    ]
