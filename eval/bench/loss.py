"""What the loss costs: blocks of logits of several sizes against the logits of all tokens.

    python eval/bench/loss.py            # six minutes on one core
    python eval/bench/loss.py --device cuda

A Llama of width 512 with two random layers, the upper one with slots that train; batches of 4 x 128 tokens. A step is
the loss and its backward pass. Times are medians of rounds in which all take turns, as parts of the naive
loss's; bytes are the most that tensors hold at once beyond the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from memory import peak_bytes
from model import SIZES, full, random_base, random_rows, replace, slots
from rich.console import Console
from rich.table import Table
from timing import interleaved

from nlft import head
from nlft.data.batch import Batch, collate
from nlft.loss import naive_target_loss, target_loss

VOCABULARIES = (512, 8192, 32_000)
BLOCKS = (18, 20, 22, 24)
"""Logits of a block, as powers of 2."""
ROUNDS = 5


def step(loss: Callable[[Any, Batch], torch.Tensor], model: Any, batch: Batch, block: int, mixed: bool) -> None:
    """One loss and its gradients.

    Args:
        block: power of 2, of the logits that are made at once.
        mixed: bfloat16 autocast.
    """
    kind = batch.input_ids.device.type
    with (
        patch.object(head, "FEWEST", 1),
        patch.dict(head.BLOCK, {kind: 1 << block}),
        torch.autocast(kind, torch.bfloat16, enabled=mixed),
    ):
        found = loss(model, batch)
        found.backward()
    model.zero_grad()


def measure(device: torch.device) -> Table:
    """Ratios by vocabulary, share of targets and size of a block."""
    table = Table("vocabulary", "targets", "trained", *(f"2^{block}" for block in BLOCKS), "naive MB", "2^22 MB")
    for vocabulary in VOCABULARIES:
        for share, trained in ((0.25, "slots"), (1.0, "slots"), (1.0, "all")):
            size = replace(SIZES["small"], V=vocabulary, L=2)
            base = random_base(size, device, torch.float32)
            model = full(base) if trained == "all" else slots(base, [1])
            batch = collate(random_rows(size, 4, 128, share), 0).to(device)
            mixed = device.type == "cuda"
            runs = {"naive": partial(step, naive_target_loss, model, batch, 22, mixed)}
            runs |= {str(block): partial(step, target_loss, model, batch, block, mixed) for block in BLOCKS}
            times = {name: median(found) for name, found in interleaved(runs, ROUNDS, device).items()}
            peaks = [peak_bytes(runs[name], device) / 1e6 for name in ("naive", "22")]
            ratios = [f"{times[str(block)] / times['naive']:.2f}" for block in BLOCKS]
            table.add_row(str(vocabulary), f"{share:.0%}", trained, *ratios, *(f"{peak:.0f}" for peak in peaks))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    torch.set_num_threads(1)
    Console(width=120).print(measure(torch.device(parser.parse_args().device)))
