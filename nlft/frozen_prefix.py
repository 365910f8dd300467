"""The frozen prefix: what a base computes below the first layer that a method touches, computed once a row.

Those layers never change, so their output for a row is a constant. It is kept by row and given back wherever the row is
read again: in every epoch, in calibration, in scoring.

How a model runs from layer n on, without a line of its code copied: for one forward pass, stand-ins take the places
of layers 0 to n - 1 in its list. The model's own forward runs as ever (embeddings, positions, masks, the layers from n
on, its head), its first layers answer with nothing but what they are given, and the last of them answers with the
states that were kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from nlft.anatomy import decoder_layers, root_of
from nlft.capture import inference, run_until_captured
from nlft.config import PrefixConfig
from nlft.data.batch import Batch, by_length, collate, tokens_a_pass
from nlft.data.template import Encoded
from nlft.prefix_store import PrefixStore, address_of

ATTRIBUTE = "nlft_frozen_prefix"
"""Where a model keeps its `FrozenPrefix`."""
ROWS = 64
"""Most rows of a pass that fills."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""By dtype of the states, how far logits may lie from those of a whole pass, relative to the largest of them."""
DRAWS = ("drop", "jitter")
"""Parts of names of settings by which a base draws at random while it trains."""
HEADS = ("classifier", "summary")
"""How names of settings begin that are about heads other than a language model's."""


class StandIn(nn.Module):
    """In a decoder's list for a layer below the prefix: gives back `states`, or what it is given when None."""

    def __init__(self, layer: nn.Module, width: int | None, states: torch.Tensor | None) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # unregistered: its weights are no part of a stand-in
        self.width = width
        self.states = states

    def __getattr__(self, name: str) -> Any:
        # Decoders ask their layers for the kind of attention.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives, in its form: a tensor, or a tuple whose first entry is one."""
        states = hidden_states if self.states is None else self.states
        return states if self.width is None else (states, *[None] * (self.width - 1))


class FrozenPrefix:
    """States [T, D] of rows in front of layer `depth`."""

    def __init__(self, model: Any, fingerprint: str, config: PrefixConfig, store: PrefixStore) -> None:
        self.root = root_of(model)
        self.fingerprint, self.config, self.store = fingerprint, config, store
        self.name, self.layers = decoder_layers(self.root)
        self.depth = 0
        self.known: dict[tuple[int, ...], tuple[torch.Tensor, int]] = {}
        """By ids of a row: the table that holds its states, and where they begin."""
        self.width: int | None = None
        """Entries of the tuple that a layer gives; None where it gives a tensor."""
        self.refused: str | None = None
        """Why nothing is kept, as a sentence."""
        self.checked = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the states that are kept."""
        return torch.bfloat16 if self.config.dtype == "bfloat16" else self.root.dtype

    def keep(self, rows: Sequence[Encoded], pad_id: int) -> None:
        """Computes and keeps the states of rows that are not known; does nothing where nothing can be kept.

        Rows go through the base by length and in one order, so what is kept does not depend on who asked first.
        """
        depth = frozen_depth(self.root, self.layers)
        if depth != self.depth:
            self.depth, self.known, self.checked = depth, {}, False
            self.refused = reason_against(self.root)
        new = list({ids: row for row in rows if (ids := tuple(row.ids)) not in self.known}.values())
        if not depth or self.refused or not new:
            return
        address = address_of(self.fingerprint, [row.ids for row in new], depth, self.dtype)
        table = self.store.find(address)
        if not self.checked:
            self.check(new, pad_id)
            if self.refused:
                return
        if table is None:
            size = sum(len(row.ids) for row in new) * self.root.config.get_text_config().hidden_size
            if not self.store.has_room(size * self.dtype.itemsize):
                return
            table = self.store.add(address, self.compute(new, pad_id))
        start = 0
        for row in new:
            self.known[tuple(row.ids)] = (table, start)
            start += len(row.ids)

    def compute(self, rows: Sequence[Encoded], pad_id: int) -> torch.Tensor:
        """States [N, D] of the tokens of rows, one row after another, on the CPU."""
        layer = {"layer": self.layers[self.depth]}
        device = next(self.root.parameters()).device
        starts, total = [], 0
        for row in rows:
            starts.append(total)
            total += len(row.ids)
        table = torch.empty(total, self.root.config.get_text_config().hidden_size, dtype=self.dtype)
        with inference(self.root):
            for chosen in by_length([len(row.ids) for row in rows], ROWS, tokens_a_pass(device)):
                batch = collate([rows[i] for i in chosen], pad_id).to(device)
                states = run_until_captured(self.root, layer, batch.input_ids, batch.attention_mask)["layer"]
                for i, found in zip(chosen, states, strict=True):
                    length = len(rows[i].ids)
                    table[starts[i] : starts[i] + length] = found[:length]
        return table

    def check(self, rows: Sequence[Encoded], pad_id: int) -> None:
        """Reads a few rows both ways, and refuses where the logits are not the same."""
        few = sorted(rows, key=lambda row: len(row.ids))[:4]
        device = next(self.root.parameters()).device
        batch = collate(few, pad_id).to(device)
        found: list[Any] = []
        handle = self.layers[self.depth - 1].register_forward_hook(lambda _module, _args, out: found.append(out))
        try:
            with inference(self.root):
                whole = self.root(**batch.inputs(), use_cache=False).logits
                self.width = len(found[0]) if isinstance(found[0], tuple) else None
                states = found[0][0] if isinstance(found[0], tuple) else found[0]
                if states.shape != (*batch.input_ids.shape, self.root.config.get_text_config().hidden_size):
                    self.refused = f"Its layers pass on states of shape {tuple(states.shape)}."
                    return
                with self.standing_in(states.to(self.dtype).to(states.dtype)):
                    part = self.root(**batch.inputs(), use_cache=False).logits
        finally:
            handle.remove()
        real = batch.attention_mask != 0
        error = float((whole - part)[real].abs().max() / whole[real].abs().max())
        if not error <= TOLERANCE[self.dtype]:
            self.refused = f"Begun at layer {self.depth}, it gives other logits (by {error:.1e} of the largest)."
        self.checked = True

    def states(self, batch: Batch, width: int | None = None) -> torch.Tensor | None:
        """The states [B, T, D] of a batch's first `width` columns, 0 at padding; None where a row is not known."""
        if not batch.rows or not self.depth or (self.root.training and draws(self.root)):
            return None
        found = [self.known.get(tuple(row.ids)) for row in batch.rows]
        if any(one is None for one in found):
            return None
        lines, columns = batch.input_ids[:, :width].shape
        first = cast(tuple[torch.Tensor, int], found[0])[0]
        states = torch.zeros(lines, columns, first.shape[1], dtype=first.dtype)
        for row, (line, column), one in zip(batch.rows, batch.places, found, strict=True):
            table, start = cast(tuple[torch.Tensor, int], one)
            length = min(len(row.ids), columns - column)
            states[line, column : column + length] = table[start : start + length]
        return states.to(batch.input_ids.device, self.root.dtype, non_blocking=True)

    @contextmanager
    def standing_in(self, states: torch.Tensor) -> Iterator[None]:
        """The layers below the prefix answer from `states` [B, T, D]."""
        places = self.layers._modules
        own = [places[str(index)] for index in range(self.depth)]
        for index, layer in enumerate(own):
            last = index == self.depth - 1
            places[str(index)] = StandIn(cast(nn.Module, layer), self.width, states if last else None)
        try:
            yield
        finally:
            for index, layer in enumerate(own):
                places[str(index)] = layer


def install_prefix(model: Any, fingerprint: str, config: PrefixConfig, store: PrefixStore) -> FrozenPrefix | None:
    """Gives a model a frozen prefix, which is empty; None where the config wants none.

    Args:
        fingerprint: of the base.
    """
    if not config.enabled:
        return None
    prefix = FrozenPrefix(model, fingerprint, config, store)
    setattr(root_of(model), ATTRIBUTE, prefix)
    return prefix


def prefix_of(model: Any) -> FrozenPrefix | None:
    """The frozen prefix of a model, if it was given one."""
    return getattr(root_of(model), ATTRIBUTE, None)


def keep_prefix(model: Any, rows: Sequence[Encoded], pad_id: int) -> None:
    """Keeps the states of rows that will be read several times, if the model has a frozen prefix."""
    prefix = prefix_of(model)
    if prefix is not None:
        prefix.keep(rows, pad_id)


@contextmanager
def recalling(model: Any, batch: Batch, width: int | None = None) -> Iterator[None]:
    """A forward pass inside, over the first `width` columns of a batch, begins where the frozen prefix ends.

    For passes without a key-value cache. Where the states of a row are not known, the pass is a whole one.
    """
    prefix = prefix_of(model)
    states = None if prefix is None else prefix.states(batch, width)
    if prefix is None or states is None:
        yield
        return
    with prefix.standing_in(states):
        yield


def frozen_depth(root: Any, layers: nn.ModuleList) -> int:
    """How many layers, from the first, give what the base gives whatever is learned.

    A layer ends them in which anything is adapted, trained or listened to.
    """
    inside = {id(parameter) for parameter in layers.parameters()}
    head = root.get_output_embeddings()
    inside |= {id(parameter) for parameter in head.parameters()} if head is not None else set()
    shared = {id(parameter) for parameter in root.get_input_embeddings().parameters()}
    for parameter in root.parameters():
        if parameter.requires_grad and (id(parameter) in shared or id(parameter) not in inside):
            return 0
    if isinstance(root.get_input_embeddings(), BaseTunerLayer):
        return 0
    for index, layer in enumerate(layers):
        touched = any(parameter.requires_grad for parameter in layer.parameters())
        for module in layer.modules():
            touched |= isinstance(module, BaseTunerLayer) or bool(module._forward_pre_hooks or module._forward_hooks)
        if touched:
            return index
    return len(layers) - 1  # nothing is adapted


def draws(root: Any) -> bool:
    """Whether a base draws at random while it trains, so that its states are no constants."""
    settings = root.config.get_text_config().to_dict()
    names = [key for key in settings if any(part in key for part in DRAWS) and not key.startswith(HEADS)]
    return any(isinstance(settings[name], float) and settings[name] > 0 for name in names)


def reason_against(root: Any) -> str | None:
    """Why the states of a row would not be a constant, or not be all that later layers need; None if they are."""
    config = root.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if any(kind in str(rope.get("rope_type", "")) for kind in ("dynamic", "longrope")):
        return "Its positions turn by the longest row of a batch."
    if getattr(config, "num_kv_shared_layers", 0):
        return "Its later layers read keys and values of earlier ones."
    return None
