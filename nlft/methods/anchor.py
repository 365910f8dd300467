"""Penalties on how far weights move: L2-SP towards their start, EWC by what the past needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlft.capture import inference
from nlft.config import EwcConfig, L2spConfig
from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.loss import target_loss
from nlft.methods.penalty import trained
from nlft.methods.protocol import TaskContext


class L2sp:
    """`weight / 2 * |w - w0|^2` over what is trained (Li, Grandvalet & Davoine 2018, L2-SP, equation 3).

    w0 is where a parameter stood when its training began: the base's weights in full finetuning, an adapter's initial
    values (a function that changes nothing) otherwise. A part that a later task adds has a start of its own.
    """

    name = "l2sp"
    remembers = True

    def __init__(self, config: L2spConfig) -> None:
        self.config = config
        self.starts: dict[str, Tensor] = {}
        """float32, by name."""
        self.pairs: list[tuple[nn.Parameter, Tensor]] | None = None
        """Of the task that is trained; found at its first step, when every method has placed its parts."""

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """A new task may train other parameters."""
        self.pairs = None

    def term(self, model: nn.Module) -> Tensor | None:
        """Half the weighted squared distance, scalar float32."""
        if self.pairs is None:
            parameters = trained(model)
            self.starts = {
                name: self.starts[name].to(one.device) if name in self.starts else copied(one)
                for name, one in parameters.items()
            }
            self.pairs = [(one, self.starts[name]) for name, one in parameters.items()]
        return 0.5 * self.config.weight * torch.stack([(one - start).square().sum() for one, start in self.pairs]).sum()

    def end_task(self, model: nn.Module) -> None:
        """The starts stay what they are."""

    def state(self) -> dict[str, Tensor]:
        """The starts."""
        return self.starts

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """The starts of a run that goes on."""
        self.starts = tensors


class Ewc:
    """`weight / 2 * sum_i F_i (w_i - c_i)^2`: elastic weight consolidation (Kirkpatrick et al. 2017, equation 3).

    Every finished task, and the background before the first, adds a quadratic around the weights as they were then.
    Their sum is one quadratic up to a constant, so F is the sum of the Fisher diagonals and c the mean of the anchors
    that F weighs; what is held does not grow with the number of tasks. Each F is divided by the mean number of target
    tokens a row, so that the penalty is about what the past would lose in nats per token.
    """

    name = "ewc"
    remembers = True

    def __init__(self, config: EwcConfig) -> None:
        self.config = config
        self.fisher: dict[str, Tensor] = {}
        """float32, by name."""
        self.centres: dict[str, Tensor] = {}
        self.context: TaskContext | None = None
        """Of the task that is trained."""

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Before the first task takes in the background, if it is to be held."""
        self.context = context
        device = next(model.parameters()).device
        self.fisher, self.centres = (
            {name: one.to(device) for name, one in held.items()} for held in (self.fisher, self.centres)
        )
        if context.number == 1 and "background" in self.config.of:
            self.take_in(model, context.background, context)

    def term(self, model: nn.Module) -> Tensor | None:
        """The quadratic without its constant, scalar float32; None while nothing is held."""
        if not self.fisher:
            return None
        terms = []
        for name, one in trained(model).items():
            terms.append((self.fisher[name] * (one - self.centres[name]).square()).sum())
        return 0.5 * self.config.weight * torch.stack(terms).sum()

    def end_task(self, model: nn.Module) -> None:
        """Takes in the task, if tasks are to be held."""
        if self.context is not None and "tasks" in self.config.of:
            self.take_in(model, self.context.train, self.context)

    def take_in(self, model: nn.Module, rows: Sequence[Encoded], context: TaskContext) -> None:
        """Adds the quadratic of some rows around the weights as they are."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))
        chosen = [rows[i] for i in order[: self.config.rows].tolist()]
        parameters = trained(model)
        for name, found in fisher_diagonal(model, parameters, chosen, context.pad_id).items():
            now = copied(parameters[name])
            if name not in self.fisher:
                self.fisher[name], self.centres[name] = found, now
                continue
            centre, whole = self.centres[name], self.fisher[name] + found
            # Where nothing is held the centre does not matter.
            self.centres[name] = centre + torch.where(whole > 0, found / whole, 0.0) * (now - centre)
            self.fisher[name] = whole

    def state(self) -> dict[str, Tensor]:
        """Fisher diagonals and centres."""
        return {f"fisher.{name}": one for name, one in self.fisher.items()} | {
            f"centre.{name}": one for name, one in self.centres.items()
        }

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Those of a run that goes on."""
        self.fisher, self.centres = (
            {name.removeprefix(part): one for name, one in tensors.items() if name.startswith(part)}
            for part in ("fisher.", "centre.")
        )


def fisher_diagonal(
    model: Any, parameters: Mapping[str, nn.Parameter], rows: Sequence[Encoded], pad_id: int
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information, per target token, float32.

    Empirical: gradients are those of the log-likelihood of the rows' own targets, not of targets that the model draws
    (Kunstner et al. 2019 tell the two apart). A row is one draw: its gradient, over all its targets, is squared; the
    sum of the squares is divided by the number of target tokens of all rows.

    Args:
        model: a causal language model, put into eval mode meanwhile.
        parameters: which require a gradient.
        rows: at least one with a target.
    """
    found = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in parameters.items()}
    tokens = 0
    device = next(model.parameters()).device
    with inference(model), torch.enable_grad():
        for row in rows:
            batch = collate([row], pad_id).to(device)
            loss = target_loss(model, batch)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    found[name] += gradient.float().square()
            tokens += batch.n_targets
    return {name: one / max(tokens, 1) for name, one in found.items()}


def copied(parameter: nn.Parameter) -> Tensor:
    """A float32 copy."""
    return parameter.detach().float().clone()
