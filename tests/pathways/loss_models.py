"""Models whose loss is compared with its naive twin: values, all gradients, and what goes into the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from families import build
from pathway_models import batch

from nlft.anatomy import decoder_layers, root_of
from nlft.data.batch import Batch
from nlft.loss import naive_target_loss, target_loss

ROWS = batch(5, 10, 3)
TARGETS = ROWS.n_targets
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Relative to the largest gradient; those of a sum whose terms cancel are nothing but rounding."""


def model_of(family: str, trained: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of which one layer is trained, or everything."""
    model = build(family, dtype)
    model.set_experts_implementation("eager")  # the other one knows no float64
    (decoder_layers(model)[1][2] if trained == "layer" else model).requires_grad_(True)
    return model


def learn(
    loss: Callable[[Any, Batch], torch.Tensor], model: Any, rows: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and all gradients."""
    torch.manual_seed(5)
    model.zero_grad()
    found = loss(model, rows)
    (found / 7).backward()
    return found.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def assert_twins(model: Any, rows: Batch, dtype: torch.dtype = torch.float32) -> None:
    value, gradients = learn(target_loss, model, rows)
    expected, wanted = learn(naive_target_loss, model, rows)
    assert value.dtype == expected.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradients.keys() == wanted.keys() and wanted
    torch.testing.assert_close(value, expected, rtol=TOLERANCE[dtype], atol=0)
    largest = max(float(one.abs().max()) for one in wanted.values())
    for name, one in wanted.items():
        error = float((gradients[name] - one).abs().max())
        assert error <= TOLERANCE[dtype] * largest, (name, error, largest)


def heads_inputs(model: Any, rows: Batch) -> list[int]:
    """Tokens that went into the head, call by call."""
    found: list[int] = []
    head = root_of(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, args: found.append(args[0].shape[:-1].numel()))
    target_loss(model, rows).backward()
    handle.remove()
    return found
