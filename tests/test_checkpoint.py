"""Checkpoints are whole or absent, also on a disk that is full."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlft.checkpoint import finished_stages, write_folder
from nlft.errors import CheckpointError


def save(value: float, numbers: int = 10):
    return lambda folder: save_file({"x": torch.full((numbers,), value)}, folder / "x.safetensors")


@pytest.fixture
def small_disk():
    """Lets no file of this process grow beyond 100 kB, which the kernel reports as a failed write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_written_folder_is_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "1", save(3.0), "A stage")
    assert load_file(tmp_path / "1" / "x.safetensors")["x"].tolist() == [3.0] * 10
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_its_files_are_as_readable_as_its_folder(tmp_path: Path) -> None:
    """Weights are given away, and safetensors writes files that nobody else can read."""
    before = os.umask(0o022)
    try:
        write_folder(tmp_path / "1", save(3.0), "A stage")
    finally:
        os.umask(before)
    assert (tmp_path / "1" / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_what_a_user_has_beside_it_stays(tmp_path: Path) -> None:
    for name in ("exp.old", "exp.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "backup").write_text("mine")
    for value in (3.0, 4.0):
        write_folder(tmp_path / "exp", save(value), "A stage")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exp", "exp.old", "exp.partial"]
    assert all((tmp_path / name / "backup").read_text() == "mine" for name in ("exp.old", "exp.partial"))


def test_rewriting_replaces(tmp_path: Path) -> None:
    write_folder(tmp_path / "1", save(3.0), "A stage")
    write_folder(tmp_path / "1", save(4.0), "A stage")
    assert load_file(tmp_path / "1" / "x.safetensors")["x"].tolist() == [4.0] * 10


@pytest.mark.parametrize("place", ["1", "2"])
def test_full_disk_keeps_what_was_there(tmp_path: Path, small_disk: None, place: str) -> None:
    write_folder(tmp_path / "1", save(3.0), "A stage")
    with pytest.raises(CheckpointError, match=r"Stage two could not be saved to .* disk is full") as caught:
        write_folder(tmp_path / place, save(4.0, 1_000_000), "Stage two")
    assert "--resume for `nlft train`" in caught.value.hint
    assert "the same command for `nlft compare`" in caught.value.hint
    assert load_file(tmp_path / "1" / "x.safetensors")["x"].tolist() == [3.0] * 10
    assert [path.name for path in tmp_path.iterdir()] == ["1"], "nothing half-written may stay"


def test_full_disk_while_writing_python_files(tmp_path: Path, small_disk: None) -> None:
    with pytest.raises(CheckpointError, match="the disk is full"):
        write_folder(tmp_path / "1", lambda folder: (folder / "t").write_bytes(b"0" * 200_000), "It")
    assert not list(tmp_path.iterdir())


def test_other_errors_pass_through(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        write_folder(tmp_path / "1", fail, "It")
    assert not (tmp_path / "1").exists()


def test_an_interruption_leaves_nothing_half_written(tmp_path: Path) -> None:
    def stop(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "1", stop, "It")
    assert not list(tmp_path.iterdir())


def test_finished_stages_stop_at_a_gap(tmp_path: Path) -> None:
    for stage in (0, 1, 2, 4):
        (tmp_path / "stages" / str(stage)).mkdir(parents=True)
        (tmp_path / "stages" / str(stage) / "stage.json").write_text(json.dumps({}))
    (tmp_path / "stages" / "3").mkdir()
    assert [path.name for path in finished_stages(tmp_path)] == ["1", "2"]


def test_a_failure_while_renaming_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    write_folder(folder, lambda place: (place / "a").write_text("old"), "It")
    rename, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(self.name)
        if self.name.endswith("-partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, lambda place: (place / "a").write_text("new"), "It")
    assert "adapter" in calls and (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
