"""Training gives the same losses as a short script in which TRL does everything."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
import transformers
import trl

from sft_lab.core.context import StageContext
from sft_lab.core.packages import package_path
from sft_lab.evaluation.heldout import score
from sft_lab.run.config import Run
from sft_lab.training.callbacks import Watch
from sft_lab.training.config import Full
from sft_lab.training.train import train

STEPS = 20
OPTIONS = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2}


@pytest.fixture(scope="module")
def prepared(run: Run, context: StageContext):
    return run.prepare(context)


def ours(run: Run, context: StageContext, rows: datasets.Dataset, folder: Path, **more: object) -> list[float]:
    options = Full(**OPTIONS, logging_steps=1, precision=run.trainer.precision.__class__.fp32, **more)
    events: list[dict[str, float]] = []
    model = run.model.load(context, seed=3)
    train(model, context.tokenizer, rows, options, folder=folder, seed=3, watch=Watch(None, events.append))
    return [event["train/loss"] for event in events]


def test_same_losses_as_plain_trl(run: Run, context: StageContext, prepared, tmp_path: Path) -> None:
    """TRL templates, tokenizes and masks by itself; we hand it ready rows. Every step's loss agrees."""
    messages = [{"messages": row} for row in prepared.train.rows.column("messages")]
    config = trl.SFTConfig(
        output_dir=str(tmp_path / "plain"), seed=3, data_seed=3, bf16=False, use_cpu=True, report_to="none",
        logging_steps=1, save_strategy="no", max_length=1280, assistant_only_loss=True, lr_scheduler_type="cosine",
        weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused", gradient_checkpointing=False, disable_tqdm=True,
        **OPTIONS,
    )  # fmt: skip
    plain = trl.SFTTrainer(
        model=run.model.load(context, seed=3),
        args=config,
        train_dataset=datasets.Dataset.from_list(messages),
        processing_class=run.model.load_tokenizer(context),
    )
    plain.train()
    theirs = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    assert len(theirs) == STEPS
    assert ours(run, context, prepared.train.tokens, tmp_path / "ours") == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_a_cut_off_training_goes_on_as_if_nothing_had_been(
    run: Run, context: StageContext, prepared, tmp_path: Path
) -> None:
    """Stopped after step 12, resumed from the checkpoint of step 8: the losses of the whole training, to the digit."""
    rows = prepared.train.tokens
    uninterrupted = ours(run, context, rows, tmp_path / "whole", save_steps=8)
    options = Full(**OPTIONS, logging_steps=1, save_steps=8, precision=run.trainer.precision.__class__.fp32)

    def stop_at_12(event: dict[str, float]) -> None:
        if event["step"] == 12:
            raise KeyboardInterrupt

    model = run.model.load(context, seed=3)
    with pytest.raises(KeyboardInterrupt):
        train(model, context.tokenizer, rows, options, folder=tmp_path / "cut", seed=3, watch=Watch(None, stop_at_12))
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-8"]
    assert ours(run, context, rows, tmp_path / "cut", save_steps=8) == uninterrupted[8:]


@pytest.mark.slow
def test_a_training_cut_off_after_its_last_step_is_not_trained_further(
    run: Run, context: StageContext, prepared, tmp_path: Path
) -> None:
    options = Full(**OPTIONS, logging_steps=1, save_steps=10, precision=run.trainer.precision.__class__.fp32)
    weights = []
    for _ in range(2):  # the second finds the checkpoint of the last step
        events: list[dict[str, float]] = []
        model = run.model.load(context, seed=3)
        watch = Watch(None, events.append)
        trained = train(model, context.tokenizer, prepared.train.tokens, options, folder=tmp_path, seed=3, watch=watch)
        assert trained.steps == STEPS
        weights.append([value.clone() for value in trained.model.state_dict().values()])
    assert events == []
    assert all(torch.equal(first, second) for first, second in zip(*weights, strict=True))


def test_packed_rows_do_not_see_each_other(run: Run, context: StageContext, prepared) -> None:
    """A packed block has the loss of its rows apart, as long as no cache is used; so training cannot leak."""
    rows = prepared.held_out.tokens.select(range(6))
    model = run.model.load(context, seed=5).eval()
    packed = trl.pack_dataset(rows.select_columns(["input_ids", "labels"]), 1280, "bfd")
    assert len(packed) == 1
    collator = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collator(list(packed))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    together = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="sum"
    ).item()
    apart = score(model, rows, prepared.held_out.answer_bytes[:6]).nats.sum()
    assert together == pytest.approx(apart, rel=1e-5)


def test_packed_training_has_the_loss_of_separate_rows(
    run: Run, context: StageContext, prepared, tmp_path: Path
) -> None:
    """One step over the same rows: packed into blocks or padded side by side, the loss is the same."""
    rows = prepared.train.tokens.select(range(8))
    one_step = {"max_steps": 1, "learning_rate": 1e-9}
    apart = Full(**{**OPTIONS, **one_step, "per_device_train_batch_size": 8}, logging_steps=1, sft_config={})
    packed = Full(
        **{**OPTIONS, **one_step, "per_device_train_batch_size": 4}, logging_steps=1, packing=True, max_length=1280
    )
    losses = []
    for name, options in (("apart", apart), ("packed", packed)):
        options.precision = options.precision.__class__.fp32
        events: list[dict[str, float]] = []
        model = run.model.load(context, seed=3)
        train(model, context.tokenizer, rows, options, folder=tmp_path / name, seed=3, watch=Watch(None, events.append))
        losses.append(events[0]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_chat_template_marks_what_trl_calls_assistant_tokens(context: StageContext) -> None:
    """The parity above stands on the shipped template's generation tags: they are where we mask too."""
    template = package_path("package:sft_lab/data/templates/chatml.jinja").read_text()
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
    encoded = context.tokenizer.apply_chat_template(
        talk, chat_template=template, return_assistant_tokens_mask=True, return_dict=True
    )
    answer = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert context.tokenizer.decode(answer) == "Hello there.<|im_end|>"
    assert isinstance(context.tokenizer, transformers.PreTrainedTokenizerBase)
