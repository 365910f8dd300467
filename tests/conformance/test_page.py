"""The conformance page: it is whole, and a slice of it is found again; the slow test finds all of it again."""

from __future__ import annotations

import pytest
from page import FAIL, NOT_RUN, PAGE, cells, escaped, mark, page, run_cells, summary_of, told
from subject import CHECKS, FAMILIES, PATHWAYS, Outcome

ON_EVERY_PAIR = ("learn", "frozen", "reload")
"""Cheap checks that one trained model serves; the slow test runs the rest."""
ON_LLAMA = ("hope", "gated_lora")
"""Pathways on which every check is run at once: one with a state, one with a gate and tasks."""
FAST = ("llama", "gpt2", "mixtral", "qwen3_vl")
"""Families of four kinds: the plain one, one with biases and another map, one of experts, and one that sees."""
TESTED_ELSEWHERE = (
    *("fresh process", "names", "4-bit", "8-bit", "recall 4-bit", "nothing to train"),
    *("compile", "Trainer", "resume", "TRL", "TRL peft_config", "TRL 4-bit", "lm-eval"),
)
"""They are dear, and other fast tests have something of each."""


def rows_of(pathway: str) -> dict[str, list[str]]:
    """The cells of a pathway's table on the committed page, by check."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {pathway}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in text.strip().splitlines()]
    assert lines[0] == ["check", *FAMILIES]
    return {line[0]: line[1:] for line in lines[2:]}


def test_the_page_has_every_cell_and_no_failure() -> None:
    for pathway in PATHWAYS:
        found = rows_of(pathway)
        assert list(found) == list(CHECKS)
        for name, row in found.items():
            assert [one != NOT_RUN for one in row] == [family in CHECKS[name].families for family in FAMILIES]
            assert FAIL not in row, (pathway, name)
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"* **{check.name}**: {check.words}\n" in text for check in CHECKS.values())


def check_again(wanted: list[tuple[str, str, str]]) -> None:
    """Runs cells and compares them with the page."""
    found = run_cells(wanted)
    text = PAGE.read_text(encoding="utf-8")
    assert not {cell: one.sentence for cell, one in found.items() if one.kind == "fail"}
    for (pathway, family, name), one in found.items():
        said = rows_of(pathway)[name][list(FAMILIES).index(family)]
        assert said.isdigit() == (one.kind == "refuse"), (pathway, family, name)
        if one.kind == "refuse":
            assert f"\n{said}. {escaped(told(one))}\n" in text


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family in FAST else pytest.mark.slow) for family in FAMILIES]
)
def test_every_pathway_on(family: str) -> None:
    check_again([(pathway, family, name) for pathway in PATHWAYS for name in ON_EVERY_PAIR])


@pytest.mark.parametrize("pathway", [ON_LLAMA[0], pytest.param(ON_LLAMA[1], marks=pytest.mark.slow)])
def test_every_check_on_llama(pathway: str) -> None:
    left = [name for name in CHECKS if name not in (*TESTED_ELSEWHERE, *ON_EVERY_PAIR)]
    check_again([(pathway, "llama", name) for name in left])


@pytest.mark.slow
def test_the_whole_page() -> None:
    """Writes the page anew; what differs then stands in the working tree."""
    before, now = PAGE.read_text(encoding="utf-8"), page(run_cells(cells()))
    PAGE.write_text(now, encoding="utf-8")
    assert now.partition("\n## ")[2] == before.partition("\n## ")[2]
    assert FAIL not in now.replace(f"{FAIL} it fails", "")


def test_a_failure_is_seen() -> None:
    cell = ("cms", "llama", "identity")
    found = {
        cell: Outcome("fail", "Assertion <b>\nof *two* lines"),
        ("cms", "llama", "learn"): Outcome("refuse", "No."),
    }
    text = page(found)
    assert "## Failures\n\n* cms · llama · identity: Assertion &lt;b> of \\*two\\* lines\n" in text
    assert "1. No.\n" in text and summary_of(found, "cms", "llama") == f"0 + 1 1 {FAIL}"
    assert mark(found[cell], {}) == FAIL and mark(None, {}) == NOT_RUN
    assert [one.kind for one in run_cells([("cms", "nobody", "identity")]).values()] == ["fail"]
