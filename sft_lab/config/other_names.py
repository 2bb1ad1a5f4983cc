"""Names that other trainers have for our keys, and names that libraries have dropped."""

from __future__ import annotations

from dataclasses import fields

from sft_lab.core.option_files import shipped
from sft_lab.run.launch_config import Slurm

_MIRRORS = "tracking=wandb, tensorboard, trackio, local or [wandb,tensorboard]"
_SHARE = "trainer.warmup_steps (below 1: a fraction of all steps)"
_LENGTH = "trainer.max_length={value} filter.length.max_tokens={value} split.max_eval_tokens={value}"
_BATCH = "trainer.per_device_train_batch_size"
_EPOCHS = "trainer.num_train_epochs"
_ANSWERS = "trainer.loss_on=answer or all"
_NEVER_CUT = "trainer.max_length; longer rows are dropped, never truncated"
_PUSH = "the command sft-lab push RUN_DIR OWNER/NAME"
_FOUR_BITS = "trainer=qlora"
_RESUME = "the command sft-lab exec RUN_DIR"
_SEVERAL = "launch=processes launch.num_processes"

# The last part of a key, as typed by itself or below any group.
OUR_NAMES = {
    "lr": "trainer.learning_rate",
    "epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "max_epochs": _EPOCHS,
    "batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "grad_accum": "trainer.gradient_accumulation_steps",
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "sequence_len": _LENGTH,
    "seq_len": _LENGTH,
    "cutoff_len": _LENGTH,
    "model_max_length": _LENGTH,
    "warmup_ratio": _SHARE,
    "evaluation_strategy": "trainer.eval_steps",
    "eval_strategy": "trainer.eval_steps",
    "evals_per_epoch": "trainer.eval_steps",
    "save_strategy": "trainer.save_steps",
    "early_stopping_steps": "trainer.early_stopping_patience",
    "resume_from_checkpoint": _RESUME,
    "ckpt_path": _RESUME,
    "lr_scheduler": "trainer.lr_scheduler_type",
    "optimizer": "trainer.optim",
    "gradient_checkpointing": "trainer.activation_checkpointing",
    "bf16": "trainer.precision=bf16",
    "fp16": "trainer.precision=fp16",
    "sample_packing": "trainer.packing",
    "neat_packing": "trainer.packing",
    "completion_only_loss": _ANSWERS,
    "assistant_only_loss": _ANSWERS,
    "train_on_inputs": _ANSWERS,
    "train_on_prompt": _ANSWERS,
    "lora_r": "trainer.peft.r",
    "lora_rank": "trainer.peft.r",
    "lora_target": "trainer.peft.target_modules",
    "lora_target_modules": "trainer.peft.target_modules",
    "lora_target_linear": "trainer.peft.target_modules=[all-linear]",
    "load_in_4bit": _FOUR_BITS,
    "quantization_bit": _FOUR_BITS,
    "use_peft": "trainer=lora",
    "adapter": "trainer=lora, qlora or full",
    "peft_use_dora": "trainer=dora",
    "finetuning_type": "trainer=lora, full or qlora",
    "base_model": "model=owner/name or model=./folder",
    "model_name_or_path": "model=owner/name or model=./folder",
    "model_id": "model=owner/name or model=./folder",
    "revision_of_model": "model.revision",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "attn_impl": "model.attn_implementation",
    "flash_attn": "model.attn_implementation=flash_attention_2",
    "flash_attention": "model.attn_implementation=flash_attention_2",
    "trust_remote_code": "SFT_LAB_TRUST_REMOTE_CODE=<the model's name>, for that model only",
    "dataset_name": "dataset=owner/name",
    "datasets": "dataset=file.jsonl, dataset=owner/name, or dataset=mixture for several",
    "train_file": "dataset=file.jsonl",
    "max_samples": "dataset.limit",
    "val_set_size": "split.eval_share",
    "val_size": "split.eval_share",
    "test_size": "split.eval_share",
    "test_datasets": "split=file split.path=FILE",
    "eval_dataset": "split=file split.path=FILE",
    "dataset_test_split": "split=source",
    "dataset_exact_deduplication": "dedup=exact",
    "interleave_probs": "dataset=mixture, with dataset.sources.NAME.share",
    "formatting": "dataset.format",
    "field_messages": "dataset.columns",
    "roles_to_train": "dataset.train_on",
    "mask_history": "dataset.train_on=last",
    "excess_length_strategy": _NEVER_CUT,
    "truncation_mode": _NEVER_CUT,
    "chat_template": "template=auto (the model's own) or template=file template.path=FILE",
    "chat_template_path": "template=file template.path={value}",
    "output_dir": "hydra.run.dir, and hydra.sweep.dir for a sweep",
    "report_to": _MIRRORS,
    "logger": _MIRRORS,
    "wandb": _MIRRORS,
    "wandb_project": "tracking.project",
    "wandb_name": "tracking.name",
    "run_name": "tracking.name",
    "deepspeed": "launch=processes launch.config_file=deepspeed_zero3",
    "fsdp": "launch=processes launch.config_file=fsdp",
    "accelerate_config": "launch=processes launch.config_file=FILE",
    "hub_model_id": _PUSH,
    "push_to_hub": _PUSH,
    "num_gpus": _SEVERAL,
    "devices": _SEVERAL,
    "n_jobs": "launch=processes launch.at_once",
    "tags": "tracking.tags, with tracking=wandb",
    "api_key": "tracking=wandb after `wandb login`, since a config must hold no secrets",
    "hf_token": "model=owner/name after `hf auth login`, since a config must hold no secrets",
}

_PRECISIONS = {"true": "trainer.precision={name}", "false": "trainer.precision=fp32", "auto": "trainer.precision=auto"}
_ONLY_ANSWERS = {"true": "trainer.loss_on=answer", "false": "trainer.loss_on=all"}
_ALL_TOKENS = {"true": "trainer.loss_on=all", "false": "trainer.loss_on=answer"}
_ADAPTERS = {name: f"trainer={name}" for name in ("lora", "qlora", "full")}
_QUANTIZED = {
    "true": _FOUR_BITS,
    "4": _FOUR_BITS,
    "false": "trainer=lora",
    "8": "trainer=qlora, in 4 bits; 8 are not supported",
}
_KERNELS = {
    "true": "model.attn_implementation=flash_attention_2",
    "fa2": "model.attn_implementation=flash_attention_2",
    "sdpa": "model.attn_implementation=sdpa",
    "false": "model.attn_implementation=sdpa",
    "disabled": "model.attn_implementation=eager",
    "auto": "model.attn_implementation=null",
}
_TRACKERS = {name: f"tracking={name}" for name in ("wandb", "tensorboard", "trackio")} | {"none": "tracking=local"}

# Translations that depend on the value, in lower case; a value that is not listed gets the name in OUR_NAMES.
BY_VALUE = {
    "chat_template": {"tokenizer_default": "template=auto"},
    "bf16": {value: answer.format(name="bf16") for value, answer in _PRECISIONS.items()},
    "fp16": {value: answer.format(name="fp16") for value, answer in _PRECISIONS.items()},
    "completion_only_loss": _ONLY_ANSWERS,
    "assistant_only_loss": _ONLY_ANSWERS,
    "train_on_inputs": _ALL_TOKENS,
    "train_on_prompt": _ALL_TOKENS,
    "adapter": {**_ADAPTERS, "none": "trainer=full"},
    "finetuning_type": _ADAPTERS,
    "use_peft": {"true": "trainer=lora", "false": "trainer=full"},
    "load_in_4bit": _QUANTIZED,
    "quantization_bit": _QUANTIZED,
    "flash_attn": _KERNELS,
    "flash_attention": _KERNELS,
    "mask_history": {"true": "dataset.train_on=last", "false": "dataset.train_on=all"},
    "dataset_exact_deduplication": {"true": "dedup=exact", "false": "dedup=none"},
    "gradient_checkpointing": {value: f"trainer.activation_checkpointing={value}" for value in ("true", "false")},
    "sample_packing": {value: f"trainer.packing={value}" for value in ("true", "false")},
    "neat_packing": {value: f"trainer.packing={value}" for value in ("true", "false")},
    "report_to": _TRACKERS,
    "logger": _TRACKERS,
}

# How Hydra's own plugin for submitit is chosen, and the options here that do the same.
SUBMITIT = {"submitit_slurm": ["launch=slurm"], "submitit_local": ["launch=slurm", "launch.cluster=local"]}

# Below launch: options of sbatch and of Hydra's plugin for submitit.
_SLURM_NAMES = {
    "time": "launch.timeout_min=..., in minutes",
    "gres": "launch.gpus_per_node=..., or launch.additional_parameters={gpus_per_node: 'a100:2'} for a kind of GPU",
    "gpus": "launch.gpus_per_node=...",
    "gpus_per_task": "launch.gpus_per_node=...",
    "tasks_per_node": "launch.num_processes=..., across all machines",
    "ntasks_per_node": "launch.num_processes=..., across all machines",
    "nodes": "launch.num_machines=...",
    "mem": "launch.mem_gb=...",
    "exclude": "launch.additional_parameters={exclude: ...}",
    "name": "launch.additional_parameters={job_name: ...}",
    "signal_delay_s": "launch.additional_parameters={signal: USR2@...}, in seconds",
    "comment": "launch.additional_parameters={comment: ...}",
}


def submitit_in_file(choice: str) -> str:
    """Return the message for a file that chooses Hydra's plugin for submitit."""
    settings = " (cluster: local and others)" if choice == "submitit_local" else ""
    return (
        f"hydra/launcher={choice}: cannot be chosen in a file; write `- override /launch: slurm` in its defaults, and "
        f"the settings{settings} under `launch:`"
    )


def our_name(key: str, value: object = "") -> str | None:
    """Return the key or option that does what a key of another trainer does, or None.

    Args:
        key: of the other trainer, by itself or below any group.
        value: that it was set to, if known.
    """
    parent, _, leaf = key.rpartition(".")
    text = "none" if value is None else "" if isinstance(value, dict | list) else str(value)
    if parent == "launch" and leaf.startswith("slurm_"):  # as submitit calls Slurm's own
        leaf = leaf.removeprefix("slurm_")
        if leaf in {field.name for field in fields(Slurm)}:
            return f"launch=slurm launch.{leaf}"
    answer = _SLURM_NAMES.get(leaf) if parent == "launch" else None
    answer = answer or BY_VALUE.get(leaf, {}).get(text.lower()) or OUR_NAMES.get(leaf)
    if leaf == "chat_template" and text.endswith(".jinja"):
        answer = OUR_NAMES["chat_template_path"]
    elif leaf == "chat_template" and text in _templates():
        answer = f"template={text}"
    return answer.replace("={value}", f"={text or '...'}") if answer else None


def _templates() -> set[str]:
    """Return the template options that need no file."""
    return {file.stem for file in (shipped("conf") / "template").glob("*.yaml")} - {"file"}
