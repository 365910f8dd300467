"""Background statistics: which tokens count, moments of a stream, whitening."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from nlft.anatomy import find_blocks
from nlft.calibrate import Moments, block_inputs, calibrate_base, whitener
from nlft.data.batch import Batch
from nlft.errors import NlftError


def tiny() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def batch(lengths: list[int], width: int, side: str = "right", seed: int = 0) -> Batch:
    """Random rows; row i is the same whatever the padding."""
    ids, mask = (
        torch.zeros(len(lengths), width, dtype=torch.int64),
        torch.zeros(len(lengths), width, dtype=torch.int64),
    )
    for i, n in enumerate(lengths):
        row = torch.randint(1, 97, (n,), generator=torch.Generator().manual_seed(100 * seed + i))
        place = slice(0, n) if side == "right" else slice(width - n, width)
        ids[i, place], mask[i, place] = row, 1
    return Batch(ids, mask, ids)


def test_block_inputs_leave_out_padding_and_the_first_token():
    model = tiny()
    block = find_blocks(model)[2]
    seen = []
    handle = model.get_submodule(block).register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    data = batch([5, 1, 3], 7)
    with torch.no_grad():
        model(input_ids=data.input_ids, attention_mask=data.attention_mask)
    handle.remove()
    (inputs,) = block_inputs(model, [block], [data])
    assert inputs.rows.tolist() == [0, 0, 0, 0, 2, 2]
    expected = torch.cat([seen[0][0, 1:5], seen[0][2, 1:3]])
    torch.testing.assert_close(inputs.states[block], expected, rtol=0, atol=1e-6)
    (every,) = block_inputs(model, [block], [data], first=True)
    assert every.rows.tolist() == [0] * 5 + [1] + [2] * 3
    torch.testing.assert_close(every.states[block][5], seen[0][1, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("first", "last", "counts"),
    [
        (True, True, [5, 1, 3, 2]),
        (True, False, [4, 0, 2, 1]),
        (False, True, [4, 0, 2, 1]),
        (False, False, [3, 0, 1, 0]),
    ],
)
def test_block_inputs_leave_out_the_ends_of_rows(side, first, last, counts):
    model = tiny()
    block = find_blocks(model)[1]
    data = batch([5, 1, 3, 2], 7, side=side)
    (every,) = block_inputs(model, [block], [data], first=True)
    (inputs,) = block_inputs(model, [block], [data], first=first, last=last)
    assert torch.bincount(inputs.rows, minlength=4).tolist() == counts
    kept = [
        states[0 if first else 1 : len(states) if last else -1] for states in every.states[block].split([5, 1, 3, 2])
    ]
    assert torch.equal(inputs.states[block], torch.cat(kept))


@pytest.mark.parametrize("other", [batch([5, 2, 4], 5), batch([5, 2, 4], 11), batch([5, 2, 4], 9, side="left")])
def test_block_inputs_do_not_depend_on_padding(other):
    model = tiny()
    blocks = find_blocks(model)[1:3]
    (one,) = block_inputs(model, blocks, [batch([5, 2, 4], 6)])
    (two,) = block_inputs(model, blocks, [other])
    assert torch.equal(one.rows, two.rows)
    for name in blocks:
        torch.testing.assert_close(one.states[name], two.states[name], rtol=0, atol=1e-5)


def test_block_inputs_restore_modes_leave_no_hook_and_stop_early():
    model = tiny()
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    blocks = find_blocks(model)
    late = []
    model.model.layers[3].register_forward_pre_hook(lambda *_: late.append(3))
    (inputs,) = block_inputs(model, blocks[:2], [batch([4], 4)])
    assert not inputs.states[blocks[0]].requires_grad
    assert [module.training for module in model.modules()] == before
    assert all(not model.get_submodule(name)._forward_pre_hooks for name in blocks)
    assert late == []


def test_block_inputs_read_a_half_precision_base_as_float32():
    model = tiny().to(torch.bfloat16)
    (inputs,) = block_inputs(model, find_blocks(model)[:1], [batch([4], 4)])
    assert inputs.states[find_blocks(model)[0]].dtype == torch.float32


def test_block_inputs_of_a_peft_model_take_the_names_of_its_base():
    model = tiny()
    blocks = find_blocks(model)[1:2]
    (plain,) = block_inputs(model, blocks, [batch([4], 4)])
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    (same,) = block_inputs(wrapped, blocks, [batch([4], 4)])
    torch.testing.assert_close(plain.states[blocks[0]], same.states[blocks[0]], rtol=0, atol=1e-6)


def test_a_block_that_takes_no_part_is_an_error():
    model = tiny()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(NlftError, match="'spare' took no part"):
        list(block_inputs(model, ["spare"], [batch([3], 3)]))


@pytest.mark.parametrize("cuts", [[50], [1, 49], [13, 0, 20, 17], [1] * 50])
def test_moments_of_a_stream_equal_those_of_the_whole(cuts):
    states = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1000
    moments = Moments()
    for part in states.split(cuts):
        moments.add(part)
    assert moments.count == 50
    torch.testing.assert_close(moments.mean, states.double().mean(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(moments.covariance, torch.cov(states.double().T, correction=0), rtol=0, atol=1e-9)


def test_whitened_states_have_unit_covariance():
    states = torch.randn(500, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = states @ torch.diag(torch.logspace(-1, 1, 8, dtype=torch.float64)) + 5
    moments = Moments()
    moments.add(states)
    projection = whitener(moments, shrinkage=1e-9).double()
    out = (states - moments.mean) @ projection
    torch.testing.assert_close(torch.cov(out.T, correction=0), torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-4)


def test_whitener_is_well_conditioned_with_fewer_states_than_dimensions():
    moments = Moments()
    moments.add(torch.randn(5, 20, generator=torch.Generator().manual_seed(0)))
    scales = whitener(moments, shrinkage=0.01).norm(dim=0)
    average = float(moments.covariance.diagonal().mean())
    # A direction without any variance is scaled by sqrt(1 / (shrinkage * average)) and no more.
    assert float(scales.max()) == pytest.approx((0.01 * average) ** -0.5, rel=1e-4)
    assert torch.isfinite(scales).all()


def test_whitener_orders_directions_by_variance_with_fixed_signs():
    moments = Moments()
    moments.add(torch.randn(300, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8))
    found = whitener(moments)
    assert (found.gather(0, found.abs().argmax(dim=0, keepdim=True)) > 0).all()
    assert (found.norm(dim=0).diff() > 0).all()  # the larger a variance, the smaller its scale


def test_calibrate_base_equals_the_statistics_of_its_block_inputs():
    model = tiny()
    blocks = find_blocks(model)[1:3]
    batches = [batch([6, 4], 6), batch([2, 7, 5], 8, seed=1)]
    found = calibrate_base(model, blocks, batches)
    states = torch.cat([inputs.states[blocks[1]] for inputs in block_inputs(model, blocks, batches)])
    mean, projection = found[blocks[1]]
    assert (mean.shape, projection.shape, mean.dtype) == ((32,), (32, 32), torch.float32)
    torch.testing.assert_close(mean, states.mean(0), rtol=0, atol=1e-5)


def test_calibrate_base_refuses_a_background_without_tokens():
    model = tiny()
    with pytest.raises(NlftError, match="no token to calibrate on"):
        calibrate_base(model, find_blocks(model)[:1], [batch([1, 1], 3)])


def test_moments_of_wide_states_are_those_of_float64():
    states = torch.randn(700, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 300) + 100
    moments = Moments()
    for part in states.split([300, 1, 399]):
        moments.add(part)
    exact = torch.cov(states.double().T, correction=0)
    scales = exact.diagonal().sqrt()
    assert float(((moments.covariance - exact) / scales / scales[:, None]).abs().max()) < 1e-6
    torch.testing.assert_close(moments.mean, states.double().mean(0), rtol=0, atol=1e-10)
