"""The loss, as a sum over target tokens, so that accumulation over any split of a batch is exact."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nlft.data.batch import Batch
from nlft.frozen_prefix import recalling
from nlft.types import IGNORE


def target_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Summed cross entropy of the target tokens, in nats, float32.

    Args:
        model: a causal language model with `.logits` [B, T, vocabulary] in its output.
        batch: on the model's device.

    Returns:
        Scalar float32: the sum over positions whose next token is a target.
    """
    with recalling(model, batch):
        logits = model(**batch.inputs(), use_cache=False).logits[:, :-1]
    targets = batch.labels[:, 1:]
    # Prompt tuning puts virtual tokens in front.
    logits = logits[:, -targets.shape[1] :]
    chosen = targets != IGNORE
    # Only target positions enter the softmax: prompts are most of the tokens.
    return F.cross_entropy(logits[chosen].float(), targets[chosen], reduction="sum")
