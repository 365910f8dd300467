"""Bytes and seconds of pushing made-up adapters to the Hub's stand-in of the tests, and of fetching them.

    python eval/bench/hub.py                7 and 70 MB
    python eval/bench/hub.py 7 --requests   one size, every request of the first push listed

Both ends are on this machine, so the seconds are what checking, hashing and the client cost; a network comes on top.
The stand-in offers no Xet: large files go by LFS, in which a file that was cut in its middle is sent again whole.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from exported import export  # pyright: ignore
from hub_stand_in import HubStandIn, connect  # pyright: ignore

from nlft.errors import NlftError
from nlft.manifest import read_manifest
from nlft.parcel import pack
from nlft.remote import fetch_adapter
from nlft.upload import push

ROW = 4096
"""Bytes of a row of `export`."""


def measure(megabytes: float, table: Table, requests: bool) -> None:
    """Adds the lines of one size."""
    with tempfile.TemporaryDirectory() as place, HubStandIn() as hub, pytest.MonkeyPatch.context() as patch:
        connect(patch, hub, Path(place))
        made = export(Path(place) / "made", rows=round(megabytes * 1e6 / ROW))

        def line(what: str, act: Callable[[], object]) -> None:
            hub.seen.clear()
            hub.sent.clear()
            start = time.perf_counter()
            try:
                act()
            except NlftError:
                what += ", refused"
            seconds = time.perf_counter() - start
            sent = sum(seen.body_bytes for seen in hub.seen)
            table.add_row(
                f"{megabytes:g} MB",
                what,
                f"{sent / 1e6:.2f}",
                f"{sum(hub.sent.values()) / 1e6:.2f}",
                str(len(hub.seen)),
                f"{seconds:.2f}",
            )
            if requests and what == "push":
                print(*(f"{seen.body_bytes:>12,}  {seen.line}" for seen in hub.seen), sep="\n")

        line("check alone", lambda: pack(made))
        line("push", lambda: push(pack(made), "alice/one"))
        line("push, nothing to do", lambda: push(pack(made), "alice/one"))
        hub.objects.clear()
        weights = read_manifest(made).files["adapter_model.safetensors"].sha256  # pyright: ignore
        hub.fail(f"PUT /lfs/{weights}", after=round(megabytes * 5e5), times=99)  # the client tries six times
        line("push, cut in the middle", lambda: push(pack(made), "alice/two"))
        hub.faults.clear()
        line("push after the cut", lambda: push(pack(made), "alice/two"))
        line("fetch", lambda: fetch_adapter("alice/two"))
        line("fetch from the cache", lambda: fetch_adapter("alice/two"))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", type=float, nargs="*", default=[7.0, 70.0])
    parser.add_argument("--requests", action="store_true", help="list the requests of the first push")
    args = parser.parse_args()
    table = Table("adapter", "what", "MB sent", "MB received", "requests", "seconds")
    for column in table.columns[2:]:
        column.justify = "right"
    for megabytes in args.megabytes:
        measure(megabytes, table, args.requests)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
