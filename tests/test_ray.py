"""Cells on a Ray cluster of two nodes: the same results as here, and a lost worker's cell begun again."""

from __future__ import annotations

import builtins
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from nlft.cells import run_cell
from nlft.data.domain import load_domains
from nlft.errors import NlftError
from nlft.executor import Work
from nlft.measure.items import read_items
from nlft.plan import Cell, plan_cells
from nlft.ray_executor import import_ray, run_on_ray

METHODS = {"lora": {"kind": "lora", "lr": [1e-2, 2e-2]}}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, to which this process is connected."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def kill_the_first(cells: Path, killed: Any) -> None:
    """Kills one Ray worker that trains, as soon as its cell has begun."""
    while not list(cells.glob("*/events.jsonl")):
        time.sleep(0.05)
    while not killed.value:
        for process in psutil.process_iter(["cmdline"]):
            if "ray::_run_remote" in " ".join(process.info["cmdline"] or ()) and not killed.value:
                process.kill()
                killed.value = process.pid


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_cells_on_two_nodes_outlive_a_worker(recipe: Callable[..., Any], tmp_path: Path, cluster: Any) -> None:
    chosen = recipe(methods=METHODS)
    cells, domains = plan_cells(chosen), load_domains(chosen)
    killed = multiprocessing.Value("i", 0)
    killer = multiprocessing.get_context("fork").Process(target=kill_the_first, args=(tmp_path / "cells", killed))
    killer.start()
    ended = list(run_on_ray(cells, Work(tmp_path, domains, None), None, Console(quiet=True)))
    killer.join()
    assert killed.value
    assert sorted((end.cell.name, end.problem) for end in ended) == sorted((cell.name, "") for cell in cells)
    alone: Cell = cells[0]
    run_cell(alone, tmp_path / "here" / alone.name, domains, None, Console(quiet=True))
    there = tmp_path / "cells" / alone.name / "items.parquet"
    assert read_items(there) == read_items(tmp_path / "here" / alone.name / "items.parquet")


def test_without_ray_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(NlftError, match=r"Ray is not installed\. Install nlft's extra .*: pip install -e '\.\[ray\]'"):
        import_ray()
