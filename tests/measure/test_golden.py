"""The table of `eval/golden.py`: what other tools' definitions make of the same matrices, and ours."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

GOLDEN = runpy.run_path(str(Path(__file__).parents[2] / "eval" / "golden.py"))
# Worked out by hand; A and B have been published with these numbers.
EXPECTED = {
    ("nlft", "F"): (0.025, 0.300, 0.075),
    ("Chaudhry et al.", "t"): (0.025, 0.300, 0.075),
    ("SAPT", "b"): (0.025, 0.300, 0.225),
    ("Mammoth", "b"): (0.050, 1.350, 0.225),
    ("Avalanche", "f"): (0.000, 0.300, 0.075),
    ("nlft", "B"): (0.000, -0.300, -0.075),
    ("Lopez-Paz, Mammoth", "t"): (0.000, -0.300, -0.075),
    ("SAPT", "t"): (0.000, -0.200, -0.050),
}


def test_every_definition_has_its_numbers() -> None:
    found = {
        (tool, words[0]): tuple(own(R) for R in GOLDEN["MATRICES"].values())
        for tool, words, own in GOLDEN["DEFINITIONS"]
    }
    assert found == {key: pytest.approx(values) for key, values in EXPECTED.items()}


def test_the_table_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    GOLDEN["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[0] == "| tool | definition | A | B | C |"
    assert "| Mammoth | best of rows 1 … T, less the last; zero padding | 0.050 | 1.350 | 0.225 |" in lines
    assert not any("-0.000" in line for line in lines)
