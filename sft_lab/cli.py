"""The doors: one function for each command. What they say is decided elsewhere."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.errors import JobError, SftLabError, UserError

if TYPE_CHECKING:
    from sft_lab.config import Plan
    from sft_lab.jobs.attempt import Failure
    from sft_lab.jobs.folders import Placed

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code: 0 done, 1 a job failed, 2 the input was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].isalpha() and words[0] not in COMMANDS:
        _parser().error(f"{words[0]}: no such command, and no override (key=value); there are {', '.join(COMMANDS)}")
    if not words or words[0] not in {*COMMANDS, "-h", "--help", "--version"}:
        words = ["train", *words]
    arguments, rest = _parse(words)
    from sft_lab import terminal

    terminal.prepare(verbose=getattr(arguments, "verbose", False))
    try:
        return int(COMMANDS[arguments.command](arguments, rest))
    except UserError as error:
        sys.stderr.write(f"sft-lab: {error}\n")
        return 2
    except SftLabError as error:
        sys.stderr.write(f"sft-lab: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("sft-lab: interrupted; the same command goes on from here\n")
        return 130


def _parse(words: list[str]) -> tuple[Arguments, list[str]]:
    """Options may stand before or behind the overrides."""
    arguments, rest = _parser().parse_known_args(words)
    if unknown := [word for word in rest if word.startswith("-")]:
        _parser().error(f"unknown option {unknown[0]}; sft-lab --help lists what there is")
    return arguments, [*getattr(arguments, "overrides", []), *rest]


def _train(arguments: Arguments, overrides: list[str]) -> int:
    if arguments.cfg or arguments.info:
        gc.disable()  # composing makes many small objects, and looking for cycles in them an eighth of the time
        try:
            return _show(arguments, overrides)
        finally:
            gc.enable()
    if arguments.package:
        raise UserError(f"--package {arguments.package}: shows a part of the config; it belongs to --cfg job")
    from sft_lab import config, terminal
    from sft_lab.folder import RUN
    from sft_lab.jobs import launch

    if config.is_driven(overrides):
        return _driven(arguments, overrides)
    plan, placed, failures = _launch(arguments, overrides, RUN)
    if plan.swept:
        terminal.show_sweep([(one.folder, one.job.axes) for one in placed])
    elif not failures and (summary := launch.summary_of(placed[0].folder)):
        terminal.show_summary(placed[0].folder, summary)
    return _tell(failures)


def _driven(arguments: Arguments, overrides: list[str]) -> int:
    """Hand the sweep to the sweeper or launcher of Hydra's that the command line chooses."""
    from sft_lab import config
    from sft_lab.jobs.launch import objective_of

    if not arguments.multirun:
        raise UserError("hydra/sweeper and hydra/launcher are for sweeps; put -m before the overrides")
    try:
        config.drive(overrides, objective_of, arguments.config_dir)
    except SftLabError:
        raise
    except Exception as error:  # Hydra's plugins raise what they like
        raise JobError(f"{type(error).__name__}: {error}") from error
    return 0


def _prepare(arguments: Arguments, overrides: list[str]) -> int:
    from sft_lab import terminal
    from sft_lab.folder import PREPARE

    plan, placed, failures = _launch(arguments, overrides, PREPARE)
    if plan.swept:
        terminal.show_prepared_sweep([(one.folder, one.job.axes) for one in placed])
    elif not failures:
        terminal.show_prepared(placed[0].folder)
    return _tell(failures)


def _launch(arguments: Arguments, overrides: list[str], work: str) -> tuple[Plan, list[Placed], list[Failure]]:
    from sft_lab import config
    from sft_lab.jobs import folders, launch
    from sft_lab.run import plan_line

    plan = config.compose_jobs(overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
    placed = folders.place(plan, work)
    sys.stderr.write(f"{plan_line(plan.jobs[0].run)}\n")
    where = placed[0].folder.path.parent if plan.swept else placed[0].folder.path
    sys.stderr.write(f"{len(placed)} jobs in {where}\n" if plan.swept else f"run folder {where}\n")
    return plan, placed, launch.launch(placed, work)


def _plan(arguments: Arguments, overrides: list[str]) -> int:
    from sft_lab import config, terminal
    from sft_lab.jobs import plan

    found = config.compose_jobs(overrides, multirun=arguments.multirun, config_dir=arguments.config_dir)
    outlooks = plan.look(found)
    terminal.show_plan(outlooks, plan.shared(outlooks))
    return 0


def _runs(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab.jobs import runs

    _refuse_rest("runs", rest)
    runs.show(runs.listing(Path(arguments.folder) if arguments.folder else None))
    return 0


def _compare(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab import compare

    _refuse_rest("compare", rest)
    found = compare.compare(arguments.folders, arguments.out)
    compare.show(found)
    if arguments.test:
        from sft_lab.jobs.final import score_test, show

        if found.best is None:
            raise UserError("compare --test: no job was found best, so there is none to score on the test rows")
        show(score_test(found.best.folder))
    return 0


def _replay(arguments: Arguments, overrides: list[str]) -> int:
    from sft_lab.jobs import replay

    done = replay.replay(arguments.source, [*arguments.overrides, *overrides], arguments.out)
    replay.show(done)
    return done.exit_code


def _promote(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab.jobs.promote import promote

    _refuse_rest("promote", rest)
    file = promote(Path(arguments.folder), arguments.name, force=arguments.force)
    sys.stdout.write(f"{file}\nrun it: sft-lab +experiment={file.stem}\n")
    return 0


def _refuse_rest(command: str, rest: list[str]) -> None:
    if rest:
        raise UserError(f"{command}: unknown words {' '.join(rest)}; sft-lab {command} --help says what it takes")


def _push(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab import publish
    from sft_lab.folder import RunFolder

    _refuse_rest("push", rest)
    folder = RunFolder(Path(arguments.folder).absolute())
    url = publish.push(folder, arguments.repo, what=arguments.what, public=arguments.public)
    sys.stdout.write(f"{url}\n")
    return 0


def _exec(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab.folder import RunFolder
    from sft_lab.jobs.attempt import execute

    _refuse_rest("exec", rest)
    failure = execute(RunFolder(Path(arguments.folder).absolute()), arguments.work)
    return _tell([failure] if failure else [])


def _tell(failures: list[Any]) -> int:
    for failure in failures:
        sys.stderr.write(f"sft-lab: {failure.folder.path.name}: {failure.message}\n")
    if not failures:
        return 0
    return 2 if all(failure.by_input for failure in failures) else 1


def _show(arguments: Arguments, overrides: list[str]) -> int:
    """``--cfg job`` and ``--info searchpath``, from one composition."""
    from omegaconf import OmegaConf

    from sft_lab import config

    if arguments.info:
        sys.stdout.write(f"{config.environment_note()}\n")
        return 0
    shown: Any = config.compose_config(overrides, config_dir=arguments.config_dir)
    for part in filter(None, (arguments.package or "").split(".")):
        if not OmegaConf.is_dict(shown) or part not in shown:
            there = ", ".join(shown) if OmegaConf.is_dict(shown) else "no parts below a value"
            raise UserError(f"--package {arguments.package}: no such part of the config; there are {there}")
        shown = shown[part]
    sys.stdout.write(OmegaConf.to_yaml(shown) if OmegaConf.is_config(shown) else f"{shown}\n")
    return 0


def _store(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab import terminal
    from sft_lab.store import Store, default_root

    _refuse_rest("store", rest)
    store = Store(Path(arguments.path).expanduser().absolute() if arguments.path else default_root())
    if arguments.action == "list":
        terminal.show_store(store)
    else:
        if not arguments.older_than >= 0:  # NaN too
            raise UserError(f"--older-than {arguments.older_than}: must be 0 or more days")
        removed = store.prune(arguments.older_than * 86400, arguments.stage)
        freed = sum(entry.size for entry in removed) / 1e6
        sys.stdout.write(f"{len(removed)} entries removed, {freed:,.1f} MB freed in {store.root}\n")
    return 0


COMMANDS: dict[str, Callable[[Arguments, list[str]], int]] = {
    "train": _train,
    "prepare": _prepare,
    "plan": _plan,
    "exec": _exec,
    "runs": _runs,
    "compare": _compare,
    "replay": _replay,
    "promote": _promote,
    "push": _push,
    "store": _store,
}

_EXAMPLES = """\
examples:
  sft-lab                                        the main job: bundled model and conversations
  sft-lab dataset=file dataset.path=my.jsonl     your own conversations
  sft-lab -m dedup.threshold=0.8,0.95 trainer.learning_rate=1e-5,1e-4
  sft-lab +experiment=quickstart                 a file of experiments/
  sft-lab --cfg job dedup=exact                  show the composed config, run nothing
"""


_PREPARE_EXAMPLES = """\
examples:
  sft-lab prepare dataset=file dataset.path=my.jsonl            filter, dedup, report, and dataset/ for any trainer
  sft-lab prepare -m dedup.threshold=0.8,0.9,0.95               the same at several thresholds, side by side
"""

_PLAN_EXAMPLES = """\
examples:
  sft-lab plan                                      the main job: rows, tokens, steps
  sft-lab plan -m dedup.threshold=0.8,0.95 seed=1,2   a sweep: which jobs are finished, what they share
"""

_RUNS_EXAMPLES = """\
examples:
  sft-lab runs                    a line for each run folder in outputs/ and multirun/
  sft-lab runs multirun/sweep-1a2b3c4d
"""

_COMPARE_EXAMPLES = """\
examples:
  sft-lab compare multirun/sweep-1a2b3c4d               table, compare.html and compare.json in the sweep's folder
  sft-lab compare outputs/*/* --out comparison          any runs, wherever they lie
"""

_REPLAY_EXAMPLES = """\
examples:
  sft-lab replay outputs/2026-11-22/10-30-00            again in a new folder, and every difference told
  sft-lab replay outputs/2026-11-22/10-30-00 seed=7     with keys of the saved config changed
"""

_PROMOTE_EXAMPLES = """\
examples:
  sft-lab promote multirun/sweep-1a2b3c4d/seed=1-0123456789ab best   writes experiments/best.yaml
  sft-lab promote outputs/2026-11-22/10-30-00 best --force           over an experiment of this name
"""

_PUSH_EXAMPLES = """\
examples:
  sft-lab push outputs/2026-11-22/10-30-00 me/my-data --what dataset   what `sft-lab prepare` left, private
  sft-lab push outputs/2026-11-22/11-00-00 me/my-model                 the adapter or model of a run, private
"""

_EXEC_EXAMPLES = """\
examples:
  sft-lab exec multirun/sweep-1a2b3c4d/seed=1-0123456789ab   go on with a job of a sweep
  sft-lab exec outputs/2026-11-21/10-30-00                   run a folder that only holds a config.yaml, or was cut off
"""

_STORE_EXAMPLES = """\
examples:
  sft-lab store list                             stage, key, size and last use of each result
  sft-lab store prune --older-than 7             remove what no run has used for a week
  sft-lab store prune --older-than 0 --stage embed
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="sft-lab", formatter_class=raw, epilog=_EXAMPLES,
        description="A lab bench for supervised fine-tuning: conversations in, a tuned, judged, documented model out.",
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="versions of sft_lab and what it stands on")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    train = commands.add_parser(
        "train", help="one run or a sweep; the default: `sft-lab x=y` is `sft-lab train x=y`", formatter_class=raw,
        epilog=_EXAMPLES, description="One run, or with -m every combination of the values given.",
    )  # fmt: skip
    _add_overrides(train)
    train.add_argument("--cfg", choices=["job"], help="show the composed config and run nothing")
    train.add_argument("-p", "--package", metavar="KEY", help="with --cfg: show this part only")
    train.add_argument("--info", choices=["searchpath"], help="show where options are looked for")
    parser.lists_options = train.lists_options = True

    prepare = commands.add_parser(
        "prepare", help="the data stages alone: report, figures, dataset/", formatter_class=raw,
        epilog=_PREPARE_EXAMPLES, description="Load, split, filter, decontaminate, dedup, template; no training.",
    )  # fmt: skip
    _add_overrides(prepare)
    prepare.lists_options = True

    plan = commands.add_parser(
        "plan", help="what would run, what of it is stored; writes nothing", formatter_class=raw,
        epilog=_PLAN_EXAMPLES, description="Look ahead: jobs, folders, stored data stages, rows, steps, time.",
    )  # fmt: skip
    _add_overrides(plan)
    plan.lists_options = True

    run_one = commands.add_parser(
        "exec", help="run the saved config of a job folder; what every launcher starts", formatter_class=raw,
        epilog=_EXEC_EXAMPLES, description="Run the config.yaml of a job folder, and leave the results beside it.",
    )  # fmt: skip
    run_one.add_argument("folder", metavar="JOB_DIR")
    run_one.add_argument("--work", choices=["run", "prepare"], default="run", help="prepare: the data stages alone")
    run_one.add_argument("-v", "--verbose", action="store_true", help="show what the libraries say too")

    runs = commands.add_parser(
        "runs", help="a line per run folder: state, verdict, losses", formatter_class=raw, epilog=_RUNS_EXAMPLES,
        description="List the run folders below DIR, from their small files alone.",
    )  # fmt: skip
    runs.add_argument("folder", nargs="?", metavar="DIR", help="default: outputs/ and multirun/ here")

    compare = commands.add_parser(
        "compare", help="jobs side by side: table, compare.html, compare.json", formatter_class=raw,
        epilog=_COMPARE_EXAMPLES, description="Compare the jobs of a sweep, or any runs. Needs no network.",
    )  # fmt: skip
    compare.add_argument("folders", nargs="+", type=Path, metavar="SWEEP_DIR|RUN_DIR")
    compare.add_argument("--out", type=Path, metavar="DIR", help="where compare.html and compare.json go")
    compare.add_argument("--test", action="store_true", help="score the best job on its test rows (split.test_share)")

    replay = commands.add_parser(
        "replay", help="run a saved config again and report every difference", formatter_class=raw,
        epilog=_REPLAY_EXAMPLES, description="First how the world differs, then the run, then how its result differs.",
    )  # fmt: skip
    replay.add_argument("source", type=Path, metavar="RUN_DIR|CONFIG")
    replay.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys of the saved config")
    replay.add_argument("--out", type=Path, metavar="DIR", help="the new run folder; default outputs/<date>/<time>")
    replay.add_argument("-v", "--verbose", action="store_true", help="show what the libraries say too")

    promote = commands.add_parser(
        "promote", help="keep a run's config as ./experiments/NAME.yaml", formatter_class=raw, epilog=_PROMOTE_EXAMPLES,
        description="Write what differs from the defaults as an experiment, proved to give the same config.",
    )  # fmt: skip
    promote.add_argument("folder", metavar="RUN_DIR")
    promote.add_argument("name", metavar="NAME")
    promote.add_argument("--force", action="store_true", help="put it over an experiment of this name")

    push = commands.add_parser(
        "push", help="publish a run's model or prepared data on the Hugging Face Hub", formatter_class=raw,
        epilog=_PUSH_EXAMPLES, description="Publish on the Hub: private unless --public. Needs HF_TOKEN or a login.",
    )  # fmt: skip
    push.add_argument("folder", metavar="RUN_DIR")
    push.add_argument("repo", metavar="REPO", help="owner/name")
    push.add_argument("--what", choices=["model", "dataset"], default="model", help="default: model")
    push.add_argument("--public", action="store_true", help="let everybody see it")
    push.add_argument("-v", "--verbose", action="store_true", help="show what the libraries say too")

    store = commands.add_parser(
        "store", help="what the stage store holds; make room", formatter_class=raw, epilog=_STORE_EXAMPLES,
        description="Results of stages are kept and shared by all runs. See them, or remove what is no longer used.",
    )  # fmt: skip
    store.add_argument("action", choices=["list", "prune"])
    store.add_argument("--path", metavar="DIR", help="of the store; default $SFT_LAB_STORE or the user's cache")
    store.add_argument(
        "--older-than", type=float, default=30, metavar="DAYS", help="prune what was unused so long (30)"
    )
    store.add_argument("--stage", metavar="NAME", help="prune this stage only")
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides in Hydra's grammar")
    parser.add_argument("-m", "--multirun", action="store_true", help="run every combination of values with commas")
    parser.add_argument("--config-dir", metavar="DIR", help="a further folder of options")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what the libraries say too")


class _Parser(argparse.ArgumentParser):
    """Adds the options by group to the help, read from the option files only when help is printed."""

    lists_options = False

    def format_help(self) -> str:
        from sft_lab.options import listing

        return super().format_help() + (listing() if self.lists_options else "")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from sft_lab.tracking.manifest import versions

        sys.stdout.write("".join(f"{name} {version}\n" for name, version in versions().items()))
        parser.exit()
