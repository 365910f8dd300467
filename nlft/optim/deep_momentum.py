"""Deep momentum: a small network that is trained on the gradients, and gives the steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nlft.errors import NlftError
from nlft.ops.mlp_memory import silu_slope
from nlft.optim.deep import DeepOptimizer, as_matrix, by_shape, wide


class DeepMomentum(DeepOptimizer):
    """Deep momentum gradient descent (Behrouz et al. 2025, Nested Learning, Sec. 4.4, Eq. 50): W <- W + m(u).

    u is the gradient and m a memory that is trained online by an objective of its own. The paper leaves open what m is,
    what it is trained on, and how a gradient of D^2 numbers enters it. What is fixed here:

    - Blocks. The rows of a parameter [out, in] are cut into pieces of `width` numbers (zeros behind the last), the
      columns of u [width, N]. One memory serves all pieces of a parameter, so its size does not grow with it.
    - Scale. u is the gradient over the root of the running mean of its mean square (one number a parameter, bias
      corrected): learning rates are of the size of Adam's, and quiet blocks stay quiet.
    - Memory. m(u) = u + W1 h(u), h(u) = f / |f|, f = silu(W2 u), the residual form of the paper's memories (Eq. 91);
      W1 [width, hidden] is 0 and the rows of W2 [hidden, width] are unit vectors drawn from `seed` at first. So the
      first step is (scaled) gradient descent. W <- W - lr m(u), read after the write.
    - Objective J. The mean over blocks of the dot product <m(u), u>, as in momentum's own objective (Eq. 34). (The
      squared error would teach this memory that W1 = 0.)
    - Rule. W1 <- momentum W1 + dJ/dW1, W2 <- the unit rows of W2 + inner_rate dJ/dW2, gradients at the weights before.
      With a constant h this is heavy-ball momentum of the mean block. Otherwise past gradients enter by how alike the
      features of their blocks were to this one's: W1 h = sum over the past of momentum^age mean u <h_past, h>. W2 does
      not decay, since features that vanish would end the memory.

    State: 2 width hidden + 1 float32 a parameter tensor (1025 by default, whatever its size).

    Args:
        params: as of every torch optimiser.
        lr: learning rate.
        momentum: what the memory keeps of W1 from step to step.
        weight_decay: decoupled, of the parameters.
        width: of a block.
        hidden: features of the memory.
        inner_rate: learning rate of W2; 0 keeps its features as drawn.
        beta2: decay of the gradient's mean square.
        eps: added to its root.
        seed: of the features.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        width: int = 32,
        hidden: int = 16,
        inner_rate: float = 0.1,
        beta2: float = 0.99,
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        if width < 1 or hidden < 1:
            raise NlftError(f"deep_momentum has width {width} and hidden {hidden}.", "Both are at least 1.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "width": width,
            "hidden": hidden,
            "inner_rate": inner_rate,
            "beta2": beta2,
            "eps": eps,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """Trains the memories on the gradients and moves by what they then say; equal shapes are batched."""
        for alike in by_shape(parameters):
            gradients = torch.stack([as_matrix(wide(p.grad)) for p in alike if p.grad is not None])  # [P, out, in]
            states = [self._state(p, group) for p in alike]
            square = gradients.square().mean(dim=(1, 2))
            second = torch.stack([state["second"] for state in states]).lerp(square, 1 - group["beta2"])
            corrections = [1 - group["beta2"] ** state["step"] for state in states]
            scale = (second / second.new_tensor(corrections)).sqrt() + group["eps"]
            blocks = to_blocks(gradients / scale[:, None, None], states[0]["write"].shape[0])
            write, read, said = learn(
                torch.stack([state["write"] for state in states]),
                torch.stack([state["read"] for state in states]),
                blocks,
                group["momentum"],
                group["inner_rate"],
            )
            moves = said.flatten(2)[..., : gradients.shape[-1]]
            for i, (p, state) in enumerate(zip(alike, states, strict=True)):
                state["write"], state["read"], state["second"] = write[i].clone(), read[i].clone(), second[i].clone()
                p.sub_((float(group["lr"]) * moves[i]).view_as(p).to(p.dtype))

    def _state(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The memory of a parameter, made when it is first needed, with the step counted."""
        state = self.state[p]
        if not state:
            like = {"dtype": torch.promote_types(p.dtype, torch.float32), "device": p.device}
            width = min(group["width"], as_matrix(p).shape[1])
            drawn = torch.randn(group["hidden"], width, generator=torch.Generator().manual_seed(group["seed"]))
            state["write"] = torch.zeros(width, group["hidden"], **like)
            state["read"] = F.normalize(drawn, dim=1).to(**like)
            state["second"], state["step"] = torch.zeros((), **like), 0
        state["step"] += 1
        return state


def to_blocks(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Rows [P, out, in] cut into blocks [P, out, in / width rounded up, width], zeros behind the last number."""
    return F.pad(rows, (0, -rows.shape[-1] % width)).unflatten(-1, (-1, width))


def learn(
    write: torch.Tensor, read: torch.Tensor, blocks: torch.Tensor, momentum: float, inner_rate: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of the memories, and what they then say.

    Args:
        write: W1 [P, width, hidden].
        read: W2 [P, hidden, width].
        blocks: u [P, out, n, width].
        momentum: what is kept of W1.
        inner_rate: of W2.

    Returns:
        W1, W2 and m(u), in the shapes of `write`, `read` and `blocks`.
    """
    u = blocks.flatten(1, 2)  # [P, N, width]
    count = u.shape[1]
    drive = u @ read.mT
    features, length = unit_features(drive)
    pull = u @ write  # the objective's gradient at the features
    pull = (pull - features * (features * pull).sum(-1, keepdim=True)) / length
    write = momentum * write + u.mT @ features / count
    read = F.normalize(read + inner_rate * ((pull * silu_slope(drive)).mT @ u) / count, dim=-1)
    features, _ = unit_features(u @ read.mT)
    return write, read, (u + features @ write.mT).view_as(blocks)


def unit_features(drive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(drive) [..., hidden] at length 1, and the length [..., 1] it had, at least 1e-6: a zero block stays zero."""
    features = F.silu(drive)
    length = features.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return features / length, length
