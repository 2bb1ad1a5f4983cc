"""The arguments of each command, and its help."""

from __future__ import annotations

import argparse
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from sft_lab.cli.model_arguments import add_to_model_commands
from sft_lab.core.characters import meant_option
from sft_lab.core.errors import UserError
from sft_lab.core.redaction import printable, redact

# For each command: its line in the list of commands, the first line of its own help, and examples.
ABOUT: dict[str, tuple[str, str, str]] = {
    "train": (
        "start a run or a sweep; the default: `sft-lab x=y` is `sft-lab train x=y`",
        "Start one run, or with -m one job for every combination of values.",
        """\
  sft-lab                                        the defaults: bundled model and conversations
  sft-lab dataset=my.jsonl                       your own conversations
  sft-lab -m dedup.threshold=0.8,0.95 trainer.learning_rate=1e-5,1e-4
  sft-lab +experiment=quickstart                 a file of experiments/
  sft-lab --cfg job dedup=exact                  show the composed config, run nothing
""",
    ),
    "prepare": (
        "run only the data stages: report, figures, dataset/",
        "Load, split, filter, decontaminate, deduplicate and apply the template, without training.",
        """\
  sft-lab prepare dataset=my.jsonl                     report, and dataset/ to train on
  sft-lab prepare -m dedup.threshold=0.8,0.9,0.95      the same at several thresholds
""",
    ),
    "plan": (
        "show what would run and what is already stored; writes nothing",
        "Show jobs, folders, stored data stages, rows, steps and time before running anything.",
        """\
  sft-lab plan                                        the defaults: rows, tokens, steps
  sft-lab plan dataset=my_conversations.jsonl         a file: its format, and whether it can be read
  sft-lab plan -m dedup.threshold=0.8,0.95 seed=1,2   a sweep: finished jobs, shared work
  sft-lab plan --probe                                train six steps to estimate all times
  sft-lab plan -m seed=1,2 launch=slurm               the batch script too, as it would be submitted
""",
    ),
    "search": (
        "search for the best values of a few keys with Optuna",
        "Let Optuna propose values, trial by trial. The same command again resumes the search.",
        """\
  sft-lab search --over 'trainer.learning_rate=tag(log, interval(1e-5,1e-3))' --trials 20
  sft-lab search --over 'dedup.threshold=interval(0.7,0.99)' 'trainer.peft.r=8,16' --confirm 3
  sft-lab search hparams_search=mine    hparams_search/mine.yaml, as in lightning-hydra-template
""",
    ),
    "exec": (
        "run the saved config of a job folder, as every launcher does",
        "Run the config.yaml of a job folder and write the results into that folder.",
        """\
  sft-lab exec multirun/sweep-1a2b3c4d/seed_1-0123456789ab   resume a job of a sweep
  sft-lab exec outputs/2026-11-21/10-30-00                   a folder with a config.yaml
""",
    ),
    "runs": (
        "list run folders, one line each: state, verdict, losses",
        "List the run folders below DIR with their state, verdict and losses.",
        """\
  sft-lab runs                    one line per run folder
  sft-lab runs multirun/sweep-1a2b3c4d
  sft-lab runs multirun/sweep-1a2b3c4d --delete
""",
    ),
    "compare": (
        "compare jobs: table, compare.html, compare.json",
        "Compare the jobs of a sweep, or any runs. Needs no network.",
        """\
  sft-lab compare multirun/sweep-1a2b3c4d        table; compare.html and compare.json in the folder
  sft-lab compare outputs/*/* --out comparison   any runs, wherever they are
  sft-lab compare multirun/sweep-1a2b3c4d --rank-by outputs/ended_share
""",
    ),
    "replay": (
        "run a saved config again and report every difference",
        "Report how the environment differs, run, and report how the result differs.",
        """\
  sft-lab replay outputs/2026-11-22/10-30-00          in a new folder; reports every difference
  sft-lab replay outputs/2026-11-22/10-30-00 seed=7   with one key changed
""",
    ),
    "promote": (
        "save a run's config as ./experiments/NAME.yaml",
        "Save what differs from the defaults as an experiment, and verify that it gives the same config.",
        """\
  sft-lab promote multirun/sweep-1a2b3c4d/seed_1-0123456789ab best   writes experiments/best.yaml
  sft-lab promote outputs/2026-11-22/10-30-00 best --force           replaces that file
""",
    ),
    "generate": (
        "try the model of a run, optionally next to its base model",
        "Print how a finished run's model answers a prompt. Decoding is greedy unless you set a temperature.",
        """\
  sft-lab generate outputs/2026-11-22/11-00-00 "What is the capital of Norway?" --base
  sft-lab generate outputs/2026-11-22/11-00-00 - --temperature 0.7 --top-p 0.9 < prompt.txt
  sft-lab generate outputs/2026-11-22/11-00-00 --messages talk.json   a conversation with tools
""",
    ),
    "evaluate": (
        "benchmark a run's model and its base model (lm-evaluation-harness)",
        "Score both models on benchmark tasks; the numbers go into summary, report, W&B and compare.",
        """\
  sft-lab evaluate outputs/2026-11-22/11-00-00 --tasks hellaswag,arc_easy
  sft-lab evaluate outputs/2026-11-22/11-00-00 --tasks my_task.yaml     a task of your own
  sft-lab evaluate outputs/2026-11-22/11-00-00 --limit 100 --apply-chat-template
""",
    ),
    "merge": (
        "merge an adapter into the weights of its base model",
        "Write a run's model so that Transformers can load it without PEFT.",
        """\
  sft-lab merge outputs/2026-11-22/11-00-00                  into merged/ in the run folder
  sft-lab merge outputs/2026-11-22/11-00-00 --out my-model
""",
    ),
    "export": (
        "write a run's model for llama.cpp, Ollama or vLLM",
        "Write a run's model, with chat template and stop tokens, and print the commands that serve it.",
        """\
  sft-lab export outputs/2026-11-22/11-00-00 --to gguf      one file for llama.cpp
  sft-lab export outputs/2026-11-22/11-00-00 --to ollama    the same, and a Modelfile
  sft-lab export outputs/2026-11-22/11-00-00 --to vllm      a merged folder
""",
    ),
    "push": (
        "publish a run's model or prepared data on the Hugging Face Hub",
        "Publish on the Hub: private unless --public. Needs HF_TOKEN or a login.",
        """\
  sft-lab push outputs/2026-11-22/10-30-00 me/my-data --what dataset   what `sft-lab prepare` wrote
  sft-lab push outputs/2026-11-22/11-00-00 me/my-model                 a run's adapter or model
  sft-lab push outputs/2026-11-22/11-00-00 me/my-model --merged        what `sft-lab merge` wrote
""",
    ),
    "doctor": (
        "show what this machine has and lacks, or what changed since a run",
        "Check versions, devices, store, logins and known conflicts, or show what changed since a run.",
        """\
  sft-lab doctor                                one line per check: ok, note or problem
  sft-lab doctor outputs/2026-11-22/10-30-00    what changed since this run
  sft-lab doctor --train                        ten steps of each trainer on each device
  sft-lab doctor --train --model smollm2_135m   the same with another model option
""",
    ),
    "store": (
        "list stored stage results, or free their space",
        "All runs share stored stage results. List them, or remove those that are no longer used.",
        """\
  sft-lab store list                             stage, key, size and last use of each result
  sft-lab store prune --older-than 7             remove results that no run has used for a week
  sft-lab store prune --older-than 0 --stage embed
""",
    ),
}


# Options of hydra.main, and what does the same here.
_HYDRA_OPTIONS = {
    "--config-path": "--config-dir DIR, an additional folder of options",
    "-cp": "--config-dir DIR, an additional folder of options",
    "-r": "no option, a single run is the default",
    "--run": "no option, a single run is the default",
    "--resolve": "--cfg job, which is already resolved",
}
# With which other tools take a file of settings.
_FILE_OPTIONS = ("--config", "--config-file", "--config_file")


def parse(command_line: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command line; options may be before or after the overrides.

    Returns:
        The options, and the overrides.
    """
    for text in command_line:
        if hint := meant_option(text):
            refuse(f"{text}: {hint}")
    _refuse_settings_file(command_line)
    arguments, rest = _parser().parse_known_args(command_line)
    if unknown := [text for text in rest if text.startswith("-")]:
        from sft_lab.config.other_names import our_name  # the package takes Hydra along, which --help does without

        option, _, value = unknown[0].partition("=")
        following = command_line[command_line.index(unknown[0]) + 1 :]
        typed = value or next((text for text in following[:1] if not text.startswith("-") and "=" not in text), "")
        equivalent = _HYDRA_OPTIONS.get(option) or our_name(option.lstrip("-"), typed)
        hint = f"use {equivalent}" if equivalent else "sft-lab --help lists the options"
        if option.startswith("--") and not equivalent:
            hint += f"; settings have no dashes: {option[2:]}={value or 'VALUE'}"
        refuse(f"unknown option {unknown[0]}; {hint}")
    overrides = [*getattr(arguments, "overrides", []), *rest]
    for before, text in pairwise(["", *overrides]):
        if text in ABOUT and not before.endswith(","):  # which the shell may have split
            refuse(f"{text}: is a command, which goes first: sft-lab {text} key=value ...")
    return arguments, overrides


def _refuse_settings_file(command_line: list[str]) -> None:
    """Refuse an option with which other tools take a YAML file; argparse would call ``--config`` ambiguous."""
    from sft_lab.core.option_files import how_to_run, is_yaml

    for text, following in pairwise([*command_line, ""]):
        option, _, value = text.partition("=")
        file = value or following
        if option in _FILE_OPTIONS or (option in ("-c", "--cfg") and is_yaml(file)):
            refuse(f"{option}: takes no file; {how_to_run(file if is_yaml(file) else 'NAME.yaml')}")


def options_of(command: str) -> list[str]:
    """Return the long options of a command, for a shell's completion."""
    text = argparse.ArgumentParser.format_help(_parser().commands[command])
    return sorted({*re.findall(r"(?<![\w-])--[a-z][\w-]*", text)})


def refuse(message: str) -> None:
    """Print the usage and the problem, and exit with 2."""
    _parser().error(message)


def refuse_rest(command: str, rest: list[str]) -> None:
    """Refuse words behind a command that takes no overrides."""
    if rest:
        raise UserError(f"{command}: unknown arguments {' '.join(rest)}; sft-lab {command} --help lists the valid ones")


def _parser() -> _Parser:
    parser = _Parser(
        prog="sft-lab",
        description="A lab bench for supervised fine-tuning: from conversations to an evaluated, documented model.",
        epilog=f"examples:\n{ABOUT['train'][2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.lists_options = True
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions of sft_lab and its libraries")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    parser.commands = commands = {
        name: subparsers.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, (summary, description, examples) in ABOUT.items()
    }
    for name in ("train", "prepare", "plan", "search"):
        _add_overrides(commands[name], sweeps=name != "search")
    _add_to_search(commands["search"])
    for name in (
        "train",
        "prepare",
        "plan",
        "search",
        "exec",
        "replay",
        "generate",
        "evaluate",
        "merge",
        "export",
        "push",
    ):
        rows = " and three rows as the model sees them" if name == "prepare" else ""
        commands[name].add_argument(
            "-v", "--verbose", action="store_true", help=f"also show the libraries' output{rows}"
        )

    commands["plan"].add_argument(
        "--probe", action="store_true", help="train a few steps in a temporary folder to estimate the time of the jobs"
    )

    train = commands["train"]
    train.add_argument(
        "-c",
        "--cfg",
        choices=["job", "hydra", "all"],
        help="show the composed config, Hydra's config or both; run nothing",
    )
    train.add_argument("-p", "--package", metavar="KEY", help="with --cfg: show only this part")
    train.add_argument(
        "-sc",
        "--shell-completion",
        metavar="install=SHELL",
        help="print a completion script for bash, zsh or fish",
    )
    train.add_argument("-i", "--info", choices=["searchpath"], help="show the folders that options are read from")

    execute = commands["exec"]
    execute.add_argument("folder", type=Path, metavar="JOB_DIR")
    work_help = "run: everything; prepare: only the data stages and their report; data: only the data stages"
    execute.add_argument("--work", choices=["run", "prepare", "data"], default="run", help=work_help)

    commands["runs"].add_argument(
        "folder", nargs="?", type=Path, metavar="DIR", help="default: outputs/ and multirun/ in the working folder"
    )
    commands["runs"].add_argument("--delete", action="store_true", help="ask, then delete them, except those in use")

    compare = commands["compare"]
    compare.add_argument("folders", nargs="+", type=Path, metavar="SWEEP_DIR|RUN_DIR")
    compare.add_argument("--out", type=Path, metavar="DIR", help="folder for compare.html and compare.json")
    compare.add_argument(
        "--rank-by", metavar="KEY", help="sort by a number in summary.json, such as metrics.words.mean, highest first"
    )
    compare.add_argument("--lowest-first", action="store_true", help="with --rank-by: sort lowest first")
    compare.add_argument("--test", action="store_true", help="score the best job on its test rows (split.test_share)")

    replay = commands["replay"]
    replay.add_argument("source", type=Path, metavar="RUN_DIR|CONFIG")
    replay.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the saved config to change")
    replay.add_argument("--out", type=Path, metavar="DIR", help="the new run folder; default: outputs/<date>/<time>")

    promote = commands["promote"]
    promote.add_argument("folder", type=Path, metavar="RUN_DIR")
    promote.add_argument("name", metavar="NAME")
    promote.add_argument("--force", action="store_true", help="replace an existing experiment of this name")

    add_to_model_commands(commands)

    doctor = commands["doctor"]
    doctor.add_argument("folder", nargs="?", type=Path, metavar="RUN_DIR", help="show what changed since this run")
    doctor.add_argument("--train", action="store_true", help="try ten steps of each trainer on each device")
    doctor.add_argument(
        "--model", default="tiny_random", metavar="OPTION", help="with --train: the model option; default: tiny_random"
    )

    store = commands["store"]
    store.add_argument("action", choices=["list", "prune"])
    store.add_argument(
        "--path", type=Path, metavar="DIR", help="the store; default: $SFT_LAB_STORE or the user's cache"
    )
    store.add_argument(
        "--older-than",
        type=float,
        default=30,
        metavar="DAYS",
        help="prune: results unused for this many days; default: 30",
    )
    store.add_argument("--stage", metavar="NAME", help="prune: only this stage")
    return parser


def _add_to_search(search: _Parser) -> None:
    search.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)  # habit; it changes nothing
    search.add_argument(
        "--over", nargs="+", action="append", default=[], metavar="key=values",
        help="search axes: tag(log, interval(1e-5,1e-3)), int(interval(4,64)), range(1,5), choice(a,b)",
    )  # fmt: skip
    search.add_argument(
        "--trials", type=int, metavar="N", help="total number of jobs, including existing ones; default: 20"
    )
    search.add_argument("--sampler", choices=["tpe", "random", "grid", "cmaes"], help="Optuna's sampler; default: tpe")
    search.add_argument(
        "--pruner", choices=["none", "halving"], help="halving: stop the worse half at 25%% and 50%%; default: none"
    )
    search.add_argument("--at-once", type=int, metavar="N", help="trials proposed at once; default: depends on launch=")
    search.add_argument(
        "--confirm", type=int, default=0, metavar="N", help="at the end, train the best three with N seeds each"
    )


def _add_overrides(parser: _Parser, *, sweeps: bool) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides in Hydra's grammar")
    if sweeps:
        parser.add_argument(
            "-m", "--multirun", action="store_true", help="run every combination of comma-separated values"
        )
    parser.add_argument("-cd", "--config-dir", metavar="DIR", help="an additional folder of options")
    parser.add_argument("-cn", "--config-name", metavar="NAME", help="use conf/NAME.yaml instead of config.yaml")
    parser.lists_options = True


class _Parser(argparse.ArgumentParser):
    """Lists the options by group in its help, and reads the option files only then."""

    lists_options = False
    commands: dict[str, _Parser]

    def format_help(self) -> str:
        from sft_lab.core.option_files import listing

        return super().format_help() + (listing() if self.lists_options else "")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line, in a message without secrets and control characters."""
        super().error(printable(redact(message)))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from sft_lab.tracking.manifest import versions

        sys.stdout.write("".join(f"{name} {version}\n" for name, version in versions().items()))
        parser.exit()
