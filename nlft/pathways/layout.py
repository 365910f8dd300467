"""Which tensors an adapter must have: names, shapes, dtypes and values, checked before anything is made of them.

Everything that PEFT would allocate by the config is here compared with what the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy

import torch

from nlft.base import name_of
from nlft.errors import NlftError
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.cms.layer import CmsLayer
from nlft.pathways.gate import GATES, LARGEST_KEY_WIDTH
from nlft.pathways.gated_lora.layer import GatedLoraLayer
from nlft.pathways.header import PREFIX
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.hope.layer import HopeCore, HopeLayer
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.layer import SparseMemoryLayer
from nlft.pathways.task import TaskPeftConfig

KEY = re.compile(rf"{re.escape(PREFIX)}(.+?)\.(nlft_\w+)\.(.+)")
NUMBER = re.compile(r"tasks\.(\d{1,9})\.")
"""Of a task's part, at the beginning of what follows in `KEY`."""
MAY_BE_INFINITE = {"thresholds", "height", "shift"}
"""Tensors in which infinity means silence."""

Shapes = dict[str, tuple[int, ...]]


def check_layout(config: TaskPeftConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compares stored tensors with what a config says of them.

    Args:
        tensors: with their values, or on the meta device, where shapes and dtypes alone are compared.

    Raises:
        NlftError: naming the first key that is missing, unknown, of another shape or dtype, or not finite.
    """
    modules = by_module(config, tensors)
    cores = {block for block, kind in modules if kind != GATES}
    gates = [block for block, kind in modules if kind == GATES]
    if len(gates) != (config.gate_layer is not None):
        raise NlftError(f"gate_layer is {config.gate_layer}, and there are {len(gates)} gates.")
    if config.gate_layer is not None and list(config.gates) != list(config.tasks):
        raise NlftError(f"gates lists {list(config.gates)}, and tasks lists {list(config.tasks)}.")
    shared = not config.keeps_tasks_apart
    if not cores and (config.tasks or shared or isinstance(config, SparseMemoryPeftConfig)):
        raise NlftError("there is no block.")
    numbers = {int(part[1]) for own in modules.values() for name in own if (part := NUMBER.match(name))}
    if not shared and numbers != set(range(len(config.tasks))):
        raise NlftError(f"its settings list {len(config.tasks)} tasks, and its tensors hold {len(numbers)}.")
    check_sizes(config, cores)
    for (block, kind), own in modules.items():
        if kind == GATES:
            wanted = gate_shapes(config, own)
        elif isinstance(config, SparseMemoryPeftConfig):
            wanted = memory_shapes(config, block, own)
        elif isinstance(config, CmsPeftConfig):
            wanted = level_shapes(config, block, own)
        elif isinstance(config, HopePeftConfig):
            wanted = hope_shapes(config, own)
        else:
            wanted = map_shapes(config, block, own)
        compare(f"{block}.{kind}", own, wanted)
        if isinstance(config, SparseMemoryPeftConfig) and kind != GATES:
            check_rows(config, f"{block}.{kind}", own)


def by_module(
    config: TaskPeftConfig, tensors: Mapping[str, torch.Tensor]
) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """Tensors by block and container, then by their names below it.

    Raises:
        NlftError: a name belongs to no part of the adapter.
    """
    layers = {SparseMemoryPeftConfig: SparseMemoryLayer, CmsPeftConfig: CmsLayer, HopePeftConfig: HopeLayer}
    layer = layers.get(type(config), GatedLoraLayer)  # pyright: ignore
    found: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        parts = KEY.fullmatch(key)
        if parts is not None and parts[2] in (*layer.adapter_layer_names, GATES):
            found.setdefault((parts[1], parts[2]), {})[parts[3]] = tensor
        elif not is_saved_module(config, key):
            raise NlftError(f"{key} belongs to no part of it.")
    return found


def is_saved_module(config: TaskPeftConfig, key: str) -> bool:
    """Whether a stored name belongs to a module that PEFT trains and saves beside the pathway.

    A name that PEFT gives to the base's own tensors does not, or an adapter could overwrite its base.
    """
    parts = key.removeprefix(PREFIX).split(".")
    if {"base_layer", "original_module"} & set(parts):
        return False
    if config.trainable_token_indices and any(part.startswith(("trainable_tokens", "token_adapter")) for part in parts):
        return True
    paths = [f".{'.'.join(parts[:end])}" for end in range(1, len(parts))]
    return any(path.endswith(f".{name}") for name in config.modules_to_save or [] for path in paths)


def check_sizes(config: TaskPeftConfig, cores: set[str]) -> None:
    """Refuses sizes that no stored block has.

    Raises:
        NlftError: naming the task.
    """
    for name, there in config.sizes.items():
        odd = sorted(set(there) - cores)
        if name not in config.tasks or odd:
            raise NlftError(f"sizes.{name} names {odd[0] if odd else 'a task'} that is not there.")
        if max(there.get(block, config.tasks[name]) for block in cores) != config.tasks[name]:
            raise NlftError(f"tasks.{name} is {config.tasks[name]}, and no block has so many slots.")


def memory_shapes(config: SparseMemoryPeftConfig, block: str, own: Mapping[str, torch.Tensor]) -> Shapes:
    """Names and shapes at one block with sparse memory.

    Raises:
        NlftError: it is too narrow for halves of keys.
    """
    width = last_width(own, "mean")
    keys = min(width, config.key_width or LARGEST_KEY_WIDTH)
    shapes: Shapes = {"mean": (width,), "whitener": (width, keys)}
    product_key = config.addressing == "product_key"
    if product_key:
        if keys < 2:
            raise NlftError(f"{block} has keys of width {keys}, which have no halves.")
        shapes["rotations"] = (config.heads, keys, keys // 2 * 2)
        shapes["half_keys"] = (config.heads, 2, config.half_keys, keys // 2)
    for number, (_, slots) in enumerate(sizes_at(config, block)):
        part: Shapes = {"values": (slots, width)}
        part |= {"rows": (slots,)} if product_key else {"keys": (slots, keys), "thresholds": (slots,), "shift": ()}
        if config.input_dependent:
            part["inputs"] = (slots, keys)
        shapes |= {f"tasks.{number}.{name}": shape for name, shape in part.items()}
    return shapes


def map_shapes(config: TaskPeftConfig, block: str, own: Mapping[str, torch.Tensor]) -> Shapes:
    """Names and shapes at one module with gated LoRA."""
    width_in = last_width(own, "tasks.0.A")
    width_out = own["tasks.0.B"].shape[0] if "tasks.0.B" in own and own["tasks.0.B"].ndim else 0
    shapes: Shapes = {}
    for number, (_, rank) in enumerate(sizes_at(config, block)):
        shapes |= {f"tasks.{number}.A": (rank, width_in), f"tasks.{number}.B": (width_out, rank)}
    return shapes


def level_shapes(config: CmsPeftConfig, block: str, own: Mapping[str, torch.Tensor]) -> Shapes:
    """Names and shapes at one module with the levels of a continuum memory."""
    if config.init == "pretrained":
        if config.keeps_tasks_apart:
            return map_shapes(config, block, own)
        shared = copy(config)
        shared.tasks = {"": config.r}
        return map_shapes(shared, block, own)
    width = last_width(own, "tasks.0.A0")
    sizes = sizes_at(config, block) if config.keeps_tasks_apart else [("", config.r)]
    shapes: Shapes = {}
    for number, (_, r) in enumerate(sizes):
        for level in range(len(config.periods)):
            shapes |= {f"tasks.{number}.A{level}": (r, width), f"tasks.{number}.B{level}": (width, r)}
            if config.online_chunk is not None:
                shapes |= {f"tasks.{number}.rate{level}": (), f"tasks.{number}.gain{level}": ()}
    return shapes


def hope_shapes(config: HopePeftConfig, own: Mapping[str, torch.Tensor]) -> Shapes:
    """Names and shapes at one block with Hope."""
    with torch.device("meta"):
        core = HopeCore(last_width(own, "project.weight"), config)
    return {name: tuple(tensor.shape) for name, tensor in core.state_dict().items()}


def gate_shapes(config: TaskPeftConfig, own: Mapping[str, torch.Tensor]) -> Shapes:
    """Names and shapes of a gate."""
    width = last_width(own, "mean")
    keys = min(width, config.key_width or LARGEST_KEY_WIDTH)
    shapes: Shapes = {"mean": (width,), "whitener": (width, keys), "others": (config.gate_others, keys)}
    for number, count in enumerate(config.gates.values()):
        shapes |= {f"tasks.{number}.keys": (count, keys)}
        shapes |= {f"tasks.{number}.{name}": () for name in ("drift", "height", "shift")}
    return shapes


def sizes_at(config: TaskPeftConfig, block: str) -> list[tuple[str, int]]:
    """Tasks and their sizes at one block, in the order of learning."""
    return list(config.at(block).tasks.items())


def last_width(own: Mapping[str, torch.Tensor], name: str) -> int:
    """Length of a tensor's last dimension; 0 where it is missing, which `compare` says."""
    return own[name].shape[-1] if name in own and own[name].ndim else 0


def compare(where: str, own: Mapping[str, torch.Tensor], wanted: Shapes) -> None:
    """Compares the tensors of one module with what they should be.

    Raises:
        NlftError: naming the first that differs.
    """
    for name in [*(set(wanted) - set(own)), *(set(own) - set(wanted))]:
        raise NlftError(f"{where}.{name} is {'missing' if name in wanted else 'unknown to the config'}.")
    for name, shape in wanted.items():
        tensor, last = own[name], name.rpartition(".")[2]
        if tuple(tensor.shape) != shape:
            raise NlftError(f"{where}.{name} has the shape {list(tensor.shape)}, and {list(shape)} is needed.")
        if (tensor.dtype != torch.int64) if last == "rows" else not tensor.is_floating_point():
            kind = "int64" if last == "rows" else "a float"
            raise NlftError(f"{where}.{name} is {name_of(tensor.dtype)}, and {kind} is needed.")
        if last == "rows" or tensor.is_meta:
            continue
        numbers = tensor[tensor != torch.inf] if last in MAY_BE_INFINITE else tensor
        if not bool(torch.isfinite(numbers).all()):
            raise NlftError(f"{where}.{name} holds a number that is not finite.")


def check_rows(config: SparseMemoryPeftConfig, where: str, own: Mapping[str, torch.Tensor]) -> None:
    """Refuses rows of a product-key table that are out of order or outside the table.

    Raises:
        NlftError: naming the key.
    """
    table = config.half_keys**2
    for name, rows in own.items():
        if not name.endswith(".rows") or not len(rows) or rows.is_meta:
            continue
        if bool((rows[1:] <= rows[:-1]).any()):
            raise NlftError(f"{where}.{name} is not in rising order.")
        if int(rows[0]) < 0 or int(rows[-1]) >= table:
            raise NlftError(f"{where}.{name} names a row outside the table of half_keys² = {table}.")
