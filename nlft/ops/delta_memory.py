"""Linear memory under delta gradient descent (Behrouz et al. 2025, Nested Learning, equations 57 and 88 to 93).

A memory is a matrix S; token t reads it, then writes:

    reads_t = S_{t-1} q_t,    S_t = S_{t-1} (alpha_t I - eta_t k_t k_t^T) + U_t k_t^T

Unrolled, `S_t` is the decayed initial state plus decayed columns `Q_i k_i^T`, and the columns of a chunk solve one unit
lower-triangular system, so a chunk costs a few matrix products instead of C steps. Decays are only ever divided as
differences of logarithms: products of alpha underflow within a chunk.

All operations run in float32 (float64 stays float64), outside autocast.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from nlft.errors import NlftError
from nlft.ops.chunk_grid import ChunkGrid, State

Objective = Literal["dot", "l2"]
"""What a write lowers: `dot` is `-<M k, v>`, `l2` is `|M k - v|^2 / 2` with M at the last chunk boundary."""
Reads = Literal["token", "boundary"]
"""Which state a token reads: `token` the state just before it, `boundary` the state at the last chunk boundary."""


def delta_steps(
    state: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    writes: torch.Tensor,
    rates: torch.Tensor,
    log_decays: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Twin of `delta_chunk`, token by token."""
    reads = []
    tokens = (x.unbind(-2) for x in (queries, keys, writes, rates[..., None], log_decays[..., None]))
    for query, key, write, rate, log_decay in zip(*tokens, strict=True):
        reads.append(apply(state, query))
        column = write - rate * apply(state, key)
        state = log_decay[..., None].exp() * state + column[..., :, None] * key[..., None, :]
    return torch.stack(reads, dim=-2) if reads else torch.zeros_like(writes), state


def apply(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A memory [..., V, K] at one vector [..., K] each: [..., V]."""
    return (state @ x[..., None])[..., 0]


class Decays(NamedTuple):
    """How much of earlier states is left inside a chunk of C tokens."""

    before: torch.Tensor
    """[..., C], of the chunk's first state, just before token t."""
    after: torch.Tensor
    """[..., C], of what token t wrote, at the chunk's end."""
    total: torch.Tensor
    """[...], of the first state, at the end."""
    between: torch.Tensor
    """[..., C, C], of what token i wrote, just before token t; 0 unless i < t."""


def decays(log_decays: torch.Tensor) -> Decays:
    """Decays between the tokens of chunks [..., C] of logarithms <= 0 (finite)."""
    dtype = log_decays.dtype
    # Sums over a long chunk lose the digits that neighbours differ in; mps has no float64.
    log_decays = log_decays if log_decays.device.type == "mps" else log_decays.double()
    after = log_decays.cumsum(dim=-1)
    before = after - log_decays
    end = log_decays.sum(dim=-1)
    # Zeros above the diagonal on both sides of exp: differences there are positive and would overflow.
    between = (before[..., :, None] - after[..., None, :]).tril(-1).to(dtype).exp().tril(-1)
    return Decays(before.to(dtype).exp(), (end[..., None] - after).to(dtype).exp(), end.to(dtype).exp(), between)


class Chunk(NamedTuple):
    """What the keys, rates and decays of a chunk of C tokens do to any state S.

    With U [..., C, V] the writes: `S_end = total S + (U - (weights keys) S^T)^T writer`.
    """

    decay: Decays
    weights: torch.Tensor
    """[..., C], `eta` times what is left of S before the token."""
    inverse: torch.Tensor
    """[..., C, C], from `U - (weights keys) S^T` to the columns that the tokens really add."""
    writer: torch.Tensor
    """[..., C, K], from the same to what is left of those columns at the end, times their keys."""


def prepare_chunks(keys: torch.Tensor, rates: torch.Tensor, log_decays: torch.Tensor) -> Chunk:
    """Chunks of keys [..., C, K] of length 1, rates and log decays [..., C]."""
    decay = decays(log_decays)
    overlap = rates[..., None] * decay.between * (keys @ keys.mT)
    # With unit keys and rates up to 1 the inverse is about as tame as the system, and cheaper than further solves.
    one = torch.eye(keys.shape[-2], dtype=keys.dtype, device=keys.device)
    inverse = torch.linalg.solve_triangular(overlap, one, upper=False, unitriangular=True)
    return Chunk(decay, rates * decay.before, inverse, inverse.mT @ (decay.after[..., None] * keys))


def delta_chunk(
    state: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    writes: torch.Tensor,
    rates: torch.Tensor,
    log_decays: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads and writes T tokens in one triangular solve; `writes` must not depend on states inside the chunk.

    Args:
        state: [..., V, K], the memory before the first token.
        queries: [..., T, K].
        keys: [..., T, K] of length 1.
        writes: [..., T, V], the added column U: `eta v` (dot) or `-eta (M k - v)` with M at the boundary (l2).
        rates: [..., T], eta in [0, 1].
        log_decays: [..., T], log alpha <= 0.

    Returns:
        reads [..., T, V], each before the write of its token, and the state [..., V, K] after the last token.
    """
    before, after, total, between = decays(log_decays)
    overlap = rates[..., None] * between * (keys @ keys.mT)
    right = writes - (rates * before)[..., None] * (keys @ state.mT)
    # Only the part below the diagonal is read; the diagonal counts as 1.
    columns = torch.linalg.solve_triangular(overlap, right, upper=False, unitriangular=True)
    reads = before[..., None] * (queries @ state.mT) + (between * (queries @ keys.mT)) @ columns
    return reads, total[..., None, None] * state + (after[..., None] * columns).mT @ keys


def new_memory(initial: torch.Tensor, rows: int) -> State:
    """State of `rows` sequences that have read nothing; initial [H, V, K]."""
    start = initial if initial.dtype == torch.float64 else initial.float()
    start = start.expand(rows, *initial.shape)
    return {
        "running": start,
        "boundary": start,
        "count": torch.zeros(rows, dtype=torch.long, device=initial.device),
    }


def run_memory(
    state: State,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rates: torch.Tensor,
    log_decays: torch.Tensor,
    chunk: int,
    *,
    attended: torch.Tensor | None = None,
    objective: Objective = "dot",
    reads: Reads = "token",
    bptt_chunks: int | None = None,
) -> tuple[torch.Tensor, State, torch.Tensor]:
    """Reads and writes T tokens of every sequence, in chunks of C tokens counted from each sequence's first token.

    Cutting a sequence into several passes changes nothing. With the dot objective and reads by token the result does
    not depend on C; with l2 the local gradient is taken at the last boundary, as the paper's parallel form does.
    What does not depend on the state is computed for all chunks at once, which leaves two small products for each.

    Args:
        state: `running` and `boundary` [B, H, V, K] float32 or float64, `count` [B] int64 (`new_memory`).
        queries: [B, H, T, K].
        keys: [B, H, T, K] of length 1 (`unit`).
        values: [B, H, T, V].
        rates: [B, H, T], eta in [0, 1].
        log_decays: [B, H, T], log alpha <= 0, finite.
        chunk: C >= 1.
        attended: [B, T] bool, False at padding, which writes nothing, forgets nothing and does not count; None when
            nothing is padding.
        objective: with `dot` a key that is written often comes to return v; with `l2` it comes to v / 2, because the
            delta factor subtracts `M k` a second time.
        reads: see `Reads`.
        bptt_chunks: gradients stop at the start of every n-th chunk of this pass; None lets them through.

    Returns:
        reads [B, H, T, V], zero at padding; the state after the last token; the surprise [B, H, T] of every token, the
        length of the local gradient (of unit keys): `|v|` for dot, `|M k - v|` at the boundary for l2. All of the
        state's dtype.
    """
    dtype = state["running"].dtype
    with torch.autocast(queries.device.type, enabled=False):
        grid = ChunkGrid(state["count"], queries.shape[2], chunk, attended)
        q, k, v, rates, log_decays = (grid.lay(x.to(dtype)) for x in (queries, keys, values, rates, log_decays))
        found = walk(state, grid, q, k, v, rates, log_decays, objective, reads, bptt_chunks)
        out, running, boundary, surprise = found
        state = {"running": running, "boundary": boundary, "count": grid.count}
        return grid.lift(out), state, grid.lift(surprise)


def walk(
    state: State,
    grid: ChunkGrid,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rates: torch.Tensor,
    log_decays: torch.Tensor,
    objective: Objective,
    reads: Reads,
    bptt_chunks: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reads, running and boundary state, and surprise of `run_memory`, over cells.

    Queries and keys are [B, H, N, W, K], values [B, H, N, W, V], rates and log decays [B, H, N, W].
    """
    form = prepare_chunks(keys, rates, log_decays)
    writes, weights = rates[..., None] * values, form.weights
    first = state["boundary"][:, :, None]
    if objective == "l2":
        # The gradient's M is the boundary: known for the first cell, the state at its start for every other.
        known = writes[:, :, :1] - rates[:, :, :1, :, None] * (keys[:, :, :1] @ first.mT)
        writes = torch.cat([known, writes[:, :, 1:]], dim=2)
        weights = torch.cat([weights[:, :, :1], (weights + rates)[:, :, 1:]], dim=2)
    elif objective != "dot":
        raise NlftError(f"objective is {objective!r}.", "Choose dot or l2.")
    parts = form.decay.total[..., None, None], weights[..., None] * keys, writes, form.writer
    states, starts, rows = [state["running"]], [], []
    for n, (total, key, write, writer) in enumerate(zip(*(part.unbind(2) for part in parts), strict=True)):
        start = states[-1]
        if bptt_chunks and n and n % bptt_chunks == 0:
            start = start.detach()
        starts.append(start)
        rows.append(write - key @ start.mT)
        states.append(total * start + rows[n].mT @ writer)
    begun = torch.stack(starts, dim=2)
    known = torch.cat([first, begun[:, :, 1:]], dim=2)
    if reads == "token":
        mixed = (form.decay.between * (queries @ keys.mT)) @ form.inverse
        out = (form.decay.before[..., None] * queries) @ begun.mT + mixed @ torch.stack(rows, dim=2)
    elif reads == "boundary":
        out = queries @ known.mT
    else:
        raise NlftError(f"reads is {reads!r}.", "Choose token or boundary.")
    errors = values if objective == "dot" else keys @ known.mT - values
    return out, *grid.last(states, [state["boundary"], *starts[1:]]), errors.norm(dim=-1)


def run_memory_steps(
    state: State,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rates: torch.Tensor,
    log_decays: torch.Tensor,
    chunk: int,
    *,
    attended: torch.Tensor | None = None,
    objective: Objective = "dot",
    reads: Reads = "token",
    bptt_chunks: int | None = None,
) -> tuple[torch.Tensor, State, torch.Tensor]:
    """Twin of `run_memory`, token by token."""
    running, boundary, count = state["running"], state["boundary"], state["count"]
    began, outputs, surprises = count // chunk, [], []
    for t in range(queries.shape[2]):
        read = torch.ones_like(count, dtype=torch.bool) if attended is None else attended[:, t]
        row = read[:, None, None, None]
        if bptt_chunks:
            number = count // chunk - began
            cut = (read & (count % chunk == 0) & (number > 0) & (number % bptt_chunks == 0))[:, None, None, None]
            running = torch.where(cut, running.detach(), running)
            boundary = torch.where(cut, boundary.detach(), boundary)
        query, key, value = (x[:, :, t].to(running.dtype) for x in (queries, keys, values))
        rate = rates[:, :, t, None].to(running.dtype)
        error = -value if objective == "dot" else apply(boundary, key) - value
        outputs.append(apply(running if reads == "token" else boundary, query) * row[..., 0])
        surprises.append(error.norm(dim=-1) * row[..., 0, 0])
        column = -rate * (error + apply(running, key))
        after = log_decays[:, :, t, None, None].to(running.dtype).exp() * running
        running = torch.where(row, after + column[..., :, None] * key[..., None, :], running)
        count = count + read
        boundary = torch.where((read & (count % chunk == 0))[:, None, None, None], running, boundary)
    state = {"running": running, "boundary": boundary, "count": count}
    if not outputs:
        return torch.zeros_like(values, dtype=running.dtype), state, torch.zeros_like(rates, dtype=running.dtype)
    return torch.stack(outputs, dim=2), state, torch.stack(surprises, dim=2)
