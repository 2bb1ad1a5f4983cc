"""What there is to see in prepared data: the numbers and texts behind the data report, kept as ``data.json``."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core.io import read_json, write_json, write_text
from sft_lab.core.text import On
from sft_lab.data.languages import LANGUAGE_NAMES, languages_of
from sft_lab.dedup import graph_stats
from sft_lab.dedup.graph_dedup import GraphDedup
from sft_lab.dedup.known import known_texts
from sft_lab.dedup.semantic import Semantic

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.core.rows import Rows, Selection
    from sft_lab.core.run_dir import RunDir
    from sft_lab.data.preparation import Prepared
    from sft_lab.dedup.graph import NeighborGraph
    from sft_lab.run.config import Run

DROPPED_PAIRS, KEPT_PAIRS = 20, 10  # on either side of the threshold: what a person needs to choose it
CONTAMINATED = 20
EXAMPLES, BEGINNING = 3, 200  # dropped rows shown for each reason; characters of one
EXTREMES = 5  # longest and shortest rows
SHOWN = 2000  # characters of a text; a page with whole answers would be too heavy to open


def write(folder: RunDir, run: Run, data: Prepared, context: StageContext) -> None:
    """Write ``data.json``, and the borderline pairs as ``review.csv`` for a person to decide."""
    before, after = data.sides.train, data.train.rows
    max_tokens = getattr(run.filter.get("length"), "max_tokens", None)
    near = _near_duplicates(run, data, context)
    found = {
        "notices": context.notices,
        "sources": _compared("source", before.column("source"), after.column("source")),
        "tokens": _tokens(before, after, context, max_tokens),
        "languages": _languages(before, after, context),
        **near,
        "dropped": _dropped(data),
        "contaminated": _contaminated(run, data, context),
        **_extremes(after, context),
    }
    write_json(folder.data, found)
    if near["thresholds"]:  # without any pair the file has its columns alone, which filter=reviewed reads
        write_text(folder.review, _review(near["pairs"]))


def tables(folder: RunDir) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """Give what ``data.json`` holds as tables: name, columns and rows."""
    found = read_json(folder.data)
    lists = {name: found[name] for name in ("sources", "languages", "contaminated", "longest", "shortest")}
    lists |= {f"pairs_{name}": pairs for name, pairs in found["pairs"].items()}
    for name, rows in lists.items():
        if rows:
            yield name, list(rows[0]), [list(row.values()) for row in rows]
    if curve := (found["thresholds"] or {}).get("curve"):
        yield "threshold_curve", ["threshold", "rows_kept"], curve


def _compared(name: str, before: list[str], after: list[str]) -> list[dict[str, Any]]:
    """Rows by label before and after, most first; nothing where no row has a label."""
    then, now = Counter(before), Counter(after)
    labels = [label for label, _ in then.most_common()]
    return [{name: label, "before": then[label], "after": now[label]} for label in labels] if any(labels) else []


def _tokens(before: Rows, after: Rows, context: StageContext, limit: int | None) -> dict[str, Any]:
    sizes = {name: context.token_counts(rows) for name, rows in (("before", before), ("after", after))}
    longest = max((int(counts.sum(axis=1).max()) for counts in sizes.values() if len(counts)), default=0)
    edges = _edges(longest, limit)
    parts = ("prompt", "answer", "both")
    found = {
        name: {
            part: _histogram(values, edges) for part, values in zip(parts, (*counts.T, counts.sum(axis=1)), strict=True)
        }
        for name, counts in sizes.items()
    }
    return {"edges": edges, "limit": limit, **found}


def _edges(longest: int, limit: int | None) -> list[int]:
    """Edges that grow: most prompts are a few tokens long, and some answers thousands. The last reaches the longest."""
    edges = [0, 1, 2, 3]
    while edges[-1] <= longest:
        edges.append(edges[-2] * 2)  # 4, 6, 8, 12, 16, 24, ...
    return sorted({*edges, *([limit] if limit and limit < edges[-1] else [])})


def _histogram(values: np.ndarray, edges: list[int]) -> dict[str, Any]:
    if not len(values):
        return {"counts": [0] * (len(edges) - 1), "mean": None, "median": None, "p90": None, "max": None}
    median, p90 = np.percentile(values, [50, 90]).tolist()
    counts = np.histogram(values, edges)[0].tolist()
    return {"counts": counts, "mean": float(values.mean()), "median": median, "p90": p90, "max": int(values.max())}


def _languages(before: Rows, after: Rows, context: StageContext) -> list[dict[str, Any]]:
    then, now = (languages_of(rows, context, On.both)[0] for rows in (before, after))
    return [
        {"code": found["code"], "language": LANGUAGE_NAMES.get(found["code"], "nothing to judge by"), **found}
        for found in _compared("code", then, now)
    ]


def _near_duplicates(run: Run, data: Prepared, context: StageContext) -> dict[str, Any]:
    rows, selection = data.steps["dedup"]
    nothing: dict[str, Any] = {"similarity": None, "thresholds": None, "pairs": {"dropped": [], "kept": []}}
    dedup = run.dedup
    if not isinstance(dedup, GraphDedup) or not len(rows):
        return nothing
    graph, node_of_row, texts = dedup.graph(rows, context)
    lengths = np.fromiter(map(len, rows.column("answer")), np.int64, len(rows))
    curve = graph_stats.threshold_curve(graph, node_of_row, lengths, dedup.keep, dedup.threshold)
    about = {"measure": dedup.measure, "chosen": dedup.threshold, "keep": dedup.keep.name, "rows": len(rows)}
    about["kept"] = dict(curve)[dedup.threshold]
    return {
        "similarity": {"measure": dedup.measure, **_similarity(dedup, graph, texts, context)},
        "thresholds": {**about, "curve": curve},
        "pairs": _pairs(dedup, rows, selection, graph, node_of_row),
    }


def _similarity(dedup: GraphDedup, graph: NeighborGraph, texts: list[str], context: StageContext) -> dict[str, Any]:
    """Each text by its nearest other, script by script; texts the embedder does not know were not compared by it."""
    nearest = graph_stats.nearest_scores(graph)
    edges = np.round(np.arange(round(graph.floor * 100), 101) / 100, 2)
    by_script: dict[str, list[int]] = {}
    compared = known_texts(texts, dedup.embedder, context) if isinstance(dedup, Semantic) else np.ones(len(texts), bool)
    for node, script in enumerate(graph_stats.scripts_of(texts)):
        if compared[node]:
            by_script.setdefault(script, []).append(node)
    scripts = []
    for script, nodes in sorted(by_script.items(), key=lambda found: -len(found[1])):
        scores = nearest[nodes]
        near = scores[~np.isnan(scores)]
        counts = np.histogram(near.clip(edges[0], edges[-1]), edges)[0].tolist()
        scripts.append({"script": script or "no letters", "counts": counts, "below": len(scores) - len(near)})
    return {"edges": edges.tolist(), "scripts": scripts}


def _pairs(
    dedup: GraphDedup, rows: Rows, selection: Selection, graph: NeighborGraph, node_of_row: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    texts = rows.texts(dedup.on)
    index_of = {row_id: index for index, row_id in enumerate(selection.ids)}
    dropped = [(row, index_of[selection.nearest[row]], selection.score[row]) for row in
               graph_stats.pairs_above(selection, DROPPED_PAIRS)]  # fmt: skip
    kept = graph_stats.pairs_below(graph, node_of_row, selection.kept, dedup.threshold, KEPT_PAIRS)

    def shown(pairs: Iterable[tuple[int, int, float]]) -> list[dict[str, Any]]:
        return [_pair(selection.ids[row], selection.ids[other], float(score), texts[row], texts[other])
                for row, other, score in pairs]  # fmt: skip

    # Of a pair that stayed, the later row is the one that a lower threshold would drop.
    return {"dropped": shown(dropped), "kept": shown((later, row, score) for row, later, score in kept)}


def _pair(row_id: str, nearest: str, score: float, text: str, nearest_text: str) -> dict[str, Any]:
    return {
        "id": row_id,
        "nearest": nearest,
        "score": score,
        "text": text[:SHOWN],
        "nearest_text": nearest_text[:SHOWN],
    }


def _dropped(data: Prepared) -> dict[str, str]:
    """The beginning of some rows that each stage dropped for each reason, by id."""
    found: dict[str, str] = {}
    for rows, selection in data.steps.values():
        seen: Counter[str] = Counter()
        shown = np.zeros(len(rows), bool)
        for index, reason in enumerate(selection.reason):
            seen[reason] += 1
            shown[index] = bool(reason) and seen[reason] <= EXAMPLES
        few = rows.take(shown)  # a stage sees many rows, and a page shows few of them
        for row_id, prompt, answer in zip(*(few.column(name) for name in ("id", "prompt", "answer")), strict=True):
            text = f"{' '.join(prompt.split())} → {' '.join(answer.split()) or '(nothing)'}"
            found[row_id] = text[:BEGINNING] + ("…" if len(text) > BEGINNING else "")
    return found


def _contaminated(run: Run, data: Prepared, context: StageContext) -> list[dict[str, Any]]:
    """Training rows beside the held-out or benchmark rows they equal or are near to, the doubtful ones first."""
    rows, selection = data.steps["decontaminate"]
    found = [index for index, nearest in enumerate(selection.nearest) if nearest]
    found = sorted(found, key=lambda index: (float(selection.score[index]), index))[:CONTAMINATED]
    if not found:
        return []
    on = run.decontaminate.on
    others = {row_id: text for other in (run.benchmark_rows(context), data.sides.measured) if other is not None
              for row_id, text in zip(other.column("id"), other.texts(on), strict=True)}  # fmt: skip
    texts = rows.texts(on)
    return [
        {"reason": selection.reason[index] or "reported"}
        | _pair(selection.ids[index], nearest, float(selection.score[index]), texts[index], others[nearest])
        for index in found
        for nearest in (selection.nearest[index],)
    ]


def _extremes(rows: Rows, context: StageContext) -> dict[str, list[dict[str, Any]]]:
    sizes = context.token_counts(rows).sum(axis=1)
    columns = [rows.column(name) for name in ("id", "prompt", "answer")]
    order = np.argsort(sizes, kind="stable")

    def shown(places: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"id": ids, "tokens": int(sizes[place]), "prompt": prompt[:SHOWN], "answer": answer[:SHOWN]}
            for place in places.tolist()
            for ids, prompt, answer in (tuple(column[place] for column in columns),)
        ]

    return {"longest": shown(order[::-1][:EXTREMES]), "shortest": shown(order[:EXTREMES])}


def _review(pairs: dict[str, list[dict[str, Any]]]) -> str:
    """The pairs on both sides of the threshold, in the form that ``filter=reviewed`` reads, undecided."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "decision", "was", "score", "nearest", "text", "nearest_text"])
    for was, found in pairs.items():
        for pair in found:
            score = f"{pair['score']:.4f}"
            writer.writerow([pair["id"], "", was, score, pair["nearest"], pair["text"], pair["nearest_text"]])
    return text.getvalue()
