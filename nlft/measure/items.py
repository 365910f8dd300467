"""Result tables on disk: `items.parquet` (one line a score) and `runs.parquet` (one line a run).

Everything that a report says is derived from these two. What was not measured is null, never 0. A file is
written beside its name and then put in its place, so a reader or a killed process never leaves half of one.
One process writes a folder at a time.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nlft.errors import DataError
from nlft.types import Item

ITEMS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("stage", pa.int32()),
        ("condition", pa.string()),
        ("column", pa.string()),
        ("role", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("item_id", pa.string()),
        ("cluster", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
        ("prediction", pa.string()),
    ]
)
"""Columns of `items.parquet`: the run, then the fields of `types.Item`."""

RUNS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("method", pa.string()),
        ("kind", pa.string()),
        ("lr", pa.float64()),
        ("seed", pa.int64()),
        ("order", pa.list_(pa.string())),
        ("base_model", pa.string()),
        ("base_revision", pa.string()),
        ("base_sha256", pa.string()),
        ("base_unchanged", pa.bool_()),
        ("off_equals_base", pa.bool_()),
        ("trainable_params", pa.int64()),
        ("stored_bytes", pa.int64()),
        ("train_tokens", pa.int64()),
        ("steps", pa.int64()),
        ("train_s", pa.float64()),
        ("eval_s", pa.float64()),
        ("wall_s", pa.float64()),
        ("peak_bytes", pa.int64()),
        ("device", pa.string()),
        ("dtype", pa.string()),
        ("versions", pa.string()),
        ("config", pa.string()),
        ("created_at", pa.string()),
        ("status", pa.string()),
        ("setting", pa.string()),
        ("told_task", pa.bool_()),
        ("cell", pa.string()),
        ("optimizer_bytes", pa.int64()),
        ("replay_bytes", pa.int64()),
        ("regulariser_bytes", pa.int64()),
        ("task_bytes", pa.list_(pa.int64())),
        ("peak_rss", pa.int64()),
        ("latency_ratio", pa.float64()),
        ("overlap", pa.string()),
        ("dissect", pa.string()),
        ("start", pa.string()),
        ("adapter_sha256", pa.string()),
    ]
)
"""Columns of `runs.parquet`. `versions` and `config` (the method's part of the recipe) are JSON; bytes and
seconds are as named; `status` is "ok" or "failed: " and the reason. `setting` is "sequence" (null stands for it), or
"single" or "multitask" for a run that is an upper bound. `told_task`: the method is told each row's task. `cell` is
the content address of the run; `dissect` is what `dissect.json` holds; `start` (JSON) is the adapter from which the
run went on, null where it began at the base; `adapter_sha256` is that of the `adapter/adapter_model.safetensors` that
was measured, null where the run has none. Columns from `setting` on are null in tables of
version 0.1."""
ADDED = RUNS_SCHEMA.names[RUNS_SCHEMA.get_field_index("setting") :]

FIELDS = tuple(field.name for field in fields(Item))


def write_items(path: Path, run_id: str, items: Sequence[Item]) -> None:
    """Writes the scores of one run; lines of other runs in the file stay, older lines of this run go."""
    values: dict[str, list[Any]] = {name: [getattr(item, name) for item in items] for name in FIELDS}
    values["value"] = [None if math.isnan(value) else value for value in values["value"]]
    _replace(path, pa.table({"run_id": [run_id] * len(items), **values}, schema=ITEMS_SCHEMA), [run_id])


def read_items(path: Path) -> list[Item]:
    """All scores of a file in the order of writing, of one run as of several.

    Raises:
        DataError: the file is missing or no table of items.
    """
    return [item for items in read_run_items(path).values() for item in items]


def read_run_items(path: Path) -> dict[str, list[Item]]:
    """Scores by run. A value that was not measured is NaN.

    Raises:
        DataError: the file is missing or no table of items.
    """
    table = _read(path, ITEMS_SCHEMA)
    columns = [table.column(name).to_pylist() for name in ("run_id", *FIELDS)]
    place = 1 + FIELDS.index("value")
    columns[place] = [math.nan if value is None else value for value in columns[place]]
    found: dict[str, list[Item]] = {}
    collecting = gc.isenabled()
    gc.disable()  # a million items without a cycle, which the collector would go through again and again
    try:
        for run_id, *values in zip(*columns, strict=True):
            found.setdefault(run_id, []).append(Item(*values))
    finally:
        if collecting:
            gc.enable()
    return found


def write_runs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes lines of runs; other runs in the file stay, an older line of the same run is replaced.

    A key that is absent is null.

    Raises:
        DataError: a key that the table does not have, or a row without `run_id`.
    """
    _replace(path, _runs_table(rows), [row["run_id"] for row in rows])


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Lines of runs as dicts, in the order of writing; null is None.

    Raises:
        DataError: the file is missing or no table of runs.
    """
    return _read(path, RUNS_SCHEMA).to_pylist()


def join_results(
    out: Path,
    folders: Iterable[Path],
    failed: Sequence[Mapping[str, Any]] = (),
    rename: Callable[[Path, str, str], str] = lambda folder, column, name: name,
) -> None:
    """Writes the items and runs of several result folders, and the rows of failed runs, as one into `out`.

    What `out` held before is replaced. `rename` is given a folder, "run_id" or "method", and a name of that folder, and
    gives the name that it has in `out`.

    Raises:
        DataError: a folder without results, or two with the same `run_id`.
    """
    folders = list(folders)
    items, runs = [], []
    for folder in folders:
        items.append(_renamed(_read(folder / "items.parquet", ITEMS_SCHEMA), ("run_id",), partial(rename, folder)))
        runs.append(
            _renamed(_read(folder / "runs.parquet", RUNS_SCHEMA), ("run_id", "method"), partial(rename, folder))
        )
    joined = pa.concat_tables([*runs, _runs_table(failed)])
    names = joined.column("run_id").to_pylist()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"Two runs are called {twice[0]!r}.", "Join folders of different runs.")
    _write(out / "items.parquet", pa.concat_tables([ITEMS_SCHEMA.empty_table(), *items]))
    _write(out / "runs.parquet", joined)


def _renamed(table: pa.Table, columns: Sequence[str], rename: Callable[[str, str], str]) -> pa.Table:
    for column in columns:
        names = pa.array([rename(column, name) for name in table.column(column).to_pylist()], pa.string())
        table = table.set_column(table.column_names.index(column), column, names)
    return table


def _runs_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    for row in rows:
        unknown = sorted(set(row) - set(RUNS_SCHEMA.names))
        if unknown:
            raise DataError(f"A run has no column {unknown[0]!r}.", f"It has {', '.join(RUNS_SCHEMA.names)}.")
        if not row.get("run_id"):
            raise DataError("A run has no `run_id`.", "Name it; its lines are found again by this name.")
    return pa.Table.from_pylist([dict(row) for row in rows], schema=RUNS_SCHEMA)


def _replace(path: Path, table: pa.Table, run_ids: Sequence[str]) -> None:
    if path.exists():
        old = _read(path, table.schema)
        kept = [run_id not in set(run_ids) for run_id in old.column("run_id").to_pylist()]
        table = pa.concat_tables([old.filter(pa.array(kept, pa.bool_())), table])
    _write(path, table)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    pq.write_table(table, unfinished, compression="zstd")
    os.replace(unfinished, path)


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.is_file():
        raise DataError(f"There is no {path.name} in {path.parent}.", "Give the folder of a run or a comparison.")
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        for name in (name for name in ADDED if name in schema.names and name not in table.column_names):
            table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(
            f"{path} is no table of {path.stem} ({str(error).splitlines()[0]}).",
            "It was written by another program or version; run the recipe again.",
        ) from error
