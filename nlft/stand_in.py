"""What takes the place of a module whose output is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Substitute(nn.Module):
    """In the place of another module, whose attributes it has and whose weights it has not."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original  # unregistered: its weights are no part of a substitute

    def __getattr__(self, name: str) -> Any:
        # Decoders ask their layers for the kind of attention.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["original"], name)


class StandIn(Substitute):
    """In a decoder's list for a layer below the prefix: gives back `states`, or what it is given when None."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.width: int | None = None
        """Entries of the tuple that the layer gives; None where it gives a tensor."""
        self.states: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives, in its form: a tensor, or a tuple whose first entry is one."""
        states = hidden_states if self.states is None else self.states
        return states if self.width is None else (states, *[None] * (self.width - 1))
