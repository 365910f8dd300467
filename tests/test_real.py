"""A short form of the real thing: a real pretrained model learns real domains. Skipped where they are absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nlft.compare import compare
from nlft.recipes import load_recipe


@pytest.mark.slow
def test_real_domains_on_a_real_model(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shared)
    recipe = load_recipe(
        "real-domains",
        [
            "train.steps=20",
            "train.max_length=128",
            "methods.full.lr=3e-4",
            "methods.lora.lr=3e-3",
            "methods.sparse_memory.lr=0.1",
            "methods.sparse_memory.slots=200",
            "background.limit=80",
            *(f"tasks.{task}.test.limit=10" for task in ("medquad", "banking77", "tatqa", "shakespeare")),
            *(f"probes.{probe}.data.limit=10" for probe in ("tinystories", "wikitext2")),
        ],
    )
    methods = {name: recipe.methods[name] for name in ("full", "lora", "sparse_memory")}
    recipe = recipe.model_copy(update={"tasks": recipe.tasks[:3], "methods": methods})
    out = compare(recipe, tmp_path / "real")
    summary = json.loads((out / "summary.json").read_text())
    runs = {run["method"]: run for run in summary["runs"]}
    assert set(runs) == {"full", "lora", "sparse_memory"}
    columns = [column["column"] for column in summary["columns"]]
    stories, medquad = columns.index("tinystories"), columns.index("medquad")
    for name, run in runs.items():
        matrix = run["matrix"]
        assert matrix[0][stories] < 2.0, "the base knows its stories"
        assert matrix[1][medquad] < matrix[0][medquad] - 0.3, f"{name} learned"
    forgotten = {name: run["matrix"][-1][stories] - run["matrix"][0][stories] for name, run in runs.items()}
    assert forgotten["sparse_memory"] < 0.2 * min(forgotten["full"], forgotten["lora"])
    assert all(runs["sparse_memory"]["integrity"][proof] is True for proof in ("base_unchanged", "off_equals_base"))
