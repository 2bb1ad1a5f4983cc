"""Packing is refused for models whose layers keep a state from one row to the next."""

from __future__ import annotations

import pytest
import transformers
from test_positions import SMALL, save

from sft_lab.cli import main
from sft_lab.training.rehearsal import stateful_kind

LINEAR = ("qwen3_next", "jamba", "mamba2", "recurrent_gemma", "nemotron_h", "minimax")
KINDS = {
    **dict.fromkeys(LINEAR, "linear_attention"), "rwkv": "rwkv", "xlstm": "xlstm", "falcon_h1": "hybrid",
    **dict.fromkeys(("llama", "qwen3", "gemma3_text", "gpt_oss", "mistral", "phi3", "smollm3", "gpt2"), ""),
}  # fmt: skip


@pytest.mark.parametrize("family", KINDS)
def test_layers_that_keep_a_state_are_known_by_the_config(family: str) -> None:
    assert stateful_kind(transformers.AutoConfig.for_model(family)) == KINDS[family]


@pytest.fixture
def hybrid(here):
    """A model of convolutions and attention, as LFM2's."""
    shape = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    shape |= {"intermediate_size": 8, "layer_types": ["conv", "full_attention"]}
    save(here / "model", transformers.Lfm2ForCausalLM, transformers.Lfm2Config, **shape)
    return here


def test_packing_is_refused_before_any_row_is_read(hybrid, capsys) -> None:
    assert main.main([*SMALL, "trainer.packing=true"]) == 2
    message = capsys.readouterr().err
    assert "trainer.packing=true: this model (lfm2) has conv layers" in message
    assert "load " not in message
