"""A LoRA that has learned as much as a run, for its size."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model

from nlft.base import UNREADABLE
from nlft.manifest import LoraNote

RANK = 8
"""Of the LoRA whose size is computed where none was trained."""


def counterpart_of(run: Path, model_config: Any) -> LoraNote | None:
    """The smallest LoRA of the run's comparison that has learned at least as much at the end of its tasks.

    Learning is normalised (0 the base, 1 the ceiling) and read from the comparison's `summary.json`. Where there is no
    such LoRA, the size that one of rank 8 on every linear layer would have.

    Args:
        run: `COMPARISON/cells/NAME`, or another run.
        model_config: the base's, of transformers.

    Returns:
        None where neither is known.
    """
    return trained(run) or computed(model_config)


def trained(run: Path) -> LoraNote | None:
    """The same of the comparison that the run lies in; None where it lies in none, or no LoRA has learned as much."""
    summary = run.parent.parent / "summary.json"
    if run.parent.name != "cells" or not summary.is_file():
        return None
    try:
        runs = {entry["run_id"]: entry for entry in json.loads(summary.read_text(encoding="utf-8"))["runs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged report says nothing about this run
    own = learning_of(runs.get(run.name, {}))
    if own is None:
        return None
    rivals = [entry for name, entry in runs.items() if name != run.name and is_plain_lora(entry)]
    equal = [entry for entry in rivals if (learned := learning_of(entry)) is not None and learned >= own]
    if not equal:
        return None
    best = min(equal, key=lambda entry: (entry["values"]["costs"]["stored_bytes"], entry["run_id"]))
    return LoraNote(
        bytes=int(best["values"]["costs"]["stored_bytes"]), run_id=best["run_id"], learning=learning_of(best)
    )


def is_plain_lora(entry: Mapping[str, Any]) -> bool:
    """Whether a run of a summary is one LoRA that all tasks share, finished and of known size."""
    known = entry["values"]["costs"].get("stored_bytes")
    return entry["kind"] == "lora" and bool(entry["plain"]) and entry["status"] == "ok" and bool(known)


def learning_of(entry: Mapping[str, Any]) -> float | None:
    """Learning at the end of a run of a summary."""
    value = entry.get("values", {}).get("learning", {}).get("end")
    return float(value) if value is not None and math.isfinite(value) else None


def computed(model_config: Any) -> LoraNote | None:
    """Bytes in float32 of LoRA r8 on every linear layer of a base, from its shapes; nothing is allocated.

    None where transformers or PEFT cannot build that.
    """
    from transformers import AutoModelForCausalLM

    try:
        config = type(model_config).from_dict(
            {key: value for key, value in model_config.to_dict().items() if key != "quantization_config"}
        )
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an adapter that nobody will train
            base = AutoModelForCausalLM.from_config(config)
            model = get_peft_model(base, LoraConfig(r=RANK, target_modules="all-linear", task_type=TaskType.CAUSAL_LM))
    except UNREADABLE:
        return None
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    return LoraNote(bytes=4 * count, rank=RANK, computed=True)
