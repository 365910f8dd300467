"""MLP memory `M(z) = z + W1 sigma(W2 z)` under delta gradient descent (Behrouz et al. 2025, Nested Learning, equations
89 to 91), in chunks.

Gradients of a chunk are taken at the memory of the last boundary, so every token's gradient is a pair of vectors: the
error `e_t` at the output and what comes back of it to the hidden layer, `d_t = (W1^T e_t) * sigma'(W2 k_t)`. No
gradient matrix of a token is ever formed. The delta factor `alpha I - eta k k^T` belongs to the map whose input is k:

    W2_t = W2_{t-1} (alpha_t I - eta_t k_t k_t^T) - eta_t d_t k_t^T
    W1_t = alpha_t W1_{t-1} - eta_t e_t sigma(W2_b k_t)^T

The paper leaves open where its factor goes in an MLP; W1 gets the scalar decay only. Errors: `-v` for the objective
`dot` (`-<M(k), v>`), `M(k) - v` for `l2` (`|M(k) - v|^2 / 2`; the paper prints no half).

Unlike the linear memory this one need not stay bounded. `dot` has no fixed point: a token written again and again makes
both layers grow without end. `l2` wanders about the value instead of coming to rest, since the delta factor takes away
what W2 answers to k. With either, values of length 1 and rates of 0.2 or less are needed: random tokens made the layers
overflow at rate 1, and with values of length sqrt(M) from rate 0.2 on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from nlft.errors import NlftError
from nlft.ops.chunk_grid import ChunkGrid, State
from nlft.ops.delta_memory import Objective, prepare_chunks

Layers = tuple[torch.Tensor, torch.Tensor]
"""W1 [..., M, N] and W2 [..., N, M] with N hidden units."""


def mlp_read(layers: Layers, x: torch.Tensor) -> torch.Tensor:
    """`x + W1 sigma(W2 x)` for rows x [..., T, M]; sigma is SiLU."""
    return x + F.silu(x @ layers[1].mT) @ layers[0].mT


def new_mlp_memory(initial: Layers, rows: int) -> State:
    """State of `rows` sequences that have read nothing; initial W1 [H, M, N] and W2 [H, N, M]."""
    state = {"count": torch.zeros(rows, dtype=torch.long, device=initial[0].device)}
    for name, layer in zip(("w1", "w2"), initial, strict=True):
        layer = layer if layer.dtype == torch.float64 else layer.float()
        state[f"running_{name}"] = state[f"boundary_{name}"] = layer.expand(rows, *layer.shape)
    return state


def run_mlp_memory(
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
    bptt_chunks: int | None = None,
) -> tuple[torch.Tensor, State, torch.Tensor]:
    """Reads and writes T tokens of every sequence, in chunks of C tokens counted from each sequence's first token.

    Every token reads the memory of the last boundary. Cutting a sequence into several passes changes nothing.

    Args:
        state: `running_w1`, `boundary_w1` [B, H, M, N], `running_w2`, `boundary_w2` [B, H, N, M], float32 or float64,
            `count` [B] int64 (`new_mlp_memory`).
        queries: [B, H, T, M].
        keys: [B, H, T, M] of length 1 (`unit`).
        values: [B, H, T, M].
        rates: [B, H, T], eta in [0, 1].
        log_decays: [B, H, T], log alpha <= 0, finite.
        chunk: C >= 1.
        attended: [B, T] bool, False at padding, which writes nothing, forgets nothing and does not count; None when
            nothing is padding.
        objective: see the module.
        bptt_chunks: gradients stop at the start of every n-th chunk of this pass; None lets them through.

    Returns:
        reads [B, H, T, M], zero at padding; the state after the last token; the surprise [B, H, T], the length of the
        gradient at the memory's output: `|v|` for dot, `|M(k) - v|` for l2. All of the state's dtype.
    """
    if objective not in ("dot", "l2"):
        raise NlftError(f"objective is {objective!r}.", "Choose dot or l2.")
    dtype = state["running_w1"].dtype
    with torch.autocast(queries.device.type, enabled=False):
        grid = ChunkGrid(state["count"], queries.shape[2], chunk, attended)
        cells = [grid.lay(x.to(dtype)) for x in (queries, keys, values, rates, log_decays)]
        form = prepare_chunks(cells[1], cells[3], cells[4])
        parts = (
            *cells[:3],
            cells[3][..., None],
            form.weights[..., None] * cells[1],
            (form.decay.after * cells[3])[..., None],
            form.writer,
            form.decay.total[..., None, None],
        )
        bounds: list[Layers] = [(state["boundary_w1"], state["boundary_w2"])]
        states: list[Layers] = [(state["running_w1"], state["running_w2"])]
        outputs, surprises = [], []
        for n, cell in enumerate(zip(*(part.unbind(2) for part in parts), strict=True)):
            query, key, value, rate, seen, faded, writer, total = cell
            w1, w2 = states[-1]
            if bptt_chunks and n and n % bptt_chunks == 0:
                w1, w2 = w1.detach(), w2.detach()
            if n:
                bounds.append((w1, w2))
            b1, b2 = bounds[n]
            before = key @ b2.mT
            hidden = F.silu(before)
            error = -value if objective == "dot" else key + hidden @ b1.mT - value
            rows = -rate * silu_slope(before) * (error @ b1) - seen @ w2.mT
            states.append((total * w1 - (faded * error).mT @ hidden, total * w2 + rows.mT @ writer))
            outputs.append(mlp_read((b1, b2), query))
            surprises.append(error.norm(dim=-1))
        after: State = {"count": grid.count}
        for i, name in enumerate(("w1", "w2")):
            ends = grid.last([layers[i] for layers in states], [layers[i] for layers in bounds])
            after[f"running_{name}"], after[f"boundary_{name}"] = ends
        return grid.lift(torch.stack(outputs, dim=2)), after, grid.lift(torch.stack(surprises, dim=2))


def silu_slope(x: torch.Tensor) -> torch.Tensor:
    """Derivative of SiLU."""
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


def run_mlp_memory_steps(
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
    bptt_chunks: int | None = None,
) -> tuple[torch.Tensor, State, torch.Tensor]:
    """Twin of `run_mlp_memory`: one token at a time, with gradients by `torch.func`."""

    def loss(w1: torch.Tensor, w2: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = mlp_read((w1, w2), key[None])[0]
        return -(out * value).sum() if objective == "dot" else (out - value).square().sum() / 2

    gradients = vmap(vmap(grad(loss, argnums=(0, 1))))
    w1, w2, b1, b2 = (state[f"{kind}_{name}"] for kind in ("running", "boundary") for name in ("w1", "w2"))
    count, dtype = state["count"], w1.dtype
    queries, keys, values, rates, log_decays = (x.to(dtype) for x in (queries, keys, values, rates, log_decays))
    began, outputs, surprises = count // chunk, [], []
    for t in range(queries.shape[2]):
        read = torch.ones_like(count, dtype=torch.bool) if attended is None else attended[:, t]
        row = read[:, None, None, None]
        if bptt_chunks:
            number = count // chunk - began
            cut = (read & (count % chunk == 0) & (number > 0) & (number % bptt_chunks == 0))[:, None, None, None]
            w1, w2, b1, b2 = (torch.where(cut, x.detach(), x) for x in (w1, w2, b1, b2))
        key, value = keys[:, :, t], values[:, :, t]
        alpha, rate = log_decays[:, :, t, None, None].exp(), rates[:, :, t, None, None]
        outputs.append(mlp_read((b1, b2), queries[:, :, t : t + 1])[:, :, 0] * row[..., 0])
        answer = mlp_read((b1, b2), key[:, :, None])[:, :, 0]
        error = value if objective == "dot" else answer - value
        surprises.append(error.norm(dim=-1) * row[..., 0, 0])
        g1, g2 = gradients(b1, b2, key, value)
        factor = alpha * torch.eye(key.shape[-1], dtype=dtype) - rate * key[..., :, None] * key[..., None, :]
        w1, w2 = torch.where(row, alpha * w1 - rate * g1, w1), torch.where(row, w2 @ factor - rate * g2, w2)
        count = count + read
        full = (read & (count % chunk == 0))[:, None, None, None]
        b1, b2 = torch.where(full, w1, b1), torch.where(full, w2, b2)
    after = {"running_w1": w1, "running_w2": w2, "boundary_w1": b1, "boundary_w2": b2, "count": count}
    if not outputs:
        return torch.zeros_like(values), after, torch.zeros_like(rates)
    return torch.stack(outputs, dim=2), after, torch.stack(surprises, dim=2)
