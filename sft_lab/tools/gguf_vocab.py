"""The vocabulary of a BPE tokenizer, of bytes or of characters as in SentencePiece, as GGUF holds it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_lab.core.errors import UserError
from sft_lab.core.io import LONG, parse_json, read_text

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a text is split before its bytes are merged -> llama.cpp's name of that.
PRE_TOKENIZERS: dict[tuple[Any, ...], str] = {
    (("ByteLevel", False, True),): "gpt-2",
    (("Digits", True), ("ByteLevel", False, True)): "smollm",
    (("Split", _CONTRACTIONS + r"\p{N}{1,3}" + _REST), ("ByteLevel", False, False)): "llama-bpe",
    (("Split", _CONTRACTIONS + r"\p{N}" + _REST), ("ByteLevel", False, False)): "qwen2",
}
NORMALIZERS = (None, {"type": "NFC"})  # llama.cpp normalizes nothing; most text is in NFC already
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}  # of SentencePiece
_BYTE = re.compile("<0x[0-9A-F]{2}>")
WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is not merged from its bytes


class CannotWrite(UserError):
    """A model is of a kind that is not written as GGUF here."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and merges of a tokenizer.

    Attributes:
        model: llama.cpp's name of the algorithm: ``gpt2`` merges bytes, ``llama`` characters as SentencePiece does.
        pre: its name for how a text is split before merging.
        tokens: by id; names that nothing writes where a model has more rows than its tokenizer has tokens.
        types: GGUF's kind of each token.
        merges: of ``gpt2``: the two parts of each merge, with a space between.
        scores: of ``llama``: of each token; the pair that makes the highest is merged first.
        special: ids of ``bos``, ``pad`` and ``unk``; None where there is none.
        eos_id: the end of text; None where there is none.
        chat_template: its text.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    special: dict[str, int | None]
    eos_id: int | None
    chat_template: str

    @classmethod
    def of(cls, folder: Path, size: int) -> Vocabulary:
        """Read the tokenizer in a folder, for a model with so many rows of embeddings.

        Raises:
            CannotWrite: if it is of another kind.
        """
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if len(tokenizer) > size:
            raise CannotWrite(f"models with {size:,} embeddings, fewer rows than its tokenizer has tokens")
        settings = parse_json(read_text(folder / "tokenizer.json", LONG))
        name, pre = _kind(settings)
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in settings["model"]["merges"]]
        tokens = [f"[PAD{number}]" for number in range(size)]
        for token, token_id in tokenizer.get_vocab().items():
            tokens[token_id] = token
        scores = []
        if name == "llama":
            merged = _scores({*tokenizer.get_vocab()} - {*tokenizer.get_added_vocab()}, pairs)
            scores = [merged.get(token, 0.0) for token in tokens]
        return cls(
            name,
            pre,
            tokens,
            _types(tokenizer, size, has_bytes=name == "llama"),
            [" ".join(pair) for pair in pairs] if name == "gpt2" else [],
            scores,
            {kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "pad", "unk")},
            tokenizer.eos_token_id,
            tokenizer.get_chat_template(),
        )


def _kind(settings: dict[str, Any]) -> tuple[str, str]:
    """Return llama.cpp's names for a tokenizer's algorithm and for how it splits a text first."""
    model, splits, normalizer = settings["model"], settings.get("pre_tokenizer"), settings.get("normalizer")
    if model["type"] == "BPE" and model.get("byte_fallback") and splits == METASPACE and normalizer is None:
        return "llama", "default"
    pre = PRE_TOKENIZERS.get(_splits(splits))
    is_known = model["type"] == "BPE" and not model.get("byte_fallback") and normalizer in NORMALIZERS
    if pre is None or not is_known or bool(model.get("ignore_merges")) != (pre in WHOLE_WORDS):
        raise CannotWrite("models whose tokenizer splits text in a way that llama.cpp does not support")
    return "gpt2", pre


def _types(tokenizer: Any, size: int, *, has_bytes: bool) -> list[int]:
    """Return GGUF's kind of each token."""
    from gguf import TokenType

    types = [TokenType.UNUSED.value] * size
    for token, token_id in tokenizer.get_vocab().items():
        is_byte = has_bytes and _BYTE.fullmatch(token)
        types[token_id] = (TokenType.BYTE if is_byte else TokenType.NORMAL).value
    for token_id, token in tokenizer.added_tokens_decoder.items():
        types[token_id] = (TokenType.CONTROL if token.special else TokenType.USER_DEFINED).value
    if has_bytes and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = TokenType.UNKNOWN.value
    return types


def _scores(tokens: set[str], pairs: list[list[str]]) -> dict[str, float]:
    """Return a score for each token that merging makes, with which SentencePiece merges as these merges do.

    It merges any two neighbors that make a token, so the merges must have every pair, those of one token together.

    Raises:
        CannotWrite: if they do not.
    """
    scores: dict[str, float] = {}
    latest = ""
    for pair in pairs:
        token = "".join(pair)
        is_late = token in scores and token != latest
        if is_late:
            raise CannotWrite("models whose tokenizer merges in an order that SentencePiece does not use")
        scores.setdefault(token, -float(len(scores)))
        latest = token
    known = {tuple(pair) for pair in pairs}
    for token in tokens:
        ways = ((token[:at], token[at:]) for at in range(1, 0 if _BYTE.fullmatch(token) else len(token)))
        if any({*way} <= tokens and way not in known for way in ways):
            raise CannotWrite("models whose tokenizer lacks merges that SentencePiece would make")
    return scores


def _splits(pre_tokenizer: dict[str, Any] | None) -> tuple[Any, ...]:
    """Return the steps of a pre-tokenizer, each with what it depends on."""
    if pre_tokenizer is None:
        return ()
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return tuple(map(_step, steps))


def _step(step: dict[str, Any]) -> tuple[Any, ...]:
    match step:
        case {"type": "ByteLevel"}:
            return "ByteLevel", step.get("add_prefix_space", True), step.get("use_regex", True)
        case {"type": "Digits"}:
            return "Digits", step.get("individual_digits", False)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return "Split", pattern
        case _:
            return (str(step),)
