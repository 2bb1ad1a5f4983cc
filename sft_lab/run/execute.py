"""Carry out a run in its folder: all of it, its data stages alone, or a last measurement on the test rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab import pipeline
from sft_lab.core import console, heavy_imports
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.gpus import gpu_is_in_use, release_memory, use_one_gpu
from sft_lab.core.hardware import rank, world
from sft_lab.core.run_dir import RunDir
from sft_lab.core.types import Work
from sft_lab.run import checks, inputs, resource_errors, twins
from sft_lab.tracking.manifest import template_date

if TYPE_CHECKING:
    from sft_lab.core.store import Store
    from sft_lab.run.config import Run
    from sft_lab.run.session import Session


def execute(run: Run, path: RunDir | Path | str | None = None) -> dict[str, Any]:
    """Carry out the whole run; return its summary and ``folder``, nothing in a process that assists in training."""
    console.show_in_notebook()
    if not run.launch.distributed:  # processes that train together have a GPU each
        use_one_gpu(run.launch.unused_gpus(in_sweep=isinstance(path, RunDir) and path.sweep is not None))
    with heavy_imports.imports():
        from sft_lab.run.training_session import TrainingSession  # noqa: F401 - imported first, and fast

    folder = _open_folder(run, path)
    _refuse_other_world(run, folder)
    if rank():
        return _assist(run, folder)
    summary = _train(run, folder)
    if gpu_is_in_use():
        release_memory()
    return summary | {"folder": str(folder.path)}


def _train(run: Run, folder: RunDir) -> dict[str, Any]:
    """Train and judge; with this function's frame goes the last reference to the model outside of the trainer."""
    from sft_lab.run.training_session import TrainingSession

    with _working_in(folder, run), TrainingSession(run, folder) as session:
        data = pipeline.prepare(run, session.context)
        with twins.turn(run, folder, session.note_training_key(data)) as twin:
            if twin:
                return session.finish_as(twin, data)
            session.begin(data)
            base = session.measure_base(data)
            trained = session.train(data)
            tuned = session.measure_tuned(data, trained)
            return session.finish(data, base, trained, tuned)


def _assist(run: Run, folder: RunDir) -> dict[str, Any]:
    """Train with the process of rank 0: the same steps, but it alone measures before and after, and writes."""
    from sft_lab.run.training_session import TrainingSession

    with resource_errors.explained(run, folder):
        session = TrainingSession(run, folder)
        session.set_up_training()
        data = pipeline.prepare(run, session.context)
        folder.refuse_other_data(lambda manifest: inputs.changes(run, manifest, session.context.store))
        session.train(data)
    return {}


def prepare_only(run: Run, path: RunDir | Path | str | None = None) -> dict[str, Any]:
    """Carry out the data stages, and write their report and the rows.

    Raises:
        JobError: if no training rows are left; the report is written before.
    """
    console.show_in_notebook()
    with _data_session(run, path) as session:
        work = pipeline.start(run, session.context, to_train=False)
        data = pipeline.prepare(run, session.context, work)
        for problem in checks.check_rows(run, data):
            session.context.notice(f"training would be refused: {problem}")
        session.begin(data)
        if len(data.train.rows):
            session.write_dataset(data)
        summary = session.report(data)
        if not len(data.train.rows):
            raise work.nothing_left()
        return summary


def fill_store(run: Run, path: RunDir | Path | str | None = None) -> None:
    """Carry out the data stages and leave their results in the store."""
    with _data_session(run, path) as session:
        data = pipeline.prepare(run, session.context)
        session.note_inputs()
        session.note_training_key(data)


@contextmanager
def _data_session(run: Run, path: RunDir | Path | str | None) -> Iterator[Session]:
    """Yield the session of a process that carries out the data stages and trains nothing."""
    use_one_gpu()
    with heavy_imports.imports():
        from sft_lab.run.session import Session

    folder = _open_folder(run, path)
    with _working_in(folder, run, Work.PREPARE), Session(run, folder) as session:
        yield session


@contextmanager
def training_turn(run: Run, folder: RunDir) -> Iterator[bool]:
    """Yield whether a job whose store is filled still has to be trained.

    It does not if another job of the sweep has done the same training: then this one is already finished.
    """
    with twins.turn(run, folder, folder.training_key()) as twin:
        if twin:
            from sft_lab.run.session import ReferenceSession

            with _working_in(folder, run), ReferenceSession(run, folder) as session:
                session.finish_as(twin, pipeline.prepare(run, session.context))
        yield twin is None


def score_test(run: Run, folder: RunDir) -> dict[str, Any]:
    """Score the base model and the saved weights on the test side."""
    use_one_gpu()
    from sft_lab.run.training_session import TrainingSession

    return TrainingSession(run, folder).score_test()


def create_context(run: Run, store: Store | None, folder: RunDir | None) -> StageContext:
    """Return the tools that the run's stages work with."""
    context = StageContext(
        store or run.store.open(),
        lambda: run.model.tokenizer(context, run.template.special_tokens),
        template_date(folder.manifest) if folder else None,
        run.engine,
    )
    return context


def _open_folder(run: Run, path: RunDir | Path | str | None) -> RunDir:
    if isinstance(path, RunDir):
        return path
    if path is None:
        return RunDir.new()[0]
    folder = RunDir(Path(path))
    folder.refuse_other_job(run.hash)
    return folder


def _refuse_other_world(run: Run, folder: RunDir) -> None:
    if world() != run.launch.num_processes:
        raise ConfigError(
            f"launch.num_processes={run.launch.num_processes}: the number of training processes here is {world()}, and "
            f"a different number changes the steps; `sft-lab exec {folder.path}` starts the number in the config"
        )


@contextmanager
def _working_in(folder: RunDir, run: Run, work: str = Work.RUN) -> Iterator[None]:
    """Keep other processes out of the folder, and refuse data that has changed since its work began."""
    with folder.claimed():
        folder.refuse_other_data(lambda manifest: inputs.changes(run, manifest))
        with folder.running(work), resource_errors.explained(run, folder, work):
            yield
