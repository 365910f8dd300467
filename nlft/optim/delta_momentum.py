"""Delta momentum: a momentum that makes room for what it is about to write."""

from __future__ import annotations

# torch._foreach_*: one call for many tensors, as torch's own optimisers do.
# pyright: reportPrivateImportUsage=false
from typing import Any, Literal

import torch

from nlft.errors import NlftError
from nlft.optim.deep import DeepOptimizer, as_matrix, wide


class DeltaMomentum(DeepOptimizer):
    """Momentum learned by the delta rule (Behrouz et al. 2025, Nested Learning, Sec. 4.4, Eq. 49).

    Momentum is a memory of gradients. With the dot product as its objective it is heavy-ball momentum. With the squared
    error |m g^T - P|^2 the write first takes away what the memory already says along the gradient:

        m <- m (alpha I - g^T g) - P g        W <- W + lr m

    What is fixed here:

    - Shapes. g is the gradient of W [out, in] as it is, so m is [out, in], g^T g is [in, in] and P [out, out]. A vector
      is one row, further dimensions join the last.
    - The learning rate stands outside the momentum, as in torch's SGD; at a constant rate that is the paper's rule with
      its eta inside (both are linear in m), and a schedule acts at once.
    - Signs are those that descend; the paper's P is a preconditioner with the sign of the step.
    - `normalise` (default). As printed, the rule diverges when an eigenvalue of g^T g stays above 1 + alpha, and does
      next to nothing when gradients are small. So the delta term uses g / |g| (Frobenius norm): its eigenvalues add up
      to 1, and a factor between alpha - 1 and alpha can only shrink m. `normalise=False` is the literal rule.
    - `preconditioner`. `identity` is P = I. `rms` (default) is P g = g / sqrt(v), with v Adam's second moment, its
      bias corrected, so that learning rates are of the size of Adam's. This P works entry by entry, not on rows.

    State: one float32 per parameter, two with `rms`. Vectors take O(in) operations, matrices two products of
    min(out^2 in, in^2 out) multiplications and additions.

    Args:
        params: as of every torch optimiser.
        lr: learning rate.
        momentum: alpha, at least 0 and below 1.
        weight_decay: decoupled.
        normalise: the delta term uses the direction of the gradient only.
        preconditioner: P.
        beta2: decay of the second moment in `rms`.
        eps: added to its root.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        normalise: bool = True,
        preconditioner: Literal["identity", "rms"] = "rms",
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        if preconditioner not in ("identity", "rms"):
            raise NlftError(f"delta_momentum has no preconditioner {preconditioner!r}.", "Choose `identity` or `rms`.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "normalise": normalise,
            "preconditioner": preconditioner,
            "beta2": beta2,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """Forgets along the gradient, then writes it; elementwise work is done for all parameters at once."""
        gradients = [wide(p.grad) for p in parameters if p.grad is not None]
        for p, g in zip(parameters, gradients, strict=True):
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(g)
                if group["preconditioner"] == "rms":
                    state["second"], state["step"] = torch.zeros_like(g), 0
        momenta = [self.state[p]["momentum"] for p in parameters]
        erased = [along(m, g, group["normalise"]) for m, g in zip(momenta, gradients, strict=True)]
        if group["preconditioner"] == "rms":
            gradients = self._preconditioned(group, parameters, gradients)
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_sub_(momenta, erased)
        torch._foreach_sub_(momenta, gradients)
        steps = torch._foreach_mul(momenta, float(group["lr"]))
        torch._foreach_add_(parameters, [s.to(p.dtype) for s, p in zip(steps, parameters, strict=True)])

    def _preconditioned(
        self, group: dict[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Gradients over the root of their second moment."""
        seconds = [self.state[p]["second"] for p in parameters]
        torch._foreach_mul_(seconds, group["beta2"])
        torch._foreach_addcmul_(seconds, gradients, gradients, 1 - group["beta2"])
        corrections = []
        for p in parameters:
            self.state[p]["step"] += 1
            corrections.append((1 - group["beta2"] ** self.state[p]["step"]) ** 0.5)
        roots = torch._foreach_sqrt(seconds)
        torch._foreach_div_(roots, corrections)
        torch._foreach_add_(roots, group["eps"])
        return list(torch._foreach_div(gradients, roots))


def along(momentum: torch.Tensor, gradient: torch.Tensor, normalise: bool) -> torch.Tensor:
    """m g^T g in the shape of m, by the cheaper order of products; with g of Frobenius norm 1 if `normalise`."""
    m, g = as_matrix(momentum), as_matrix(gradient)
    product = (m @ g.mT) @ g if g.shape[0] <= g.shape[1] else m @ (g.mT @ g)
    if normalise:
        product = product / g.square().sum().clamp(min=torch.finfo(g.dtype).tiny)
    return product.view_as(momentum)


def naive_delta_momentum(
    weight: torch.Tensor, gradients: list[torch.Tensor], lr: float, momentum: float, normalise: bool
) -> torch.Tensor:
    """The twin with P = I: weight [out, in] after the gradients [out, in], with every matrix written out."""
    m = torch.zeros_like(weight)
    for g in gradients:
        key = g / g.norm() if normalise else g
        forget = momentum * torch.eye(weight.shape[1], dtype=weight.dtype) - key.T @ key
        m = m @ forget - torch.eye(weight.shape[0], dtype=weight.dtype) @ g
        weight = weight + lr * m
    return weight
