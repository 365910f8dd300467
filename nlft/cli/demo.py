"""`nlft demo`."""

from __future__ import annotations

import os
from pathlib import Path

from nlft.cli.argument import Overrides, fresh_folder

JOBS = 2
"""Runs side by side: a base as small as this one gains more from a second process than from a second thread."""


def demo(overrides: Overrides = None) -> None:
    """Compare three methods on three small domains.

    Writes into runs/demo, or into runs/demo-2, runs/demo-3 ... if that is there.
    """
    from nlft.cli.compare import run

    run("demo", overrides, lambda recipe: fresh_folder(Path("runs/demo")), jobs=min(JOBS, os.cpu_count() or 1))
