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
    """Processes that a launcher started together; 1 without one.

    Raises:
        NlftError: the environment names no number.
    """
    return number("WORLD_SIZE", 1)


def number(name: str, default: int) -> int:
    """What a variable of the environment says, or the default where it is not set."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise NlftError(
            f"{name}: {text!r} in the environment is not a number.", f"Unset it (`unset {name}`), or use a launcher."
        )
    return int(text)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return processes() == 1 or number("RANK", 0) == 0


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
    hint = "Run it without the launcher; in a shell that no launcher started, `unset WORLD_SIZE` first."
    if verb == "compare":
        hint += (
            " `--jobs N` makes N runs side by side here, `--executor ray` one on each GPU or core of a cluster. One run"
            " over several processes is `nlft train`."
        )
    raise NlftError(
        f"`nlft {verb}` is not for a launcher, which has started {processes()} processes of it (WORLD_SIZE).", hint
    )


def is_spokesman() -> bool:
    """Whether this process is the first to ask, and so the one that says why all of them end.

    Asked by each process as it fails, before it exits: what the others meet afterwards, a lost connection, is then not
    reported. They note it in the store at which a launcher has processes meet.
    """
    try:
        if processes() == 1:
            return True
    except NlftError:  # then this is what it has to say
        return True
    from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(place, PATIENCE.total_seconds()).close()  # TCPStore would fail at length
        store = TCPStore(*place, is_master=False, timeout=PATIENCE, wait_for_workers=False)
        return store.add(f"nlft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/spokesman", 1) == 1
    except (DistError, LookupError, ValueError, OSError):
        return is_first()
