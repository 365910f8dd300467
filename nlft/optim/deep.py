"""What the optimisers of Nested Learning share."""

from __future__ import annotations

# torch._foreach_*: one call for many tensors, as torch's own optimisers do.
# pyright: reportPrivateImportUsage=false
from collections.abc import Callable, Iterator
from typing import Any

import torch


class DeepOptimizer(torch.optim.Optimizer):
    """A torch optimiser whose state keeps its own types, with decoupled weight decay in every group.

    A subclass gives `step_group`. State is float32 (float64 for such parameters) whatever the parameters are; torch
    would turn it into their type when it is loaded, so that a resumed run would differ from an uninterrupted one.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group, over the parameters that have a gradient; others and their state rest."""
        loss = evaluate(closure)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                if group["weight_decay"]:
                    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                self.step_group(group, parameters)
        return loss

    def step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """Moves the parameters, all of which have gradients."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with every tensor of the state in the type in which it was saved."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, p in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor):
                    self.state[p][key] = value.to(p.device, copy=True)


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """What a closure that was given to `step` returns, with gradients on; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def wide(tensor: torch.Tensor, copy: bool = False) -> torch.Tensor:
    """The tensor in float32, or in its own type if that is wider; itself where that changes nothing, unless `copy`."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=copy)


def as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """[out, in]: a vector or a scalar is one row, further dimensions join the last."""
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.flatten(1)


def by_shape(parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Parameters of equal shape together, so that their matrix products can be batched."""
    found: dict[Any, list[torch.Tensor]] = {}
    for p in parameters:
        found.setdefault((p.shape, p.device, p.dtype), []).append(p)
    yield from found.values()
