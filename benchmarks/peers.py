"""The same job beside other trainers: 24 LoRA steps of a tiny Llama on real conversations, on a processor.

    python benchmarks/peers.py rows.jsonl
    python benchmarks/peers.py rows.jsonl --peer llamafactory=/envs/llamafactory --peer swift=/envs/swift --rounds 3

``--peer NAME=FOLDER`` adds a trainer from a virtual environment of its own; TRL's command line runs from this one. All
train the same conversations, those that fit into 1,280 tokens, so that nobody cuts or drops any, with the same adapter,
batch and steps, in float32, offline, each with its own caches in a fresh folder. Measured are, of whole processes:

- cold: seconds until the first training step and to the end, and the most memory of all processes (PSS);
- next: the same with another learning rate and warm caches;
- a mistake: seconds, lines of output and exit code of a wrong key, of text for a number, and of a missing file;
- stale: whether a job trains on what its file held before, if another file now has its name;
- seconds of ``--help``, and packages and megabytes of the environment.

A trainer that cannot do something is told with a dash, one that fails with its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import yaml
from common import machine, memory_of

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.store import Store
from sft_lab.data.sources import File

STEPS, LENGTH, RATE, NEXT_RATE = 24, 1280, 1e-3, 5e-4
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what the model's template puts first
# The model's template with the marks that TRL's command line needs to find the answers.
MARKED_TEMPLATE = (
    "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{%- for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' }}"
    "{%- if turn.role == 'assistant' %}{% generation %}{{ turn.content + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ turn.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What each prints when it begins to train, and of a step. The model has 20 tensors, which are loaded under a bar too.
BEGUN = re.compile(rf"\b[01]/{STEPS}\b|optimizer steps, which is")
LOSS = re.compile(r"""["']?loss["']?: *["']?(\d+\.\d+)""")


@dataclass(frozen=True)
class Job:
    """One job of one trainer.

    Attributes:
        model: folder of the model.
        data: the file, a ``messages`` column.
        folder: of its settings and caches.
        out: of its results.
        rate: learning rate.
        wrong: settings that replace or add to the right ones.
    """

    model: Path
    data: Path
    folder: Path
    out: Path
    rate: float = RATE
    wrong: tuple[tuple[str, Any], ...] = ()

    def file(self, name: str, settings: dict[str, Any]) -> str:
        """Write the settings, wrong ones with them, and return the path."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(settings | dict(self.wrong)), encoding="utf-8")
        return str(path)


@dataclass(frozen=True)
class Peer:
    """A trainer.

    Attributes:
        program: of its environment.
        train: writes a job's settings, and returns the arguments.
        help: the arguments that ask for help.
        steps_key: the setting of its steps, which is then misspelled, or no number.
    """

    program: str
    train: Callable[[Job], list[str]]
    help: tuple[str, ...] = ("--help",)
    steps_key: str = "max_steps"


def ours(job: Job) -> list[str]:
    """No stage beside reading, template and training, and nothing held out, since the others have none."""
    settings = {
        "dataset": "file", "dataset.path": job.data, "model": "hub", "model.name_or_path": job.model, "filter": "none",
        "dedup": "none", "decontaminate.method": "none", "split.eval_share": 0, "trainer": "lora",
        "trainer.max_length": LENGTH, "trainer.max_steps": STEPS, "trainer.per_device_train_batch_size": 2,
        "trainer.gradient_accumulation_steps": 1, "trainer.learning_rate": job.rate, "trainer.precision": "fp32",
        "trainer.peft.r": 16, "trainer.peft.lora_alpha": 32, "trainer.peft.lora_dropout": 0, "trainer.logging_steps": 1,
        "tracking": "local", "hydra.run.dir": job.out,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (settings | dict(job.wrong)).items()]


def trl(job: Job) -> list[str]:
    """Its own mask of the answers needs a template with marks."""
    template = job.folder / "template.jinja"
    template.write_text(MARKED_TEMPLATE, encoding="utf-8")
    settings = _transformers(job) | {
        "dtype": "float32", "attn_implementation": "sdpa", "chat_template_path": str(template),
        "datasets": [{"path": "json", "data_files": str(job.data), "split": "train"}], "assistant_only_loss": True,
        "max_length": LENGTH, "dataset_num_proc": 2, "use_peft": True, "lora_r": 16, "lora_alpha": 32,
        "lora_dropout": 0.0, "lora_target_modules": "all-linear", "gradient_checkpointing": False,
    }  # fmt: skip
    return ["sft", "--config", job.file("trl.yaml", settings)]


def llamafactory(job: Job) -> list[str]:
    """Its data sets are described in a file beside them."""
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    described = {
        "file_name": str(job.data),
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": tags,
    }
    (job.folder / "dataset_info.json").write_text(json.dumps({"rows": described}), encoding="utf-8")
    settings = _transformers(job) | {
        "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "all", "lora_rank": 16,
        "lora_alpha": 32, "lora_dropout": 0.0, "dataset": "rows", "dataset_dir": str(job.folder), "cutoff_len": LENGTH,
        "preprocessing_num_workers": 2, "flash_attn": "sdpa", "disable_gradient_checkpointing": True,
    }  # fmt: skip
    return ["train", job.file("job.yaml", settings)]


def swift(job: Job) -> list[str]:
    """Without ``check_model`` off it looks for its hub for 20 seconds."""
    settings = {
        "model": job.model, "model_type": "llama", "use_hf": "true", "template": "chatml", "system": SYSTEM,
        "dataset": job.data, "dataset_num_proc": 2, "max_length": LENGTH, "torch_dtype": "float32",
        "tuner_type": "lora", "target_modules": "all-linear", "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0,
        "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
        "learning_rate": job.rate, "warmup_ratio": 0, "logging_steps": 1, "eval_strategy": "no", "attn_impl": "sdpa",
        "gradient_checkpointing": "false", "check_model": "false", "report_to": "none", "bf16": "false",
        "fp16": "false", "use_cpu": "true", "dataloader_num_workers": 0, "output_dir": job.out,
    }  # fmt: skip
    return ["sft", *(word for key, value in (settings | dict(job.wrong)).items() for word in (f"--{key}", str(value)))]


def axolotl(job: Job) -> list[str]:
    """Its own kernels for LoRA need a GPU."""
    kernels = {f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o", "embedding")}
    settings = kernels | {
        "base_model": str(job.model), "chat_template": "tokenizer_default", "val_set_size": 0,
        "datasets": [{"path": str(job.data), "ds_type": "json", "type": "chat_template", "train_on_eos": "turn",
                      "field_messages": "messages", "roles_to_train": ["assistant"],
                      "message_property_mappings": {"role": "role", "content": "content"}}],
        "dataset_prepared_path": str(job.folder / "prepared"), "dataset_num_proc": 2, "sequence_len": LENGTH,
        "sample_packing": False, "pad_to_sequence_len": False, "adapter": "lora", "lora_r": 16, "lora_alpha": 32,
        "lora_dropout": 0.0, "lora_target_linear": True, "micro_batch_size": 2, "gradient_accumulation_steps": 1,
        "max_steps": STEPS, "optimizer": "adamw_torch", "lr_scheduler": "cosine", "learning_rate": job.rate,
        "bf16": False, "fp16": False, "tf32": False, "attn_implementation": "sdpa", "gradient_checkpointing": False,
        "logging_steps": 1, "save_strategy": "no", "output_dir": str(job.out), "seed": 42,
    }  # fmt: skip
    return ["train", job.file("axolotl.yaml", settings)]


def oumi(job: Job) -> list[str]:
    """Its settings are in sections, and the misspelt one is in that of training."""
    settings: dict[str, Any] = {
        "model": {
            "model_name": str(job.model), "model_max_length": LENGTH, "torch_dtype_str": "float32",
            "attn_implementation": "sdpa", "device_map": "cpu",
        },
        "data": {"train": {
            "datasets": [{"dataset_name": "text_sft_jsonl", "dataset_path": str(job.data), "transform_num_workers": 2}],
            "collator_name": "text_completions_only_with_padding", "train_target": "ALL_ASSISTANT_TURNS", "pack": False,
        }},
        "training": {
            "trainer_type": "TRL_SFT", "use_peft": True, "output_dir": str(job.out), "max_steps": STEPS,
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": job.rate,
            "lr_scheduler_type": "cosine", "warmup_steps": 0, "optimizer": "adamw_torch", "logging_steps": 1,
            "save_steps": 0, "save_final_model": True, "enable_wandb": False, "enable_tensorboard": False,
            "enable_gradient_checkpointing": False, "dataloader_num_workers": 0, "seed": 42,
        },
        "peft": {
            "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0,
            "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        },
    }  # fmt: skip
    settings["training"] |= dict(job.wrong)
    return ["train", "-c", replace(job, wrong=()).file("oumi.yaml", settings)]


def _transformers(job: Job) -> dict[str, Any]:
    """Settings by the names of Transformers' trainer, which several have."""
    return {
        "model_name_or_path": str(job.model), "output_dir": str(job.out), "max_steps": STEPS,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": job.rate,
        "lr_scheduler_type": "cosine", "logging_steps": 1, "save_strategy": "no", "report_to": "none", "bf16": False,
        "fp16": False, "use_cpu": True, "seed": 42,
    }  # fmt: skip


PEERS = {
    "sft-lab": Peer("sft-lab", ours, steps_key="trainer.max_steps"),
    "trl": Peer("trl", trl, ("sft", "--help")),
    "llamafactory": Peer("llamafactory-cli", llamafactory, ("train", "--help")),
    "swift": Peer("swift", swift, ("sft", "--help")),
    "axolotl": Peer("axolotl", axolotl, ("train", "--help")),
    "oumi": Peer("oumi", oumi, ("train", "--help")),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a command.

    Attributes:
        seconds: to the end.
        begun: seconds until training began; None where it did not.
        memory: the most of all processes together, in GiB.
        code: exit code.
        lines: of output.
    """

    seconds: float
    begun: float | None
    memory: float
    code: int
    lines: list[str]

    @property
    def losses(self) -> list[str]:
        """The losses of the first steps, as printed."""
        return LOSS.findall("\n".join(self.lines))[:2]


def execute(environment: Path, program: str, arguments: list[str], folder: Path) -> Outcome:
    """Run a command of an environment with caches in ``folder``."""
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK"), "1")
    variables = {
        **os.environ, **offline, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "HF_HOME": str(folder / "hf"),
        "SFT_LAB_STORE": str(folder / "store"), "MODELSCOPE_CACHE": str(folder / "ms"), "OMP_NUM_THREADS": "2",
        "DISABLE_VERSION_CHECK": "1", "AXOLOTL_DO_NOT_TRACK": "1", "VIRTUAL_ENV": str(environment),
    }  # fmt: skip
    variables.pop("PYTHONPATH", None)
    command = [str(environment / "bin" / program), *arguments]
    began = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=variables, cwd=folder)
    output: list[str] = []
    begun: list[float] = []

    def read() -> None:
        while chunk := os.read(process.stdout.fileno(), 65536):
            output.append(chunk.decode(errors="replace"))
            if not begun and BEGUN.search("".join(output[-2:])):
                begun.append(time.perf_counter() - began)

    reader = threading.Thread(target=read)
    reader.start()
    most = 0
    while process.poll() is None:
        most = max(most, memory_of(process))
        with suppress(psutil.TimeoutExpired):
            process.wait(0.5)
    seconds = time.perf_counter() - began
    reader.join(5)
    lines = re.split(r"[\r\n]+", "".join(output).strip())
    return Outcome(seconds, begun[0] if begun else None, most / 2**30, process.returncode, lines)


def write_job(source: str, folder: Path, most: int | None) -> tuple[Path, Path, int]:
    """Write a tiny model and the conversations that fit; return both paths and how many there are."""
    import torch
    import transformers

    from sft_lab.data.tokens_and_labels import encode

    run = compose(["tracking=local"])
    context = StageContext(Store(folder / "store"), lambda: run.model.tokenizer(context))
    tokenizer = context.tokenizer
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=2048, **size, **ends
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    rows = File(path=str(Path(source).absolute()))(context).rows
    encoded = encode(rows, run.template, context)
    view = rows.take(encoded.selection(rows).kept & (encoded.lengths(rows) <= LENGTH))
    count = 0
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for (messages,) in (row for batch in view.batches("messages") for row in zip(*batch, strict=True)):
            roles = [message["role"] for message in messages]
            if roles == ["user", "assistant"] * (len(roles) // 2) and count != most:  # what all of them read
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                count += 1
    return folder / "model", folder / "rows.jsonl", count


def main() -> None:
    """Let all take turns at each measurement, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="conversations")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave one out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, help="at most")
    parser.add_argument("--out", help="a JSON file for all figures")
    options = parser.parse_args()
    here = Path(sys.prefix)
    environments = {"sft-lab": here, "trl": here}
    environments |= {name: Path(path).absolute() for name, path in (given.split("=", 1) for given in options.peer)}
    environments = {name: path for name, path in environments.items() if name not in options.without}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model, data, count = write_job(options.file, root, options.rows)
        print(machine("transformers", "trl"), f"{count:,} conversations", sep="\n", flush=True)
        figures = {name: {"environment": size_of(path)} for name, path in environments.items()}
        for number in range(options.rounds):
            for name, environment in environments.items():
                figures[name].setdefault("rounds", []).append(
                    jobs(PEERS[name], environment, model, data, root / f"{name}{number}")
                )
        for name, environment in environments.items():
            figures[name] |= mistakes(PEERS[name], environment, model, data, root / f"{name}_wrong")
        if options.out:
            Path(options.out).write_text(json.dumps(figures, indent=1), encoding="utf-8")
        print_table(figures)


def jobs(peer: Peer, environment: Path, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """A job from cold, the next with another learning rate, and one whose file has changed."""
    folder.mkdir()
    own = folder / "rows.jsonl"
    own.write_bytes(data.read_bytes())
    outcomes = {}
    for kind, rate in (("cold", RATE), ("next", NEXT_RATE), ("changed", NEXT_RATE)):
        if kind == "changed":
            changed = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]}
            own.write_text(f"{json.dumps(changed)}\n" * 200, encoding="utf-8")
        job = Job(model, own, folder, folder / kind, rate)
        outcomes[kind] = execute(environment, peer.program, peer.train(job), folder)
        if (metrics := job.out / "metrics.jsonl").exists():  # ours, which prints no loss of a step
            outcomes[kind].lines.append(metrics.read_text(encoding="utf-8"))
        say(peer, kind, outcomes[kind])
    cold, following, changed = outcomes.values()
    return {
        "cold": [cold.begun, cold.seconds, cold.memory, cold.code], "next": [following.begun, following.seconds],
        # With twenty copies of one short answer the first losses are others, unless the old rows are trained.
        "stale": changed.losses == following.losses if changed.losses else None, "changed": changed.code,
    }  # fmt: skip


def mistakes(peer: Peer, environment: Path, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """What is said of three mistakes, and how long ``--help`` takes."""
    folder.mkdir()
    wrong = {
        "wrong key": Job(
            model, data, folder, folder / "out", wrong=((peer.steps_key.replace("max_steps", "max_stepps"), STEPS),)
        ),
        "text for a number": Job(model, data, folder, folder / "out", wrong=((peer.steps_key, "twenty"),)),
        "missing file": Job(model, data.with_name("rowss.jsonl"), folder, folder / "out"),
    }
    said = {name: execute(environment, peer.program, peer.train(job), folder) for name, job in wrong.items()}
    for name, outcome in said.items():
        say(peer, name, outcome)
    help_ = execute(environment, peer.program, list(peer.help), folder)
    return {name: [o.seconds, len(o.lines), o.code, o.lines[-1][:160]] for name, o in said.items()} | {
        "help": [help_.seconds, len(help_.lines), help_.code]
    }


def say(peer: Peer, kind: str, outcome: Outcome) -> None:
    """Print what came of one command."""
    begun = "" if outcome.begun is None else f", training after {outcome.begun:.1f}"
    last = f": {outcome.lines[-1][:120]}" if outcome.code else ""
    print(
        f"{peer.program:>16} {kind}: {outcome.seconds:.1f} s{begun}, {outcome.memory:.2f} GiB, exit {outcome.code}, "
        f"{len(outcome.lines)} lines, losses {' '.join(outcome.losses)}{last}",
        flush=True,
    )


def size_of(environment: Path) -> list[int]:
    """Packages of an environment, and its megabytes."""
    packages = list(environment.glob("lib/python*/site-packages/*.dist-info"))
    return [len(packages), sum(file.stat().st_size for file in environment.rglob("*") if file.is_file()) // 2**20]


def print_table(figures: dict[str, dict[str, Any]]) -> None:
    """Print medians as a Markdown table."""

    def middle(name: str, kind: str, part: int) -> str:
        values = [turn[kind][part] for turn in figures[name]["rounds"] if turn[kind][part] is not None]
        return f"{statistics.median(values):.3g}" if values else "-"

    rows: dict[str, Callable[[str], str]] = {
        "cold: seconds until training": lambda name: middle(name, "cold", 0),
        "cold: seconds to the end": lambda name: middle(name, "cold", 1),
        "cold: GiB of all processes": lambda name: middle(name, "cold", 2),
        "next learning rate: seconds until training": lambda name: middle(name, "next", 0),
        "next learning rate: seconds to the end": lambda name: middle(name, "next", 1),
        "trains a changed file's old rows": lambda name: str(figures[name]["rounds"][-1]["stale"]),
        "`--help`: seconds": lambda name: f"{figures[name]['help'][0]:.1f}",
        "packages, MB": lambda name: "{}, {:,}".format(*figures[name]["environment"]),
    }
    for kind in ("wrong key", "text for a number", "missing file"):
        rows[f"{kind}: seconds, lines, exit code"] = lambda name, kind=kind: "{:.1f}, {}, {}".format(
            *figures[name][kind][:3]
        )
    print("", f"| | {' | '.join(figures)} |", f"|---|{'---|' * len(figures)}", sep="\n")
    for what, value in rows.items():
        print(f"| {what} | {' | '.join(map(value, figures))} |")


if __name__ == "__main__":
    main()
