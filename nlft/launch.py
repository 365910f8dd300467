"""What `accelerate launch` or torchrun tells a process that it started, before torch is imported."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from nlft.errors import NlftError

PARALLEL = {"train", "resume", "env"}
"""Verbs that several processes may carry out together."""
PATIENCE = timedelta(seconds=5)
"""For the store in which processes note who speaks; where it does not answer, the first process does."""


def processes() -> int:
    """Processes that a launcher started together; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return processes() == 1 or int(os.environ.get("RANK") or 0) == 0


def remark() -> list[str]:
    """What is odd about how this process was started, in sentences."""
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "MASTER_PORT" in os.environ
    if not wanted or os.environ.get("WORLD_SIZE"):
        return []
    return [
        "One process runs, which takes all rows: `accelerate launch --cpu` starts no others without MPI. Take"
        " `--config_file examples/accelerate/cpu.yaml`."
    ]


def check_verb(verb: str) -> None:
    """Refuses what several processes would only do several times over, into the same files.

    Raises:
        NlftError: naming what does the same.
    """
    if processes() == 1 or verb in PARALLEL:
        return
    hint = "Run it without the launcher."
    if verb == "compare":
        hint = (
            "Run it without the launcher: `--jobs N` makes N runs side by side here, `--executor ray` one on each GPU"
            " or core of a cluster. One run over several processes is `nlft train`."
        )
    raise NlftError(f"`nlft {verb}` is not for a launcher, which has started {processes()} processes of it.", hint)


def is_spokesman() -> bool:
    """Whether this process is the first to ask, and so the one that says why all of them end.

    Asked by each process as it fails, before it exits: what the others meet afterwards, a lost connection, is then not
    reported. They note it in the store at which a launcher has processes meet.
    """
    if processes() == 1:
        return True
    from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(place, PATIENCE.total_seconds()).close()  # TCPStore would fail at length
        store = TCPStore(*place, is_master=False, timeout=PATIENCE, wait_for_workers=False)
        return store.add(f"nlft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/spokesman", 1) == 1
    except (DistError, LookupError, ValueError, OSError):
        return is_first()
