"""An exported directory that is to be sent away: every file looked at for what must not leave this machine.

Imports torch only for adapters that are not nlft's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlft.errors import NlftError, combined, reason
from nlft.manifest import FILE, MAX_ROWS, Manifest, check_files, files_of, read_manifest, rows_in
from nlft.remote import CONFIG, OWNERS, WEIGHTS, is_exported

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
SECRETS = {
    "a token of the Hugging Face Hub": r"\b(hf|api_org)_[A-Za-z0-9]{30,}",
    "an access key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|(?i:aws_?secret_?access_?key)\W{1,6}[A-Za-z0-9/+]{40}",
    "a token of GitHub": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}",
    "a secret key of OpenAI's form": r"(?<![\w-])sk-[A-Za-z0-9_-]{20,}",
    "a key of Google": r"\bAIza[A-Za-z0-9_-]{35}",
    "a token of Slack": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "an Authorization header": r"(?i)\bauthorization\W{1,4}(bearer|basic|token)\s+[\w.~+/=-]{8,}",
    "a password in an address": r"\bhttps?://[^\s/:@]+:[^\s/@]+@",
}


@dataclass(frozen=True)
class Parcel:
    """A directory that may be sent."""

    folder: Path
    manifest: Manifest
    files: dict[str, int]
    """Bytes by relative path."""


def pack(folder: Path, base_weights: bool = False) -> Parcel:
    """Checks an exported directory before anything is sent.

    Args:
        base_weights: let tensors that belong to the base pass.

    Raises:
        NlftError: everything that speaks against it; secrets are named by file and line, never quoted.
    """
    folder = folder.expanduser().resolve()
    manifest = read_manifest(folder)
    if manifest is None:
        what = f"it has no {FILE}" if folder.is_dir() else "there is no such folder"
        raise NlftError(
            f"{folder} is no exported directory: {what}.", "Make one of a run: `nlft export RUN DIR`, then push DIR."
        )
    problems = []
    try:
        check_files(folder, manifest)
    except NlftError as error:
        problems.append(error)
    names = sorted(files_of(folder))
    for name in names:
        path = folder / name
        if any((folder / part).is_symlink() for part in [Path(name), *Path(name).parents][:-1]):
            problems.append(NlftError(f"{name} is a link. Put the file itself there."))
        elif path.suffix in PICKLES:
            problems.append(NlftError(f"{name} may be a pickle, which runs code when it is read. Take it out."))
        elif not is_exported(name) and name not in OWNERS:
            problems.append(NlftError(f"{name} is no file of an export. Take it out."))
        else:
            problems += [NlftError(f"{name}, {where}: {what}. Take it out.") for where, what in secrets_in(path)]
    if not base_weights:
        problems += foreign_tensors(folder)
    if problems:
        raise combined(problems)
    return Parcel(folder, manifest, {name: (folder / name).stat().st_size for name in names})


def secrets_in(path: Path) -> Iterator[tuple[str, str]]:
    """Place and kind of everything in a file's text that looks like a secret."""
    from huggingface_hub import get_token

    own = get_token()
    for where, text in texts_of(path):
        for what, pattern in SECRETS.items():
            if re.search(pattern, text):
                yield where, f"there seems to be {what}"
        if own and own in text and not re.search(SECRETS["a token of the Hugging Face Hub"], text):
            yield where, "there is the Hub's token of this machine"


def texts_of(path: Path) -> Iterator[tuple[str, str]]:
    """The text in a file, piece by piece, each with its place: lines, strings of a table, notes of tensors."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        if rows_in(path) > MAX_ROWS:  # which check_files says
            return
        table = pq.read_table(path)
        for key, text in (table.schema.metadata or {}).items():
            yield f"note {key.decode(errors='replace')!r}", text.decode(errors="replace")
        for column in table.column_names:
            for text in strings_in(table[column]):
                yield f"column {column}", text
    elif path.suffix == ".safetensors":
        for key, text in notes_of(path).items():
            yield f"note {key!r}", text
    elif path.suffix != ".png":
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                yield f"line {number}", line


def strings_in(column: Any) -> Iterator[str]:
    """The different texts of a column or array, those in lists, maps and structures too."""
    import pyarrow as pa

    kind = column.type
    if not pa.types.is_nested(kind):
        if not pa.types.is_primitive(kind):
            for text in column.unique().to_pylist():
                yield text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        return
    for chunk in getattr(column, "chunks", [column]):
        parts = [chunk.keys, chunk.items] if pa.types.is_map(kind) else chunk.flatten()
        for part in parts if isinstance(parts, list) else [parts]:
            yield from strings_in(part)


def notes_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty where it cannot be read, which `foreign_tensors` reports."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def foreign_tensors(folder: Path) -> list[NlftError]:
    """What in the adapter's tensors does not belong to the adapter."""
    from safetensors import SafetensorError, safe_open

    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"]
        with safe_open(folder / WEIGHTS, "np") as file:
            names = sorted(file.keys())
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        return [NlftError(f"{CONFIG} or {WEIGHTS} cannot be read: {reason(error)}")]
    mark = prefix_of(str(kind))
    foreign = [name for name in names if not any(part.startswith(mark) for part in name.split("."))]
    kept = [name for name in names if ".modules_to_save" in name or ".token_adapter." in name]
    if not (foreign := sorted({*foreign, *kept})):
        return []
    return [
        NlftError(
            f"{WEIGHTS} holds tensors of the base ({len(foreign)}, as {foreign[0]}) beside the adapter's own, from"
            " `modules_to_save` or of embedding rows. If the base's licence allows that, add --base-weights."
        )
    ]


def prefix_of(kind: str) -> str:
    """How the names of a PEFT type's own modules begin."""
    if kind.startswith("NLFT_"):
        return "nlft_"
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    try:
        return PEFT_TYPE_TO_PREFIX_MAPPING[PeftType(kind)]
    except (ValueError, KeyError):
        return kind.lower()


def is_local(model: str) -> bool:
    """Whether a base is a folder of one machine, neither built in nor on the Hub."""
    return not model.startswith("builtin:") and (model.startswith((".", "/", "~")) or Path(model).is_dir())
