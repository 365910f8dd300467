"""The HTML report in a real browser: no errors, no overflow, sorting, hover values, with and without its script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft.report import write_report
from nlft.report.figures import draw_figures
from nlft.report.html import write_html

COLUMNS = [
    ("people", "task", "test", "exact_match"),
    ("ships", "task", "test", "exact_match"),
    ("facts", "probe", "test", "accuracy"),
    ("text", "probe", "test", "nll"),
]
MATRIX = [[0.0, 0.2, 0.9, 1.5], [0.8, 0.3, 0.8, 1.6], [0.6, 0.7, 0.75, 1.75]]
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>\" ' {{ 7*7 }} ]]> --> very-long-" + "x" * 60
HEADS = "[...document.querySelectorAll('table')].find(t => t.querySelector('thead').textContent.includes('trainable'))"


MADE: list[Path] = []


@pytest.fixture
def page(planted: Callable[..., Path], enrich: Callable[[Any], dict[str, Any]]) -> Path:
    """A report with everything in it, of two methods at several rates and one with a hostile name; made once."""
    if MADE:
        return MADE[0]
    rates = [(1e-2, 900), (2e-3, 20_000), (5e-1, 1_460_000), (1.0, None)]
    every = [
        {"method": "lora", "lr": lr, "matrix": MATRIX, "trainable_params": params, "train_s": 84.0}
        for lr, params in rates
    ]
    every.append({"method": "memory", "kind": "sparse_memory", "lr": 0.3, "matrix": MATRIX, "trainable_params": 5_000})
    every.append({"run_id": EVIL, "method": EVIL, "kind": "full", "matrix": MATRIX})
    every = [{"run_id": f"run{i}", "base_model": EVIL, **run} for i, run in enumerate(every)]
    folder = planted(every, COLUMNS)
    summary = enrich(write_report(folder))
    path = folder / "full.html"
    path.write_text(write_html(summary, draw_figures(summary, folder / "figures")), encoding="utf-8")
    MADE.append(path)
    return path


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_has_no_errors(browser: Any, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark)
    assert browser.errors == []
    assert browser.run("document.documentElement.scrollWidth") == browser.run("innerWidth") == width
    # Whatever is wider than the page lies in a box that scrolls by itself.
    assert browser.run(
        """[...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > innerWidth + 1
           && !one.closest('.scroll, .wide, pre')).map(one => one.outerHTML.slice(0, 80))"""
    ) == []  # fmt: skip
    assert browser.run("[...document.images].every(one => one.naturalWidth > 300)") is True
    ink, paper = browser.run("['color', 'backgroundColor'].map(key => getComputedStyle(document.body)[key])")
    light = ["rgb(28, 30, 33)", "rgb(255, 255, 255)"]
    assert ([ink, paper] == light) is not dark
    assert contrast(ink, paper) > 10


def contrast(one: str, other: str) -> float:
    """The contrast of two colours `rgb(r, g, b)` (WCAG 2, relative luminance)."""
    levels = []
    for colour in (one, other):
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        levels.append(sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(levels) + 0.05) / (min(levels) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_readable(browser: Any, page: Path, dark: bool) -> None:
    browser.open(page, 1280, dark)
    marks = browser.run(
        "[...document.querySelectorAll('.charts g:not(.told) .mark')].map(one => getComputedStyle(one).fill)"
    )
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert len(marks) > 4 and min(contrast(mark, paper) for mark in marks) > 3
    notes = browser.run(
        "[...document.querySelectorAll('.note, small, .facts')].map(one => getComputedStyle(one).color)"
    )
    assert notes and min(contrast(note, paper) for note in notes) > 4.5


def test_a_click_sorts_numbers_as_numbers_with_nothing_last(browser: Any, page: Path) -> None:
    browser.open(page)
    column = f"[...{HEADS}.tHead.rows[0].cells].findIndex(c => c.textContent.trim() === 'trainable')"
    cells = f"[...{HEADS}.tBodies[0].rows].map(row => row.cells[{column}].textContent)"
    button = f"{HEADS}.tHead.rows[0].cells[{column}].querySelector('button')"
    assert browser.run(cells) != sorted(browser.run(cells))
    browser.run(f"{button}.click()")
    nothing = ["–"] * 3  # the base, the last rate and the hostile method
    assert browser.run(cells) == ["900", "5.00 k", "20.0 k", "1.46 M", *nothing]
    assert browser.run(f"{button}.closest('th').getAttribute('aria-sort')") == "ascending"
    browser.run(f"{button}.focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
        )
    assert browser.run(cells) == ["1.46 M", "20.0 k", "5.00 k", "900", *nothing]
    assert browser.run(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"
    browser.run(f"{HEADS}.tHead.rows[0].cells[0].querySelector('button').click()")
    names = browser.run(f"[...{HEADS}.tBodies[0].rows].map(row => row.cells[0].firstChild.textContent)")
    assert [name.split()[2] for name in names if name.startswith("lora")] == ["0.002", "0.01", "0.5", "1"]


def test_points_say_their_values_and_the_legend_hides_methods(browser: Any, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.querySelectorAll('.charts svg').length") == 2
    browser.run(
        "document.querySelector('.charts .mark').dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    )
    said = browser.run("document.querySelector('output').textContent")
    assert said.startswith("lora, lr 0.002: learned 0.612 (95 % 0.512 to 0.712), lost 15.0 points (95 % 5.0 to 45.0)")
    shown = "[...document.querySelectorAll('.charts g')].map(g => [g.dataset.series, getComputedStyle(g).display])"
    assert {display for _, display in browser.run(shown)} == {"inline"}
    browser.run("document.querySelector('.legend li[data-series=\"1\"] button').click()")
    assert {series for series, display in browser.run(shown) if display == "none"} == {"1"}
    assert (
        browser.run("document.querySelector('.legend li[data-series=\"1\"] button').getAttribute('aria-pressed')")
        == "false"
    )
    browser.run("[...document.querySelectorAll('.legend button')].find(one => one.textContent === 'none').click()")
    assert {display for _, display in browser.run(shown)} == {"none"}
    browser.run("[...document.querySelectorAll('.legend button')].find(one => one.textContent === 'all').click()")
    assert {display for _, display in browser.run(shown)} == {"inline"}


def test_hostile_text_is_text(browser: Any, page: Path) -> None:
    browser.open(page)
    assert browser.errors == []
    assert (
        browser.run("document.scripts.length") == 1 and browser.run("document.querySelectorAll('[src=x]').length") == 0
    )
    assert EVIL in browser.run("document.querySelector('.facts').textContent")
    assert EVIL in browser.run("[...document.querySelectorAll('.charts title')].map(one => one.textContent).join()")
    # Even if something did get in, the policy would not let it run.
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert browser.run("typeof window.ran") == "undefined" and browser.errors


def test_without_its_script_everything_is_there(browser: Any, page: Path) -> None:
    browser.open(page, script=False)
    try:
        tree = browser.call("DOMSnapshot.captureSnapshot", computedStyles=["display"])
        strings = " ".join(tree["strings"])
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "BUTTON" not in tree["strings"] and "TABLE" in tree["strings"]
    assert "lora, lr 0.002: learned 0.612 (95 % 0.512 to 0.712)" in strings and "overwriting" in strings
