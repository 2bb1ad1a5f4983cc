"""``sft-lab replay``: a saved config run again in a new folder, with every difference to what it gave before."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sft_lab import config as configs
from sft_lab.config import Job, Plan
from sft_lab.core import parquet
from sft_lab.core.console import console
from sft_lab.core.errors import ConfigError, FolderError, all_problems
from sft_lab.core.io import LONG, flat, parse_json, read_json, read_text, write_json
from sft_lab.core.log import log
from sft_lab.core.run_dir import FINISHED, RUN, RunDir
from sft_lab.jobs import environment as world
from sft_lab.jobs import launch, layout
from sft_lab.jobs.environment import Difference
from sft_lab.jobs.layout import Placed, Standing
from sft_lab.jobs.worker import Failure
from sft_lab.run.config import Run
from sft_lab.tracking.manifest import template_date

REPLAY = "replay.json"  # marks a folder as a replay's
# Where the world is not the same, or sums are made by a GPU in any order. A held-out loss is a mean over thousands of
# tokens: bf16 in place of fp32 moved it by 0.002% in 60 steps of the tiny model, and the least step a verdict speaks of
# is 1%. One row is a sum over few tokens and moves more.
LOSS_TOLERANCE = 1e-3  # relative, of losses and bits per byte
ROW_TOLERANCE = 1e-2  # relative, of one held-out row's negative log-likelihood
ROW_SLACK = 0.05  # nats; a row that is known by heart has hardly any, and no relative measure
_TIMES = {"tokens_per_second", "watching_share", "train_seconds", "measuring_seconds", "seconds"}
# What follows from losses that are compared themselves: a difference far below the tolerance may turn it over.
_FOLLOWS = {"gap", "best_step", "converged_at", "evidence", "objective"}

Numbers = dict[str, dict[str, Any]]  # by file and name, then by row, step or part


@dataclass(frozen=True)
class Replay:
    """A run that was run again.

    Attributes:
        source: the run folder or config it came from.
        folder: the new run folder.
        overrides: what was changed in the config.
        world: what is different about the world; None where the old run noted nothing.
        result: what is different about the result; None where there is nothing to compare, as ``note`` says.
        compared: how many numbers were compared.
        exact: whether equal means to the last digit.
        changed: whether the overrides change what comes out, so that a difference is expected.
        note: why nothing was compared, or what else there is to know.
        failure: of the new run.
    """

    source: Path
    folder: RunDir
    overrides: list[str]
    world: list[Difference] | None
    result: list[Difference] | None
    compared: int
    exact: bool
    changed: bool
    note: str = ""
    failure: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0 when equal, or when world or config differ; 1 when they do not and the numbers do; 2 for wrong input."""
        if self.failure:
            return 2 if self.failure.by_input else 1
        return int(bool(self.result) and self.world == [] and not self.changed)


def replay(source: Path, overrides: list[str] | None = None, out: Path | None = None) -> Replay:
    """Run a saved config again and compare. The same call with the same ``out`` goes on where it was cut off.

    Args:
        source: a run folder, or a saved config alone, which has nothing to be compared with.
        overrides: dotted keys of the saved config, ``key=value``.
        out: the new run folder; None: ``outputs/<date>/<time>``.

    Raises:
        UserError: for a source that is none, an override or a file that is wrong, or an ``out`` that is taken.
    """
    words = list(overrides or [])
    old = None if source.is_file() else world.run_folder(source)
    config = old.config if old else source.resolve()  # the user's own, wherever it lies
    run, same = _loaded(config, words), _loaded(config, [])
    run.plugins = run.plugged()  # it runs with those of today, and says what they were
    if problems := run.check():
        raise all_problems(problems)
    manifest = world.read_manifest(old) if old else None
    state, work = _standing_of(old) if old else (None, RUN)
    before = read_result(old, work) if old and state == FINISHED else None
    other = [] if manifest is None or manifest.get("job") in (None, same.hash) else [
        Difference("config (edited, or read by another sft_lab)", manifest["job"], same.hash)
    ]  # fmt: skip
    placed = _place(run, words, out, source, work)
    folder, standing = placed.folder, placed.standing
    if standing is Standing.unfinished and any(folder.checkpoints.glob("checkpoint-*")):
        # A mean of training losses that spans the cut is taken over fewer steps; all else has come out equal.
        other.append(Difference("training", "in one go", "goes on from a checkpoint"))
    if standing is Standing.new and old and (date := template_date(old.manifest)):
        write_json(folder.manifest, {"template_date": date.isoformat()})  # its template is told the same day
    of: dict[str, Any] = {"of": str(source.absolute()), "overrides": words}

    differs = None if manifest is None else [*other, *world.differences(manifest, run)]
    for line in world.lines(differs):
        log.info("%s", line)
    if standing is not Standing.finished:
        told = None if differs is None else [asdict(one) for one in differs]
        write_json(folder.path / REPLAY, {**of, "world": told, "result": None, "equal": None})
    if failures := launch.launch([placed], work):
        return Replay(source, folder, words, differs, None, 0, exact=False, changed=False, failure=failures[0])

    ran_on = world.read_manifest(folder) or {}
    if manifest is not None:  # what it really ran on, now or when it was finished before
        differs = [*other, *world.between(manifest, ran_on)]
    exact = differs == [] and not world.part(ran_on, "hardware").get("gpus")
    result, compared = None, 0
    if before is not None:
        after = read_result(folder, work)
        result, compared = compare(before, after, exact=exact), sum(len(group) for group in before.values())
    note = _from_store(ran_on) if before is not None else _nothing_to_compare(old, state, work)
    done = Replay(source, folder, words, differs, result, compared, exact, run.hash != same.hash, note)
    if standing is not Standing.finished or read_json(folder.path / REPLAY).get("equal") is None:
        lists = {name: None if found is None else [asdict(one) for one in found]
                 for name, found in (("world", differs), ("result", result))}  # fmt: skip
        write_json(folder.path / REPLAY, {**of, **lists, "equal": None if result is None else not result})
    return done


def _loaded(config: Path, words: list[str]) -> Run:
    for word in words:
        key, sign, _ = word.partition("=")
        if not (key and sign) or key.startswith(("+", "~", "-")):
            raise ConfigError(f"{word}: no override of a saved config; write key=value with a key of {config.name}")
    run = configs.load(config, words)
    if not any(word.startswith("rerun=") for word in words):
        run.rerun = False  # it was said about the old folder
    return run


def _place(run: Run, words: list[str], out: Path | None, source: Path, work: str) -> Placed:
    """Find or make the new folder, by the rule that every run folder obeys."""
    if out is not None:
        if out.exists() and source.exists() and out.samefile(source):
            raise FolderError(f"--out {out}: is the run to be replayed; a replay has a folder of its own")
        if (out / "status.json").exists() and not (out / REPLAY).exists():
            raise FolderError(f"--out {out}: holds a run that is no replay; choose another folder")
    job = Job(run=run, overrides=words, axes={})
    plan = Plan(jobs=[job], swept=False, name=None, run_dir=str(out) if out else None, sweep_dir=None)
    try:
        (placed,) = layout.place(plan, work)
    except FolderError as error:
        raise FolderError(str(error).replace("hydra.run.dir=...", "--out").replace("hydra.run.dir", "--out")) from error
    again = shlex.join(["sft-lab", "replay", str(source), *words, "--out", str(placed.folder.path)])
    return replace(placed, resume=again)


def _standing_of(old: RunDir) -> tuple[str | None, str]:
    try:
        return old.state(), old.work()
    except FolderError as error:
        raise FolderError(f"{error}, or replay its config.yaml alone") from error


def _nothing_to_compare(old: RunDir | None, state: str | None, work: str) -> str:
    if old is None:
        return "A config alone: there is no old world and no old result to compare with; give the run folder for that."
    what = "run" if work == RUN else "preparation"
    return f"The old {what} is not finished ({state or 'not started'}): there is nothing to compare with."


def _from_store(ran_on: dict[str, Any]) -> str:
    """Say what was not computed again: an equal number that was only looked up proves little."""
    stages = [one for one in ran_on.get("stages", []) if isinstance(one, dict)]
    hits = sum(bool(one.get("hit")) for one in stages)
    if not hits:
        return ""
    return f"{hits} of {len(stages)} stage results came from the store; store.path=<new folder> computes them anew."


def read_result(folder: RunDir, work: str) -> Numbers:
    """Give every number of a finished run's result, times left out.

    Raises:
        FolderError: if a file is missing or cannot be read.
    """
    try:
        found = _data_numbers(folder)
        return found | _training_numbers(folder) if work == RUN else found
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FolderError(
            f"{folder.path}: its result cannot be read ({type(error).__name__}: {error}); replay its config.yaml alone"
        ) from error


def _data_numbers(folder: RunDir) -> Numbers:
    found: Numbers = {}
    flows = read_json(folder.waterfall)
    for side, title in (("stages", "waterfall.json"), ("held_out", "waterfall.json held-out")):
        for stage in flows[side]:
            found[f"{title} {stage['stage']}"] = {key: value for key, value in flat(stage).items() if value != {}}
    dropped = parquet.read(folder.dropped, parquet.DROPPED).to_pylist()
    found["dropped.parquet"] = {f"{row['id']} {row['stage']}": row["reason"] for row in dropped}
    manifest = read_json(folder.manifest)
    for side in ("train", "held_out"):
        if rows := manifest.get(f"{side}_fingerprint"):
            found[f"{side.replace('_', '-')} fingerprint"] = {"": rows}
    return found


def _training_numbers(folder: RunDir) -> Numbers:
    summary = read_json(folder.summary)
    # Another version may word a rule or an advice differently: its numbers are compared, not its sentences.
    summary["evidence"] = [
        {key: value for key, value in rule.items() if key != "says"} for rule in summary.get("evidence", [])
    ]
    found: Numbers = {f"summary.json {key}": {"": value} for key, value in flat(summary).items()
                      if key not in {*_TIMES, "format", "advice.says"}}  # fmt: skip
    for line in read_text(folder.metrics, LONG).splitlines():
        event = parse_json(line)
        for key, value in event.items():
            if _is_loss(key):
                found.setdefault(f"metrics.jsonl {key}", {})[f"step {event['step']}"] = value
    rows = parquet.read(folder.eval, parquet.EVAL).to_pylist()
    for column in [name for name in parquet.EVAL if name != "id"]:
        found[f"eval.parquet {column}"] = {row["id"]: row[column] for row in rows}
    return found


def _is_loss(name: str) -> bool:
    return "loss" in name or "bits_per_byte" in name


def compare(before: Numbers, after: Numbers, *, exact: bool) -> list[Difference]:
    """Give the differences of two results, one for each name, with the row or step where it is largest.

    Args:
        before: the old result; what it does not tell, because its sft_lab did not know it, is not compared.
        after: the new one.
        exact: to the last digit, else losses within ``LOSS_TOLERANCE``, rows within ``ROW_TOLERANCE``, counts equal.
    """
    found = []
    for name, old in before.items():
        if not exact and name.removeprefix("summary.json ") in _FOLLOWS:
            continue
        new = after.get(name, {})
        differ = [key for key in {**old, **new} if not _equal(name, old.get(key), new.get(key), exact=exact)]
        if differ:
            most = max(differ, key=lambda key: _distance(old.get(key), new.get(key)))
            many = f", {len(differ)} of {len({**old, **new})} differ, most at {most}" if len(old) > 1 else ""
            found.append(Difference(f"{name}{many}", old.get(most), new.get(most)))
    return found


def _equal(name: str, then: Any, now: Any, *, exact: bool) -> bool:
    if exact or not (isinstance(then, float) and isinstance(now, float)):
        return bool(then == now)
    if name.startswith("eval.parquet") and name.endswith("nll"):
        return math.isclose(then, now, rel_tol=ROW_TOLERANCE, abs_tol=ROW_SLACK)
    return math.isclose(then, now, rel_tol=LOSS_TOLERANCE) if _is_loss(name) else then == now


def _distance(then: Any, now: Any) -> float:
    numbers = isinstance(then, int | float) and isinstance(now, int | float)
    return abs(then - now) if numbers else math.inf


def lines(done: Replay) -> list[str]:
    """Say both lists, world and result, and what they come to."""
    said = [f"Replay of {done.source} in {done.folder.path}"]
    if done.overrides:
        said.append(f"Overrides: {' '.join(done.overrides)}")
    said += world.lines(done.world)
    if done.failure:
        return [*said, f"Result: none, the replay failed: {done.failure.message}"]
    said += [done.note] if done.note else []
    if done.result is None:
        return said
    rows = f"held-out rows within {ROW_TOLERANCE:.0%} or {ROW_SLACK} nats"
    how = "to the last digit" if done.exact else f"losses within {LOSS_TOLERANCE:.1%}, {rows}, counts alike"
    if not done.result:
        return [*said, f"Result: equal, {how} ({done.compared:,} numbers compared)."]
    said += [f"Result: {world.counted(done.result)} ({how})", *(f"  {one}" for one in done.result)]
    if done.changed:
        return [*said, "The config was changed: a difference is expected."]
    if done.exit_code == 0:
        return [*said, "The world is not the same: a difference may come from there."]
    return [*said, "The world is the same and the numbers are not: this run does not reproduce."]


def show(done: Replay) -> None:
    """Print ``lines``."""
    out = console()
    for line in lines(done):
        out.print(line, soft_wrap=True)
