"""``sft-lab merge``: merge a run's adapter into its base model, for Transformers to load without PEFT."""

from __future__ import annotations

import shutil
from pathlib import Path

from sft_lab.core.errors import FolderError, UserError
from sft_lab.core.log import log
from sft_lab.tools.finished_run import open_run


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
            f"{finished.folder.model}: holds all weights and no adapter, so there is nothing to merge; load it directly"
        )
    target = (out or finished.folder.merged).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FolderError(f"{target}: exists; remove it, or name another folder with --out")
    finished.folder.refuse_links()

    from sft_lab.report import card
    from sft_lab.training import model_io

    tokenizer, renderer = finished.tokenizer, finished.renderer
    base = finished.load_base(four_bit=False)
    merged = finished.load_tuned(base).merge_and_unload(safe_merge=True)
    work = target.with_name(f".{target.name}.unfinished")  # renamed when complete
    shutil.rmtree(work, ignore_errors=True)
    try:
        model_io.save(merged, tokenizer, renderer.jinja, work, end_ids=renderer.end_ids)
        card.write_model_card(finished.folder, finished.run.model.base_name, work)
        if target.exists():
            target.rmdir()
        work.rename(target)
    except OSError as error:
        raise FolderError(f"{target}: cannot be written ({error.strerror}); name another folder with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)

    size = sum(file.stat().st_size for file in target.iterdir())
    log.info("merge: %.1f MB in %s", size / 1e6, target)
    return target
