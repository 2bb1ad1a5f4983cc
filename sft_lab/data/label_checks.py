"""Checks of all messages before they are encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from sft_lab.core.columns import message_fields
from sft_lab.core.errors import SourceError
from sft_lab.core.rows import Rows
from sft_lab.core.text import count_of
from sft_lab.data.examples import ExampleMaker
from sft_lab.data.trained_turns import TrainOn

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext


def check_messages(rows: Rows, maker: ExampleMaker, context: StageContext) -> None:
    """Refuse weights that the loss would not apply; notice roles and marks that are not used as written.

    Raises:
        SourceError: for such a weight, naming the row.
    """
    messages = rows.arrow("messages")
    if not pa.types.is_list(messages.type):  # no row has a message
        return
    roles = pc.struct_field(pc.list_flatten(messages), "role")
    developers = pc.sum(pc.equal(roles, "developer")).as_py() or 0
    if developers and "developer" not in maker.renderer.jinja:
        context.notice(f"template: has no role developer; {count_of(developers, 'developer turn')} became system turns")
    if "weight" not in message_fields(messages):
        return

    weights = pc.struct_field(pc.list_flatten(messages), "weight")
    weights = pc.if_else(pc.equal(roles, "assistant"), weights, pa.scalar(None, weights.type))  # no other role trains
    if maker.rules.train_on is TrainOn.marked:
        if not maker.rules.loss_weights:
            _refuse_fractions(rows, messages, weights)
    elif zeros := pc.sum(pc.equal(weights, 0)).as_py():
        context.notice(
            f"dataset.train_on={maker.rules.train_on.name}: {count_of(zeros, 'message')} with train=false or weight 0; "
            "these have an effect only with dataset.train_on=marked"
        )


def _refuse_fractions(rows: Rows, messages: pa.ChunkedArray, weights: pa.ChunkedArray) -> None:
    is_odd = pc.invert(pc.is_in(weights, pa.array([0, 1, None], weights.type)))
    index = pc.index(is_odd, pa.scalar(value=True)).as_py()
    if index >= 0:
        row = pc.list_parent_indices(messages.combine_chunks())[index].as_py()
        raise SourceError(
            f"row {rows.ids[row]}: a turn's weight is {weights[index].as_py():g}, and dataset.train_on=marked allows "
            "only 0 and 1; trainer.loss_weights=true applies other weights in the loss"
        )
