"""Rows from a file, a directory, a Hub dataset or the built-in world."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlft.config import DataConfig
from nlft.data.file import SUFFIXES, Record, is_saved_dataset, nearest_name, read, records_of
from nlft.data.format import TITLES, Format, detect_format, find_columns, to_rows, used_columns, with_choices
from nlft.errors import DataError, reason
from nlft.hub import is_dataset_id, offline_unless_reachable
from nlft.types import Row

WORLD = "builtin:world/"


@dataclass(frozen=True, slots=True)
class Source:
    """Rows, their layout, and one line that says what was read."""

    rows: list[Row]
    format: Format
    description: str


def load(config: DataConfig, where: str = "") -> Source:
    """Read, recognise and check the rows of a data section.

    `where` is the section's dotted key (`tasks.people.train`) and opens every error. Relative paths start at
    the current directory.

    With `limit` or `skip`, the rows are shuffled by `sample_seed`, the first `skip` are left out, up to
    `limit` are kept, and those come in the file's order: equal seeds and adjoining ranges cut disjoint parts
    out of one file. Label rows get the choices of the whole file, so such parts, and those of `only`, share them.
    Raises `DataError`, naming file and line.
    """
    try:
        return _load(config)
    except DataError as error:
        message = f"{where}: {error.message}" if where else error.message
        raise DataError(message, error.hint) from error


def load_rows(config: DataConfig, where: str = "") -> list[Row]:
    """The rows of `load`."""
    return load(config, where).rows


def share_choices(train: Sequence[Row], test: Sequence[Row]) -> list[Row]:
    """Give the test's label rows the union of both label sets, so that they are scored among all labels.

    A test file may hold fewer labels than its train file. Rows with choices of their own (multiple choice),
    or without choices, come back as they are.
    """
    labels = [{row.choices for row in rows} for rows in (train, test)]
    # Label rows are those that all share one set of choices, and learn one of them.
    if any(len(sets) != 1 for sets in labels) or () in labels[0] | labels[1]:
        return list(test)
    return with_choices(test, sorted(set().union(*labels[0], *labels[1])))


def _load(config: DataConfig) -> Source:
    if config.path.startswith("builtin:"):
        return _load_world(config)
    path = Path(config.path).expanduser()
    if path.exists():
        _refuse(config, ("name", "revision") if is_saved_dataset(path) else ("split", "name", "revision"))
        records, name = read(path, config.split), path.name or str(path)
    else:
        records, name = _read_hub(config, path), config.path
    found = list(dict.fromkeys(column for record in records for column in record.fields))
    try:
        columns = find_columns(found, config.columns)
        layout = detect_format(columns, config.format)
    except DataError as error:
        raise DataError(f"{name} (columns {', '.join(found)}): {error.message}", error.hint) from error
    rows = to_rows(records, layout, columns, config.join)
    rows = _chosen(rows, records, config.only, name)
    used = used_columns(layout, columns)
    unused = [column for column in found if column not in used]
    detail = f"columns {', '.join(used)}" + (f"; not used: {', '.join(unused)}" if unused else "")
    return _sample(config, rows, layout, f"{name} ({detail})")


def _load_world(config: DataConfig) -> Source:
    if not config.path.startswith(WORLD):
        raise DataError(f"There is no built-in data {config.path!r}.", f"Built-in data begins with {WORLD!r}.")
    from nlft.data import world

    _refuse(config, ("split", "name", "revision", "format", "columns", "only"))
    rows = world.rows(config.path.removeprefix(WORLD))
    layout: Format = "messages" if rows[0].messages else "completion" if rows[0].prompt else "text"
    return _sample(config, rows, layout, config.path)


def _read_hub(config: DataConfig, path: Path) -> list[Record]:
    if not is_hub_id(config.path):
        raise DataError(f"There is no file or directory {config.path!r}.", nearest_name(path))
    import datasets
    from datasets import config as settings
    from datasets.exceptions import DatasetsError

    with offline_unless_reachable(settings) as reachable:
        try:
            dataset = datasets.load_dataset(
                config.path, name=config.name, split=config.split, revision=config.revision, streaming=False
            )
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            said = reason(error) if reachable else "it cannot be reached, and its cache does not hold it."
            raise DataError(
                f"{config.path!r} is no file or directory here, and the Hub did not give it: {said}",
                f"{nearest_name(path)} For a Hub dataset, check its id, `name`, `split`, your network and login.",
            ) from error
    records = records_of(dataset, config.path)
    if not records:
        raise DataError(f"The split {config.split!r} of {config.path!r} has no rows.", "Choose another split.")
    return records


def is_hub_id(path: str) -> bool:
    """Whether a data section's path names a dataset on the Hub."""
    here = path.startswith("builtin:") or Path(path).expanduser().exists()
    return not here and is_dataset_id(path, (*SUFFIXES, ".txt", ".tsv", ".gz", ".zip"))


def _refuse(config: DataConfig, keys: Sequence[str]) -> None:
    """A key that is set but would have no effect is a misunderstanding; say so."""
    for key in keys:
        if getattr(config, key) != DataConfig.model_fields[key].get_default(call_default_factory=True):
            raise DataError(
                f"{key} is {getattr(config, key)!r}, but has no effect on {config.path!r}.",
                f"Leave {key} out; to read one of several files, name that file.",
            )


def _chosen(rows: list[Row], records: Sequence[Record], only: Mapping[str, Sequence[str]], name: str) -> list[Row]:
    """The rows whose record holds, in every column named, one of the values wanted."""
    for column, wanted in only.items():
        there = dict.fromkeys(str(record.fields.get(column)) for record in records)
        missing = [value for value in wanted if value not in there]
        if missing:
            raise DataError(
                f"only.{column}: no record of {name} has {missing[0]!r} there.",
                f"There are {', '.join(list(there)[:8])}{' …' * (len(there) > 8)}.",
            )
    kept = [
        row
        for row, record in zip(rows, records, strict=True)
        if all(str(record.fields.get(column)) in wanted for column, wanted in only.items())
    ]
    if not kept:
        raise DataError(f"only: no record of {name} has all of {dict(only)}.", "Correct `only`.")
    return kept


def _sample(config: DataConfig, rows: list[Row], layout: Format, name: str) -> Source:
    total = len(rows)
    if config.skip or config.limit is not None:
        if config.skip >= total:
            raise DataError(f"skip is {config.skip}, but {name} has {total} rows.", "Lower skip.")
        order = list(range(total))
        random.Random(config.sample_seed).shuffle(order)
        end = total if config.limit is None else config.skip + config.limit
        rows = [rows[i] for i in sorted(order[config.skip : end])]
    whole = f"{total} row" if total == 1 else f"{total} rows"
    count = whole if len(rows) == total else f"{len(rows)} of {whole}"
    return Source(rows, layout, f"{count} of {TITLES[layout]} from {name}")
