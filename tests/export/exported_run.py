"""What tests of exports do with one."""

from __future__ import annotations

from pathlib import Path

from nlft.cli import main
from nlft.manifest import describe_files, read_manifest, write_manifest
from nlft.verification import examine

WEIGHTS = "adapter_model.safetensors"


def rehashed(folder: Path) -> Path:
    """As somebody would leave it who changes a file and the manifest with it."""
    manifest = read_manifest(folder)
    assert manifest is not None
    write_manifest(folder, manifest.model_copy(update={"files": describe_files(folder)}))
    return folder


def call(*words: str) -> int:
    try:
        main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def failed(folder: Path, rescore: bool = False) -> list[str]:
    return [check.name for check in examine(folder, rescore, False, None, False) if check.ok is False]
