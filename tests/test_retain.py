"""The retention budget: what is lost, which shift is chosen, and whether new text is within it."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.pathways.shift import SILENT, set_shift, shifts
from nlft.retain import Kept, bounded, choose_shift, cluster_means, count_clusters, lost, pick, predictions
from nlft.types import IGNORE

sys.path.append(str(Path(__file__).parent / "pathways"))

from pathway_models import build, trained


def mask(text: str) -> torch.Tensor:
    """`101` is right, wrong, right."""
    return torch.tensor([letter == "1" for letter in text], dtype=torch.bool)


def row(ids: list[int], labels: list[int] | None = None, cluster: str = "") -> Encoded:
    return Encoded(ids, ids if labels is None else labels, 0, cluster)


def test_lost_by_hand() -> None:
    before = [mask("1100"), mask("111"), mask("0"), mask(""), mask("10110")]
    after = [mask("0110"), mask("111"), mask("1"), mask(""), mask("01000")]
    # Gains (the second token of the first row, the third row) are not set off.
    assert lost(before, after).tolist() == [0.25, 0.0, 0.0, 0.0, 0.6]


def test_clusters_weigh_alike() -> None:
    rows = [row([1, 2], cluster=name) for name in "abaac"]
    means = cluster_means(rows, torch.tensor([0.3, 0.5, 0.6, 0.0, 1.0], dtype=torch.float64))
    assert means.tolist() == pytest.approx([0.3, 0.5, 1.0])
    assert count_clusters(rows) == 3


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_are_those_of_one_row_at_a_time(batch_size: int, dtype: torch.dtype) -> None:
    model = build("llama", dtype)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (2, 9, 5, 1, 9, 13, 7):
        ids = torch.randint(3, 97, (length,), generator=generator).tolist()
        with torch.no_grad():
            guessed = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        # Every other target is what the model says; the third is no target.
        labels = [IGNORE, *((guess if i % 2 else (guess + 1) % 97) for i, guess in enumerate(guessed[:-1]))]
        labels[2:3] = [IGNORE] * len(labels[2:3])
        rows.append(row(ids, labels))
    found = predictions(model, rows, 0, batch_size)
    wanted = [[i % 2 == 0 for i in range(1, len(one.ids)) if one.labels[i] != IGNORE] for one in rows]
    assert [one.tolist() for one in found] == wanted
    assert not model.training


def test_bounds_by_hand() -> None:
    """The second cluster recovers at the lowest shift, and its bound does not."""
    losses = [(2.0, [0.0, 0.0, 0.0]), (1.0, [0.0, 0.5, 0.1]), (0.0, [0.2, 0.1, 0.3])]
    curve = list(bounded((shift, torch.tensor(one, dtype=torch.float64)) for shift, one in losses))
    assert [point.lost for point in curve] == pytest.approx([0.0, 0.2, 0.2])
    assert [point.bound for point in curve] == pytest.approx([1 / 4, 1.6 / 4, 2.0 / 4])
    assert pick(curve, 0.45).shift == 1.0
    assert pick(curve, 0.5).shift == 0.0
    assert pick(curve, 0.25).shift == 2.0


def naive_choice(losses: list[list[float]], grid: list[float], budget: float) -> float | None:
    """The smallest shift at which, and above which everywhere, the sum of each cluster's worst keeps the budget."""
    good = []
    for shift in grid:
        worst = [max(losses[g][c] for g in range(len(grid)) if grid[g] >= shift) for c in range(len(losses[0]))]
        if (sum(worst) + 1) / (len(worst) + 1) <= budget + 1e-9:
            good.append(shift)
    return min(good, default=None)


def test_the_choice_is_that_of_a_brute_force_search() -> None:
    rng = random.Random(0)
    chosen = set()
    for _ in range(300):
        grid = sorted(rng.sample([x / 20 for x in range(-4, 12)], rng.randint(1, 9)))
        n = rng.randint(1, 12)
        losses = [[rng.random() ** 4 * (1 - shift) for _ in range(n)] for shift in grid]
        budget = rng.choice([0.1, 0.3, 0.5, 0.8])
        points = bounded(
            (s, torch.tensor(one, dtype=torch.float64)) for s, one in zip(grid[::-1], losses[::-1], strict=True)
        )
        wanted = naive_choice(losses, grid, budget)
        if wanted is None:
            with pytest.raises(NlftError, match="cannot be kept"):
                pick(points, budget)
        else:
            assert pick(points, budget).shift == wanted
        chosen.add(None if wanted is None else grid.index(wanted))
    assert len(chosen) > 5


def test_the_search_stops_at_the_first_failure() -> None:
    def curve() -> Iterator[Kept]:
        yield Kept(1.0, 0.0, 0.1, 9)
        yield Kept(0.5, 0.3, 0.4, 9)
        raise AssertionError("looked further")

    point = pick(curve(), 0.2)
    assert point.shift == 1.0
    assert [one.shift for one in point.curve] == [1.0, 0.5]


@pytest.mark.parametrize("wave", [0.0, 0.5])
def test_new_text_is_within_the_budget(wave: float) -> None:
    """Clusters that stop losing above a shift of their own; with a wave the loss is not even monotone."""
    budget, n, repetitions = 0.1, 60, 200
    grid = [i / 50 for i in range(51)]

    def draw(generator: torch.Generator, count: int) -> list[tuple[float, torch.Tensor]]:
        size, until, phase = torch.rand(3, count, generator=generator, dtype=torch.float64)
        return [
            (shift, size * (until > shift) * (1 - wave * (1 + torch.sin(40 * shift + 6.28 * phase)) / 2))
            for shift in grid[::-1]
        ]

    realised = []
    for seed in range(repetitions):
        generator = torch.Generator().manual_seed(seed)
        shift = pick(bounded(draw(generator, n)), budget).shift
        realised.append(float(dict(draw(generator, 400))[shift].mean()))
    values = torch.tensor(realised, dtype=torch.float64)
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(repetitions)
    assert mean <= budget + 2 * error
    assert mean >= budget / 2  # and the budget is used


def marked_rows(model: Any) -> list[Encoded]:
    """Random rows of the task's tokens and of others, with what the base says as targets, in clusters of two."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for number in range(24):
        low, high = (60, 80) if number % 2 else (3, 60)
        ids = torch.randint(low, high, (6 + number % 4,), generator=generator).tolist()
        with torch.no_grad(), model.disable_adapter():
            guessed = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        rows.append(row(ids, [IGNORE, *guessed[:-1]], cluster=f"c{number // 2}"))
    return rows


@pytest.mark.parametrize("budget", [0.08, 0.15, 0.3, 0.9])
def test_a_models_shift_is_that_of_a_brute_force_search(budget: float) -> None:
    model = trained("llama", "prototype")
    rows = marked_rows(model)
    grid = [-0.2, 0.0, 0.1, 0.2, 0.3, 0.5, SILENT]
    set_shift(model, 0.07)
    point = choose_shift(model, rows, 0, budget, grid=grid, batch_size=5)
    assert shifts(model) == pytest.approx({"first task": 0.07})
    assert point == choose_shift(model, rows, 0, budget, grid=grid[::-1], batch_size=5)
    losses = []
    for shift in grid:
        set_shift(model, shift)
        of_rows = []
        for one in rows:
            with torch.no_grad():
                said = model(input_ids=torch.tensor([one.ids])).logits[0, :-1].argmax(-1).tolist()
            of_rows.append(sum(a != b for a, b in zip(said, one.labels[1:], strict=True)) / len(said))
        losses.append([(of_rows[i] + of_rows[i + 1]) / 2 for i in range(0, len(rows), 2)])
    assert point.shift == naive_choice(losses, grid, budget)
    assert [one.lost for one in point.curve] == pytest.approx(
        [sum(one) / 12 for one in losses[::-1]][: len(point.curve)]
    )
    assert point.curve[0].lost == 0  # silent


def test_budgets_that_cannot_be_kept() -> None:
    model = trained("llama", "prototype")
    rows = marked_rows(model)
    with pytest.raises(NlftError, match="needs at least 99 held-out background groups, and there are 12"):
        choose_shift(model, rows, 0, 0.01)
    set_shift(model, -0.2)
    with pytest.raises(NlftError, match=r"cannot be kept: at the largest shift, -0\.2"):
        choose_shift(model, [replace(one, cluster=str(i)) for i, one in enumerate(rows)], 0, 0.05, grid=[-0.2])
