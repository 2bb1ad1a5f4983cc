"""What a model's own answers to held-out prompts show beside any loss: form, variety, likeness, tasks done."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sft_lab.text import normalize

if TYPE_CHECKING:
    from sft_lab.evaluation.samples import Answer

EXACT_CHARACTERS = 60  # a reference answer up to this long is one that can be right word for word
UNSPACED = 25  # characters to a space, from which a text is written without any
COMPARED_ROWS = 5000  # training answers that outputs are compared with, at most

Share = float | None


def look(
    answers: Sequence[Answer], prompts: Sequence[str], references: Sequence[str], training: Sequence[str]
) -> dict[str, Share]:
    """Measure answers to held-out prompts.

    Args:
        answers: the model's.
        prompts: what they answer, in the same order.
        references: the held-out rows' own answers, in the same order.
        training: answers the model was trained on, or will be.

    Returns:
        Shares of the answers, None where there is nothing to measure: ``ended_share`` (end of turn written),
        ``stray_share`` (control tokens inside), ``echoed_share`` (the prompt and nothing else),
        ``json_share`` (valid JSON where the reference is, with its keys),
        ``exact_share`` (the same text where the reference is short); ``distinct_2`` (different word pairs of all word
        pairs: variety, Li et al., "A Diversity-Promoting Objective Function", NAACL 2016); ``likeness`` (mean ROUGE-L
        F1 to the most similar training answer, Lin 2004).
    """
    texts = [answer.text for answer in answers]
    return {
        "ended_share": _mean([answer.ended for answer in answers]),
        "stray_share": _mean([bool(answer.stray) for answer in answers]),
        "echoed_share": _mean(
            [normalize(text) == normalize(asked) for text, asked in zip(texts, prompts, strict=True)]
        ),
        "json_share": _mean([same_form(*pair) for pair in zip(texts, references, strict=True) if is_json(pair[1])]),
        "exact_share": _mean(
            [
                normalize(text) == normalize(reference)
                for text, reference in zip(texts, references, strict=True)
                if len(reference) <= EXACT_CHARACTERS
            ]
        ),
        "distinct_2": distinct_pairs(texts),
        "likeness": likeness(texts, training),
    }


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or array and nothing else."""
    return isinstance(_parsed(text), dict | list)


def same_form(text: str, reference: str) -> bool:
    """Whether a text is JSON as the reference is: an object with the same keys, or an array."""
    one, other = _parsed(text), _parsed(reference)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys()
    return isinstance(one, list) and isinstance(other, list)


def right(text: str, expected: str) -> bool:
    """Whether a model's answer holds the expected one, as whole words, but for case, spaces and the like."""
    return re.search(rf"(?<!\w){re.escape(normalize(expected))}(?!\w)", normalize(text)) is not None


def words(text: str) -> list[str]:
    """Words between spaces; single characters of a text that is written without them, as in Chinese or Thai."""
    found = text.split()
    return found if len(text) <= UNSPACED * max(1, len(found)) else list("".join(found))


def distinct_pairs(texts: Sequence[str]) -> Share:
    """Different pairs of neighboring words, as a share of all pairs; None without any."""
    pairs = [pair for text in texts for pair in itertools.pairwise(words(text))]
    return len(set(pairs)) / len(pairs) if pairs else None


def likeness(texts: Sequence[str], training: Sequence[str]) -> Share:
    """Mean over the texts of ROUGE-L F1 (words in common, in order) to the most similar training answer."""
    from rapidfuzz.distance import LCSseq

    known = [words(answer) for answer in training[:COMPARED_ROWS]]
    found = []
    for said in filter(None, map(words, texts)):
        common = (2 * LCSseq.similarity(said, other) / (len(said) + len(other)) for other in known if other)
        found.append(max(common, default=0.0))
    return _mean(found)


def _mean(values: Sequence[float]) -> Share:
    return sum(values) / len(values) if values else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
