"""The arguments of each command."""

from __future__ import annotations

import argparse
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from sft_lab.cli.command_help import ABOUT
from sft_lab.cli.model_arguments import add_to_model_commands
from sft_lab.core.characters import meant_option, with_character_hint
from sft_lab.core.errors import UserError
from sft_lab.core.option_files import how_to_run, is_yaml, listing
from sft_lab.core.redaction import printable, redact

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
        text = " ".join(rest)
        problem = f"{command}: unknown arguments {text}; sft-lab {command} --help lists the valid ones"
        raise UserError(with_character_hint(problem, text))


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
        return super().format_help() + (listing() if self.lists_options else "")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line, in a message without secrets and control characters."""
        super().error(printable(redact(message)))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from sft_lab.tracking.manifest import versions

        sys.stdout.write("".join(f"{name} {version}\n" for name, version in versions().items()))
        parser.exit()
