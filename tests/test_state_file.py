"""Addresses of tables: everything that decides their bits, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nlft import state_file
from nlft.state_file import Shape, address_of, write_states


def test_an_address_names_all_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [
        address_of(decides, rows)
        for decides in (("base", 1, "float32"), ("other", 1, "float32"), ("base", 2, "float32"), ("base", 1, "float64"))
        for rows in ([(1, 2), (3,)], [(1,), (2, 3)], [(1, 2, 3)], [(3,), (1, 2)], [])
    ]
    assert len(set(every)) == len(every)
    own = address_of(("base", 1), [(1, 2)])
    assert own == address_of(("base", 1), [[1, 2]])
    monkeypatch.setattr(state_file, "versions", lambda: ("another torch",))
    assert own != address_of(("base", 1), [(1, 2)])


def test_a_file_is_safetensors(tmp_path: Path) -> None:
    table = torch.randn(5, 3)
    with (tmp_path / "file").open("wb") as file:
        write_states(file, Shape(5, 3, torch.float32), table.split(2))
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert set(file.keys()) == {"states", "sha256"} and torch.equal(file.get_tensor("states"), table)
