"""Random Llamas of several sizes, methods that adapt them, and rows to read. All adapted models share one base."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from cost import Size
from peft import LoraConfig, get_peft_model

from nlft.data.template import Encoded
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.gate import gates_of
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.gated_lora.model import begin_task as begin_maps
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories, set_half_keys
from nlft.pathways.sparse_memory.product_key import random_rotations
from nlft.types import IGNORE

MLP = ["gate_proj", "up_proj", "down_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", *MLP]
SILENT = 0.15
"""Threshold of every slot: a random query of width 256 passes it at about 16 of 2,000."""
DENSITY = (
    "About 16 of 2,000 slots fire at a token. Measured are 0.16 of 1,500 in the demo's training and 0.26 to 0.41 in"
    " proof-world, so these slots fire more often, and their figures are on the safe side."
)
"""Said under tables of models with such slots."""


SIZES = {
    "tiny": Size(64, 172, 4, 4, 4, 512),
    # The vocabulary is small so that the head's share of the weights, 9 %, is near that of an 8B base (6 %).
    "small": Size(512, 1376, 12, 8, 8, 8192),
    "0.1b": Size(768, 2048, 12, 12, 12, 32_000),
    "1b": Size(2048, 5632, 22, 32, 4, 32_000),
}


def random_base(
    size: Size, device: torch.device, dtype: torch.dtype, context: int = 2048, deviation: float = 0.02
) -> Any:
    """A frozen Llama of random weights of a standard deviation, the same at every call."""
    config = transformers.LlamaConfig(
        vocab_size=size.V, hidden_size=size.D, intermediate_size=size.F, num_hidden_layers=size.L,
        num_attention_heads=size.H, num_key_value_heads=size.KV, max_position_embeddings=context,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=deviation,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = transformers.LlamaForCausalLM(config)
    return model.to(dtype).eval().requires_grad_(False)


def same_weights(base: Any) -> Any:
    """A model of its own around the very weights of `base`, so that a dozen methods take the room of one base."""
    return deepcopy(base, {id(one): one for one in [*base.parameters(), *base.buffers()]})


def random_rows(size: Size, count: int, tokens: int, targets: float = 1.0, seed: int = 0) -> list[Encoded]:
    """Rows of random tokens of which the last part `targets` is learned, all others where it is 1."""
    generator = torch.Generator().manual_seed(seed)
    first = max(1, round(tokens * (1 - targets)))
    ids = torch.randint(3, size.V, (count, tokens), generator=generator).tolist()
    return [Encoded(row, [IGNORE] * first + row[first:], len(row)) for row in ids]


def full(base: Any) -> Any:
    """Every weight is trained, in float32 weights of its own."""
    return deepcopy(base).float().requires_grad_(True)


def lora(base: Any, targets: list[str] = LINEAR, layers: list[int] | None = None) -> Any:
    """PEFT's LoRA of rank 16."""
    torch.manual_seed(1)
    config = LoraConfig(r=16, target_modules=targets, layers_to_transform=layers, task_type="CAUSAL_LM")
    return get_peft_model(same_weights(base), config)


def around(centres: torch.Tensor, degrees: float) -> torch.Tensor:
    """Directions at this angle from centres [N, K], [N, K] of length 1."""
    centres = F.normalize(centres, dim=1)
    side = torch.randn_like(centres)
    side = F.normalize(side - (side * centres).sum(1, keepdim=True) * centres, dim=1)
    angle = torch.tensor(degrees).deg2rad()
    return F.normalize(angle.cos() * centres + angle.sin() * side, dim=1)


def addresses(kind: str, count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [M, K] and thresholds [M].

    Args:
        kind: `clustered` keys lie 30 degrees around centres, eight around each or more, with thresholds of 0.70 to 1.10
            as calibration leaves them on the built-in base: a third to a half cannot fire. `scattered` ones have random
            directions and a threshold of 0.25, so that groups are of no use.
    """
    if kind == "scattered":
        return F.normalize(torch.randn(count, width), dim=1), torch.full((count,), 0.25)
    centres = torch.randn(min(250, count // 8), width)
    keys = around(centres.repeat(-(-count // len(centres)), 1)[:count], 30)
    return keys, (0.95 + 0.1 * torch.randn(count)).clamp(0.7, 1.1)


def slots(base: Any, layers: list[int], count: int = 2000, tasks: int = 1) -> Any:
    """Prototype slots with random keys, the last of `tasks` tasks open."""
    model = get_peft_model(
        same_weights(base), SparseMemoryPeftConfig(task_type="CAUSAL_LM", layers_to_transform=layers)
    )
    for number in range(tasks):
        if number:
            end_task(model)
        generator = torch.Generator().manual_seed(number)
        addresses = {}
        for block, core in memories(model).items():
            keys = F.normalize(torch.randn(count, core.key_width, generator=generator), dim=1)
            addresses[block] = (keys, torch.full((count,), SILENT))
        begin_task(model, f"task {number}", addresses)
    return model


def product_keys(base: Any, layers: list[int], count: int = 2000) -> Any:
    """Product keys with random half keys; `count` rows of each table are trained."""
    config = SparseMemoryPeftConfig(task_type="CAUSAL_LM", addressing="product_key", layers_to_transform=layers)
    model = get_peft_model(same_weights(base), config)
    generator = torch.Generator().manual_seed(0)
    found, rows = {}, {}
    for block, core in memories(model).items():
        heads, _, n, half = core.half_keys.shape
        device = core.half_keys.device
        keys = F.normalize(torch.randn(core.half_keys.shape, generator=generator), dim=-1)
        found[block] = (random_rotations(heads, core.key_width, 2 * half, generator).to(device), keys.to(device))
        rows[block] = torch.randperm(n * n, generator=generator)[:count].sort().values
    set_half_keys(model, found)
    begin_task(model, "task", rows)
    return model


def levels(base: Any, layers: list[int]) -> Any:
    """A continuum memory system: three levels of 16 units at every layer."""
    torch.manual_seed(1)
    return get_peft_model(same_weights(base), CmsPeftConfig(task_type="CAUSAL_LM", layers_to_transform=layers))


def hope(base: Any, layers: list[int]) -> Any:
    """Hope: four linear memories of width 64 at every layer."""
    torch.manual_seed(1)
    config = HopePeftConfig(task_type="CAUSAL_LM", layers_to_transform=layers, head_width=64)
    return get_peft_model(same_weights(base), config)


def gated_lora(base: Any, first: int) -> Any:
    """LoRA of rank 16 at all linear maps from layer `first`, behind a gate there that is always open."""
    model = get_peft_model(same_weights(base), GatedLoraPeftConfig(task_type="CAUSAL_LM", r=16, gate_layer=first))
    gate: Any = gates_of(model)["default"]
    generator = torch.Generator().manual_seed(0)
    gate.others = F.normalize(torch.randn(512, gate.key_width, generator=generator), dim=1).to(gate.mean)
    keys = F.normalize(torch.randn(512, gate.key_width, generator=generator), dim=1)
    gate.add_task(keys, drift=0.0, height=-1e6)
    model.peft_config["default"].gate_others = 512  # pyright: ignore
    model.peft_config["default"].gates["task"] = 512  # pyright: ignore
    begin_maps(model, "task", seed=0)
    return model


@dataclass(frozen=True)
class Candidate:
    """A method in the table of steps."""

    build: Callable[[Any], Any]
    """From the shared base to a model."""
    ours: bool = False
    """One of nlft's, so that the targets hold for it."""
    cached: bool = False
    """Its lowest layers are frozen, so that it can begin at a frozen prefix."""


def candidates(size: Size) -> dict[str, Candidate]:
    """The methods by name; `top n` are the n layers next to the head, a half and a third of them being named."""
    half, third = list(range(size.L - size.L // 2, size.L)), list(range(size.L - size.L // 3, size.L))
    quarter = list(range(size.L - max(1, size.L // 4), size.L))
    ours = Candidate(lambda base: slots(base, half), ours=True, cached=True)
    return {
        "full finetuning": Candidate(full),
        "LoRA r16, all-linear": Candidate(lora),
        "LoRA r16, MLP only": Candidate(lambda base: lora(base, MLP)),
        f"LoRA r16, top {len(half)}": Candidate(lambda base: lora(base, layers=half), cached=True),
        f"slots 2,000, top {len(half)}": ours,
        f"slots 2,000, top {len(third)}": replace(ours, build=lambda base: slots(base, third)),
        "slots 2,000, top 1": replace(ours, build=lambda base: slots(base, half[-1:])),
        f"product keys, top {len(half)}": replace(ours, build=lambda base: product_keys(base, half)),
        f"CMS, top {len(half)}": replace(ours, build=lambda base: levels(base, half)),
        f"Hope, top {len(quarter)}": replace(ours, build=lambda base: hope(base, quarter)),
        f"gated LoRA r16, top {len(half)}": replace(ours, build=lambda base: gated_lora(base, half[0])),
    }
