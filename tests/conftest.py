"""Shared fixtures: tiny random models of many families, built from their configs without any download."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent / "pathways"))

from families import FAMILIES, USUAL

SHARED = Path(os.environ.get("NLFT_SHARED", Path(__file__).parent.parent.parent / "shared"))
"""Real data and a small real model for tests; tests that need them are skipped when they are absent."""


def build_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random causal language model of a family: width 32, 4 layers, vocabulary 97, eval mode."""
    import torch
    import transformers

    name, fields = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**(fields | changes)))
    return model.eval()


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """`make_model(family, seed=0, **config)` builds a tiny random model."""
    return build_model


@pytest.fixture(params=USUAL)
def family(request: pytest.FixtureRequest) -> str:
    """Every usual family in turn."""
    return request.param


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models; skips the test when it is absent."""
    if not (SHARED / "models" / "stories260K").is_dir():
        pytest.skip(f"no real data and model at {SHARED} (set NLFT_SHARED)")
    return SHARED


SHORT_METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full", "lr": 1e-3},
    "lora": {"kind": "lora", "lr": 1e-2},
    "prototype": {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 3},
    "product_key": {
        "kind": "sparse_memory",
        "addressing": "product_key",
        "lr": 0.3,
        "slots": 100,
        "half_keys": 32,
        "topk": 4,
        "kmeans_steps": 2,
    },
    "lora_replay": {"kind": "lora", "lr": 1e-2, "replay": {"source": "tasks", "ratio": 0.5}},
}


def world_rows(path: str, limit: int) -> dict[str, Any]:
    """A data section with a few rows of the built-in world."""
    return {"path": f"builtin:world/{path}", "limit": limit}


def short_recipe(**changes: Any) -> Any:
    """Two tasks of six steps on the built-in base and world, for runs that take a second."""
    from nlft.config import Recipe

    fields: dict[str, Any] = {
        "name": "short",
        "tasks": [
            {
                "name": n,
                "train": world_rows(f"tasks/{n}/train", 64),
                "test": world_rows(f"tasks/{n}/test", 12),
            }
            for n in ("people", "ships")
        ],
        "probes": [
            {"name": "facts", "data": world_rows("base/probe", 24)},
            {"name": "text", "data": world_rows("text/test", 8), "metric": "nll"},
        ],
        "background": world_rows("base/background-text", 200),
        "methods": SHORT_METHODS,
        "train": {"steps": 6, "batch_size": 8},
    }
    return Recipe.model_validate({**fields, **changes})


@pytest.fixture(scope="session")
def short() -> Callable[..., Any]:
    """`recipe` for fixtures that live longer than a test."""
    return short_recipe


@pytest.fixture
def recipe() -> Callable[..., Any]:
    """`recipe(**changes)` makes a short recipe with five methods."""
    return short_recipe


def plant(folder: Path, runs: list[dict[str, Any]], columns: list[tuple[str, Any, Any, str]], rows: int = 20) -> Path:
    """Writes a result folder whose matrices are known.

    A run holds `matrix` [S+1][J] and any column of `runs.parquet`; columns are (name, role, split, metric). The first
    `score * rows` items of a bounded metric are right; a likelihood's items lie evenly around the score and weigh
    1, 2, 3 … tokens, the heavier ones nearer to it, so that only the weighted mean is the score.
    """
    import yaml

    from nlft.measure.items import write_items, write_runs
    from nlft.types import Item

    def values(score: float, metric: str) -> list[tuple[float, float]]:
        if metric in ("exact_match", "accuracy", "f1"):
            return [(float(i < round(score * rows)), 1.0) for i in range(rows)]
        return [(score + (1 if i % 2 else -1) * 0.1 / (i // 2 + 1), float(i // 2 + 1)) for i in range(rows)]

    folder.mkdir(parents=True, exist_ok=True)
    tasks = [name for name, role, split, _ in columns if (role, split) == ("task", "test")]
    for number, run in enumerate(runs):
        run = {"run_id": f"run{number}", "lr": 0.1, "seed": 0, "status": "ok", "order": tasks, **run}
        run.setdefault("kind", run["method"])
        items = [
            Item(
                stage,
                "base" if stage == 0 else "on",
                name if split == "test" else f"{name}/{split}",
                role,
                split,
                kind,
                f"{name}{i}",
                f"{name}{i}",
                value,
                weight,
                "",
            )
            for stage, scores in enumerate(run.pop("matrix", []))
            for (name, role, split, metric), score in zip(columns, scores, strict=True)
            for i, pair in enumerate(values(score, metric))
            # A second metric that must not be mistaken for the first.
            for kind, value, weight in [(metric, *pair), (f"{metric}_twin", 77.0, 1.0)]
        ]
        write_items(folder / "items.parquet", run["run_id"], items)
        write_runs(folder / "runs.parquet", [run])
    entries = {
        role: [{"name": n, "metric": m} for n, r, s, m in columns if (r, s) == (role, "test")]
        for role in ("task", "probe")
    }
    config = {"name": "planted", "tasks": entries["task"], "probes": entries["probe"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Path]:
    """`planted(runs, columns, rows=20)` writes a result folder with known matrices and gives it."""
    return lambda runs, columns, rows=20: plant(tmp_path / "planted", runs, columns, rows)
