"""How worker processes begin: on Linux out of a server that imports everything once, and computes nothing."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

IMPORTS = "nlft.executor"
"""What workers run, and with it all that they need."""


def worker_context() -> Any:
    """The context of worker processes."""
    if sys.platform != "linux":  # elsewhere it is not safe to fork what has been imported
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([IMPORTS])
    return context


def begin_imports() -> None:
    """Starts the server, if there is one, so that it imports while this process does."""
    if worker_context().get_start_method() == "forkserver":
        from multiprocessing.forkserver import ensure_running

        ensure_running()
