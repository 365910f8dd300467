"""Runs the cells of a comparison: one after another, or several processes side by side."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nlft.cells import run_cell
from nlft.data.domain import Domains
from nlft.errors import CheckpointError, NlftError, reason
from nlft.plan import Cell
from nlft.prefix_store import PrefixStore
from nlft.types import Item
from nlft.workers import worker_context

ATTEMPTS = 2
"""Times that a cell is begun when its process dies."""


@dataclass(frozen=True)
class Work:
    """What all cells share."""

    out: Path
    domains: Domains
    base_items: list[Item] | None
    """Scores of the base on every row; each cell takes its own when None."""
    own: frozenset[str] = frozenset()
    """Methods that score the base themselves, for they compute in another dtype."""
    store: PrefixStore | None = None
    """States of frozen prefixes; processes share its files."""

    def share_of(self, cell: Cell) -> tuple[Domains, list[Item] | None]:
        """The rows of one cell, and the base's scores on them unless it takes them itself."""
        domains = self.domains.in_order([task.name for task in cell.recipe.tasks])
        columns = {evaluation.column for evaluation in domains.evaluations}
        if self.base_items is None or cell.method in self.own:
            return domains, None
        return domains, [item for item in self.base_items if item.column in columns]


@dataclass(frozen=True)
class Ended:
    """How a cell ended."""

    cell: Cell
    problem: str = ""
    """Empty if it went well."""
    disk_hint: str | None = None
    """Set if results could not be written, so that others could not either."""


def run_cells(cells: list[Cell], work: Work, jobs: int, console: Console) -> Iterator[Ended]:
    """Yields how each cell ended, in the order of ending.

    Args:
        jobs: processes; 1 runs all here. They share the cores, and each holds a base. A cell's scores are the same for
            any number of them up to the last bits, and bit for bit where the threads of a process stay the same, as
            with OMP_NUM_THREADS=1.
    """
    if jobs == 1:
        for cell in cells:
            yield run_one(cell, work, console)
        return
    begun: Counter[str] = Counter()
    while cells:
        left = {cell.name: cell for cell in cells}
        # No more than this process has: sums in another number of parts end in other bits, and OMP_NUM_THREADS counts.
        threads = max(1, min(torch.get_num_threads(), cores() // jobs))
        given = work, threads, list(warnings.filters)
        pool = ProcessPoolExecutor(jobs, mp_context=worker_context(), initializer=set_up, initargs=given)
        # No more are handed over than there are processes, so that what was handed over is what has begun: also where a
        # process dies before it wrote anything, and after Ctrl-C no further one begins.
        waiting, running = list(reversed(cells)), dict[Future[Ended], str]()
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop()
                    running[pool.submit(run_apart, cell)] = cell.name
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda one: one.exception() is not None):
                    ended = future.result()
                    del left[running.pop(future)]
                    yield ended
        except BrokenProcessPool:
            # Nobody knows which of the running cells killed its process; all of them begin again.
            begun.update(running.values())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for name in [name for name in left if begun[name] >= ATTEMPTS]:
            yield Ended(left.pop(name), "Its process was killed, perhaps for want of memory. Use fewer --jobs.")
        cells = list(left.values())


def run_one(cell: Cell, work: Work, console: Console) -> Ended:
    """Runs a cell in this process. What nobody foresaw ends this cell alone; its folder holds the traceback."""
    folder = work.out / "cells" / cell.name
    try:
        run_cell(cell, folder, *work.share_of(cell), console, work.store)
    except CheckpointError as error:
        return Ended(cell, error.message, error.hint)
    except NlftError as error:
        return Ended(cell, str(error))
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return Ended(cell, f"{type(error).__name__}: {reason(error)} See traceback.txt in its folder.")
    return Ended(cell)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_work: Work | None = None
"""Of a worker process."""


def set_up(work: Work, threads: int, filters: list[Any]) -> None:
    """Prepares a worker process, which ends with the process that began it: nobody would take its results.

    Args:
        filters: `warnings.filters` of that process, so that its workers warn of nothing that it does not.
    """
    global _work
    threading.Thread(target=end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # pyright: ignore
    _work = work


def end_with(parent: Any) -> None:
    """Ends this process as soon as its parent has ended, however that came about."""
    parent.join()
    os._exit(1)


def run_apart(cell: Cell) -> Ended:
    """Runs a cell in a worker process."""
    assert _work is not None
    return run_one(cell, _work, Console(quiet=True))
