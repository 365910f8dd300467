"""Runs the cells of a comparison on a Ray cluster: each a task, which is begun again when its worker is lost.

The result folder must be on a file system that every node shares: a cell writes there wherever it runs, and goes on
from there after its worker was lost. nlft must be installed on every node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from nlft.errors import NlftError
from nlft.executor import ATTEMPTS, Ended, Work, run_one
from nlft.plan import Cell


def import_ray() -> Any:
    """Ray, told to send no statistics about its use.

    Raises:
        NlftError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise NlftError(
            "Ray is not installed.",
            "Install nlft's extra for it, in the copy of its repository: pip install -e '.[ray]'",
        ) from error
    return ray


def run_on_ray(cells: list[Cell], work: Work, jobs: int | None, console: Console) -> Iterator[Ended]:
    """Yields how each cell ended, in the order of ending.

    Uses the cluster that this process is connected to, else the one at RAY_ADDRESS, else starts one on this machine.

    Args:
        jobs: cells at a time; when None one for each GPU of the cluster, or for each core if it has none.

    Raises:
        NlftError: no Ray, no cluster, or a result folder that the workers do not share.
    """
    ray = import_ray()
    begun = not ray.is_initialized()
    if begun:
        try:
            ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS", "")
            raise NlftError(f"Ray cannot be reached at {address!r}: {error}", "Correct RAY_ADDRESS.") from error
    try:
        yield from _run(ray, cells, work, jobs)
    finally:
        if begun:
            ray.shutdown()


def _run(ray: Any, cells: list[Cell], work: Work, jobs: int | None) -> Iterator[Ended]:
    size = ray.cluster_resources()
    on_gpu = size.get("GPU", 0) >= 1 and cells[0].recipe.base.device != "cpu"
    jobs = jobs or max(1, int(size["GPU"] if on_gpu else size.get("CPU", 1)))
    least = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    threads = max(1, min(int(size.get("CPU", 1)) // jobs, least))
    # Without a GPU of its own a task would see none, even if the node has one.
    options = {"num_cpus": threads, "num_gpus": int(on_gpu), "max_retries": ATTEMPTS - 1}
    remote = ray.remote(**options)(_run_remote)
    shared = ray.put(work)
    waiting, running = list(reversed(cells)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            cell = waiting.pop()
            running[remote.remote(cell, shared, threads)] = cell
        for reference in ray.wait(list(running))[0]:
            cell = running.pop(reference)
            try:
                ended = ray.get(reference)
            except ray.exceptions.RayError as error:
                yield Ended(cell, f"Its Ray worker was lost {ATTEMPTS} times ({type(error).__name__}).")
                continue
            if not ended.problem and not (work.out / "cells" / cell.name / "runs.parquet").is_file():
                raise NlftError(
                    f"{cell.name} ended well on its node, but its results are not in {work.out}.",
                    "Give a folder with --out that all nodes of the cluster share.",
                )
            yield ended


def _run_remote(cell: Cell, work: Work, threads: int) -> Ended:
    import torch

    torch.set_num_threads(threads)
    return run_one(cell, work, Console(quiet=True))
