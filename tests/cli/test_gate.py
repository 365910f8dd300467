"""`nlft gate`: 0 where everything holds, 3 where a limit is broken, 2 where it cannot be said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft.cli import main

Planted = Callable[..., Path]
COLUMNS = [
    ("a", "task", "test", "exact_match"),
    ("g", "probe", "test", "accuracy"),
    ("t", "probe", "test", "nll"),
]


def run(method: str, learned: float, kept: float, loss: float, **fields: Any) -> dict[str, Any]:
    shared = {"run_id": f"{method}{fields}", "method": method, "matrix": [[0.0, 0.9, 1.5], [learned, kept, loss]]}
    return shared | fields


@pytest.fixture
def gate(planted: Planted, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`gate(runs, *options, columns=COLUMNS)` plants results, 100 rows a column, and gates them."""

    def call(runs: list[dict[str, Any]], *options: str, columns: Any = COLUMNS) -> tuple[int, str]:
        folder = planted(runs, columns, 100)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        with pytest.raises(SystemExit) as stop:
            main(["gate", str(folder), *options])
        captured = capsys.readouterr()
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "a gate writes nothing"
        return int(stop.value.code or 0), captured.out + captured.err

    return call


ONE = [run("lora", 0.8, 0.88, 1.53)]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--max-drop", "2%", "--max-nats", "0.04"], 0, "It holds (checks: 2; runs: 1)."),
        (["--max-drop", "1.9%", "--max-nats", "0.04"], 3, "lost on g: 2.0 points ["),
        (
            ["--max-drop", "1.9%", "--max-nats", "0.02"],
            3,
            "at most 0.020 nats/token allowed; 1 other check broken, too.",
        ),
        (["--max-drop", "-1%", "--probe", "g"], 2, "--max-drop: -1% is not between 0 and 1."),
        (["--max-drop", "2%", "--max-nats", "0.02"], 3, "lost on t: 0.030 nats/token [0.030, 0.030], at most 0.020"),
        (["--max-drop", "0.02", "--probe", "g"], 0, "It holds (checks: 1; runs: 1)."),
        (["--max-drop", "1%", "--probe", "g"], 3, "It does not hold"),
        (["--probe", "g"], 3, "at most 1.0 points allowed"),
        (["--max-nats", "0.04", "--probe", "t"], 0, "It holds"),
        (["--max-drop", "2%", "--probe", "g", "--min-learned", "80%"], 0, "It holds (checks: 2; runs: 1)."),
        (["--max-drop", "2%", "--probe", "g", "--min-learned", "81%"], 3, "learned 80.0 %, at least 81.0 % required"),
        (["--max-drop", "2%", "--probe", "g", "--confident"], 3, "BROKEN"),
        (["--max-drop", "9%", "--probe", "g", "--confident"], 0, "with 95 % confidence over items"),
        (["--max-drop", "2%"], 2, "The probe 't' is measured in nats/token, where --max-drop has no meaning."),
        (["--probe", "x"], 2, "There is no probe 'x'."),
        (["--method", "x", "--probe", "g"], 2, "There is no method 'x'."),
        (["--max-drop", "lots"], 2, "--max-drop: 'lots' is no share."),
        (["--max-nats", "-1"], 2, "--max-nats: -1.0 is no loss."),
        (["--max-nats", "nan"], 2, "--max-nats: nan is no loss."),
    ],
)
def test_one_run(gate: Callable[..., tuple[int, str]], options: list[str], code: int, said: str) -> None:
    found, text = gate(ONE, *options)
    assert said in text
    assert found == code


def test_the_interval_is_paired_over_items(gate: Callable[..., tuple[int, str]]) -> None:
    """Of 100 rows 2 are lost: a bootstrap over items cannot lose less than 0 nor much more than 5 points."""
    _, text = gate(ONE, "--probe", "g")
    low, high = text.split("2.0 points [")[1].split("]")[0].split(", ")
    assert float(low) in (0.0, -0.0) and 4.0 <= float(high) <= 6.0


SWEPT = [
    run("lora", 0.5, 0.9, 1.5, lr=1e-3),
    run("lora", 0.8, 0.7, 1.5, lr=1e-2),
    run("slots", 0.7, 0.9, 1.5, lr=0.1, steps=40, seed=0),
    run("slots", 0.7, 0.89, 1.5, lr=0.1, steps=40, seed=1),
    run("slots", 0.2, 0.1, 1.5, lr=0.1, steps=9),
]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--max-drop", "1%"], 3, "It does not hold: lora{'lr': 0.01} lost on g: 20.0 points"),
        (["--max-drop", "20%"], 0, "(checks: 3; runs: 3)"),
        (["--method", "slots"], 0, "(checks: 2; runs: 2)"),
        (
            ["--method", "slots", "--max-drop", "0.5%"],
            3,
            "slots{'lr': 0.1, 'steps': 40, 'seed': 1} lost on g: 1.0 points",
        ),
    ],
)
def test_a_comparison_is_judged_at_each_methods_best_rate(
    gate: Callable[..., tuple[int, str]], options: list[str], code: int, said: str
) -> None:
    found, text = gate(SWEPT, "--probe", "g", *options)
    assert said in text
    assert found == code


@pytest.mark.parametrize(
    ("runs", "columns", "said"),
    [
        ([run("lora", 0.8, 0.9, float("nan"))], COLUMNS, "Not measured, which is no pass: t of lora{}."),
        ([{"method": "lora", "matrix": [[0.0], [0.8]]}], COLUMNS[:1], "There are no probes"),
        (
            [{"method": "lora", "status": "failed: nan"}, run("x", 0.8, 0.9, 1.5)],
            COLUMNS,
            "No run of lora has finished",
        ),
        (
            [
                run("lora", 0.8, 0.9, 1.5, steps=50),
                {"run_id": "y", "method": "lora", "seed": 1, "status": "failed: nan"},
            ],
            COLUMNS,
            "Not measured, which is no pass: g of y, t of y.",
        ),
    ],
)
def test_what_was_not_measured_is_no_pass(
    gate: Callable[..., tuple[int, str]], runs: list[dict[str, Any]], columns: Any, said: str
) -> None:
    code, text = gate(runs, "--max-nats", "1", columns=columns)
    assert said in text
    assert code == 2


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["gate", str(tmp_path)])
    assert stop.value.code == 2
    assert "There is no runs.parquet" in capsys.readouterr().err
