"""From which token on a gate is open, against the twins."""

from __future__ import annotations

import pytest
import torch

from nlft.ops.gate import accumulate, naive_accumulate, naive_sticky, sticky


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1, 0, 1), (1, 1, 1), (3, 7, 2), (2, 33, 5), (0, 4, 2)])
def test_sticky_equals_its_twin(shape, decay):
    fires = torch.rand(shape, generator=generator()) < 0.2
    found = sticky(fires, decay)
    torch.testing.assert_close(found, naive_sticky(fires, decay), rtol=0, atol=1e-6)
    assert found.shape == shape and found.dtype == torch.float32


def test_sticky_holds_decays_and_never_looks_ahead():
    fires = torch.tensor([False, True, False, False, True, False])[None, :, None]
    assert sticky(fires, 1.0).flatten().tolist() == [0, 1, 1, 1, 1, 1]
    assert sticky(fires, 0.5).flatten().tolist() == [0, 1, 0.5, 0.25, 1, 0.5]
    assert sticky(fires, 0.0).flatten().tolist() == [0, 1, 0, 0, 1, 0]
    never = torch.zeros(2, 5, 3, dtype=torch.bool)
    assert all(torch.equal(sticky(never, decay), never.float()) for decay in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 0, 1), (1, 1, 1), (3, 7, 2), (2, 301, 5)])
def test_accumulate_equals_its_twin(shape, dtype):
    evidence = torch.randn(shape, generator=generator(), dtype=dtype) - 0.3
    found = accumulate(evidence)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found, naive_accumulate(evidence), rtol=0, atol=tolerance)
    assert found.dtype == dtype and not (found < 0).any()


def test_accumulate_by_hand():
    evidence = torch.tensor([-1.0, 2.0, -0.5, -3.0, 1.0, 1.0])[None, :, None]
    assert accumulate(evidence).flatten().tolist() == [0, 2, 1.5, 0, 1, 2]


def test_padding_without_evidence_changes_nothing():
    evidence = torch.randn(4, 9, 2, generator=generator())
    silence = torch.zeros(4, 5, 2)
    whole = accumulate(evidence)
    assert torch.equal(accumulate(torch.cat([silence, evidence], dim=1))[:, 5:], whole)
    assert torch.equal(accumulate(torch.cat([evidence, silence], dim=1))[:, :9], whole)
    assert torch.equal(accumulate(evidence[:, :6]), whole[:, :6])  # later tokens change nothing before them


def test_a_long_row_against_a_gate_keeps_its_sum_exact():
    """Evidence falls for thousands of tokens before the row turns to the task."""
    evidence = torch.full((1, 50_000, 1), -0.1)
    evidence[:, -20:] = 0.3
    assert float(accumulate(evidence)[0, -1, 0]) == pytest.approx(6.0, abs=1e-3)
