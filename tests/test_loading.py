"""`nlft.load`: which base an adapter's folder names, and which one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import nlft
from nlft.base import FrozenBase
from nlft.errors import NlftError
from nlft.loading import base_note, check_fingerprint
from nlft.manifest import BaseNote, Manifest, write_manifest
from nlft.recipes import dump_recipe


def saved(model: Any, folder: Path) -> Path:
    """LoRA that says something, on a tiny model without a name."""
    get_peft_model(model, LoraConfig(target_modules=["o_proj"], init_lora_weights=False)).save_pretrained(str(folder))
    return folder


def manifest(**base: Any) -> Manifest:
    fields: dict[str, Any] = {"peft_type": "LORA", "dtype": "float32", "learned_bytes": 1, "calibration_bytes": 0}
    return Manifest(base=BaseNote(**base), files={}, **fields)


def test_any_peft_adapter_and_any_model(make_model: Callable[..., Any], tmp_path: Path) -> None:
    folder = saved(make_model("llama"), tmp_path / "lora")
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(make_model("llama"), str(folder)).eval()(input_ids=ids).logits
        found = nlft.load(folder, make_model("llama"), adapter_name="mine").eval()
        assert torch.equal(found(input_ids=ids).logits, wanted)
        assert not torch.equal(make_model("llama")(input_ids=ids).logits, wanted)
    assert found.active_adapters == ["mine"]
    with pytest.raises(NlftError, match="does not load onto this GPT2LMHeadModel"):
        nlft.load(folder, make_model("gpt2"))
    with pytest.raises(NlftError, match="is no adapter"):
        nlft.load(tmp_path / "nothing")


def test_who_names_the_base(recipe: Callable[..., Any], make_model: Callable[..., Any], tmp_path: Path) -> None:
    folder = saved(make_model("llama"), tmp_path / "run" / "adapter")
    with pytest.raises(NlftError, match="names no base model"):
        base_note(folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "some/base"}))
    assert (base_note(folder).model, base_note(folder).dtype) == ("some/base", "auto")
    (tmp_path / "run" / "config.yaml").write_text(dump_recipe(recipe(base={"dtype": "bfloat16"})))
    assert (base_note(folder).model, base_note(folder).dtype) == ("builtin:tiny", "bfloat16")
    write_manifest(folder, manifest(model="a/b", revision="c0", dtype="float32"))
    note = base_note(folder)
    assert (note.model, note.revision, note.dtype, note.quantization) == ("a/b", "c0", "float32", "none")
    write_manifest(folder, manifest(model="a/b", dtype="float32", quantization="4bit"))
    assert (base_note(folder).dtype, base_note(folder).quantization) == ("auto", "4bit")


def test_hashes_are_compared_where_they_can_be(make_model: Callable[..., Any]) -> None:
    base = FrozenBase(make_model("llama"), None, "mine", None, "a" * 64, frozenset(), 64)
    check_fingerprint(None, base)
    check_fingerprint(manifest(model="b"), base)
    check_fingerprint(manifest(model="b", sha256="a" * 64, dtype="float32"), base)
    check_fingerprint(manifest(model="b", sha256="b" * 64, dtype="bfloat16"), base)
    with pytest.raises(NlftError, match="made for b with other weights") as caught:
        check_fingerprint(manifest(model="b", sha256="b" * 64, dtype="float32"), base)
    assert "any_base" in caught.value.hint
