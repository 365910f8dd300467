"""Heights that a budget allows: bins against sorted scores, and the guarantee by simulation."""

from __future__ import annotations

import math

import pytest
import torch

from nlft.errors import NlftError
from nlft.ops.risk import BINS, Exceedances, allowance, naive_height


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (0.0, 256.0)])
@pytest.mark.parametrize("n", [1, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_height_equals_its_twin_up_to_a_bin(bounds, n, dtype):
    lowest, highest = bounds
    scores = lowest + (highest - lowest) * torch.rand(n, generator=generator(n), dtype=dtype)
    scores[: n // 3] = scores[0].clone()  # ties
    weights = torch.rand(n, generator=generator(1), dtype=torch.float64)
    exceedances = Exceedances(lowest, highest)
    exceedances.add(scores, weights)
    total = float(weights.sum())
    ties = float(weights[scores == scores[0]].sum())
    for most in (0.0, 0.1 * total, 0.5 * total, min(ties, 0.99 * total), 0.999 * total):
        height, twin = exceedances.height(most), naive_height(scores, weights, most)
        assert 0 <= height - twin <= (highest - lowest) / BINS * (1 + 1e-6)
        assert float(weights[scores > height].sum()) <= most + 1e-9


def test_a_stream_equals_one_batch():
    scores, weights = torch.randn(500, generator=generator()), torch.rand(500, generator=generator(1))
    whole, parts = Exceedances(), Exceedances()
    whole.add(scores, weights)
    for place in (slice(0, 1), slice(1, 1), slice(1, 333), slice(333, 500)):
        parts.add(scores[place], weights[place])
    torch.testing.assert_close(parts.bins, whole.bins, rtol=0, atol=1e-12)
    assert all(parts.height(most) == whole.height(most) for most in (0.0, 0.5, 17.0, 200.0))


def test_scores_off_the_range():
    exceedances = Exceedances(0.0, 256.0)
    exceedances.add(torch.tensor([-5.0, 3.0, 1e6]), torch.ones(3))
    assert exceedances.height(0.0) == math.inf  # no bin edge is above a million
    assert exceedances.height(1.0) == pytest.approx(3.0, abs=256 / BINS * 1.01)
    assert exceedances.height(2.0) == pytest.approx(0.0, abs=256 / BINS * 1.01)
    assert exceedances.height(3.0) == 0.0
    assert Exceedances().height(0.0) == -2.0  # nothing was seen, so nothing is above anything


@pytest.mark.parametrize(("budget", "least"), [(0.5, 1), (0.1, 9), (0.01, 99), (0.01 / 3, 299), (0.05 / 7, 139)])
def test_the_least_number_of_units(budget, least):
    assert allowance(budget, least) == pytest.approx(0.0, abs=1e-6)
    assert allowance(budget, 2 * least + 1) == pytest.approx(1.0, abs=1e-6)
    if least > 1:
        with pytest.raises(NlftError, match=f"needs at least {least} held-out .* and there are {least - 1}"):
            allowance(budget, least - 1)
    with pytest.raises(NlftError, match="there are 0"):
        allowance(budget, 0)


@pytest.mark.parametrize("budget", [k / n for n in (3, 7, 12, 49, 300) for k in (1, 2)])
def test_what_is_said_to_be_enough_is_enough(budget):
    with pytest.raises(NlftError) as caught:
        allowance(budget, 0)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    assert allowance(budget, least) >= 0


@pytest.mark.parametrize(("budget", "groups"), [(0.01, 120), (0.05, 60), (0.2, 30)])
@pytest.mark.parametrize("rows", [1, 4])
def test_new_groups_keep_within_the_budget(budget, groups, rows):
    """400 calibrations on exchangeable groups whose rows are alike; each height is put to 200 new groups."""
    repetitions, new = 400, 200
    shape = (repetitions, groups + new, rows)
    shared = torch.randn(shape[:2], generator=generator(rows), dtype=torch.float64)[..., None]
    scores = torch.tanh(shared + 0.5 * torch.randn(shape, generator=generator(9), dtype=torch.float64))
    known, fresh = scores[:, :groups], scores[:, groups:]
    allowed = allowance(budget, groups)
    rates = torch.zeros(repetitions, dtype=torch.float64)
    for number in range(repetitions):
        exceedances = Exceedances(-1.0, 1.0)
        exceedances.add(known[number].flatten(), torch.full((groups * rows,), 1 / rows))
        height = exceedances.height(allowed)
        rates[number] = (fresh[number] > height).double().mean()
        assert float((known[number] > height).double().mean()) <= budget
    mean, error = float(rates.mean()), float(rates.std()) / repetitions**0.5
    assert mean <= budget + 3 * error
    assert mean >= budget - 2 / (groups + 1) - 3 * error  # and no more is given away than the theorem says
    assert mean > 0
