"""What the cost model says about bases of 8B and 70B weights on 80 GB accelerators. Nothing here is measured.

    python eval/bench/paper.py

Assumed of the machine, after NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s dense bfloat16, 80 GB at 3.35 TB/s,
NVLink 450 GB/s each way, PCIe 5.0 x16 64 GB/s each way. Assumed besides: 40 % of the FLOP/s are reached, a network of
400 Gbit/s (50 GB/s) for each accelerator, NVMe files read at 7 GB/s, 4-bit weights at 4.5 bits.
"""

from __future__ import annotations

from cost import (
    ADAM,
    Size,
    Slots,
    forward_flops,
    full_step,
    head_bytes,
    head_flops,
    kmeans_flops,
    layer_flops,
    lora_step,
    lora_weights,
    prefix_bytes,
    saved_numbers,
    slots_saved,
    slots_step,
    whitening_bytes,
    whitening_flops,
)
from rich.console import Console
from rich.table import Table

BASES = {
    "8B": Size(D=4096, F=14_336, L=32, H=32, KV=8, V=128_256),
    "70B": Size(D=8192, F=28_672, L=80, H=64, KV=8, V=128_256),
}
PEAK, REACHED = 989e12, 0.4
HBM, NVLINK, PCIE, NETWORK, NVME = 3.35e12, 450e9, 64e9, 50e9, 7e9
ROOM = 80e9
BITS4 = 4.5 / 8
T, TOKENS = 2048, 8192
"""Tokens of a row, and of a batch on one accelerator."""
M = 2000


def main() -> None:
    """Prints all tables."""
    console = Console(width=150)
    for build in (flops_table, bytes_table, prefix_table, gather_table, calibration_table):
        console.print(build())
    console.print("Computed, not measured. Slots: 2,000 a layer in the upper half, keys of width 256; LoRA: rank 16.")


def upper(size: Size, part: int = 2) -> tuple[int, Slots]:
    """The first layer of the upper half (third, …), and slots in all layers from there on."""
    layers = size.L // part
    return size.L - layers, Slots(layers, M)


def flops_table() -> Table:
    """FLOPs of a token in a training step."""
    table = Table("base", "method", "GFLOP a token", "x LoRA", "tokens a second", title="Compute")
    for name, size in BASES.items():
        lora = lora_step(size, T)
        rows = {
            "frozen forward": forward_flops(size, T),
            "full finetuning": full_step(size, T),
            "LoRA, all layers": lora,
            "LoRA, upper half, cached": lora_step(size, T, first=size.L // 2, cached=True),
        }
        for part, called in ((2, "half"), (3, "third"), (4, "quarter")):
            first, slots = upper(size, part)
            rows[f"slots, upper {called}"] = slots_step(size, T, slots, first, False)
            rows[f"slots, upper {called}, cached"] = slots_step(size, T, slots, first, True)
        for method, flops in rows.items():
            table.add_row(name, method, f"{flops / 1e9:.1f}", f"{flops / lora:.2f}", f"{PEAK * REACHED / flops:,.0f}")
        table.add_row(name, "  of it head, forward and backward", f"{2 * head_flops(size) / 1e9:.1f}", "", "")
        table.add_row(name, "  of it slots, upper half", f"{upper(size)[1].flops(size) / 1e9:.1f}", "", "")
    return table


def bytes_table() -> Table:
    """Bytes on one accelerator in a step over `TOKENS` tokens, without checkpointing."""
    table = Table(
        "base", "weights", "method", "frozen", "trained, gradients, Adam", "activations", "logits", "GB in all",
        "fits in 80 GB",
        title=f"Bytes in a step over {TOKENS:,} tokens, no checkpointing, logits in blocks",
    )  # fmt: skip
    for name, size in BASES.items():
        first, slots = upper(size)
        layers = size.L - first
        for kind, width in (("bf16", 2.0), ("4 bit", BITS4)):
            whole = width * size.L * size.layer_weights + 2 * 2 * size.V * size.D  # embedding and head stay bf16
            half = width * layers * size.layer_weights + 2 * 2 * size.V * size.D
            own = slots.trained(size)
            address = slots.adapter_bytes(size) - 4 * own
            rows = {
                "LoRA": (whole, (8 + ADAM) * lora_weights(size, 16), 2 * size.L * saved_numbers(size, lora=True)),
                "slots": (whole + address, (8 + ADAM) * own, 2 * slots_saved(size, slots, first)),
                "slots, lower half let go": (half + address, (8 + ADAM) * own, 2 * slots_saved(size, slots, first)),
            }
            for method, (frozen, state, saved) in rows.items():
                parts = (frozen, state, saved * TOKENS, head_bytes(size, TOKENS, "cuda"))
                table.add_row(
                    name, kind, method, *(f"{one / 1e9:.1f}" for one in (*parts, sum(parts))),
                    "yes" if sum(parts) < ROOM else "no",
                )  # fmt: skip
    return table


def prefix_table() -> Table:
    """What a token of the frozen prefix takes, and what it saves."""
    table = Table(
        "base", "bytes a token", "GB a million tokens", "saved, us", "from NVMe, us", "over PCIe, us",
        "saved over read",
        title="The frozen prefix, lower half, bf16",
    )  # fmt: skip
    for name, size in BASES.items():
        size_of = prefix_bytes(size)
        saved = (size.L // 2) * layer_flops(size, T) / (PEAK * REACHED)
        read = max(size_of / NVME, size_of / PCIE)
        table.add_row(
            name, f"{size_of:,}", f"{size_of / 1e3:.1f}",
            *(f"{1e6 * one:.2f}" for one in (saved, size_of / NVME, size_of / PCIE)), f"{saved / read:.0f}",
        )  # fmt: skip
    return table


def gather_table() -> Table:
    """FSDP gathers the frozen weights in the forward pass, and those of the upper half again in the backward pass."""
    table = Table(
        "base", "step", "GB gathered", "NVLink, s", "network, s", "compute, s", "tokens that hide it: NVLink",
        "network",
        title=f"FSDP of a frozen bf16 base, {TOKENS:,} tokens on each accelerator",
    )  # fmt: skip
    for name, size in BASES.items():
        first, slots = upper(size)
        layer = 2 * size.layer_weights
        rows = {
            "LoRA": (2 * size.L * layer, lora_step(size, T)),
            "slots": ((size.L + size.L - first - 1) * layer, slots_step(size, T, slots, first, False)),
            "slots, cached": ((2 * (size.L - first) - 1) * layer, slots_step(size, T, slots, first, True)),
        }
        for method, (gathered, flops) in rows.items():
            a_token = flops / (PEAK * REACHED)
            table.add_row(
                name, method, f"{gathered / 1e9:.0f}",
                *(f"{one:.2f}" for one in (gathered / NVLINK, gathered / NETWORK, TOKENS * a_token)),
                *(f"{gathered / speed / a_token:,.0f}" for speed in (NVLINK, NETWORK)),
            )  # fmt: skip
    return table


def calibration_table() -> Table:
    """What calibration adds to a forward pass over the background."""
    table = Table(
        "base", "covariances, GB", "covariances / forward, FLOPs a token", "k-means, TFLOP a task",
        "tokens of forward that it is", title="Calibration, slots in the upper half",
    )  # fmt: skip
    for name, size in BASES.items():
        _, slots = upper(size)
        forward = forward_flops(size, T) - head_flops(size)
        kmeans = kmeans_flops(slots)
        table.add_row(
            name, f"{whitening_bytes(size, slots.layers) / 1e9:.1f}",
            f"{whitening_flops(size, slots.layers) / forward:.3f} in float64", f"{kmeans / 1e12:.0f}",
            f"{kmeans / forward:,.0f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
