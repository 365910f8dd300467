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
from nlft.base import FrozenBase, freeze, load_base
from nlft.config import BaseConfig
from nlft.errors import NlftError
from nlft.hub import model_location
from nlft.learner import read_section
from nlft.loading import base_note, check_fingerprint, unchecked
from nlft.manifest import BaseNote, Manifest, write_manifest
from nlft.methods import build_method
from nlft.pathways.base_sample import sample_base
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
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
    config, other = LoraConfig(), manifest(model="b", sha256="b" * 64, dtype="float32")
    assert check_fingerprint(None, base, config) is None
    assert check_fingerprint(manifest(model="b"), base, config) is None
    assert check_fingerprint(manifest(model="b", sha256="a" * 64, dtype="float32"), base, config) is None
    assert check_fingerprint(manifest(model="b", sha256="b" * 64, dtype="bfloat16"), base, config) is None
    with pytest.raises(NlftError, match="made for b with other weights") as caught:
        check_fingerprint(other, base, config)
    assert "any_base" in caught.value.hint
    # As on another version of transformers, which computes buffers in another way: the sample of weights decides.
    noted = GatedLoraPeftConfig(gate_layer=1, base_sample=sample_base(base.model), task_type="CAUSAL_LM")
    assert "the weights that the adapter notes of it are the same" in str(check_fingerprint(other, base, noted))
    base.model.model.embed_tokens.weight.data.mul_(1.1)
    with pytest.raises(NlftError, match="holds other numbers"):
        check_fingerprint(other, base, noted)


def test_an_adapter_names_a_built_in_base_as_recipes_do(tmp_path: Path) -> None:
    """Where nlft lies on this machine is nobody's business, and no base on another one."""
    base = load_base(BaseConfig())
    method = build_method(read_section({"kind": "lora", "peft": {"r": 2}}))
    method.save(method.attach(base, 0), tmp_path)
    written = [path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".md")]
    assert len(written) == 2 and all("builtin:tiny" in text for text in written)
    place = model_location("builtin:tiny")
    assert not any(place in text for text in written)
    assert base_note(tmp_path).model == "builtin:tiny"
    config = tmp_path / "adapter_config.json"  # as versions before wrote it
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": place}))
    assert base_note(tmp_path).model == "builtin:tiny"
    assert nlft.load(tmp_path).active_adapters == ["default"]


def test_a_base_that_nothing_is_known_of_is_said(make_model: Callable[..., Any]) -> None:
    base = freeze(make_model("llama"), None, "some/base")
    config = GatedLoraPeftConfig(target_modules=["o_proj"])
    assert "was not checked whether some/base is that base" in (unchecked(None, base, config) or "")
    assert unchecked(manifest(model="a/b", sha256=base.fingerprint), base, config) is None
    config.base_sample = {"tensors": {}}
    assert unchecked(None, base, config) is None and unchecked(None, base, LoraConfig()) is None


def test_a_loaded_adapter_is_saved_without_asking_for_its_base(tmp_path: Path) -> None:
    """PEFT looks for the base's settings where the adapter names it, and warns, which is an error here."""
    method = build_method(read_section({"kind": "lora", "peft": {"r": 2}}))
    method.save(method.attach(load_base(BaseConfig()), 0), tmp_path / "1")
    method.save(method.load(load_base(BaseConfig()), tmp_path / "1"), tmp_path / "2")
    first, second = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in "12")
    assert first == second and first["base_model_name_or_path"] == "builtin:tiny"
