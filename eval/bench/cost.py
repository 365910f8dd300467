"""A cost model on paper: FLOPs and bytes of training beside a frozen Llama, per token unless said otherwise.

A multiplication with an addition is two FLOPs. Only matrix products count, so what is bound by memory (norms,
activations, optimisers) is left out; `scaling.py` measures how much that is. Causal attention costs half a square.

Letters: D, F, L, H, KV, V as in `Size`; T tokens of a row, n the first layer with a memory, M slots of a
task and layer, K width of a key, S tasks, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlft.head import tokens_of_block

ADAM = 8
"""Bytes of AdamW's state for each trained float32 number."""


@dataclass(frozen=True)
class Size:
    """Shape of a Llama."""

    D: int
    """Width."""
    F: int
    """Width inside MLP blocks."""
    L: int
    """Layers."""
    H: int
    """Heads of queries."""
    KV: int
    """Heads of keys and values."""
    V: int
    """Vocabulary."""

    @property
    def layer_weights(self) -> int:
        """Weights of the linear maps of one layer."""
        return 2 * self.D * self.D + 2 * self.D * (self.D // self.H) * self.KV + 3 * self.D * self.F

    @property
    def weights(self) -> int:
        """Weights in all: layers, embedding, head, norms."""
        return self.L * (self.layer_weights + 2 * self.D) + 2 * self.V * self.D + self.D


def layer_flops(size: Size, T: int) -> float:
    """Forward pass of one layer."""
    return 2 * size.layer_weights + 2 * T * size.D


def head_flops(size: Size) -> float:
    """Logits of one token."""
    return 2 * size.D * size.V


def forward_flops(size: Size, T: int, first: int = 0) -> float:
    """Forward pass from layer `first` on, with logits of every token."""
    return (size.L - first) * layer_flops(size, T) + head_flops(size)


def backward_flops(size: Size, T: int, layers: int, weights: bool = False) -> float:
    """Backward pass through the head and the last `layers` layers.

    Args:
        weights: gradients of the base's weights too; without them only those of states.
    """
    times = 2 if weights else 1
    # Attention has no weights: its backward pass is two products for each of the forward pass.
    return layers * (times * 2 * size.layer_weights + 2 * 2 * T * size.D) + times * head_flops(size)


@dataclass(frozen=True)
class Slots:
    """Slots at some layers."""

    layers: int
    """Layers with a memory."""
    M: int
    K: int = 256
    S: int = 1
    reads: int | None = None
    """Slots of a task that a token reads, and whose values alone are touched, as on a CPU; all when None."""

    def flops(self, size: Size) -> float:
        """Queries, scores and values of all tasks, and the gradient of one task's values.

        Where all values are touched, scores are not kept, and are made again in the backward pass.
        """
        again = 2 * self.M * self.K if self.reads is None else 0
        values = 2 * (self.M if self.reads is None else self.reads) * size.D
        forward = 2 * size.D * self.K + self.S * (2 * self.M * self.K + values)
        return self.layers * (forward + again + values)

    def adapter_bytes(self, size: Size) -> int:
        """Float32: mean and whitener of every layer; keys, thresholds and values of every task, and its shift."""
        task = self.M * (self.K + 1 + size.D) + 1
        return 4 * self.layers * (size.D + size.D * self.K + self.S * task)

    def trained(self, size: Size) -> int:
        """Numbers that a task trains."""
        return self.layers * self.M * size.D


def slots_step(size: Size, T: int, slots: Slots, first: int, cached: bool) -> float:
    """A training step: everything below layer `first` is frozen, and with the frozen prefix not computed.

    The gradient goes down to the output of layer `first`'s block: all layers behind it, none of its own maps.
    """
    forward = forward_flops(size, T, first if cached else 0)
    return forward + backward_flops(size, T, size.L - first - 1) + slots.flops(size)


def lora_weights(size: Size, R: int, layers: int | None = None) -> int:
    """Numbers that LoRA of rank R trains at all linear maps of some layers, of all when None."""
    inner = size.D // size.H * size.KV
    maps = [(size.D, size.D)] * 2 + [(size.D, inner)] * 2 + [(size.D, size.F)] * 2 + [(size.F, size.D)]
    return (size.L if layers is None else layers) * R * sum(a + b for a, b in maps)


def lora_step(size: Size, T: int, R: int = 16, first: int = 0, cached: bool = False) -> float:
    """A training step of LoRA at all linear maps from layer `first` on."""
    layers = size.L - first
    own = 3 * 2 * lora_weights(size, R, layers)  # forward, gradient of the input, gradient of the maps
    return forward_flops(size, T, first if cached else 0) + backward_flops(size, T, layers) + own


def full_step(size: Size, T: int) -> float:
    """A training step of full finetuning."""
    return forward_flops(size, T) + backward_flops(size, T, size.L, weights=True)


def saved_numbers(size: Size, lora: bool = False) -> int:
    """Numbers that a layer keeps for the backward pass.

    Frozen: the input of both norms (2 D), queries, keys, values and output of attention (4 D, keys and values being
    repeated for all heads), the input of the activation and both factors of the product in the block (3 F). A frozen
    linear map keeps nothing. LoRA keeps the input of every map too: 3 D and F more.
    """
    return 9 * size.D + 4 * size.F if lora else 6 * size.D + 3 * size.F


def slots_saved(size: Size, slots: Slots, first: int) -> int:
    """Numbers that the layers behind `first` and the memories (queries) keep."""
    return (size.L - first - 1) * saved_numbers(size) + slots.layers * slots.K


def head_bytes(size: Size, tokens: int, device: str = "cpu") -> int:
    """Float32 logits of as many tokens as are made at once, with their logarithms and their gradient."""
    return 3 * 4 * size.V * min(tokens, tokens_of_block(device, size.V))


def whitening_bytes(size: Size, layers: int) -> int:
    """Covariances [D, D] in float64 that calibration holds at once; no matter how many tokens."""
    return 8 * layers * size.D**2


def whitening_flops(size: Size, layers: int) -> float:
    """Covariances: a product [D, N] x [N, D] at every layer, per token, in float64."""
    return 2 * layers * size.D**2


def kmeans_flops(slots: Slots, rounds: int = 10, states: int = 64) -> float:
    """Spherical k-means of one task at all layers, in all: every round scores `states` * M queries with M keys."""
    return slots.layers * rounds * 2 * states * slots.M * slots.M * slots.K


def prefix_bytes(size: Size, width: int = 2) -> int:
    """The frozen prefix keeps one state [D] a token, whatever its depth; `width` bytes a number."""
    return size.D * width
