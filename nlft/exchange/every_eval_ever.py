"""A run as a record of Every Eval Ever.

After evaleval/every_eval_ever, `every_eval_ever/schemas/eval.schema.json`, version 0.2.2, at 21b3d1a.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

import nlft
from nlft.exchange.entry import Entry
from nlft.hub import is_dataset_id
from nlft.measure.summary import plain
from nlft.types import Item


def every_eval_ever(entry: Entry) -> dict[str, Any] | None:
    """One run as an aggregate record of Every Eval Ever: every column at the last stage, with the adapter on.

    A likelihood has no largest value, so its `score_type` is left out, which version 0.2.2 allows. Standard errors are
    over items, those of one cluster together (Miller 2024, 2411.00640; of a ratio of sums).
    """
    if not entry.finished:
        return None
    summary, run, row, items = entry.summary, entry.run, entry.row, entry.items
    model = f"nlft/{summary['name']}-{run['run_id']}"
    sources, last, results = entry.sources, len(run["order"]), []
    for j, column in enumerate(summary["columns"]):
        score = run["matrix"][last][j]
        if score is None:
            continue
        wanted = (last, "on", column["column"], column["metric"])
        chosen = [item for item in items if (item.stage, item.condition, item.column, item.metric) == wanted]
        error = standard_error(chosen)
        # A probe's interval is of its change since the base, a task's of that since its own training.
        since = "base" if column["role"] == "probe" else "trained"
        change = run["intervals"].get(f"{column['role']}s", {}).get(column["name"], {})
        details = {f"change_since_{since}_{key}": change[key] for key in change if column["split"] == "test"}
        details["base"] = run["matrix"][0][j]
        bounds = {"score_type": "continuous", "min_score": 0.0, "max_score": 1.0} if column["bounded"] else {}
        results.append(
            {
                "evaluation_name": column["column"],
                "evaluation_result_id": f"{run['run_id']}/{column['column']}/{column['metric']}",
                "source_data": _source_data(column["name"], sources.get(column["name"], {})),
                "metric_config": {
                    "evaluation_description": f"{column['role']} of a sequence of {last} tasks, after the last one",
                    "metric_id": column["metric"],
                    "metric_name": column["metric"],
                    "metric_unit": "proportion" if column["bounded"] else column["unit"],
                    "lower_is_better": not column["higher_is_better"],
                    **bounds,
                },
                "score_details": {
                    "score": score,
                    "details": _texts(details),
                    "uncertainty": (
                        {"standard_error": {"value": error, "method": "analytic, clustered"}} if error else {}
                    )
                    | {"num_samples": len(chosen)},
                },
            }
        )
    created = row["created_at"] or ""
    described = {
        key: row[key] for key in ("base_model", "base_revision", "base_sha256", "method", "kind", "lr", "seed")
    }
    return {
        "schema_version": "0.2.2",
        "evaluation_id": f"{summary['name']}/{model}/{_epoch(created) or 'unknown'}",
        "retrieved_timestamp": str(int(time.time())),
        **({"evaluation_timestamp": created} if created else {}),
        "source_metadata": {
            "source_name": "nlft",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "first_party",
        },
        "eval_library": {"name": "nlft", "version": json.loads(row["versions"] or "{}").get("nlft", nlft.__version__)},
        "model_info": {
            "name": f"{row['base_model']} + {run['method']} (lr {run['lr']:g})",
            "id": model,
            "developer": "unknown",
            "additional_details": _texts(described | {"order": run["order"], "dtype": row["dtype"]}),
        },
        "evaluation_results": results,
    }


def standard_error(items: Sequence[Item]) -> float | None:
    """Standard error of `sum(value * weight) / sum(weight)`, items of one cluster together.

    None for fewer than two clusters, or where a value is missing.
    """
    names = {name: place for place, name in enumerate(dict.fromkeys(item.cluster or item.item_id for item in items))}
    n = len(names)
    values, weights = (np.array([getattr(item, key) for item in items], dtype=float) for key in ("value", "weight"))
    if n < 2 or not np.isfinite(values).all() or weights.sum() <= 0:
        return None
    residuals = (values - (values * weights).sum() / weights.sum()) * weights
    sums = np.bincount([names[item.cluster or item.item_id] for item in items], residuals, n)
    return float(np.sqrt((sums**2).sum() * n / (n - 1)) / weights.sum())


def _source_data(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    path = data.get("path") or ""
    if not path or path.startswith("builtin:") or not is_dataset_id(path, (".jsonl", ".json", ".csv", ".parquet")):
        return {"dataset_name": name, "source_type": "other", "additional_details": _texts({"path": path or None})}
    extra = {"hf_split": data.get("split"), "hf_config": data.get("name"), "hf_revision": data.get("revision")}
    extra = {key: value for key, value in extra.items() if value}
    return {"dataset_name": name, "source_type": "hf_dataset", "hf_repo": path, **extra}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """What is known of it, as texts, which is all that this schema takes."""
    known = {key: value for key, value in plain(values).items() if value is not None}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}


def _epoch(stamp: str) -> str:
    try:
        return str(int(datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()))
    except ValueError:
        return ""
