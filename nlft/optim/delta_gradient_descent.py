"""Delta gradient descent: a step that also forgets, along the inputs that it saw."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nlft.errors import NlftError
from nlft.optim.deep import DeepOptimizer, wide


def delta_step(weight: torch.Tensor, gradient: torch.Tensor, moment: torch.Tensor, rate: float) -> torch.Tensor:
    """(W - rate G)(I + rate S)^-1, the minimum over V of mean_t 1/2 |V x_t - u_t|^2 + 1/(2 rate) |V - W|^2.

    With one input it is W (I - r x x^T) - r grad_y x^T for r = rate / (1 + rate |x|^2). The paper prints
    rate / (1 + rate), which is that of inputs of length 1 (Behrouz et al. 2025, Eq. 57).

    Args:
        weight: W [out, in], floating.
        gradient: G [out, in], minus the mean of u_t x_t^T.
        moment: S [in, in], the mean of x_t x_t^T.
        rate: at least 0.

    Returns:
        [out, in].
    """
    eye = torch.eye(moment.shape[0], dtype=moment.dtype, device=moment.device)
    factor, _ = torch.linalg.cholesky_ex(eye + rate * moment)  # a diverged run is found by its loop, not here
    return torch.cholesky_solve((weight - rate * gradient).mT, factor).mT


class DeltaGradientDescent(DeepOptimizer):
    """Delta gradient descent (Behrouz et al. 2025, Nested Learning, Sec. 4.5 and App. C) for linear layers.

    A linear layer y = W x is a memory that shall give u_t = -grad_y for its input x_t. Where gradient descent takes
    the dot product as its objective, this takes the squared error, in closed form over the whole batch (`delta_step`).
    So what the layer said of these inputs before fades: the layer decays, but only along the inputs that it saw.

    What is fixed here:

    - The mean over input tokens stands where the paper has one input, since gradients are means too: those of
      `nlft.train` are of a loss divided by the number of target tokens. That makes u_t minus the gradient of the loss
      at y_t times the number of input tokens, and S does not depend on how a batch is cut into micro-batches.
    - A token belongs to the batch if any gradient reaches the layer's output there; padding does not.
    - Linear layers are `nn.Linear` and GPT-2's Conv1D whose weight is trained by this optimiser and is not shared with
      another kind of module, such as an embedding. Everything else, biases among it, takes plain gradient steps, and
      so does a layer whose `forward` is not called.
    - Inputs are seen by hooks, which `close` or the end of the optimiser removes; only in training mode, and when the
      gradient comes back, so that a forward pass repeated by gradient checkpointing counts once. (Non-reentrant
      checkpointing then keeps the inputs of the layers.) Several processes add their inputs.

    A learning rate is the paper's eta. State: [in, in] for each layer between two steps, float32; a step solves with
    it, in^3 / 3 + out in^2 multiplications and additions.

    Args:
        params: as of every torch optimiser.
        lr: eta.
        weight_decay: decoupled, beside the decay of the rule itself.
        model: holds the linear layers.
    """

    def __init__(self, params: Any, lr: float, *, weight_decay: float = 0.0, model: nn.Module) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        trained = {p for group in self.param_groups for p in group["params"]}
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m.weight in trained]
        elsewhere = {
            p for m in model.modules() if not isinstance(m, nn.Linear | Conv1D) for p in m.parameters(recurse=False)
        }
        layers = [layer for layer in layers if layer.weight not in elsewhere]
        if not layers:
            raise NlftError(
                "delta_gradient_descent found no trained linear layer in the model, and is nothing without one.",
                "Choose another optimizer, or a method that trains linear layers.",
            )
        self.watched = {layer.weight for layer in layers}
        self.transposed = {layer.weight for layer in layers if isinstance(layer, Conv1D)}
        own = weakref.ref(self)
        handles = [layer.register_forward_hook(Watcher(own)) for layer in layers]
        self.close = weakref.finalize(self, remove, handles)
        """Removes the hooks; calling it again does nothing."""

    def see(self, weight: torch.Tensor, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds inputs [..., in] of a layer whose output got `gradient` [..., out]."""
        if weight not in self.watched:
            return  # a copy of the model, which took the hooks with it
        reached = gradient.flatten(0, -2).ne(0).any(dim=-1)
        x = wide(inputs.flatten(0, -2)) * reached[:, None]
        with torch.autocast(x.device.type, enabled=False):
            moment = x.mT @ x
        state = self.state[weight]
        if "moment" in state:
            state["moment"] += moment
            state["count"] += reached.sum()
        else:
            state["moment"], state["count"] = moment, reached.sum()

    def unseen(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a process adds to the others' inputs of a layer of which it has seen none; nothing if it is alone."""
        if weight not in self.watched or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {}
        width = weight.shape[0 if weight in self.transposed else 1]
        moment = wide(weight.new_zeros(width, width))
        return {"moment": moment, "count": torch.zeros((), dtype=torch.int64, device=weight.device)}

    def step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """The closed form for linear layers, a plain step for the rest."""
        rate = float(group["lr"])
        for p in parameters:
            assert p.grad is not None
            state = self.state.pop(p, None) or self.unseen(p)
            if not state:
                p.add_(p.grad, alpha=-rate)
                continue
            moment, count = state["moment"], state["count"]
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(moment)
                torch.distributed.all_reduce(count)
            turned = (lambda t: t.mT) if p in self.transposed else (lambda t: t)
            weight, gradient = wide(turned(p)), wide(turned(p.grad))
            p.copy_(turned(delta_step(weight, gradient, moment / count.clamp(min=1), rate)))


class Watcher:
    """A forward hook that waits for the gradient of a layer's output."""

    def __init__(self, optimizer: weakref.ref[Any]) -> None:
        self.optimizer = optimizer

    def __call__(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not (layer.training and output.requires_grad and layer.weight.requires_grad):
            return
        seen, weight, own = inputs[0].detach(), layer.weight, self.optimizer

        def note(gradient: torch.Tensor) -> None:
            optimizer = own()
            if optimizer is not None:
                optimizer.see(weight, seen, gradient)

        output.register_hook(note)


def remove(handles: list[Any]) -> None:
    """Removes hooks."""
    for handle in handles:
        handle.remove()
