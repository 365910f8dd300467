"""How deep a frozen prefix is: it follows what is adapted and trained, and says where nothing can be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from prefix_models import PAD, ROWS, equal, gradients, keeping, train_from, whole_and_recalled
from torch import nn

from nlft.anatomy import decoder_layers
from nlft.data.batch import collate
from nlft.frozen_depth import draws
from nlft.frozen_prefix import keep_prefix, prefix_remarks
from nlft.loss import target_loss


def test_the_depth_follows_what_is_touched(make_model: Callable[..., Any]) -> None:
    model = train_from(make_model("llama"), 3)
    prefix, batch = keeping(model), collate(ROWS, PAD)
    assert prefix.depth == 3
    train_from(model, 1)  # as a task that begins may do
    keep_prefix(model, ROWS[:2], PAD)
    assert prefix.depth == 1 and prefix.states(batch) is None, "states of another layer are forgotten"
    handle = decoder_layers(model)[1][0].register_forward_pre_hook(lambda *_: None)
    keep_prefix(model, ROWS, PAD)
    assert prefix.depth == 0 and prefix.states(batch) is None, "somebody listens to the first layer"
    handle.remove()
    model(**batch.inputs(), output_hidden_states=True)  # leaves hooks of transformers that change nothing
    assert any(one._forward_hooks for one in decoder_layers(model)[1][0].modules())
    keep_prefix(model, ROWS, PAD)
    assert prefix.depth == 1 and prefix.states(batch) is not None
    for part in (model.model.embed_tokens, model.model.norm):
        part.requires_grad_(True)
        keep_prefix(model, ROWS, PAD)
        assert prefix.depth == 0, "what is trained may stand in front"
        part.requires_grad_(False)
    model.requires_grad_(False)
    keep_prefix(model, ROWS, PAD)
    assert prefix.depth == 3, "all but the last where nothing is touched"
    model.lm_head.requires_grad_(True)
    assert len(whole_and_recalled(train_from(model, 2), batch)[0]) > 5


@pytest.mark.parametrize(
    "settings, depth",
    [
        ({"layers_to_transform": [2, 3]}, 2),
        ({"target_modules": ["q_proj"]}, 0),
        ({"layers_to_transform": [2], "modules_to_save": ["lm_head"]}, 2),
        ({"layers_to_transform": [2], "modules_to_save": ["embed_tokens"]}, 0),
        ({"layers_to_transform": [2], "trainable_token_indices": [5]}, 0),
        ({"target_modules": ["embed_tokens"]}, 0),
    ],
)
def test_a_lora_gets_the_same_care(make_model: Callable[..., Any], settings: dict[str, Any], depth: int) -> None:
    targets = {"target_modules": ["q_proj", "down_proj"]}
    model = get_peft_model(make_model("llama"), LoraConfig(init_lora_weights=False, **{**targets, **settings}))
    batch = collate(ROWS, PAD)
    expected = gradients(model, batch)
    with torch.no_grad(), model.disable_adapter():
        base = target_loss(model, batch)
    prefix = keeping(model)
    assert prefix.depth == depth and (prefix.states(batch) is not None) is (depth > 0)
    assert equal(gradients(model, batch), expected)
    with torch.no_grad(), model.disable_adapter():
        keep_prefix(model, ROWS, PAD)
        assert prefix.depth == depth and torch.equal(target_loss(model, batch), base)
    model.requires_grad_(False)  # an adapter that is loaded and not trained
    keep_prefix(model, ROWS, PAD)
    assert prefix.depth == depth


def test_what_cannot_be_kept_is_said(make_model: Callable[..., Any]) -> None:
    prompted = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    turning = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    said = {
        "stands in front of every row": prompted,
        "by the longest row": train_from(make_model("llama", rope_parameters=turning), 2),
    }
    for words, model in said.items():
        prefix, batch = keeping(model), collate(ROWS, PAD)
        assert prefix.states(batch) is None
        [line] = prefix_remarks(model)
        assert line.startswith("Nothing of the base is kept between passes: ") and words in line
        assert prefix_remarks(model) == [], "once"
        assert torch.isfinite(target_loss(model, batch))
    everything = train_from(make_model("llama"), 0).requires_grad_(True)
    keeping(everything)
    assert prefix_remarks(everything) == []
    keeping(train_from(everything, 0))
    assert "first layer" in prefix_remarks(everything)[0]


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, False),
        ({"attention_dropout": 0.1}, True),
        ({"attn_config": {"attn_pdrop": 0.1}}, True),
        ({"ffn_config": {"inner": {"moe_jitter_eps": 0.01}}}, True),
        ({"attn_config": {"attn_pdrop": 0.0}, "summary_first_dropout": 0.1}, False),
    ],
)
def test_a_base_that_draws_is_known_by_its_settings(
    make_model: Callable[..., Any], fields: dict[str, Any], expected: bool
) -> None:
    """Also by those of sections, as MPT and DBRX have them."""
    model = make_model("llama")
    model.config.update(fields)
    assert draws(model) is expected


def test_layers_that_talk_past_their_states_are_found_out(make_model: Callable[..., Any]) -> None:
    """A few rows are read both ways before anything is kept."""
    model = train_from(make_model("llama"), 2)
    layers = decoder_layers(model)[1]

    class Talks(nn.Module):
        def __init__(self, first: bool, layer: nn.Module) -> None:
            super().__init__()
            self.first, self.layer = first, layer

        def forward(self, hidden_states: torch.Tensor, **options: Any) -> Any:
            if self.first:
                notes.append(hidden_states)
            out = self.layer(hidden_states, **options)
            return out if self.first else out + notes.pop()

    notes: list[torch.Tensor] = []
    layers[0], layers[3] = Talks(True, layers[0]), Talks(False, layers[3])
    notes.append(torch.randn(1, 1, 32))
    prefix = keeping(model)
    assert prefix.refused is not None and "other states" in prefix.refused and not prefix.store.tables
