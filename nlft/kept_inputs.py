"""Block inputs that were read once and will be read again, as long as nothing has changed them.

Calibration reads the same background several times: for statistics, for thresholds, and in every task and every run of
a comparison. What stands in front of a block is the frozen base and memories that are silent on almost all of that
text. So the inputs of a batch are kept, and given back where every memory in front of the last block still adds
nothing to them: by induction over the layers they are then what a forward pass would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from nlft.anatomy import decoder_layers
from nlft.base import name_of
from nlft.frozen_depth import ADAPTERS, has_listener
from nlft.frozen_prefix import prefix_of
from nlft.state_file import address_of

if TYPE_CHECKING:
    from nlft.data.batch import Batch


class KeptInputs:
    """The inputs of some blocks of a model with a frozen prefix, in whose store's `inputs` they lie; else nothing.

    Args:
        root: the causal language model.
        blocks: names of modules.
    """

    def __init__(self, root: Any, blocks: Sequence[str]) -> None:
        self.blocks = list(blocks)
        self.prefix = prefix_of(root)
        self.speakers = None if self.prefix is None else speakers(root, self.blocks)

    def find(self, batch: Batch) -> dict[str, torch.Tensor] | None:
        """Inputs [N, D] by block at the N tokens of a batch, padding apart; None where they are not known."""
        address = self.address(batch)
        if self.prefix is None or address is None:
            return None
        table = self.prefix.store.inputs.find(address)
        if table is None:
            return None
        parts = table.to(batch.input_ids.device, non_blocking=True).chunk(len(self.blocks))
        states = dict(zip(self.blocks, parts, strict=True))
        return states if self.are_silent(states) else None

    def add(self, batch: Batch, states: Mapping[str, torch.Tensor]) -> None:
        """Keeps inputs, if there is room and they are those of the base."""
        address = self.address(batch)
        if self.prefix is None or address is None or self.prefix.store.inputs.find(address) is not None:
            return
        if self.are_silent(states):
            self.prefix.store.inputs.add(address, torch.cat([states[name].cpu() for name in self.blocks]))

    def are_silent(self, states: Mapping[str, torch.Tensor]) -> bool:
        """Whether all memories in front of the last block add nothing at these inputs."""
        return all(module.is_silent(states[name].float()) for name, module in (self.speakers or {}).items())

    def address(self, batch: Batch) -> str | None:
        """sha256 of what decides the base's inputs of a batch; None where other things would."""
        if self.prefix is None or self.speakers is None or not batch.rows or batch.position_ids is not None:
            return None
        own = self.prefix
        decides = ("inputs", own.fingerprint, own.depth, name_of(own.root.dtype), name_of(own.dtype), *self.blocks)
        return address_of(decides, [row.ids for row in batch.rows])


def speakers(root: Any, blocks: Sequence[str]) -> dict[str, Any] | None:
    """The adapted modules that a pass goes through before the last of some blocks; None unless all can be asked.

    Those that can be asked are blocks themselves and have `is_silent`.
    """
    prefix = decoder_layers(root)[0]
    last = max(blocks, key=lambda name: layer_of(name, prefix))
    found: dict[str, Any] = {}
    if any(parameter.requires_grad for parameter in root.parameters()):
        return None
    for name, module in root.named_modules():
        if not name or f"{name}.".startswith(f"{last}.") or layer_of(name, prefix) > layer_of(last, prefix):
            continue
        above = f"{prefix}.".startswith(f"{name}.")  # there gates count tokens, and change nothing in front of theirs
        if not above and has_listener(module):
            return None
        if isinstance(module, ADAPTERS):
            if name not in blocks or not hasattr(module, "is_silent"):
                return None
            found[name] = module
    return found


def layer_of(name: str, prefix: str) -> int:
    """Index of the decoder layer that a module lies in, -1 outside of them."""
    index = name.removeprefix(f"{prefix}.").partition(".")[0]
    return int(index) if index.isdecimal() else -1
