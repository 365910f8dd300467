"""Where the tokens of one pass lie among the chunks of their sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]
"""State of a batch of sequences by name; the first dimension of every tensor is B. `count` [B] int64 counts the
tokens read so far, `running_*` is the memory after the last of them, `boundary_*` the memory after the last token
whose number is a multiple of the chunk length."""


class ChunkGrid:
    """Lays T new tokens of every row into N cells of W tokens, so that a cell never crosses a chunk's end in any row.

    Rows may be at different places in their chunks and hold padding anywhere: a row's attended tokens move together
    and start where its last chunk was left, so the cells of all rows end at once and one batched form does for all.
    Empty places of a cell, like pads, are zeros: with rate 0 and log decay 0 they neither write nor forget.
    If no row comes to the end of a chunk before its last token, the tokens stay where they are in one cell.

    Args:
        count: [B] int64, tokens that every row has read before.
        tokens: T, of any size.
        chunk: C >= 1, tokens between two boundaries.
        attended: [B, T] bool, False where a token is padding; None when nothing is.
    """

    def __init__(self, count: torch.Tensor, tokens: int, chunk: int, attended: torch.Tensor | None) -> None:
        self.tokens, self.attended = tokens, attended
        new = torch.full_like(count, tokens) if attended is None else attended.sum(dim=1)
        self.count = count + new
        filled = count % chunk
        last = filled + new
        self.closed = last // chunk
        """[B] how many chunks every row has closed."""
        self.entered = (last + chunk - 1) // chunk
        """[B] how many cells hold what a row has read."""
        self.moves = False
        if tokens <= 1:  # one token never passes a boundary, so decoding asks the device for nothing
            self.number, self.width = 1, tokens
            return
        longest = int(last.max()) if len(last) else 0
        if longest <= chunk:
            self.number, self.width = 1, tokens
            return
        self.number, self.width = (longest + chunk - 1) // chunk, chunk
        self.moves = attended is not None or bool(filled.any())
        if self.moves:
            size = self.number * chunk
            place = filled[:, None] + torch.arange(tokens, device=count.device)
            if attended is not None:
                place = torch.where(attended, filled[:, None] + attended.cumsum(dim=1) - 1, size)
            self.place = place  # [B, T], `size` for a pad
            order = torch.full((len(count), size + 1), tokens, device=count.device)
            self.source = order.scatter(1, place, torch.arange(tokens, device=count.device).expand_as(place))[:, :size]

    def lay(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [B, H, T, ...] as cells [B, H, N, W, ...]."""
        if self.moves:
            x = pick(F.pad(x, (0, 0) * (x.dim() - 3) + (0, 1)), self.source)
        elif self.attended is not None:
            x = x.masked_fill(~self.attended.view(len(x), 1, -1, *(1,) * (x.dim() - 3)), 0)
        short = self.number * self.width - x.shape[2]
        if short:
            x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, short))
        return x.unflatten(2, (self.number, self.width))

    def lift(self, x: torch.Tensor) -> torch.Tensor:
        """Cells [B, H, N, W, ...] as tokens [B, H, T, ...]; at pads what came of zeros."""
        x = x.flatten(2, 3)
        if self.moves:
            return pick(F.pad(x, (0, 0) * (x.dim() - 3) + (0, 1)), self.place)
        return x[:, :, : self.tokens]

    def last(self, states: list[torch.Tensor], bounds: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Running and boundary state of every row after its last token.

        Args:
            states: N + 1 tensors [B, ...]: before the first cell and after every cell.
            bounds: N tensors [B, ...], the boundary that every cell saw.
        """
        shape = (-1, *(1,) * (states[0].dim() - 1))
        if self.number == 1:
            return states[1], torch.where(self.closed.view(shape) > 0, states[1], bounds[0])
        if not self.moves:  # all rows stand at the same place
            return states[-1], states[-1] if self.tokens % self.width == 0 else bounds[-1]
        rows = torch.arange(len(self.closed), device=self.closed.device)
        running = torch.stack(states, dim=1)[rows, self.entered]
        before = torch.stack(bounds, dim=1)[rows, self.closed.clamp_max(self.number - 1)]
        ended = (self.closed == self.entered) & (self.closed > 0)
        return running, torch.where(ended.view(shape), running, before)


def pick(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Entries [B, H, I, ...] of x [B, H, T, ...] at index [B, I] of every row."""
    rows = torch.arange(len(x), device=x.device)[:, None]
    return x.transpose(1, 2)[rows, index].transpose(1, 2)


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of length 1 in float32 (float64 stays); a row shorter than 1e-6 stays shorter than 1.

    One step of delta gradient descent is exact only for unit keys (Behrouz et al. 2025, Nested Learning, equation 57).
    """
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1, eps=1e-6)
