"""The loss, as a sum over target tokens, so that accumulation over any split of a batch is exact."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nlft.types import IGNORE


def target_loss(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Summed cross entropy of the target tokens, in nats, float32.

    Args:
        model: a causal language model with `.logits` [B, T, vocabulary] in its output.
        input_ids: [B, T] int64.
        attention_mask: [B, T] int64, 0 at padding.
        labels: [B, T] int64, un-shifted; `IGNORE` where a position is no target.

    Returns:
        Scalar float32: the sum over positions whose next token is a target.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:]
    # Prompt tuning puts virtual tokens in front.
    logits = logits[:, -targets.shape[1] :]
    chosen = targets != IGNORE
    # Only target positions enter the softmax: prompts are most of the tokens.
    return F.cross_entropy(logits[chosen].float(), targets[chosen], reduction="sum")
