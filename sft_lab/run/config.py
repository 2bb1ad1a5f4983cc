"""Run: the one object a composed config becomes. ``execute`` is the straight line from conversations to a report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import heavy_imports
from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, during
from sft_lab.core.hardware import rank, world
from sft_lab.core.io import FORMAT, digest
from sft_lab.core.log import log
from sft_lab.core.packages import package_path
from sft_lab.core.params import plain
from sft_lab.core.plugins import origin
from sft_lab.core.run_dir import PREPARE, RUN, RunDir
from sft_lab.core.store import Store, default_root
from sft_lab.data.chat_template import Auto, Jinja, Template
from sft_lab.data.filters import Filter, filter_schemas
from sft_lab.data.load import Dataset
from sft_lab.data.mixture import Benchmarks, Mixture
from sft_lab.data.sources import File, Hub
from sft_lab.data.split import FromFile, Hash, Source, Split
from sft_lab.dedup.decontaminate import Decontaminate
from sft_lab.dedup.exact import Dedup, Exact, Nothing
from sft_lab.dedup.minhash import MinHash
from sft_lab.dedup.semantic import Semantic
from sft_lab.evaluation.config import Evaluation
from sft_lab.run import inputs, resource_errors
from sft_lab.run.launch_config import Launcher, Processes, Ray, Serial, Slurm
from sft_lab.tracking.config import Local, Tracking, Wandb
from sft_lab.tracking.manifest import template_date
from sft_lab.training.config import Full, Lora
from sft_lab.training.gguf import Gguf
from sft_lab.training.models import Model, Pretrained
from sft_lab.training.tiny_random import TinyRandom

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.data.preparation import Preparation, Prepared
    from sft_lab.dedup.embed import Embedder


@dataclass
class StorePlace:
    """Where stage results are kept; null: ``$SFT_LAB_STORE``, else the user's cache folder."""

    path: str | None = None

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        self.path = str(Path(self.path).expanduser().absolute()) if self.path else None

    def open(self) -> Store:
        """Open the store."""
        return Store(Path(self.path) if self.path else default_root())


# Every schema by group and kind. A kind is what a saved config calls a stage's class.
SCHEMAS: dict[str, dict[str, type]] = {
    "dataset": {"file": File, "hub": Hub, "mixture": Mixture},
    "split": {"hash": Hash, "source": Source, "file": FromFile},
    "filter": dict(filter_schemas()),
    "decontaminate": {"decontaminate": Decontaminate},
    "dedup": {"none": Nothing, "exact": Exact, "minhash": MinHash, "semantic": Semantic},
    "template": {"auto": Auto, "jinja": Jinja},
    "model": {"pretrained": Pretrained, "gguf": Gguf, "tiny_random": TinyRandom},
    "trainer": {"full": Full, "lora": Lora},
    "evaluation": {"evaluation": Evaluation},
    "tracking": {"local": Local, "wandb": Wandb},
    "launch": {"serial": Serial, "processes": Processes, "slurm": Slurm, "ray": Ray},
}
# What does not change a result does not make another job.
NOT_IDENTITY = {"tracking", "launch", "store", "threads", "rerun", "choices", "format"}
CHOOSING = ("filter", "decontaminate", "dedup")  # stages that choose among the training rows and do nothing else


@dataclass
class Run(Bounded):
    """One run: its stages, in the order they work.

    Attributes:
        seed: of data order, adapter weights and random models.
        threads: of the processor's arithmetic; null: one for each core.
        rerun: run again where a finished run lies, and keep that one as ``<name>.old-<time>``.
        choices: the option chosen in each group.
        plugins: where the stages of plug-ins are from, by ``group.kind``; of a saved config, as it was then.
    """

    dataset: Dataset = "???"  # type: ignore[assignment]
    split: Split = "???"  # type: ignore[assignment]
    filter: dict[str, Filter] = field(default_factory=dict)
    decontaminate: Decontaminate = field(default_factory=Decontaminate)
    dedup: Dedup = "???"  # type: ignore[assignment]
    template: Template = "???"  # type: ignore[assignment]
    model: Model = "???"  # type: ignore[assignment]
    trainer: Full = "???"  # type: ignore[assignment]
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = "???"  # type: ignore[assignment]
    launch: Launcher = "???"  # type: ignore[assignment]
    store: StorePlace = field(default_factory=StorePlace)
    seed: int = bounded(42, at_least=0, below=2**32, limit=f"from 0 to {2**32 - 1}, as numpy requires")
    threads: int | None = bounded(None, at_least=1, limit="at least 1, or null for one per core")
    rerun: bool = False
    choices: dict[str, Any] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse knobs that contradict one another."""
        super().__post_init__()
        limits = {"split.max_eval_tokens": self.split.max_eval_tokens}
        if "length" in self.filter:
            limits["filter.length.max_tokens"] = self.filter["length"].max_tokens  # type: ignore[attr-defined]
        for name, value in limits.items():
            if value > self.trainer.max_length:
                raise ConfigError(
                    f"{name}={value}: must be at most trainer.max_length={self.trainer.max_length}, since longer rows "
                    f"cannot be trained or measured; lower {name} or raise trainer.max_length"
                )
        self.plugins = self.plugins or self.plugged()

    def plugged(self) -> dict[str, str]:
        """Say where the stages of plug-ins are from as they are now, by ``group.kind``."""
        filters = [*self.filter.values(), *self.split.filter.values()]
        stages = [("dataset", self.dataset), ("split", self.split), *(("filter", keep) for keep in filters),
                  ("dedup", self.dedup), ("template", self.template)]  # fmt: skip
        return {f"{group}.{_kind(group, stage)}": said for group, stage in stages if (said := origin(type(stage)))}

    def check(self) -> list[str]:
        """Look at the world with the standard library alone: files, packages, folders. Empty when all is well."""
        problems = []
        if (self.threads or 0) > (most := 4 * (os.cpu_count() or 1)) and not self.launch.is_remote:
            problems.append(
                f"threads={self.threads}: must be at most {most}, four for each core; or null, one for each"
            )
        path = str(getattr(self.dataset, "path", ""))
        if self.choices.get("dataset") == "starter" and not path.startswith("package:"):
            problems.append(f"dataset.path={path}: dataset=starter is the bundled rows; for yours write dataset=file")
        problems += [*self.dataset.check(), *self.split.check(), *self.template.check(), *self.model.check()]
        problems += [problem for keep in self.filter.values() for problem in keep.check()]
        problems += [
            *self.decontaminate.check(),
            *self.trainer.check(),
            *self.evaluation.check(),
            *self.tracking.check(),
            *self.launch.check(),
            *self.store.open().check(several_machines=self.launch.several_machines),
        ]
        for key, embedder in self.embedders().items():
            problems += embedder.check(key)
        if self.plugins != (now := self.plugged()):
            problems += [
                f"plugins.{name}: this run was made with {self.plugins.get(name)}, here is {now.get(name)}; put "
                "that one back, or let sft-lab replay run it with this one"
                for name in {**self.plugins, **now}
                if self.plugins.get(name) != now.get(name)
            ]
        return problems

    def embedders(self) -> dict[str, Embedder]:
        """Return the embedders that the run's stages load, by key."""
        loaded = {"dedup.embedder": self.dedup.embedder} if isinstance(self.dedup, Semantic) else {}
        if self.decontaminate.method.name == "semantic":
            loaded["decontaminate.embedder"] = self.decontaminate.embedder
        return loaded

    def saved(self) -> dict[str, Any]:
        """Give the run as plain data, each stage with its ``kind``: what ``config.yaml`` holds."""
        stages = {name.name: _saved(name.name, getattr(self, name.name)) for name in fields(self)}
        if not self.plugins:
            del stages["plugins"]
        return {"format": FORMAT, **stages}

    def to_yaml(self) -> str:
        """Give the text of ``config.yaml``."""
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(self.saved()))

    @property
    def hash(self) -> str:
        """Identity of the job: everything that changes its result, 12 hex digits."""
        return digest(_in_order(self.identity()))[:12]

    def identity(self) -> dict[str, Any]:
        """Everything of the saved config that changes the result."""
        found = {name: value for name, value in self.saved().items() if name not in NOT_IDENTITY}
        found["dataset"] = {name: value for name, value in found["dataset"].items() if name != "max_record_mb"}
        # A step takes as many batches as there are processes; how they share the work changes no result.
        return found | ({"num_processes": self.launch.num_processes} if self.launch.num_processes > 1 else {})

    def trained_as(self, data: Prepared) -> str:
        """A key of the training rows and of all that is done with them: equal where two thresholds keep the same."""
        others = {name: value for name, value in self.identity().items() if name not in CHOOSING}
        return digest([data.train_fingerprint, others])

    def preparation(self, context: StageContext) -> Preparation:
        """Give what carries rows from stage to stage and keeps the waterfall."""
        from sft_lab.data.preparation import Preparation

        return Preparation(context, self.trainer.max_length, loss_on_all=self.trainer.loss_on.name == "all")

    def prepare(self, context: StageContext, work: Preparation | None = None) -> Prepared:
        """Carry out the data stages: load, split, filter, decontaminate, dedup, template, tokenize.

        Args:
            context: the run's tools.
            work: to look into afterwards, where a stage may stop the line.
        """
        work = work or self.preparation(context)
        with during("load"):
            loaded = self.dataset(context, held_out=self.split.source())
        sides = work.split(loaded, self.split, self.dataset.surplus)
        train = sides.train
        for name, keep in self.filter.items():
            train = work.filter(name, keep, train)
        against = self.benchmark_rows(context)
        train = work.step("decontaminate", train, self.decontaminate(train, sides.measured, context, against))
        insisted = set[str]().union(*(keep.insists_on() for keep in self.filter.values()))
        train = work.step(f"dedup.{_kind('dedup', self.dedup)}", train, self.dedup(train, context).bring_back(insisted))
        return work.finish(self.template, train, sides.held_out)

    def benchmark_rows(self, context: StageContext) -> Rows | None:
        """Give the rows of ``decontaminate.against``, None without any."""
        files = self.decontaminate.against
        return Benchmarks.of(files)(context).rows if files else None

    def data_fingerprint(self, store: Store) -> str:
        """A key of the content of all that the run reads: source, held-out file, benchmarks, a person's decisions."""
        found = [self.dataset.fingerprint(store)]
        if source := self.split.source():
            found.append(source.fingerprint(store))
        kept = [*self.filter.values(), *self.split.filter.values()]
        files = [*(file for keep in kept for file in keep.files()), *map(Path, self.decontaminate.against)]
        files += [package_path(path) for path in self.evaluation.sets().values() if not path.startswith("package:")]
        found += [inputs.sha256(self, store, [file]) for file in files]
        return found[0] if len(found) == 1 else digest(found)

    def execute(self, path: RunDir | Path | str | None = None) -> dict[str, Any]:
        """Carry out the whole run in a folder and give its summary.

        Args:
            path: the run folder; None: ``outputs/<date>/<time>``.

        Raises:
            UserError: for input that turns out wrong when it is read, and a folder of another config or other data.
            JobError: when the run fails later.
        """
        with heavy_imports.imports():
            from sft_lab.run.training_session import TrainingSession

        folder = self._folder(path)
        if world() != self.launch.num_processes:
            raise ConfigError(
                f"launch.num_processes={self.launch.num_processes}: the number of processes that train here is "
                f"{world()}, and another number makes other steps; `sft-lab exec {folder.path}` starts as many"
            )
        if rank():
            return self._train_along(folder)
        with self._at_work(folder), TrainingSession(self, folder) as session:
            data = self.prepare(session.context)
            session.begin(data)
            base = session.measure_base(data)
            trained = session.train(data)
            tuned = session.measure_tuned(data, trained)
            return session.finish(data, base, trained, tuned)

    def _folder(self, path: RunDir | Path | str | None) -> RunDir:
        if isinstance(path, RunDir):
            return path
        if path is None:
            return RunDir.new()[0]
        folder = RunDir(Path(path))
        folder.refuse_other_job(self.hash)
        return folder

    @contextmanager
    def _at_work(self, folder: RunDir, work: str = RUN) -> Iterator[None]:
        """Every way into a run folder leads through here: by one process at a time, and with the data it began with."""
        with folder.claimed():
            folder.refuse_other_data(lambda noted: inputs.changes(self, noted))
            with folder.running(work), resource_errors.told(self, folder.path):
                yield

    def _train_along(self, folder: RunDir) -> dict[str, Any]:
        """Do every step of training with the process that writes."""
        from sft_lab.run.training_session import AssistingSession

        with resource_errors.told(self, folder.path), AssistingSession(self, folder) as session:
            data = self.prepare(session.context)
            folder.refuse_other_data(lambda noted: inputs.changes(self, noted, session.context.store))
            session.train(data)
        return {}

    def fill_store(self, path: RunDir | Path | str | None = None) -> None:
        """Carry out the data stages and leave their results in the store: what several processes begin with.

        Args:
            path: as for ``execute``.

        Raises:
            UserError, JobError: as ``execute`` does.
        """
        with heavy_imports.imports():
            from sft_lab.run.session import Session

        folder = self._folder(path)
        with self._at_work(folder, PREPARE), Session(self, folder) as session:
            self.prepare(session.context)
            session.note_inputs()

    def context(self, store: Store | None = None, folder: RunDir | None = None) -> StageContext:
        """Return the tools that stages work with.

        Args:
            store: another than the run's.
            folder: of a run that may have begun; its template's date stays.
        """
        context = StageContext(
            store or self.store.open(),
            lambda: self.model.tokenizer(context, self.template.special_tokens),
            template_date(folder.manifest) if folder else None,
        )
        return context

    def prepare_only(self, path: RunDir | Path | str | None = None) -> dict[str, Any]:
        """Carry out the data stages alone in a folder: its report, and ``dataset/`` for other trainers.

        Args:
            path: as for ``execute``.

        Returns:
            Rows that were read, rows and tokens left to train on, held-out rows.

        Raises:
            UserError, JobError: as ``execute`` does.
        """
        with heavy_imports.imports():
            from sft_lab.run.session import Session

        folder = self._folder(path)
        with self._at_work(folder, PREPARE), Session(self, folder) as session:
            data = self.prepare(session.context)
            session.begin(data)
            session.write_dataset(data)
            return session.report(data)

    def score_test(self, folder: RunDir) -> dict[str, Any]:
        """Score the base model and the weights in a finished run's folder on the rows of the test side.

        Returns:
            ``test/loss``, ``test/bits_per_byte``, the same of the base model under ``base/``, and ``test_rows``.

        Raises:
            UserError: if there are no test rows or no weights.
        """
        from sft_lab.run.training_session import TrainingSession

        return TrainingSession(self, folder).score_test()


def _in_order(identity: dict[str, Any]) -> dict[str, Any]:
    """Filters work, and sources are read, in their order; a digest sorts the keys of a mapping."""
    split = {**identity["split"], "filter": list(identity["split"]["filter"].items())}
    dataset = {**identity["dataset"]}
    if "sources" in dataset:
        dataset["sources"] = list(dataset["sources"].items())
    return {**identity, "filter": list(identity["filter"].items()), "split": split, "dataset": dataset}


def _kind(group: str, stage: object) -> str:
    """Give the kind of a stage: the name its class is registered under."""
    return next(kind for kind, schema in SCHEMAS[group].items() if type(stage) is schema)


def _saved(name: str, value: Any) -> Any:
    if name == "filter":
        return {key: {"kind": _kind("filter", stage), **plain(stage, every_knob=True)} for key, stage in value.items()}
    if name in SCHEMAS:
        nested = {"filter": _saved("filter", value.filter)} if name == "split" else {}
        return {"kind": _kind(name, value), **plain(value, every_knob=True), **nested}
    return plain(value, every_knob=True)


def plan_line(run: Run) -> str:
    """Say in one line what a run will do."""
    choices = {name: "+".join(value) if isinstance(value, list) else value for name, value in run.choices.items()}
    log.debug("choices: %s", choices)
    shown = ("dataset", "filter", "dedup", "template", "model", "trainer", "tracking")
    return "  ".join(f"{name}={choices.get(name, '?')}" for name in shown)
