"""Tables of states: two tiers, room made by what nobody asks for, files that are whole or thrown away, full disks."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nlft.config import PrefixConfig
from nlft.prefix_store import FRESH, PrefixStore
from nlft.shelf import Shelf
from nlft.state_file import Shape

WIDTH = 4
KB = 1e-6
"""GB."""


def states(seed: int, tokens: int = 250, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[tokens, WIDTH]; 4,000 bytes as they come."""
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def store_of(folder: Path | None, memory_kb: float, disk_kb: float, shared: bool = False) -> PrefixStore:
    return PrefixStore(folder, PrefixConfig(memory_gb=memory_kb * KB, disk_gb=disk_kb * KB), shared)


def of(letter: str) -> str:
    """An address."""
    return letter * 64


def add(store: PrefixStore, letter: str, table: torch.Tensor) -> torch.Tensor | None:
    """Adds a table in parts of 7 tokens."""
    return store.add(of(letter), Shape(len(table), WIDTH, table.dtype), lambda: table.split(7))


def find(store: PrefixStore, letter: str, tokens: int = 250, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
    return store.find(of(letter), Shape(tokens, WIDTH, dtype))


def ask(store: PrefixStore, letters: str) -> set[str]:
    """Asks for tables one after another, adding what is not there; gives the letters of those that were computed."""
    return {one for one in letters if find(store, one) is None and add(store, one, states(ord(one))) is not None}


def letters(store: PrefixStore) -> set[str]:
    return {address[0] for address in store.tables}


def files(folder: Path) -> set[str]:
    """Letters of the files that are there; others by their name."""
    names = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    return {name[0] if name == f"{of(name[0])}.safetensors" else name for name in names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", [100, 0])
def test_both_tiers_give_back_every_bit(tmp_path: Path, dtype: torch.dtype, memory: float) -> None:
    store, table = store_of(tmp_path / "p", memory, 100), states(0, 13, dtype)
    assert find(store, "a", 13, dtype) is None
    for found in (add(store, "a", table), find(store, "a", 13, dtype)):
        assert found is not None and found.dtype == dtype and torch.equal(found, table)
    assert (store.mapped == {of("a")}) is (not memory)
    assert files(tmp_path / "p") == (set() if memory else {"a"})
    store.remove()
    assert not (tmp_path / "p").exists() and find(store, "a", 13, dtype) is None


def test_a_file_is_mapped_and_written_part_by_part(tmp_path: Path) -> None:
    """A part is written before the next is computed, and what is read lies in the file and not in memory."""
    store, table, seen = store_of(tmp_path, 0, 100), states(0), []

    def compute() -> Iterator[torch.Tensor]:
        for part in table.split(100):
            [file] = tmp_path.glob(".*")
            seen.append(file.stat().st_size)
            yield part

    found = store.add(of("a"), Shape(len(table), WIDTH, table.dtype), compute)
    assert found is not None and len(seen) == 3 and min(seen) >= 4000, "other processes count all of it from the start"
    with (tmp_path / f"{of('a')}.safetensors").open("r+b") as file:
        data = file.read()
        file.seek(data.index(table[5].numpy().tobytes()))
        file.write(bytes(4 * WIDTH))
    assert torch.equal(found[5], torch.zeros(WIDTH)), "a map sees what the file holds"


def test_memory_comes_first_unless_the_folder_is_shared(tmp_path: Path) -> None:
    for shared, expected in ((False, {"c"}), (True, {"a", "b"})):
        folder = tmp_path / str(shared)
        store = store_of(folder, 9, 9, shared)
        ask(store, "abc")
        assert letters(store) == set("abc") and store.shortage is None
        assert store.mapped == {of(one) for one in expected} and files(folder) == expected


@pytest.mark.parametrize("memory, disk", [(9, 0), (0, 9), (5, 5)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_cycle_that_is_too_long_keeps_what_fits(tmp_path: Path, memory: float, disk: float, shared: bool) -> None:
    """Dropped by age, every table would be gone just before it is asked for again."""
    store = store_of(tmp_path, memory, disk, shared)
    assert ask(store, "abc") == {"a", "b"} and ask(store, "abcabc") == set()
    assert store.shortage is not None and "computed in every pass" in store.shortage


@pytest.mark.parametrize("memory, disk", [(9, 0), (0, 9), (5, 5), (9, 4.5), (4.5, 9)])
@pytest.mark.parametrize("before", ["", "e", "ef", "abcd", "dcba", "cfb"])
def test_what_is_kept_depends_on_requests_since_it_began(
    tmp_path: Path, memory: float, disk: float, before: str
) -> None:
    """So that a resumed run, which finds files alone, keeps what a whole one does."""
    fresh, asked = store_of(tmp_path / "fresh", memory, disk), "cabdc"
    ask(fresh, asked)
    used = store_of(tmp_path / "used", memory, disk)
    ask(used, before)
    (tmp_path / "used").mkdir(exist_ok=True)
    resumed = store_of(shutil.copytree(tmp_path / "used", tmp_path / "cut"), memory, disk)
    for store in (used, resumed):
        store.begin()
        ask(store, asked)
        kept = {address[0] for address, (tier, _) in store.asked.items() if tier}
        assert kept <= letters(store) and kept == letters(fresh)
        assert {one for one in store.mapped if one[0] in kept} == fresh.mapped
        assert all(torch.equal(store.tables[of(one)], states(ord(one))) for one in kept)
        sizes = [path.stat().st_size for path in (store.folder or tmp_path).glob("*.safetensors")]
        assert sum(sizes) <= 1000 * disk + 250 * len(sizes), "headers and digests apart"


def test_what_fits_nowhere_is_not_kept_and_pushes_nothing_out(tmp_path: Path) -> None:
    store = store_of(tmp_path, 5, 3)
    add(store, "a", states(0))
    store.begin()
    assert add(store, "b", states(0, 400)) is None
    assert letters(store) == {"a"} and store.shortage is not None and "have no room" in store.shortage
    assert add(store_of(None, 0, 100), "a", states(0)) is None


def test_another_process_finds_files_and_no_memory(tmp_path: Path) -> None:
    store = store_of(tmp_path, 5, 100)
    ask(store, "ab")
    other = pickle.loads(pickle.dumps(store))
    assert other.tables == {} and other.config == store.config
    found = find(other, "b")
    assert found is not None and torch.equal(found, states(ord("b"))) and find(other, "a") is None


def test_two_that_compute_one_table_do_no_harm(tmp_path: Path) -> None:
    one, two, table = store_of(tmp_path, 0, 100, True), store_of(tmp_path, 0, 100, True), states(0)

    def compute() -> Iterator[torch.Tensor]:
        yield table[:100]
        assert add(two, "a", table) is not None  # comes to its end while the first is still at work
        yield table[100:]

    found = one.add(of("a"), Shape(len(table), WIDTH, table.dtype), compute)
    twin = find(two, "a")
    assert found is not None and twin is not None and torch.equal(found, twin)
    assert files(tmp_path) == {"a"}


def test_a_file_that_another_process_removes_costs_one_table(tmp_path: Path) -> None:
    store, table = store_of(tmp_path, 0, 100, True), states(0)

    def compute() -> Iterator[torch.Tensor]:
        for path in tmp_path.glob(".*"):
            path.unlink()
        yield table

    assert store.add(of("a"), Shape(len(table), WIDTH, table.dtype), compute) is None
    assert store.shortage is None or "cannot be kept" not in store.shortage
    assert add(store, "b", table) is not None and files(tmp_path) == {"b"}


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-40],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data.replace(b"states", b"stateS"),
        lambda data: data.replace(b"[250, 4]", b"[4, 250]"),
        lambda data: data.replace(b'"F32", "shape": [250', b'"I32", "shape": [250'),
        lambda data: data + b"more",
    ],
)
def test_what_is_damaged_is_computed_again(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    add(store_of(tmp_path, 0, 100), "a", states(0))
    file = tmp_path / f"{of('a')}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    assert file.read_bytes() != whole
    store = store_of(tmp_path, 0, 100)
    assert find(store, "a") is None and not file.exists()
    found = add(store, "a", states(0))
    assert found is not None and torch.equal(found, states(0))


@pytest.mark.parametrize("memory", [100, 0])
def test_a_full_disk_costs_a_table_and_no_run(tmp_path: Path, memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, memory, 100, shared=True)
    monkeypatch.setattr("nlft.prefix_store.write_states", full_disk)
    found = add(store, "a", states(0))
    assert (found is not None) is bool(memory) and files(tmp_path) == set()
    assert store.shortage is not None and "No space left" in store.shortage


def full_disk(file: Any, *_: Any) -> None:
    file.write(bytes(100))
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("memory", [100, 0])
def test_room_is_left_for_checkpoints(tmp_path: Path, memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path / "p", memory, 100, shared=True)
    for free, kept in ((1e9 + 5000, {"b"}), (1e9 + 3000, set())):
        monkeypatch.setattr(PrefixStore, "free", lambda _, free=free: free)
        store.begin()
        found = add(store, "b" if kept else "a", states(0))
        assert (found is not None) is bool(kept or memory)
    assert "a" not in files(tmp_path / "p")
    assert store.shortage is not None and "checkpoints need room" in store.shortage


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_killed_call_left_makes_room(tmp_path: Path, shared: bool) -> None:
    """Unless another process may still be writing it."""
    partial = tmp_path / f".{of('a')}.{'0' * 32}"
    partial.write_bytes(bytes(8000))
    (tmp_path / "mine").write_bytes(bytes(8000))
    assert (add(store_of(tmp_path, 0, 9, shared), "b", states(0)) is None) is shared
    assert partial.exists() is shared
    if shared:
        old = partial.stat().st_mtime - FRESH - 1
        os.utime(partial, (old, old))
        assert add(store_of(tmp_path, 0, 9, shared), "b", states(0)) is not None
    assert files(tmp_path) == {"b", "mine"}


def test_an_interruption_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    def compute() -> Iterator[torch.Tensor]:
        yield states(0)[:9]
        raise KeyboardInterrupt

    for memory in (100, 0):
        store = store_of(tmp_path, memory, 100)
        with pytest.raises(KeyboardInterrupt):
            store.add(of("a"), Shape(250, WIDTH, torch.float32), compute)
        assert store.tables == {} and files(tmp_path) == set()


def test_a_shelf_drops_what_nobody_has_asked_for_since_it_began() -> None:
    shelf = Shelf(9000)
    for letter in "abc":
        shelf.add(letter, states(ord(letter)))
    assert set(shelf.tensors) == {"a", "b"}
    shelf.begin()
    assert shelf.find("b") is not None and shelf.find("c") is None
    shelf.add("c", states(0))
    shelf.add("d", states(0))
    assert set(shelf.tensors) == {"b", "c"}
