"""The numbers and texts behind the data report, kept as ``data.json``."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab import pipeline
from sft_lab.core.io import read_json, write_json, write_text
from sft_lab.core.rows import Rows
from sft_lab.core.selection import shared_strings
from sft_lab.core.text import On
from sft_lab.data.languages import LANGUAGE_NAMES, detect
from sft_lab.data.model_view import stretches_of, view_rows
from sft_lab.data.turn_counts import count_trained_tokens, count_turns
from sft_lab.dedup import graph_stats
from sft_lab.dedup.graph_options import GraphDedup
from sft_lab.dedup.known import known_texts
from sft_lab.dedup.semantic import Semantic

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.core.run_dir import RunDir
    from sft_lab.core.selection import Selection
    from sft_lab.data.preparation import Prepared, Ready
    from sft_lab.dedup.neighbor_graph import NeighborGraph
    from sft_lab.dedup.texts import Texts
    from sft_lab.run.config import Run

# Pairs on either side of the threshold: enough for a person to choose it.
MAX_DROPPED_PAIRS = 20
MAX_KEPT_PAIRS = 10
MAX_CONTAMINATED = 20
MAX_EXAMPLES = 3  # dropped rows, for each reason
EXAMPLE_CHARACTERS = 200  # of each of them
MAX_EXTREMES = 5  # longest and shortest rows
MAX_LANGUAGE_ROWS = 2000  # whose language is detected
LANGUAGE_CHARACTERS = 400  # of a text, to detect its language by
MAX_CHARACTERS = 2000  # of any other text; a page with complete answers would be too heavy to open


def write(folder: RunDir, run: Run, data: Prepared, context: StageContext) -> None:
    """Write ``data.json``, and the borderline pairs as ``review.csv`` for a person to judge."""
    before, after = data.sides.train, data.train.rows
    max_tokens = getattr(run.filter.get("length"), "max_tokens", None)
    near = _near_duplicates(run, data, context)
    content = {
        "notices": context.notices,
        "sources": _compared("source", *(shared_strings(rows.arrow("source")) for rows in (before, after))),
        "tokens": _tokens(before, after, context, max_tokens),
        "conversations": _conversations(before, data.train),
        "languages": _languages(before, after),
        **near,
        "dropped": _dropped(data),
        "contaminated": _contaminated(run, data, context),
        "model_rows": view_rows(data.train, context.tokenizer),
        **_extremes(after, context),
    }
    write_json(folder.data, content)

    # Without any pair the file holds only its header, which filter=reviewed accepts.
    if near["thresholds"]:
        write_text(folder.review, "\ufeff" + _review(near["pairs"]))  # without the mark Excel takes it for Latin-1


def write_notices(folder: RunDir, context: StageContext) -> None:
    """Write the notices given since ``data.json`` was written, as those of measuring are."""
    content = read_json(folder.data)
    if content["notices"] != context.notices:
        write_json(folder.data, {**content, "notices": context.notices})


def tables(folder: RunDir) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """Yield the tables in ``data.json``: name, columns and rows."""
    content = read_json(folder.data)
    records = {name: content[name] for name in ("sources", "languages", "contaminated", "longest", "shortest")}
    records |= {f"pairs_{name}": pairs for name, pairs in content["pairs"].items()}
    for name, rows in records.items():
        if rows:
            yield name, list(rows[0]), [list(row.values()) for row in rows]

    if views := content["model_rows"]:
        names = ["choice", "id", "tokens", "trained_tokens"]
        texts = ["".join(text for text, *_ in stretches_of(view["parts"])) for view in views]
        rows = [[*map(view.get, names), text] for view, text in zip(views, texts, strict=True)]
        yield "model_rows", [*names, "text"], rows

    if curve := (content["thresholds"] or {}).get("curve"):
        yield "threshold_curve", ["threshold", "rows_kept"], curve


def _compared(name: str, before: list[str], after: list[str]) -> list[dict[str, Any]]:
    """Return the rows of each label before and after, the commonest first; nothing where no row has a label."""
    counts_before, counts_after = Counter(before), Counter(after)
    labels = [label for label, _ in counts_before.most_common()]
    if not any(labels):
        return []
    return [{name: label, "before": counts_before[label], "after": counts_after[label]} for label in labels]


def _tokens(before: Rows, after: Rows, context: StageContext, limit: int | None) -> dict[str, Any]:
    sizes = {name: context.token_counts(rows) for name, rows in (("before", before), ("after", after))}
    longest = max((int(counts.sum(axis=1).max()) for counts in sizes.values() if len(counts)), default=0)
    edges = _edges(longest, limit)
    parts = ("prompt", "answer", "both")
    histograms = {
        name: {
            part: _histogram(values, edges) for part, values in zip(parts, (*counts.T, counts.sum(axis=1)), strict=True)
        }
        for name, counts in sizes.items()
    }
    return {"edges": edges, "limit": limit, **histograms}


def _edges(longest: int, limit: int | None) -> list[int]:
    """Return bin edges that grow, since most prompts have a few tokens and some answers thousands.

    The last edge is above the longest row; the limit is an edge of its own.
    """
    edges = [0, 1, 2, 3]
    while edges[-1] <= longest:
        edges.append(edges[-2] * 2)  # 4, 6, 8, 12, 16, 24, ...
    return sorted({*edges, *([limit] if limit and limit < edges[-1] else [])})


def _histogram(values: np.ndarray, edges: list[int]) -> dict[str, Any]:
    return {"counts": np.histogram(values, edges)[0].tolist(), **_averages(values)}


def _averages(values: np.ndarray) -> dict[str, Any]:
    if not len(values):
        return {"mean": None, "median": None, "p90": None, "max": None}
    median, p90 = np.percentile(values, [50, 90]).tolist()
    return {"mean": float(values.mean()), "median": median, "p90": p90, "max": int(values.max())}


def _conversations(before: Rows, train: Ready) -> dict[str, Any]:
    """Return what the rows hold, before and after: turns, tools, thoughts; and how many tokens train."""
    counts = count_turns(before)
    is_kept = np.isin(before.positions, train.rows.positions)
    content: dict[str, Any] = {}
    for name, side in (("before", slice(None)), ("after", is_kept)):
        turns, tools, thoughts = (values[side] for values in counts)
        content[name] = {
            "rows": len(turns),
            "turns": _averages(turns[turns > 0]),
            "with_tools": int(tools.sum()),
            "with_thoughts": int(thoughts.sum()),
        }
    content["tokens"], content["trained_tokens"] = count_trained_tokens(train)
    return content


def _languages(before: Rows, after: Rows) -> list[dict[str, Any]]:
    """Return the languages of the rows, of a large set those of rows at even distances, by how they begin."""
    chosen = np.unique(np.linspace(0, len(before) - 1, min(len(before), MAX_LANGUAGE_ROWS)).astype(np.int64))
    sample = Rows(before.table, before.positions[chosen], before.table_key)
    beginnings = (
        f"{prompt[:LANGUAGE_CHARACTERS]}\n{answer[:LANGUAGE_CHARACTERS]}"
        for batch in sample.batches("prompt", "answer")
        for prompt, answer in zip(*batch, strict=True)
    )
    codes_before = [code for code, _ in detect([*beginnings])]
    is_kept = np.isin(sample.positions, after.positions)
    codes_after = [code for code, kept in zip(codes_before, is_kept, strict=True) if kept]
    return [
        {"code": record["code"], "language": LANGUAGE_NAMES.get(record["code"], "undetermined"), **record}
        for record in _compared("code", codes_before, codes_after)
    ]


def _near_duplicates(run: Run, data: Prepared, context: StageContext) -> dict[str, Any]:
    rows, selection = data.steps["dedup"]
    nothing: dict[str, Any] = {"similarity": None, "thresholds": None, "pairs": {"dropped": [], "kept": []}}
    dedup = run.dedup
    if not isinstance(dedup, GraphDedup) or not len(rows):
        return nothing
    graph, node_of_row, texts = dedup.graph(rows, context)
    compared = known_texts(texts, dedup.embedder, context) if isinstance(dedup, Semantic) else np.ones(len(texts), bool)
    lengths = np.fromiter((len(answer) for (batch,) in rows.batches("answer") for answer in batch), np.int64, len(rows))
    curve = graph_stats.threshold_curve(graph, node_of_row, lengths, dedup.keep, dedup.threshold)
    thresholds = {
        "measure": dedup.measure,
        "chosen": dedup.threshold,
        "keep": dedup.keep.name,
        "rows": len(rows),
        "compared": int(compared[node_of_row].sum()),
        "kept": dict(curve)[dedup.threshold],
        "curve": curve,
    }
    if graph.sample:  # of an approximate search
        pairs, hits = graph.sample.at(dedup.threshold)
        thresholds["sample"] = {"texts": graph.sample.texts, "pairs": pairs, "found": hits}
    return {
        "similarity": {"measure": dedup.measure, **_similarity(graph, texts, compared)},
        "thresholds": thresholds,
        "pairs": _pairs(dedup, rows, selection, graph, node_of_row),
    }


def _similarity(graph: NeighborGraph, texts: Texts, compared: np.ndarray) -> dict[str, Any]:
    """Return histograms of the similarity of each text to its nearest other, by script.

    Args:
        graph: of the texts.
        texts: its nodes.
        compared: whether each text was compared by the graph's measure (bool); the others are left out.
    """
    nearest = graph_stats.nearest_scores(graph)
    edges = np.round(np.arange(round(graph.floor * 100), 101) / 100, 2)
    by_script: dict[str, list[int]] = {}
    for node, script in enumerate(graph_stats.scripts_of(texts)):
        if compared[node]:
            by_script.setdefault(script, []).append(node)
    scripts = []
    for script, nodes in sorted(by_script.items(), key=lambda item: -len(item[1])):
        scores = nearest[nodes]
        near = scores[~np.isnan(scores)]
        counts = np.histogram(near.clip(edges[0], edges[-1]), edges)[0].tolist()
        scripts.append({"script": script or "no letters", "counts": counts, "below": len(scores) - len(near)})
    return {"edges": edges.tolist(), "scripts": scripts}


def _pairs(
    dedup: GraphDedup, rows: Rows, selection: Selection, graph: NeighborGraph, node_of_row: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    above = graph_stats.pairs_above(selection, MAX_DROPPED_PAIRS)
    index_of = _indices(selection.ids, {selection.nearest[row] for row in above})
    dropped = [(row, index_of[selection.nearest[row]], selection.score[row]) for row in above]
    kept = graph_stats.pairs_below(graph, node_of_row, selection.kept, dedup.threshold, MAX_KEPT_PAIRS)

    def to_records(pairs: Iterable[tuple[int, int, float]]) -> list[dict[str, Any]]:
        return [
            _pair(selection.ids[row], selection.ids[other], float(score), *_texts(rows, dedup.on, [row, other]))
            for row, other, score in pairs
        ]

    # Of a kept pair, the later row is the one that a lower threshold would drop.
    return {"dropped": to_records(dropped), "kept": to_records((later, row, score) for row, later, score in kept)}


def _texts(rows: Rows, on: On, indices: list[int]) -> list[str]:
    """Return the texts of a few rows."""
    (texts,) = Rows(rows.table, rows.positions[indices], rows.table_key).text_batches(on)
    return texts


def _indices(ids: Iterable[str], wanted: set[str]) -> dict[str, int]:
    """Return where some ids are."""
    return {row_id: index for index, row_id in enumerate(ids) if row_id in wanted}


def _pair(row_id: str, nearest: str, score: float, text: str, nearest_text: str) -> dict[str, Any]:
    return {
        "id": row_id,
        "nearest": nearest,
        "score": score,
        "text": text[:MAX_CHARACTERS],
        "nearest_text": nearest_text[:MAX_CHARACTERS],
    }


def _dropped(data: Prepared) -> dict[str, str]:
    """Return the beginning of a few rows that each stage dropped for each reason, by id."""
    beginnings: dict[str, str] = {}
    for rows, selection in data.steps.values():
        counts: Counter[str] = Counter()
        is_example = np.zeros(len(rows), bool)
        for index, reason in enumerate(selection.reason):
            counts[reason] += 1
            is_example[index] = bool(reason) and counts[reason] <= MAX_EXAMPLES

        examples = rows.take(is_example)
        columns = [examples.column(name) for name in ("id", "prompt", "answer")]
        for row_id, prompt, answer in zip(*columns, strict=True):
            text = f"{' '.join(prompt.split())} → {' '.join(answer.split()) or '(nothing)'}"
            is_cut = len(text) > EXAMPLE_CHARACTERS
            beginnings[row_id] = text[:EXAMPLE_CHARACTERS] + ("…" if is_cut else "")
    return beginnings


def _contaminated(run: Run, data: Prepared, context: StageContext) -> list[dict[str, Any]]:
    """Return contaminated training rows with the held-out or benchmark rows they match, the least similar first."""
    rows, selection = data.steps["decontaminate"]
    matches = [index for index, nearest in enumerate(selection.nearest) if nearest]
    matches = sorted(matches, key=lambda index: (float(selection.score[index]), index))[:MAX_CONTAMINATED]
    if not matches:
        return []

    on = run.decontaminate.on
    text_of: dict[str, str] = {}
    for measured in (pipeline.benchmark_rows(run, context), data.sides.measured):
        if measured is not None:
            index_of = _indices(measured.ids, {selection.nearest[index] for index in matches})
            text_of |= {name: _texts(measured, on, [index])[0] for name, index in index_of.items()}
    records = []
    for index in matches:
        nearest, score = selection.nearest[index], float(selection.score[index])
        (text,) = _texts(rows, on, [index])
        pair = _pair(selection.ids[index], nearest, score, text, text_of[nearest])
        records.append({"reason": selection.reason[index] or "reported", **pair})
    return records


def _extremes(rows: Rows, context: StageContext) -> dict[str, list[dict[str, Any]]]:
    sizes = context.token_counts(rows).sum(axis=1)
    order = np.argsort(sizes, kind="stable")

    def to_records(indices: np.ndarray) -> list[dict[str, Any]]:
        records = []
        for index in indices.tolist():
            row = Rows(rows.table, rows.positions[[index]], rows.table_key)
            row_id, prompt, answer = (row.column(name)[0] for name in ("id", "prompt", "answer"))
            texts = {"prompt": prompt[:MAX_CHARACTERS], "answer": answer[:MAX_CHARACTERS]}
            records.append({"id": row_id, "tokens": int(sizes[index]), **texts})
        return records

    return {"longest": to_records(order[::-1][:MAX_EXTREMES]), "shortest": to_records(order[:MAX_EXTREMES])}


def _review(pairs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the pairs on both sides of the threshold, undecided, as the CSV text that ``filter=reviewed`` reads."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "decision", "was", "score", "nearest", "text", "nearest_text"])
    for decision, side in pairs.items():
        for pair in side:
            score = f"{pair['score']:.4f}"
            writer.writerow([pair["id"], "", decision, score, pair["nearest"], pair["text"], pair["nearest_text"]])
    return text.getvalue()
