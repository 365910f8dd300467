"""The loss, as a sum over target tokens, so that accumulation over any split of a batch is exact."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from nlft.data.batch import Batch
from nlft.frozen_prefix import recalling
from nlft.head import Head
from nlft.types import IGNORE


def target_loss(model: Any, batch: Batch) -> Tensor:
    """Summed cross entropy of the target tokens, in nats.

    Only target tokens enter the head, and no more at once than a block of logits holds (`Head.tokens`).

    Args:
        model: a causal language model with `.logits` [B, T, vocabulary] in its output.
        batch: on the model's device.

    Returns:
        Scalar, float32 (float64 of a float64 model): the sum over tokens that are targets.
    """
    head = Head(model)
    width = batch.labels.shape[1]
    row, column = (batch.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    targets = batch.labels[row, column + 1]
    size = head.tokens(targets.device) if head.stands_alone else len(targets)
    whole = len(targets) <= size or not head.can_repeat
    seen: list[Tensor] = []

    def choose(states: Tensor) -> Tensor:
        # Prompt tuning puts virtual tokens in front.
        seen.append(states[row, column + states.shape[1] - width])
        return (seen[0] if whole else seen[0][:0])[None]

    with recalling(model, batch), head.seeing(choose):
        logits = model(**batch.inputs(), use_cache=False).logits
    if not seen:
        return nats(logits[row, column + logits.shape[1] - width], targets)
    if whole:
        return nats(logits[0], targets)
    if torch.is_grad_enabled() and not head.trains(seen[0]):
        return cast(Tensor, FrozenHeadLoss.apply(seen[0], targets, head, size))
    losses = []
    for states, wanted in zip(seen[0].split(size), targets.split(size), strict=True):
        # Logits are computed again in the backward pass, for gradients of the head's weights need all of them.
        losses.append(checkpoint(chunk_loss, head, states, wanted, use_reentrant=False))
    return torch.stack(losses).sum()


def naive_target_loss(model: Any, batch: Batch) -> Tensor:
    """Twin of `target_loss`, which makes the logits of all tokens."""
    with recalling(model, batch):
        logits = model(**batch.inputs(), use_cache=False).logits[:, :-1]
    targets = batch.labels[:, 1:]
    logits = logits[:, -targets.shape[1] :]
    chosen = targets != IGNORE
    return nats(logits[chosen], targets[chosen])


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross entropy of targets [N] under logits [N, vocabulary]: a scalar, in float32 or better."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


def chunk_loss(head: Head, states: Tensor, targets: Tensor) -> Tensor:
    """The loss of states [N, D] in front of the head."""
    return nats(head.logits(states), targets)


class FrozenHeadLoss(torch.autograd.Function):
    """The loss of states [N, D] in front of a head that is not trained, `size` tokens at a time.

    A chunk's gradient is taken while its logits are there, so none are kept and none are computed twice.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Head, size: int) -> Tensor:
        """The sum over all chunks; keeps the gradient by the states."""
        losses, gradients = [], []
        for part, wanted in zip(states.detach().split(size), targets.split(size), strict=True):
            with torch.enable_grad():
                leaf = part.requires_grad_()
                loss = chunk_loss(head, leaf, wanted)
            with torch.autocast(states.device.type, enabled=False):  # as in any backward pass
                gradients += torch.autograd.grad(loss, leaf)
            losses.append(loss.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient by the states, [N, D]."""
        (kept,) = ctx.saved_tensors
        return (gradient * kept).to(kept.dtype), None, None, None
