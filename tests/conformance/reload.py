"""Adapters that another process reloads: one process for all that are asked for at once.

Run as `python reload.py FOLDER`, it reloads every adapter there onto a base that it builds itself, and writes what came
of it to `found.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

ROOT = str(Path(__file__).parent.parent.parent)
FOUND: dict[tuple[str, str], str] = {}
"""By pathway and family: `equal`, or what went wrong."""


def reload_elsewhere(pairs: Iterable[tuple[str, str]]) -> None:
    """Saves the trained model of each pathway and family, and notes what a new process makes of them all."""
    from subject import Refused, logits, shared

    with TemporaryDirectory(prefix="nlft-reload-") as name:
        folder = Path(name)
        for pathway, family in pairs:
            try:
                model = shared(pathway, family)
            except Refused:
                continue
            except Exception as error:
                FOUND[pathway, family] = repr(error)
                continue
            model.save_pretrained(folder / f"{pathway}@{family}")
            save_file({"logits": logits(model)}, folder / f"{pathway}@{family}" / "expected.safetensors")
        # Where pytest finds the package, and the child would not.
        path = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
        here = os.environ | {"PYTHONPATH": path}
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, env=here)
        assert done.returncode == 0, done.stderr[-2000:]
        for pair, said in json.loads((folder / "found.json").read_text(encoding="utf-8")).items():
            pathway, _, family = pair.partition("@")
            FOUND[pathway, family] = said


def reloaded(pathway: str, family: str) -> str:
    """What the other process found; starts one if nobody has asked for this before."""
    if (pathway, family) not in FOUND:
        reload_elsewhere([(pathway, family)])
    return FOUND[pathway, family]


def reload_all(folder: Path) -> None:
    """What the other process does."""
    sys.path.append(str(Path(__file__).parent.parent / "pathways"))
    from families import build
    from peft import PeftModel

    import nlft  # noqa: F401  # makes the pathways known to PEFT
    from nlft.data.batch import Batch  # noqa: F401

    found = {}
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        try:
            expected = load_file(path / "expected.safetensors")["logits"]
            model = PeftModel.from_pretrained(build(path.name.partition("@")[2]), str(path))
            found[path.name] = compared(model, expected)
        except Exception as error:
            found[path.name] = repr(error)
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def compared(model: object, expected: torch.Tensor) -> str:
    """`equal`, or by how much the logits differ."""
    from pathway_models import logits

    away = float((logits(model) - expected).abs().max())
    return "equal" if torch.equal(logits(model), expected) else f"logits differ by up to {away:.3g}"


if __name__ == "__main__":
    reload_all(Path(sys.argv[1]))
