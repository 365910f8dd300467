"""Numbers as they are written for people."""

from __future__ import annotations

import pytest

from nlft.measure.unit import count, show, show_change, show_level, show_loss, size
from nlft.report.rows import seconds, setting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (show(0.976, "fraction"), "97.6 %"),
        (show(-0.0001, "fraction"), "0.0 %"),
        (show(1.38649, "nats/token"), "1.386 nats/token"),
        (show(None, "fraction"), "–"),
        (show(float("nan"), "rouge"), "–"),
        (show_change(-0.024, "fraction"), "−2.4 points"),
        (show_change(0.0004, "fraction"), "0.0 points"),
        (show_change(0.0081, "nats/token", False), "+0.008"),
        (show_change(0.0, "nats/token"), "0.000 nats/token"),
        (show_loss(-0.5, "bits/byte"), "−0.500 bits/byte"),
        (show_level(0.5), "50 %"),
        (show_level(0.09541), "9.5 %"),
        (show_level(0.7000000001), "70 %"),
        (count(950), "950"),
        (count(12_345), "12.3 k"),
        (count(1_460_000), "1.46 M"),
        (size(0), "0 B"),
        (size(5 << 20), "5.00 MiB"),
        (seconds(8.44), "8.4 s"),
        (seconds(95), "95 s"),
        (seconds(754), "13 min"),
        (seconds(11_160), "3.1 h"),
        (seconds(None), "–"),
    ],
)
def test_numbers_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_a_method_is_named_with_what_it_was_swept_over() -> None:
    once = {"method": "lora", "lr": 1e-3, "steps": 200}
    none = {"method": "few_shot", "lr": 0.0, "steps": 0}
    summary = {"methods": [once, none]}
    assert [setting(entry, summary) for entry in (once, none)] == ["lora lr 0.001", "few_shot"]
    summary["methods"].append({**once, "steps": 400})
    assert setting(once, summary, ", ") == "lora, lr 0.001, 200 steps"
