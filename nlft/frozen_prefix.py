"""The frozen prefix: what a base computes below the first layer that a method touches, computed once a row.

Those layers never change, so their output for a row is a constant. It is kept by row and given back wherever the row is
read again: in every epoch, in calibration, in scoring.

How a model runs from layer n on, without a line of its code copied: for one forward pass, stand-ins take the places
of layers 0 to n - 1 in its list. The model's own forward runs as ever (embeddings, positions, masks, the layers from n
on, its head), its first layers answer with nothing but what they are given, and the last of them answers with the
states that were kept. Other ways are worse. A forward of one's own is a copy for every family, and ages with each.
Hooks can replace what a layer gives, but not spare its work. Given as `inputs_embeds`, states are scaled (Gemma) or
get positions added (GPT-2), and a decoder without its first layers gives later ones the masks of others (sliding
windows alternate), or has caches and adapters under other numbers.

What is kept does not depend on who asked first. Rows are computed in passes that their set alone decides. A run
declares sets (`units`: the train rows of each task, the background), and a row of one is always computed with its whole
set; whatever else is asked for at one time is a set too, and of several that hold a row the last one serves. Each stage
of a run begins with a fresh `FrozenPrefix`, as a resumed run does, so both read the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from nlft.anatomy import decoder_layers, root_of
from nlft.base import name_of
from nlft.capture import inference, run_until_captured
from nlft.config import PrefixConfig
from nlft.data.batch import Batch, by_length, collate, tokens_a_pass
from nlft.data.template import Encoded
from nlft.frozen_depth import draws, frozen_depth, reason_against
from nlft.prefix_store import PrefixStore
from nlft.stand_in import StandIn
from nlft.state_file import Shape, address_of

ATTRIBUTE = "nlft_frozen_prefix"
"""Where a model keeps its `FrozenPrefix`."""
ROWS = 64
"""Most rows of a pass that fills."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""By dtype of the states, how far what a model says may lie from a whole pass, relative to the largest number."""
ALIKE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""The same for states that were not rounded and stand in the same batch: a few steps of the dtype."""
CHECKED, WINDOW = 256, 1024
"""Most tokens of a row that is read both ways; more where a sliding window is longer, but of at most so many."""

Ids = tuple[int, ...]


class FrozenPrefix:
    """States [T, D] of rows in front of layer `depth`."""

    def __init__(
        self,
        model: Any,
        fingerprint: str,
        config: PrefixConfig,
        store: PrefixStore,
        units: Sequence[Sequence[Encoded]] = (),
    ) -> None:
        self.model, self.root = model, root_of(model)
        self.fingerprint, self.config, self.store = fingerprint, config, store
        self.layers = decoder_layers(self.root)[1]
        self.units: list[set[Ids]] = []
        self.home: dict[Ids, int] = {}
        """By ids of a row that a run has declared: the number of its set, the first that holds it."""
        for number, unit in enumerate(units):
            own = {tuple(row.ids) for row in unit} - self.home.keys()
            self.units.append(own)
            self.home.update(dict.fromkeys(own, number))
        self.depth = 0
        self.asked = False
        """Whether it is known how deep it is."""
        self.stand_ins: list[StandIn] = []
        self.known: dict[Ids, tuple[str, int]] = {}
        """By ids of a row: the address of the table that holds its states, and where they begin."""
        self.refused: str | None = None
        """Why nothing is kept, as a sentence."""
        self.checked = False
        self.draws = draws(self.root)

    def __reduce__(self) -> tuple[object, ...]:
        """A copy of a model has none: it may learn what the original does not."""
        return type(None), ()

    @property
    def dtype(self) -> torch.dtype:
        """Of the states that are kept."""
        return torch.bfloat16 if self.config.dtype == "bfloat16" else self.root.dtype

    @property
    def size(self) -> int:
        """D."""
        return self.root.config.get_text_config().hidden_size

    def keep(self, rows: Sequence[Encoded], pad_id: int) -> None:
        """Sees to it that the states of rows are kept; does nothing where nothing can be."""
        depth, self.asked = frozen_depth(self.root, self.layers), True
        if depth != self.depth:
            self.depth, self.known, self.checked = depth, {}, False
            self.stand_ins = [StandIn(layer) for layer in list(self.layers)[:depth]]
            self.refused = reason_against(self.model)
        if not depth or self.refused:
            return
        asked = {tuple(row.ids) for row in rows}
        addresses = {self.known.get(ids, ("", 0))[0] for ids in asked}
        if addresses <= self.store.tables.keys():
            for address in sorted(addresses):
                self.store.find(address, Shape(len(self.store.tables[address]), self.size, self.dtype))
            return
        for part in self.parts(asked):
            # By length, so that little is padded, and in one order whoever asks.
            ordered = sorted(part, key=lambda ids: (-len(ids), ids))
            if not self.checked:
                self.check([ordered[0], ordered[-1]], pad_id)
                if self.refused:
                    return
            decides = (self.fingerprint, depth, name_of(self.root.dtype), name_of(self.dtype))
            address = address_of(decides, ordered)
            shape = Shape(sum(map(len, ordered)), self.size, self.dtype)
            if self.store.find(address, shape) is None:
                with inference(self.root):
                    if self.store.add(address, shape, partial(self.compute, ordered, pad_id)) is None:
                        continue
            start = 0
            for ids in ordered:
                self.known[ids] = (address, start)
                start += len(ids)

    def parts(self, asked: set[Ids]) -> Iterator[set[Ids]]:
        """The declared sets that hold some of what is asked for, and the rest of it."""
        yield from (self.units[number] for number in sorted({self.home[ids] for ids in asked & self.home.keys()}))
        if rest := asked - self.home.keys():
            yield rest

    def compute(self, rows: Sequence[Ids], pad_id: int) -> Iterator[torch.Tensor]:
        """States [n, D] on the CPU, pass by pass, of the tokens of rows, one row behind another."""
        layer = {"layer": self.layers[self.depth]}
        device = next(self.root.parameters()).device
        for chosen in by_length([len(ids) for ids in rows], ROWS, tokens_a_pass(device)):
            batch = collated([rows[i] for i in chosen], pad_id).to(device)
            states = run_until_captured(self.root, layer, batch.input_ids, batch.attention_mask)["layer"]
            yield states[batch.attention_mask != 0].to(self.dtype).cpu()

    def check(self, rows: Sequence[Ids], pad_id: int) -> None:
        """Reads the beginnings of a few rows both ways, and refuses where the head is not given the same."""
        window = getattr(self.root.config.get_text_config(), "sliding_window", None) or 0
        most = max(CHECKED, window + CHECKED // 4) if window <= WINDOW else CHECKED
        batch = collated([ids[:most] for ids in rows], pad_id).to(next(self.root.parameters()).device)
        real = batch.attention_mask != 0
        found: list[Any] = []
        handle = self.layers[self.depth - 1].register_forward_hook(lambda *given: found.append(given[2]))
        try:
            with inference(self.root):
                whole = self.last_states(batch)[real]
                states = found[0][0] if isinstance(found[0], tuple) else found[0]
                for one in self.stand_ins:
                    one.width = len(found[0]) if isinstance(found[0], tuple) else None
                if states.shape != (*batch.input_ids.shape, self.size):
                    self.refused = f"its layers pass on states of shape {tuple(states.shape)}"
                    return
                known = torch.where(real[..., None], states.to(self.dtype), 0)
                with self.standing_in(known.to(states.dtype)):
                    part = self.last_states(batch)[real]
        finally:
            handle.remove()
        error = float((whole - part).abs().max() / whole.abs().max())
        if not error <= (ALIKE if self.dtype == self.root.dtype else TOLERANCE)[self.dtype]:
            self.refused = f"begun at layer {self.depth}, it gives other states (by {error:.1e} of the largest)"
        self.checked = True

    def last_states(self, batch: Batch) -> torch.Tensor:
        """What the head is given, [B, T, D]; it does not run, for its logits may be many."""
        head = {"head": self.root.get_output_embeddings()}
        return run_until_captured(self.root, head, batch.input_ids, batch.attention_mask)["head"]

    def states(self, batch: Batch, width: int | None = None) -> torch.Tensor | None:
        """The states [B, T, D] of a batch's first `width` columns, 0 at padding; None where a row is not known.

        Nor where a row stands at other positions than those it was computed at (padding on the left), and while a base
        draws at random.
        """
        if not batch.rows or not self.depth or (self.draws and self.root.training):
            return None
        if batch.position_ids is None and any(column for _, column in batch.places):
            return None
        lines, columns = batch.input_ids[:, :width].shape
        device = batch.input_ids.device
        states = torch.zeros(lines, columns, self.size, dtype=self.dtype, pin_memory=device.type == "cuda")
        for row, (line, column) in zip(batch.rows, batch.places, strict=True):
            address, start = self.known.get(tuple(row.ids), ("", 0))
            table = self.store.tables.get(address)
            if table is None:
                return None
            length = max(0, min(len(row.ids), columns - column))
            states[line, column : column + length] = table[start : start + length]
        return states.to(device, non_blocking=True).to(self.root.dtype)

    @contextmanager
    def standing_in(self, states: torch.Tensor) -> Iterator[None]:
        """The layers below the prefix answer from `states` [B, T, D]."""
        own = list(self.layers)[: len(self.stand_ins)]
        self.stand_ins[-1].states = states
        try:
            for index, stand_in in enumerate(self.stand_ins):
                self.layers[index] = stand_in
            yield
        finally:
            for index, layer in enumerate(own):
                self.layers[index] = layer
            self.stand_ins[-1].states = None

    def remarks(self) -> list[str]:
        """What the user should know of this prefix and has not been told: how much is kept, or why nothing is."""
        said = self.store.said
        found = {"room": self.store.shortage} if self.store.shortage else {}
        if self.refused:
            found[self.refused] = f"Nothing of the base is kept between passes: {self.refused}."
        elif own := {address for address, _ in self.known.values()} & self.store.tables.keys():
            size = sum(self.store.tables[address].nbytes for address in own)
            mapped = own & self.store.mapped
            where = "in memory" if not mapped else "in files" if mapped == own else "in memory and files"
            while_training = "; not while training, for the base draws at random then" if self.draws else ""
            rows = sum(address in own for address, _ in self.known.values())
            found[f"depth {self.depth}"] = (
                f"The first {self.depth} of {len(self.layers)} layers give constants: {rows:,} rows,"
                f" {size / 1e6:,.1f} MB {where}{while_training}."
            )
        elif self.asked and not self.depth and any(not parameter.requires_grad for parameter in self.root.parameters()):
            found["first layer"] = (
                "Nothing of the base is kept between passes: its first layer, or what stands beside its layers"
                " (embeddings, a norm), is adapted, trained or listened to."
            )
        new = [line for key, line in found.items() if key not in said]
        said.update(found)
        return new


def collated(rows: Sequence[Ids], pad_id: int) -> Batch:
    """A batch of rows by their ids."""
    return collate([Encoded(list(ids), list(ids), 0) for ids in rows], pad_id)


def install_prefix(
    model: Any,
    fingerprint: str,
    config: PrefixConfig,
    store: PrefixStore,
    units: Sequence[Sequence[Encoded]] = (),
) -> FrozenPrefix | None:
    """Gives a model a frozen prefix, which is empty, in place of one that it has; None where the config wants none.

    Args:
        fingerprint: of the base as it is below the first touched layer, whose weights are not looked at again.
        store: what other prefixes have kept in it makes room from now on where it is not asked for again.
        units: sets of rows of which all will be asked for; each is kept as one table.
    """
    root = root_of(model)
    setattr(root, ATTRIBUTE, None)
    if not config.enabled:
        return None
    store.begin()
    prefix = FrozenPrefix(model, fingerprint, config, store, units)
    setattr(root, ATTRIBUTE, prefix)
    return prefix


def prefix_of(model: Any) -> FrozenPrefix | None:
    """The frozen prefix of a model, if it was given one."""
    return getattr(root_of(model), ATTRIBUTE, None)


def keep_prefix(model: Any, rows: Sequence[Encoded], pad_id: int) -> None:
    """Keeps the states of rows that will be read several times, if the model has a frozen prefix."""
    if (prefix := prefix_of(model)) is not None:
        prefix.keep(rows, pad_id)


def prefix_remarks(model: Any) -> list[str]:
    """What the user should know of a model's frozen prefix and has not been told."""
    return [] if (prefix := prefix_of(model)) is None else prefix.remarks()


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
