"""``sft-lab merge``: merge a run's adapter into its base model, for Transformers to load without PEFT."""

from __future__ import annotations

from pathlib import Path

from sft_lab.core.errors import UserError
from sft_lab.core.log import log
from sft_lab.tools.finished_run import open_run
from sft_lab.tools.new_folder import new_folder, refuse_used


def merge_adapter(path: Path, out: Path | None = None) -> Path:
    """Write the merged model, with tokenizer, chat template, generation config and card, and return its folder.

    A base model quantized to 4 bits for training is loaded in its original data type.

    Args:
        path: a finished run that trained an adapter.
        out: the new folder; None: ``merged/`` in the run folder.

    Raises:
        UserError: if the folder has no finished run, all its weights were trained, or ``out`` is in use.
    """
    finished = open_run(path)
    if not finished.is_adapter:
        raise UserError(
            f"{finished.folder.model}: has full weights and no adapter, so there is nothing to merge; load it directly"
        )
    target = (out or finished.folder.merged).absolute()
    refuse_used(target)
    finished.folder.refuse_links()

    from sft_lab.report import card
    from sft_lab.training import model_io

    tokenizer, renderer = finished.tokenizer, finished.renderer
    base = finished.load_base(four_bit=False)
    merged = finished.load_tuned(base).merge_and_unload(safe_merge=True)
    with new_folder(target) as work:
        model_io.save(merged, tokenizer, renderer.jinja, work, end_ids=renderer.end_ids)
        card.write_model_card(finished.folder, finished.run.model.base_name, work)

    size = sum(file.stat().st_size for file in target.iterdir())
    log.info("merge: %.1f MB in %s", size / 1e6, target)
    return target
