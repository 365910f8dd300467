"""Tiny random models of every family that the project is tested on: width 32, 4 layers, vocabulary 97."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

TOKENS: dict[str, Any] = dict(vocab_size=97, bos_token_id=1, eos_token_id=2, pad_token_id=0)
SMALL: dict[str, Any] = dict(
    **TOKENS,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=64,
)
GROUPED = {**SMALL, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
GEMMA = {**HEADS, "query_pre_attn_scalar": 8}
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
VISION: dict[str, Any] = dict(
    depth=4,  # as many as the text tower, so that a search by depth alone could take the wrong one
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    out_hidden_size=32,
    patch_size=4,
    spatial_merge_size=2,
    temporal_patch_size=1,
    num_position_embeddings=16,
    deepstack_visual_indexes=[1],
)
QWEN_VL: dict[str, Any] = dict(
    text_config={**HEADS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    vision_config=VISION,
    image_token_id=90,
    video_token_id=91,
    vision_start_token_id=92,
    vision_end_token_id=93,
    pad_token_id=0,
)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", HEADS),
    "mistral": ("MistralConfig", GROUPED),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "gpt2": ("GPT2Config", dict(**TOKENS, n_embd=32, n_layer=4, n_head=4, n_positions=64)),
    "gpt_neox": ("GPTNeoXConfig", SMALL),
    "phi": ("PhiConfig", GROUPED),
    "falcon": ("FalconConfig", {**SMALL, "new_decoder_architecture": False, "parallel_attn": True}),
    "mixtral": ("MixtralConfig", EXPERTS),
    "qwen3_moe": ("Qwen3MoeConfig", {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "gpt_oss": ("GptOssConfig", {**EXPERTS, "head_dim": 8, "layer_types": ["full_attention"] * 4}),
    "opt": ("OPTConfig", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", dict(**TOKENS, hidden_size=32, n_layer=4, n_head=4)),
    "qwen3_vl": ("Qwen3VLConfig", QWEN_VL),
}
"""Class of the config, and its fields."""
SEEING = ("qwen3_vl",)
"""Families with a vision tower."""
USUAL = [name for name in FAMILIES if name not in ("falcon", "gpt_oss", "opt", "bloom", *SEEING)]
"""Families whose blocks are modules named `mlp`, with one tensor in and one out, and 64 positions."""

COMMON = ("llama", "gpt2", "mixtral", "gemma2")
"""One of each kind: rotated positions, learned positions and a transposed weight, experts, windows and caps."""


def common_first(names: Iterable[str]) -> list[Any]:
    """Values for `parametrize`: the rest of the families run with the slow tests."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in COMMON)) for name in names]


@lru_cache(maxsize=2)
def prototype_of(family: str) -> Any:
    """The random model of a family, which is copied and never changed."""
    import torch
    import transformers

    name, fields = FAMILIES[family]
    auto = transformers.AutoModelForImageTextToText if family in SEEING else transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(getattr(transformers, name)(**deepcopy(fields)))
        for parameter in model.parameters():
            if parameter.ndim >= 2:  # away from the default scale, at which nothing tells tokens apart
                torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


def build(family: str, dtype: torch.dtype | None = None) -> Any:
    """A fresh random model of a family, the same at every call, frozen and in eval mode; float32 unless told."""
    model = deepcopy(prototype_of(family))
    return model if dtype is None else model.to(dtype)


def image_rows(part: str = "all") -> dict[str, torch.Tensor]:
    """Inputs of a row with an image of 4 x 4 patches and some text, for a family that sees; its pixels alone."""
    import torch

    generator = torch.Generator().manual_seed(3)
    pixels = {
        "pixel_values": torch.randn(16, 3 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    if part == "pixels":
        return pixels
    ids = torch.tensor([[5, 92, *[90] * 4, 93, *torch.randint(60, 80, (6,), generator=generator).tolist()]])
    kinds = (ids == 90).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **pixels}
