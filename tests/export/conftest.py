"""A run and its export, made once for all tests of a process, and a stand-in for the fresh process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft import verification
from nlft.continuing import working_in
from nlft.export import Exported, export
from nlft.run import run_method

sys.path.append(str(Path(__file__).parent))  # for `exported_run`

SLOTS = {"kind": "sparse_memory", "lr": 0.3, "slots": 40, "kmeans_steps": 1, "layers": [2]}
MADE: dict[str, Any] = {}


@pytest.fixture
def made(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A run of two short tasks and its export, verified in a process of its own; made once for all tests."""
    if not MADE:
        root = tmp_path_factory.mktemp("export")
        run = run_method(recipe(methods={"slots": SLOTS}), None, root / "run", report=False)
        (root / "torch.py").write_text("open('ran', 'w')\nraise SystemExit('a file of the current folder was run')\n")
        with working_in(root):
            MADE.update(run=run, exported=export(run, root / "out"))
        assert not (root / "ran").exists()
    return MADE["run"], MADE["exported"]


@pytest.fixture
def run(made: tuple[Path, Exported], tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(made[0], tmp_path / "run"))


@pytest.fixture
def folder(made: tuple[Path, Exported], tmp_path: Path) -> Path:
    """A copy of the export."""
    return Path(shutil.copytree(made[1].folder, tmp_path / "exported"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fresh process would do is done here, since its start costs ten seconds."""

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert words[1:3] == ["-c", verification.ENTRY]
        verification.main(*words[4:])
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(verification.subprocess, "run", run)
