"""Levels of memory MLPs: the parts of which a continuum memory system is made.

Behrouz et al. 2025, "Nested Learning", sections 7.1 and 7.3. A level is known by its place in `periods`, fastest
first; the paper numbers them both ways.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn import functional

from nlft.pathways.part import TaskPart

Variant = Literal["headwise", "sequential", "nested"]
RMS_EPSILON = 1e-6


class Levels(TaskPart):
    """Residual MLPs side by side or in a chain: [..., D] to what they add, [..., D] float32 (float64 if they are).

    With A_l [R, D] (named `A0`, `A1` …), B_l [D, R] and the activation silu:

    - headwise (equation 74): `s * sum_l B_l silu(A_l n)`;
    - sequential (equations 70 and 73): `u_l = u_{l-1} + B_l silu(A_l rms(u_{l-1}))` from `u_0 = n`; added is
      `s * (u_k - u_0)`, summed without that difference's loss of digits;
    - nested (equation 72): computes what sequential does; only its training differs, see `nlft.optim`.

    Every A_l is uniform in `+-1 / sqrt(D)` and every B_l zero, so nothing is added at first, and every B_l has a
    gradient at the first step and every A_l at the second.

    Args:
        width: D.
        r: R, hidden units of a level.
        count: number of levels.
        scale: s.
        generator: draws A; torch's own when None.
        trainable: parameters, or buffers.
        zero: False draws B at random too, for tests.
    """

    def __init__(
        self,
        width: int,
        r: int,
        count: int,
        variant: Variant = "headwise",
        scale: float = 1.0,
        *,
        generator: torch.Generator | None = None,
        trainable: bool = True,
        zero: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.count, self.variant, self.scale = width, count, variant, scale
        tensors = {}
        for level in range(count):
            tensors[f"A{level}"] = drawn(r, width, width, generator)
            tensors[f"B{level}"] = torch.zeros(width, r) if zero else drawn(width, r, width, generator)
        self.hold(tensors, trainable)

    def by_level(self) -> dict[int, list[str]]:
        """Names of the tensors of every level."""
        return {level: [f"A{level}", f"B{level}"] for level in range(self.count)}

    def hidden(self, level: int, u: torch.Tensor) -> torch.Tensor:
        """`silu(A_l u)`, [..., R]."""
        return functional.silu(u @ getattr(self, f"A{level}").T)

    def forward(self, n: torch.Tensor) -> torch.Tensor:
        """What the levels add to the block's output."""
        with torch.autocast(n.device.type, enabled=False):
            n = n.to(self.A0.dtype)  # pyright: ignore
            added: torch.Tensor | None = None
            for level in range(self.count):
                u = n
                if self.variant != "headwise":
                    u = rms(n if added is None else n + added)
                step = self.hidden(level, u) @ getattr(self, f"B{level}").T
                added = step if added is None else added + step
            assert added is not None
            return added * self.scale


class Delta(TaskPart):
    """A low-rank change of one pretrained linear map, `s * B A` with A [R, D_in] and B [D_out, R], zero at first.

    Section 7.3 of the paper takes a set of pretrained MLP blocks as the levels of one memory: each block belongs to
    one level, whose period it is trained with. The pretrained weight stays frozen, and the change is what is trained.

    Args:
        level: to which the map belongs, fastest 0.
    """

    A: torch.Tensor
    B: torch.Tensor

    def __init__(
        self,
        width_in: int,
        width_out: int,
        r: int,
        level: int,
        scale: float = 1.0,
        *,
        generator: torch.Generator | None = None,
        trainable: bool = True,
        zero: bool = True,
    ) -> None:
        super().__init__()
        self.level, self.scale = level, scale
        B = torch.zeros(width_out, r) if zero else drawn(width_out, r, width_in, generator)
        self.hold({"A": drawn(r, width_in, width_in, generator), "B": B}, trainable)

    def by_level(self) -> dict[int, list[str]]:
        """Names of the tensors of the one level."""
        return {self.level: ["A", "B"]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the change adds to the map's output, [..., D_in] to [..., D_out]."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.to(self.A.dtype) @ self.A.T) @ self.B.T * self.scale

    def change(self) -> torch.Tensor:
        """What the change adds to the map's weight, `s * B A` [D_out, D_in], without a gradient."""
        return self.B.detach() @ self.A.detach() * self.scale


def rms(u: torch.Tensor) -> torch.Tensor:
    """`u` [..., D] divided by the root of its mean square (Zhang & Sennrich 2019), without weights."""
    return u * torch.rsqrt(u.square().mean(dim=-1, keepdim=True) + RMS_EPSILON)


def drawn(rows: int, columns: int, width: int, generator: torch.Generator | None) -> torch.Tensor:
    """Uniform in `+-1 / sqrt(width)`: Kaiming's rule as `nn.Linear` and PEFT use it."""
    return (2 * torch.rand(rows, columns, generator=generator) - 1) / math.sqrt(width)
