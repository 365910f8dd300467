"""Levels that also learn while they read: a fast part of every level belongs to the sequence and lies in the cache."""

from __future__ import annotations

from typing import Any

import torch

from nlft.errors import NlftError
from nlft.ops.chunk_grid import unit
from nlft.ops.delta_memory import new_memory, run_memory
from nlft.pathways.cms.levels import Levels
from nlft.pathways.state import State, StateKeeper


class OnlineLevels(Levels):
    """Headwise levels with a fast part: a matrix S_l [D, R] for every level and sequence, empty at first.

    With `h_t = silu(A_l n_t)` and `k_t` its direction, token t writes what follows its predecessor's key, then reads:

        S_l <- S_l + e_l (n_t - S_l k_{t-1}) k_{t-1}^T        (the delta rule: afterwards k_{t-1} tells more of n_t)
        added_t = s * (sum_l B_l h_t + sum_l g_l S_l' k_t)    (S_l' is S_l at the last multiple of `chunk` tokens)

    The pair (k_{t-1}, n_t) needs no token after t, so the levels stay causal. The paper leaves open what a level
    learns from at test time (equation 71: "the error component of an arbitrary optimizer"); the next token's input as
    the target is our choice, after In-Place TTT's next-token targets. The rates `e_l = sigmoid(rate_l)` and gains
    `g_l` are trained. All g_l are zero at first, so nothing is added, and have a gradient at the first step in
    sequences longer than a chunk. A gain beside a rate, since a rate alone that starts at zero and turns negative
    would make the delta rule diverge.

    Args:
        chunk: C, tokens of a sequence between two moments at which what was written can be read.
    """

    def __init__(
        self, width: int, r: int, count: int, chunk: int, scale: float = 1.0, *, trainable: bool = True, **options: Any
    ) -> None:
        super().__init__(width, r, count, "headwise", scale, trainable=trainable, **options)
        self.chunk = chunk
        self.hold({f"{name}{level}": torch.zeros(()) for level in range(count) for name in ("rate", "gain")}, trainable)

    def by_level(self) -> dict[int, list[str]]:
        """Names of the tensors of every level."""
        return {level: [*names, f"rate{level}", f"gain{level}"] for level, names in super().by_level().items()}

    def every(self, name: str) -> torch.Tensor:
        """`rate` or `gain` of all levels, [L]."""
        return torch.stack([getattr(self, f"{name}{level}") for level in range(self.count)])

    def first_state(self, rows: int) -> State:
        """The state of sequences that have read nothing; `key` [B, L, R] is the last token's, at first zero,
        which writes nothing."""
        empty = self.every("gain").new_zeros(self.count, self.width, self.A0.shape[0])  # pyright: ignore
        return {**new_memory(empty, rows), "key": empty.new_zeros(rows, *empty.shape[::2])}

    def recall(self, n: torch.Tensor, keeper: StateKeeper, block: str) -> torch.Tensor:
        """What the fast parts add to T tokens of every row, [B, T, D] to [B, T, D]; padding neither reads nor writes.

        Args:
            keeper: has the state before these tokens, and is handed the one behind them.
            block: under which the state is kept.

        Raises:
            NlftError: the block does not see whole sequences, or the cache does not hold the state before n.
        """
        if n.ndim != 3:
            raise NlftError(
                f"online_chunk: {block} gets an input of shape {list(n.shape)}, and sequences [B, T, D] are needed.",
                "Choose other layers, or leave online_chunk away.",
            )
        with torch.autocast(n.device.type, enabled=False):
            n = keeper.apart(n.to(self.A0.dtype))  # pyright: ignore
            earlier, attended = keeper.earlier(block), keeper.attended(n.shape[1])
            state = self.first_state(len(n)) if earlier is None else {m: t.to(n.device) for m, t in earlier.items()}
            order = None
            if attended is not None:
                attended = attended.to(n.device)
                # Real tokens first, so that each stands behind its predecessor.
                order = (~attended).long().argsort(dim=1, stable=True)
                n, attended = n.take_along_dim(order[..., None], dim=1), attended.take_along_dim(order, dim=1)
            reads, behind = self.run(n, state, attended, keeper.now.learns)
            keeper.keep(block, behind)
            added = torch.einsum("bltd,l->btd", reads, self.every("gain") * self.scale)
            if order is not None:
                added = added.take_along_dim(order.argsort(dim=1)[..., None], dim=1)
            return keeper.together(added)

    def run(
        self, n: torch.Tensor, state: State, attended: torch.Tensor | None, learns: bool
    ) -> tuple[torch.Tensor, State]:
        """Reads [B, L, T, D] of T tokens, and the state behind them.

        Args:
            attended: [B, T] bool, all real tokens first; None when nothing is padding.
            learns: False to read only.
        """
        keys = unit(torch.stack([self.hidden(level, n) for level in range(self.count)], dim=1))
        seen = torch.cat([state["key"][:, :, None], keys], dim=2)
        rates = (torch.sigmoid(self.every("rate")) * float(learns))[:, None].expand(len(n), -1, n.shape[1])
        reads, behind, _ = run_memory(
            {name: state[name] for name in ("running", "boundary", "count")},
            keys,
            seen[:, :, :-1],
            n[:, None].expand(-1, self.count, -1, -1),
            rates,
            torch.zeros_like(rates),
            self.chunk,
            attended=attended,
            reads="boundary",
        )
        last = torch.full((len(n),), n.shape[1], device=n.device) if attended is None else attended.sum(dim=1)
        key = seen.take_along_dim(last[:, None, None, None], dim=2)[:, :, 0]
        return reads, {**behind, "key": key}
