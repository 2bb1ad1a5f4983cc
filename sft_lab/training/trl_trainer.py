"""TRL's SFTTrainer with our held-out loss, loss head and checkpoints.

sft_lab measures held-out loss itself, so the trainer's own evaluation, a mean of batch means, never runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from accelerate.utils import DistributedType, broadcast_object_list
from transformers.trainer_utils import rotate_checkpoints

from sft_lab.core.errors import Pruned
from sft_lab.core.io import sync
from sft_lab.training import loss_head
from sft_lab.training.callbacks import (
    Event,
    Watch,
)
from sft_lab.training.checkpoints import Unlogged, is_out_of_patience
from sft_lab.training.optimizers import put_average
from sft_lab.training.peft_config import build_loraplus_optimizer


class MeasuredTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with sft_lab's held-out loss and its loss head."""

    watch: Watch
    control: Any
    plain_head = False
    measures_last = True
    own_attention: str  # the model's, with which it is measured
    optimizer: Any  # of Transformers' trainer
    loraplus_lr_ratio: float | None = None

    def create_optimizer(self, model: Any = None) -> Any:
        """Return Transformers' optimizer, or LoRA+'s."""
        if self.optimizer is None and (ratio := self.loraplus_lr_ratio):
            self.optimizer = build_loraplus_optimizer(self.model if model is None else model, self.args, ratio)
        return super().create_optimizer(model)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss, by the plain head if it is chosen, with TRL's scaling and metrics."""
        if not self.plain_head:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        labels = inputs.pop("labels")
        mask = inputs.get("attention_mask")
        input_tokens = mask.sum() if mask is not None else torch.tensor(labels.numel(), device=labels.device)
        sums = loss_head.compute_token_sums(model, labels, **inputs)
        items = sums.tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = sums.loss / items.clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._add_metrics(sums, input_tokens)
        return loss

    def _add_metrics(self, sums: loss_head.TokenSums, input_tokens: torch.Tensor) -> None:
        of_process = torch.stack([sums.tokens, sums.correct, input_tokens, sums.entropy.detach()]).double()
        tokens, correct, seen, entropy = self.accelerator.reduce(of_process).tolist()
        metrics = self._metrics["train"]
        metrics["entropy"].append(entropy / max(tokens, 1))
        metrics["mean_token_accuracy"].append(correct / max(tokens, 1))
        self._total_train_tokens += int(seen)
        metrics["num_tokens"] = [self._total_train_tokens]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the held-out metrics under the trainer's names.

        The final weights are measured after training, unless the trainer needs their metrics here.
        """
        if not self.measures_last and self.state.global_step >= self.state.max_steps:
            return {}
        assert self.watch.measure is not None

        put_average(self.optimizer)
        with (
            self.watch.clock.running(),
            _without_autocast(self.model),
            attending_with(self.model, self.own_attention),
        ):
            # All processes measure: if each has the whole model, they share the rows; a sharded model needs all of them
            # for every row. The first one's result counts.
            is_copied = self.accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
            event = self.watch.measure(self.model, self.state.global_step, is_copied)
            if self.args.world_size > 1:
                event = broadcast_object_list([event])[0]
        self.watch.record({"step": self.state.global_step, "epoch": self.state.epoch or 0.0, **event})
        self._end_if_hopeless(event)

        metrics = {f"eval_{name.removeprefix('eval/')}": value for name, value in event.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _end_if_hopeless(self, event: Event) -> None:
        """End all processes of the training if a search has seen better ones at the same point."""
        if self.watch.is_hopeless is None or self.control.should_training_stop:
            return  # it is at its end, or interrupted, in which case the signal counts
        share = self.state.global_step / self.state.max_steps
        is_hopeless = self.watch.is_hopeless(share, event)
        if self.args.world_size > 1:
            is_hopeless = broadcast_object_list([is_hopeless])[0]
        if is_hopeless:
            loss = event["eval/loss"]
            raise Pruned(f"at {share:.0%} of the training, with a held-out loss of {loss:.4f}")

    def _load_best_model(self) -> None:
        """Load the best weights, which are an average already where the optimizer makes one."""
        put_average(self.optimizer)
        super()._load_best_model()

    def resume_logging(self, unlogged: Unlogged) -> None:
        """Continue the sums for the next log entry, which Transformers and TRL reset when training resumes."""
        self._tr_loss = torch.tensor(unlogged.loss, device=self.args.device)
        self._globalstep_last_logged = unlogged.last_logged
        self._metrics["train"].update(unlogged.metrics)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint as Transformers does, but remove the older one only after the new one is on disk."""
        # A checkpoint that only an interrupted training has must not change the weights.
        if not self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            put_average(self.optimizer)
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        loss = self.accelerator.reduce(self._tr_loss.clone(), reduction="mean").item()
        tokens = self.watch.tokens_before + self.total_tokens
        if self.args.should_save:
            Unlogged(loss, self._globalstep_last_logged, dict(self._metrics["train"]), tokens).write(checkpoint)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit

        self.accelerator.wait_for_everyone()  # each process writes a file
        if self.args.should_save:
            sync(checkpoint)
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    def load_finished(self, checkpoint: Path) -> bool:
        """Load the weights of a training that was interrupted after its last step.

        Transformers' trainer would do one more step before noticing that none is left.

        Returns:
            Whether it was.
        """
        state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps and not is_out_of_patience(state, self):
            return False
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(best or str(checkpoint))  # as resuming does
        self.state = state
        return True

    @property
    def total_tokens(self) -> int:
        """Training tokens that this process has seen, without padding; TRL logs them, but not at the last step."""
        return int(self._total_train_tokens)

    def read_columns(self, names: list[str]) -> None:
        """Set the columns in a batch, of which Transformers removes those that the model does not take."""
        self._signature_columns = names

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: sft_lab writes its own card."""


class SampleCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Makes the model answer the fixed prompts every ``samples_every`` steps."""

    def __init__(self, watch: Watch, attention: str) -> None:
        self.watch = watch
        self.attention = attention

    def on_step_end(self, _: Any, state: Any, __: Any, model: Any = None, optimizer: Any = None, **___: Any) -> None:
        if self.watch.sample and state.global_step % self.watch.samples_every == 0:
            put_average(optimizer)
            with self.watch.clock.running(), _without_autocast(model), attending_with(model, self.attention):
                self.watch.sample(model, state.global_step)


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """Remove accelerate's autocast from the model, so that held-out loss has the same arithmetic everywhere."""
    wrapped = model.__dict__.get("forward")
    if not hasattr(model, "_original_forward"):
        yield
        return
    model.forward = model._original_forward  # noqa: SLF001
    try:
        yield
    finally:
        model.forward = wrapped


@contextmanager
def attending_with(model: Any, name: str | None) -> Iterator[str]:
    """Let a model use another attention (None: its own), and yield its own."""
    own_attention = model.config._attn_implementation  # noqa: SLF001 - set_attn_implementation has no counterpart
    if name in (None, own_attention):
        yield own_attention
        return
    model.set_attn_implementation(name, allow_all_kernels=True)  # the user has allowed it if it is a kernel of the Hub
    try:
        yield own_attention
    finally:
        model.set_attn_implementation(own_attention, allow_all_kernels=True)


def count_one_gpu(args: trl.SFTConfig) -> None:
    """Train on one GPU where CUDA was initialized before the others could be hidden, as in a notebook."""
    if args.n_gpu > 1:
        args._n_gpu = 1  # noqa: SLF001 - as Transformers' trainer does for a model on one of them
