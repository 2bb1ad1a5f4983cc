"""The data stages in order, from a data set to the tokens that a model is trained on.

    load → split → filter → decontaminate → dedup → template → tokenize

Each stage is an option of the config and can be called alone: ``compose([]).dedup(rows)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sft_lab.core.errors import during
from sft_lab.data.mixture import Benchmarks
from sft_lab.data.trained_turns import LabelRules

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.core.rows import Rows
    from sft_lab.data.chat_template import Template
    from sft_lab.data.filters import Filter
    from sft_lab.data.load import Dataset
    from sft_lab.data.preparation import Preparation, Prepared
    from sft_lab.data.split import Split
    from sft_lab.dedup.decontaminate import Decontaminate
    from sft_lab.dedup.exact import Dedup
    from sft_lab.training.config import Full


class DataConfig(Protocol):
    """The part of a run's config that the data stages need."""

    dataset: Dataset
    split: Split
    filter: dict[str, Filter]
    decontaminate: Decontaminate
    dedup: Dedup
    template: Template
    trainer: Full  # whose length and loss decide about the tokens

    @property
    def dedup_kind(self) -> str:
        """What the waterfall calls the dedup."""


def prepare(config: DataConfig, context: StageContext, work: Preparation | None = None) -> Prepared:
    """Carry out the data stages.

    Args:
        config: the stages.
        context: the tools they work with.
        work: to read afterwards, where a stage may end the pipeline with an error; None: a new one, of a run that
            trains.

    Raises:
        UserError: if the data set cannot be read, no row of it can be used, or too few are held out to judge a run.
        JobError: if no training rows are left.
    """
    work = work or start(config, context)

    with during("load"):
        loaded = config.dataset(context, held_out=config.split.source())

    with during("split"):
        sides = work.split(loaded, config.split, config.dataset.surplus)

    train = sides.train
    for name, row_filter in config.filter.items():
        train = work.filter(name, row_filter, train)

    benchmarks = benchmark_rows(config, context)
    decontaminated = config.decontaminate(train, sides.measured, context, benchmarks)
    train = work.step("decontaminate", train, decontaminated)

    required_ids = set[str]().union(*(row_filter.insists_on() for row_filter in config.filter.values()))
    deduplicated = config.dedup(train, context).bring_back(required_ids)
    train = work.step(f"dedup.{config.dedup_kind}", train, deduplicated)

    return work.finish(train, sides.held_out)  # template and tokenize, of both sides


def start(config: DataConfig, context: StageContext, *, to_train: bool = True) -> Preparation:
    """Return a preparation that has seen no rows yet; it takes them from stage to stage and counts them.

    From now on the context counts tokens by the config's template, in the pass that encodes the rows.

    Args:
        config: the stages.
        context: the tools they work with.
        to_train: refuse rows that no run could train on or be judged by; else they are only looked at.
    """
    from sft_lab.data.drop_advice import DropAdvice
    from sft_lab.data.preparation import Preparation
    from sft_lab.data.tokens_and_labels import encode

    rules = label_rules(config)
    context.encode = lambda rows, template=config.template: encode(rows, template, context, rules)
    loss_on_all = config.trainer.loss_on.name == "all"
    compared = {"decontaminate": config.decontaminate.on, "dedup": getattr(config.dedup, "on", None)}
    advice = DropAdvice(
        compared,
        config.trainer.max_length,
        config.split.max_eval_tokens,
        first_exchange=config.dataset.turns.name == "first",
    )
    return Preparation(context, config.trainer.max_length, loss_on_all=loss_on_all, to_train=to_train, advice=advice)


def label_rules(config: DataConfig) -> LabelRules:
    """Return what of a conversation trains."""
    data = config.dataset
    return LabelRules(data.train_on, data.reasoning, config.trainer.loss_weights, config.template.unroll)


def benchmark_rows(config: DataConfig, context: StageContext) -> Rows | None:
    """Return the rows of ``decontaminate.against``, None without any."""
    files = config.decontaminate.against
    return Benchmarks.of(files)(context).rows if files else None
