"""A few weights of the base by value, noted in an adapter, so that PEFT's own loading refuses another base.

The sha256 of `nlft.base.fingerprint` covers every weight, but reads all of them, and a base that was loaded in another
dtype has another hash. A sample costs milliseconds and survives a cast: a noted value, rounded as the base at hand is,
must be the value at hand. It finds another model, a finetuned one, and one into which a LoRA was merged, unless that
changed only a few of the matrices; of a quantised base embeddings and norms alone are compared. The commit is not
compared: a Hub repository gets a new one for every word in its README, and the weights are what an adapter was made
for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from nlft.anatomy import root_of
from nlft.base import name_of
from nlft.errors import NlftError

MATRICES, VECTORS, VALUES = 48, 16, 4
"""Tensors of two dimensions or more and of one, and values of each. Vectors are kept by every quantisation."""
WRAPPINGS = re.compile(r"\.base_layer\b|\.original_module\b|\b_orig_mod\.|\b_fsdp_wrapped_module\.")
"""What PEFT, torch.compile and FSDP put into the names of a base's tensors."""
OUTSIDE = re.compile(r"\b_orig_mod\.|\b_fsdp_wrapped_module\.")
"""What torch.compile and FSDP put there, around a base that is otherwise the same."""
NOTE = re.compile(r"(float64|float32|bfloat16|float16) (\d{1,12}(?:x\d{1,12}){0,4}) ((?:[0-9a-f]{8}){1,16})")
TAKEN_OUT = 4
"""Units in float32's last place, of the largest noted value of a tensor, that a LoRA may leave behind which was merged
and taken out again."""
SMALLEST_HALF = 2.0**-24
"""The smallest number above zero that float16 has."""


@dataclass(frozen=True)
class Noted:
    """What an adapter notes of one tensor: its dtype and shape, and values [n] float32 at fixed positions."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    values: torch.Tensor


def sample_base(model: nn.Module) -> dict[str, Any]:
    """What an adapter notes of its base.

    Args:
        model: the base, wrapped by adapters or not.

    Returns:
        `model_type` of its config, and `tensors` by name: dtype, shape, and the float32 bytes of four values in hex.
        Empty if no weight is here as plain floating numbers, as on the meta device.
    """
    here = [(name, tensor) for name, tensor in base_parameters(model) if is_plain(tensor)]
    matrices = [pair for pair in here if pair[1].ndim >= 2]
    vectors = [pair for pair in here if pair[1].ndim == 1]
    # The first and the last are embeddings, which a quantised base keeps too.
    inner = spread(matrices[1:-1], MATRICES - 2)
    chosen = [*matrices[:1], *inner, *matrices[1:][-1:], *spread(vectors, VECTORS)]
    if not chosen:
        return {}
    return {"model_type": model_type(model), "tensors": {name: note(name, tensor) for name, tensor in chosen}}


def check_base(config: Any, model: nn.Module) -> None:
    """Refuses a base with other weights than the adapter was made for.

    Values in the noted dtype must be the same bits; in float32 the last ones may differ, as where a LoRA was merged
    and taken out again. (In half precision that is more than many a finetuning does.) Otherwise both
    are rounded to the coarser dtype; between float16 and bfloat16, of which neither holds the other, one unit in
    bfloat16's last place is let through. Tensors that are quantised, sharded or on the meta device are left out, and
    embeddings may have got or lost rows. Up to half of the names may be missing in a model of the same type: versions
    of transformers name some tensors differently. An adapter without a sample is let through, and so is any base with
    `config.check_base` off.

    Args:
        config: `TaskPeftConfig` of the adapter.
        model: the base at hand, wrapped by adapters or not.

    Raises:
        NlftError: naming the adapter's base, the base at hand, and the first tensor that differs.
    """
    if not config.check_base or not config.base_sample:
        return
    there = dict(base_parameters(model))
    sample = read_sample(config.base_sample)
    absent = [name for name in sample if name not in there]
    partial = bool(getattr(model, "is_quantized", False)) or any("_flat_param" in name for name in there)
    renamed = 2 * len(absent) <= len(sample) and config.base_sample.get("model_type") == model_type(model)
    if absent and not (partial or renamed):
        refuse(config, model, f"it has no {absent[0]}")
    for name, noted in sample.items():
        tensor = there.get(name)
        if tensor is None or not is_plain(tensor):
            continue
        if not fits(tensor, noted.shape, model):
            refuse(config, model, f"{name} has the shape {list(tensor.shape)}, and {list(noted.shape)} was noted")
        left = kept(name, tensor, noted.shape)
        if not agree(replace(noted, values=noted.values[left]), values_of(name, tensor, noted.shape), tensor.dtype):
            refuse(config, model, f"{name} holds other numbers")


def base_parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters of the base under the names that they had before anything was wrapped, without those of adapters."""
    root = root_of(model)
    foreign: list[str] = []
    for name, module in root.named_modules():
        if isinstance(module, BaseTunerLayer):
            foreign += [f"{name}.{part}." for part in module.adapter_layer_names]
        elif isinstance(module, AuxiliaryTrainingWrapper):
            foreign += [f"{name}.{part}." for part, _ in module.named_children() if part != "original_module"]
    skipped = tuple(foreign)
    for name, tensor in root.named_parameters():
        if not skipped or not name.startswith(skipped):
            yield WRAPPINGS.sub("", name), tensor


def plain_name(name: str) -> str:
    """A name as it is in a base that is not compiled; so it is stored."""
    return OUTSIDE.sub("", name)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's own numbers are here: not quantised, sharded, empty, or on the meta device."""
    # bitsandbytes keeps four-bit weights in a class of its own, on request as pairs of bytes that look like bfloat16.
    whole = type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta and tensor.numel() > 0
    return whole and tensor.is_floating_point() and tensor.element_size() >= 2


def spread(pairs: list[tuple[str, torch.Tensor]], count: int) -> list[tuple[str, torch.Tensor]]:
    """One pair out of each of `count` stretches of equal length, by a hash of its name: with a fixed step a layer
    with as many tensors would always give the same one."""
    count = min(count, len(pairs))
    stretches = [pairs[len(pairs) * at // count : len(pairs) * (at + 1) // count] for at in range(count)]
    return [min(stretch, key=lambda pair: hashlib.sha256(pair[0].encode()).digest()) for stretch in stretches]


def positions(name: str, shape: tuple[int, ...]) -> list[int]:
    """Where in the flattened tensor values are noted, the same at every call."""
    size = prod(shape)
    digests = (hashlib.sha256(f"{name} {index}".encode()).digest() for index in range(VALUES))
    return [int.from_bytes(digest[:8], "big") % size for digest in digests]


def kept(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Which of the noted values lie in rows that the tensor at hand still has, [VALUES] bool."""
    return torch.unravel_index(torch.tensor(positions(name, shape)), shape)[0] < tensor.shape[0]


def values_of(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Values at the positions of a tensor of that shape, in its own dtype, on the CPU: [VALUES], or fewer if rows are
    gone."""
    left = kept(name, tensor, shape)
    places = torch.unravel_index(torch.tensor(positions(name, shape)), shape)
    return tensor.detach()[tuple(place[left].to(tensor.device) for place in places)].cpu()


def note(name: str, tensor: torch.Tensor) -> str:
    """Dtype, shape and values of a tensor in one line."""
    values = values_of(name, tensor, tuple(tensor.shape)).float().numpy().astype("<f4").tobytes().hex()
    return f"{name_of(tensor.dtype)} {'x'.join(map(str, tensor.shape))} {values}"


def read_sample(sample: Any) -> dict[str, Noted]:
    """What was noted, by name.

    Raises:
        NlftError: `sample_base` never writes that.
    """
    tensors = sample.get("tensors") if isinstance(sample, dict) else None
    if not isinstance(tensors, dict) or len(tensors) > MATRICES + VECTORS:
        raise NlftError("base_sample: it lists no tensors of a base.", "Take a whole copy of the adapter.")
    found = {}
    for name, line in tensors.items():
        parts = NOTE.fullmatch(line) if isinstance(line, str) else None
        if not isinstance(name, str) or not name.isprintable() or parts is None:
            raise NlftError(f"base_sample: {str(name)[:100]!r} is no tensor.", "Take a whole copy of the adapter.")
        shape = tuple(map(int, parts[2].split("x")))
        values = torch.from_numpy(np.frombuffer(bytes.fromhex(parts[3]), dtype="<f4").copy())
        if prod(shape) < 1 or prod(shape) >= 2**62 or len(values) != VALUES:
            raise NlftError(f"base_sample: {name!r} has no such values.", "Take a whole copy of the adapter.")
        found[name] = Noted(getattr(torch, parts[1]), shape, values)
    return found


def fits(tensor: torch.Tensor, shape: tuple[int, ...], model: Any) -> bool:
    """Whether a tensor has the noted shape, or is an embedding or its bias that has got or lost rows for tokens."""
    if tuple(tensor.shape) == shape:
        return True
    config: Any = getattr(model, "config", None)
    vocabulary = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "vocab_size", None)
    return len(shape) in (1, 2) and tensor.ndim == len(shape) and tuple(tensor.shape) == (vocabulary, *shape[1:])


def agree(noted: Noted, values: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether values at hand are what was noted, but for the rounding of their dtypes."""
    if dtype == noted.dtype == torch.float32:
        size = max((abs(value) for value in noted.values.tolist() if isfinite(value)), default=0.0)
        atol = TAKEN_OUT * torch.finfo(dtype).eps * size
        return torch.allclose(noted.values, values, rtol=0, atol=atol, equal_nan=True)
    if dtype == noted.dtype:
        return torch.equal(noted.values.view(torch.int32), values.float().view(torch.int32))
    dtypes = {dtype, noted.dtype}
    coarse = max(dtypes, key=lambda one: torch.finfo(one).eps)
    rounded, at_hand = noted.values.to(coarse).float(), values.to(coarse).float()
    if dtypes == {torch.float16, torch.bfloat16}:
        return torch.allclose(rounded, at_hand, rtol=torch.finfo(coarse).eps, atol=SMALLEST_HALF, equal_nan=True)
    return torch.allclose(rounded, at_hand, rtol=0, atol=0, equal_nan=True)


def model_type(model: Any) -> str | None:
    """Name of the architecture, as `llama`."""
    return getattr(getattr(model, "config", None), "model_type", None)


def refuse(config: Any, model: Any, difference: str) -> None:
    """Says that the base is another one.

    Raises:
        NlftError: always.
    """
    made_for, kind = config.base_model_name_or_path or "another base", config.base_sample.get("model_type")
    revision = f" (revision {config.revision})" if config.revision else ""
    here = getattr(model, "name_or_path", "") or type(model).__name__
    types = f" (a {kind} model; this is a {model_type(model)})" if kind and kind != model_type(model) else ""
    raise NlftError(
        f"The adapter was made for {made_for}{revision}, and the base at hand, {here}, has other weights: "
        f"{difference}{types}.",
        "Load it on its own base. If you want it on this one all the same: "
        "config = PeftConfig.from_pretrained(ADAPTER); config.check_base = False; "
        "PeftModel.from_pretrained(base, ADAPTER, config=config). "
        "In nlft: nlft.load(ADAPTER, base=base, any_base=True), or --any-base.",
    )
