"""Several processes of one run, as a launcher starts them; forked from a server that has imported everything."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from nlft.cli import main
from nlft.distributed import (
    check_alike,
    check_same_run,
    dealt_out,
    in_turn,
    join_processes,
    rank,
    sum_gradients,
    take_from_first,
    total,
)
from nlft.errors import NlftError
from nlft.measure.items import read_items, read_runs
from nlft.recipes import dump_recipe
from nlft.run import run_method

PATIENCE = 240
"""Seconds for all of them."""
SLOTS = {
    "kind": "sparse_memory",
    "lr": 0.3,
    "slots": 50,
    "kmeans_steps": 2,
    "layers": [2],
    "optimizer": {"kind": "sgd"},
}
ITEMS, WEIGHTS, LOSSES = 1e-4, 1e-5, 1e-5
"""Largest differences of scores, of learned weights (SGD, or slots' values) and, relative, of losses; float32."""
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["nlft.run", "nlft.cli", "accelerate"])


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None
    """None if it had to be killed."""
    out: str
    err: str


def together(function: Callable[..., Any], *given: Any, folder: Path, **environment: str) -> list[Ended]:
    """Calls a function of a module in two processes, and says how each ended.

    Args:
        folder: for what they print.
        environment: further variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    paths = [folder / f"{time.monotonic_ns()}-{rank}" for rank in range(2)]
    own = [place | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    workers = [
        context.Process(target=work, args=(function, given, path, variables))
        for path, variables in zip(paths, own, strict=True)
    ]
    for worker in workers:
        worker.start()
    until = time.monotonic() + PATIENCE
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    read = [[path.with_suffix(kind).read_text(encoding="utf-8") for kind in (".out", ".err")] for path in paths]
    return [Ended(code, *texts) for code, texts in zip(codes, read, strict=True)]


def run_together(words: list[str], folder: Path, **environment: str) -> list[Ended]:
    """`nlft WORDS` in two processes, by rank."""
    return together(main, words, folder=folder, **environment)


def train(recipe: Any, out: Path) -> None:
    """A run without its report, which takes longer than a short run."""
    run_method(recipe, None, out, console=Console(), report=False)


def work(function: Callable[..., Any], given: Any, path: Path, environment: dict[str, str]) -> None:
    """One of the processes."""
    os.environ.update(environment)
    for number, kind in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(path.with_suffix(kind), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    function(*given)


def both(recipe: Any, folder: Path, *words: str, **environment: str) -> tuple[Path, Path]:
    """Trains with one process and with two; their folders."""
    file = folder / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    for ended in run_together(["train", str(file), *words, "--out", str(folder / "two")], folder, **environment):
        assert ended.code == 0, ended.err
    assert ended.out == "", "only the first process prints"
    with pytest.raises(SystemExit) as end:
        main(["train", str(file), *words, "--out", str(folder / "one")])
    assert end.value.code == 0
    return folder / "one", folder / "two"


def assert_same(one: Path, two: Path, weights: float = WEIGHTS) -> None:
    """The learned weights, losses, scores and files of two runs."""
    found, wanted = read_items(two / "items.parquet"), read_items(one / "items.parquet")
    keys = [[(i.stage, i.condition, i.column, i.metric, i.item_id) for i in items] for items in (found, wanted)]
    assert keys[0] == keys[1]
    assert max(abs(a.value - b.value) for a, b in zip(found, wanted, strict=True)) <= ITEMS
    exact = [(i.prediction, i.value) for i in found if i.metric == "exact_match"]
    assert exact == [(i.prediction, i.value) for i in wanted if i.metric == "exact_match"] and exact
    assert losses(two) == pytest.approx(losses(one), rel=LOSSES) and losses(one)
    names = ({str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (one, two))
    assert next(names) == next(names)
    [run], [other] = (read_runs(folder / "runs.parquet") for folder in (one, two))
    same = ("base_sha256", "base_unchanged", "off_equals_base", "train_tokens", "trainable_params", "status")
    assert [run[key] for key in same] == [other[key] for key in same] and run["status"] == "ok"
    if (one / "adapter").is_dir():
        first, second = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (one, two))
        for name, tensor in first.items():
            if name.endswith(("values", "lora_A.weight", "lora_B.weight", ".A", ".B")):
                torch.testing.assert_close(second[name], tensor, atol=weights, rtol=0)
            else:
                assert torch.equal(second[name], tensor), f"{name}: calibration must be bit-equal"


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


def primitives() -> None:
    """Every primitive beside what it should give, in one of two processes."""
    join_processes(torch.device("cpu"))
    for dtype, most in ((torch.float64, 3), (torch.float32, 1000), (torch.bfloat16, 1)):
        parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((2, 3), (5,), (), (1, 4))]

        def drawn(of: int, parameters: Any = parameters, dtype: torch.dtype = dtype) -> list[torch.Tensor]:
            generator = torch.Generator().manual_seed(of)
            return [torch.randn(one.shape, generator=generator).to(dtype) for one in parameters]

        has = [[True, True], [False, True], [True, False], [False, False]]
        for one, gradient, there in zip(parameters, drawn(rank()), has, strict=True):
            one.grad = gradient if there[rank()] else None
        sum_gradients(parameters, most)
        for one, first, second, there in zip(parameters, drawn(0), drawn(1), has, strict=True):
            if not any(there):
                assert one.grad is None
                continue
            wanted = first * there[0] + second * there[1]
            assert one.grad is not None and one.grad.dtype == dtype and torch.equal(one.grad, wanted)

    asked: list[int] = []

    def compute(piece: int) -> dict[str, torch.Tensor]:
        asked.append(piece)
        generator = torch.Generator().manual_seed(piece)
        states = torch.randn(piece, 3, generator=generator)
        return {"a": states.T, "b": states.to(torch.bfloat16), "c": states > 0}

    found = list(in_turn(compute, [4, 0, 2]))
    assert asked == ([4, 2], [0, 2])[rank()], "the last round has one piece, and nobody waits"
    assert [piece for piece, _ in found] == [4, 0, 2]
    for piece, tensors in found:
        assert all(torch.equal(tensors[name], wanted) for name, wanted in compute(piece).items())

    done: list[str] = []
    assert dealt_out(lambda one: done.append(one) or one * 2, ["a", "b", "c"], [1, 5, 1]) == ["aa", "bb", "cc"]
    assert done == (["b"], ["a", "c"])[rank()]

    matrix = torch.full((2, 3), float(rank()))
    mine = [matrix.T, torch.tensor(rank() == 0), torch.tensor(rank(), dtype=torch.bfloat16), torch.zeros(0)]
    take_from_first(mine)
    assert not matrix.any() and bool(mine[1]) and not mine[2]
    check_alike(mine, "x")
    with pytest.raises(NlftError, match="x: the processes have trained different weights"):
        check_alike([torch.tensor(rank())], "x")
    assert float(total(torch.tensor(1.0 + rank()))) == 3.0
    check_same_run(1, "x")
    with pytest.raises(NlftError, match="different recipes"):
        check_same_run(1, f"{rank()}")
    with pytest.raises(NlftError, match=r"finished stages in --out: \[0, 1\]"):
        check_same_run(rank(), "x")
