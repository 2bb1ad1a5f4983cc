"""Wrong values, and wrong words of the command line: nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wrong_input import Wrong


def config(what: str, *words: str, **more: Any) -> Wrong:
    return Wrong("config", what, ["plan", *words], **more)


def override(what: str, *words: str, **more: Any) -> Wrong:
    return Wrong("overrides", what, ["plan", *words], **more)


def refused(what: str, *words: str, **more: Any) -> Wrong:
    """Refused as a word, before anything is composed."""
    return Wrong("overrides", what, list(words), quick=True, **more)


def searched(what: str, *words: str, **more: Any) -> Wrong:
    return Wrong("overrides", f"a search {what}", ["search", *words], **more)


def written(name: str, content: str | bytes):
    """Give what writes a file into the working folder."""

    def make(here: Path) -> None:
        file = here / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def experiment(what: str, content: str | bytes, **more: Any) -> Wrong:
    return config(
        f"an experiment file {what}", "experiment=mine", make=written("experiments/mine.yaml", content), **more
    )


CASES = [
    config("an unknown key close to a valid one", "dedup.treshold=0.9"),
    config("an unknown key unlike any valid one", "dedup.frobnicate=1"),
    config("a key of another option", "dedup=exact", "dedup.threshold=0.9"),
    config("a key from other trainers", "trainer.max_seq_length=512"),
    config("a key that libraries have dropped", "trainer.warmup_ratio=0.1"),
    config("a key below a value", "seed.x=1"),
    config("a word for a number", "trainer.learning_rate=fast"),
    config("a fraction for a whole number", "seed=1.5"),
    config("a list for a number", "trainer.max_length=[1,2]"),
    config("one value for a list", "trainer.peft.target_modules=q_proj"),
    config("one value for a mapping", "dataset.columns=text"),
    config("a value for a group of keys", "trainer.peft=16"),
    config("null for a number", "trainer.learning_rate=null"),
    config("zero", "trainer.learning_rate=0"),
    config("a negative number", "trainer.per_device_train_batch_size=-4"),
    config("a number above its limit", "dedup.threshold=7"),
    config("not a number", "dedup.threshold=nan"),
    config("infinity", "trainer.logging_steps=inf"),
    config("10**400 as a float", "trainer.learning_rate=1e400"),
    config("10**400 as an integer", "trainer.max_steps=1" + "0" * 400),
    config("an integer beyond 64 bits", "trainer.max_length=1" + "0" * 30),
    config("too many epochs", "trainer.num_train_epochs=1e300"),
    config("endless answers", "evaluation.max_new_tokens=1e20"),
    config("answers longer than any model can write", "evaluation.max_new_tokens=1000000"),
    config("more threads than the machine can use", "threads=100000"),
    config("a warm-up of one and a half steps", "trainer.warmup_steps=1.5"),
    config("a W&B project with a slash", "tracking=wandb", "tracking.project=me/mine"),
    config("an empty W&B tag", "tracking=wandb", "tracking.tags=['']"),
    config("tracking=local combined with another", "tracking=[wandb,local]"),
    config("a W&B group that is too long", "tracking=wandb", f"tracking.group={'g' * 129}"),
    config("an adapter field that cannot be loaded again", "+trainer.peft.config.eva_config={}"),
    config("LoRA+ without an adapter", "trainer=full", "trainer.loraplus_lr_ratio=16"),
    config("LoRA+ with an optimizer that has its own groups", "trainer.loraplus_lr_ratio=16", "trainer.optim=lomo"),
    config("an optimizer whose state is not saved", "trainer.optim=galore_adamw_layerwise"),
    Wrong("config", "activation offloading without a GPU",
          ["prepare", "+trainer.sft_config.activation_offloading=true"]),
    config("a value that is not one of the choices", "dedup.keep=last"),
    config("an unknown dtype", "model.dtype=int3"),
    Wrong("config", "fp16 without a GPU", ["prepare", "trainer.precision=fp16"]),
    config("an attention kernel from the Hub", "model.attn_implementation=kernels-community/flash-attn2"),
    config("a field that TRL does not have", "++trainer.sft_config.weight_decy=0.1"),
    config("a TRL field that sft_lab sets", "+trainer.sft_config.learning_rate=1"),
    config("an option that does not exist", "dedup=semantik"),
    config("an empty name", "tracking=wandb", "tracking.project="),
    config("an empty path", "template=file", "template.path="),
    config("a required value missing", "dataset=file"),
    config("not a Hub name", "dataset=hub", "dataset.name='a b/c'"),
    config("columns that match no row format", "dataset.columns={question: q}"),
    config("two keys that contradict each other", "filter.length.max_tokens=4096"),
    config("a minimum above its maximum", "filter.length.max_tokens=10", "filter.length.min_tokens=20"),
    config("a row minimum above the maximum", "split.max_eval_rows=2"),
    config("shares that add up to more than 1", "split.eval_share=0.6", "split.test_share=0.6"),
    config("checkpoints at other steps than evaluations", "trainer.load_best_model_at_end=true", "trainer.eval_steps=3",
           "trainer.save_steps=4"),
    config("a reference to itself", "seed='${seed}'"),
    config("circular references", "seed='${threads}'", "threads='${seed}'"),
    config("a dangling reference", "seed='${nowhere.at.all}'"),
    config("a dangling reference in a list", "tracking.tags=[a,'${nowhere}']"),
    config("several mistakes at once", "dedup.treshold=1", "trainer.lr=1"),
    experiment("that is not YAML", "a: [1\nb: 2\n"),
    experiment("that is a list", "- 1\n"),
    experiment("in latin-1", "seed: 1 # é".encode("latin-1")),
    experiment("that is binary", b"\x00\x01\x02\xff"),
    experiment("with a Python tag", "seed: !!python/object/apply:os.system ['true']\n"),
    experiment("with a bare on", "dedup:\n  on: answer\n"),
    experiment("with a duplicate key", "seed: 1\nseed: 2\n"),
    experiment("with an unknown key", "trainr:\n  lr: 1\n"),
    config("an experiment file in conf/ with an unknown key", "experiment=mine",
           make=written("conf/experiment/mine.yaml", "# @package _global_\ntags: [a]\n")),
    experiment("with 3,000 nested lists", "a: " + "[" * 3000 + "]" * 3000),
    config("an experiment that does not exist", "experiment=../../etc/hosts"),
    config("an experiment that is a folder", "experiment=mine",
           make=lambda here: (here / "experiments/mine.yaml").mkdir(parents=True)),
    config("the user's own option file with an unknown key", "dedup=mine",
           make=written("conf/dedup/mine.yaml", "defaults:\n  - /schema/dedup/exact@_here_\n  - _self_\nfrob: 1\n")),
    refused("no value", "seed"),
    refused("no key", "plan", "=1"),
    refused("an empty word", "plan", ""),
    refused("an unclosed bracket", "plan", "dataset.columns={prompt: q"),
    refused("an unclosed quote", "plan", "tracking.project='mine"),
    refused("a space without quotes", "plan", "tracking.project=a b=c"),
    refused("a number of 5,000 digits", "plan", "seed=1" + "0" * 5000),
    refused("a right-to-left mark in a key", "plan", "\u202eseed=1"),
    refused("a left-to-right mark in a key", "plan", "\u200eseed=1"),
    refused("an Arabic comma in a mapping", "plan", "dataset.columns={prompt: q، answer: a}"),
    override("an Arabic comma between numbers", "-m", "trainer.learning_rate=5e-5،2e-4"),
    override("an Arabic comma between options", "filter=[answered،length]"),
    override("an Arabic decimal separator", "dedup.threshold=0٫9"),
    override("a dash instead of a minus sign", "trainer.learning_rate=1e–5"),
    refused("a function that is not in Hydra's grammar", "plan", "trainer.learning_rate=loguniform(1e-5,1e-3)"),
    refused("a function with an argument missing", "plan", "seed=interval(1)"),
    refused("a computation", "plan", "trainer.learning_rate=${eval:2 * (3}"),
    refused("a command after a key", "seed=1", "plan"),
    override("library logging", "hydra/job_logging=colorlog"),
    refused("library output", "plan", "hydra.verbose=true"),
    override("a sweeper that is not installed", "-m", "hydra/sweeper=nevergrad", "seed=1,2"),
    override("the saved config of a run as a primary config", "--config-dir", "colleague", "-cn", "config",
             make=written("colleague/config.yaml", "format: 1\nseed: 1\n")),
    override("an unknown group unlike any valid one", "debug=default"),
    override("a model's short name", "model=gpt2"),
    override("an sbatch option", "launch=slurm", "launch.gres=gpu:1"),
    refused("an sbatch option under submitit's name", "plan", "-m", "hydra/launcher=submitit_slurm",
            "hydra.launcher.tasks_per_node=2", "seed=1,2"),
    override("a secret", "tracking.api_key=xxx"),
    refused("a Cyrillic letter in a key", "plan", "s\u0435ed=1"),
    refused("a Hydra setting that is not used", "plan", "hydra.job.chdir=true"),
    refused("a subdir with a dangling reference", "plan", "-m", "seed=1,2", "hydra.sweep.subdir=${nowhere}"),
    refused("a group removed", "plan", "~dedup"),
    refused("true instead of an option's name", "plan", "dedup=true"),
    refused("two options where only one is possible", "plan", "dedup=[exact,semantic]"),
    refused("null instead of an option's name", "plan", "dedup=null"),
    refused("none combined with another option", "plan", "filter=[none,length]"),
    refused("the same filter twice", "plan", "filter=[length,length]"),
    refused("~ for the home folder after a key", "plan", "dataset=file", "dataset.path=~/x.jsonl"),
    refused("a space after the equals sign", "plan", "trainer.learning_rate=", "1e-4"),
    refused("a YAML file of settings", "train", "my.yml"),
    refused("an option for a YAML file of settings", "train", "--config", "my.yml"),
    refused("an unknown command", "pln"),
    refused("an unknown option of a command", "--frobnicate"),
    refused("an unknown value of an option", "--cfg", "everything"),
    refused("several values with --cfg", "--cfg", "job", "-m", "seed=1,2"),
    refused("--package without --cfg", "-p", "dedup"),
    refused("a primary config that does not exist", "plan", "--config-name", "nowhere"),
    refused("shell completion for an unknown shell", "-sc", "install=nu"),
    refused("a folder of options that does not exist", "--config-dir", "nowhere", "--cfg", "job"),
    override("an unknown group", "dedpu=exact"),
    override("+ on an existing key", "+seed=1"),
    override("+ on an unknown key", "+frob=1"),
    override("++ on an unknown key", "++trainer.frob=1"),
    override("~ on a key", "~seed"),
    override("~ on a key within a group", "~trainer.learning_rate"),
    override("~ on a key that does not exist", "~frob"),
    override("a setting of a filter that is not selected", "filter=[answered]", "filter.length.max_tokens=10"),
    override("several values without -m", "dedup.threshold=0.8,0.9"),
    override("a range without -m", "seed=range(1,4)"),
    override("the same job twice", "-m", "seed=1,1"),
    override("a range without values", "-m", "seed=range(1,1)"),
    override("a range of 100 billion values", "-m", "seed=range(1,100000000000)"),
    override("a grid of a million jobs", "-m", "seed=range(1,1000)", "threads=range(1,1000)"),
    searched("without an axis"),
    searched("over a single value", "--over", "trainer.learning_rate=1e-4"),
    searched("over an interval from high to low", "--over", "trainer.learning_rate=interval(1e-3,1e-5)"),
    searched("over an interval with an unknown tag", "--over", "trainer.learning_rate=tag(lin, interval(1,2))"),
    searched("by factors from 0", "--over", "trainer.learning_rate=tag(log, interval(0,1))"),
    searched("over fractions for an integer", "--over", "trainer.max_steps=interval(2,9)"),
    searched("beyond a key's limits", "--over", "trainer.learning_rate=tag(log, interval(1e-5,1e-3))", "seed=-1,1"),
    searched("over held-out rows", "--over", "split.filter=choice(answered,length)"),
    searched("by grid over an interval", "--sampler", "grid", "--over", "seed=interval(1,9)"),
    searched("with no trials", "--trials", "0", "--over", "seed=1,2"),
    searched("confirmed with one seed", "--confirm", "1", "--over", "trainer.learning_rate=1e-4,1e-3"),
    searched("described by a missing file", "hparams_search=mine"),
    override("a search file in a sweep", "-m", "hparams_search=mine"),
    override("an interval", "-m", "trainer.learning_rate=interval(0,1)"),
    override("a key that some options of a sweep lack", "-m", "dedup=none,minhash", "dedup.threshold=0.8,0.9"),
    override("one wrong value of several", "-m", "dedup.threshold=0.8,7"),
    override("a sweep over held-out rows", "-m", "split.filter=[answered],[]"),
    override("a run folder for a sweep", "-m", "seed=1,2", "hydra.run.dir=x"),
    override("an unknown launcher", "-m", "hydra/launcher=nonesuch", "seed=1,2"),
    override("a record that cannot be set", "+choices.dedup=none"),
]  # fmt: skip
