"""Prompts that several sequences share are read once: their cache is handed to every sequence that goes on from them.

Four choices behind one question cost one question instead of four. What comes out is what separate passes give, up to
rounding: a cache holds exactly what earlier tokens left behind, states of memories and evidence of gates included.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from nlft.data.batch import by_length, collate, tokens_a_pass
from nlft.data.template import Encoded
from nlft.frozen_prefix import FrozenPrefix, prefix_of
from nlft.head import Head
from nlft.measure.targets import TargetLogits
from nlft.types import IGNORE

SHORTEST = 8
"""Tokens of a prompt below which reading it again costs less than a pass of its own."""
LEAST_SAVED = 0.25
"""Part of the tokens of a group that sharing must save."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Sequences that begin with the same tokens."""

    length: int
    """How many tokens they share; the first target lies behind them."""
    members: list[int]
    """Indices of the sequences."""


def can_share(model: Any) -> bool:
    """Whether the model goes on from a key-value cache and takes positions, so that padding may come first."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            return False
        model = model.get_base_model()
    parameters = inspect.signature(model.forward).parameters
    stateful = getattr(model, "_is_stateful", False)
    return not stateful and all(name in parameters for name in ("past_key_values", "position_ids", "logits_to_keep"))


def shared_prompts(encoded: Sequence[Encoded]) -> list[Shared]:
    """Groups of sequences with one prompt, longest prompt first; sequences that gain nothing are in none.

    A prompt is what lies before the first target; its last token is read again with each sequence, for it predicts.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for index, one in enumerate(encoded):
        first = next((at for at, label in enumerate(one.labels) if label != IGNORE), 0)
        if first > SHORTEST:
            found.setdefault(tuple(one.ids[: first - 1]), []).append(index)
    groups = []
    for prompt, members in found.items():
        tokens = sum(len(encoded[index].ids) for index in members)
        if len(prompt) * (len(members) - 1) >= LEAST_SAVED * tokens:
            groups.append(Shared(len(prompt), members))
    return sorted(groups, key=lambda group: (-group.length, group.members[0]))


def shared_passes(
    model: Any, head: Head, encoded: Sequence[Encoded], groups: Sequence[Shared], pad_id: int, batch_size: int
) -> Iterator[tuple[list[int], list[int], TargetLogits]]:
    """Passes over the prompts of groups, left-padded, and behind each some over what follows them, right-padded.

    Sequences that differ in their last token alone, which is not read, are one line of a pass. Where the frozen prefix
    of all of them is kept, the passes begin where it ends.

    Yields:
        Indices of sequences; the place in each at which the shared prompt ends; and what a pass says of the tokens
        behind it.
    """
    most = tokens_a_pass(next(model.parameters()).device)
    for some in by_length([group.length for group in groups], batch_size, most):
        tails = [tail for place, group in enumerate(some) for tail in _tails(place, groups[group], encoded)]
        prompts = Prompts(model, [groups[group].length for group in some], tails, encoded, pad_id)
        passes = list(by_length([tail.length for tail in tails], batch_size, most))
        for chosen in passes:
            yield prompts.go_on(head, chosen, last=chosen is passes[-1])


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows a prompt in some sequences, all of them alike up to the last token."""

    prompt: int
    """Place of the prompt among those that are read together."""
    length: int
    """Tokens behind the prompt that are read."""
    members: list[int]
    """Indices of the sequences."""


def _tails(place: int, group: Shared, encoded: Sequence[Encoded]) -> list[Tail]:
    found: dict[tuple[int, ...], list[int]] = {}
    for index in group.members:
        found.setdefault(tuple(encoded[index].ids[group.length : -1]), []).append(index)
    return [Tail(place, len(ids), members) for ids, members in found.items()]


class Prompts:
    """Prompts that have been read, and their cache.

    Args:
        lengths: of the prompts.
        tails: what follows them, prompt by prompt.
    """

    def __init__(
        self, model: Any, lengths: Sequence[int], tails: Sequence[Tail], encoded: Sequence[Encoded], pad_id: int
    ) -> None:
        self.model, self.lengths, self.tails, self.encoded, self.pad_id = model, lengths, tails, encoded, pad_id
        first = [next(at for at, tail in enumerate(tails) if tail.prompt == place) for place in range(len(lengths))]
        owners = [encoded[tails[at].members[0]] for at in first]
        rows = [Encoded(one.ids[:length], [IGNORE] * length, 0) for one, length in zip(owners, lengths, strict=True)]
        batch = collate(rows, pad_id, side="left").to(next(model.parameters()).device)
        self.mask, width = batch.attention_mask, batch.input_ids.shape[1]
        self.prefix = prefix_of(model)
        self.kept = self.prefix is not None and _holds_tokens(self.prefix) and self.recalled(tails, 0) is not None
        """Whether passes begin at kept states, of all tails or of none."""
        with self.standing_in(first, [length - width for length in lengths], width):
            output = model(
                input_ids=batch.input_ids,
                attention_mask=self.mask,
                position_ids=positions_of(self.mask),
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = output.past_key_values
        if self.prefix is not None and self.kept:
            # Masks are made for as many tokens as the first layers' caches hold.
            blank = torch.zeros(len(lengths), 1, width, 1, dtype=self.prefix.root.dtype, device=self.mask.device)
            for layer in range(self.prefix.depth):
                self.cache.update(blank, blank, layer)

    def recalled(self, tails: Sequence[Tail], width: int | None = None) -> Tensor | None:
        """Kept states of one sequence a tail on the CPU, [tails, T, D]; None where not all of them are kept."""
        assert self.prefix is not None
        return self.prefix.states(collate([self.encoded[tail.members[0]] for tail in tails], self.pad_id), width)

    def standing_in(self, tails: Sequence[int], starts: Sequence[int], width: int) -> AbstractContextManager[None]:
        """A pass inside, over `width` tokens of some tails' sequences from `starts` on, begins at the kept states."""
        if self.prefix is None or not self.kept:
            return nullcontext()
        states = self.recalled([self.tails[at] for at in tails])
        assert states is not None  # nothing is dropped between the passes over one set of rows
        at = torch.tensor(starts)[:, None] + torch.arange(width)
        chosen = states[torch.arange(len(tails))[:, None], at.clamp(0, states.shape[1] - 1)]
        return self.prefix.standing_in(chosen.to(self.mask.device))

    def go_on(self, head: Head, chosen: Sequence[int], last: bool) -> tuple[list[int], list[int], TargetLogits]:
        """A pass over some of the tails.

        Args:
            last: the cache is not needed any more.
        """
        tails, device = [self.tails[at] for at in chosen], self.mask.device
        owners = torch.tensor([tail.prompt for tail in tails], device=device)
        starts = [self.lengths[tail.prompt] for tail in tails]
        members = [index for tail in tails for index in tail.members]
        lines = torch.tensor([line for line, tail in enumerate(tails) for _ in tail.members], device=device)
        begins = [starts[line] for line in lines.tolist()]
        parts = (self.encoded[index] for index in members)
        rows = [Encoded(one.ids[at:], one.labels[at:], 0) for one, at in zip(parts, begins, strict=True)]
        batch = collate(rows, self.pad_id).to(device)
        own = torch.searchsorted(lines, torch.arange(len(tails), device=device))  # the first member of each
        ids = batch.input_ids[own, :-1]  # nothing comes after the last column
        mask = torch.cat([self.mask[owners], batch.attention_mask[own, :-1]], dim=1)
        cache = self.cache if last else _copied(self.cache)
        cache.batch_select_indices(owners)

        def call() -> Any:
            with self.standing_in(chosen, starts, ids.shape[1]):
                return self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions_of(mask)[:, -ids.shape[1] :],
                    past_key_values=cache,
                    use_cache=True,
                )

        return members, begins, TargetLogits(head, batch, call, lines)


def _copied(cache: Cache) -> Cache:
    """A cache that can be cut and go on while the original stays; keys and values are not copied for it."""
    other = copy(cache)
    # A dynamic layer puts other tensors in the place of those that it has; what states do is their own affair.
    other.layers = [copy(layer) if isinstance(layer, DynamicLayer) else deepcopy(layer) for layer in cache.layers]
    return other


def _holds_tokens(prefix: FrozenPrefix) -> bool:
    """Whether the caches of the layers below a prefix do nothing but hold tokens, so that blank ones stand for them."""
    layers = DynamicCache(config=prefix.root.config.get_text_config()).layers[: prefix.depth]
    return all(isinstance(layer, DynamicLayer) for layer in layers)


def positions_of(mask: Tensor) -> Tensor:
    """Position of every token among those of its row that are no padding, [B, T] int64."""
    return (mask.cumsum(dim=-1) - 1).clamp_min(0)
