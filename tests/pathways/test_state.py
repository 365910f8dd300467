"""The keeper of states and its layer of a cache."""

from __future__ import annotations

import pytest
import torch
from hope_models import hope, keeper_of, lively, rows_of
from pathway_models import build
from transformers import DynamicCache

from nlft.errors import NlftError
from nlft.pathways.state import Carried, StateLayer


def layer_of(past: DynamicCache) -> StateLayer:
    [layer] = [one for one in past.layers if isinstance(one, StateLayer)]
    return layer


def test_a_forward_pass_without_cache_keeps_nothing():
    adapted = lively()
    ids = rows_of([12, 12])[0]
    with torch.no_grad():
        first = adapted(input_ids=ids, use_cache=False).logits
        assert torch.equal(adapted(input_ids=ids, use_cache=False).logits, first)
    now = keeper_of(adapted).now
    assert now.states is None and now.kept is None and now.past is None


def test_the_cache_keeps_its_shape():
    adapted, base = lively(), build("llama")
    ids = rows_of([12, 12])[0]
    with torch.no_grad():
        past = adapted(input_ids=ids, use_cache=True).past_key_values
        plain = base(input_ids=ids, use_cache=True).past_key_values
    assert past.get_seq_length() == plain.get_seq_length() == 12
    assert past.get_max_length() == plain.get_max_length()
    assert past.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)
    assert past.is_initialized and not past.is_croppable and plain.is_croppable
    assert past.is_dummy == [False] * 4 + [True]  # what is offloaded and masked goes by the other layers
    layer = layer_of(past)
    assert set(layer.states) == {"model.layers.1.mlp", "model.layers.3.mlp"}
    for state in layer.states.values():
        assert {name: tuple(t.shape) for name, t in state.items()} == {
            "running": (2, 2, 8, 8),
            "boundary": (2, 2, 8, 8),
            "count": (2,),
            "tail": (2, 3, 48),
        }
        assert not any(t.requires_grad for t in state.values()) and state["count"].tolist() == [12, 12]


def test_rows_follow_what_is_done_to_the_cache():
    adapted = lively()
    ids, more = rows_of([12, 12, 12])[0], rows_of([12, 12, 12], seed=9)[0][:, :5]

    def filled(tokens: torch.Tensor) -> DynamicCache:
        return adapted(input_ids=tokens, use_cache=True).past_key_values

    def rest(past: DynamicCache, tokens: torch.Tensor) -> torch.Tensor:
        return adapted(input_ids=tokens, past_key_values=past).logits

    with torch.no_grad():
        for name, rows in (("reorder_cache", [2, 0, 0]), ("batch_select_indices", [1]), ("repeat", [0, 0, 1, 1, 2, 2])):
            index = torch.tensor(rows)
            past = filled(ids)
            if name == "repeat":
                past.batch_repeat_interleave(2)
            else:
                getattr(past, name)(index)
            torch.testing.assert_close(
                rest(past, more[index]), rest(filled(ids[index]), more[index]), rtol=1e-5, atol=1e-5
            )
        past = filled(ids)
        past.reset()
        assert layer_of(past).states == {} and past.get_seq_length() == 0
        torch.testing.assert_close(rest(past, ids), adapted(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_only_a_whole_pass_can_be_taken_back():
    adapted = lively()
    ids, more = rows_of([12])[0], rows_of([12], seed=9)[0]
    with torch.no_grad():
        past = adapted(input_ids=ids, use_cache=True).past_key_values
        past.crop(0)
        expected = adapted(input_ids=more, past_key_values=past).logits
        past.crop(-12)
        again = adapted(input_ids=more, past_key_values=past).logits
        torch.testing.assert_close(again, expected, rtol=0, atol=0)
    for removed in (1, 11, 13, 24):
        with pytest.raises(NlftError, match=f"{removed} tokens of a draft"):
            layer_of(past).crop(-removed)
    layer_of(past).crop(-12)
    with pytest.raises(NlftError, match="12 tokens of a draft"):  # what stood before that is gone
        layer_of(past).crop(-12)


def test_a_cache_that_the_memory_did_not_see_is_refused():
    adapted, base = lively(), build("llama")
    ids = rows_of([12, 12])[0]
    with torch.no_grad():
        expected = base(input_ids=ids).logits
        past = base(input_ids=ids[:, :6], use_cache=True).past_key_values
        with adapted.disable_adapter():  # nobody asks the memory
            rest = adapted(input_ids=ids[:, 6:8], past_key_values=past).logits
            torch.testing.assert_close(rest, expected[:, 6:8], rtol=0, atol=1e-5)
        with pytest.raises(NlftError, match="filled without this adapter's memory"):
            adapted(input_ids=ids[:, 8:], past_key_values=past)
        past = adapted(input_ids=ids[:, :6], use_cache=True).past_key_values
        with adapted.disable_adapter():
            adapted(input_ids=ids[:, 6:8], past_key_values=past)
        with pytest.raises(NlftError, match="filled without this adapter's memory"):
            adapted(input_ids=ids[:, 8:], past_key_values=past)
        assert torch.isfinite(adapted(input_ids=ids).logits).all()


def test_a_checkpointed_pass_leaves_an_empty_cache_empty():
    adapted = hope(build("llama"))
    adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted.train()
    past = DynamicCache()
    adapted(input_ids=rows_of([12])[0], past_key_values=past)
    assert not any(isinstance(one, StateLayer) for one in past.layers)


def test_states_of_two_adapters_share_a_cache():
    adapted = lively()
    ids = rows_of([12])[0]
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        adapted.add_adapter("other", adapted.peft_config["default"])
        past = adapted(input_ids=ids[:, :6], use_cache=True).past_key_values
        assert [one.adapter for one in past.layers if isinstance(one, StateLayer)] == ["default"]
        rest = adapted(input_ids=ids[:, 6:], past_key_values=past).logits
        torch.testing.assert_close(rest, expected[:, 6:], rtol=1e-5, atol=1e-5)
        adapted.set_adapter("other")
        with pytest.raises(NlftError, match="filled without this adapter's memory"):
            adapted(input_ids=ids, past_key_values=past)


def test_rows_of_a_carried_state_must_match_and_stay():
    adapted = lively()
    ids = rows_of([12, 12])[0]
    keeper_of(adapted).carried = Carried()
    with torch.no_grad():
        past = adapted(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(NlftError, match="state is one of 2 rows, and 1 rows"):
            adapted(input_ids=ids[:1])
        with pytest.raises(NlftError, match="beams change places"):
            past.reorder_cache(torch.tensor([1, 0]))
        with pytest.raises(NlftError, match="beams change places"):
            past.batch_repeat_interleave(2)
