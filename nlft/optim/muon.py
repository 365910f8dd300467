"""Muon: momentum, orthogonalised."""

from __future__ import annotations

# torch._foreach_*: one call for many tensors, as torch's own optimisers do.
# pyright: reportPrivateImportUsage=false
from typing import Any

import torch

from nlft.ops.orthogonal import orthogonalised
from nlft.optim.deep import DeepOptimizer, as_matrix, by_shape, wide


class Muon(DeepOptimizer):
    """Muon (Jordan 2024) with steps of the size of AdamW's (Liu et al. 2025, Muon is scalable).

        M <- momentum M + (1 - momentum) g      W <- W - lr 0.2 sqrt(max(out, in)) NS((1 - momentum) g + momentum M)

    The rule of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, which takes one matrix after another through
    bfloat16: on a CPU that made a step of a model of 1.5 M parameters last a second. This one takes matrices of equal
    shape together, in float32, and needs no torch 2.9. Further dimensions join the last.

    Args:
        params: matrices.
        lr: learning rate.
        momentum: of the gradients.
        weight_decay: decoupled.
        nesterov: looks one step ahead as above; otherwise NS(M).
        steps: of the Newton–Schulz iteration.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        steps: int = 5,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "steps": steps,
        }
        super().__init__(params, defaults)

    def step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """Momenta of all at once, then matrices of equal shape together."""
        gradients = {p: wide(p.grad) for p in parameters if p.grad is not None}
        for p, g in gradients.items():
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(g)
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, list(gradients.values()), 1 - group["momentum"])
        for alike in by_shape(parameters):
            stacked = torch.stack([as_matrix(self.state[p]["momentum"]) for p in alike])
            if group["nesterov"]:
                stacked = torch.stack([as_matrix(gradients[p]) for p in alike]).lerp(stacked, group["momentum"])
            rate = float(group["lr"]) * 0.2 * max(stacked.shape[1:]) ** 0.5
            for p, o in zip(alike, orthogonalised(stacked, group["steps"]), strict=True):
                p.sub_((rate * o).view_as(p).to(p.dtype))
