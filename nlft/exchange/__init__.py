"""Results in the formats of others: PEFT's method comparison and Every Eval Ever; one JSON file a run.

What was not measured is null, or left out where a schema wants a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from nlft.checkpoint import make_folder, write_text
from nlft.errors import NlftError
from nlft.exchange.entry import Entry, Tree
from nlft.exchange.every_eval_ever import every_eval_ever
from nlft.exchange.peft import peft_result
from nlft.measure.items import read_run_items, read_runs
from nlft.measure.summary import plain, summary_of
from nlft.remote import CONFIG

__all__ = ["FORMATS", "export", "known_format"]

FORMATS: dict[str, Callable[[Entry], Tree | None]] = {"peft": peft_result, "every-eval-ever": every_eval_ever}
"""What turns a run into somebody's JSON; None where a run has nothing to say in it."""


def export(folder: Path, name: str) -> list[Path]:
    """Writes every run of a result folder as a JSON file into `export/<name>/` of the folder.

    Args:
        folder: result folder of `nlft train` or `nlft compare`.
        name: "peft" or "every-eval-ever".

    Returns:
        The files. Every Eval Ever has none for a run that failed: it has no scores.

    Raises:
        NlftError: the folder has no results, or nobody's format has this name.
    """
    known_format(name)
    summary = summary_of(folder)
    rows = {row["run_id"]: row for row in read_runs(folder / "runs.parquet")}
    items = read_run_items(folder / "items.parquet")
    recipe = yaml.safe_load(summary["recipe"]) or {}
    out, files = folder / "export" / name, []
    for run in summary["runs"]:
        row = rows[run["run_id"]]
        entry = Entry(summary, run, row, recipe, _adapter_config(folder, row["run_id"]), items.get(run["run_id"], []))
        found = FORMATS[name](entry)
        if found is not None:
            make_folder(out)
            files.append(out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', run['run_id'])}.json")
            write_text(files[-1], json.dumps(plain(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return files


def known_format(name: str) -> None:
    """Refuses a format that is not here.

    Raises:
        NlftError: nobody's format has this name.
    """
    if name not in FORMATS:
        raise NlftError(f"There is no export {name!r}.", f"There are {', '.join(FORMATS)}.")


def _adapter_config(folder: Path, run_id: str) -> dict[str, Any] | None:
    for place in (folder / "adapter", folder / "cells" / run_id / "adapter"):
        if (place / CONFIG).is_file():
            return json.loads((place / CONFIG).read_text(encoding="utf-8"))
    return None
