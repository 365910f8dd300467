"""State of a sequence: what a memory has learned from the tokens that it has read.

One keeper serves a whole adapter. Within a forward pass states are only collected; behind the decoder they are put
into a layer of their own in the key-value cache, and into the session if one is open. Without either nothing is kept,
so a forward pass stays pure, and layers may be recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import DummyLayer

from nlft.errors import NlftError
from nlft.pathways.forward_pass import (
    Pass,
    attended_tokens,
    begin_pass,
    cache_of,
    check_uncached,
    forget_passes,
    recall_passes,
)
from nlft.pathways.gate import decoder_of

KEEPERS = "nlft_state"
"""Name of the keepers' container below the decoder."""
State = dict[str, torch.Tensor]
"""State of one block: tensors whose first dimension is B."""


@dataclass
class Carried:
    """What a session carries from one sequence to the next."""

    states: dict[str, State] | None = None
    """By block; None before the first token."""
    learns: bool = True
    """Whether what is read is written."""
    surprise: dict[str, torch.Tensor] = field(default_factory=dict)
    """By block, [B, T] of the last forward pass."""


class StateLayer(DummyLayer):
    """A layer of a key-value cache that holds states instead of keys and values.

    It follows beams and repeats. Tokens can be taken back only if they are those of the last forward pass, all of
    them: a state is no list of tokens that could be cut. To offloading it is a layer without keys, and it stays
    where it is.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, adapter: str) -> None:
        super().__init__()
        self.adapter = adapter
        self.carried: Carried | None = None
        self.reset()

    def keep(self, states: dict[str, State], tokens: int, carried: Carried | None) -> None:
        """Takes the states behind a forward pass.

        Args:
            tokens: that the cache now holds.
            carried: the session's, if one is open.
        """
        self.before = (self.states, self.tokens)
        self.states, self.tokens, self.carried = states, tokens, carried

    def reset(self) -> None:
        """Forgets everything."""
        self.states: dict[str, State] = {}
        self.tokens = 0
        self.before: tuple[dict[str, State], int] | None = None

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last forward pass.

        Raises:
            NlftError: other tokens are to be taken back than its own.
        """
        removed = abs(tokens_to_remove)
        if not removed:
            return
        if self.before is None or self.tokens - self.before[1] != removed:
            raise NlftError(
                f"{removed} tokens of a draft cannot be taken back: a memory that has read them has learned them.",
                "Generate without assistant_model and prompt_lookup_num_tokens.",
            )
        self.states, self.tokens = self.before
        self.before = None
        if self.carried is not None and self.carried.learns:
            self.carried.states = self.states or None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes row `beam_idx[i]`."""
        self.check_rows_stay()
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows at `indices`, in their order."""
        self.change(lambda tensor: tensor[indices.to(tensor.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one after another."""
        self.check_rows_stay()
        self.change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def change(self, change: Any) -> None:
        """Puts every tensor through a function."""
        self.states = {
            block: {name: change(tensor) for name, tensor in state.items()} for block, state in self.states.items()
        }
        self.before = None

    def check_rows_stay(self) -> None:
        """Refuses beams in a session.

        Raises:
            NlftError: a session is open.
        """
        if self.carried is not None:
            raise NlftError(
                "A session follows rows, and beams change places with each other.",
                "Generate with num_beams=1, or outside of the session.",
            )


class StateKeeper(nn.Module):
    """Hands every block the state before these tokens, and keeps the one behind them."""

    def __init__(self, adapter: str) -> None:
        super().__init__()
        self.adapter = adapter
        self.handles: list[Any] = []
        self.now = Pass()
        """The forward pass that is running."""
        self.carried: Carried | None = None
        """What the open session carries; None without one."""

    def earlier(self, block: str) -> State | None:
        """The state of a block before the first of these tokens; None for a fresh sequence.

        Raises:
            NlftError: the cache holds tokens that this keeper has not seen, or the state is one of other rows.
        """
        now = self.now
        if now.unseen or (now.states is not None and block not in now.states):
            raise NlftError(
                "The key-value cache was filled without this adapter's memory, which must see every token.",
                "Run the prompt through the adapted model.",
            )
        if now.states is None:
            return None
        state = now.states[block]
        rows = len(next(iter(state.values())))
        if now.rows is not None and rows != now.rows:
            raise NlftError(
                f"The state is one of {rows} rows, and {now.rows} rows are to go on from it.",
                "Give as many rows as before (beams multiply them), or reset the session.",
            )
        return state

    def apart(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [B, T, ...] with a row for each sequence: [S, longest, ...] where several share a line."""
        return x if self.now.documents is None else self.now.documents.apart(x)

    def together(self, x: torch.Tensor) -> torch.Tensor:
        """What a memory gives for the rows of `apart`, as [B, T, ...]."""
        return x if self.now.documents is None else self.now.documents.together(x)

    def attended(self, tokens: int) -> torch.Tensor | None:
        """Which of the T tokens of the rows of `apart` are no padding, bool; None where nothing says that any is."""
        if self.now.documents is not None:
            return self.now.documents.attended
        return attended_tokens(self.now.mask, self.now.tokens_before, tokens)

    def keep(self, block: str, state: State) -> None:
        """Notes the state of a block behind these tokens; every tensor's first dimension is B.

        Rows that share a line end within it, so that nothing goes on from them.
        """
        if self.now.kept is not None and self.now.documents is None:
            self.now.kept[block] = state

    @property
    def watched(self) -> bool:
        """Whether somebody may ask for the surprise of these tokens."""
        return self.carried is not None and self.now.kept is not None

    def note_surprise(self, block: str, surprise: torch.Tensor) -> None:
        """Notes how surprised a block was, [B, T]."""
        if self.carried is not None and self.watched:
            self.carried.surprise[block] = surprise.detach()

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder: padding, and where these tokens go on from."""
        now = begin_pass(module, args, kwargs)
        now.kept = {}
        if now.tokens_before:
            layer = self.layer_of(now.past)
            now.unseen = layer is None or layer.tokens != now.tokens_before
            now.states = None if layer is None else layer.states
        elif self.carried is not None:
            now.states = self.carried.states
        if self.carried is not None:
            if now.documents is not None:
                raise NlftError(
                    "A session follows rows from one sequence to the next, and here several rows share a line.",
                    "Give every row a line of its own.",
                )
            now.learns = self.carried.learns
            self.carried.surprise = {}
        self.now = now
        if module.training:
            recall_passes(module, getattr(module, KEEPERS))

    def commit(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the decoder: puts the states into the cache and into the session."""
        now, self.now = self.now, Pass()
        past, kept = cache_of(output, now.past), now.kept
        check_uncached(now, past)
        now.past, now.kept = None, None
        if not kept:
            return
        states = {block: {name: t.detach() for name, t in state.items()} for block, state in kept.items()}
        if self.carried is not None and self.carried.learns:
            self.carried.states = states
        tokens = 0 if past is None else int(past.get_seq_length())
        if past is None or tokens == now.tokens_before:  # under gradient checkpointing the cache stays empty
            return
        layer = self.layer_of(past)
        if layer is None:
            layer = StateLayer(self.adapter)
            # As the others, or the masks of a static cache would from now on be made for another kind of cache.
            layer.is_compileable = past.is_compileable
            past.layers.append(cast(Any, layer))
        layer.keep(states, tokens, self.carried)

    def layer_of(self, past: Any) -> StateLayer | None:
        """This keeper's layer of a cache."""
        layers = [] if past is None else past.layers
        return next((one for one in layers if isinstance(one, StateLayer) and one.adapter == self.adapter), None)


class KeeperDict(nn.ModuleDict):
    """The keepers of a model by adapter."""


def install_keeper(model: Any, adapter: str) -> StateKeeper:
    """Puts a keeper at the decoder; returns the one that is there if there is one."""
    decoder = decoder_of(model)
    if not hasattr(decoder, KEEPERS):
        decoder.add_module(KEEPERS, KeeperDict())
    keepers = keepers_of(model)
    if adapter not in keepers:
        keeper = StateKeeper(adapter)
        keepers[adapter] = keeper
        keeper.handles = [
            decoder.register_forward_pre_hook(keeper.begin, with_kwargs=True),
            decoder.register_forward_hook(keeper.commit, with_kwargs=True),
        ]
    return cast(StateKeeper, keepers[adapter])


def remove_keeper(model: Any, adapter: str) -> None:
    """Takes a keeper away, if there is one."""
    decoder, keepers = decoder_of(model), keepers_of(model)
    if adapter in keepers:
        for handle in cast(Any, keepers[adapter]).handles:
            handle.remove()
        del keepers[adapter]
    if not len(keepers) and hasattr(decoder, KEEPERS):
        delattr(decoder, KEEPERS)
        forget_passes(decoder, keepers)


def keepers_of(model: Any) -> KeeperDict:
    """The keepers of a model by adapter."""
    return getattr(decoder_of(model), KEEPERS, KeeperDict())
