"""Encoding: a conversation becomes text, ``input_ids`` and ``labels``, in one pass of the tokenizer.

The same pass counts the tokens of prompt and answer, by which rows are filtered and the waterfall is written: those
that hold a character of the messages' own text, not of the template around it. A row that is too long for training is
dropped, never cut.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_lab.core.blocks import run_blocks
from sft_lab.core.columns import values_of
from sft_lab.core.errors import ModelError
from sft_lab.core.hardware import encoding_on_every_core
from sft_lab.core.io import digest, read_json, write_json
from sft_lab.core.mapped import release
from sft_lab.core.plugins import version_of
from sft_lab.core.rows import Rows, Selection, TableWriter, load_table
from sft_lab.core.types import IGNORED
from sft_lab.data.chat_template import Template
from sft_lab.data.renderer import Renderer
from sft_lab.data.template_layout import CannotRender, Rendered

if TYPE_CHECKING:
    import datasets
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

    from sft_lab.core.context import StageContext

Offset = tuple[int, int]

VERSION = 1
IDS = pa.list_(pa.int32())
MAX_LOOKED_UP = 64  # messages whose tokens are looked up one by one
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("input_ids", IDS), ("labels", IDS)])
# The columns of a row's numbers: tokens of its prompt, of its answer, of its whole text; whether a token that ends a
# turn or a text is labelled; why it cannot be rendered, 0 where it can.
PROMPT, ANSWER, ALL, ENDS, REFUSED = range(5)
BLOCK_SCHEMA = pa.schema([*SCHEMA, ("numbers", pa.list_(pa.int32(), 4)), ("refused", pa.string())])


@dataclass(frozen=True)
class Encoded:
    """Rows as texts and tokens.

    Attributes:
        view: the rows.
        path: the folder of the stored result.
        numbers: int32, shape (rows, 5); see ``PROMPT`` and the following.
    """

    view: Rows
    path: Path
    numbers: np.ndarray

    @cached_property
    def table(self) -> datasets.Dataset:
        """``id``, ``text``, ``input_ids`` and ``labels`` (of the answers alone) of every row, memory-mapped."""
        return load_table(self.path)

    @cached_property
    def reasons(self) -> list[str]:
        """Why rows cannot be rendered, by the number for it."""
        reasons: list[str] = read_json(self.path / "reasons.json")["reasons"]
        return reasons

    def indices(self, rows: Rows) -> np.ndarray:
        """Return where some of the rows are in the table: int64, shape (rows,)."""
        return np.searchsorted(self.view.positions, rows.positions)  # both are in source order

    def refused(self, rows: Rows) -> list[str]:
        """Return why each row cannot be rendered, ``""`` where it can."""
        return [self.reasons[code] for code in self.numbers[self.indices(rows), REFUSED]]

    def counts(self, rows: Rows) -> np.ndarray:
        """Return the tokens of prompt and of answer: int32, shape (rows, 2)."""
        counts: np.ndarray = self.numbers[self.indices(rows)][:, [PROMPT, ANSWER]]
        return counts

    def lengths(self, rows: Rows) -> np.ndarray:
        """Return the tokens of each row's whole text: int32, shape (rows,)."""
        lengths: np.ndarray = self.numbers[self.indices(rows), ALL]
        return lengths

    def tokens(self, rows: Rows, *, loss_on_all: bool) -> datasets.Dataset:
        """Return ``id``, ``input_ids`` and ``labels`` of some of the rows."""
        import datasets
        from datasets.table import InMemoryTable

        table = self.table.data.table  # the columns are memory-mapped, whatever table they are put into
        labels = table["input_ids" if loss_on_all else "labels"]
        columns = pa.table({"id": table["id"], "input_ids": table["input_ids"], "labels": labels})
        key = digest([self.path.name, loss_on_all])[:32]
        return datasets.Dataset(InMemoryTable(columns), fingerprint=key).select(
            self.indices(rows), new_fingerprint=digest([key, rows.key])[:32]
        )


def encode(rows: Rows, template: Template, context: StageContext) -> Encoded:
    """Return the rows as texts and tokens, computed or from the store.

    Raises:
        ModelError: if the template does not fit the tokenizer.
    """
    renderer = template.bind(context)  # what is wrong with the template is said for stored texts too
    date = {"date": renderer.date.isoformat()} if renderer.date else {}
    if renderer.date:
        context.notice(
            f"template: writes the date into every conversation, here that of {renderer.date}; a run that goes on "
            "and its replay keep it, and a new run on another day trains on other texts"
        )
    recipe = {
        "version": [VERSION, version_of(template)],
        "params": {"jinja": digest(renderer.jinja), **date},
        "tokenizer": context.tokenizer_key,
        "input": rows.key,
    }
    entry = context.stage("encode", recipe, lambda folder: _write(rows, renderer, context, folder))
    return Encoded(rows, entry.path, np.load(entry.path / "numbers.npy"))


def tokenize(rows: Rows, encoded: Encoded, *, max_length: int, loss_on_all: bool) -> tuple[Selection, datasets.Dataset]:
    """Return the rows that are not too long, as tokens.

    Args:
        rows: some of the encoded rows.
        encoded: the template stage's result.
        max_length: in tokens, template included; a longer row is dropped (reason ``over_max_length``).
        loss_on_all: label every token; otherwise only the answers and their end-of-turn tokens.

    Returns:
        The selection, and a dataset of the kept rows with ``id``, ``input_ids`` and ``labels``.

    Raises:
        ModelError: if a kept row's end-of-turn token is not trained.
    """
    lengths = encoded.lengths(rows)
    too_long = lengths > max_length
    kept = rows.take(~too_long)
    endless = encoded.numbers[encoded.indices(kept), ENDS] == 0
    if not loss_on_all and endless.any():
        raise ModelError(
            f"row {kept.ids[int(endless.argmax())]}: the end-of-turn token would not be trained; the template's "
            "end-of-turn text is not one token of this tokenizer (template=plain ends with EOS)"
        )
    reasons = np.where(too_long, "over_max_length", "").tolist()
    return Selection.of(rows, reasons, lengths), encoded.tokens(kept, loss_on_all=loss_on_all)


def prompt_ids(prompt: Rendered, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a rendered prompt; a control token that a user typed is encoded as plain text here too."""
    if prompt.cuts:
        return _encode_in_pieces(tokenizer, prompt.text, prompt.cuts)[0]
    return _encode(tokenizer, [prompt.text])[0][0]


def _write(rows: Rows, renderer: Renderer, context: StageContext, folder: Path) -> None:
    work = _Encoder(rows, renderer)
    writer = TableWriter(folder, SCHEMA)
    numbers = np.zeros((len(rows), 5), np.int32)
    codes = {"": 0}
    start = 0
    for block in run_blocks(work, context.engine.ranges(len(rows)), folder, "encode", context.engine):
        table = block.read()
        writer.write(table)
        stop = start + table.num_rows
        values = table["numbers"].combine_chunks()
        numbers[start:stop, :4] = values.flatten().to_numpy().reshape(-1, 4)
        refused = table["refused"].to_pylist()
        numbers[start:stop, REFUSED] = [codes.setdefault(reason, len(codes)) for reason in refused]
        start = stop
    writer.close()
    np.save(folder / "numbers.npy", numbers)
    write_json(folder / "reasons.json", {"reasons": list(codes)})


class _Encoder:
    """Renders and encodes a block of rows."""

    def __init__(self, rows: Rows, renderer: Renderer) -> None:
        self._rows = rows
        self._renderer = renderer
        self._tokenizer = renderer.tokenizer
        self._ends = renderer.end_ids  # of a turn, and of plain text

    def __call__(self, block: range) -> pa.Table:
        positions = self._rows.positions[block.start : block.stop]
        rows = Rows(self._rows.table, positions, self._rows.table_key)
        columns = [rows.arrow(name) for name in ("id", "messages", "prompt", "answer")]
        ids, conversations, prompts, answers = map(values_of, columns)
        release(columns)
        rendered: list[Rendered] = []
        refused: list[str] = []
        for messages, answer in zip(conversations, answers, strict=True):
            try:
                text = self._renderer.conversation(messages) if messages else self._renderer.plain_text(answer)
            except CannotRender as error:
                rendered.append(Rendered("", [], []))
                refused.append(str(error))
            else:
                rendered.append(text)
                refused.append("")
        encodings = _encodings(self._tokenizer, [row.text for row in rendered])
        encoded = [*map(self._encoded, rendered, encodings)]
        numbers = np.zeros((len(ids), 4), np.int32)
        for index, (tokens, labels, _) in enumerate(encoded):
            numbers[index, [ALL, ENDS]] = len(tokens), np.isin(labels, self._ends).any()
        for index, counts in self._counts(conversations, prompts, answers, encoded):
            numbers[index, [PROMPT, ANSWER]] = counts
        return pa.table(
            {
                "id": ids,
                "text": [row.text for row in rendered],
                "input_ids": _lists([tokens for tokens, _, _ in encoded]),
                "labels": _lists([labels for _, labels, _ in encoded]),
                "numbers": pa.FixedSizeListArray.from_arrays(numbers.ravel(), 4),
                "refused": refused,
            },
            schema=BLOCK_SCHEMA,
        )

    def _encoded(self, row: Rendered, encoding: Encoding) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return tokens and labels of a row, and how many tokens each message's own text has; none if not known."""
        tokens = np.array(encoding.ids, np.int32)
        is_short = len(row.contents) <= MAX_LOOKED_UP  # each lookup goes through the tokens
        ranges = _ranges(encoding, row.text, row.spans) if is_short and not row.cuts else None
        if ranges is None:
            return self._encoded_in_pieces(row, encoding)
        labels = np.full(len(tokens), IGNORED, np.int32)
        for first, stop in ranges:
            labels[first:stop] = tokens[first:stop]
        contents = [tokens_of for begin, end in row.contents if (tokens_of := _tokens_of(encoding, begin, end))]
        counts = [stop - first for first, stop in contents]
        return tokens, labels, counts if len(counts) == len(row.contents) else []

    def _encoded_in_pieces(self, row: Rendered, encoding: Encoding) -> tuple[np.ndarray, np.ndarray, list[int]]:
        ids, offsets = encoding.ids, encoding.offsets
        if boundaries := sorted({*row.cuts, *_merged_starts(row.text, row.spans, offsets)}):
            ids, offsets = _encode_in_pieces(self._tokenizer, row.text, boundaries)
        tokens = np.array(ids, np.int32)
        begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        labels = np.full(len(tokens), IGNORED, np.int32)
        for first, last in _token_ranges(begins, ends, row.spans):
            labels[first:last] = tokens[first:last]
        contents = [last - first for first, last in _token_ranges(begins, ends, row.contents)]
        return tokens, labels, contents

    def _counts(
        self, conversations: list[Any], prompts: list[str], answers: list[str],
        encoded: list[tuple[np.ndarray, np.ndarray, list[int]]],
    ) -> Iterator[tuple[int, tuple[int, int]]]:  # fmt: skip
        """Yield the tokens of prompt and answer of each row, by its index."""
        alone: list[int] = []
        for index, (messages, (_, _, contents)) in enumerate(zip(conversations, encoded, strict=True)):
            if not contents:
                alone.append(index)
                continue
            roles = [message["role"] for message in messages] or ["assistant"]  # plain text answers nothing
            of_role = Counter[str]()
            for role, count in zip(roles, contents, strict=True):
                of_role[role] += count
            yield index, (of_role["user"], of_role["assistant"])
        texts = [text for index in alone for text in (prompts[index], answers[index])]
        sizes = [len(encoding.ids) for encoding in _encodings(self._tokenizer, texts)]
        for position, index in enumerate(alone):
            yield index, (sizes[2 * position], sizes[2 * position + 1])


def _lists(values: list[np.ndarray]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in values])]).astype(np.int32)
    flat = np.concatenate(values) if values else np.zeros(0, np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, pa.int32()))


def _token_ranges(begins: np.ndarray, ends: np.ndarray, spans: list[Offset]) -> list[Offset]:
    """Return the tokens that hold a character of each span, first and behind the last; offsets are in order."""
    starts, stops = np.array(spans, np.int64).reshape(-1, 2).T
    first = np.searchsorted(ends, starts, "right")
    last = np.maximum(first, np.searchsorted(begins, stops, "left"))
    return [*zip(first.tolist(), last.tolist(), strict=True)]


def _ranges(encoding: Encoding, text: str, spans: list[Offset]) -> list[Offset] | None:
    """Return the tokens of each answer, first and behind the last; None if a token spans the beginning of one.

    As ``_merged_starts`` and the rule of labels have it, without a list of all offsets.
    """
    ranges = []
    for start, stop in spans:
        if start and text[start - 1].isspace() and text[start].isspace():
            return None
        tokens = _tokens_of(encoding, start, stop)
        if tokens is None or _begin(encoding, tokens[0]) < start:
            return None
        if tokens[0] and _end(encoding, tokens[0] - 1) > start:
            return None
        ranges.append(tokens)
    return ranges


def _tokens_of(encoding: Encoding, start: int, stop: int) -> Offset | None:
    """Return the tokens that hold a character of a stretch of text; None if its ends are in no token."""
    if start == stop:
        return 0, 0
    first, last = encoding.char_to_token(start), encoding.char_to_token(stop - 1)
    if first is None or last is None:
        return None
    while last + 1 < len(encoding) and _begin(encoding, last + 1) < stop:
        last += 1
    return first, last + 1


def _begin(encoding: Encoding, token: int) -> int:
    return (encoding.token_to_chars(token) or (0, 0))[0]


def _end(encoding: Encoding, token: int) -> int:
    return (encoding.token_to_chars(token) or (0, 0))[1]


def _merged_starts(text: str, spans: list[Offset], offsets: list[Offset]) -> list[int]:
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


def _encodings(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoding]:
    if not texts:
        return []
    backend = tokenizer.backend_tokenizer  # not the call, which makes lists of all that it gives
    backend.no_truncation()
    backend.no_padding()
    with encoding_on_every_core():
        encodings: list[Encoding] = backend.encode_batch(texts, add_special_tokens=False)
    return encodings


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[list[list[int]], list[list[Offset]]]:
    encodings = _encodings(tokenizer, texts)
    return [encoding.ids for encoding in encodings], [encoding.offsets for encoding in encodings]


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
