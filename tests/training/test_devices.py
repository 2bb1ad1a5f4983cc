"""Arithmetic, data types and devices on GPUs; where only a choice is tested, torch is made to report one."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl
from transformers.integrations import deepspeed

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, FolderError, JobError, ModelError
from sft_lab.core.run_dir import RunDir
from sft_lab.dedup import embed_batches
from sft_lab.dedup.embed import Embedder
from sft_lab.run import resource_errors
from sft_lab.run.config import Run
from sft_lab.run.evaluator import Evaluator
from sft_lab.tools.finished_run import open_run
from sft_lab.training import model_io, weights
from sft_lab.training.callbacks import Watch
from sft_lab.training.config import Full, Lora, Peft, Precision, Quantization, resolve_precision
from sft_lab.training.memory import footprint_of
from sft_lab.training.models import Pretrained
from sft_lab.training.rehearsal import refuse_misfit
from sft_lab.training.sft_config import build_sft_config
from sft_lab.training.train import build_trainer, train
from sft_lab.training.trl_trainer import MeasuredTrainer
from sft_lab.training.weights import FROZEN, Holding, device_kwargs


@pytest.fixture(params=["A100", "T4"])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU with bf16, and one that only emulates it."""
    has_bf16 = request.param == "A100"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )
    return request.param


def checkpoint(folder: Path, dtype: str) -> Pretrained:
    """Return a model of which only the config is on disk."""
    transformers.LlamaConfig(dtype=dtype).save_pretrained(folder)
    return Pretrained(name_or_path=str(folder))


def dtype_of(model: Pretrained, options: Full) -> str:
    return str(model.arithmetic(StageContext(), options.holding)["dtype"])


def test_auto_is_what_the_card_computes_in(card: str) -> None:
    assert resolve_precision(Precision.auto) == ("bf16" if card == "A100" else "fp16")
    assert resolve_precision(Precision.bf16) == "bf16"  # emulated, if the user wants it


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_that_are_trained_are_float32(card: str, tmp_path: Path, dtype: str) -> None:
    model = checkpoint(tmp_path, dtype)
    assert dtype_of(model, Full()) == "float32"
    frozen = dtype if card == "A100" else "float16"
    assert dtype_of(model, Lora()) == dtype_of(model, Lora(quantization=Quantization.nf4)) == frozen
    assert dtype_of(model, Lora(precision=Precision.fp16)) == "float16"
    model.dtype = "bfloat16"
    assert dtype_of(model, Full()) == dtype_of(model, Lora()) == "bfloat16"


def test_a_processor_computes_in_float32(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, "bfloat16")
    assert dtype_of(model, Full()) == dtype_of(model, Lora()) == "float32"


def test_base_scores_are_stored_by_the_resolved_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor measured in float32 does not serve a run whose weights are in bfloat16 on a GPU."""
    transformers.LlamaConfig(dtype="bfloat16").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    run = compose(["model=local", f"model.name_or_path={tmp_path}", "dedup=exact", "trainer=lora"])
    context = StageContext(load_tokenizer=lambda: compose(["model=tiny_random"]).model.tokenizer(StageContext()))

    def key() -> str:
        return Evaluator(run, context, lambda: None).base_key()

    on_processor = key()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    keys = [on_processor]
    for has_bf16 in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, yes=has_bf16: yes)
        keys.append(key())
    assert len(set(keys)) == 3
    run.model.dtype = "float32"
    on_gpu = key()
    monkeypatch.undo()
    assert on_gpu == key() == on_processor


def test_four_bits_compute_in_what_the_card_has(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda _: True)
    compute = torch.bfloat16 if card == "A100" else torch.float16
    for precision, expected in ((Precision.auto, compute), (Precision.fp16, torch.float16)):
        holding = Lora(quantization=Quantization.nf4, precision=precision).holding
        config = weights.four_bit_kwargs(holding)["quantization_config"]
        assert config.bnb_4bit_compute_dtype == expected


def test_weights_are_loaded_onto_the_gpu(card: str, tmp_path: Path) -> None:
    """By its number: under a name like cuda, Transformers' trainer would take the model for one on several devices."""
    assert device_kwargs() == {"device_map": {"": 0}}
    assert checkpoint(tmp_path, "float32")._kwargs(StageContext(), FROZEN)["device_map"] == {"": 0}


def test_fp16_scales_the_loss_and_trains_float32(
    run: Run, context: StageContext, rows: datasets.Dataset, tmp_path: Path
) -> None:
    """TRL holds the adapter of 4-bit weights in bfloat16, which the scaler refuses."""
    options = Lora(max_steps=1, precision=Precision.fp16)
    args = build_sft_config(options, tmp_path, 1, watched=False)
    assert (args.fp16, args.bf16) == (True, False)
    model = run.model.load(context, 3)
    model.is_loaded_in_4bit = True  # as bitsandbytes marks it; the weights are plain
    watch = Watch(None, lambda _: None)
    trainer = build_trainer(model, context.tokenizer, rows, options, args, watch, "sdpa", [])
    types = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert types == {torch.float32}


def test_fp16_is_refused_where_it_cannot_be(
    card: str, run: Run, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (problem,) = Full(precision=Precision.fp16).missing()
    assert problem.startswith("trainer.precision=fp16: needs a GPU")
    assert Full(precision=Precision.bf16).missing() == []
    model = compose(["model=tiny_random", "model.dtype=float16", "dedup=exact"]).model
    with pytest.raises(ConfigError, match=r"model\.dtype=float16: trained weights must be float32"):
        refuse_misfit(model, Full(precision=Precision.fp16), context)
    refuse_misfit(model, Lora(precision=Precision.fp16), context)


class _ShardedConfig:
    """What DeepSpeed's stage 3 leaves registered."""

    def is_zero3(self) -> bool:
        return True


def test_a_model_is_loaded_whole_after_deepspeed(run: Run, context: StageContext) -> None:
    """With the config still registered each process would load a share, and the first alone would wait forever."""
    config = _ShardedConfig()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        model = run.model.load(context, 3)
        assert all(parameter.numel() for parameter in model.parameters())
        assert not deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


@pytest.mark.slow
def test_what_trl_sets_for_checkpointing_is_what_transformers_reads(
    monkeypatch: pytest.MonkeyPatch, run: Run, context: StageContext, rows: datasets.Dataset, tmp_path: Path
) -> None:
    """TRL asks for reentrant checkpointing under DeepSpeed's stage 3, in the field's old name."""
    seen: list[Any] = []
    enable = transformers.PreTrainedModel.activation_checkpointing_enable

    def keep(model: Any, activation_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        seen.append(activation_checkpointing_kwargs)
        enable(model, activation_checkpointing_kwargs, **kwargs)

    monkeypatch.setattr(transformers.PreTrainedModel, "activation_checkpointing_enable", keep)
    init = trl.SFTTrainer.__init__

    def init_as_with_deepspeed(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.args.gradient_checkpointing_kwargs = {"use_reentrant": True}  # as line 895 of its trainer does

    monkeypatch.setattr(MeasuredTrainer, "__init__", init_as_with_deepspeed)
    options = Lora(max_steps=1, activation_checkpointing=True)
    model = run.model.load(context, 3)
    train(model, context.tokenizer, rows, options, folder=tmp_path, seed=3, watch=Watch(None, lambda _: None))
    assert seen == [{"use_reentrant": True}]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "run"
    tiny = ["model=tiny_random", "trainer=full", "trainer.max_steps=1", "dedup=exact", "decontaminate.method=exact",
            "evaluation.prompts=[]", "evaluation.outputs=0", "evaluation.general=null", "split.test_share=0.1",
            "tracking=local", "dataset.limit=60", "threads=1"]  # fmt: skip
    compose(tiny).execute(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("use", ["generate", "test"])
def test_weights_that_were_all_trained_are_held_once(full_run: Path, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model is gone when they are loaded."""
    from sft_lab.tools.generate import GenerationOptions, answer_prompt

    models: list[weakref.ref] = []
    load_state = transformers.PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    from_config = transformers.AutoModelForCausalLM.from_config

    def track(model: Any) -> Any:
        if next(model.parameters()).device.type != "meta":
            models.append(weakref.ref(model))
        return model

    alive: list[int] = []

    def load(kind: Any, *args: Any, **kwargs: Any) -> Any:
        alive.append(sum(model() is not None for model in models))
        return track(load_state(kind, *args, **kwargs))

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(load))
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_config", lambda *args, **kwargs: track(from_config(*args, **kwargs))
    )
    if use == "test":
        compose_saved = open_run(full_run).run
        assert compose_saved.score_test(open_run(full_run).folder)["test/loss"] > 0
        assert alive == [0]
    else:
        options = GenerationOptions(max_new_tokens=2)
        alone = answer_prompt(full_run, "Hi", options).tuned
        assert len(models) == 1
        assert answer_prompt(full_run, "Hi", options, base=True).tuned == alone
        assert alive == [0, 0]


def test_holding_names_what_the_trainer_does() -> None:
    assert Full(precision=Precision.fp32).holding == Holding(trained=True)
    assert Lora(precision=Precision.fp32).holding == FROZEN


def test_an_attention_of_the_hub_needs_the_word_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does one that Transformers would fetch since its package is missing."""
    transformers.LlamaConfig(dtype="float32").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    kernel = "kernels-community/flash-attn2"
    model = Pretrained(name_or_path=str(tmp_path), attn_implementation=kernel)
    (problem,) = model.check()
    assert problem.startswith(f"model.attn_implementation={kernel}: is code from the Hub")
    with pytest.raises(ModelError, match="SFT_LAB_TRUST_KERNEL"):
        model.load_weights(StageContext(), 1, FROZEN)
    monkeypatch.setenv(weights.TRUST_KERNEL, "kernels-community/other")
    assert model.check()
    monkeypatch.setenv(weights.TRUST_KERNEL, kernel)
    assert model.check() == []
    assert model._kwargs(StageContext(), FROZEN)["allow_all_kernels"]

    monkeypatch.delenv(weights.TRUST_KERNEL)
    model.attn_implementation = None
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attn_implementation": kernel}))
    with pytest.raises(ModelError, match="SFT_LAB_TRUST_KERNEL"):  # a stranger's model names it
        model.load_weights(StageContext(), 1, FROZEN)
    with pytest.raises(FolderError, match="SFT_LAB_TRUST_KERNEL"):
        model.load_saved(tmp_path, StageContext(), FROZEN)

    installed: set[str] = set()
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: name in installed)
    model.attn_implementation = "flash_attention_2"
    assert model.check() == []  # Transformers refuses it
    installed.add("kernels")
    assert model.check()
    installed.add("flash_attn")
    assert model.check() == []


def test_packing_takes_flash_attention_where_it_is_installed(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: set[str] = set()
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: name in installed)
    assert weights.packing_attention(None, "bf16") is None
    installed.add("flash_attn")
    assert weights.packing_attention(None, "bf16") == ("flash_attention_2" if card == "A100" else None)
    assert weights.packing_attention(None, "fp32") is None
    assert weights.packing_attention("sdpa", "bf16") is None  # the user's own choice
    installed -= {"flash_attn"}
    monkeypatch.setenv(weights.TRUST_KERNEL, "kernels-community/flash-attn2")
    assert weights.packing_attention(None, "bf16") is None
    installed.add("kernels")
    kernel = weights.packing_attention(None, "bf16")
    assert kernel == ("kernels-community/flash-attn2" if card == "A100" else None)


@pytest.mark.slow
@pytest.mark.parametrize("options", [Full(max_steps=2, eval_steps=1), Lora(max_steps=2, eval_steps=1)])
def test_another_attention_trains_and_the_models_own_measures(
    options: Full, run: Run, context: StageContext, rows: datasets.Dataset, tmp_path: Path
) -> None:
    options.packing, options.max_length = True, 256
    model, seen = run.model.load(context, 3), []
    model.register_forward_pre_hook(lambda *_: seen.append((model.training, model.config._attn_implementation)))

    def measure(model: Any, step: int, shared: bool) -> dict[str, float]:
        seen.append(("measured", model.config._attn_implementation))
        return {"eval/loss": 1.0}

    watch = Watch(measure, lambda _: None)
    train(model, context.tokenizer, rows, options, folder=tmp_path, seed=3, watch=watch, attention="eager")
    assert set(seen) - {(False, "eager")} == {(True, "eager"), ("measured", "sdpa")}  # False: the head is tried first
    assert model.config._attn_implementation == "sdpa"


def test_a_tiny_model_is_quantized_by_way_of_a_folder(
    card: str, run: Run, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading alone quantizes. bitsandbytes is not installed: what it would be told is tested."""
    find_spec = weights.importlib.util.find_spec
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: name == "bitsandbytes" or find_spec(name))
    load, seen = transformers.AutoModelForCausalLM.from_pretrained, {}

    def load_plain(folder: str, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return load(folder, dtype="float32", trust_remote_code=False)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load_plain)
    model = run.model.load_weights(context, 3, Holding(four_bit=True, precision="bf16"))
    assert seen["quantization_config"].load_in_4bit
    assert seen["device_map"] == {"": 0}
    plain = run.model.load_weights(context, 3, FROZEN)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def mistral(dtype: str) -> transformers.PreTrainedModel:
    """Mistral-7B without weights: 7.24 billion parameters, of which the LM head has 131 million."""
    with torch.device("meta"):
        config = transformers.MistralConfig(num_key_value_heads=8)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def test_the_memory_of_four_bits_leaves_the_head_whole(card: str) -> None:
    """7.24 billion numbers: embeddings and head, 131 million each, in two bytes; 6.98 billion in 4.127 bits."""
    qlora = Lora(quantization=Quantization.nf4, optim="paged_adamw_8bit")
    footprint = footprint_of(mistral("bfloat16"), qlora)
    adapter = footprint.trained
    expected = 2 * 2 * 131_072_000 + 6_979_321_856 * 4.127 / 8 + 4 * adapter
    assert footprint.weights == pytest.approx(expected, rel=1e-3)
    assert footprint.optimizer == 2 * adapter


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(card: str) -> None:
    options = Lora(per_device_train_batch_size=1, max_length=1024)
    footprint = footprint_of(mistral("bfloat16"), options)
    options.per_device_train_batch_size = 4
    assert footprint_of(mistral("bfloat16"), options).activations == 4 * (footprint.activations or 0) > 1e9
    options.activation_checkpointing = True
    assert (footprint_of(mistral("bfloat16"), options).activations or 0) < (footprint.activations or 0)
    full = footprint_of(mistral("float32"), Full())
    assert full.weights + full.gradients + (full.optimizer or 0) == 16 * full.parameters


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"},
                                    {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 4}}])  # fmt: skip
def test_any_field_of_an_adapter_that_is_loaded_again(
    fields: dict[str, Any], run: Run, context: StageContext, rows: datasets.Dataset, tmp_path: Path
) -> None:
    """Trained, saved, and loaded onto the base model it gives the same logits."""
    options = Lora(max_steps=2, learning_rate=1e-2, peft=Peft(r=2, config=fields), precision=Precision.fp32)
    refuse_misfit(run.model, options, context)
    watch = Watch(None, lambda _: None)
    model = run.model.load(context, 3)
    trained = train(model, context.tokenizer, rows, options, folder=tmp_path / "work", seed=3, watch=watch).model
    config = trained.peft_config["default"]
    assert {name: getattr(config, name) for name in fields} == fields
    trained.save_pretrained(tmp_path / "adapter")
    loaded = model_io.load(tmp_path / "adapter", lambda: run.model.load(context, 3), lambda _: None)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        logits = [tuned.eval()(input_ids=ids).logits for tuned in (trained, loaded)]
    assert torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 3}, r"config=\['r'\]: must be among"),
        ({"megatron_core": "evil"}, r"config=\['megatron_core'\]: must be among"),
        ({"init_lora_weights": "eva"}, r"config\.init_lora_weights=eva: must be true, false, gaussian"),
    ],
)
def test_fields_of_an_adapter_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Peft(config=fields)


def test_peft_refuses_before_any_data(run: Run, context: StageContext) -> None:
    for fields, message in (({"layer_replication": [[0, 9]]}, "trainer.peft"), ({"bias": "frob"}, "trainer.peft")):
        with pytest.raises(ConfigError, match=message):
            refuse_misfit(run.model, Lora(peft=Peft(config=fields)), context)


def test_a_key_that_was_added_leaves_old_jobs_alone(tiny: list[str]) -> None:
    """Absent from the saved config at its default, and part of the job beyond it."""
    plain = compose(tiny)
    assert "config" not in plain.saved()["trainer"]["peft"]
    assert compose([*tiny, "+trainer.peft.config.bias=none"]).hash != plain.hash


@pytest.mark.parametrize(
    "error",
    ["CUDA out of memory. Tried to allocate 2.00 GiB", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x",
     "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"],
)  # fmt: skip
def test_what_a_gpu_without_memory_says(error: str, tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(JobError, match="out of memory"), resource_errors.explained(compose(tiny), RunDir(tmp_path)):
        raise RuntimeError(error)


def test_texts_are_embedded_in_larger_batches_on_a_gpu() -> None:
    """What keeps two cores busy leaves a GPU idle."""

    class Encoder:
        device = torch.device("cuda")

        def __getitem__(self, _: int) -> None:
            return None

        def parameters(self) -> list[torch.Tensor]:
            return []

        def encode(self, texts: list[str], **kwargs: Any) -> np.ndarray:
            sizes.append(len(texts))
            return np.ones((len(texts), 2))

    sizes: list[int] = []
    embedder = Embedder(name_or_path="a/b", batch_tokens=100)
    for device in ("cuda", "cpu"):
        Encoder.device = torch.device(device)
        embed_batches.encode_texts(Encoder(), ["a"] * 80, [10] * 80, embedder, "fp32", lambda _: None)
    assert sizes == [80, *[10] * 8]
