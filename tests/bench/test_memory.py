"""The counter of peak memory, against sums by hand and against the process's own."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from nlft.config import PrefixConfig
from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.frozen_prefix import install_prefix, keep_prefix
from nlft.loss import target_loss
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import begin_task, memories
from nlft.peak import read_peak, reset_peak
from nlft.prefix_store import PrefixStore

BENCH = Path(__file__).parents[2] / "eval" / "bench"
MEMORY = runpy.run_path(str(BENCH / "memory.py"))
CPU = torch.device("cpu")
N = 250_000
MB = 4 * N
"""Bytes of N float32 numbers."""


def peak(run: Any) -> float:
    """In units of MB."""
    return MEMORY["peak_bytes"](run, CPU) / MB


def test_what_is_freed_makes_room() -> None:
    def run() -> None:
        x = torch.zeros(N)
        y = x.exp()  # 2
        del x
        torch.stack([y, y])  # 3

    assert peak(run) == pytest.approx(3, abs=0.01)


def test_the_peak_may_lie_in_the_middle_and_inside_an_operation() -> None:
    def run() -> None:
        x = torch.zeros(N)
        torch.cat([x, x, x])  # 4 for a moment
        x.exp()  # 2

    assert peak(run) == pytest.approx(4, abs=0.01)


def test_what_was_there_before_does_not_count() -> None:
    held = [torch.zeros(4 * N)]

    def run() -> None:
        held.clear()
        held.append(torch.zeros(N))

    assert peak(run) == pytest.approx(1, abs=0.01)


def test_views_and_changes_in_place_take_nothing() -> None:
    x = torch.zeros(N)
    assert peak(lambda: x.view(2, -1).t().add_(1)) < 0.01


def test_a_step_holds_what_the_backward_pass_needs() -> None:
    # The gradient of the first map, [1000, 500], is by far the largest of what a step makes.
    model = nn.Sequential(nn.Linear(500, 1000), nn.Tanh(), nn.Linear(1000, 1))
    x = torch.ones(2, 500)
    gradients = 4 * (500 * 1000 + 1000 + 1000 + 1)

    def run() -> None:
        model(x).sum().backward()
        model.zero_grad(set_to_none=True)

    found = MEMORY["peak_bytes"](run, CPU)
    hidden = 4 * 2 * 1000  # of tanh's output, which is kept, and of what comes and goes around it
    assert gradients + hidden <= found <= gradients + 4 * hidden


@pytest.mark.skipif(read_peak(CPU).process is None, reason="the kernel does not tell")
def test_the_process_sees_the_same() -> None:
    def run() -> None:
        x = torch.ones(40 * N)
        x.exp()  # 80 MB in all

    def resident() -> int:
        reset_peak(CPU)
        before = read_peak(CPU).process
        run()
        after = read_peak(CPU).process
        assert before is not None and after is not None
        return after - before

    run()
    assert peak(run) == pytest.approx(80, abs=0.01)
    assert resident() / MB == pytest.approx(80, rel=0.1)


def test_weights_that_are_shared_count_once() -> None:
    model: Any = nn.Module()
    model.a = nn.Parameter(torch.zeros(N))
    model.b = nn.Linear(1, 1, bias=False)
    model.b.weight = model.a
    model.c = nn.Parameter(torch.zeros(2 * N), requires_grad=False)
    model.register_buffer("d", torch.zeros(N))
    model.register_buffer("e", model.d[: N // 2])
    assert MEMORY["weight_bytes"](model) == (3 * MB, MB)


def test_what_is_kept_to_be_fast_counts(make_model: Any) -> None:
    """The turned copy of the keys that can fire, and the states of rows in front of the first memory."""
    base = make_model("llama")
    config = SparseMemoryPeftConfig(task_type="CAUSAL_LM", layers_to_transform=[2])
    model = get_peft_model(base, config)
    (block, core), *_ = memories(model).items()
    keys = torch.nn.functional.normalize(torch.randn(5, core.key_width), dim=1)
    begin_task(model, "task", {block: (keys, torch.tensor([0.1, 0.1, 0.1, 0.1, 2.0]))})  # the last one cannot fire
    batch = collate([Encoded(list(range(3, 9)), [-100, *range(4, 9)], 0)], 0)
    assert MEMORY["kept_bytes"](model, CPU, True) == 0
    prefix = PrefixConfig()
    install_prefix(model, "random", prefix, PrefixStore(None, prefix))
    keep_prefix(model, batch.rows, 0)
    target_loss(model, batch)
    index = 4 * 5 + 4 * (4 * core.key_width + 4) + 8 * 4  # thresholds; turned keys, their thresholds; places
    assert MEMORY["kept_bytes"](model, CPU, False) == index
    assert MEMORY["kept_bytes"](model, CPU, True) == index + 4 * 6 * base.config.hidden_size


def test_blocks_are_known_by_their_address() -> None:
    events = [
        (1.0, {"Ev Idx": 0, "Addr": 7, "Bytes": 10}),
        (2.0, {"Ev Idx": 1, "Addr": 9, "Bytes": -50}),  # was there before
        (3.0, {"Ev Idx": 2, "Addr": 8, "Bytes": 20}),  # 30
        (4.0, {"Ev Idx": 3, "Addr": 7, "Bytes": -10}),
        (5.0, {"Ev Idx": 4, "Addr": 7, "Bytes": 15}),  # 35
        (5.0, {"Ev Idx": 5, "Addr": 7, "Bytes": -15}),
        (6.0, {"Ev Idx": 6, "Addr": 3, "Bytes": 5}),
    ]
    assert MEMORY["highest"](reversed(events)) == 35
