"""The world fails a run: no disk, no memory, another process gone. Said in one message, with what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sft_lab.core.errors import JobError, SftLabError
from sft_lab.core.hardware import rank

if TYPE_CHECKING:
    from pathlib import Path

    from sft_lab.run.config import Run

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, larger than a file may be
# Writers in Rust and C++ have errors of their own, whose words are all they tell; the last two are torch.save's.
_FULL_WORDS = (
    "No space left on device", "Disk quota exceeded", "File too large", "inline_container.cc", "iostream error",
)  # fmt: skip
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "Unable to allocate")
_LOST_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")  # torch.distributed's
LOST = "the connection to the other processes of the training broke"


@contextmanager
def told(run: Run, folder: Path) -> Iterator[None]:
    """Turn an error for want of disk, memory or another process into one that says what to do; all others pass.

    Args:
        run: whose knobs are named.
        folder: of the run.

    Raises:
        JobError: in such an error's stead.
    """
    try:
        yield
    except SftLabError:
        raise
    except Exception as error:
        if (isinstance(error, OSError) and error.errno in FULL) or _says(error, _FULL_WORDS):
            raise JobError(_no_space(error, run, folder)) from error
        if isinstance(error, MemoryError) or _says(error, _MEMORY_WORDS):
            raise JobError(_no_memory(error, run)) from error
        if rank() is not None and _is_lost(error):
            raise JobError(_lost(error)) from error
        raise


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    return any(word in str(error) for word in words)


def _no_space(error: Exception, run: Run, folder: Path) -> str:
    store = run.store.open().root
    return (
        f"no space left in {folder} or in the store {store} ({_words(error)}); make room, then the same "
        "command goes on from what is finished (sft-lab store prune removes results that were not used for a while)"
    )


def _no_memory(error: Exception, run: Run) -> str:
    stage = getattr(error, "stage", "")
    name = {"base": "measuring", "base_answers": "measuring"}.get(stage, stage)
    said = f"out of memory in {name} ({_words(error)})" if name else f"out of memory ({_words(error)})"
    return f"{said}; {_memory_remedy(name, run)}"


def _memory_remedy(stage: str, run: Run) -> str:
    trainer = run.trainer
    if stage == "training":
        batch = trainer.per_device_train_batch_size
        return (
            f"a training batch is {batch} rows of up to {trainer.max_length} tokens. Lower "
            "trainer.per_device_train_batch_size and raise trainer.gradient_accumulation_steps by as much, lower "
            "trainer.max_length, set trainer.activation_checkpointing=true, or train an adapter (trainer=lora, on a "
            "GPU qlora); sft-lab plan says what weights and optimizer take"
        )
    if stage == "measuring":
        return f"a measuring batch is {run.evaluation.batch_tokens} tokens; lower evaluation.batch_tokens"
    if stage == "load":
        return (
            "every row of the source is held in memory; give fewer or smaller files, save a .json array as .jsonl, "
            f"or lower dataset.max_record_mb={run.dataset.max_record_mb:g} to find a line without an end"
        )
    group = stage.partition(".")[0]
    if group in ("dedup", "embed", "neighbors", "decontaminate"):
        edges = ", dedup.max_edges" if hasattr(run.dedup, "max_edges") else ""
        return f"lower dataset.limit{edges}, or choose dedup=exact and decontaminate.method=exact, which take least"
    return "lower dataset.limit, or give the process more memory"


def _is_lost(error: Exception) -> bool:
    """Whether a process that trains along did not answer: NCCL and torch's store have errors for it, gloo has none."""
    return type(error).__name__ in _LOST_ERRORS or "/gloo/" in str(error)


def _lost(error: Exception) -> str:
    # Without the place in gloo's source, and without its advice.
    said = re.sub(r"^\[\S*/gloo/\S+\] ", "", str(error)).partition(". ")[0]
    return (
        f"{LOST} ({' '.join(said.split())[:300]}): one of them died, or its machine or network did; the same command "
        "goes on from the last checkpoint"
    )


def _words(error: Exception) -> str:
    said = str(error) if not isinstance(error, OSError) or not error.filename else f"{error.strerror}: {error.filename}"
    return " ".join(said.split())[:300] or type(error).__name__
