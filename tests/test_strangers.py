"""Adapters of strangers: every hostile file gets a sentence before anything is made of it, by PEFT's door too."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from peft import AutoPeftModel, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from nlft.adapter import read_adapter, read_config
from nlft.errors import CheckpointError, NlftError
from nlft.pathways.header import LARGEST_CONFIG, LARGEST_HEADER, read_header
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories

MADE: dict[str, Path] = {}
BLOCK = "base_model.model.model.layers.1.mlp.nlft_sparse_memory_core"
VALUES = f"{BLOCK}.tasks.0.values"


@pytest.fixture
def base(make_model: Callable[..., Any]) -> Any:
    return make_model("llama")


@pytest.fixture
def adapter(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of an adapter with one task of five slots, made once."""
    if not MADE:
        config = SparseMemoryPeftConfig(layers_to_transform=[1], task_type="CAUSAL_LM")
        adapted = get_peft_model(make_model("llama"), config)
        keys = torch.nn.functional.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=1)
        begin_task(adapted, "first", dict.fromkeys(memories(adapted), (keys, torch.full((5,), 0.5))))
        end_task(adapted)
        MADE["adapter"] = tmp_path_factory.mktemp("made")
        adapted.save_pretrained(str(MADE["adapter"]))
    return Path(shutil.copytree(MADE["adapter"], tmp_path / "adapter"))


def change(adapter: Path, **fields: Any) -> None:
    """Writes other settings."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def refused(adapter: Path, base: Any, said: str) -> None:
    """The sentence by nlft's door and by PEFT's, where no block has been wrapped."""
    with pytest.raises(CheckpointError, match=said):
        read_adapter(adapter)
    with pytest.raises(NlftError, match=said):
        PeftModel.from_pretrained(base, str(adapter))
    assert not any("nlft" in name for name, _ in base.named_modules())


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_nlft_writes_is_read(adapter: Path, base: Any) -> None:
    described = read_header(adapter / "adapter_model.safetensors")
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert {k: (t.shape, t.dtype) for k, t in described.items()} == {k: (t.shape, t.dtype) for k, t in tensors.items()}
    assert all(tensor.is_meta for tensor in described.values())
    assert list(read_adapter(adapter).config.tasks) == ["first"]
    PeftModel.from_pretrained(base, str(adapter))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "longer than the file"),
        (raw({}, length=2**63), "longer than the file"),
        (raw(b"x" * (LARGEST_HEADER + 1)), "has a header of 16,777,217 bytes; at most"),
        (raw(b"no json"), "cannot be read: it is no JSON"),
        (raw(b"\xff\xfe{}"), "cannot be read: it is no JSON"),
        (raw([1]), "it is no JSON object"),
        (raw(b'{"a":' + b"[" * 200_000), "it is nested too deeply"),
        (raw({"a": 3}), "a is of the dtype 'None'"),
        (raw({"a": one("F4")}, bytes(8)), "a is of the dtype 'F4', which no adapter has"),
        (raw({"a": one(["F32"])}, bytes(8)), "which no adapter has"),  # pyright: ignore
        (raw({"a": one(shape=[-2])}, bytes(8)), r"a has the shape \[-2\], which no tensor has"),
        (raw({"a": one(shape=[2.0])}, bytes(8)), "which no tensor has"),
        (raw({"a": one(shape=[True, 2])}, bytes(8)), "which no tensor has"),
        (raw({"a": one(shape=[0, 10**30], offsets=[0, 0])}), "which no tensor has"),
        (raw({"a": one(shape=[1] * 9, offsets=[0, 4])}, bytes(4)), "which no tensor has"),
        (raw({"a": one(shape=[3])}, bytes(8)), r"a of F32 \[3\] stands at \[0, 8\], which is not its size"),
        (raw({"a": one(offsets=[8, 0])}, bytes(8)), "which is not its size"),
        (raw({"a": one(offsets=[-8, 0])}, bytes(8)), "which is not its size"),
        (raw({"a": one(), "b": one(offsets=[4, 12])}, bytes(12)), "b overlaps another one"),
        (raw({"a": one(), "b": one(offsets=[12, 20])}, bytes(20)), "b leaves a gap before it"),
        (raw({"a": one()}, bytes(4)), "holds 4 bytes, and its header says 8"),
        (raw({"a": one()}, bytes(9)), "holds 9 bytes, and its header says 8"),
        (raw({"a\x1b[2J": one()}, bytes(8)), r"'a\\x1b\[2J' is no name of a tensor"),
        (raw({"../../x": one()}, bytes(8)), r"\.\./\.\./x belongs to no part of it"),
    ],
)
def test_a_damaged_or_hostile_file(adapter: Path, base: Any, content: bytes, said: str) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(content)
    refused(adapter, base, said)


@pytest.mark.parametrize(
    ("key", "make", "said"),
    [
        (VALUES, lambda t: t[:3], r"has the shape \[3, 32\], and \[5, 32\] is needed"),
        (VALUES, lambda t: t.to(torch.int8), "is int8, and a float is needed"),
        (VALUES, lambda t: None, "values is missing"),
        (f"{BLOCK}.extra", lambda t: torch.zeros(1), "extra is unknown"),
        ("base_model.model.model.embed_tokens.weight", lambda t: torch.zeros(97, 32), "belongs to no part of it"),
    ],
)
def test_tensors_that_are_not_what_the_settings_say(
    adapter: Path, base: Any, key: str, make: Callable[[Any], Any], said: str
) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[key] = make(tensors.get(key))
    save_file({k: t.contiguous() for k, t in tensors.items() if t is not None}, adapter / "adapter_model.safetensors")
    refused(adapter, base, said)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none(adapter: Path, base: Any, value: float) -> None:
    """They are known once the file has been read; PEFT has wrapped the blocks by then."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[VALUES][3, 3] = value
    save_file(tensors, adapter / "adapter_model.safetensors")
    for load in (lambda: read_adapter(adapter), lambda: PeftModel.from_pretrained(base, str(adapter))):
        with pytest.raises(NlftError, match="values holds a number that is not finite"):
            load()


def test_an_adapter_cannot_overwrite_its_base(adapter: Path, make_model: Callable[..., Any]) -> None:
    """`modules_to_save` allows the tensors of these modules, and not the base's own copy of them."""
    file = adapter / "adapter_model.safetensors"
    tensors, head = load_file(file), "base_model.model.lm_head"
    change(adapter, modules_to_save=["lm_head"])
    save_file({**tensors, f"{head}.weight": torch.ones(97, 32)}, file)
    model: Any = PeftModel.from_pretrained(make_model("llama"), str(adapter))
    assert torch.equal(model.get_base_model().lm_head.original_module.weight, make_model("llama").lm_head.weight)
    assert model.get_base_model().lm_head.modules_to_save["default"].weight.eq(1).all()
    for name in (f"{head}.original_module.weight", "base_model.model.model.norm.weight"):
        save_file({**tensors, f"{head}.weight": torch.ones(97, 32), name: torch.ones(32)}, file)
        refused(adapter, make_model("llama"), f"{name} belongs to no part of it")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": [["first", 10**12]]}, "tasks.first: 1000000000000 is no size"),
        ({"tasks": [["first", 10**6]]}, r"has the shape \[5.*\], and \[1000000.*\] is needed"),
        ({"tasks": [["first", -5]]}, "tasks.first: -5 is no size"),
        ({"tasks": 3}, "tasks: 3 is no list of pairs"),
        ({"tasks": [["a" * 201, 5]]}, "is no name of a task"),
        ({"tasks": [["a\u202eb", 5]]}, "is no name of a task"),
        ({"gates": [["first", 10**12]]}, "gates.first: 1000000000000 is no size"),
        ({"sizes": [1]}, r"sizes: \[1\] is no object"),
        ({"sizes": {"first": {"model.layers.1.mlp": 10**12}}}, "sizes.first.model.layers.1.mlp: 1000000000000"),
        ({"key_width": 10**12}, "key_width: 1000000000000 is more than any adapter has"),
        ({"half_keys": -1}, "half_keys: -1 is too small"),
        ({"heads": 2.5}, "heads: 2.5 will not do"),
        ({"slots": "many"}, "slots: 'many' will not do"),
        ({"slots": True}, "slots: True will not do"),
        ({"margin": float("nan")}, "margin: nan is no number"),
        ({"gate_decay": "0.5"}, "gate_decay: '0.5' will not do"),
        ({"layers_to_transform": [10**12]}, "layers_to_transform: 1000000000000 is more than"),
        ({"base_model_name_or_path": "a\x1b]0;b"}, "base_model_name_or_path: .* cannot be printed"),
        ({"base_model_name_or_path": {"a": 1}}, "base_model_name_or_path: .* is no text"),
        ({"revision": "x" * 1001}, "revision: 'x+… is too long"),
        ({"auto_mapping": ["os"]}, "auto_mapping must be an object of texts"),
        ({"modules_to_save": ["(a+)+$"]}, r"modules_to_save: '\(a\+\)\+\$' is no name of a module"),
        ({"modules_to_save": ["../../lm_head"]}, "is no name of a module"),
        ({"modules_to_save": "/etc/passwd"}, "modules_to_save: '/etc/passwd' will not do"),
        ({"target_modules": [["mlp"]]}, "is no name of a module"),
        ({"target_modules": 3}, "target_modules: 3 is no name of a module"),
        ({"target_modules": "(a+)+b"}, r"target_modules: '\(a\+\)\+b' is a pattern, and the settings of a stored"),
        ({"exclude_modules": "(?x)(?:.+) *!"}, "exclude_modules: .* is a pattern"),
        ({"target_modules": "("}, "is a pattern"),
        ({"target_modules": "m" * 1001}, "is too long"),
        ({"provenance": {"first": {"reads": 3}}}, "which nlft never writes"),
    ],
)
def test_hostile_settings(adapter: Path, base: Any, fields: dict[str, Any], said: str) -> None:
    change(adapter, **fields)
    started = time.process_time()
    refused(adapter, base, said)
    assert time.process_time() - started < 3


@pytest.mark.parametrize("trainable", [False, True])
def test_a_pattern_by_the_door_of_transformers(adapter: Path, base: Any, trainable: bool) -> None:
    change(adapter, target_modules="(.|..)*!")
    with pytest.raises(NlftError, match="is a pattern"):
        base.load_adapter(str(adapter), is_trainable=trainable)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1, 2]", "it is no JSON object"),
        (b"{}", "does not name the kind"),
        (b'{"peft_type": 3}', "does not name the kind"),
        (b'{"peft_type": "NLFT_OTHER"}', "'NLFT_OTHER' is no kind of adapter that PEFT or nlft knows"),
        (b'{"peft_type": "os.system"}', "is no kind of adapter"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\x00\x01", "it is no JSON"),
        (b" " * (LARGEST_CONFIG + 1), "has 8,388,609 bytes, and settings have at most"),
    ],
)
def test_settings_that_are_none(adapter: Path, content: bytes, said: str) -> None:
    """PEFT reads the file itself before it knows that the adapter is nlft's, so these are sentences of nlft's verbs."""
    (adapter / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_config(adapter)


def test_sizes_that_only_the_machine_can_refuse(adapter: Path, base: Any) -> None:
    """With a config of one's own PEFT builds the adapter before nlft sees the file."""
    config: Any = PeftConfig.from_pretrained(str(adapter))
    config.tasks["first"] = 10**14
    with pytest.raises(NlftError, match="'default': the sizes in its settings need more memory than there is"):
        PeftModel.from_pretrained(base, str(adapter), config=config)


def test_a_pickle_is_not_read(adapter: Path, base: Any) -> None:
    class Shell:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(adapter / "ran"),)

    torch.save({"x": Shell()}, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, base, r"has no adapter_model.safetensors. A pickle \(adapter_model.bin\) can run code")
    assert not (adapter / "ran").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_out_of_the_folder(adapter: Path, base: Any, tmp_path: Path, name: str) -> None:
    (adapter / name).rename(tmp_path / "elsewhere")
    (adapter / name).symlink_to(tmp_path / "elsewhere")
    refused(adapter, base, "is a link to .*elsewhere, outside of the adapter")
    (adapter / name).unlink()
    (adapter / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is a link to /dev/zero"):
        read_adapter(adapter)
    (tmp_path / "elsewhere").rename(adapter / "inside")
    (adapter / name).unlink()
    (adapter / name).symlink_to("inside")
    read_adapter(adapter)


def test_nothing_is_imported_because_settings_say_so(adapter: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "hostile_library.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    change(adapter, task_type=None, auto_mapping={"parent_library": "hostile_library", "base_model_class": "x"})
    read_adapter(adapter)
    with pytest.raises(ValueError, match="not in the import allowlist"):
        AutoPeftModel.from_pretrained(str(adapter))
    assert not (tmp_path / "ran").exists()


def test_the_same_checks_for_the_hub(adapter: Path, base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--user--name" / "snapshots" / ("0" * 40)
    for folder in (snapshot, snapshot.parent.parent / "refs", snapshot.parent.parent / "blobs"):
        folder.mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    for file in adapter.iterdir():
        shutil.copy(file, snapshot.parent.parent / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    PeftModel.from_pretrained(base, "user/name", cache_dir=str(tmp_path)).unload()  # pyright: ignore
    assert list(read_adapter(snapshot).config.tasks) == ["first"]
    change(snapshot, tasks=[["first", 10**6]])
    with pytest.raises(NlftError, match=r"has the shape \[5.*\], and \[1000000.*\] is needed"):
        PeftModel.from_pretrained(base, "user/name", cache_dir=str(tmp_path))

    def absent(*args: Any, **options: Any) -> None:
        raise EntryNotFoundError("404")

    monkeypatch.setattr("nlft.pathways.task.hf_hub_download", absent)
    with pytest.raises(NlftError, match=r"user/name has no adapter_model\.safetensors\. A pickle"):
        PeftModel.from_pretrained(base, "user/name", cache_dir=str(tmp_path))
