"""``sft-lab merge``: a run's adapter put into the weights of its base model, as a model that needs neither."""

from __future__ import annotations

import shutil
from pathlib import Path

from sft_lab.core.errors import FolderError, UserError
from sft_lab.core.log import log
from sft_lab.tools.finished_run import open_run


def merge(path: Path, out: Path | None = None) -> Path:
    """Write the merged model, with tokenizer, chat template, generation config and card, and give its folder.

    A base model that was held in 4 bits is loaded in its own type for it.

    Args:
        path: a finished run that trained an adapter.
        out: the new folder; None: ``merged/`` in the run folder.

    Raises:
        UserError: for a folder that is no finished run, one whose weights were all trained, or an ``out`` in use.
    """
    found = open_run(path)
    if not found.is_adapter:
        raise UserError(
            f"{found.folder.model}: holds all weights and no adapter, so there is nothing to merge; load it as it is"
        )
    target = (out or found.folder.merged).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FolderError(f"{target}: is there already; remove it, or name another folder with --out")
    found.folder.refuse_links()
    from sft_lab.report import card
    from sft_lab.training import model_io

    tokenizer, renderer = found.tokenizer, found.renderer
    whole = found.load_tuned(found.load_base(four_bit=False)).merge_and_unload(safe_merge=True)
    work = target.with_name(f".{target.name}.unfinished")  # a folder is whole or not there
    shutil.rmtree(work, ignore_errors=True)
    try:
        model_io.save(whole, tokenizer, renderer.jinja, work, end_ids=renderer.end_ids)
        card.write_model_card(found.folder, found.run.model.base_name, work)
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
