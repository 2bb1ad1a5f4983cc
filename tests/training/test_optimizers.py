"""Optimizers by Transformers' names: what they need, what a checkpoint has of them, and whose weights are measured."""

from __future__ import annotations

import importlib.util
import logging
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from transformers.training_args import OptimizerNames

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.run.config import Run
from sft_lab.training.callbacks import Watch
from sft_lab.training.config import Full, Lora, Precision, Quantization
from sft_lab.training.optimizers import PACKAGES, adam_moments, missing_for_optimizer
from sft_lab.training.rehearsal import refuse_misfit
from sft_lab.training.sft_config import build_sft_config
from sft_lab.training.train import Trained, train
from sft_lab.training.weights import Holding

OTHER_HARDWARE = {"adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision"}
NAMES = sorted({name.value for name in OptimizerNames} - OTHER_HARDWARE)
REFUSED = [name for name in NAMES if "layerwise" in name or name in ("adalomo", "grokadamw")]
TARGETS = {"optim_target_modules": ["q_proj", "v_proj"]}


def arguments(optim: str, folder: Path, **fields: Any) -> transformers.TrainingArguments:
    return build_sft_config(Full(optim=optim, sft_config=TARGETS | fields), folder, 1, watched=False)


def trained(
    run: Run, context: StageContext, rows: datasets.Dataset, options: Full, folder: Path, watch: Watch | None = None
) -> Trained:
    options.precision, options.logging_steps = Precision.fp32, 1
    model = run.model.load(context, 3, options.holding)
    watch = watch or Watch(None, lambda _: None)
    return train(model, context.tokenizer, rows.select(range(24)), options, folder=folder, seed=3, watch=watch)


@pytest.mark.parametrize("optim", sorted(set(NAMES) - set(REFUSED)))
def test_packages_are_those_that_transformers_imports(optim: str, tmp_path: Path, run: Run, context) -> None:
    """What we call missing is what Transformers fails to import, and nothing else."""
    is_missing = any("pip install" in problem for problem in missing_for_optimizer(optim))
    expected = pytest.raises(ImportError) if is_missing else nullcontext()
    with expected:
        transformers.Trainer.get_optimizer_cls_and_kwargs(arguments(optim, tmp_path), run.model.load(context, 3))


def test_a_missing_package_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert missing_for_optimizer("schedule_free_adamw") == [
        "trainer.optim=schedule_free_adamw: needs schedulefree; run: pip install schedulefree"
    ]
    (problem,) = Full(optim="galore_adamw").missing()
    assert problem.endswith("needs galore-torch and bitsandbytes; run: pip install galore-torch bitsandbytes")
    assert missing_for_optimizer("adamw_torch_fused") == missing_for_optimizer("adafactor") == []
    for start in PACKAGES:
        assert any(re.match(start, name) for name in NAMES)


@pytest.mark.parametrize("optim", REFUSED)
def test_an_optimizer_that_no_checkpoint_holds_is_refused(optim: str) -> None:
    (problem,) = Full(optim=optim).check()
    other = optim.removesuffix("_layerwise") if "layerwise" in optim else "adamw_torch_fused"
    assert problem.startswith(f"trainer.optim={optim}: its state is not in checkpoints")
    assert problem.endswith(f"use {other}")


def test_galore_in_8_bits_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (problem,) = missing_for_optimizer("galore_adamw_8bit")
    assert "needs a GPU" in problem
    assert missing_for_optimizer("galore_adamw") == missing_for_optimizer("adamw_8bit") == []


@pytest.mark.parametrize(
    ("optim", "moments"),
    [("adamw_torch_fused", 800), ("schedule_free_adamw", 800), ("paged_adamw_32bit", 800), ("adamw_8bit", 200),
     ("adamw_torch_8bit", 200), ("adamw_torch_4bit", 100), ("galore_adamw", None), ("apollo_adamw", None),
     ("galore_adamw_8bit", None), ("adafactor", None), ("sgd", None)],
)  # fmt: skip
def test_bytes_of_moments(optim: str, moments: int | None) -> None:
    """Of 100 numbers in float32; projected gradients depend on the rank, so their moments are not reckoned."""
    assert adam_moments(optim, 100, 400) == moments


@pytest.mark.skipif(not importlib.util.find_spec("galore_torch"), reason="needs galore-torch")
def test_modules_that_the_model_lacks_are_refused_before_any_data(run: Run, context, tmp_path: Path) -> None:
    for names, message in ((["q_porj"], "No target modules found"), (["q_proj"], None)):
        args = arguments("galore_adamw", tmp_path, optim_target_modules=names)
        if message is None:
            refuse_misfit(run.model, Full(), context, args)
            continue
        with pytest.raises(ConfigError, match=message):
            refuse_misfit(run.model, Full(), context, args)


class Averaging(torch.optim.SGD):
    """Trains beside a mean of all its weights, as schedule-free optimizers do, which the model has in evaluation."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.steps = 0
        self.has_average = False

    def _pairs(self) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        return [(weight, self.state[weight]) for group in self.param_groups for weight in group["params"]]

    def step(self, closure: Any = None) -> None:
        assert not self.has_average, "a step from the average"
        super().step(closure)
        self.steps += 1
        for weight, state in self._pairs():
            mean = state.setdefault("mean", torch.zeros_like(weight))
            mean += (weight.detach() - mean) / self.steps

    def _exchange(self, has_average: bool) -> None:
        if self.steps and has_average != self.has_average:
            for weight, state in self._pairs():
                state["mean"], weight.data = weight.data.clone(), state["mean"].clone()
        self.has_average = has_average

    def eval(self) -> None:
        self._exchange(has_average=True)

    def train(self) -> None:
        self._exchange(has_average=False)


@pytest.fixture
def averaging(monkeypatch: pytest.MonkeyPatch) -> list[Averaging]:
    """Let each training use an ``Averaging``; they are listed."""
    made: list[Averaging] = []

    class Listed(Averaging):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, lr)
            made.append(self)

    def choose(args: Any, _: Any) -> Any:
        return Listed, {"lr": args.learning_rate}

    monkeypatch.setattr(transformers.Trainer, "get_optimizer_cls_and_kwargs", staticmethod(choose))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("load_best", [False, True])
def test_the_average_is_measured_sampled_and_saved(load_best, averaging, run, context, rows, tmp_path) -> None:
    """A model's weights are those that its optimizer would have in the end, wherever they are looked at."""
    seen = []

    def look(model: Any, step: int, _: bool = False) -> dict[str, float]:
        seen.append((step, averaging[-1].has_average))
        return {"eval/loss": 10.0 - step if step < 6 else 9.0}

    watch = Watch(look, lambda _: None, sample=look, samples_every=3)
    options = Full(
        max_steps=7, eval_steps=2, save_steps=2, learning_rate=1e-2, optim="sgd", load_best_model_at_end=load_best
    )
    model = trained(run, context, rows, options, tmp_path, watch).model
    assert [step for step, _ in seen] == [2, 3, 4, 6, 6] + [7] * load_best
    assert all(has_average for _, has_average in seen)
    assert averaging[-1].has_average
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    best = tmp_path / f"checkpoint-{4 if load_best else 7}"
    saved = transformers.AutoModelForCausalLM.from_pretrained(best, trust_remote_code=False).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in weights.items())


@pytest.mark.slow
def test_a_share_of_warm_up_is_steps_for_a_schedule_free_optimizer(
    run, context, rows, tmp_path, caplog, monkeypatch
) -> None:
    """With 0.25 of a step to warm up, its first step would be four times as far as the learning rate says."""
    seen = []

    def choose(args: Any, _: Any) -> Any:
        seen.append(args.warmup_steps)
        return Averaging, {"lr": args.learning_rate}

    monkeypatch.setattr(transformers.Trainer, "get_optimizer_cls_and_kwargs", staticmethod(choose))
    options = partial(Full, max_steps=8, warmup_steps=0.25, optim="schedule_free_sgd")
    with caplog.at_level(logging.WARNING, "sft_lab"):
        trained(run, context, rows, options(lr_scheduler_type="constant"), tmp_path / "constant")
        assert "needs no schedule" not in caplog.text
        trained(run, context, rows, options(), tmp_path / "cosine")
    assert "optim=schedule_free_sgd needs no schedule; set trainer.lr_scheduler_type=constant" in caplog.text
    assert seen == [2, 2]


RESUMED = [
    *[partial(Full, optim=optim) for optim in ("adafactor", "sgd", "adamw_8bit", "ademamix_8bit", "lomo")],
    *[partial(Full, optim=optim) for optim in ("schedule_free_adamw", "schedule_free_radam", "stable_adamw")],
    *[partial(Full, optim=optim, sft_config=TARGETS) for optim in ("galore_adamw", "galore_adafactor", "apollo_adamw")],
    partial(Lora, optim="schedule_free_adamw"),
    partial(Lora, optim="paged_adamw_8bit", quantization=Quantization.nf4),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RESUMED, ids=lambda kind: f"{kind.func.__name__}-{kind.keywords['optim']}")
def test_a_cut_off_training_ends_with_the_weights_of_a_whole_one(kind, run, context, rows, tmp_path) -> None:
    """Stopped after step 5 of 8, measured at 3 and 6, and taken up from the checkpoint of step 4: bit for bit."""
    if problems := kind().missing():
        pytest.skip(problems[0])

    def options() -> Full:
        scheduler = "constant" if "schedule_free" in kind.keywords["optim"] else "cosine"
        return kind(
            max_steps=8, save_steps=4, eval_steps=3, learning_rate=1e-2, warmup_steps=2, lr_scheduler_type=scheduler
        )

    def stop_at_5(event: dict[str, float]) -> None:
        if event["step"] == 5:
            raise KeyboardInterrupt

    def measure(*_: Any) -> dict[str, float]:
        return {"eval/loss": 1.0}

    uninterrupted = trained(run, context, rows, options(), tmp_path / "whole", Watch(measure, lambda _: None))
    with pytest.raises(KeyboardInterrupt):
        trained(run, context, rows, options(), tmp_path / "cut", Watch(measure, stop_at_5))
    resumed = trained(run, context, rows, options(), tmp_path / "cut", Watch(measure, lambda _: None))
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in uninterrupted.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
def test_four_bit_weights_pass_gradients_on_after_a_measurement(run: Run, context: StageContext) -> None:
    """On a processor with AVX512-BF16 bitsandbytes packs them anew in evaluation, and their gradients would be lost."""
    model = run.model.load(context, 3, Holding(four_bit=True))
    ids = torch.arange(5, 40)[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(model.train()(inputs_embeds=embedded, labels=ids).loss, embedded)[0]

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert torch.equal(gradient(), before)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
def test_an_adapter_beside_four_bit_weights_is_float32(run, context, rows, tmp_path) -> None:
    done = trained(run, context, rows, Lora(quantization=Quantization.nf4, max_steps=2), tmp_path)
    assert done.steps == 2
    assert isinstance(done.model.base_model.model, transformers.PreTrainedModel)
    kinds = {weight.dtype for weight in done.model.parameters() if weight.requires_grad}
    assert kinds == {torch.float32}
    assert any(weight.dtype == torch.uint8 for weight in done.model.parameters())
