"""Several optimisers in the place of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nlft.errors import NlftError
from nlft.optim.deep import evaluate


class Joined(torch.optim.Optimizer):
    """Optimisers of different parameters as one object: their groups in a row, one step for all."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in optimizers for group in part.param_groups], {})
        self.optimizers = optimizers
        self._follow()

    def _follow(self) -> None:
        self.param_groups = [group for part in self.optimizers for group in part.param_groups]
        self.state.clear()
        for part in self.optimizers:
            self.state.update(part.state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every optimiser; a closure is called once."""
        loss = evaluate(closure)
        for part in self.optimizers:
            part.step()
            self.state.update(part.state)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the optimiser exists: it does not say to which optimiser the group belongs."""
        if hasattr(self, "optimizers"):
            raise NlftError("A joined optimiser takes no further groups.", "Add the group to one of its `optimizers`.")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The states of all, in order."""
        return {"optimizers": [part.state_dict() for part in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave, for the same optimisers in the same order."""
        for part, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            part.load_state_dict(state)
        self._follow()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # torch's own would leave the optimisers behind
