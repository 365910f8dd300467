"""The head of a causal language model, apart from its decoder: logits of chosen tokens and of no others.

The head is the model's own code: its soft cap, its scale, its tied, quantised or adapted map. A hook on the decoder
chooses which states go on to it. For more of them a stand-in takes the decoder's place and answers with states that
were kept, so that the model's forward is nothing but its head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from nlft.anatomy import root_of
from nlft.stand_in import Substitute

BLOCK = {"cpu": 1 << 22}
"""Logits that are made at once by kind of device, 4 bytes each: `eval/bench/loss.py` measures what that costs."""
MOST_BLOCK = 1 << 26
"""The same where the device is not named: on a GPU, a few hundred tokens are needed to keep a large map busy."""
FEWEST = 128
"""Least tokens of a block: with fewer, reading the head's weights takes longer than multiplying by them."""


def tokens_of_block(kind: str, vocabulary: int) -> int:
    """Tokens whose logits fill a block on a kind of device."""
    return max(FEWEST, BLOCK.get(kind, MOST_BLOCK) // vocabulary)


class Answer(BaseModelOutputWithPast):
    """What a decoder gives, of whatever kind the head expects: states, and None for everything else."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class DecoderStandIn(Substitute):
    """In the decoder's place: gives back `states` [1, N, D]."""

    def __init__(self, decoder: nn.Module, states: Tensor) -> None:
        super().__init__(decoder)
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> Answer:
        """The states."""
        return Answer(last_hidden_state=self.states)


class Head:
    """The head of a model, in whatever PEFT, accelerate or torch.compile put around it."""

    def __init__(self, model: Any) -> None:
        self.model, self.root = model, root_of(model)
        decoder = self.root.get_decoder() if hasattr(self.root, "get_decoder") else self.root
        places = ((parent, name) for parent in self.root.modules() for name in parent._modules)
        self.place = next(((parent, name) for parent, name in places if parent._modules[name] is decoder), None)
        """The decoder's parent and its name there; None where the model is its own decoder."""
        self.autocast: tuple[bool, torch.dtype] | None = None
        """Whether the last pass under `seeing` was one of mixed precision, and of which dtype."""

    @property
    def stands_alone(self) -> bool:
        """Whether states that are given to the head by themselves have the logits that they have in a whole pass."""
        if self.place is None:
            return False
        # A gate opens by row and token, so a pathway at the head must see all of them.
        head = self.root.get_output_embeddings()
        return head is not None and not any(hasattr(module, "cores") for module in head.modules())

    @property
    def can_repeat(self) -> bool:
        """Whether the head may be run several times for one pass; FSDP gathers and frees its weights once a pass.

        A decoder that is sharded by itself does not matter, for it is not run again.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return True
        from torch.distributed.fsdp import FSDPModule

        head = self.root.get_output_embeddings()
        return not any(isinstance(one, FSDPModule) for one in (self.model, self.root, head))

    def tokens(self, device: torch.device) -> int:
        """Tokens whose logits fill a block."""
        return tokens_of_block(device.type, self.root.config.get_text_config().vocab_size)

    @contextmanager
    def seeing(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """In passes inside, the head sees what `change` makes of the decoder's states [B, T, D]: [B', T', D].

        Where the head does not stand alone nothing is changed, and `change` is not called.
        """
        if self.place is None or not self.stands_alone:
            yield
            return

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            kind = output[0].device.type
            self.autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            changed = change(output[0])
            if isinstance(output, tuple):
                return (changed, *output[1:])
            output["last_hidden_state"] = changed
            return output

        parent, name = self.place
        handle = parent.get_submodule(name).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def logits(self, states: Tensor) -> Tensor:
        """Logits [N, vocabulary] of states [N, D], as the last pass under `seeing` would have made them.

        Raises:
            NotImplementedError: the head does not stand alone.
        """
        if self.place is None:
            raise NotImplementedError(f"{type(self.root).__name__} has no decoder of its own")
        parent, name = self.place
        decoder, states = parent.get_submodule(name), states[None]
        enabled, dtype = self.autocast or (False, None)
        parent._modules[name] = DecoderStandIn(decoder, states)
        try:
            with torch.autocast(states.device.type, dtype, enabled=enabled):
                return self.root(inputs_embeds=states, use_cache=False).logits[0]
        finally:
            parent._modules[name] = decoder

    @torch.enable_grad()
    def trains(self, states: Tensor) -> bool:
        """Whether a gradient of the logits of states [N, D] would reach anything but the states."""
        return self.logits(states[:0].detach()).requires_grad
