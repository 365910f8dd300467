"""The manifest of an exported adapter, and what a folder must be to fit it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlft.errors import NlftError
from nlft.manifest import (
    FILE,
    MAX_BYTES,
    BaseNote,
    FileNote,
    Manifest,
    check_files,
    describe_files,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "adapter"
    (out / "results").mkdir(parents=True)
    (out / "adapter_model.safetensors").write_bytes(b"weights")
    (out / "README.md").write_text("card")
    (out / "results" / "items.parquet").write_bytes(b"items")
    write_manifest(out, manifest_of(out))
    return out


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "base": BaseNote(model="builtin:tiny"),
        "peft_type": "LORA",
        "dtype": "float32",
        "learned_bytes": 7,
        "calibration_bytes": 0,
        "files": describe_files(folder),
    }
    return Manifest(**{**fields, **changes})


def test_it_is_read_back(folder: Path) -> None:
    found = read_manifest(folder)
    assert found == manifest_of(folder)
    assert found is not None
    assert set(found.files) == {"adapter_model.safetensors", "README.md", "results/items.parquet"}
    assert found.files["adapter_model.safetensors"].bytes == 7
    assert json.loads((folder / FILE).read_text())["schema"] == "nlft.adapter/1"
    check_files(folder, found)
    assert read_manifest(folder / "results") is None


def test_what_no_export_holds_is_refused_although_it_is_listed(folder: Path) -> None:
    (folder / "torch.py").write_text("import os")
    with pytest.raises(NlftError, match=r"torch\.py is no file of an export"):
        check_files(folder, manifest_of(folder))


def test_what_the_owner_may_add(folder: Path) -> None:
    manifest = manifest_of(folder)
    for name in ("LICENSE", ".gitattributes", ".gitignore"):
        (folder / name).write_text("from the Hub")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("a clone")
    check_files(folder, manifest)
    (folder / "COPYING").write_text("else")
    with pytest.raises(NlftError, match=r"COPYING is not in nlft\.json"):
        check_files(folder, manifest)


def test_a_table_that_claims_too_many_rows_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"value": [1.0] * 3}), folder / "results" / "items.parquet")
    monkeypatch.setattr("nlft.manifest.MAX_ROWS", 3)
    check_files(folder, manifest_of(folder))
    monkeypatch.setattr("nlft.manifest.MAX_ROWS", 2)
    with pytest.raises(NlftError, match=r"items\.parquet claims 3 rows, where 2 are read at most"):
        check_files(folder, manifest_of(folder))


@pytest.mark.parametrize("change", [{"dtype": "int8"}, {"base": {"model": "a/b", "quantization": "3bit"}}])
def test_a_word_that_nlft_never_writes(folder: Path, change: dict[str, Any]) -> None:
    data = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(data | change))
    with pytest.raises(NlftError, match=r"no manifest of an adapter: .*Input should be"):
        read_manifest(folder)


def test_a_later_version_may_say_more(folder: Path) -> None:
    data = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(data | {"colour": "blue"}))
    assert read_manifest(folder) == manifest_of(folder)
    (folder / FILE).write_text(json.dumps(data | {"schema": "nlft.adapter/2"}))
    with pytest.raises(NlftError, match=r"schema: .*nlft\.adapter/1"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "no manifest"),
        ("{", "no manifest"),
        ('{"schema": "nlft.adapter/1"}', "base: Field required"),
        (" " * (MAX_BYTES + 1), "longer than"),
    ],
)
def test_what_is_no_manifest_gets_a_sentence(folder: Path, text: str, said: str) -> None:
    (folder / FILE).write_text(text)
    with pytest.raises(NlftError, match=said):
        read_manifest(folder)


def test_every_difference_is_named(folder: Path) -> None:
    manifest = manifest_of(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"Weights")
    (folder / "results" / "items.parquet").unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("a card that somebody has edited")
    (folder / ".gitattributes").write_text("from the Hub")
    with pytest.raises(NlftError) as caught:
        check_files(folder, manifest)
    for said in (
        "adapter_model.safetensors is not the file",
        "items.parquet is missing",
        "adapter_model.bin is not in",
    ):
        assert said in str(caught.value)
    assert "README" not in str(caught.value)
    assert "gitattributes" not in str(caught.value)
    with pytest.raises(NlftError, match=r"README\.md is not the file"):
        check_files(folder, manifest, editable=())


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "C:\\secret", "a\\b", "", "a//b", "./a"])
def test_a_name_cannot_lead_out_of_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("key")
    files = describe_files(folder) | {name: FileNote(bytes=3, sha256="0" * 64)}
    with pytest.raises(NlftError, match="leads out of the folder"):
        check_files(folder, manifest_of(folder, files=files))


def test_a_link_cannot_lead_out_of_the_folder(folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(b"weights")
    manifest = manifest_of(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to(secret)
    with pytest.raises(NlftError, match=r"adapter_model\.safetensors is a link to another place"):
        check_files(folder, manifest)
    (folder / "more").symlink_to(folder.parent)
    with pytest.raises(NlftError, match=r"more is not in nlft\.json"):
        check_files(folder, manifest)


def test_the_links_of_the_hubs_cache_are_followed(folder: Path) -> None:
    snapshot, blobs = folder.parent / "models--a--b" / "snapshots" / "c0", folder.parent / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(describe_files(folder)):
        (blobs / str(number)).write_bytes((folder / name).read_bytes())
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).symlink_to(blobs / str(number))
    check_files(snapshot, manifest_of(folder))
    (blobs / "1").write_bytes(b"other")
    with pytest.raises(NlftError, match="is not the file that was exported"):
        check_files(snapshot, manifest_of(folder))
