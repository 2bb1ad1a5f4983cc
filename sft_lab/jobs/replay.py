"""``sft-lab replay``: run a saved config again in a new folder, and list every difference in the result."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft_lab import config as configs
from sft_lab.config import Job, Plan
from sft_lab.config.raw_composition import compose_parts
from sft_lab.core import tolerant_readers
from sft_lab.core.errors import ConfigError, FolderError, all_problems
from sft_lab.core.io import read_json, write_json
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.core.run_discovery import open_run_dir
from sft_lab.core.text import count_of
from sft_lab.core.types import RunState, Work
from sft_lab.jobs import environment
from sft_lab.jobs.environment import Difference
from sft_lab.jobs.launch import launch
from sft_lab.jobs.layout import JobFolder, JobProgress, create_job_folders
from sft_lab.jobs.result_numbers import (
    LOSS_TOLERANCE,
    ROW_SLACK,
    ROW_TOLERANCE,
    Numbers,
    compare_results,
    read_result,
)
from sft_lab.jobs.supervise import Failure
from sft_lab.run.config import Run
from sft_lab.run.identity import plugin_origins
from sft_lab.run.schemas import SCHEMAS
from sft_lab.tracking.manifest import template_date


@dataclass(frozen=True)
class Replay:
    """A run that was run again.

    Attributes:
        source: the run folder or config it came from.
        folder: the new run folder.
        overrides: what was changed in the config.
        environment: differences in the environment; None if the old run recorded none.
        result: differences in the result; None if nothing was compared, for the reason in ``note``.
        compared: how many numbers were compared.
        exact: whether equal means to the last digit.
        changed: whether the overrides change the result, so that differences are expected.
        note: why nothing was compared, or another remark.
        failure: the failure of the new run.
    """

    source: Path
    folder: RunDir
    overrides: list[str]
    environment: list[Difference] | None
    result: list[Difference] | None = None
    compared: int = 0
    exact: bool = False
    changed: bool = False
    note: str = ""
    failure: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0 when equal, or when environment or config differ; 1 when only the numbers do; 2 for wrong input."""
        if self.failure:
            return 2 if self.failure.by_input else 1
        return int(bool(self.result) and self.environment == [] and not self.changed)


@dataclass(frozen=True)
class OldRun:
    """What is known about the run that is replayed.

    Attributes:
        folder: the run folder; None for just a config.
        job: hash of its config, as this version of sft_lab reads it.
        manifest: its manifest; None if it never began.
        state: state in ``status.json``.
        work: whether it was a run, or only prepared data.
        result: its numbers; None if it is not finished.
    """

    folder: RunDir | None
    job: str
    manifest: dict[str, Any] | None
    state: str | None
    work: str
    result: Numbers | None


def replay(source: Path, overrides: list[str] | None = None, out: Path | None = None) -> Replay:
    """Run a saved config again and compare. The same call with the same ``out`` resumes an interrupted replay.

    Args:
        source: a run folder, or just a saved config, which leaves nothing to compare with.
        overrides: dotted keys of the saved config, ``key=value``, or another launcher, ``launch=serial``.
        out: the new run folder; None: ``outputs/<date>/<time>``.

    Raises:
        UserError: for a wrong source, override or file, or an ``out`` that is in use.
    """
    overrides = list(overrides or [])
    folder = None if source.is_file() else open_run_dir(source)
    config = folder.config if folder else source.resolve()  # a file of the user's, anywhere
    run = _load(config, overrides)
    run.plugins = plugin_origins(run)  # it runs with today's plug-ins, and records them
    if problems := run.check():
        raise all_problems(problems)
    old = _read_old_run(folder, config)

    new = _create_folder(run, overrides, out, source, old.work)
    extra = _config_difference(old)
    now = None
    if old.manifest is not None:
        now = [*extra, *environment.differences(old.manifest, environment.current(run))]
    done = Replay(source, new.folder, overrides, now, changed=run.hash != old.job)
    for line in environment.lines(done.environment):
        log.info("%s", line)
    if not new.is_finished:
        _write_record(done)
    if new.progress is JobProgress.NEW and old.folder and (date := template_date(old.folder.manifest)):
        write_json(new.folder.manifest, {"template_date": date.isoformat()})  # its template gets the same date
    if failures := launch([new], old.work):
        return replace(done, failure=failures[0])

    done = _compare(done, old, extra)
    if not new.is_finished or read_json(new.folder.replay).get("equal") is None:
        _write_record(done)
    return done


def _load(config: Path, overrides: list[str]) -> Run:
    for override in overrides:
        key, sign, value = override.partition("=")
        if not (key and sign) or key.startswith(("+", "~", "-")):
            raise ConfigError(
                f"{override}: not an override of a saved config; write key=value with a key from {config.name}"
            )
        group = key.removesuffix(".kind")
        if key == "launch.kind":
            raise ConfigError(f"{override}: write {override.replace('.kind', '', 1)}")
        if group in SCHEMAS and key != "launch" and not value.startswith("{"):
            raise ConfigError(
                f"{override}: replay chooses no other option, except another launcher (launch=serial); it changes keys "
                f"of {config.name}, such as seed=2. For another {group} run `sft-lab promote RUN_DIR NAME`, then "
                f"`sft-lab +experiment=NAME {group}={value}`"
            )
    launches = [override for override in overrides if override.startswith("launch=") and "{" not in override]
    launcher = _launcher(launches[-1]) if launches else None
    run = configs.load(config, [override for override in overrides if override not in launches], launcher)
    if not any(override.startswith("rerun=") for override in overrides):
        run.rerun = False  # it was meant for the old folder
    return run


def _launcher(override: str) -> dict[str, Any]:
    """Return the launcher that ``launch=...`` chooses, as a config saves it."""
    if "," in override:
        raise ConfigError(f"{override}: a replay is one job, with one launcher; give one")
    parts = compose_parts([override])
    return {"kind": parts.kinds["launch"], **parts.values["launch"]}


def _read_old_run(folder: RunDir | None, config: Path) -> OldRun:
    job = _load(config, []).hash
    if folder is None:
        return OldRun(None, job, None, None, Work.RUN, None)
    manifest = tolerant_readers.read(folder.manifest) or None
    try:
        state, work = folder.state(), folder.work()
    except FolderError as error:
        raise FolderError(f"{error}, or replay only its config.yaml") from error
    result = read_result(folder, work) if state == RunState.FINISHED else None
    return OldRun(folder, job, manifest, state, work, result)


def _create_folder(run: Run, overrides: list[str], out: Path | None, source: Path, work: str) -> JobFolder:
    """Find or create the new folder, by the rule for every run folder."""
    if out is not None:
        if out.exists() and source.exists() and out.samefile(source):
            raise FolderError(f"--out {out}: is the run being replayed; choose another folder")
        if (out / "status.json").exists() and not RunDir(out).replay.exists():
            raise FolderError(f"--out {out}: has a run that is not a replay; choose another folder")
    job = Job(run=run, overrides=None, axes={})
    plan = Plan(jobs=[job], swept=False, name=None, run_dir=str(out) if out else None, sweep_dir=None)
    try:
        (job_folder,) = create_job_folders(plan, work)
    except FolderError as error:
        raise FolderError(str(error).replace("hydra.run.dir=...", "--out").replace("hydra.run.dir", "--out")) from error
    command = ["sft-lab", "replay", str(source), *overrides, "--out", str(job_folder.folder.path)]
    return replace(job_folder, resume_command=shlex.join(command))


def _config_difference(old: OldRun) -> list[Difference]:
    """Return the difference that no manifest has: an edited config."""
    job = (old.manifest or {}).get("job")
    if job in (None, old.job):
        return []
    return [Difference("config (edited, or read by another version of sft_lab)", job, old.job)]


def _compare(done: Replay, old: OldRun, extra: list[Difference]) -> Replay:
    """Return the replay with its result compared to the old one.

    Args:
        done: the replay, whose new run is finished.
        old: the run it is compared with.
        extra: differences of the environment that no manifest notes.
    """
    manifest = tolerant_readers.read(done.folder.manifest)
    differences = done.environment
    if old.manifest is not None:  # what it really ran on, now or when it was finished before
        differences = [*extra, *environment.differences(old.manifest, manifest)]
    if old.result is None:
        return replace(done, environment=differences, note=_why_not_compared(old))
    exact = differences == [] and not environment.part(manifest, "hardware").get("gpus")
    return replace(
        done,
        environment=differences,
        result=compare_results(old.result, read_result(done.folder, old.work), exact=exact),
        compared=sum(len(group) for group in old.result.values()),
        exact=exact,
        note=_store_note(manifest),
    )


def _write_record(done: Replay) -> None:
    """Write ``replay.json``."""
    record: dict[str, Any] = {"of": str(done.source.absolute()), "overrides": done.overrides}
    for name, differences in (("world", done.environment), ("result", done.result)):
        record[name] = None if differences is None else [difference.as_record() for difference in differences]
    record["equal"] = None if done.result is None else not done.result
    write_json(done.folder.replay, record)


def _why_not_compared(old: OldRun) -> str:
    if old.folder is None:
        return (
            "This is only a config, with no old environment or result to compare with; give the run folder to "
            "compare them."
        )
    kind = "run" if old.work == Work.RUN else "preparation"
    return f"The old {kind} is not finished ({old.state or 'not started'}): there is nothing to compare with."


def _store_note(manifest: dict[str, Any]) -> str:
    """Return which results were read from the store: their numbers are equal without having been computed again."""
    stages = [stage for stage in manifest.get("stages", []) if isinstance(stage, dict)]
    hits = sum(bool(stage.get("hit")) for stage in stages)
    if not hits:
        return ""
    return f"{hits} of {len(stages)} stage results came from the store; store.path=<new folder> computes them again."


def lines(done: Replay) -> list[str]:
    """Return the differences of environment and result, and the conclusion, as lines."""
    text = [f"Replay of {done.source} in {done.folder.path}"]
    if done.overrides:
        text.append(f"Overrides: {' '.join(done.overrides)}")
    text += environment.lines(done.environment)
    if done.failure:
        return [*text, f"Result: none, since the replay failed: {done.failure.message}"]
    text += [done.note] if done.note else []
    if done.result is None:
        return text

    rows = f"held-out rows within {ROW_TOLERANCE:.0%} or {ROW_SLACK} nats"
    measure = "to the last digit" if done.exact else f"losses within {LOSS_TOLERANCE:.1%}, {rows}, counts alike"
    if not done.result:
        return [*text, f"Result: equal, {measure} ({done.compared:,} numbers compared)."]
    text += [
        f"Result: {count_of(len(done.result), 'difference')} ({measure})",
        *(f"  {difference}" for difference in done.result),
    ]
    if done.changed:
        return [*text, "The config was changed: a difference is expected."]
    if done.exit_code == 0:
        return [*text, "The environment changed too, which may explain the difference."]
    return [*text, "The environment is the same but the numbers differ: this run does not reproduce."]
