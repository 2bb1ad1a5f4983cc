"""Tokenize: rendered text becomes ``input_ids`` and ``labels``; what does not fit is dropped, never cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.errors import ModelError
from sft_lab.rows import Rows, Selection

if TYPE_CHECKING:
    import datasets

    from sft_lab.bench import Bench
    from sft_lab.data.template import Template

IGNORED = -100  # the label that PyTorch's cross entropy leaves out
VERSION = 1


def tokenize(
    rows: Rows, rendered: Path, template: Template, bench: Bench, *, max_length: int, loss_on_all: bool
) -> tuple[Selection, datasets.Dataset]:
    """Give ready training rows, or find the stored ones.

    Args:
        rows: the rendered rows.
        rendered: the folder the template stage answered.
        template: knows the end-of-turn token.
        bench: tokenizer and store.
        max_length: in tokens, template included; a longer row is dropped (reason ``over_max_length``).
        loss_on_all: label every token; otherwise the answers and their end-of-turn tokens alone.

    Returns:
        The selection, and a set of the kept rows with ``id``, ``input_ids`` and ``labels``.

    Raises:
        ModelError: if a row has nothing to train on or its end-of-turn token is not trained.
    """
    import datasets

    recipe = {
        "version": VERSION,
        "params": {"max_length": max_length, "loss_on_all": loss_on_all},
        "tokenizer": bench.tokenizer_key,
        "input": rendered.name,
    }

    def compute(folder: Path) -> None:
        end_id = template.bind(bench).end_of_turn_id
        texts = datasets.Dataset.load_from_disk(str(rendered / "table"))
        kept: dict[str, list[Any]] = {"id": [], "input_ids": [], "labels": []}
        lengths, reasons = [], []
        for row in _encoded(texts, bench):
            ids, labels = row["input_ids"], _labels(row, loss_on_all=loss_on_all)
            lengths.append(len(ids))
            reasons.append("over_max_length" if len(ids) > max_length else "")
            if reasons[-1]:
                continue
            if not loss_on_all and (end_id not in labels):
                raise ModelError(
                    f"row {row['id']}: the end-of-turn token would not be trained; the template's end-of-turn text is "
                    "not one token of this tokenizer (template=plain ends with EOS)"
                )
            kept["id"].append(row["id"])
            kept["input_ids"].append(ids)
            kept["labels"].append(labels)
        ids_feature = [datasets.Value("int32")]
        features = datasets.Features({"id": datasets.Value("string"), "input_ids": ids_feature, "labels": ids_feature})
        datasets.Dataset.from_dict(kept, features=features).save_to_disk(str(folder / "table"))
        Selection.of(rows, reasons, lengths).save(folder)

    entry = bench.stage("tokenize", recipe, compute)
    return Selection.load(entry.path), datasets.Dataset.load_from_disk(str(entry.path / "table"))


def _encoded(texts: datasets.Dataset, bench: Bench) -> Any:
    for start in range(0, len(texts), 1024):
        batch = texts[start : start + 1024]
        encoded = bench.tokenizer(batch["text"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for index, row_id in enumerate(batch["id"]):
            yield {
                "id": row_id,
                "input_ids": encoded["input_ids"][index],
                "offsets": encoded["offset_mapping"][index],
                "spans": batch["spans"][index],
            }


def _labels(row: dict[str, Any], *, loss_on_all: bool) -> list[int]:
    """Label a token iff it holds a character of an answer; a token across its edge holds one."""
    if loss_on_all:
        return list(row["input_ids"])
    spans = row["spans"]
    return [
        token if any(begin < end and begin < stop and end > start for start, stop in spans) else IGNORED
        for token, (begin, end) in zip(row["input_ids"], row["offsets"], strict=True)
    ]
