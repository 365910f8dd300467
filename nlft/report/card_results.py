"""The measured part of a model card: its table, the `model-index`, and `.eval_results/` of standard benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from nlft.config import DataConfig, Recipe
from nlft.data.source import is_hub_id
from nlft.measure.unit import show, show_change
from nlft.report.card_sources import shown_data
from nlft.report.findings import change_of
from nlft.report.ledger import COST_WORDS, COSTS
from nlft.report.rows import Grid, best_entries, columns_by

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]
UNKNOWN = "unknown"
"""The `type` of a dataset that is not on the Hub: the field is required, and this names no repository."""
BENCHMARKS = {
    "gsm8k": ("openai/gsm8k", "gsm8k"),
    "mmlu_pro": ("TIGER-Lab/MMLU-Pro", "mmlu_pro"),
    **{
        f"gpqa_diamond_{form}": ("Idavidrein/gpqa", "gpqa_diamond")
        for form in ("zeroshot", "n_shot", "cot_zeroshot", "cot_n_shot", "generative_n_shot")
    },
}
"""lm-eval's task: dataset and `task_id` of the Hub's benchmark. Only datasets that are registered as benchmarks, as the
Hub's documentation of `.eval_results` names them; a result of any other would be refused there."""
BENCHMARK_METRICS = ("exact_match", "acc")
SHOWN_COSTS = ("trainable_params", "stored_bytes", "peak_rss", "peak_bytes", "train_tokens", "steps", "train_s")
SHOWN_COSTS += ("wall_s", "latency_ratio")
CARD_NAMES = {"trainable_params": "trainable at a time", "train_s": "training, calibration included"}
UNCHANGED_WORDS = (
    "Where no answer changed at all, the bootstrap would be certain; the limits are then Wilson's, of 0 in that many."
)
"""As `nlft.measure.interval.paired_difference` has it."""


def entry_of(summary: Summary | None) -> Entry | None:
    """The method that finished; None where nothing was measured."""
    entries = best_entries(summary) if summary else []
    return entries[0] if entries else None


def _scored_columns(summary: Summary, entry: Entry) -> Iterator[tuple[str, Summary, Summary]]:
    """(role, column, values) of every task and probe that has values."""
    for role in ("task", "probe"):
        for column in columns_by(summary, role):
            leaf = entry["values"][f"{role}s"].get(column["name"])
            if leaf is not None:
                yield role, column, leaf


def score_grid(summary: Summary, entry: Entry, continued: bool = False) -> Grid:
    """Every task and probe with values: at the start, right after its training, at the end, what was gained, and the
    change with its interval.

    Args:
        continued: the run went on from an earlier adapter, with which row 0 of its matrix was measured.
    """
    body = []
    for role, column, leaf in _scored_columns(summary, entry):
        name, unit = column["name"], column["unit"]
        if role == "probe":
            value, low, high = change_of(entry, name)
        else:
            limits = entry["intervals"].get("tasks", {}).get(name) or {}
            value, low, high = leaf["change"]["value"], limits.get("low"), limits.get("high")
            if [name] == entry["order"][-1:]:
                value = None  # the last stage is its own
        if all(leaf[key]["value"] is None for key in ("base", "now", "end") if key in leaf):
            continue
        change = show_change(value, unit)
        if low is not None and high is not None:
            change += f" [{show_change(low, unit, False)}, {show_change(high, unit, False)}]"
        metric = column["metric"] + ("" if column["higher_is_better"] else " (lower is better)")
        levels = [show(leaf[key]["value"], unit) if key in leaf else "–" for key in ("base", "now", "end")]
        gained = show_change(leaf["gained_end"]["value"], unit) if role == "task" else "–"
        body.append([f"{role} {name}", metric, *levels, gained, change, str(column["n_items"])])
    start = start_of(continued)
    words = (
        f"Adapter on. Gained: by a task since the {start}. Change: of a task since its own training, of a probe since "
        f"the {start}; below zero is a loss. {summary['definitions']['interval']}. {UNCHANGED_WORDS} –: there is none, "
        "as a probe is not trained on, and nothing came after the last task; or not measured."
    )
    head = ["", "metric", start, "right after its training", "at the end", "gained", "change", "rows"]
    return Grid(head, body, words)


def start_of(continued: bool) -> str:
    """What row 0 of a run's matrix was measured with."""
    return "start (earlier adapter)" if continued else "base"


def cost_grid(entry: Entry) -> Grid:
    """What the run cost, a line for each thing that was measured."""
    costs = entry["values"]["costs"]
    shown = [
        (CARD_NAMES.get(key, name), write, costs.get(key, {}).get("value"))
        for key, name, write in COSTS
        if key in SHOWN_COSTS
    ]
    body = [[name, write(value)] for name, write, value in shown if value is not None]
    return Grid(["cost", ""], body, COST_WORDS)


def model_index(summary: Summary, entry: Entry, recipe: Recipe | None, continued: bool = False) -> list[EvalResult]:
    """Scores for the card's `model-index`, in the metrics' own units; what was not measured is left out.

    A column has the level with the adapter on, and a second metric: for a probe what was lost since the base, for a
    task what was gained since it, and what was lost since the task's own training. For a run that went on from an
    earlier adapter (`continued`) that stands in the base's place, and the metrics say so.
    """
    results, used, start = [], set(), start_of(continued)
    since = "_since_start" if continued else ""
    for role, column, leaf in _scored_columns(summary, entry):
        name, metric = column["name"], column["metric"]
        place = _dataset(name, recipe)
        if (place["dataset_type"], place["dataset_config"], place["dataset_split"]) in used:
            place["dataset_config"] = f"{place['dataset_config'] or 'default'}, {name}"  # else the two would be joined
        used.add((place["dataset_type"], place["dataset_config"], place["dataset_split"]))
        unit = "share of 1" if column["bounded"] else column["unit"]
        better = "" if column["higher_is_better"] else ", lower is better"
        change = leaf["change"]["value"]
        values = [(metric, f"{metric}, adapter on, after the last task ({unit}{better})", leaf["end"]["value"])]
        if role == "probe":
            values.append(
                (
                    f"{metric}_lost{since}",
                    f"{metric} lost since the {start} ({unit}; below zero: gained)",
                    _minus(change),
                )
            )
        else:
            gained = leaf["gained_end"]["value"]
            words = f"{metric} gained since the {start} ({unit}; below zero: lost)"
            values.append((f"{metric}_gained{since}", words, gained))
            words = f"{metric} lost since its own training ({unit}; below zero: gained)"
            values.append((f"{metric}_lost_since_learned", words, _minus(change)))
        results += [
            EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                metric_type=kind,
                metric_name=words,
                metric_value=round(float(value), 6) + 0.0,
                **place,
            )
            for kind, words, value in values
            if value is not None
        ]
    return results


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _dataset(name: str, recipe: Recipe | None) -> dict[str, Any]:
    """Where the rows of a task or probe come from, as far as the recipe says."""
    data, harness = _scored(name, recipe)
    place: dict[str, Any] = {"dataset_type": UNKNOWN, "dataset_name": name, "dataset_config": name}
    place |= {"dataset_split": "test", "dataset_revision": None}
    if isinstance(harness, str):
        place["dataset_name"] = f"{name} (lm-eval: {shown_data(harness)})"
        if harness in BENCHMARKS:
            place["dataset_type"] = BENCHMARKS[harness][0]
    elif data is not None:
        place["dataset_name"] = f"{name} ({shown_data(data.path)})"
        if is_hub_id(data.path):
            place |= {"dataset_type": data.path, "dataset_config": data.name, "dataset_split": data.split}
            place["dataset_revision"] = data.revision
    return {key: " ".join(value.split()) if value else None for key, value in place.items()}


def _scored(name: str, recipe: Recipe | None) -> tuple[DataConfig | None, Any]:
    """The section that scores a task or probe, and its lm-eval task."""
    for task in [*recipe.tasks, *recipe.earlier] if recipe else ():
        if task.name == name:
            return task.test, None
    for probe in recipe.probes if recipe else ():
        if probe.name == name:
            return probe.data, probe.lm_eval
    return None, None


def benchmark_results(summary: Summary, run: Mapping[str, Any]) -> dict[str, str]:
    """Files for `.eval_results/`, by name: scores with the adapter on, in percent, of the Hub's own benchmarks.

    A benchmark is a probe that is a whole lm-eval task of a dataset which the Hub knows as one; a probe with `limit`
    scores a part of it, and is none. Format: https://huggingface.co/docs/hub/eval-results.

    Args:
        summary: of the one run.
        run: its line of `runs.parquet`.
    """
    entry, found = entry_of(summary), dict[str, list[EvalResultEntry]]()
    recipe = yaml.safe_load(summary.get("recipe") or "") or {}
    for probe in recipe.get("probes") or [] if entry else ():
        task = probe.get("lm_eval")
        leaf = entry["values"]["probes"].get(probe["name"]) if entry else None
        column = next((one for one in columns_by(summary, "probe") if one["name"] == probe["name"]), None)
        if not isinstance(task, str) or task not in BENCHMARKS or probe.get("limit") or leaf is None or column is None:
            continue
        value, base = leaf["end"]["value"], leaf["base"]["value"]
        if value is None or column["metric"] not in BENCHMARK_METRICS:
            continue
        dataset, task_id = BENCHMARKS[task]
        asked = probe.get("metric") or column["metric"]
        shots = "its own number of" if probe.get("num_fewshot") is None else str(probe["num_fewshot"])
        notes = f"lm-eval task {task}, {asked}, {shots} shots; a PEFT adapter, on; scored by nlft{_version(run)}"
        alone = "with the earlier adapter that it was continued from" if run.get("start") else "its base alone"
        notes += "" if base is None else f"; {alone} {100 * base:.2f}"
        date = str(run.get("created_at") or "")[:10] or None
        found.setdefault(f"{task}.yaml", []).append(
            EvalResultEntry(dataset, task_id, round(100 * value, 2), date=date, notes=notes)
        )
    return {name: yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False) for name, entries in found.items()}


def _version(run: Mapping[str, Any]) -> str:
    version = json.loads(run.get("versions") or "{}").get("nlft")
    return f" {version}" if version else ""
