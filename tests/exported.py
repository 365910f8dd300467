"""A made-up exported directory, for what looks at its files alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from nlft.manifest import BaseNote, Manifest, describe_files, write_manifest

VALUES = "base_model.model.model.layers.0.mlp.nlft_sparse_memory_core.parts.0.values"
CARD = "---\nlibrary_name: peft\n---\n# an adapter\n"


def export(
    folder: Path,
    base: str = "user/base",
    own: str = VALUES,
    extra: tuple[str, ...] = (),
    kind: str = "NLFT_SPARSE_MEMORY",
    rows: int = 128,
) -> Path:
    """An exported directory whose tensors take 4 KB a row.

    Args:
        own: name of the adapter's tensor.
        extra: names of further tensors beside the adapter's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).normal(size=(rows, 1024)).astype("float32")
    save_file({own: values} | {name: values[0] for name in extra}, folder / "adapter_model.safetensors")
    save_file({"rows": np.arange(8)}, folder / "witness.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    (folder / "README.md").write_text(CARD)
    (folder / "recipe.yaml").write_text("name: mine\n")
    return sealed(folder, base)


def sealed(folder: Path, base: str = "user/base") -> Path:
    """The folder with a manifest of what is in it now."""
    note = Manifest(
        base=BaseNote(model=base),
        peft_type="NLFT_SPARSE_MEMORY",
        method="sparse",
        dtype="float32",
        learned_bytes=1,
        calibration_bytes=0,
        files=describe_files(folder),
    )
    write_manifest(folder, note)
    return folder
