"""One optimiser, several clocks: groups of parameters that step once in their own period."""

from __future__ import annotations

# torch._foreach_*: one call for many tensors, as torch's own optimisers do.
# pyright: reportPrivateImportUsage=false
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from nlft.errors import NlftError
from nlft.optim.deep import evaluate, wide


@dataclass(frozen=True)
class Level:
    """Parameters that share a clock; level 0 is the fastest."""

    period: int
    parameters: list[torch.Tensor]


class MultiTimescale(torch.optim.Optimizer):
    """Lets each parameter group of any torch optimiser step once in `group["period"]` optimiser steps (absent: 1).

    A group of period 1 is left alone, so it is bit-equal to the optimiser without this wrapper. Any other group's
    gradients are added up (float32, or wider if the parameter is). At its boundary `.grad` becomes their mean and the
    group steps; in between `.grad` is None, which every torch optimiser skips: weights, moments and step counters
    of the group rest. This is the update of the continuum memory system (Behrouz et al. 2025, Nested Learning, Eq. 71;
    the mean instead of the sum, which Adam cannot tell apart) on a clock of optimiser steps.

    What follows from it: weight decay acts at boundaries only (a group that shall decay as fast as the others has
    `weight_decay` times its period); a learning-rate schedule runs on the wrapper's steps; what is clipped is each
    step's gradient; gradients are dense.

    Transfer between levels needs `group["level"]` in every group, 0 for the fastest, and periods that divide each
    other. Both kinds happen after the step in which level l+1 is at its boundary, faster levels first:

    - `consolidation` rho, without `reinitialise`: slow += rho * (fast - fast at the last boundary of the slow level),
      the outer step of Reptile (Nichol et al. 2018). Parameters pair up in order and need equal shapes.
    - `reinitialise` (Eq. 72, nested): the fast level has an initial state theta0, at first its weights before the first
      step. theta0 += rho * (fast - theta0), and fast restarts from theta0. The inner optimiser's moments go on.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, consolidation: float = 0.0, reinitialise: bool = False
    ) -> None:
        if not 0.0 <= consolidation <= 1.0:
            raise NlftError(f"consolidation is {consolidation:g}.", "It is a share between 0 and 1.")
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer = optimizer
        self.consolidation = consolidation
        self.reinitialise = reinitialise
        self.steps = 0
        self.sums: dict[torch.Tensor, torch.Tensor] = {}
        self.anchors: dict[torch.Tensor, torch.Tensor] = {}
        """The fast level's weights at the slow level's last boundary, or theta0; at least float32."""
        self._follow()

    def _follow(self) -> None:
        """Groups and state are the inner optimiser's own objects."""
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        for number, group in enumerate(self.param_groups):
            period = group.setdefault("period", 1)
            if isinstance(period, bool) or not isinstance(period, int) or period < 1:
                raise NlftError(
                    f"Parameter group {number} has period {period!r}.", "A period is a whole number of steps from 1."
                )
        self.levels = self._levels() if self.consolidation or self.reinitialise else []

    def _levels(self) -> list[Level]:
        """Groups by level, fastest first, checked for what is asked of them."""
        found: dict[int, Level] = {}
        for number, group in enumerate(self.param_groups):
            if "level" not in group:
                raise NlftError(
                    f"Parameter group {number} has no level, so nothing can move between levels.",
                    'Give every group a "level", 0 for the fastest, or leave out consolidation and reinitialise.',
                )
            level = found.setdefault(group["level"], Level(group["period"], []))
            if level.period != group["period"]:
                raise NlftError(
                    f"Level {group['level']} has groups of periods {level.period} and {group['period']}.",
                    "Give the groups of a level one period.",
                )
            level.parameters.extend(group["params"])
        levels = [found[key] for key in sorted(found)]
        for fast, slow in pairwise(levels):
            if slow.period % fast.period:
                raise NlftError(
                    f"A level of period {slow.period} follows one of period {fast.period}, which does not divide it.",
                    "Choose periods that are multiples of each other, such as 1, 8 and 64.",
                )
            if not self.reinitialise:
                check_shapes(fast, slow)
        return levels

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Counts one optimiser step, and steps the groups whose boundary it is; a closure is called once."""
        loss = evaluate(closure)
        if self.levels and not self.anchors:  # as late as possible: weights may be loaded after the optimiser is made
            for level in self.levels[:-1]:
                self.anchors.update((p, wide(p.detach(), copy=True)) for p in level.parameters)
        self.steps += 1
        for group in self.param_groups:
            if group["period"] > 1:
                self._collect(group["params"])
                if self.steps % group["period"] == 0:
                    self._hand_out(group["params"], group["period"])
        self.optimizer.step()
        for fast, slow in pairwise(self.levels):
            if self.steps % slow.period == 0:
                self._transfer(fast, slow)
        return loss

    def _collect(self, parameters: list[torch.Tensor]) -> None:
        """Moves gradients into the sums."""
        sums, gradients = [], []
        for p in parameters:
            gradient, p.grad = p.grad, None
            if gradient is None:
                continue
            if p in self.sums:
                sums.append(self.sums[p])
                gradients.append(gradient.to(sums[-1].dtype))
            else:
                self.sums[p] = wide(gradient.detach(), copy=True)
        if sums:
            torch._foreach_add_(sums, gradients)

    def _hand_out(self, parameters: list[torch.Tensor], count: int) -> None:
        """Makes the sums the gradients, as means over `count` steps. Who had none in all of them stays without."""
        for p in parameters:
            if p in self.sums:
                p.grad = self.sums.pop(p).div_(count).to(p.dtype)

    def _transfer(self, fast: Level, slow: Level) -> None:
        """Reptile from fast into slow, or a restart of fast from its moved initial state."""
        for number, p in enumerate(fast.parameters):
            anchor = self.anchors[p]
            moved = (p - anchor).mul_(self.consolidation)
            if self.reinitialise:
                p.copy_(anchor.add_(moved))
            else:
                target = slow.parameters[number]
                target.copy_(target + moved)
                anchor.copy_(p)

    @torch.no_grad()
    def flush(self) -> None:
        """Steps every group that waits for its boundary with the mean over what there is, and starts all clocks anew.

        For the end of training. Groups of period 1 do not move, and nothing moves between levels.
        """
        every = [p for group in self.param_groups for p in group["params"]]
        kept = [p.grad for p in every]
        for p in every:
            p.grad = None
        waiting = bool(self.sums)
        for group in self.param_groups:
            if self.steps % group["period"]:
                self._hand_out(group["params"], self.steps % group["period"])
        if waiting:
            self.optimizer.step()
        for p, gradient in zip(every, kept, strict=True):
            p.grad = gradient
        self.steps = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the inner optimiser's; add groups when all clocks are at a boundary."""
        if not hasattr(self, "optimizer"):
            super().add_param_group(param_group)  # torch's constructor, which lists the groups that there are
            return
        self.optimizer.add_param_group(param_group)
        self._follow()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's state, the clock, the sums and the anchors (by number of the parameter)."""
        numbers = {p: i for i, p in enumerate(self._every())}
        return {
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "sums": {numbers[p]: value.clone() for p, value in self.sums.items()},
            "anchors": {numbers[p]: value.clone() for p, value in self.anchors.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, in the middle of a period too."""
        if "optimizer" not in state_dict:
            raise NlftError(
                "This optimiser state has no clock: it was not saved by MultiTimescale.",
                "Load it into the optimiser that saved it, or start this one afresh.",
            )
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self._follow()
        every = self._every()
        self.steps = int(state_dict["steps"])
        self.sums, self.anchors = (
            {every[int(i)]: value.to(every[int(i)].device, copy=True) for i, value in state_dict[name].items()}
            for name in ("sums", "anchors")
        )

    def _every(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # torch's own would leave the inner optimiser behind


def check_shapes(fast: Level, slow: Level) -> None:
    """Refuses levels that cannot be added to each other, parameter by parameter."""
    here, there = ([tuple(p.shape) for p in level.parameters] for level in (fast, slow))
    if here == there:
        return
    unequal = next((pair for pair in zip(here, there, strict=False) if pair[0] != pair[1]), None)
    what = "shapes {} and {}".format(*unequal) if unequal else f"{len(here)} and {len(there)} parameters"
    raise NlftError(
        f"Levels of periods {fast.period} and {slow.period} have {what}, so one cannot be added to the other.",
        "Give all levels equal shapes, or leave out consolidation.",
    )
