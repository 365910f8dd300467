"""M3: a fast and a slow momentum, both orthogonalised."""

from __future__ import annotations

# torch._foreach_*: one call for many tensors, as torch's own optimisers do.
# pyright: reportPrivateImportUsage=false
from typing import Any

import torch

from nlft.errors import NlftError
from nlft.ops.orthogonal import orthogonalised
from nlft.optim.deep import DeepOptimizer, as_matrix, by_shape, wide


class M3(DeepOptimizer):
    """Multi-scale momentum Muon (Behrouz et al. 2025, Nested Learning, Sec. 7.2, Algorithm 1 and Eq. 75).

        M1 <- fast momentum of g, every step         V <- second moment of g, every step
        M2 <- slow momentum of the sum of the last f gradients, every f steps
        W  <- W - lr (NS(M1) + a NS(M2)) / (sqrt(V) + eps)

    NS is a Newton–Schulz iteration (`orthogonalised`). The paper calls this a proof of concept, and its listing and
    its equation disagree. What is fixed here:

    - Sign: M2 grows by the gradients, as in the listing. Eq. 75 subtracts them, which would walk uphill.
    - `decay` (default): all three are exponential means, M <- beta M + (1 - beta) g, V's bias corrected. As printed
      (`decay=False`, M <- M + beta g) nothing ever decays, and 1 / sqrt(V) falls towards 0.
    - `relative` (default): V is divided by its mean over the matrix, and the step multiplied by
      0.2 sqrt(max(out, in)), which makes the root of a step's mean square about 0.2 lr (Liu et al. 2025, Muon is
      scalable), so learning rates are of the size of Adam's. As printed (`relative=False`) NS forgets the scale of the
      gradient and V does not: the step grows as gradients shrink. Dividing by sqrt(V) at all makes what was orthogonal
      no longer so.
    - Tensors with one row, vectors and scalars have nothing to orthogonalise: there NS is left out and V enters as in
      Adam, so the rule is Adam with a second, slow momentum. Further dimensions join the last.

    NS(M2) is kept between its updates. State: five floats per parameter of a matrix, four of a vector.

    Args:
        params: as of every torch optimiser.
        lr: learning rate.
        betas: of M1, V and M2.
        slow_weight: a.
        frequency: f, in optimiser steps.
        weight_decay: decoupled.
        decay: exponential means.
        relative: see above.
        steps: of the Newton–Schulz iteration.
        eps: added to the root of V.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9),
        slow_weight: float = 0.5,
        frequency: int = 8,
        weight_decay: float = 0.0,
        decay: bool = True,
        relative: bool = True,
        steps: int = 5,
        eps: float = 1e-8,
    ) -> None:
        if not isinstance(frequency, int) or frequency < 1:
            raise NlftError(f"m3 has frequency {frequency!r}.", "It is a whole number of steps from 1.")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "slow_weight": slow_weight,
            "frequency": frequency,
            "weight_decay": weight_decay,
            "decay": decay,
            "relative": relative,
            "steps": steps,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """Updates the moments of all parameters at once, then orthogonalises those of equal shape together."""
        gradients = [wide(p.grad) for p in parameters if p.grad is not None]
        for p, g in zip(parameters, gradients, strict=True):
            if not self.state[p]:
                self.state[p].update({name: torch.zeros_like(g) for name in ("fast", "slow", "second", "sum")}, step=0)
            self.state[p]["step"] += 1
        beta1, beta2, beta3 = group["betas"]
        fast, second, sums = ([self.state[p][name] for p in parameters] for name in ("fast", "second", "sum"))
        kept, taken = (beta1, 1 - beta1) if group["decay"] else (1.0, beta1)
        torch._foreach_mul_(fast, kept)
        torch._foreach_add_(fast, gradients, alpha=taken)
        kept, taken = (beta2, 1 - beta2) if group["decay"] else (1.0, beta2)
        torch._foreach_mul_(second, kept)
        torch._foreach_addcmul_(second, gradients, gradients, taken)
        torch._foreach_add_(sums, gradients)
        due = [p for p in parameters if self.state[p]["step"] % group["frequency"] == 0]
        for p in due:
            state = self.state[p]
            kept, taken = (beta3, (1 - beta3) / group["frequency"]) if group["decay"] else (1.0, beta3)
            state["slow"].mul_(kept).add_(state["sum"], alpha=taken)
            state["sum"].zero_()
        for alike in by_shape(due):
            if is_matrix(alike[0]):
                for p, o in zip(alike, self._orthogonal(alike, "slow", group["steps"]), strict=True):
                    self.state[p]["slow_step"] = o
        for alike in by_shape(parameters):
            self._move(group, alike)

    def _orthogonal(self, parameters: list[torch.Tensor], name: str, steps: int) -> list[torch.Tensor]:
        """NS of one kind of momentum of parameters of equal shape."""
        stacked = torch.stack([as_matrix(self.state[p][name]) for p in parameters])
        return [o.view_as(p) for o, p in zip(orthogonalised(stacked, steps), parameters, strict=True)]

    def _move(self, group: dict[str, Any], alike: list[torch.Tensor]) -> None:
        """Moves parameters of equal shape."""
        matrix = is_matrix(alike[0])
        if matrix:
            fast = self._orthogonal(alike, "fast", group["steps"])
            slow = [self.state[p].get("slow_step") for p in alike]
        else:
            fast, slow = ([self.state[p][name] for p in alike] for name in ("fast", "slow"))
        for p, one, two in zip(alike, fast, slow, strict=True):
            state = self.state[p]
            step = one if two is None else one + group["slow_weight"] * two
            second, rate = state["second"], float(group["lr"])
            if group["decay"]:
                second = second / (1 - group["betas"][1] ** state["step"])
                if not matrix:
                    rate = rate / (1 - group["betas"][0] ** state["step"])
            if group["relative"] and matrix:
                second = second / second.mean().clamp(min=torch.finfo(second.dtype).tiny)
                rate = rate * 0.2 * max(as_matrix(p).shape) ** 0.5
            p.sub_((rate * step / (second.sqrt() + group["eps"])).to(p.dtype))


def is_matrix(tensor: torch.Tensor) -> bool:
    """Whether there are several rows and columns to make orthogonal."""
    return min(as_matrix(tensor).shape) > 1
