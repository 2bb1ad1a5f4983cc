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
    config("an unknown key, nearly one there is", "dedup.treshold=0.9"),
    config("an unknown key, like none there is", "dedup.frobnicate=1"),
    config("a key that another option has", "dedup=exact", "dedup.threshold=0.9"),
    config("a key that other trainers use", "trainer.max_seq_length=512"),
    config("a key that libraries dropped", "trainer.warmup_ratio=0.1"),
    config("a key below a value", "seed.x=1"),
    config("a word for a number", "trainer.learning_rate=fast"),
    config("a fraction for a whole number", "seed=1.5"),
    config("a list for a number", "trainer.max_length=[1,2]"),
    config("one value for a list", "trainer.peft.target_modules=q_proj"),
    config("one value for a mapping", "dataset.columns=text"),
    config("a value for what has keys", "trainer.peft=16"),
    config("null where there must be a number", "trainer.learning_rate=null"),
    config("zero", "trainer.learning_rate=0"),
    config("a negative number", "trainer.per_device_train_batch_size=-4"),
    config("a number above its limit", "dedup.threshold=7"),
    config("not a number", "dedup.threshold=nan"),
    config("infinity", "trainer.logging_steps=inf"),
    config("10**400, with a point", "trainer.learning_rate=1e400"),
    config("10**400, whole", "trainer.max_steps=1" + "0" * 400),
    config("a whole number that no table holds", "trainer.max_length=1" + "0" * 30),
    config("too many epochs", "trainer.num_train_epochs=1e300"),
    config("answers without an end", "evaluation.max_new_tokens=1e20"),
    config("answers longer than any model's", "evaluation.max_new_tokens=1000000"),
    config("more threads than the machine can run", "threads=100000"),
    config("a warm-up of steps and a half", "trainer.warmup_steps=1.5"),
    config("a W&B project with a slash", "tracking=wandb", "tracking.project=me/mine"),
    config("an empty W&B tag", "tracking=wandb", "tracking.tags=['']"),
    config("no tracking beside another", "tracking=[wandb,local]"),
    config("a W&B group that is too long", "tracking=wandb", f"tracking.group={'g' * 129}"),
    config("a field of an adapter that is not loaded again", "+trainer.peft.config.eva_config={}"),
    config("LoRA+ without an adapter", "trainer=full", "trainer.loraplus_lr_ratio=16"),
    config("LoRA+ with an optimizer that groups the weights", "trainer.loraplus_lr_ratio=16", "trainer.optim=lomo"),
    config("an optimizer that no checkpoint holds", "trainer.optim=galore_adamw_layerwise"),
    config("activation offloading without a GPU", "+trainer.sft_config.activation_offloading=true"),
    config("a value that is no choice", "dedup.keep=last"),
    config("an unknown type of weights", "model.dtype=int3"),
    config("fp16 without a GPU", "trainer.precision=fp16"),
    config("an attention that is code from the Hub", "model.attn_implementation=kernels-community/flash-attn2"),
    config("a field that TRL does not have", "++trainer.sft_config.weight_decy=0.1"),
    config("a key of TRL's that is ours", "+trainer.sft_config.learning_rate=1"),
    config("an option that is not there", "dedup=semantik"),
    config("an empty name", "tracking=wandb", "tracking.project="),
    config("an empty path", "template=file", "template.path="),
    config("no value where one must be given", "dataset=file"),
    config("no name of the Hub", "dataset=hub", "dataset.name='a b/c'"),
    config("columns of no row form", "dataset.columns={question: q}"),
    config("two keys that contradict each other", "filter.length.max_tokens=4096"),
    config("bounds that cross", "filter.length.max_tokens=10", "filter.length.min_tokens=20"),
    config("more rows at least than at most", "split.max_eval_rows=2"),
    config("shares beyond the whole", "split.eval_share=0.6", "split.test_share=0.6"),
    config("saved at other steps than measured", "trainer.load_best_model_at_end=true", "trainer.eval_steps=3",
           "trainer.save_steps=4"),
    config("a reference to itself", "seed='${seed}'"),
    config("references in a circle", "seed='${threads}'", "threads='${seed}'"),
    config("a reference to nothing", "seed='${nowhere.at.all}'"),
    config("several mistakes at once", "dedup.treshold=1", "trainer.lr=1"),
    experiment("that is no YAML", "a: [1\nb: 2\n"),
    experiment("that is a list", "- 1\n"),
    experiment("in latin-1", "seed: 1 # é".encode("latin-1")),
    experiment("that is binary", b"\x00\x01\x02\xff"),
    experiment("with a tag of Python's", "seed: !!python/object/apply:os.system ['true']\n"),
    experiment("with a bare on", "dedup:\n  on: answer\n"),
    experiment("with a key twice", "seed: 1\nseed: 2\n"),
    experiment("with an unknown key", "trainr:\n  lr: 1\n"),
    config("an experiment file in conf/ with an unknown key", "experiment=mine",
           make=written("conf/experiment/mine.yaml", "# @package _global_\ntags: [a]\n")),
    experiment("of 3,000 lists in one another", "a: " + "[" * 3000 + "]" * 3000),
    config("an experiment that is not there", "experiment=../../etc/hosts"),
    config("an experiment that is a folder", "experiment=mine",
           make=lambda here: (here / "experiments/mine.yaml").mkdir(parents=True)),
    config("an option file of one's own with an unknown key", "dedup=mine",
           make=written("conf/dedup/mine.yaml", "defaults:\n  - /schema/dedup/exact@_here_\n  - _self_\nfrob: 1\n")),
    refused("no value", "seed"),
    refused("no key", "plan", "=1"),
    refused("nothing at all", "plan", ""),
    refused("a bracket that is not closed", "plan", "dataset.columns={prompt: q"),
    refused("a quote that is not closed", "plan", "tracking.project='mine"),
    refused("a space and no quotes", "plan", "tracking.project=a b=c"),
    refused("a number of 5,000 digits", "plan", "seed=1" + "0" * 5000),
    refused("a right-to-left mark in a key", "plan", "\u202eseed=1"),
    refused("a left-to-right mark in a key", "plan", "\u200eseed=1"),
    refused("an Arabic comma in a mapping", "plan", "dataset.columns={prompt: q، answer: a}"),
    override("an Arabic comma between numbers", "-m", "trainer.learning_rate=5e-5،2e-4"),
    override("an Arabic comma between options", "filter=[answered،length]"),
    override("an Arabic decimal separator", "dedup.threshold=0٫9"),
    override("a dash for a minus", "trainer.learning_rate=1e–5"),
    refused("a function that the grammar does not have", "plan", "trainer.learning_rate=loguniform(1e-5,1e-3)"),
    refused("a function without one of its arguments", "plan", "seed=interval(1)"),
    refused("a computation", "plan", "trainer.learning_rate=${eval:2 * (3}"),
    refused("a command behind a key", "seed=1", "plan"),
    override("the log of a library", "hydra/job_logging=colorlog"),
    refused("the output of libraries", "plan", "hydra.verbose=true"),
    override("a sweeper that is not installed", "-m", "hydra/sweeper=nevergrad", "seed=1,2"),
    override("the saved config of a run as a primary config", "--config-dir", "colleague", "-cn", "config",
             make=written("colleague/config.yaml", "format: 1\nseed: 1\n")),
    override("an unknown group that is nearly none", "debug=default"),
    override("a model's short name", "model=gpt2"),
    override("an option of sbatch", "launch=slurm", "launch.gres=gpu:1"),
    refused("an option of sbatch, as submitit names it", "plan", "-m", "hydra/launcher=submitit_slurm",
            "hydra.launcher.tasks_per_node=2", "seed=1,2"),
    override("a secret", "tracking.api_key=xxx"),
    refused("a Cyrillic letter in a key", "plan", "s\u0435ed=1"),
    refused("a setting of Hydra's that is not read", "plan", "hydra.job.chdir=true"),
    refused("a subdir that refers to nothing", "plan", "-m", "seed=1,2", "hydra.sweep.subdir=${nowhere}"),
    refused("a group removed", "plan", "~dedup"),
    refused("true for the name of an option", "plan", "dedup=true"),
    refused("two options where one is chosen", "plan", "dedup=[exact,semantic]"),
    refused("null for the name of an option", "plan", "dedup=null"),
    refused("the empty option beside another", "plan", "filter=[none,length]"),
    refused("a filter twice", "plan", "filter=[length,length]"),
    refused("~ for the home folder behind a key", "plan", "dataset=file", "dataset.path=~/x.jsonl"),
    refused("an unknown command", "pln"),
    refused("an unknown option of a command", "--frobnicate"),
    refused("an unknown choice of an option", "--cfg", "everything"),
    refused("several values to show", "--cfg", "job", "-m", "seed=1,2"),
    refused("a part without --cfg", "-p", "dedup"),
    refused("a primary config that is not there", "plan", "--config-name", "nowhere"),
    refused("completion for an unknown shell", "-sc", "install=nu"),
    refused("a folder of options that is not there", "--config-dir", "nowhere", "--cfg", "job"),
    override("an unknown group", "dedpu=exact"),
    override("+ on a key that is there", "+seed=1"),
    override("+ on a key that no schema has", "+frob=1"),
    override("++ on a key that no schema has", "++trainer.frob=1"),
    override("~ on a key", "~seed"),
    override("~ on a key within a group", "~trainer.learning_rate"),
    override("~ on a key that is not there", "~frob"),
    override("a filter that was not chosen", "filter=[answered]", "filter.length.max_tokens=10"),
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
    searched("by factors from 0 on", "--over", "trainer.learning_rate=tag(log, interval(0,1))"),
    searched("over fractions of what is counted", "--over", "trainer.max_steps=interval(2,9)"),
    searched("beyond a key's limit", "--over", "trainer.learning_rate=tag(log, interval(1e-5,1e-3))", "seed=-1,1"),
    searched("over held-out rows", "--over", "split.filter=choice(answered,length)"),
    searched("over a grid without an end of values", "--sampler", "grid", "--over", "seed=interval(1,9)"),
    searched("of no trial", "--trials", "0", "--over", "seed=1,2"),
    searched("confirmed by one seed", "--confirm", "1", "--over", "trainer.learning_rate=1e-4,1e-3"),
    searched("of the kind that a missing file describes", "hparams_search=mine"),
    override("a search for a sweep", "-m", "hparams_search=mine"),
    override("an interval", "-m", "trainer.learning_rate=interval(0,1)"),
    override("a key that not all options of a sweep have", "-m", "dedup=none,minhash", "dedup.threshold=0.8,0.9"),
    override("one wrong value of several", "-m", "dedup.threshold=0.8,7"),
    override("held-out rows swept over", "-m", "split.filter=[answered],[]"),
    override("the folder of a run for a sweep", "-m", "seed=1,2", "hydra.run.dir=x"),
    override("an unknown launcher", "-m", "hydra/launcher=nonesuch", "seed=1,2"),
    override("a record that is not to be set", "+choices.dedup=none"),
]  # fmt: skip
