"""Where the wall time of one run goes: the share that is neither a training step nor a forward pass of scoring.

    python eval/bench/overhead.py [METHOD] [KEY=VALUE]...      # one run of proof-world, 100 steps a task

One thread. Time belongs to the innermost part that is named; what is between the parts is `rest`. Forward passes of
calibration, of the proofs and of the latency measurement count as overhead.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import nlft.run as run
from nlft.plan import plan_cells
from nlft.recipes import load_recipe

PARTS = {
    "load_domains": "read rows",
    "load_base": "load and hash the base",
    "prepare": "tokenise and hash rows",
    "logits_digest": "proof: logits of the base",
    "off_digest": "proof: logits with the adapter off",
    "latency_ratio": "latency ratio",
    "train_stage": "loop around the steps: batches, clipping, logs",
    "measure": "scoring around the forward passes: decoding, metrics",
    "save_stage": "save stages",
    "write_folder": "save the adapter",
    "write_items": "tables",
    "write_runs": "tables",
    "write_report": "summary and report",
}
"""Names in `nlft.run`, and what they are called in the table."""
WORK = ("forward, training", "backward", "optimiser", "forward, scoring")


class Clock:
    """Exclusive seconds by part: entering one stops the one around it.

    Args:
        now: gives seconds; `time.process_time` counts what this process computes, whoever else does.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.seconds: dict[str, float] = defaultdict(float)
        self.open = ["rest"]
        self.since = self.now()

    def enter(self, part: str) -> None:
        """A part begins."""
        self._book()
        self.open.append(part)

    def leave(self) -> None:
        """The innermost part ends."""
        self._book()
        self.open.pop()

    def _book(self) -> None:
        now = self.now()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def around(self, function: Callable[..., Any], part: Callable[[], str | None]) -> Callable[..., Any]:
        """The function, with its time booked under a part; under the one around it where `part` gives None."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            name = part()
            if name is None:
                return function(*args, **kwargs)
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed


def main() -> None:
    """Prints one table."""
    torch.set_num_threads(1)
    method, *overrides = sys.argv[1:] or ["prototype-inputs"]
    recipe = load_recipe("proof-world", overrides)
    cell = next(cell for cell in plan_cells(recipe) if cell.method == method)
    clock = Clock()
    spy(clock)
    with tempfile.TemporaryDirectory() as folder:
        run.run_method(cell.recipe, method, Path(folder) / "run")
    clock.enter("rest")
    total = sum(clock.seconds.values())
    work = sum(clock.seconds[part] for part in WORK)
    table = Table("part", "seconds", "share", title=f"{cell.name}: {total:.1f} s")
    for part, seconds in sorted(clock.seconds.items(), key=lambda pair: -pair[1]):
        table.add_row(part, f"{seconds:.2f}", f"{seconds / total:.1%}", style="bold" if part in WORK else "")
    table.add_row("neither training step nor forward pass of scoring", f"{total - work:.2f}", f"{1 - work / total:.1%}")
    Console(width=110).print(table)


def spy(clock: Clock) -> None:
    """Puts the clock around everything that is named."""
    from transformers import LlamaForCausalLM

    from nlft.methods import build_method

    for name, part in PARTS.items():
        setattr(run, name, clock.around(getattr(run, name), lambda part=part: part))

    def forward_part() -> str | None:
        around = clock.open[-1]
        places = {PARTS["train_stage"]: "forward, training", PARTS["measure"]: "forward, scoring"}
        return places.get(around)

    LlamaForCausalLM.forward = clock.around(LlamaForCausalLM.forward, forward_part)  # type: ignore[method-assign]
    torch.Tensor.backward = clock.around(torch.Tensor.backward, lambda: "backward")  # type: ignore[method-assign]
    register_optimizer_step_pre_hook(lambda *_: clock.enter("optimiser"))
    register_optimizer_step_post_hook(lambda *_: clock.leave())

    def build(config: Any) -> Any:
        learner = build_method(config)
        for name in ("begin_task", "end_task"):
            setattr(learner, name, clock.around(getattr(learner, name), lambda: "calibration"))
        return learner

    run.build_method = build  # type: ignore[assignment]


if __name__ == "__main__":
    main()
