"""Check what a run needs of this machine before any work: files, packages, folders. Nothing heavy is imported.

What training needs of the rows is checked when they are prepared.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sft_lab.core.errors import ConfigError, UserError
from sft_lab.core.packages import FAISS_REMEDY, is_url, package_path
from sft_lab.dedup.graph_options import Index
from sft_lab.run.identity import plugin_origins
from sft_lab.training.config import Full, refuse_no_step

if TYPE_CHECKING:
    from sft_lab.data.preparation import Prepared
    from sft_lab.run.config import Run

THREADS_PER_CORE = 4  # at most
HIGH_LEARNING_RATE = 0.1  # above what any optimizer here trains a language model with


def check(run: Run) -> list[str]:
    """Return every problem that the run would have on any machine like this one, naming key or file."""
    problems = [*_check_threads(run), *_check_starter(run), *_check_faiss(run)]
    problems += [*run.dataset.check(), *run.split.check(), *run.template.check(), *run.model.check()]
    for row_filter in run.filter.values():
        problems += row_filter.check()
    problems += [*run.decontaminate.check(), *run.evaluation.check(), *_check_messages(run)]
    problems += [*run.trainer.check(), *run.tracking.check(), *run.launch.check(), *run.engine.check()]
    problems += run.store.open().check(several_machines=run.launch.several_machines)
    for key, embedder in run.embedders().items():
        problems += embedder.check(key)
    return [*problems, *_check_plugins(run)]


def doubtful_settings(run: Run) -> list[str]:
    """Return a sentence for each setting that is allowed and probably a mistake."""
    length, rate = run.trainer.max_length, run.trainer.learning_rate
    longest = getattr(run.filter.get("length"), "max_tokens", None)
    doubts = []
    # A filter below the default length is a choice; a length raised alone has no effect.
    if longest and length > Full.max_length and length >= 2 * longest:
        doubts.append(
            f"trainer.max_length={length}: filter.length.max_tokens={longest} drops longer rows before training sees "
            f"them; filter.length.max_tokens={length} split.max_eval_tokens={length} keeps and measures them"
        )
    if rate > HIGH_LEARNING_RATE:
        doubts.append(
            f"trainer.learning_rate={rate:g}: training will most likely diverge; 1e-4 to 5e-4 suits LoRA, 1e-5 to 5e-5 "
            "full fine-tuning"
        )
    return doubts


def missing(run: Run) -> list[str]:
    """Return the packages and devices that this machine lacks to train the run."""
    if run.launch.is_remote:  # a login node needs no GPU; the machine that executes the job checks itself
        return []
    return [*run.trainer.missing(), *run.launch.missing_devices()]


def check_rows(run: Run, data: Prepared) -> list[str]:
    """Return what keeps a run from training on its prepared rows; empty when nothing."""
    problems = [data.sides.shortage] if data.sides.shortage else []
    if not run.trainer.packing:  # blocks are counted when packing has made them
        try:
            refuse_no_step(len(data.train.rows), run.trainer, run.launch.num_processes)
        except ConfigError as error:
            problems.append(str(error))
    if run.trainer.uses_held_out_loss and not len(data.held_out.rows):
        problems.append(
            "trainer.load_best_model_at_end, trainer.early_stopping_patience: need held-out rows, and there are none; "
            "raise split.eval_share, or set them to false and null"
        )
    return problems


def _check_threads(run: Run) -> list[str]:
    limit = THREADS_PER_CORE * (os.cpu_count() or 1)
    if (run.threads or 0) <= limit or run.launch.is_remote:
        return []
    return [f"threads={run.threads}: must be at most {limit}, four per core, or null for one per core"]


def _check_starter(run: Run) -> list[str]:
    path = str(getattr(run.dataset, "path", ""))
    if run.choices.get("dataset") != "starter" or path.startswith("package:"):
        return []
    return [f"dataset.path={path}: dataset=starter is the bundled data; for your own files set dataset=file"]


def _check_faiss(run: Run) -> list[str]:
    if getattr(run.dedup, "index", None) is not Index.flat or find_spec("faiss"):
        return []
    return [f"dedup.index=flat: FAISS is not installed; {FAISS_REMEDY}"]


def _check_messages(run: Run) -> list[str]:
    path = run.evaluation.messages
    if path is None or is_url(path) or not package_path(path).is_file():  # read later, or refused already
        return []
    from sft_lab.data.conversation_file import read_conversations

    try:
        read_conversations(package_path(path), f"evaluation.messages={path}")
    except UserError as error:
        return [str(error)]
    return []


def _check_plugins(run: Run) -> list[str]:
    saved, current = run.plugins, plugin_origins(run)
    return [
        f"plugins.{name}: this run was made with {saved.get(name, 'none')}, but {current.get(name, 'none')} is "
        "installed; install the former again, or run it with the latter by sft-lab replay"
        for name in {**saved, **current}
        if saved.get(name) != current.get(name)
    ]
