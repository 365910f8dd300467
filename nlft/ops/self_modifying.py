"""Self-modifying memory (Behrouz et al. 2025, Nested Learning, equations 83 to 93): keys, values, rates and decays come
from linear memories that write themselves.

Five memories share their keys, rates and decays, so they are five groups of rows of one matrix S [3 M + 2, M], in this
order: memory (M rows), key (M), value (M), rate (1), decay (1). With S_b the matrix at the last chunk boundary and x_t
the token's features:

    k_t = unit(key_b x_t),   v_t = unit(value_b x_t)
    eta_t = rate_limit * sigmoid(rate_b x_t + offset),   alpha_t = exp(-softplus(decay_b x_t + offset))
    S_t = S_{t-1} (alpha_t I - eta_t k_t k_t^T) + U_t k_t^T
    U_t = eta_t S_b v_t  (dot)   or   -eta_t S_b (k_t - v_t)  (l2)

`S_b v_t` holds the target that every memory makes for itself. Queries do not adapt. The paper leaves open, and here it
is: rates and decays are squashed by sigmoid and softplus, with an offset of each head that does not adapt; values have
length 1 (a value longer than its key makes S grow without bound, since what is written comes back in the next target);
one chunk length serves all five memories; gradients pass through targets. A memory that starts at 0 stays 0, and a key
memory at 0 has no direction: start all from something else. Decay forgets the initial memories too, keys and values
included: after some `1 / (1 - alpha)` tokens little of them is left.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nlft.errors import NlftError
from nlft.ops.chunk_grid import ChunkGrid, State, unit
from nlft.ops.delta_memory import Objective, Reads, apply, delta_steps, prepare_chunks


def join_memories(
    memory: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rate: torch.Tensor, decay: torch.Tensor
) -> torch.Tensor:
    """Initial memories [H, M, M] (three) and [H, M] (rate and decay) as one matrix [H, 3 M + 2, M] for `new_memory`."""
    return torch.cat([memory, key, value, rate[:, None], decay[:, None]], dim=1)


def generate(
    boundary: torch.Tensor, features: torch.Tensor, offsets: torch.Tensor, rate_limit: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values [B, H, W, M] of length 1, rates and log decays [B, H, W] of features [B, H, W, M]."""
    size = features.shape[-1]
    made = features @ boundary[:, :, size:].mT
    key, value, rate, decay = made.split([size, size, 1, 1], dim=-1)
    rates = rate_limit * (rate[..., 0] + offsets[:, :1]).sigmoid()
    return unit(key), unit(value), rates, -F.softplus(decay[..., 0] + offsets[:, 1:])


def run_self_modifying(
    state: State,
    queries: torch.Tensor,
    features: torch.Tensor,
    offsets: torch.Tensor,
    chunk: int,
    *,
    rate_limit: float = 1.0,
    attended: torch.Tensor | None = None,
    objective: Objective = "dot",
    reads: Reads = "token",
    bptt_chunks: int | None = None,
) -> tuple[torch.Tensor, State, torch.Tensor]:
    """Reads and writes T tokens of every sequence, in chunks of C tokens counted from each sequence's first token.

    Cutting a sequence into several passes changes nothing.

    Args:
        state: `running`, `boundary` [B, H, 3 M + 2, M], `count` [B] (`new_memory(join_memories(...), B)`).
        queries: [B, H, T, M], read by the memory rows only.
        features: [B, H, T, M], what keys, values, rates and decays are made of.
        offsets: [H, 2], added to the rate and to the decay before they are squashed; a decay offset of -6.9 leaves
            alpha near 0.999.
        chunk: C >= 1.
        rate_limit: largest eta, at most 1.
        attended: [B, T] bool, False at padding; None when nothing is padding.
        objective: see the module.
        reads: `token` reads the memory just before the token, `boundary` (the paper's parallel form) that of the last
            boundary.
        bptt_chunks: gradients stop at the start of every n-th chunk of this pass; None lets them through.

    Returns:
        reads [B, H, T, M], zero at padding; the state after the last token; the surprise [B, H, T], the length of the
        memory's local gradient: of its target for dot, of what it lacks of the target for l2. All of the state's dtype.
    """
    check(objective, reads)
    dtype, size = state["running"].dtype, features.shape[-1]
    with torch.autocast(queries.device.type, enabled=False):
        grid = ChunkGrid(state["count"], queries.shape[2], chunk, attended)
        real = grid.lay(torch.ones(len(queries), 1, queries.shape[2], dtype=dtype, device=queries.device))
        cells = (grid.lay(x.to(dtype)).unbind(2) for x in (queries, features))
        bounds, states, outputs, surprises = [state["boundary"]], [state["running"]], [], []
        for n, (query, feature, filled) in enumerate(zip(*cells, real.unbind(2), strict=True)):
            start = states[-1]
            if bptt_chunks and n and n % bptt_chunks == 0:
                start = start.detach()
            if n:
                bounds.append(start)
            boundary = bounds[n]
            keys, values, rates, log_decays = generate(boundary, feature, offsets.to(dtype), rate_limit)
            rates, log_decays = rates * filled, log_decays * filled
            form = prepare_chunks(keys, rates, log_decays)
            errors = -values @ boundary.mT if objective == "dot" else (keys - values) @ boundary.mT
            # What every token adds before the tokens of its own chunk are taken into account.
            rows = -rates[..., None] * errors - (form.weights[..., None] * keys) @ start.mT
            states.append(form.decay.total[..., None, None] * start + rows.mT @ form.writer)
            surprises.append(errors[..., :size].norm(dim=-1))
            if reads == "boundary":
                outputs.append(query @ boundary[:, :, :size].mT)
                continue
            inside = (form.decay.between * (query @ keys.mT)) @ form.inverse
            old = (form.decay.before[..., None] * query) @ start[:, :, :size].mT
            outputs.append(old + inside @ rows[..., :size])
        running, bound = grid.last(states, bounds)
        after = {"running": running, "boundary": bound, "count": grid.count}
        return grid.lift(torch.stack(outputs, dim=2)), after, grid.lift(torch.stack(surprises, dim=2))


def check(objective: str, reads: str) -> None:
    """Refuses names that mean nothing."""
    if objective not in ("dot", "l2"):
        raise NlftError(f"objective is {objective!r}.", "Choose dot or l2.")
    if reads not in ("token", "boundary"):
        raise NlftError(f"reads is {reads!r}.", "Choose token or boundary.")


def run_self_modifying_steps(
    state: State,
    queries: torch.Tensor,
    features: torch.Tensor,
    offsets: torch.Tensor,
    chunk: int,
    *,
    rate_limit: float = 1.0,
    attended: torch.Tensor | None = None,
    objective: Objective = "dot",
    reads: Reads = "token",
    bptt_chunks: int | None = None,
) -> tuple[torch.Tensor, State, torch.Tensor]:
    """Twin of `run_self_modifying`, token by token and memory by memory."""
    size = features.shape[-1]
    sizes = [size, size, size, 1, 1]
    running, boundary = (list(state[name].split(sizes, dim=2)) for name in ("running", "boundary"))
    count, dtype = state["count"], state["running"].dtype
    queries, features = queries.to(dtype), features.to(dtype)
    began, outputs, surprises = count // chunk, [], []
    for t in range(queries.shape[2]):
        read = torch.ones_like(count, dtype=torch.bool) if attended is None else attended[:, t]
        row = read[:, None, None, None]
        if bptt_chunks:
            number = count // chunk - began
            cut = (read & (count % chunk == 0) & (number > 0) & (number % bptt_chunks == 0))[:, None, None, None]
            running = [torch.where(cut, x.detach(), x) for x in running]
            boundary = [torch.where(cut, x.detach(), x) for x in boundary]
        key, value, rate, decay = (apply(x, features[:, :, t]) for x in boundary[1:])
        key, value = F.normalize(key, dim=-1), F.normalize(value, dim=-1)
        rate = rate_limit * torch.sigmoid(rate[..., 0] + offsets[:, 0])
        log_decay = torch.log(torch.sigmoid(-(decay[..., 0] + offsets[:, 1])))  # softplus(x) = -log sigmoid(-x)
        source = running if reads == "token" else boundary
        outputs.append(apply(source[0], queries[:, :, t]) * row[..., 0])
        for i, bound in enumerate(boundary):
            target = apply(bound, value)
            error = -target if objective == "dot" else apply(bound, key) - target
            if i == 0:
                surprises.append(error.norm(dim=-1) * row[..., 0, 0])
            one = (x[:, :, None] for x in (queries[:, :, t], key, -rate[..., None] * error, rate, log_decay))
            running[i] = torch.where(row, delta_steps(running[i], *one)[1], running[i])
        count = count + read
        full = (read & (count % chunk == 0))[:, None, None, None]
        boundary = [torch.where(full, r, b) for r, b in zip(running, boundary, strict=True)]
    after = {"running": torch.cat(running, dim=2), "boundary": torch.cat(boundary, dim=2), "count": count}
    if not outputs:
        return torch.zeros_like(queries), after, torch.zeros_like(queries[..., 0])
    return torch.stack(outputs, dim=2), after, torch.stack(surprises, dim=2)
