"""Help and the cheap verbs answer without torch."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from nlft.cli import main

PROBE = """
import sys
from nlft.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = [name for name in ("torch", "transformers", "peft", "datasets", "matplotlib") if name in sys.modules]
print("HEAVY", heavy, "CODE", code or 0, file=sys.stderr)
"""


@pytest.mark.parametrize("line", ["--help", "ls", "show demo", "validate demo", "show nothing"])
def test_torch_stays_out(line: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *line.split()], capture_output=True, text=True, check=True)
    assert "HEAVY [] CODE" in done.stderr, done.stderr


def test_help_is_quick() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nlft", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    # Half a second on an idle machine; a busy one may take longer, but importing torch would cost more still.
    assert min(seconds() for _ in range(3)) < 1.0


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = (
        "demo",
        "ls",
        "cp",
        "show",
        "validate",
        "train",
        "compare",
        "resume",
        "continue",
        "eval",
        "export",
        "verify",
        "report",
        "gate",
        "merge",
        "inspect",
        "dissect",
        "tune",
        "tasks",
        "chat",
        "promote",
        "prune",
        "push",
        "env",
    )
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.split("Commands:")[1].strip().splitlines()]
    assert listed == list(verbs)
    for verb in verbs:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert "Usage:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from nlft import __version__

    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"
