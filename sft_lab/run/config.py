"""``Run``, the object that a composed config becomes. It holds the stages; the other modules here work with them.

``Run`` has a short method for each of them, for use from Python.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab import pipeline
from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.engine import Engine
from sft_lab.core.errors import ConfigError
from sft_lab.core.stage import UsesContext
from sft_lab.core.store import Store, default_root
from sft_lab.data.chat_template import Template
from sft_lab.data.filters import Filter
from sft_lab.data.load import Dataset
from sft_lab.data.split import Split
from sft_lab.data.trained_turns import TrainOn
from sft_lab.dedup.decontaminate import Decontaminate
from sft_lab.dedup.exact import Dedup
from sft_lab.dedup.semantic import Semantic
from sft_lab.evaluation.config import Evaluation
from sft_lab.run import checks, execute, identity, inputs
from sft_lab.run.launch_config import Launcher
from sft_lab.run.overview import choices_line, choices_table
from sft_lab.run.schemas import kind_of
from sft_lab.tracking.config import Tracking
from sft_lab.training.config import Full
from sft_lab.training.models import Model

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.core.run_dir import RunDir
    from sft_lab.data.preparation import Preparation, Prepared
    from sft_lab.dedup.embed import Embedder


@dataclass
class StoreConfig:
    """Where stage results are kept; null: ``$SFT_LAB_STORE``, else the user's cache folder."""

    path: str | None = None

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        self.path = str(Path(self.path).expanduser().absolute()) if self.path else None

    def open(self) -> Store:
        """Return the store."""
        return Store(Path(self.path) if self.path else default_root())


@dataclass
class PrepareOptions:
    """What ``dataset/`` holds besides the rows. Calling it runs the data stages: ``run.prepare(context)``.

    Attributes:
        tokens: whether it holds ``input_ids`` and ``labels`` too.
    """

    tokens: bool = False

    def bind(self, run: Run) -> None:
        """Set the run whose data stages a call carries out."""
        self._run = run

    def __call__(self, context: StageContext, work: Preparation | None = None) -> Prepared:
        """Carry out the data stages; see ``pipeline.prepare``."""
        return pipeline.prepare(self._run, context, work)


@dataclass
class Run(Bounded):
    """One run: its stages, in the order they work.

    Attributes:
        seed: of data order, adapter weights and random models.
        threads: for arithmetic on the CPU; null: one for each core.
        rerun: run again in the folder of a finished run, and keep that one as ``<name>.old-<time>``.
        choices: the option chosen in each group.
        plugins: package or module of each stage that comes from a plug-in, by ``group.kind``; in a saved config, as
            it was when the run was made.
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
    tracking: Tracking = field(default_factory=Tracking)
    launch: Launcher = "???"  # type: ignore[assignment]
    engine: Engine = "???"  # type: ignore[assignment]
    store: StoreConfig = field(default_factory=StoreConfig)
    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    seed: int = bounded(42, at_least=0, below=2**32, limit=f"from 0 to {2**32 - 1}, as numpy requires")
    threads: int | None = bounded(None, at_least=1, limit="at least 1, or null for one per core")
    rerun: bool = False
    choices: dict[str, Any] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse fields that contradict one another."""
        super().__post_init__()
        self.prepare = replace(self.prepare)  # one shared with another run would carry out that run's stages
        self.prepare.bind(self)
        self._attach_stages()
        self._refuse_longer_rows()
        if self.trainer.loss_weights and self.dataset.train_on is not TrainOn.marked:
            raise ConfigError(
                f"trainer.loss_weights=true: has no effect with dataset.train_on={self.dataset.train_on.name}; "
                "set dataset.train_on=marked, or leave it out"
            )
        self.plugins = self.plugins or identity.plugin_origins(self)

    def _attach_stages(self) -> None:
        """Let stages that are called alone use one context of this run; they may be shared with another run."""
        make_context = functools.cache(self.context)
        for name in ("split", "decontaminate", "dedup", "template"):
            setattr(self, name, copy.copy(getattr(self, name)))
        self.filter = {name: copy.copy(stage) for name, stage in self.filter.items()}
        stages: list[UsesContext] = [self.split, self.decontaminate, self.dedup, self.template, *self.filter.values()]
        for stage in stages:
            stage.attach(make_context)

    def __repr__(self) -> str:
        return f"Run({choices_line(self)})"

    def _repr_html_(self) -> str:
        return choices_table(self)

    def _refuse_longer_rows(self) -> None:
        limits = {"split.max_eval_tokens": self.split.max_eval_tokens}
        if "length" in self.filter:
            limits["filter.length.max_tokens"] = self.filter["length"].max_tokens  # type: ignore[attr-defined]
        for name, value in limits.items():
            if value > self.trainer.max_length:
                raise ConfigError(
                    f"{name}={value}: must be at most trainer.max_length={self.trainer.max_length}, since longer rows "
                    f"cannot be trained or measured; lower {name} or raise trainer.max_length"
                )

    @property
    def dedup_kind(self) -> str:
        """The kind of the dedup: ``exact``, ``semantic``, ..."""
        return kind_of("dedup", self.dedup)

    def embedders(self) -> dict[str, Embedder]:
        """Return the embedders that the run's stages load, by key."""
        embedders = {"dedup.embedder": self.dedup.embedder} if isinstance(self.dedup, Semantic) else {}
        if self.decontaminate.method.name == "semantic":
            embedders["decontaminate.embedder"] = self.decontaminate.embedder
        return embedders

    def check(self, *, to_start: bool = True) -> list[str]:
        """Return every problem, naming key or file; none when the run can start.

        Args:
            to_start: whether to include what only this machine lacks.
        """
        return [*checks.check(self), *(checks.missing(self) if to_start else [])]

    def missing(self) -> list[str]:
        """Return the packages and devices that this machine lacks to train the run."""
        return checks.missing(self)

    def saved(self, *, complete: bool = False) -> dict[str, Any]:
        """Return the run as plain data, each stage with its ``kind``; ``complete`` as ``config.yaml`` has it."""
        return identity.saved_config(self, complete=complete)

    def to_yaml(self) -> str:
        """Return the text of ``config.yaml``."""
        return identity.to_yaml(self)

    @property
    def hash(self) -> str:
        """Identity of the job: a key of everything that changes its result, 12 hex digits."""
        return identity.job_hash(self)

    def identity(self) -> dict[str, Any]:
        """Return everything of the saved config that changes the result."""
        return identity.job_identity(self)

    def data_fingerprint(self, store: Store) -> str:
        """Return a key of the content of all that the run reads."""
        return inputs.data_fingerprint(self, store)

    def context(self, store: Store | None = None, folder: RunDir | None = None) -> StageContext:
        """Return the tools that stages work with.

        Args:
            store: another than the run's.
            folder: of a run that may have begun; its template's date stays.
        """
        return execute.create_context(self, store, folder)

    def execute(self, path: RunDir | Path | str | None = None) -> dict[str, Any]:
        """Carry out the whole run in a folder and return its summary.

        Args:
            path: the run folder; None: ``outputs/<date>/<time>``.

        Raises:
            UserError: for input that turns out wrong when it is read, and a folder of another config or other data.
            JobError: when the run fails later.
        """
        return execute.execute(self, path)

    def prepare_only(self, path: RunDir | Path | str | None = None) -> dict[str, Any]:
        """Carry out the data stages alone in a folder: its report, and ``dataset/`` for other trainers.

        Args:
            path: as for ``execute``.

        Returns:
            Rows that were read, rows and tokens left to train on, held-out rows.

        Raises:
            UserError, JobError: as ``execute`` does.
        """
        return execute.prepare_only(self, path)

    def fill_store(self, path: RunDir | Path | str | None = None) -> None:
        """Carry out the data stages and leave their results in the store: what several processes begin with.

        Args:
            path: as for ``execute``.

        Raises:
            UserError, JobError: as ``execute`` does.
        """
        execute.fill_store(self, path)

    def score_test(self, folder: RunDir) -> dict[str, Any]:
        """Score the base model and the weights in a finished run's folder on the rows of the test side.

        Returns:
            ``test/loss``, ``test/bits_per_byte``, the same of the base model under ``base/``, and ``test_rows``.

        Raises:
            UserError: if there are no test rows or no weights.
        """
        return execute.score_test(self, folder)
