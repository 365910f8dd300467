"""Tables of states: two tiers, room made by age, files that are whole or thrown away, disks that are full."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from nlft.config import PrefixConfig
from nlft.prefix_store import PrefixStore, Shape, address_of

WIDTH = 4
KB = 1e-6
"""GB."""


def states(seed: int, tokens: int = 250, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[tokens, WIDTH]; 4,000 bytes as they come."""
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def store_of(folder: Path | None, memory_kb: float, disk_kb: float, shared: bool = False) -> PrefixStore:
    return PrefixStore(folder, PrefixConfig(memory_gb=memory_kb * KB, disk_gb=disk_kb * KB), shared)


def add(store: PrefixStore, address: str, table: torch.Tensor) -> torch.Tensor | None:
    """Adds a table in parts of 7 tokens."""
    return store.add(address, Shape(len(table), WIDTH, table.dtype), lambda: table.split(7))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")} if folder.is_dir() else set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", [100, 0])
def test_both_tiers_give_back_every_bit(tmp_path: Path, dtype: torch.dtype, memory: float) -> None:
    store, table = store_of(tmp_path / "p", memory, 100), states(0, 13, dtype)
    assert store.find("a") is None
    for found in (add(store, "a", table), store.find("a")):
        assert found is not None and found.dtype == dtype and torch.equal(found, table)
    assert (store.mapped == {"a"}) is (not memory)
    assert names(tmp_path / "p") == (set() if memory else {"a.safetensors"})
    store.remove()
    assert not (tmp_path / "p").exists() and store.find("a") is None


def test_a_file_is_mapped_and_written_part_by_part(tmp_path: Path) -> None:
    """A part is written before the next is computed, and what is read lies in the file and not in memory."""
    store, table, seen = store_of(tmp_path, 0, 100), states(0), []

    def compute() -> Iterator[torch.Tensor]:
        for part in table.split(100):
            [file] = tmp_path.glob(".*")
            seen.append(file.stat().st_size)
            yield part

    found = store.add("a", Shape(len(table), WIDTH, table.dtype), compute)
    assert found is not None and len(seen) == 3
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"states", "sha256"}
    with (tmp_path / "a.safetensors").open("r+b") as file:
        data = file.read()
        file.seek(data.index(table[5].numpy().tobytes()))
        file.write(bytes(4 * WIDTH))
    assert torch.equal(found[5], torch.zeros(WIDTH)), "a map sees what the file holds"


def test_memory_comes_first_unless_the_folder_is_shared(tmp_path: Path) -> None:
    for shared, expected in ((False, {"c"}), (True, {"a", "b"})):
        folder = tmp_path / str(shared)
        store = store_of(folder, 9, 9, shared)
        for name in "abc":
            add(store, name, states(0))
        assert set(store.tables) == set("abc") and store.mapped == expected and store.shortage is None
        assert names(folder) == {f"{name}.safetensors" for name in expected}


@pytest.mark.parametrize("memory, disk", [(9, 0), (0, 9)])
def test_the_oldest_make_room(tmp_path: Path, memory: float, disk: float) -> None:
    """Two tables fit; what was asked for last stays, and the user is told what that means."""
    store = store_of(tmp_path, memory, disk)
    add(store, "a", states(0))
    add(store, "b", states(1))
    assert store.shortage is None and store.find("a") is not None
    add(store, "c", states(2))
    assert set(store.tables) == {"a", "c"} and store.find("b") is None
    assert store.shortage is not None and "computed again" in store.shortage
    assert sum(table.nbytes for table in store.tables.values()) <= 1000 * (memory + disk)
    if disk:
        assert names(tmp_path) == {"a.safetensors", "c.safetensors"}


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_what_is_there_depends_on_the_latest_requests_alone(tmp_path: Path, before: int) -> None:
    store = store_of(tmp_path, 9, 0)
    for number in range(before):
        add(store, f"old{number}", states(number))
    for name in ("x", "y", "x", "z"):
        if store.find(name) is None:
            add(store, name, states(9))
    assert {name for name in store.tables if len(name) == 1} == {"x", "z"}


def test_what_fits_nowhere_is_not_kept_and_pushes_nothing_out(tmp_path: Path) -> None:
    store = store_of(tmp_path, 5, 3)
    add(store, "a", states(0))
    assert add(store, "b", states(0, 400)) is None
    assert set(store.tables) == {"a"} and store.shortage is not None and "have no room" in store.shortage
    assert add(store_of(None, 0, 100), "a", states(0)) is None


def test_another_process_finds_files_and_no_memory(tmp_path: Path) -> None:
    store = store_of(tmp_path, 5, 100)
    add(store, "a", states(0))
    add(store, "b", states(1))
    other = pickle.loads(pickle.dumps(store))
    assert other.tables == {} and other.config == store.config
    found = other.find("b")
    assert found is not None and torch.equal(found, states(1)) and other.find("a") is None


def test_two_that_compute_one_table_do_no_harm(tmp_path: Path) -> None:
    one, two, table = store_of(tmp_path, 0, 100), store_of(tmp_path, 0, 100), states(0)

    def compute() -> Iterator[torch.Tensor]:
        yield table[:100]
        assert add(two, "a", table) is not None  # comes to its end while the first is still at work
        yield table[100:]

    found = one.add("a", Shape(len(table), WIDTH, table.dtype), compute)
    twin = two.find("a")
    assert found is not None and twin is not None and torch.equal(found, twin)
    assert names(tmp_path) == {"a.safetensors"}


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-40],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data.replace(b"states", b"stateS"),
        lambda data: data + b"more",
    ],
)
def test_what_is_damaged_is_computed_again(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    add(store_of(tmp_path, 0, 100), "a", states(0))
    file = tmp_path / "a.safetensors"
    file.write_bytes(harm(file.read_bytes()))
    store = store_of(tmp_path, 0, 100)
    assert store.find("a") is None and not file.exists()
    found = add(store, "a", states(0))
    assert found is not None and torch.equal(found, states(0))


@pytest.mark.parametrize("memory", [100, 0])
def test_a_full_disk_costs_a_table_and_no_run(tmp_path: Path, memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, memory, 100, shared=True)
    monkeypatch.setattr("nlft.prefix_store.write_states", full_disk)
    found = add(store, "a", states(0))
    assert (found is not None) is bool(memory) and names(tmp_path) == set()
    assert store.shortage is not None and "No space left" in store.shortage


def full_disk(file: Any, *_: Any) -> None:
    file.write(bytes(100))
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_a_killed_call_left_makes_room(tmp_path: Path) -> None:
    (tmp_path / ".a.1234").write_bytes(bytes(8000))
    store = store_of(tmp_path, 0, 9)
    assert add(store, "b", states(0)) is not None
    assert names(tmp_path) == {"b.safetensors"}


def test_an_interruption_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    def compute() -> Iterator[torch.Tensor]:
        yield states(0)[:9]
        raise KeyboardInterrupt

    for memory in (100, 0):
        store = store_of(tmp_path, memory, 100)
        with pytest.raises(KeyboardInterrupt):
            store.add("a", Shape(250, WIDTH, torch.float32), compute)
        assert store.tables == {} and names(tmp_path) == set()


def test_an_address_names_all_that_decides() -> None:
    every = [
        address_of(decides, rows)
        for decides in (("base", 1, "float32"), ("other", 1, "float32"), ("base", 2, "float32"), ("base", 1, "float64"))
        for rows in ([(1, 2), (3,)], [(1,), (2, 3)], [(1, 2, 3)], [(3,), (1, 2)], [])
    ]
    assert len(set(every)) == len(every)
    assert address_of(("base", 1), [(1, 2)]) == address_of(("base", 1), [[1, 2]])
