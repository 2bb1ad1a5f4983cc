"""Metrics of a model's own answers to held-out prompts: form, variety, similarity to training answers, correctness."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sft_lab.core.text import normalize

if TYPE_CHECKING:
    from sft_lab.evaluation.generation import Answer

MAX_EXACT_CHARACTERS = 60  # longer reference answers cannot be expected word for word
MAX_WORD_CHARACTERS = 25  # mean length of a word, above which a text counts as written without spaces
COMPARED_ROWS = 5000  # the most training answers with which answers are compared

Share = float | None


def measure_answers(
    answers: Sequence[Answer], prompts: Sequence[str], references: Sequence[str], training: Sequence[str]
) -> dict[str, Share]:
    """Return metrics of answers to held-out prompts.

    Args:
        answers: of the model.
        prompts: that they answer, in the same order.
        references: the answers of the held-out rows, in the same order.
        training: answers on which the model was or will be trained.

    Returns:
        Shares of the answers, None if there are none to measure: ``ended_share`` (end of turn written),
        ``stray_share`` (control tokens inside), ``echoed_share`` (only the prompt repeated), ``json_share`` (of those
        whose reference is JSON: JSON with the same keys), ``exact_share`` (of those whose reference is short: the same
        text). ``distinct_2``: distinct word pairs over all word pairs, a measure of variety (Li et al., "A
        Diversity-Promoting Objective Function", NAACL 2016). ``likeness``: mean ROUGE-L F1 to the most similar training
        answer (Lin 2004).
    """
    texts = [answer.text for answer in answers]
    return {
        "ended_share": _mean([answer.ended for answer in answers]),
        "stray_share": _mean([bool(answer.stray) for answer in answers]),
        "echoed_share": _mean([repeats(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]),
        "json_share": _mean(
            [has_same_json_form(*pair) for pair in zip(texts, references, strict=True) if is_json(pair[1])]
        ),
        "exact_share": _mean(
            [
                normalize(text) == normalize(reference)
                for text, reference in zip(texts, references, strict=True)
                if len(reference) <= MAX_EXACT_CHARACTERS
            ]
        ),
        "distinct_2": distinct_pairs(texts),
        "likeness": likeness(texts, training),
    }


def repeats(text: str, prompt: str) -> bool:
    """Return whether a text is a prompt again, perhaps with other punctuation."""
    text, prompt = normalize(text), normalize(prompt)
    return text == prompt or (bool(spoken := re.findall(r"\w+", text)) and spoken == re.findall(r"\w+", prompt))


def is_json(text: str) -> bool:
    """Return whether a text is a JSON object or array and nothing else."""
    return isinstance(_parsed(text), dict | list)


def has_same_json_form(text: str, reference: str) -> bool:
    """Return whether a text is JSON like the reference: an object with the same keys, or an array."""
    value, expected = _parsed(text), _parsed(reference)
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys()
    return isinstance(value, list) and isinstance(expected, list)


def contains_expected(text: str, expected: str) -> bool:
    """Return whether an answer contains the expected one as whole words, ignoring case, spacing and Unicode form."""
    return re.search(rf"(?<!\w){re.escape(normalize(expected))}(?!\w)", normalize(text)) is not None


def split_words(text: str) -> list[str]:
    """Return a text's words or, if it is written without spaces as in Chinese or Thai, its characters."""
    parts = text.split()
    return parts if len(text) <= MAX_WORD_CHARACTERS * max(1, len(parts)) else list("".join(parts))


def distinct_pairs(texts: Sequence[str]) -> Share:
    """Return the share of distinct pairs among all pairs of adjacent words; None without pairs."""
    pairs = [pair for text in texts for pair in itertools.pairwise(split_words(text))]
    return len(set(pairs)) / len(pairs) if pairs else None


def likeness(texts: Sequence[str], training: Sequence[str]) -> Share:
    """Return the mean over the texts of ROUGE-L F1 to the most similar training answer; None without texts."""
    from rapidfuzz.distance import LCSseq

    references = [split for answer in training[:COMPARED_ROWS] if (split := split_words(answer))]
    scores = []
    for text in filter(None, map(split_words, texts)):
        f1 = (2 * LCSseq.similarity(text, other) / (len(text) + len(other)) for other in references)
        scores.append(max(f1, default=0.0))
    return _mean(scores)


def _mean(values: Sequence[float]) -> Share:
    return sum(values) / len(values) if values else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
