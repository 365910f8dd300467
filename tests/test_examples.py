"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_load_with_peft(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "load_with_peft.py"), str(tmp_path)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "of.before").touch()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(" | ") for line in done.stdout.strip().splitlines()]
    assert len(lines) == 3
    wanted = [line[0].split(" … ")[1] for line in lines]
    assert [line[2].removeprefix("adapted: ") for line in lines] == wanted
    assert [line[1].removeprefix("base: ") for line in lines] != wanted
