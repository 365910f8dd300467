"""Proofs and facts of a run: what the model computes bit for bit, and what the run cost."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import nlft
from nlft.base import FrozenBase
from nlft.config import Recipe
from nlft.data.batch import collate
from nlft.data.template import encode
from nlft.prepare import Prepared
from nlft.train import StageCost

VERSIONS = ("torch", "transformers", "peft", "accelerate", "datasets")


def logits_digest(model: Any, base: FrozenBase, prepared: Prepared) -> str:
    """sha256 of the logits of the first rows of every evaluation: what the model computes, bit for bit."""
    digest = hashlib.sha256()
    model.eval()
    for evaluation in prepared.domains.evaluations:
        policy = prepared.too_long[evaluation.column]
        rows = [encode(row, base.tokenizer, prepared.max_length, policy)[0] for row in evaluation.rows[:4]]
        batch = collate(rows, prepared.pad_id).to(base.device)
        with torch.inference_mode():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        digest.update(logits.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def off_digest(model: Any, base: FrozenBase, prepared: Prepared) -> str:
    """The same with the adapter switched off."""
    with model.disable_adapter():
        return logits_digest(model, base, prepared)


def stored_bytes(folder: Path) -> int:
    """Bytes of the weights that a stage saved."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def describe_run(
    recipe: Recipe, method: str, base: FrozenBase, costs: list[StageCost], eval_s: float, wall_s: float
) -> dict[str, Any]:
    """One row of `runs.parquet`, without the outcome."""
    config = recipe.methods[method]
    cuda = base.device.type == "cuda"
    return {
        "method": method,
        "kind": config.kind,
        "lr": config.lrs[0],
        "seed": recipe.train.seeds.data,
        "order": [task.name for task in recipe.tasks],
        "base_model": base.name,
        "base_revision": base.revision,
        "base_sha256": base.fingerprint,
        "trainable_params": max(cost.trainable for cost in costs),
        "train_tokens": sum(cost.tokens for cost in costs),
        "steps": sum(cost.steps for cost in costs),
        "train_s": sum(cost.seconds + cost.preparing for cost in costs),
        "eval_s": eval_s,
        "wall_s": wall_s,
        "peak_bytes": torch.cuda.max_memory_allocated(base.device) if cuda else None,
        "device": torch.cuda.get_device_name(base.device) if cuda else f"{platform.machine()} CPU",
        "dtype": str(next(base.model.parameters()).dtype).removeprefix("torch."),
        "versions": json.dumps({"nlft": nlft.__version__} | {package: version(package) for package in VERSIONS}),
        "config": config.model_dump_json(),
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "status": "ok",
    }
