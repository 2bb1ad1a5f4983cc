"""One function per command, which calls the module that does the work and returns the exit code."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.cli import output, shell_completion
from sft_lab.cli.arguments import parse, refuse, refuse_rest
from sft_lab.cli.model_commands import evaluate, export, generate, merge, push
from sft_lab.cli.model_rows import show_model_rows
from sft_lab.core import console, home, interrupt
from sft_lab.core.errors import JobError, SftLabError, UserError
from sft_lab.core.text import count_of

if TYPE_CHECKING:
    from sft_lab.config import Plan
    from sft_lab.jobs.layout import JobFolder
    from sft_lab.jobs.supervise import Failure

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 a job failed, 2 the input was wrong."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file opened would take its descriptor
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the end
    with output.guarded(), interrupt.second_ends_at_once():
        try:
            code = _main(argv)
            sys.stdout.flush()
        except KeyboardInterrupt:
            output.print_message("sft-lab: interrupted")
            exec("")  # noqa: S102 - Python ends with the signal, not with 130, where the last exec was interrupted
            return 130
        except BrokenPipeError:  # the reader has stopped, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:  # noqa: BLE001 - a bug in sft_lab, printed here, where secrets are removed
            if isinstance(error, OSError) and error.filename is None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                output.print_message(
                    f"sft-lab: standard output: cannot be written ({error.strerror}); redirect it to another file"
                )
            else:
                traceback.print_exc()
            return 1
    return code


def _main(argv: Sequence[str] | None) -> int:
    command_line = list(sys.argv[1:] if argv is None else argv)
    first = command_line[0] if command_line else ""
    if first.isalpha() and first not in COMMANDS:
        refuse(f"{first}: neither a command nor an override (key=value); commands are {', '.join(COMMANDS)}")
    if first not in {*COMMANDS, "-h", "--help", "--version"}:
        command_line = ["train", *command_line]
    arguments, rest = parse(command_line)
    console.prepare(verbose=getattr(arguments, "verbose", False))
    try:
        home.ensure()
        return int(COMMANDS[arguments.command](arguments, rest))
    except UserError as error:
        output.print_message(f"sft-lab: {error}")
        return 2
    except SftLabError as error:
        output.print_message(f"sft-lab: {error}")
        return 1


def _train(arguments: Arguments, overrides: list[str]) -> int:
    if arguments.cfg or arguments.info:
        gc.disable()  # composing makes many small objects; searching them for cycles takes an eighth of the time
        try:
            return _show(arguments, overrides)
        finally:
            gc.enable()
    if arguments.shell_completion:
        return shell_completion.run(arguments.shell_completion)
    if arguments.package:
        raise UserError(f"--package {arguments.package}: needs --cfg, as in --cfg job --package {arguments.package}")
    from sft_lab import config
    from sft_lab.core.types import Work

    if config.is_driven_by_hydra(overrides):
        return _hydra_sweep(arguments, overrides)
    plan, jobs, failures = _launch(arguments, overrides, Work.RUN)
    if plan.swept:
        output.show_sweep([(job.folder, job.job.axes) for job in jobs])
        output.show_next(jobs[0].folder.path.parent, failures)
    elif not failures:
        output.show_summary(jobs[0].folder)
    return _report(failures)


def _hydra_sweep(arguments: Arguments, overrides: list[str]) -> int:
    """Run a sweep with the Hydra sweeper or launcher that the command line chooses."""
    from sft_lab import config
    from sft_lab.jobs.launch import objectives_of

    if not arguments.multirun:
        raise UserError("hydra/sweeper and hydra/launcher apply only to sweeps; put -m before the overrides")
    try:
        with console.each_line_once():
            failures = config.run_hydra_sweep(overrides, objectives_of, arguments.config_dir, arguments.config_name)
    except SftLabError:
        raise
    except Exception as error:  # plugins of Hydra's raise errors of any type
        raise JobError(f"{type(error).__name__}: {error}") from error
    for failure in failures:
        output.print_message(f"sft-lab: {failure}")
    if not failures:
        return 0
    return 2 if all(isinstance(failure, UserError) for failure in failures) else 1


def _prepare(arguments: Arguments, overrides: list[str]) -> int:
    from sft_lab.core.types import Work

    plan, jobs, failures = _launch(arguments, overrides, Work.PREPARE)
    if plan.swept:
        output.show_prepared_sweep([(job.folder, job.job.axes) for job in jobs])
    else:
        if arguments.verbose and jobs[0].folder.report.exists():
            show_model_rows(jobs[0].folder)
        output.show_prepared(jobs[0].folder)
    return _report(failures)


def _launch(arguments: Arguments, overrides: list[str], work: str) -> tuple[Plan, list[JobFolder], list[Failure]]:
    from sft_lab.jobs import launch, layout
    from sft_lab.run.overview import choices_line

    plan = _compose(arguments, overrides)
    jobs = layout.create_job_folders(plan, work)
    output.print_message(choices_line(plan.jobs[0].run))
    path = jobs[0].folder.path
    output.print_message(f"{count_of(len(jobs), 'job')} in {path.parent}" if plan.swept else f"run folder {path}")
    with console.each_line_once() if plan.swept else nullcontext():
        return plan, jobs, launch.launch(jobs, work)


def _compose(arguments: Arguments, overrides: list[str], *, to_start: bool = True) -> Plan:
    from sft_lab import config

    return config.compose_jobs(
        overrides,
        multirun=arguments.multirun,
        config_dir=arguments.config_dir,
        config_name=arguments.config_name,
        to_start=to_start,
    )


def _plan(arguments: Arguments, overrides: list[str]) -> int:
    from sft_lab.jobs import plan

    jobs = _compose(arguments, overrides, to_start=arguments.probe)
    forecasts = plan.forecast_jobs(jobs)
    if arguments.probe:
        from sft_lab.jobs.probe import probe_jobs

        forecasts = probe_jobs(forecasts)
    raw_data = plan.describe_raw_data(forecasts)
    output.show_plan(forecasts, plan.shared_stages(forecasts), plan.same_rows(forecasts), raw_data)
    output.show_batch_script(plan.batch_script(forecasts))
    refusals = [forecast.refusal for forecast in forecasts if forecast.refusal]
    for message in dict.fromkeys(map(str, refusals)):
        output.print_message(f"sft-lab: {message}")
    if not refusals:
        return 0
    return 2 if all(isinstance(refusal, UserError) for refusal in refusals) else 1


def _search(arguments: Arguments, overrides: list[str]) -> int:
    from sft_lab import search

    space, options = search.read_command(
        overrides,
        [text for texts in arguments.over for text in texts],
        trials=arguments.trials,
        sampler=arguments.sampler,
        pruner=arguments.pruner,
        at_once=arguments.at_once,
        confirm=arguments.confirm,
        config_dir=arguments.config_dir,
        config_name=arguments.config_name,
    )
    with console.each_line_once():
        result = search.run_search(space, options)
    output.show_search(result)
    for failure in result.failures:
        output.print_message(f"sft-lab: {failure}")
    return 0 if result.ranked and not result.failures else 1


def _runs(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab.jobs import list_runs

    refuse_rest("runs", rest)
    if arguments.delete:
        from sft_lab.jobs.delete_runs import delete_runs

        return delete_runs(arguments.folder)
    list_runs.show(list_runs.list_runs(arguments.folder))
    return 0


def _compare(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab import compare

    refuse_rest("compare", rest)
    if arguments.lowest_first and not arguments.rank_by:
        raise UserError("--lowest-first: needs --rank-by, the number to sort by")
    jobs, order = compare.collect_jobs(arguments.folders), None
    if arguments.rank_by:
        order = compare.Order.of(jobs, arguments.rank_by, lowest_first=arguments.lowest_first)
    comparison = compare.analyze(jobs, order)
    folder = arguments.out or (arguments.folders[0] if len(arguments.folders) == 1 else Path())
    page = compare.write_comparison(comparison, folder)
    compare.print_comparison(comparison, page)
    if arguments.test:
        from sft_lab.tools.test_score import score_test

        if comparison.best is None:
            raise UserError("compare --test: no job is ranked best, so there is nothing to score on the test rows")
        sys.stdout.write(f"{score_test(comparison.best.folder)}\n")
    return 0


def _replay(arguments: Arguments, overrides: list[str]) -> int:
    from sft_lab.jobs import replay

    result = replay.replay(arguments.source, overrides, arguments.out)
    console.print_lines(replay.lines(result))
    return result.exit_code


def _promote(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab.jobs.promote import promote

    refuse_rest("promote", rest)
    file = promote(arguments.folder, arguments.name, force=arguments.force)
    sys.stdout.write(f"{file}\nrun it: sft-lab +experiment={file.stem}\n")
    return 0


def _doctor(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab.tools import doctor

    refuse_rest("doctor", rest)
    if arguments.folder is None:
        code = doctor.print_diagnoses([], doctor.diagnose_machine())
    else:
        code = doctor.print_diagnoses(*doctor.diagnose_run(arguments.folder))
    if arguments.train:
        from sft_lab.tools.doctor_train import print_attempts

        code = max(code, print_attempts(arguments.model))
    return code


def _exec(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab.core.hardware import rank
    from sft_lab.core.run_dir import RunDir
    from sft_lab.core.types import Work
    from sft_lab.jobs.worker import execute

    refuse_rest("exec", rest)
    folder = RunDir(arguments.folder.absolute())
    failure = execute(folder, arguments.work)
    if rank() is None and arguments.work == Work.PREPARE:
        output.show_prepared(folder)
    elif rank() is None and arguments.work == Work.RUN and not failure:
        output.show_summary(folder)
    return _report([failure] if failure else [])


def _report(failures: list[Failure]) -> int:
    """Print why jobs failed and return the exit code."""
    for failure in failures:
        # The folder of a single run is printed above already.
        job = f"{failure.folder.path.name}: " if failure.folder.sweep else ""
        output.print_message(f"sft-lab: {job}{failure.message}")
    if not failures:
        return 0
    return 2 if all(failure.by_input for failure in failures) else 1


def _show(arguments: Arguments, overrides: list[str]) -> int:
    """Print the composed config for ``--cfg``, or the folders of options for ``--info searchpath``."""
    from omegaconf import OmegaConf

    from sft_lab import config

    if arguments.info:
        sys.stdout.write(f"{config.describe_search_path(arguments.config_dir)}\n")
        return 0
    node: Any = config.compose_config(
        overrides, arguments.cfg, config_dir=arguments.config_dir, config_name=arguments.config_name
    )
    for part in filter(None, (arguments.package or "").split(".")):
        if not OmegaConf.is_dict(node) or part not in node.keys():  # noqa: SIM118 - ``in node`` leaves out missing values
            names = ", ".join(node) if OmegaConf.is_dict(node) else "none, it is a single value"
            raise UserError(f"--package {arguments.package}: no such part of the config; available: {names}")
        node = "???" if OmegaConf.is_missing(node, part) else node[part]
    sys.stdout.write(OmegaConf.to_yaml(node) if OmegaConf.is_config(node) else f"{node}\n")
    return 0


def _store(arguments: Arguments, rest: list[str]) -> int:
    from sft_lab.core.store import Store, default_root

    refuse_rest("store", rest)
    store = Store(arguments.path.expanduser().absolute() if arguments.path else default_root())
    if not store.root.is_dir() and (arguments.path or store.root.exists()):
        raise UserError(f"{store.root}: not a store folder; give one with --path or SFT_LAB_STORE")
    if arguments.action == "list":
        output.show_store(store)
    else:
        if not arguments.older_than >= 0:  # NaN too
            raise UserError(f"--older-than {arguments.older_than}: must be a number of days, 0 or more")
        removed = store.prune(arguments.older_than * 86400, arguments.stage)
        freed = sum(entry.size for entry in removed) / 1e6
        sys.stdout.write(f"{count_of(len(removed), 'stored result')} removed, {freed:,.1f} MB freed in {store.root}\n")
    return 0


COMMANDS: dict[str, Callable[[Arguments, list[str]], int]] = {
    "train": _train,
    "prepare": _prepare,
    "plan": _plan,
    "search": _search,
    "exec": _exec,
    "runs": _runs,
    "compare": _compare,
    "replay": _replay,
    "promote": _promote,
    "generate": generate,
    "evaluate": evaluate,
    "merge": merge,
    "export": export,
    "push": push,
    "doctor": _doctor,
    "store": _store,
}
