"""Trainer options, in the names of TRL and PEFT; ``sft_config.py`` and ``peft_config.py`` translate them."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.errors import ConfigError, require
from sft_lab.core.gpus import has_gpu
from sft_lab.core.hardware import fast_bf16
from sft_lab.core.packages import saved_path
from sft_lab.core.text import count_of
from sft_lab.training.optimizers import check_optimizer, missing_for_optimizer
from sft_lab.training.sft_fields import check_fields
from sft_lab.training.weights import Holding


class LossOn(Enum):
    """Which tokens are trained: answers and their end-of-turn tokens, or every token."""

    answer = "answer"
    all = "all"


class Precision(Enum):
    """Arithmetic of training: ``auto`` is bf16 if the hardware has it, else fp16 on a GPU and fp32 on a CPU.

    ``bf16`` and ``fp16`` are autocast; with ``fp16`` the loss is scaled, since small gradients would vanish.
    """

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class PackingStrategy(Enum):
    """How rows share a block: ``bfd`` (best-fit decreasing) never splits rows, and they do not attend to each other."""

    bfd = "bfd"


class LossHead(Enum):
    """What turns hidden states into the loss: ``auto`` is ``plain`` on a CPU and ``trl`` elsewhere.

    ``trl``: TRL's own, computed in tiles, which takes little memory and is made for GPUs. ``plain``: the model's LM
    head at trained positions only, with the same loss and about twice as many tokens per second on a CPU.
    """

    auto = "auto"
    trl = "trl"
    plain = "plain"


class Budget(Enum):
    """What stays the same when filters and dedup change the number of rows.

    ``epochs``: ``num_train_epochs`` passes over the remaining rows. ``steps``: as many steps as ``num_train_epochs``
    passes over the training side before filters and dedup, so that all jobs of a sweep over those take equally many.
    """

    epochs = "epochs"
    steps = "steps"


class Quantization(Enum):
    """How frozen weights beside an adapter are held: unchanged, or in 4 bits (needs bitsandbytes)."""

    none = "none"
    nf4 = "nf4"


STARTS = "true, false, gaussian, olora, pissa or orthogonal; others need data, or cannot be loaded again"


def _is_step_or_share(value: float) -> bool:
    return 0 < value < 1 or (value >= 1 and float(value).is_integer())


STEP_OR_SHARE = "a whole number of steps, or a fraction of all steps, above 0 and below 1"


@dataclass
class Full(Bounded):
    """Train all weights.

    Attributes:
        num_train_epochs: passes over the training rows; ``max_steps`` above 0 overrides it.
        budget: whether epochs or steps stay the same when filters and dedup change the number of rows.
        warmup_steps: optimizer steps, or a share of all steps if below 1; the same for ``logging_steps``,
            ``eval_steps`` and ``save_steps``.
        max_length: in tokens, of a row or a packed block, template included; a longer row is dropped, never cut.
        loss_weights: apply the weights of turns in the loss (``dataset.train_on=marked``).
        early_stopping_patience: evaluations without a better held-out loss before training stops; null: never.
        load_best_model_at_end: keep the weights with the best held-out loss instead of the last ones.
        sft_config: more fields of TRL's SFTConfig, passed on unchanged; their names are checked, but sft_lab promises
            nothing about them.
    """

    version: ClassVar[int] = 1

    num_train_epochs: float = bounded(1.0, above=0, at_most=1e6, limit="above 0 and at most 1,000,000")
    max_steps: int = bounded(
        -1, holds=lambda steps: steps == -1 or steps > 0, limit="above 0, or -1 to train for num_train_epochs"
    )
    budget: Budget = Budget.epochs
    per_device_train_batch_size: int = bounded(4, at_least=1)
    gradient_accumulation_steps: int = bounded(1, at_least=1)
    learning_rate: float = bounded(2e-5, above=0)
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = bounded(
        0.03,
        holds=lambda value: value == 0 or _is_step_or_share(value),
        limit="a whole number of steps, or a fraction of all steps, at least 0 and below 1",
    )
    weight_decay: float = bounded(0.0, at_least=0)
    max_grad_norm: float = bounded(1.0, at_least=0, limit="at least 0 (0: no clipping)")
    optim: str = "adamw_torch_fused"
    logging_steps: float = bounded(0.02, holds=_is_step_or_share, limit=STEP_OR_SHARE)
    eval_steps: float = bounded(0.25, holds=_is_step_or_share, limit=STEP_OR_SHARE)
    save_steps: float = bounded(0.25, holds=_is_step_or_share, limit=STEP_OR_SHARE)
    max_length: int = bounded(1280, at_least=1)
    packing: bool = False
    packing_strategy: PackingStrategy = PackingStrategy.bfd
    loss_on: LossOn = LossOn.answer
    loss_weights: bool = bounded(False, added=True)
    loss_head: LossHead = LossHead.auto
    precision: Precision = Precision.auto
    activation_checkpointing: bool = False
    early_stopping_patience: int | None = None
    load_best_model_at_end: bool = False
    sft_config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that contradict one another, and fields of SFTConfig that sft_lab sets itself."""
        super().__post_init__()
        if own := sorted(set(self.sft_config) & OWN_FIELDS):
            raise ConfigError(f"sft_config={own}: set by sft_lab; use the trainer's own keys, or leave it out")

        for name in FILE_FIELDS & set(self.sft_config):
            if isinstance(file := self.sft_config[name], str) and Path(file).expanduser().is_file():
                self.sft_config[name] = saved_path(file)

        clashes = {
            "packing=true": self.packing,
            "loss_on=all": self.loss_on is LossOn.all,
            "loss_head=trl": self.loss_head is LossHead.trl,
        }
        if self.loss_weights and (clash := next((key for key, is_set in clashes.items() if is_set), None)):
            raise ConfigError(f"loss_weights=true: cannot be combined with {clash}; leave one of them out")

        if self.load_best_model_at_end and self.save_steps != self.eval_steps and self.save_steps % self.eval_steps:
            raise ConfigError(
                f"save_steps={self.save_steps}: must be a multiple of eval_steps={self.eval_steps} with "
                "load_best_model_at_end, since only saved weights can be kept as the best"
            )

    @property
    def uses_held_out_loss(self) -> bool:
        """Whether training uses the held-out loss, to stop early or to keep the best weights."""
        return self.load_best_model_at_end or bool(self.early_stopping_patience)

    @property
    def holding(self) -> Holding:
        """How the weights are held: all of them are trained."""
        return Holding(trained=True, precision=resolve_precision(self.precision))

    def check(self) -> list[str]:
        """Return why the optimizer cannot be used, and fields that the installed TRL does not have."""
        return [*check_optimizer(self.optim), *check_fields(self.sft_config)]

    def missing(self) -> list[str]:
        """Return what this machine lacks for training."""
        problems = missing_for_optimizer(self.optim)
        if has_gpu():
            return problems
        if self.precision is Precision.fp16:
            problems.append("trainer.precision=fp16: needs a GPU, and this machine has none; auto takes bf16 or fp32")
        if self.sft_config.get("activation_offloading"):
            problems.append(
                "trainer.sft_config.activation_offloading=true: needs a GPU, and this machine has none; leave it out, "
                "or set trainer.activation_checkpointing"
            )
        return problems


@dataclass
class Peft(Bounded):
    """The most important fields of PEFT's LoraConfig.

    Attributes:
        target_modules: module names, or ``[all-linear]`` for every linear layer except the LM head.
        use_dora: learn magnitude and direction of each weight vector separately (Liu et al., "DoRA", ICML 2024);
            slower, often better at small ``r``.
        use_rslora: scale the adapter by ``lora_alpha / sqrt(r)``, so that a large ``r`` still learns (Kalajdzievski,
            "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023).
        config: more fields of PEFT's LoraConfig, passed on unchanged; checked against its fields.
    """

    r: int = bounded(16, at_least=1)
    lora_alpha: int = bounded(32, at_least=1)
    lora_dropout: float = bounded(0.0, at_least=0, below=1, limit="at least 0 and below 1")
    target_modules: list[str] = bounded(["all-linear"], holds=bool, limit="at least one name")
    use_dora: bool = False
    use_rslora: bool = False
    config: dict[str, Any] = bounded({}, added=True)

    def __post_init__(self) -> None:
        """Refuse fields of ``config`` that have their own key, or whose adapter would not be loaded again."""
        super().__post_init__()
        allowed = ADAPTER_FIELDS - OWN_ADAPTER_FIELDS
        if refused := sorted(set(self.config) - allowed):
            raise ConfigError(
                f"config={refused}: must be among {', '.join(sorted(allowed))}; the others have their own keys, or "
                "their adapters cannot be loaded again"
            )
        start = str(self.config.get("init_lora_weights", True))
        require(not start.startswith(REFUSED_STARTS), "config.init_lora_weights", start, STARTS)


@dataclass
class Lora(Full):
    """Train a LoRA adapter beside the frozen weights.

    Attributes:
        loraplus_lr_ratio: the learning rate of the adapter's B matrices over that of the rest (LoRA+; Hayou et al.,
            "LoRA+: Efficient Low Rank Adaptation of Large Models", ICML 2024); null: the same rate for all.
    """

    learning_rate: float = bounded(2e-4, above=0)
    loraplus_lr_ratio: float | None = bounded(None, at_least=1, added=True)
    quantization: Quantization = Quantization.none
    peft: Peft = field(default_factory=Peft)

    def __post_init__(self) -> None:
        """Refuse LoRA+ with an optimizer that makes its own groups of weights."""
        super().__post_init__()
        if self.loraplus_lr_ratio is not None and self.optim.startswith(GROUPING_OPTIMS):
            raise ConfigError(
                f"loraplus_lr_ratio={self.loraplus_lr_ratio}: optim={self.optim} forms its own parameter groups, so B "
                "matrices cannot have their own learning rate; use optim=adamw_torch_fused or leave the ratio out"
            )

    @property
    def holding(self) -> Holding:
        """How the weights are held: frozen, possibly in 4 bits."""
        four_bit = self.quantization is Quantization.nf4
        return Holding(four_bit=four_bit, precision=resolve_precision(self.precision))

    def missing(self) -> list[str]:
        """Return what this machine lacks, for weights in 4 bits also bitsandbytes."""
        problems = super().missing()
        if self.quantization is Quantization.nf4 and not importlib.util.find_spec("bitsandbytes"):
            problems.append(
                f"trainer.quantization={self.quantization.name}: needs the package bitsandbytes "
                "(pip install bitsandbytes); trainer=lora trains the same adapter on weights that are not quantized"
            )
        return problems


# Fields of PEFT's LoraConfig that a saved adapter may set and still be loaded: sizes, names of layers, initial values.
ADAPTER_FIELDS = {
    "peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r", "bias",
    "lora_alpha", "lora_dropout", "lora_bias", "use_rslora", "use_dora", "fan_in_fan_out", "target_modules",
    "exclude_modules", "target_parameters", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "layer_replication", "trainable_token_indices", "init_lora_weights", "ensure_weight_tying",
}  # fmt: skip
# Those of these fields that sft_lab sets itself.
OWN_ADAPTER_FIELDS = {
    "peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "trainable_token_indices",
}  # fmt: skip
# Initial values that need data or other weights, or are drawn again when the adapter is loaded.
REFUSED_STARTS = ("eva", "corda", "lora_ga", "loftq", "pissa_niter")

# Optimizers in Transformers that make their own groups of weights.
GROUPING_OPTIMS = ("galore", "apollo", "lomo", "adalomo")

# Fields of SFTConfig that sft_lab sets itself, from its own keys or for its evaluation.
OWN_FIELDS = {
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm", "optim",
    "logging_steps", "logging_strategy", "eval_steps", "eval_strategy", "save_steps", "save_strategy", "max_length",
    "packing", "packing_strategy", "eval_packing", "padding_free", "bf16", "fp16", "activation_checkpointing",
    "gradient_checkpointing", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "seed",
    "data_seed", "report_to", "dataset_kwargs", "completion_only_loss", "assistant_only_loss", "chat_template_path",
    "model_init_kwargs", "push_to_hub", "hub_token", "trust_remote_code", "disable_tqdm", "logging_nan_inf_filter",
    "per_device_eval_batch_size", "use_cpu", "run_name", "resume_from_checkpoint",
}  # fmt: skip

FILE_FIELDS = {"deepspeed", "fsdp_config", "accelerator_config"}  # of SFTConfig; the value may be a path


def resolve_precision(precision: Precision) -> str:
    """Return ``bf16``, ``fp16`` or ``fp32``."""
    if precision is not Precision.auto:
        return precision.name

    import torch

    if torch.cuda.is_available():
        return "bf16" if fast_bf16("cuda") else "fp16"
    return "bf16" if fast_bf16("cpu") else "fp32"


def planned_steps(rows: int, options: Full, processes: int = 1) -> int:
    """Return the number of optimizer steps of ``num_train_epochs`` passes over rows or packed blocks."""
    batch = options.per_device_train_batch_size * processes
    drops_last = options.sft_config.get("dataloader_drop_last")
    batches = rows // batch if drops_last else math.ceil(rows / batch)
    steps_per_epoch = math.ceil(batches / options.gradient_accumulation_steps)
    return math.ceil(steps_per_epoch * options.num_train_epochs)


def refuse_no_step(rows: int, options: Full, processes: int = 1) -> None:
    """Refuse rows or packed blocks that do not fill a batch if the last, smaller batch is dropped.

    Raises:
        ConfigError: naming rows and batch.
    """
    if rows and not planned_steps(rows, options, processes):
        batch = options.per_device_train_batch_size
        raise ConfigError(
            f"trainer.per_device_train_batch_size={batch}: {count_of(rows, 'row')} (or packed blocks) cannot fill a "
            f"batch of {batch} in every process (processes: {processes}), and dataloader_drop_last drops the rest, so "
            "there would be no steps; lower it, or leave trainer.sft_config.dataloader_drop_last out"
        )
