"""Encoding: a conversation becomes text, ``input_ids`` and ``labels``, in one pass of the tokenizer.

A row is one example, or several where its template hides the thoughts of earlier turns (``examples``).

The same pass counts the tokens of prompt and answer for filters and the waterfall: those with a character of the
messages' own text, not only of the template around it. A row that is too long for training is dropped, never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_lab.core.blocks import run_blocks
from sft_lab.core.columns import release, values_of
from sft_lab.core.errors import ModelError
from sft_lab.core.io import digest, read_json, write_array, write_json
from sft_lab.core.plugins import version_of
from sft_lab.core.rows import Rows, TableWriter, load_table
from sft_lab.core.selection import Selection
from sft_lab.core.types import IGNORED, TEMPLATE_INPUTS
from sft_lab.data.chat_template import Template
from sft_lab.data.examples import ExampleMaker
from sft_lab.data.label_checks import check_messages
from sft_lab.data.messages import Message
from sft_lab.data.template_input import Conversation
from sft_lab.data.template_layout import CannotRender, Rendered
from sft_lab.data.token_ranges import (
    answer_ranges,
    encode_in_pieces,
    encodings_of,
    merged_starts,
    token_ranges,
    tokens_of,
)
from sft_lab.data.trained_turns import LabelRules

if TYPE_CHECKING:
    import datasets
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

    from sft_lab.core.context import StageContext

VERSION = 3
ALL_TURNS = LabelRules()
_Tokens = tuple[np.ndarray, np.ndarray, np.ndarray | None, list[int]]
IDS = pa.list_(pa.int32())
MAX_LOOKED_UP = 64  # messages in a row whose tokens are looked up one by one
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("input_ids", IDS), ("labels", IDS),
                    ("weights", pa.list_(pa.float32()))])  # fmt: skip
# The columns of a row's numbers: tokens of its prompt, of its answer, and of its longest example; whether each example
# has a labelled token that ends a turn or a text; the code of why it cannot be rendered, 0 if it can; its examples.
PROMPT, ANSWER, ALL, ENDS, REFUSED, EXAMPLES = range(6)
# Of an example: its row, counted within the block, and all numbers but the last two.
BLOCK_SCHEMA = pa.schema([*SCHEMA, ("row", pa.int32()), ("numbers", pa.list_(pa.int32(), 4)),
                          ("refused", pa.list_(pa.string(), 2))])  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Rows as texts and tokens.

    Attributes:
        view: the rows.
        path: the folder of the stored result.
        numbers: int32, shape (rows, 6); see ``PROMPT`` and the following.
    """

    view: Rows
    path: Path
    numbers: np.ndarray

    def __repr__(self) -> str:
        return f"Encoded({len(self.view):,} rows in {self.path})"

    @cached_property
    def table(self) -> datasets.Dataset:
        """``id``, ``text``, ``input_ids``, ``labels`` (of what trains) and ``weights`` of examples, memory-mapped."""
        return load_table(self.path)

    @cached_property
    def _refusals(self) -> list[tuple[str, str]]:
        """The reasons why rows cannot be rendered and their causes, by code."""
        return [(reason, cause) for reason, cause in read_json(self.path / "reasons.json")["reasons"]]

    @cached_property
    def _first(self) -> np.ndarray:
        """Where each row's examples begin in the table, and the table's end: int64, shape (rows + 1,)."""
        return np.concatenate([[0], np.cumsum(self.numbers[:, EXAMPLES], dtype=np.int64)])

    def numbers_of(self, rows: Rows) -> np.ndarray:
        """Return the numbers of some of the rows."""
        numbers: np.ndarray = self.numbers[self._positions(rows)]
        return numbers

    def _positions(self, rows: Rows) -> np.ndarray:
        return np.searchsorted(self.view.positions, rows.positions)  # both are in source order

    def indices(self, rows: Rows) -> np.ndarray:
        """Return the table's index of each row's first example: int64, shape (rows,)."""
        indices: np.ndarray = self._first[self._positions(rows)]
        return indices

    def row_of_example(self, rows: Rows) -> np.ndarray:
        """Return the row of each example, counted from 0 within ``rows``: int64, shape (examples,)."""
        return np.repeat(np.arange(len(rows)), self.numbers_of(rows)[:, EXAMPLES])

    def example_indices(self, rows: Rows) -> np.ndarray:
        """Return the table's indices of all examples of some rows: int64, shape (examples,)."""
        examples = self.row_of_example(rows)
        rest = np.arange(len(examples)) - np.searchsorted(examples, examples)
        indices: np.ndarray = self.indices(rows)[examples] + rest
        return indices

    def selection(self, rows: Rows) -> Selection:
        """Return which rows can be rendered, and why the others cannot."""
        decisions = [self._refusals[code] for code in self.numbers_of(rows)[:, REFUSED]]
        return Selection.of(rows, [reason for reason, _ in decisions], cause=[cause for _, cause in decisions])

    def counts(self, rows: Rows) -> np.ndarray:
        """Return the number of tokens of each prompt and answer: int32, shape (rows, 2)."""
        counts: np.ndarray = self.numbers_of(rows)[:, [PROMPT, ANSWER]]
        return counts

    def lengths(self, rows: Rows) -> np.ndarray:
        """Return the number of tokens of each row's longest example: int32, shape (rows,)."""
        lengths: np.ndarray = self.numbers_of(rows)[:, ALL]
        return lengths

    def tokens(self, rows: Rows, *, loss_on_all: bool) -> datasets.Dataset:
        """Return ``id``, ``input_ids`` and ``labels`` of the examples of some of the rows, and ``weights`` if any."""
        import datasets
        from datasets.table import InMemoryTable

        table = self.table.data.table  # its columns stay memory-mapped in any table
        labels = table["input_ids" if loss_on_all else "labels"]
        columns = {"id": table["id"], "input_ids": table["input_ids"], "labels": labels}
        if not loss_on_all and table["weights"].null_count < len(table):
            columns["weights"] = table["weights"]
        key = digest([self.path.name, loss_on_all])[:32]
        return datasets.Dataset(InMemoryTable(pa.table(columns)), fingerprint=key).select(
            self.example_indices(rows), new_fingerprint=digest([key, rows.key])[:32]
        )


def encode(rows: Rows, template: Template, context: StageContext, rules: LabelRules = ALL_TURNS) -> Encoded:
    """Return the rows as texts and tokens, computed or from the store.

    Args:
        rows: of a table.
        template: that renders them.
        context: of the run.
        rules: which parts of a conversation train.

    Raises:
        ModelError: if the template does not fit the tokenizer.
        SourceError: for a weight that the loss does not apply.
    """
    renderer = template.bind(context)  # problems of the template are reported for stored texts too
    date = {"date": renderer.date.isoformat()} if renderer.date else {}
    if renderer.date:
        context.notice(
            f"template: writes the date into every conversation, {renderer.date} in this run; resuming and replaying "
            "keep that date, but a new run on another day trains on different texts"
        )
    recipe = {
        "version": [VERSION, version_of(template)],
        "params": {"jinja": digest(renderer.jinja), **date, **template.changes(), **rules.changes()},
        "tokenizer": context.tokenizer_key,
        "input": rows.key,
    }
    entry = context.stage("encode", recipe, lambda folder: _write(rows, ExampleMaker(renderer, rules), context, folder))
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
    endless = encoded.numbers_of(kept)[:, ENDS] == 0
    if not loss_on_all and endless.any():
        raise ModelError(
            f"row {kept.ids[int(endless.argmax())]}: the end of turn would not be trained, since the template's "
            "end-of-turn text is not a single token of this tokenizer; use another template (template=plain ends "
            "with EOS)"
        )
    reasons = np.where(too_long, "over_max_length", "").tolist()
    return Selection.of(rows, reasons, lengths), encoded.tokens(kept, loss_on_all=loss_on_all)


def prompt_ids(prompt: Rendered, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a rendered prompt; a control token typed by a user is encoded as plain text."""
    if prompt.cuts:
        return encode_in_pieces(tokenizer, prompt.text, prompt.cuts)[0]
    (encoding,) = encodings_of(tokenizer, [prompt.text])
    ids: list[int] = encoding.ids
    return ids


def _write(rows: Rows, maker: ExampleMaker, context: StageContext, folder: Path) -> None:
    check_messages(rows, maker, context)
    work = _Encoder(rows, maker)
    writer = TableWriter(folder, SCHEMA)
    numbers = np.zeros((len(rows), 6), np.int32)
    codes = {("", ""): 0}
    start = 0
    for block in run_blocks(work, context.engine.ranges(len(rows)), folder, "encode", context.engine):
        table = block.read()
        writer.write(table)
        of_row, first, counts = np.unique(table["row"].to_numpy(), return_index=True, return_counts=True)
        values = table["numbers"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
        stop = start + len(of_row)
        numbers[start:stop, :4] = values[first]
        numbers[start:stop, ALL] = np.maximum.reduceat(values[:, ALL], first)
        numbers[start:stop, ENDS] = np.minimum.reduceat(values[:, ENDS], first)
        refused = table["refused"].take(pa.array(first)).to_pylist()
        numbers[start:stop, REFUSED] = [codes.setdefault((reason, cause), len(codes)) for reason, cause in refused]
        numbers[start:stop, EXAMPLES] = counts
        start = stop
    writer.close()
    write_array(folder / "numbers.npy", numbers)
    write_json(folder / "reasons.json", {"reasons": list(codes)})


class _Encoder:
    """Renders and encodes a block of rows."""

    def __init__(self, rows: Rows, maker: ExampleMaker) -> None:
        self._rows = rows
        self._maker = maker
        self._renderer = maker.renderer
        self._tokenizer = self._renderer.tokenizer
        # The tokens that end a turn, a turn with calls, and plain text.
        self._ends = [*self._renderer.end_ids, self._tokenizer.convert_tokens_to_ids(self._renderer.call_style[0])]
        self._beside = [name for name in TEMPLATE_INPUTS if name in rows.table.column_names]

    def __call__(self, block: range) -> pa.Table:
        positions = self._rows.positions[block.start : block.stop]
        rows = Rows(self._rows.table, positions, self._rows.table_key)
        columns = [rows.arrow(name) for name in ("id", "messages", "prompt", "answer", *self._beside)]
        ids, conversations, prompts, answers, *beside = map(values_of, columns)
        release(columns)
        examples: list[Rendered] = []
        row_of_example: list[int] = []
        refused: list[tuple[str, str]] = []
        for row, (messages, answer) in enumerate(zip(conversations, answers, strict=True)):
            inputs = dict(zip(self._beside, (column[row] for column in beside), strict=True))
            texts, decision = self._examples(messages, inputs, answer)
            examples += texts
            row_of_example += [row] * len(texts)
            refused += [decision] * len(texts)
        encodings = encodings_of(self._tokenizer, [row.text for row in examples])
        encoded = [*map(self._encoded, examples, encodings)]
        numbers = np.zeros((len(examples), 4), np.int32)
        for index, (tokens, labels, _, _) in enumerate(encoded):
            numbers[index, [ALL, ENDS]] = len(tokens), np.isin(labels, self._ends).any()
        contents: list[list[int]] = [[]] * len(ids)
        for row, (*_, counts) in zip(row_of_example, encoded, strict=True):
            contents[row] = counts
        of_rows = np.zeros((len(ids), 2), np.int32)
        for row, pair in self._counts(conversations, prompts, answers, contents):
            of_rows[row] = pair
        numbers[:, [PROMPT, ANSWER]] = of_rows[row_of_example]
        return pa.table(
            {
                "id": [ids[row] for row in row_of_example],
                "text": [row.text for row in examples],
                "input_ids": _lists([tokens for tokens, _, _, _ in encoded]),
                "labels": _lists([labels for _, labels, _, _ in encoded]),
                "weights": pa.array([weights for _, _, weights, _ in encoded], pa.list_(pa.float32())),
                "row": pa.array(row_of_example, pa.int32()),
                "numbers": pa.FixedSizeListArray.from_arrays(numbers.ravel(), 4),
                "refused": pa.array(refused, pa.list_(pa.string(), 2)),
            },
            schema=BLOCK_SCHEMA,
        )

    def _examples(
        self, messages: list[Message], inputs: dict[str, Any], answer: str
    ) -> tuple[list[Rendered], tuple[str, str]]:
        """Return a row's examples, or an empty one with the reason and cause why it cannot be rendered."""
        try:
            if not messages:
                return [self._renderer.plain_text(answer)], ("", "")
            return self._maker(Conversation.of(messages, **inputs)), ("", "")
        except (CannotRender, RecursionError) as error:
            refusal = error if isinstance(error, CannotRender) else CannotRender("nested_too_deeply")
            return [Rendered("", [], [])], (refusal.reason, refusal.cause)

    def _encoded(self, row: Rendered, encoding: Encoding) -> _Tokens:
        """Return an example's tokens, labels and weights, and the token count of each message's text, if known."""
        tokens = np.array(encoding.ids, np.int32)
        is_short = len(row.contents) <= MAX_LOOKED_UP  # each lookup searches all tokens
        ranges = answer_ranges(encoding, row.text, row.spans) if is_short and not row.cuts else None
        if ranges is None:
            return self._encoded_in_pieces(row, encoding)
        masked = [held for begin, end in row.masked if (held := tokens_of(encoding, begin, end))]
        contents = [held for begin, end in row.contents if (held := tokens_of(encoding, begin, end))]
        counts = [stop - first for first, stop in contents]
        return tokens, *_labels(tokens, ranges, masked, row.weights), counts if len(counts) == len(row.contents) else []

    def _encoded_in_pieces(self, row: Rendered, encoding: Encoding) -> _Tokens:
        ids, offsets = encoding.ids, encoding.offsets
        if boundaries := sorted({*row.cuts, *merged_starts(row.text, row.spans, offsets)}):
            ids, offsets = encode_in_pieces(self._tokenizer, row.text, boundaries)
        tokens = np.array(ids, np.int32)
        begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        ranges, masked, contents = (token_ranges(begins, ends, part) for part in (row.spans, row.masked, row.contents))
        return tokens, *_labels(tokens, ranges, masked, row.weights), [stop - first for first, stop in contents]

    def _counts(
        self, conversations: list[Any], prompts: list[str], answers: list[str],
        contents: list[list[int]],
    ) -> Iterator[tuple[int, tuple[int, int]]]:  # fmt: skip
        """Yield each row's index, and the number of tokens of its prompt and answer."""
        alone: list[int] = []
        for index, (messages, counts) in enumerate(zip(conversations, contents, strict=True)):
            roles = [message["role"] for message in messages] or ["assistant"]  # plain text has no prompt
            if len(counts) != len(roles):
                alone.append(index)
                continue
            of_role = Counter[str]()
            for role, count in zip(roles, counts, strict=True):
                of_role[role] += count
            yield index, (of_role["user"], of_role["assistant"])
        texts = [text for index in alone for text in (prompts[index], answers[index])]
        sizes = [len(encoding.ids) for encoding in encodings_of(self._tokenizer, texts)]
        for position, index in enumerate(alone):
            yield index, (sizes[2 * position], sizes[2 * position + 1])


def _labels(
    tokens: np.ndarray, ranges: list[tuple[int, int]], masked: list[tuple[int, int]], weights: list[float]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the labels of a text, and the weight of each token in the loss; None if all weigh the same."""
    labels = np.full(len(tokens), IGNORED, np.int32)
    for first, stop in ranges:
        labels[first:stop] = tokens[first:stop]
    for first, stop in masked:
        labels[first:stop] = IGNORED
    if not weights:
        return labels, None
    of_tokens = np.ones(len(tokens), np.float32)
    for (first, stop), weight in zip(ranges, weights, strict=True):
        of_tokens[first:stop] = weight
    return labels, of_tokens


def _lists(values: list[np.ndarray]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in values])]).astype(np.int32)
    flat = np.concatenate(values) if values else np.zeros(0, np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, pa.int32()))
