"""Records of a file or a directory: JSONL, JSON, CSV, Parquet, or a dataset saved by `datasets`."""

from __future__ import annotations

import csv
import difflib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from nlft.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Record(NamedTuple):
    """A record as the file has it, and its place: `file:line`, or `file:number` where a file has no lines."""

    source: str
    fields: dict[str, Any]


def read(path: Path, split: str = "train") -> list[Record]:
    """Read every record of a file or directory; none is left out.

    `split` picks a part of a `DatasetDict` that `save_to_disk` wrote; nothing else has splits.
    Raises `DataError` for a missing, empty, unsupported or malformed file, naming file and line.
    """
    if path.is_dir():
        return _read_directory(path, split)
    if not path.is_file():
        raise DataError(f"There is no file or directory {str(path)!r}.", nearest_name(path))
    reader = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}.get(
        path.suffix.lower()
    )
    if reader is None:
        raise DataError(
            f"{path.name} has the extension {path.suffix!r}, which is not supported.",
            f"Supported are {', '.join(SUFFIXES)}.",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty (0 bytes).", "Check that it was written or downloaded completely.")
    records = reader(path)
    if not records:
        raise DataError(f"{path.name} has no rows.", "Check that it was written or downloaded completely.")
    return records


def records_of(dataset: Any, name: str) -> list[Record]:
    """Records of a `datasets.Dataset`; integers of a `ClassLabel` column become the label's name.

    A column that is a structure becomes one column a field, as `answer.value`.
    """
    dataset = dataset.flatten()
    return _named_labels(name, dataset.to_list(), dataset.features)


def is_saved_dataset(path: Path) -> bool:
    """Whether `datasets` wrote this directory with `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


def nearest_name(path: Path) -> str:
    """A hint that names what lies nearby: the most similar file, or the nearest directory that exists."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    place = "the current directory" if parent == Path() else str(parent)
    return f"Did you mean {str(parent / near[0])!r}?" if near else f"Looked for {path.name!r} in {place}."


def _read_directory(path: Path, split: str) -> list[Record]:
    if is_saved_dataset(path):
        return _read_saved(path, split)
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    suffixes = sorted({file.suffix.lower() for file in files})
    if not files:
        found = ", ".join(entry.name for entry in entries[:8]) or "nothing"
        raise DataError(
            f"The directory {str(path)!r} holds no data file (found: {found}).",
            f"Supported are {', '.join(SUFFIXES)}; sub-directories are not searched.",
        )
    if len(suffixes) > 1:
        raise DataError(
            f"The directory {str(path)!r} mixes {' and '.join(suffixes)} files.",
            "Name one file, or keep files of one extension in a directory.",
        )
    return [record for file in files for record in read(file)]


def _read_saved(path: Path, split: str) -> list[Record]:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"The saved dataset {str(path)!r} cannot be read: {error}", "Save it again.") from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise DataError(f"{str(path)!r} has no split {split!r}.", f"It has: {', '.join(map(str, dataset))}.")
        dataset = dataset[split]
    records = records_of(dataset, path.name)
    if not records:
        raise DataError(f"The saved dataset {str(path)!r} has no rows.", "Save it again.")
    return records


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path.name} line {line} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}.",
            "Save the file as UTF-8.",
        ) from error


def _read_jsonl(path: Path) -> list[Record]:
    records = []
    # Not splitlines(): a JSON string may hold U+2028 and its like, which are no line ends here.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path.name} line {number} is not valid JSON: {error.msg} (column {error.colno}).",
                "A JSONL file holds one complete object a line.",
            ) from error
        records.append(_record(f"{path.name}:{number}", fields))
    return records


def _read_json(path: Path) -> list[Record]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        one_a_line = error.msg == "Extra data"
        raise DataError(
            f"{path.name} line {error.lineno} is not valid JSON: {error.msg} (column {error.colno}).",
            "If it holds one object a line, name it .jsonl." if one_a_line else "",
        ) from error
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise DataError(
            f"{path.name} is no list of records.",
            'A JSON file holds a list of objects, or {"data": [objects]}.',
        )
    return [_record(f"{path.name}:{number}", fields) for number, fields in enumerate(records, start=1)]


def _read_csv(path: Path) -> list[Record]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    records: list[Record] = []
    header: list[str] = []
    before = 0
    try:
        for cells in reader:
            # A quoted cell may span lines; the record is named by its first.
            line, before = before + 1, reader.line_num
            if not cells:
                continue
            if not header:
                header = _header(path, cells)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path.name} line {line} has {len(cells)} fields, but the header has {len(header)}"
                    f" ({', '.join(header)}).",
                    "Quote fields that hold a comma or a line break.",
                )
            records.append(Record(f"{path.name}:{line}", dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{path.name} line {reader.line_num} is not valid CSV: {error}.", "Save it as JSONL."
        ) from error
    return records


def _header(path: Path, cells: list[str]) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise DataError(f"{path.name} has two columns named {twice[0]!r}.", "Give every column a name of its own.")
    return cells


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    import pyarrow.parquet
    from datasets import Features

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no readable Parquet file: {error}", "Write it again.") from error
    return _named_labels(path.name, table.to_pylist(), Features.from_arrow_schema(table.schema))


def _named_labels(name: str, rows: list[dict[str, Any]], features: Any) -> list[Record]:
    from datasets import ClassLabel

    labels = {column: feature.names for column, feature in features.items() if isinstance(feature, ClassLabel)}
    for number, fields in enumerate(rows, start=1):
        for column, names in labels.items():
            value = fields[column]
            if value is None or not 0 <= value < len(names):
                raise DataError(
                    f"{name}:{number} has the label {value} in {column!r}, which names nothing.",
                    "Test splits are often published without labels; use a split that has them.",
                )
            fields[column] = names[value]
    return [Record(f"{name}:{number}", fields) for number, fields in enumerate(rows, start=1)]


def _record(source: str, fields: Any) -> Record:
    if not isinstance(fields, dict):
        kinds = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
        kind = kinds.get(type(fields), "a number")
        raise DataError(f"{source} is {kind}, not an object with named fields.", 'Write {"prompt": …} and so on.')
    return Record(source, fields)
