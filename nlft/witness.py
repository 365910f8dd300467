"""Proofs and facts of a run: what the model computes bit for bit, and what the run cost."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

import nlft
from nlft.base import FrozenBase, name_of, without_adapter
from nlft.config import Recipe
from nlft.data.batch import collate
from nlft.data.domain import Domains
from nlft.data.template import encode
from nlft.digest import bytes_of
from nlft.manifest import sha256_of
from nlft.methods.penalty import FILE
from nlft.methods.protocol import Method
from nlft.prepare import Prepared
from nlft.remote import WEIGHTS
from nlft.stage import Stage
from nlft.train import StageCost

DECODED = 16
"""Tokens generated to time one."""
REPEATS = 5
"""Timings of each, interleaved."""
VERSIONS = ("torch", "transformers", "peft", "accelerate", "datasets")


def logits_digest(model: Any, base: FrozenBase, prepared: Prepared) -> str:
    """sha256 of the logits of the first rows of every evaluation: what the model computes, bit for bit."""
    digest = hashlib.sha256()
    model.eval()
    for evaluation in prepared.domains.evaluations:
        if not evaluation.rows:
            continue  # an lm-eval task
        policy = prepared.too_long[evaluation.column]
        rows = [encode(row, base.tokenizer, prepared.max_length, policy)[0] for row in evaluation.rows[:4]]
        batch = collate(rows, prepared.pad_id).to(base.device)
        with torch.inference_mode():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        digest.update(bytes_of(logits))
    return digest.hexdigest()


def off_digest(model: Any, base: FrozenBase, prepared: Prepared) -> str:
    """The same with the adapter switched off."""
    with without_adapter(model):
        return logits_digest(model, base, prepared)


def stored_bytes(folder: Path) -> int:
    """Bytes of what a stage has learned, as it was saved; without what penalties remember."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.name != FILE)


def latency_ratio(model: Any, base: FrozenBase, prepared: Prepared) -> float | None:
    """Seconds a generated token with the adapter on over those with it off: one row, key-value cache, greedy.

    Medians over interleaved repeats. None where there is no adapter to switch off.
    """
    if not hasattr(model, "disable_adapter") or not prepared.train:
        return None
    row = next(iter(prepared.train.values()))[0]
    room = max(1, min(DECODED, base.context - len(row.ids)))
    batch = collate([row], prepared.pad_id).to(base.device)
    options: dict[str, Any] = {"min_new_tokens": room, "max_new_tokens": room, "do_sample": False}
    options |= {"attention_mask": batch.attention_mask, "pad_token_id": prepared.pad_id}
    taken: dict[bool, list[float]] = {True: [], False: []}
    model.eval()
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            for on in (True, False):
                with nullcontext() if on else model.disable_adapter():
                    begun = time.perf_counter()
                    model.generate(input_ids=batch.input_ids, **options)
                    if base.device.type == "cuda":
                        torch.cuda.synchronize(base.device)
                    taken[on].append(time.perf_counter() - begun)
    return median(taken[True][1:]) / median(taken[False][1:])  # the first of each warms up


def row_of(
    recipe: Recipe,
    method: str,
    base: FrozenBase,
    domains: Domains,
    learner: Method,
    stages: Sequence[Stage],
    out: Path,
    wall_s: float,
) -> dict[str, Any]:
    """What a finished run says of itself in `runs.parquet`: what it ran, what that cost, and what lies in its folder.

    Args:
        domains: as they were learned, one task for all where all were learned at once.
        stages: the base, and every task.
        out: its folder.
    """
    costs = [stage.cost for stage in stages if stage.cost is not None]
    weights = out / "adapter" / WEIGHTS
    sizes = [stored_bytes(out / "stages" / str(number) / "model") for number in range(1, len(stages))]
    return describe_run(recipe, method, base, costs, sum(stage.eval_s for stage in stages), wall_s) | {
        "run_id": out.name,
        "order": [task.name for task in domains.tasks],
        "adapter_sha256": sha256_of(weights) if weights.is_file() else None,
        "told_task": learner.told_task,
        "replay_bytes": costs[-1].replay_bytes,
        "regulariser_bytes": costs[-1].regulariser_bytes,
        "overlap": json.dumps({column: asdict(found) for column, found in domains.contamination.items()}),
        "task_bytes": sizes,
        "stored_bytes": sizes[-1],
    }


def largest(values: list[int | None]) -> int | None:
    """The largest of what was measured; None if nothing was."""
    return max((value for value in values if value is not None), default=None)


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
        "peak_bytes": largest([cost.peak_bytes for cost in costs]),
        "peak_rss": largest([cost.peak_rss for cost in costs]),
        "optimizer_bytes": max(cost.optimizer_bytes for cost in costs),
        "device": torch.cuda.get_device_name(base.device) if cuda else f"{platform.machine()} CPU",
        "dtype": name_of(next(base.model.parameters()).dtype),
        "versions": json.dumps({"nlft": nlft.__version__} | {package: version(package) for package in VERSIONS}),
        "config": config.model_dump_json(),
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "status": "ok",
    }
