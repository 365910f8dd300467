"""Peak memory since a moment."""

from __future__ import annotations

import pytest
import torch

from nlft.peak import PROCESS, read_peak, reset_peak

MEBIBYTE = 2**20


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="this kernel keeps no such counter")
def test_the_peak_is_of_the_time_since_the_reset() -> None:
    device = torch.device("cpu")
    reset_peak(device)
    before = read_peak(device).process
    block = torch.ones(64 * MEBIBYTE, dtype=torch.uint8)
    held = read_peak(device).process
    del block
    reset_peak(device)
    after = read_peak(device).process
    assert before is not None and held is not None and after is not None
    assert held - before > 48 * MEBIBYTE
    assert held - after > 48 * MEBIBYTE


def test_a_machine_that_does_not_tell_is_no_zero(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("nlft.peak.PROCESS", tmp_path / "proc")
    reset_peak(torch.device("cpu"))
    assert read_peak(torch.device("cpu")).process is None
