"""`nlft.json`: what an exported adapter is, for which base, and the hash of every file beside it.

Whoever reads it may not trust it: it is text of a stranger until its hashes fit, and even then says only what its
author wanted. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from nlft.errors import NlftError, reason
from nlft.remote import OWNERS, is_exported

FILE = "nlft.json"
SCHEMA = "nlft.adapter/1"
MAX_BYTES = 4 << 20
"""Longest manifest that is read."""
NOT_OURS = (".git", ".cache")
"""Folders of git and of the Hub's client beside an adapter, which nobody looks into."""
MAX_ROWS = 5_000_000
"""Most rows of a table beside an adapter: as Python objects they take about 2 GB, and a small file can claim more."""
AGAIN = "Take a whole copy of the adapter, as `nlft export` wrote it."

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=1000)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """Unknown keys are left out, so that a later version's manifest can be read."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class BaseNote(Part):
    """The base model that the adapter was made for."""

    model: Text
    """Hub id, `builtin:tiny`, or a directory as the recipe named it."""
    revision: Text | None = None
    """Commit on the Hub."""
    sha256: Sha256 | None = None
    """`nlft.base.fingerprint`: over every weight and buffer as loaded; None where nobody took it."""
    dtype: Text | None = None
    """Of the weights as loaded: `float32`, `bfloat16`, …; None where unknown."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """`none`, `4bit` or `8bit`, as in a recipe."""


class TokenizerNote(Part):
    """The tokenizer of training, which is not copied."""

    model: Text
    revision: Text | None = None
    sha256: Sha256
    """Over the sorted vocabulary and the special tokens: `nlft.verification.tokenizer_digest`."""


class FileNote(Part):
    """One file of the directory."""

    bytes: Count
    sha256: Sha256


class LoraNote(Part):
    """A LoRA that has learned as much, for its size."""

    bytes: Count
    """Of its `adapter_model.safetensors`."""
    rank: int | None = None
    run_id: Text | None = None
    """The run of the same comparison; None where the size was computed and no such LoRA was trained."""
    computed: bool = False
    """True: the size of LoRA r8 on every linear layer, worked out from the base's shapes; its learning is unknown."""
    learning: float | None = None
    """Its normalised learning at the end of its tasks: 0 the base, 1 the ceiling."""


class Origin(Part):
    """The adapter that training went on from."""

    name: Text
    """Folder, or USER/NAME on the Hub."""
    revision: Text | None = None
    sha256: Sha256
    """Of its `adapter_model.safetensors`."""


class Manifest(Part):
    """`nlft.json`."""

    schema_: Literal["nlft.adapter/1"] = Field(default=SCHEMA, alias="schema")
    base: BaseNote
    tokenizer: TokenizerNote | None = None
    peft_type: Text
    """PEFT's name of the kind, as in adapter_config.json."""
    method: Text | None = None
    """Name of the recipe's method; None for a bare adapter."""
    tasks: list[Text] = []
    """What was learned, in order."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Of the learned rows as stored: `float32`, `bfloat16` or `float16`."""
    learned_bytes: Count
    """Tensors that were trained."""
    calibration_bytes: Count
    """Keys, thresholds, whitening and statistics, always as they were."""
    calibration_sha256: Sha256 | None = None
    """Over all tensors that are not trained, in order of names; None where there are none."""
    files: dict[Text, FileNote]
    """All files but this one, by relative path with `/`."""
    lora: LoraNote | None = None
    """None where no LoRA has learned as much and no size could be computed."""
    continued_from: Origin | None = None
    rescored: Text | None = None
    """What the check at export says about re-scoring, in one sentence; None where nothing was measured."""
    versions: dict[Text, Text] = {}
    """Of nlft, peft, transformers and torch."""
    created: Text = ""
    """ISO 8601, UTC."""


def read_manifest(folder: Path) -> Manifest | None:
    """Reads the manifest of a folder.

    Returns:
        None where there is no `nlft.json`.

    Raises:
        NlftError: it is too long or no manifest.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise NlftError(f"{path} is longer than {MAX_BYTES:,} bytes, so it is no manifest of `nlft export`.", AGAIN)
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise NlftError(f"{path} is no manifest of an adapter: {place}: {first['msg']}.", AGAIN) from error
    except OSError as error:
        raise NlftError(f"{path} cannot be read: {reason(error)}", AGAIN) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `nlft.json`."""
    (folder / FILE).write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")


def describe_files(folder: Path) -> dict[str, FileNote]:
    """Length and hash of every file of a folder but the manifest, by relative path with `/`."""
    return {
        name: FileNote(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in sorted(files_of(folder))
        if name != FILE
    }


def whole_manifest(folder: Path) -> Manifest | None:
    """Reads the manifest of a folder and compares all files with it.

    Returns:
        None where there is no `nlft.json`.

    Raises:
        NlftError: it is no manifest, or the folder is not what was exported.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        check_files(folder, manifest)
    return manifest


def check_files(folder: Path, manifest: Manifest, editable: Sequence[str] = OWNERS) -> None:
    """Compares a folder with its manifest. Lengths are looked at before anything is read.

    Args:
        editable: files that may be changed, added or missing; a card is written by hand in the end.

    Raises:
        NlftError: a file is missing, changed, not in the manifest or none of an export, a table claims too many rows,
            or a name or link leads elsewhere. All are named.
    """
    problems = [f"the name {name!r} leads out of the folder" for name in manifest.files if not is_inside(name)]
    listed = {name: note for name, note in manifest.files.items() if is_inside(name)}
    for name, note in listed.items():
        path = folder / name
        if name in editable:
            continue
        if not is_exported(name):
            problems.append(f"{name} is no file of an export")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif leads_out(path, folder):
            problems.append(f"{name} is a link to another place")
        elif path.stat().st_size != note.bytes or sha256_of(path) != note.sha256:
            problems.append(f"{name} is not the file that was exported (its sha256 differs)")
        elif name.endswith(".parquet") and (rows := rows_in(path)) > MAX_ROWS:
            problems.append(f"{name} claims {rows:,} rows, where {MAX_ROWS:,} are read at most")
    problems += [
        f"{name} is not in {FILE}" for name in sorted(files_of(folder)) if name not in {FILE, *listed, *editable}
    ]
    if problems:
        raise NlftError(f"{folder} is not what was exported: {'; '.join(problems)}.", AGAIN)


def rows_in(path: Path) -> int:
    """How many rows a Parquet file claims to have, by its footer alone; 0 for a file that is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        return 0  # who reads it says what is wrong with it


def files_of(folder: Path) -> Iterator[str]:
    """Relative paths of all files and links below a folder; links to folders are named, not followed."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        if here == folder:
            folders[:] = [name for name in folders if name not in NOT_OURS]
            files = [name for name in files if name not in NOT_OURS]  # a worktree's `.git` is a file
        for name in (*files, *links):
            yield (here / name).relative_to(folder).as_posix()


def is_inside(name: str) -> bool:
    """Whether a name of a manifest is a plain relative path."""
    path = PurePosixPath(name)
    plain = "\\" not in name and ":" not in name and "\0" not in name and path.as_posix() == name
    return plain and not path.is_absolute() and bool(path.parts) and ".." not in path.parts


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file lies elsewhere by a link; the Hub's cache links its snapshots to `blobs` beside them."""
    home, place = folder.resolve(), path.resolve()
    cached = home.parent.name == "snapshots" and place.parent == home.parent.parent / "blobs"
    return not cached and not place.is_relative_to(home)


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
