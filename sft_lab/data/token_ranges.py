"""Encoding texts, and finding the tokens of a span of text."""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING

import numpy as np

from sft_lab.core.hardware import encoding_on_every_core

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Offset = tuple[int, int]


def token_ranges(begins: np.ndarray, ends: np.ndarray, spans: list[Offset]) -> list[Offset]:
    """Return the range of tokens with a character of each span; ``begins`` and ``ends`` are ascending offsets."""
    starts, stops = np.array(spans, np.int64).reshape(-1, 2).T
    first = np.searchsorted(ends, starts, "right")
    last = np.maximum(first, np.searchsorted(begins, stops, "left"))
    return [*zip(first.tolist(), last.tolist(), strict=True)]


def answer_ranges(encoding: Encoding, text: str, spans: list[Offset]) -> list[Offset] | None:
    """Return the range of tokens of each answer; None if a token crosses the beginning of one.

    Equivalent to ``merged_starts`` and ``token_ranges``, but without a list of all offsets.
    """
    ranges = []
    for start, stop in spans:
        if start and text[start - 1].isspace() and text[start].isspace():
            return None
        tokens = tokens_of(encoding, start, stop)
        if tokens is None or _begin(encoding, tokens[0]) < start:
            return None
        if tokens[0] and _end(encoding, tokens[0] - 1) > start:
            return None
        ranges.append(tokens)
    return ranges


def tokens_of(encoding: Encoding, start: int, stop: int) -> Offset | None:
    """Return the range of tokens with a character of a span; None if one of its ends is in no token."""
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


def merged_starts(text: str, spans: list[Offset], offsets: list[Offset]) -> list[int]:
    """Return the starts of answers whose first token begins before them, as white space after a line break may.

    For generation the model gets the tokens of the prompt alone, so the text is split there. Offsets may leave out
    white space.
    """
    token_starts = [begin for begin, _ in offsets]
    return [
        start
        for start, _ in spans
        if (text[start - 1].isspace() and text[start].isspace())
        or offsets[bisect.bisect_left(token_starts, start) - 1][1] > start > 0
    ]


def encodings_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoding]:
    """Return texts as tokens, without truncation or special tokens."""
    if not texts:
        return []
    backend = tokenizer.backend_tokenizer  # calling the tokenizer itself would make lists of everything
    backend.no_truncation()
    backend.no_padding()
    with encoding_on_every_core():
        encodings: list[Encoding] = backend.encode_batch(texts, add_special_tokens=False)
    return encodings


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[list[list[int]], list[list[Offset]]]:
    encodings = encodings_of(tokenizer, texts)
    return [encoding.ids for encoding in encodings], [encoding.offsets for encoding in encodings]


def encode_in_pieces(tokenizer: PreTrainedTokenizerBase, text: str, cuts: list[int]) -> tuple[list[int], list[Offset]]:
    """Return ids and offsets of a text, encoded so that no token crosses a cut."""
    ids: list[int] = []
    offsets: list[Offset] = []
    for begin, end in itertools.pairwise([0, *cuts, len(text)]):
        piece_ids, piece_offsets = _encode_piece(tokenizer, text[begin:end], leads=begin == 0)
        ids += piece_ids
        offsets += [(first + begin, last + begin) for first, last in piece_offsets]
    return ids, offsets


def _encode_piece(tokenizer: PreTrainedTokenizerBase, piece: str, *, leads: bool) -> tuple[list[int], list[Offset]]:
    """Encode a piece of a text; unless it leads, after a line break, since SentencePiece adds a leading space."""
    (line_break,), _ = _encode(tokenizer, ["\n"])
    (ids,), (offsets,) = _encode(tokenizer, [piece if leads else f"\n{piece}"])
    if leads:
        return ids, offsets
    if ids[: len(line_break)] != line_break:  # the line break merged with the piece's first token
        return _encode_piece(tokenizer, piece, leads=True)
    return ids[len(line_break) :], [(first - 1, last - 1) for first, last in offsets[len(line_break) :]]
