"""Turns errors about disk space, memory or lost processes into one message that says what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sft_lab.core.errors import JobError, SftLabError
from sft_lab.core.hardware import rank
from sft_lab.core.types import Work

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir
    from sft_lab.run.config import Run

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, larger than a file may be
# Writers in Rust and C++ raise their own errors, recognized only by their text; the last two are torch.save's.
_DISK_TEXTS = (
    "No space left on device", "Disk quota exceeded", "File too large", "inline_container.cc", "iostream error",
)  # fmt: skip
_MEMORY_TEXTS = (
    "out of memory", "can't allocate memory", "Cannot allocate memory", "Unable to allocate",
    "_STATUS_ALLOC_FAILED",  # of cuBLAS and cuDNN, when their workspace does not fit next to the model
)  # fmt: skip
_LOST_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")  # torch.distributed's
MAX_CHARACTERS = 300  # of a library's own message
LOST = "lost the connection to the other training processes"


@contextmanager
def explained(run: Run, folder: RunDir, work: str = Work.RUN) -> Iterator[None]:
    """Turn an error about disk space, memory or a lost process into one that says what to do; others pass through.

    Args:
        run: whose config keys are named.
        folder: of the run.
        work: what is done there.

    Raises:
        JobError: instead of such an error.
    """
    try:
        yield
    except SftLabError:
        raise
    except Exception as error:
        if (isinstance(error, OSError) and error.errno in DISK_ERRORS) or _mentions(error, _DISK_TEXTS):
            raise JobError(_no_space(error, run, folder, folder.exec_command(work))) from error
        if isinstance(error, MemoryError) or _mentions(error, _MEMORY_TEXTS):
            raise JobError(_no_memory(error, run)) from error
        if rank() is not None and _is_lost_connection(error):
            raise JobError(_lost_connection(error, folder.exec_command())) from error
        raise


def _mentions(error: Exception, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)


def _no_space(error: Exception, run: Run, folder: RunDir, resume_command: str) -> str:
    store = run.store.open().root
    return (
        f"no space left in {folder.path} or in the store {store} ({_summary(error)}); free some space, and "
        f"{resume_command} resumes from what is finished (sft-lab store prune removes results not used "
        "for a while)"
    )


def _no_memory(error: Exception, run: Run) -> str:
    stage = getattr(error, "stage", "")
    name = {"base": "measuring", "base_answers": "measuring"}.get(stage, stage)
    stage_part = f" in {name}" if name else ""
    return f"out of memory{stage_part} ({_summary(error)}); {_memory_remedy(name, run)}"


def _memory_remedy(stage: str, run: Run) -> str:
    trainer = run.trainer
    if stage == "training":
        batch = trainer.per_device_train_batch_size
        return (
            f"a training batch is {batch} rows of up to {trainer.max_length} tokens. Lower "
            "trainer.per_device_train_batch_size and raise trainer.gradient_accumulation_steps by as much, lower "
            "trainer.max_length, set trainer.activation_checkpointing=true, or train an adapter (trainer=lora, on a "
            "GPU qlora); sft-lab plan shows the memory that weights and optimizer need"
        )
    if stage == "measuring":
        return f"an evaluation batch has {run.evaluation.batch_tokens} tokens; lower evaluation.batch_tokens"
    if stage == "load":
        return (
            f"each worker holds a block of {run.engine.block} records; lower engine.workers or engine.block, or lower "
            f"dataset.max_record_mb={run.dataset.max_record_mb:g} to find a record that never ends"
        )
    group = stage.partition(".")[0]
    if group in ("dedup", "embed", "neighbors", "decontaminate"):
        edges = ", dedup.max_edges" if hasattr(run.dedup, "max_edges") else ""
        return f"lower dataset.limit{edges}, or choose dedup=exact and decontaminate.method=exact, which need the least"
    return "lower dataset.limit, or give the process more memory"


def _is_lost_connection(error: Exception) -> bool:
    """Return whether another process did not answer; NCCL and torch's store have error classes for it, gloo none."""
    return type(error).__name__ in _LOST_ERRORS or "/gloo/" in str(error)


def _lost_connection(error: Exception, resume_command: str) -> str:
    # Without the line of gloo's source, and without its advice.
    message = re.sub(r"^\[\S*/gloo/\S+\] ", "", str(error)).partition(". ")[0]
    return (
        f"{LOST} ({' '.join(message.split())[:MAX_CHARACTERS]}): one of them died, or its machine or network failed; "
        f"{resume_command} resumes from the last checkpoint"
    )


def _summary(error: Exception) -> str:
    """Return the beginning of the error's message, on one line."""
    has_file = isinstance(error, OSError) and error.filename
    message = f"{error.strerror}: {error.filename}" if has_file else str(error)  # type: ignore[attr-defined]
    return " ".join(message.split())[:MAX_CHARACTERS] or type(error).__name__
