"""The vocabulary of a byte-level BPE tokenizer, as GGUF holds it."""

from __future__ import annotations

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
WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is not merged from its bytes


class CannotWrite(UserError):
    """A model is of a kind that is not written as GGUF here."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and merges of a tokenizer.

    Attributes:
        pre: llama.cpp's name for how a text is split before merging.
        tokens: by id; names that nothing writes where a model has more rows than its tokenizer has tokens.
        types: GGUF's kind of each token.
        merges: the two parts of each merge, with a space between.
        special: ids of ``bos``, ``pad`` and ``unk``; None where there is none.
        eos_id: the end of text; None where there is none.
        chat_template: its text.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int | None]
    eos_id: int | None
    chat_template: str

    @classmethod
    def of(cls, folder: Path, size: int) -> Vocabulary:
        """Read the tokenizer in a folder, for a model with so many rows of embeddings.

        Raises:
            CannotWrite: if it is of another kind.
        """
        import gguf
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        settings = parse_json(read_text(folder / "tokenizer.json", LONG))
        model = settings["model"]
        pre = PRE_TOKENIZERS.get(_splits(settings.get("pre_tokenizer")))
        is_known = model["type"] == "BPE" and settings.get("normalizer") in NORMALIZERS
        if pre is None or not is_known or bool(model.get("ignore_merges")) != (pre in WHOLE_WORDS):
            raise CannotWrite("models with a tokenizer that is no byte-level BPE known by llama.cpp")
        if len(tokenizer) > size:
            raise CannotWrite(f"models with {size:,} embeddings, fewer rows than its tokenizer has tokens")
        tokens = [f"[PAD{number}]" for number in range(size)]
        types = [gguf.TokenType.UNUSED.value] * size
        for token, token_id in tokenizer.get_vocab().items():
            tokens[token_id], types[token_id] = token, gguf.TokenType.NORMAL.value
        for token_id, token in tokenizer.added_tokens_decoder.items():
            kind = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
            types[token_id] = kind.value
        pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
        special = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "pad", "unk")}
        merges = [" ".join(pair) for pair in pairs]
        return cls(pre, tokens, types, merges, special, tokenizer.eos_token_id, tokenizer.get_chat_template())


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
