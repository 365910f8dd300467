"""Several processes: the same numbers as one, one voice, and one writer. `test_launched.py` has more of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from launched import SLOTS, assert_same, primitives, together, train  # pyright: ignore

from nlft.cli import main
from nlft.distributed import buckets, dealt_out, join_processes, shares, sum_gradients, total
from nlft.errors import NlftError
from nlft.launch import is_spokesman, remark


@pytest.mark.parametrize(
    ("weights", "parts", "expected"),
    [
        ([5, 5, 5, 5], 2, [[0, 2], [1, 3]]),
        ([1, 9, 2, 7], 2, [[0, 1], [2, 3]]),
        ([3], 2, [[0], []]),
        ([], 3, [[], [], []]),
        ([0, 0, 0], 2, [[0, 2], [1]]),
        ([4, 1, 1, 1, 1], 1, [[0, 1, 2, 3, 4]]),
    ],
)
def test_shares_are_even_and_whole(weights: list[int], parts: int, expected: list[list[int]]) -> None:
    assert shares(weights, parts) == expected


def test_buckets_keep_the_order() -> None:
    tensors = [torch.zeros(n) for n in (3, 4, 9, 1, 1)]
    assert [[len(one) for one in bucket] for bucket in buckets(tensors, 7)] == [[3, 4], [9], [1, 1]]


def test_alone_nothing_happens() -> None:
    one = torch.nn.Parameter(torch.ones(2))
    sum_gradients([one])
    assert one.grad is None and float(total(torch.tensor(3.0))) == 3.0
    assert dealt_out(str, [2, 1], [1, 1]) == ["2", "1"]
    assert is_spokesman() and remark() == []


def test_primitives_in_two_processes(tmp_path: Path) -> None:
    for ended in together(primitives, folder=tmp_path):
        assert ended.code == 0, ended.err


def test_two_processes_train_what_one_does(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """Calibration bit for bit, the rest to rounding; 3 rows a step, so the shares are uneven."""
    whole = recipe(methods={"slots": SLOTS}, train={"steps": 3, "batch_size": 3})
    small = whole.model_copy(update={"tasks": whole.tasks[:1]})
    first, second = together(train, small, tmp_path / "two", folder=tmp_path)
    assert first.code == second.code == 0, first.err + second.err
    assert "people learned in" in first.out and not second.out, "only the first process prints"
    train(small, tmp_path / "one")
    assert_same(tmp_path / "one", tmp_path / "two")


def test_other_verbs_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words, hint in ((["compare", "x.yaml"], "--jobs N"), (["report", str(tmp_path)], "`unset WORLD_SIZE`")):
        with pytest.raises(SystemExit) as end:
            main(words)
        said = capsys.readouterr().err
        assert end.value.code == 2 and f"`nlft {words[0]}` is not for a launcher" in said and hint in said
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        main(["compare", "x.yaml"])
    assert end.value.code == 2 and capsys.readouterr().err == ""


def test_a_number_that_is_none_is_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("WORLD_SIZE: 'two' in the environment is not a number") == 1


def test_one_gpu_for_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NlftError, match="cuda:0' is one GPU, and the launcher has started 2 processes"):
        join_processes(torch.device("cuda:0"))


def test_a_launcher_that_started_one_process_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "cpu.yaml" in remark()[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert remark() == []
