"""A comparison that is killed and begun again, beside one that ran through: equal, cell by cell.

    python eval/kill_and_restart.py RECIPE [KEY=VALUE]... [--kills 3] [--jobs 1] [--out runs/kill-and-restart]

Runs `nlft compare` once to its end. Then again into another folder, killed (SIGKILL) at even parts of the time that
the first one took, and begun again by the same command until it ends by itself. For every cell it prints whether
`items.parquet` holds the same scores bit for bit, and which columns of `runs.parquet` differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nlft.measure.items import ITEMS_SCHEMA, read_run_items, read_runs

TIMES = {"train_s", "eval_s", "wall_s", "created_at", "latency_ratio", "peak_rss", "peak_bytes"}
"""Columns of a run that measure the machine."""


def main() -> None:
    """Prints one line a cell, and exits with 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/kill-and-restart"))
    words = parser.parse_args()
    command = [sys.executable, "-m", "nlft", "compare", words.recipe, *words.overrides, "--jobs", str(words.jobs)]
    whole, cut = words.out / "whole", words.out / "cut"
    begun = time.monotonic()
    subprocess.run([*command, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begun
    killed = 0
    while True:
        process = subprocess.Popen([*command, "--out", str(cut)], stdout=subprocess.DEVNULL)
        try:
            code = process.wait(seconds / (words.kills + 1) if killed < words.kills else None)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    print(f"Uninterrupted: {seconds:.0f} s. The other was killed {killed} times, and ended with code {code}.")
    sys.exit(print_comparison(whole, cut))


def print_comparison(whole: Path, cut: Path) -> int:
    """Prints the two result folders beside each other; 1 if a cell differs."""
    table = Table("cell", "scores", "equal, bit for bit", "columns of runs.parquet that differ, times apart")
    bad = False
    items, others = read_run_items(whole / "items.parquet"), read_run_items(cut / "items.parquet")
    rows, other_rows = ({row["run_id"]: row for row in read_runs(out / "runs.parquet")} for out in (whole, cut))
    for name in dict.fromkeys((*rows, *other_rows)):
        row, other = rows.get(name, {}), other_rows.get(name, {})
        differ = [key for key in {**row, **other} if key not in TIMES and row.get(key) != other.get(key)]
        # repr tells the bits of a float, NaN too.
        same = repr(items.get(name)) == repr(others.get(name))
        bad |= not same or bool(differ)
        table.add_row(name, str(len(items.get(name, []))), "yes" if same else "NO", ", ".join(differ) or "none")
    Console(width=150).print(table)
    print(f"{len(ITEMS_SCHEMA.names)} columns a score; {'some cells differ' if bad else 'all cells are equal'}.")
    return int(bad)


if __name__ == "__main__":
    main()
