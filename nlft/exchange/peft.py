"""A run as PEFT's method comparison logs it (huggingface/peft, `method_comparison/MetaMathQA/utils.py` at 0134244)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from nlft.exchange.entry import Entry
from nlft.measure.account import method_config


def peft_result(entry: Entry) -> dict[str, Any]:
    """One run as PEFT's method comparison logs it, and a block `continual`, which PEFT does not have.

    "test accuracy" is the mean over the tasks at the end if they are measured in shares; "forgetting" the mean rise of
    the loss, in nats a token, over the probes measured in `nll`, since the base.
    """
    summary, run, row, recipe, ok = entry.summary, entry.run, entry.row, entry.recipe, entry.finished
    values, train = run["values"], recipe.get("train") or {}
    config = method_config(row)
    costs, continual = values["costs"], values["continual"]
    rises = _rises(summary, run)
    tasks = len(run["order"])
    steps = costs["steps"] or 0
    final = {
        "step": steps,
        "test accuracy": continual.get("acc") if summary["task_unit"] == "fraction" else None,
        "train loss": None,
        "train samples": steps * train["batch_size"] if "batch_size" in train else None,
        "train total tokens": costs["train_tokens"],
        "forgetting": float(np.mean([rise[-1] for rise in rises.values()])) if rises and ok else None,
    }
    versions = json.loads(row["versions"] or "{}")
    packages = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
    return {
        "run_info": {
            "created_at": row["created_at"],
            "total_time": row["wall_s"],
            "experiment_name": f"{run['method']}/{run['run_id']}",
            "peft_branch": None,
            "train_config": {
                "model_id": row["base_model"],
                "dtype": row["dtype"],
                "max_seq_length": train.get("max_length"),
                "batch_size": train.get("batch_size"),
                "batch_size_eval": (recipe.get("measure") or {}).get("batch_size"),
                "max_steps": steps,
                "eval_steps": steps // tasks if tasks else None,
                "compile": False,
                "seed": row["seed"],
                "grad_norm_clip": train.get("clip"),
                "optimizer_type": (config.get("optimizer") or {}).get("kind"),
                "optimizer_kwargs": {"lr": row["lr"], "weight_decay": config.get("weight_decay")},
                "lr_scheduler": train.get("schedule"),
            },
            "peft_config": None if run["kind"] == "full" else entry.adapter or _config_of(config),
            "error_msg": "" if ok else run["status"],
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": row["peak_bytes"],
            "accelerator_memory_reserved_99th": None,
            "train_time": row["train_s"],
            "file_size": row["stored_bytes"],
            "num_trainable_params": row["trainable_params"],
            "num_total_params": None,
            "status": "success" if ok else "failed",
            "metrics": [final] if ok else [],
        },
        "meta_info": {
            "model_info": {"sha": row["base_revision"], "created_at": None},
            "dataset_info": {
                name: {"sha": data.get("revision"), "created_at": None} for name, data in entry.sources.items()
            },
            "package_info": {f"{name}-version": versions.get(name) for name in packages}
            | {f"{name}-commit-hash": None for name in packages},
            "system_info": {"accelerator": row["device"]},
            "pytorch_info": None,
        },
        "continual": {
            "schema": summary["schema"],
            "definitions": {key: summary["definitions"].get(key) for key in ("matrix", "acc", "bwt", "forgetting")},
            "order": run["order"],
            "columns": [column["column"] for column in summary["columns"]],
            "metrics": [column["metric"] for column in summary["columns"]],
            "matrix": run["matrix"] if ok else None,
            "average_accuracy": continual.get("acc"),
            "backward_transfer": continual.get("bwt"),
            "forward_transfer": continual.get("fwt_base"),
            "forgetting": continual.get("forgetting"),
            "forgetting_per_task": {name: _negative(task["change"]) for name, task in values["tasks"].items()},
            "probe_change": {name: probe["change"] for name, probe in values["probes"].items()},
            "probe_intervals": run["intervals"].get("probes", {}),
            "loss_rise_after_each_task": rises if ok else {},
        },
    }


def _rises(summary: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, list[float]]:
    """Rise of the loss since the base after each task, by probe that is measured in nats a token."""
    found = {}
    for j, column in enumerate(summary["columns"]):
        if (column["role"], column["metric"]) == ("probe", "nll") and run["matrix"]:
            values = [stage[j] for stage in run["matrix"]]
            if None not in (values[0], values[-1]):
                found[column["name"]] = [None if value is None else value - values[0] for value in values[1:]]
    return found


def _config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """As far as the recipe says it, for a run whose adapter is gone."""
    kind = config.get("peft_type") or f"NLFT_{config.get('kind', 'unknown')}".upper()
    return {"peft_type": kind} | dict(config.get("peft") or {})


def _negative(value: float | None) -> float | None:
    return None if value is None else 0.0 - value
