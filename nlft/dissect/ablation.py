"""One part left out: what each column loses without it says what the part is for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from nlft.anatomy import decoder_layers, root_of
from nlft.dissect.study import Study
from nlft.methods.task_lora import ApartLora, adapter_of
from nlft.pathways.header import PREFIX
from nlft.pathways.task import TaskPeftConfig
from nlft.pathways.voices import Change, Voice, replaced, silence, voices_of
from nlft.types import Item

MOST_LAYERS = 8
"""Pathways of so many layers are left out one by one; of more, a third of them at a time."""


def without_parts(study: Study) -> list[Item]:
    """Scores with each part left out in turn, on few rows of every column."""
    few, items = study.few(), []
    for name, changes in parts_of(study).items():
        with replaced(changes):
            items += study.score(few, f"without:{name}")
    return items


def parts_of(study: Study) -> dict[str, list[Change]]:
    """By name, the changes under which a part adds nothing.

    Parts are the tasks, the levels and the layers of an adapter of nlft's; the tasks of LoRAs of their own, and thirds
    of the layers of LoRA and of methods that change the base, whose weights come back. A kind of which there is one
    part only is left out, for that is the condition `off`; so is any adapter whose map is no plain low-rank product.
    """
    model: Any = study.model
    configs = getattr(model, "peft_config", {})
    config = configs.get("default")
    if isinstance(config, TaskPeftConfig):
        return pathway_parts(model, voices_of(model), list(config.tasks) if config.keeps_tasks_apart else [])
    changes: dict[str, Change] = {}
    if configs and all(plain_product(one) for one in configs.values()):
        changes |= {name: (one, 0.0) for name, one in model.named_parameters() if ".lora_B." in name}
    parts: dict[str, list[Change]] = {}
    if changes and isinstance(study.learner, ApartLora) and len(study.learner.tasks) > 1:
        for number, task in enumerate(study.learner.tasks, start=1):
            own = f".lora_B.{adapter_of(number)}."
            parts[f"task {task}"] = [change for name, change in changes.items() if own in name]
    if study.learner.changes_base:
        before = dict(study.untouched.model.named_parameters())
        weights = dict(model.named_parameters())
        names = {name: name.removeprefix(PREFIX).replace(".base_layer.", ".") for name in weights}
        changes |= {
            name: (weights[name], before[plain])
            for name, plain in names.items()
            if plain in before and not torch.equal(weights[name], before[plain])  # frozen ones are no part
        }
    by_layer: dict[int | None, list[Change]] = {}
    for name, change in changes.items():
        by_layer.setdefault(layer_of(name, model), []).append(change)
    outside = by_layer.pop(None, [])
    layers = sorted(index for index in by_layer if index is not None)
    parts |= {name: [c for index in group for c in by_layer[index]] for name, group in grouped(layers, 3)}
    return parts | ({"embeddings and head": outside} if outside else {})


def plain_product(config: Any) -> bool:
    """Whether a PEFT adapter adds B A to a weight and nothing else, so that it adds nothing where B is zero."""
    return str(getattr(config.peft_type, "value", config.peft_type)) == "LORA" and not config.use_dora


def pathway_parts(model: Any, voices: Sequence[Voice], tasks: Sequence[str]) -> dict[str, list[Change]]:
    """The parts of an adapter of nlft's: tasks, levels, layers."""
    by_task = {f"task {name}": [v for v in voices if v.task == number] for number, name in enumerate(tasks)}
    levels = sorted({voice.level for voice in voices if voice.level is not None})
    by_level = {f"level {level}": [v for v in voices if v.level == level] for level in levels}
    if levels and any(voice.level is None for voice in voices):
        by_level["memory"] = [v for v in voices if v.level is None]
    places = {voice.block: layer_of(voice.block, model) for voice in voices}
    layers = sorted({index for index in places.values() if index is not None})
    by_layer = {name: [v for v in voices if places[v.block] in group] for name, group in grouped(layers, MOST_LAYERS)}
    kinds = (by_task, by_level, by_layer)
    return {name: silence(part) for kind in kinds if len(kind) > 1 for name, part in kind.items()}


def layer_of(name: str, model: Any) -> int | None:
    """Number of the decoder layer in which a module or tensor stands."""
    root = root_of(model)
    found = re.search(rf"(?:^|\.){re.escape(decoder_layers(root)[0])}\.(\d+)\.", f"{name}.")
    return int(found[1]) if found else None


def grouped(layers: Sequence[int], most: int) -> list[tuple[str, Sequence[int]]]:
    """Layers one by one with their names; neighbouring thirds of them if there are more than `most`."""
    if len(layers) <= most:
        return [(f"layer {index}", [index]) for index in layers]
    cuts = [round(len(layers) * part / 3) for part in range(4)]
    groups = [layers[low:high] for low, high in pairwise(cuts)]
    return [(f"layers {group[0]} to {group[-1]}", group) for group in groups]
