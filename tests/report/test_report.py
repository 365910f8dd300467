"""Reports of planted results: the numbers are there, text is escaped, pictures and tables agree."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import itertools
import json
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nlft.report import table, write_report
from nlft.report.ledger import integrity_lines
from nlft.report.matrices import draw_matrix
from nlft.report.retention import change_since, known
from nlft.report.rows import label, matched_grid, result_grid

Planted = Callable[..., Path]
COLUMNS = [
    ("people", "task", "test", "exact_match"),
    ("ships", "task", "test", "exact_match"),
    ("people", "task", "seen", "exact_match"),
    ("facts", "probe", "test", "accuracy"),
    ("text", "probe", "test", "nll"),
]
MATRIX = [[0.0, 0.2, 0.1, 0.9, 1.5], [0.8, 0.3, 0.9, 0.8, 1.6], [0.6, 0.7, 0.5, 0.75, 1.75]]
EVIL = "<script>alert(1)</script> | `x` $1 $2"


def runs(*more: dict[str, Any]) -> list[dict[str, Any]]:
    fields = {"trainable_params": 1_460_000, "stored_bytes": 5 << 20, "train_s": 84.0, "base_unchanged": True}
    other = [[value for value in row] for row in MATRIX]
    other[2][3] = 0.5
    return [
        {"method": "lora", "lr": 1e-3, "matrix": MATRIX, "off_equals_base": True, **fields},
        {"method": "memory", "kind": "sparse_memory", "lr": 0.3, "matrix": other, "off_equals_base": True, **fields},
        *more,
    ]


class Checker(HTMLParser):
    """Collects tags, attributes that load or run something, and unclosed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_everything_is_written_and_agrees(planted: Planted) -> None:
    folder = planted(runs(), COLUMNS)
    summary = write_report(folder)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert not list(folder.rglob("*.partial"))
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for words in (
        summary["paragraph"] or summary["outcome"],
        "75.0 %",
        "65.0 %",
        "75.0 % (−15.0)",
        "1.750 (−0.250)",
        "1.46 M",
        "5.00 MiB",
    ):
        assert words in page and words.replace("_", r"\_") in text, words
    assert "Base weights unchanged (verified by hash) in all 2 runs with an adapter." in page
    assert "no forgetting" not in (page + text).lower()


def test_the_page_needs_no_network_and_runs_only_its_own_script(planted: Planted) -> None:
    folder = planted(runs(), COLUMNS)
    write_report(folder)
    page = (folder / "report.html").read_text()
    checker = check(page)
    assert checker.tags.count("script") == 1 and "<script>" in page and checker.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in checker.links)
    assert "http:" not in page and "https:" not in page and "@import" not in page and "url(" not in page
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0])
    assert policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert " style=" not in page and not re.search(r"\son[a-z]+=", page.split("<script>")[0])
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert checker.tags.count("table") == page.count('<div class="scroll"') and page.count("<img") == 2


def test_text_from_outside_is_escaped(planted: Planted) -> None:
    evil = {"run_id": EVIL, "method": EVIL, "kind": "lora", "matrix": MATRIX, "base_model": EVIL, "base_revision": EVIL}
    failed = {"run_id": "x", "method": EVIL, "kind": "lora", "lr": 7.0, "status": f"failed: {EVIL}", "device": EVIL}
    folder = planted([evil, failed], COLUMNS)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "# ```\n# </pre><script>x</script>\n")
    summary = write_report(folder)
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert check(page).tags.count("script") == 1
    assert page.count("&lt;script&gt;") >= 8 and page.count("<script") == 1 and "alert(1)</script>" not in page
    before, recipe = text.split("### All settings")
    assert "<script" not in before and recipe.strip().startswith("````yaml\n") and recipe.strip().endswith("\n````")
    bars = [len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0 for line in before.splitlines()]
    assert (
        all(a == b or 0 in (a, b) for a, b in itertools.pairwise(bars)) and len(result_grid(summary).head) + 1 in bars
    )
    assert (folder / "figures" / "matrix-1-script-alert-1-script-x-1-2.png").is_file()
    Console(width=100, quiet=True).print(table(summary))


def test_no_cell_of_a_csv_is_a_formula(planted: Planted) -> None:
    folder = planted(runs({"method": "=HYPERLINK(1)", "matrix": MATRIX}), COLUMNS)
    write_report(folder)
    texts = [path.read_text(encoding="utf-8") for path in (folder / "figures").glob("*.csv")]
    cells = [cell for text in texts for row in csv.reader(text.splitlines()) for cell in row]
    assert "'=HYPERLINK(1)" in cells and not [cell for cell in cells if cell.startswith(("=", "+", "@"))]


def test_csv_is_the_matrix(planted: Planted) -> None:
    folder = planted(runs(), COLUMNS)
    write_report(folder)
    with (folder / "figures" / "matrix-lora.csv").open() as file:
        head, *rows = list(csv.reader(file))
    assert head == ["after", "people", "ships", "people/seen", "facts", "text"]
    assert [row[0] for row in rows] == ["base", "people", "ships"]
    assert [[float(value) for value in row[1:]] for row in rows] == [pytest.approx(row) for row in MATRIX]
    with (folder / "figures" / "retention.csv").open() as file:
        found = {(row["panel"], row["method"], row["stage"]): float(row["value"]) for row in csv.DictReader(file)}
    assert found["probes", "memory", "2"] == pytest.approx(0.5) and found["probes", "lora", "0"] == pytest.approx(0.9)
    assert found["earlier tasks", "lora", "2"] == pytest.approx(-0.2) and ("earlier tasks", "lora", "0") not in found
    with (folder / "figures" / "learning-forgetting.csv").open() as file:
        points = [(row["moment"], row["method"], float(row["forgetting"])) for row in csv.DictReader(file)]
    assert ("end", "memory", pytest.approx(0.4)) in points and len(points) == 4
    for png in (folder / "figures").glob("*.png"):
        width, height = struct.unpack(">II", png.read_bytes()[16:24])
        assert 400 < width < 2200 and 150 < height < 1200, png.name


def test_a_missing_cell_is_empty_not_zero(planted: Planted, tmp_path: Path) -> None:
    summary = write_report(planted(runs(), COLUMNS))
    entry = summary["methods"][0]
    entry["matrix"][1][3] = None
    picture = draw_matrix(summary, entry, tmp_path)
    with picture.csv.open() as file:
        stage, *cells = list(csv.reader(file))[2]
    assert (stage, cells[3]) == ("people", "") and float(cells[4]) == pytest.approx(1.6)
    assert picture.png.stat().st_size > 5000


def test_a_later_report_leaves_no_old_picture(planted: Planted) -> None:
    folder = planted(runs(), COLUMNS)
    write_report(folder)
    (folder / "figures" / "matrix-gone.png").write_bytes(b"old")
    write_report(folder)
    assert sorted(path.name for path in (folder / "figures").glob("*.png")) == [
        "learning-forgetting.png",
        "matrix-lora.png",
        "matrix-memory.png",
        "probes.png",
        "retention.png",
    ]


def test_a_failed_run_is_shown(planted: Planted) -> None:
    failed = {"run_id": "bad", "method": "lora", "kind": "lora", "lr": 9.0, "status": "failed: loss is nan"}
    folder = planted(runs(failed), COLUMNS)
    summary = write_report(folder)
    grid = result_grid(summary)
    assert [row[0] for row in grid.body] == ["base", "lora lr 0.001 •", "lora lr 9\nfailed", "memory lr 0.3"]
    assert set(grid.body[2][1:]) == {"–"}
    assert "failed: loss is nan" in (folder / "report.html").read_text()
    assert "failed: loss is nan" in (folder / "report.md").read_text()


def test_only_a_failed_run(planted: Planted) -> None:
    folder = planted([{"method": "full", "status": "failed: loss is nan", "order": ["people"]}], COLUMNS)
    summary = write_report(folder)
    check((folder / "report.html").read_text())
    assert not list((folder / "figures").iterdir())
    assert "The run did not finish (failed: loss is nan)." in (folder / "report.md").read_text()
    Console(width=100, quiet=True).print(table(summary))


def test_one_stage_without_probes(planted: Planted) -> None:
    folder = planted([{"method": "full", "matrix": [[0.0], [0.8]]}], COLUMNS[:1])
    summary = write_report(folder)
    grid = result_grid(summary)
    assert grid.head == ["method", "learned, when trained", "learned, at the end", "trainable", "stored", "training"]
    assert grid.body[1][:3] == ["full lr 0.1", "80.0 %", "80.0 %"]
    assert [path.name for path in (folder / "figures").glob("*.png")] == ["matrix-full.png"]
    assert matched_grid(summary, "end") is None
    assert integrity_lines(summary)[0] == "full: trains the base itself, so its weights change."


def test_the_terminal_table_fits_100_columns(planted: Planted) -> None:
    columns = [*COLUMNS[:-1], ("arithmetic", "probe", "test", "accuracy"), COLUMNS[-1]]
    wider = [[*row[:-1], 0.7, row[-1]] for row in MATRIX]
    sweep = [
        {
            "run_id": f"{name}{lr}",
            "method": name,
            "kind": name,
            "lr": lr,
            "matrix": wider,
            "trainable_params": 1234567,
            "train_s": 84.0,
        }
        for name in ("full", "lora", "sparse_memory")
        for lr in (5e-5, 1e-3)
    ]
    summary = write_report(planted(sweep, columns))
    console = Console(width=200, record=True, quiet=True)
    assert console.measure(table(summary)).maximum <= 100
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(summary))
    printed = console.export_text()
    line = next(line for line in printed.splitlines() if line.startswith(" sparse_memory"))
    assert line.split() == [
        "sparse_memory",
        "5e-05",
        "•",
        "75.0",
        "65.0",
        "−15.0",
        "0.0",
        "−0.250",
        "−20.0",
        "1.23",
        "M",
        "84",
        "s",
    ]
    assert max(map(len, printed.splitlines())) <= 100


def test_captions_name_the_tasks_that_are_meant(planted: Planted) -> None:
    mixed = [*COLUMNS[:1], ("ships", "task", "test", "nll"), *COLUMNS[2:]]
    summary = write_report(planted(runs(), mixed))
    words = "Learned, earlier tasks: the task people only (the others have another unit)"
    grid = result_grid(summary)
    assert grid.caption.startswith(f"{words}, wordings never trained on.") and grid.body[1][2] == "60.0 %"
    assert str(table(summary).caption).endswith(f" {words}.")


def test_broken_integrity_is_loud(planted: Planted) -> None:
    bad = {"run_id": "bad", "method": "memory", "kind": "sparse_memory", "matrix": MATRIX, "base_unchanged": False}
    folder = planted([{**bad, "off_equals_base": False}], COLUMNS)
    lines = integrity_lines(write_report(folder))
    assert lines[:2] == [
        "BASE WEIGHTS CHANGED in bad: this is a defect.",
        "With the adapter off, the outputs DIFFER from the base's in bad.",
    ]


def test_earlier_tasks_follow_their_own_stage(planted: Planted) -> None:
    summary = write_report(planted([{"method": "lora", "matrix": MATRIX}], COLUMNS))
    assert change_since(summary, summary["runs"][0]) == [0.0, pytest.approx(-0.2)]
    assert known(summary, summary["runs"][0]) == [pytest.approx(0.8), pytest.approx(0.65)]
    assert label(summary["methods"][0], summary) == "lora lr 0.1"
