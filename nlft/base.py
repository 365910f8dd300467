"""The frozen base: load it, fingerprint it, find the blocks that a pathway stands beside."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from nlft.anatomy import root_of
from nlft.config import BaseConfig
from nlft.digest import digest_tensors
from nlft.distributed import shards_base
from nlft.errors import BaseModelError, reason
from nlft.hub import model_location, offline_unless_reachable

UNREADABLE = (
    SafetensorError,
    OSError,
    ValueError,
    LookupError,
    ImportError,
    RuntimeError,
    TypeError,
    AttributeError,
    EOFError,
)
"""What libraries raise for files that are damaged, or made for something else."""


@dataclass
class FrozenBase:
    """A pretrained causal language model whose weights take no gradient, with its tokenizer."""

    model: Any
    """`PreTrainedModel` in eval mode."""
    tokenizer: Any
    name: str
    """As given in the recipe: builtin name, path or Hub id."""
    revision: str | None
    """Commit of a Hub model, else None."""
    fingerprint: str
    """sha256 over every weight and buffer, taken before anything touched the model."""
    names: frozenset[str]
    """Names of the tensors behind the fingerprint."""
    context: int
    """Longest input in tokens."""

    @property
    def device(self) -> torch.device:
        """Where the first weight lies."""
        return next(self.model.parameters()).device

    def is_unchanged(self, model: nn.Module) -> bool:
        """True if the base's tensors inside `model` (adapted or not) still hash to the fingerprint."""
        return fingerprint(model, self.names) == self.fingerprint


def load_base(config: BaseConfig) -> FrozenBase:
    """Loads a causal language model and freezes it.

    Args:
        config: `model` is `builtin:tiny`, a directory, or a Hub id.

    Raises:
        BaseModelError: the path or id is no causal language model, or the device is not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location = model_location(config.model)
    device = choose_device(config.device)
    options: dict[str, Any] = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    here = Path(location).is_dir()
    with nullcontext(True) if here else offline_unless_reachable() as reachable:
        away = "" if reachable else "the Hub cannot be reached from here, and its cache does not hold it. In full: "
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                location, dtype=choose_dtype(config.dtype, device), **quantization(config, device), **options
            )
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            raise BaseModelError(
                f"base.model: {config.model!r} could not be loaded as a causal language model: {away}{reason(error)}",
                "Give `builtin:tiny`, a directory with config.json, whole weights and tokenizer, or the id of a Hub"
                " model.",
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(location, **options)
        except UNREADABLE as error:
            raise BaseModelError(
                f"base.model: the tokenizer of {config.model!r} could not be loaded: {away}{reason(error)}",
                "Save it beside the weights with the tokenizer's `save_pretrained`.",
            ) from error
    if config.quantization == "none" and not shards_base():
        model.to(device)
    return freeze(model, tokenizer, config.model)


def freeze(model: Any, tokenizer: Any, name: str) -> FrozenBase:
    """Freezes a causal language model that is loaded already, and takes its fingerprint.

    Args:
        name: builtin name, path or Hub id.
    """
    model.eval().requires_grad_(False)
    names = frozenset(name for name, _ in named_tensors(model))
    return FrozenBase(
        model=model,
        tokenizer=tokenizer,
        name=name,
        revision=getattr(model.config, "_commit_hash", None),
        fingerprint=fingerprint(model, names),
        names=names,
        context=context_length(model),
    )


def choose_device(device: str) -> torch.device:
    """`auto` is the first accelerator, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BaseModelError(f"base.device: {device!r} was asked for, but torch sees no GPU.", "Use `auto` or `cpu`.")
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise BaseModelError(
            f"base.device: torch cannot use {device!r}: {reason(error)}",
            "Use `auto`, `cpu`, `cuda`, or one GPU by its number, as `cuda:0`.",
        ) from error
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return getattr(torch, dtype)


def quantization(config: BaseConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a bitsandbytes base; empty for a plain one."""
    if config.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    compute = choose_dtype("auto", device)
    settings = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
        if config.quantization == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def without_adapter(model: Any) -> AbstractContextManager[object]:
    """A context in which an adapted model computes what its base does; a model without an adapter always does."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model in a dtype; untouched where it has it, for a cast would round buffers that are kept in float32."""
    return model if model.dtype == dtype else model.to(dtype)


def named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Every parameter and buffer, under the name that it had before PEFT wrapped the model."""
    root: Any = root_of(model)
    return [
        (name.replace(".base_layer", "").replace(".original_module", ""), tensor)
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]
    ]


def fingerprint(model: nn.Module, names: frozenset[str] | None = None) -> str:
    """sha256 over name, dtype, shape and bytes of every weight and buffer, in order of names.

    Args:
        names: restricts the hash to these tensors, so that an adapted model can be compared with its base.
    """
    return digest_tensors(pair for pair in named_tensors(model) if names is None or pair[0] in names)


def name_of(dtype: torch.dtype) -> str:
    """A dtype as recipes write it: `float32`."""
    return str(dtype).removeprefix("torch.")


def context_length(model: Any) -> int:
    """Longest input in tokens that the model's positions allow."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)
