"""Adapters of both pathways whose tasks read what the test wants them to."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from pathway_models import BACKGROUND, TASKS, build, calibrate, settings, train
from peft import get_peft_model

from nlft.calibrate import block_inputs, calibrate_base
from nlft.data.batch import Batch
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.cms.model import begin_task as begin_levels
from nlft.pathways.cms.model import end_task as end_levels
from nlft.pathways.gate import PrototypeGate, gate_module, gates_of
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.gated_lora.model import begin_task as begin_maps
from nlft.pathways.gated_lora.model import end_task as end_maps
from nlft.pathways.lifecycle import attach, stored, without_tasks
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories

KINDS = ("prototype", "product_key", "gated_lora", "gated_memory", "gated_cms")
every_kind = pytest.mark.parametrize("kind", KINDS)
WHOLE = ("gated_lora", "gated_cms")
"""Kinds without slots: a task is read where its gate is open."""
FIRST, SECOND = TASKS
OTHERS = {FIRST: SECOND, SECOND: FIRST}


def empty(kind: str, family: str = "llama", adapter: str = "default") -> Any:
    """A calibrated adapter without tasks."""
    if kind == "gated_lora":
        config: Any = GatedLoraPeftConfig(r=3, gate_layer=1, gate_decay=0.5, task_type="CAUSAL_LM")
    elif kind == "gated_cms":
        config = CmsPeftConfig(r=3, periods=[1, 2], gate_layer=1, gate_decay=0.5, task_type="CAUSAL_LM")
    elif kind == "gated_memory":
        config = settings("prototype", gate_layer=1, gate_decay=0.0)
    else:
        config = settings(kind, half_keys=24)
    adapted = get_peft_model(build(family), config, adapter_name=adapter)
    if kind not in WHOLE:
        calibrate(adapted)
    if kind.startswith("gated"):
        gate = cast(PrototypeGate, gates_of(adapted)[adapter])
        [(mean, whitener)] = calibrate_base(adapted, [gate_module(adapted, "default")], BACKGROUND).values()
        gate.mean.copy_(mean)
        gate.whitener.copy_(whitener)
        [gate.others] = queries(adapted, {gate_module(adapted, adapter): gate}, BACKGROUND).values()
        adapted.peft_config[adapter].gate_others = len(gate.others)
    return adapted.eval()


def queries(adapted: Any, readers: dict[str, Any], rows: list[Batch], base: bool = True) -> dict[str, torch.Tensor]:
    """Queries of every token by module, with the adapter off unless `base` is False."""
    with adapted.disable_adapter() if base else nullcontext():
        states = [inputs.states for inputs in block_inputs(adapted, list(readers), rows, first=True)]
    return {name: reader.queries(torch.cat([one[name] for one in states])) for name, reader in readers.items()}


def prototypes(
    adapted: Any, readers: dict[str, Any], name: str, apart: bool, slots: int = 12
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Keys on tokens of a task; with `apart` the other task and the background never pass their thresholds."""
    found = {}
    own = queries(adapted, readers, TASKS[name])
    others = queries(adapted, readers, [*BACKGROUND, *TASKS[OTHERS[name]]])
    for block, states in own.items():
        keys = states[:: len(states) // slots][:slots]
        silent = (keys @ others[block].T).amax(dim=1) + 0.1
        found[block] = (keys, silent if apart else torch.full_like(silent, 0.1))
    return found


def open_gate(adapted: Any, name: str, apart: bool, adapter: str) -> None:
    """A gate that knows every token of a task; with `apart` it never opens on the other task's."""
    gate = cast(PrototypeGate, gates_of(adapted)[adapter])
    module = {gate_module(adapted, "default"): gate}
    [keys] = queries(adapted, module, TASKS[name]).values()
    [others] = queries(adapted, module, TASKS[OTHERS[name]]).values()
    highest = float(gate.contrast(others, [keys]).max())
    gate.add_task(keys, highest + (0.01 if apart else -0.2), 0.0)
    adapted.peft_config[adapter].gates[name] = len(keys)


def chosen_rows(adapted: Any, name: str, apart: bool) -> dict[str, torch.Tensor]:
    """Rows of the product-key table that a task reads; with `apart` those that the other task does not."""
    found = {}
    for block, core in memories(adapted).items():
        read = []
        for task in (name, OTHERS[name]):
            with adapted.disable_adapter():
                states = [inputs.states[block] for inputs in block_inputs(adapted, [block], TASKS[task], first=True)]
            read.append(set(core.route(torch.cat(states))[0].flatten().tolist()))
        found[block] = sorted(read[0] - read[1] if apart else read[0])
    size = min(8, *map(len, found.values()))
    return {block: torch.tensor(rows[:size]) for block, rows in found.items()}


def learn(adapted: Any, kind: str, name: str, apart: bool = True, adapter: str = "default") -> None:
    """Learns a task in two steps."""
    if kind.startswith("gated"):
        open_gate(adapted, name, apart, adapter)
    if kind == "gated_lora":
        begin_maps(adapted, name, seed=len(name), adapter=adapter)
    elif kind == "gated_cms":
        begin_levels(adapted, name, seed=len(name), adapter=adapter)
    elif kind == "product_key":
        begin_task(adapted, name, chosen_rows(adapted, name, apart))
    else:
        begin_task(adapted, name, prototypes(adapted, memories(adapted), name, apart and kind == "prototype"))
    train(adapted, name, lr=0.05)
    {"gated_lora": end_maps, "gated_cms": end_levels}.get(kind, end_task)(adapted, adapter)
    adapted.eval()


def learned(kind: str, *names: str, apart: bool = True, family: str = "llama") -> Any:
    """An adapter that has learned some of `TASKS`, in this order."""
    adapted = empty(kind, family)
    for name in names:
        learn(adapted, kind, name, apart)
    return adapted


def remove_task(model: Any, name: str) -> None:
    """Takes one task out of the adapter of a PEFT model."""
    rest = without_tasks(stored(model), [name])
    attach(model, rest, "rest")  # PEFT takes its wrappers away with the last adapter
    model.set_adapter("rest")
    model.delete_adapter("default")
    attach(model, rest, "default")
    model.set_adapter("default")
    model.delete_adapter("rest")
