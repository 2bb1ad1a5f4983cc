"""Which parts of a conversation train."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from sft_lab.core.params import plain
from sft_lab.data.messages import Message, is_silent
from sft_lab.data.template_input import without_thought
from sft_lab.data.template_layout import CannotRender


class TrainOn(Enum):
    """Which assistant turns train: every one, the last, or those whose ``weight`` is not 0."""

    all = "all"
    last = "last"
    marked = "marked"


class Reasoning(Enum):
    """How thoughts are treated: trained, left out of the text, or in the text but not in the loss."""

    keep = "keep"
    drop = "drop"
    mask = "mask"


class SystemTurn(Enum):
    """How a system turn is treated; ``merge`` puts it into the first user turn if the template takes none."""

    keep = "keep"
    merge = "merge"
    drop = "drop"


class Unroll(Enum):
    """Whether a conversation becomes several examples if the template hides the thoughts of earlier turns."""

    auto = "auto"
    never = "never"


@dataclass(frozen=True)
class LabelRules:
    """Which parts of a conversation train.

    Attributes:
        train_on: which assistant turns.
        reasoning: how thoughts are treated.
        loss_weights: whether the loss applies weights other than 0 and 1.
        unroll: see ``Unroll``.
    """

    train_on: TrainOn = TrainOn.all
    reasoning: Reasoning = Reasoning.keep
    loss_weights: bool = False
    unroll: Unroll = Unroll.auto

    def changes(self) -> dict[str, Any]:
        """Return the rules that differ from the defaults, as plain data."""
        return {knob.name: plain(value) for knob in fields(self) if (value := getattr(self, knob.name)) != knob.default}

    def weights(self, messages: list[Message]) -> dict[int, float]:
        """Return the weight of each assistant turn that trains, by its index.

        Raises:
            CannotRender: if none does.
        """
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        filled = [index for index in turns if self._has_content(messages[index])]
        # An end of turn alone would teach silence. Empty turns train only if the conversation has no others, in which
        # case the filters have let it pass.
        weights = dict.fromkeys(filled or [index for index in turns if is_silent(messages[index])], 1.0)
        if self.train_on is TrainOn.last:
            weights = dict(list(weights.items())[-1:])
        elif self.train_on is TrainOn.marked:
            weights = {index: float(messages[index].get("weight", 1)) for index in weights}
            weights = {index: weight for index, weight in weights.items() if weight}
        if not weights:
            raise CannotRender("no_turn_trains")
        return weights

    def _has_content(self, message: Message) -> bool:
        """Return whether a turn has content that trains; a thought that is dropped or masked does not count."""
        return not is_silent(message if self.reasoning is Reasoning.keep else without_thought(message))
