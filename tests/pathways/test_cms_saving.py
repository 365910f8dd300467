"""What is saved of a continuum memory system comes back, under any name and by every door."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cms_models import ROWS, cms, cms_config, every_kind, train, trained_cms
from pathway_models import TASKS, build, logits
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file

from nlft.adapter import read_adapter
from nlft.errors import CheckpointError, NlftError
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.cms.model import cms_cores, levels_of
from nlft.pathways.layout import check_layout
from nlft.pathways.lifecycle import stored
from nlft.rescore import load_weights

SECOND = TASKS["second.task"][0]


@every_kind
def test_half_precision_base_keeps_float32_levels(kind, tmp_path):
    base = build("llama", torch.bfloat16)
    expected = logits(base)
    adapted = cms(base, kind)
    assert torch.equal(logits(adapted), expected)
    train(adapted)
    assert logits(adapted).dtype == torch.bfloat16 and not torch.equal(logits(adapted), expected)
    assert {p.dtype for level in levels_of(adapted) for p in level.values()} == {torch.float32}
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama", torch.bfloat16), str(tmp_path))
    assert torch.equal(logits(again), logits(adapted))


@every_kind
def test_reload_and_generation(kind, tmp_path):
    adapted = trained_cms(kind)
    adapted.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(build("llama"), str(tmp_path), adapter_name="other", is_trainable=True)
    assert torch.equal(logits(again), logits(adapted))
    assert not torch.equal(logits(again), logits(build("llama")))
    assert all(p.requires_grad for level in levels_of(again, "other") for p in level.values())
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    for beams in (1, 3):
        found = again.generate(input_ids=ROWS.input_ids[:1], **options, num_beams=beams)
        assert torch.equal(
            found, again.generate(input_ids=ROWS.input_ids[:1], **options, num_beams=beams, use_cache=False)
        )


@every_kind
@pytest.mark.parametrize("adapter", ["0", "tasks", "core", "levels", "nlft_cms_core"])
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_awkward_adapter_names(kind, adapter, tmp_path):
    adapted = trained_cms(kind, adapter=adapter)
    adapted.save_pretrained(tmp_path)
    [file] = tmp_path.rglob("adapter_model.safetensors")
    keys = {key.split(".nlft_cms_core.")[1] for key in load_file(file)}
    names = ["A", "B"] if kind == "pretrained" else [f"{one}{level}" for one in "AB" for level in range(3)]
    assert keys == {f"tasks.0.{name}" for name in names}
    for name in ("default", "0", "A0"):
        again = PeftModel.from_pretrained(build("llama"), str(file.parent), adapter_name=name, low_cpu_mem_usage=True)
        assert torch.equal(logits(again), logits(adapted))


@every_kind
def test_two_adapters(kind, tmp_path):
    adapted = trained_cms(kind)
    first, plain = logits(adapted), logits(build("llama"))
    adapted.add_adapter("other", cms_config(kind, periods=[2, 3], r=5, layers_to_transform=[1, 3], scale=0.5))
    assert torch.equal(logits(adapted), first)
    adapted.set_adapter("other")
    assert torch.equal(logits(adapted), plain)
    train(adapted, rows=SECOND)
    second = logits(adapted)
    assert not torch.equal(second, plain) and len(levels_of(adapted, "other")) == 2
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted), first)
    adapted.base_model.set_adapter(["default", "other"])
    assert not torch.equal(logits(adapted), first)
    adapted.set_adapter("default")
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    again.load_adapter(str(tmp_path / "other"), adapter_name="x")
    assert torch.equal(logits(again), first)
    again.set_adapter("x")
    assert torch.equal(logits(again), second)
    adapted.set_adapter("other")
    adapted.delete_adapter("default")
    assert torch.equal(logits(adapted), second) and len(cms_cores(adapted, "other")) == 2
    assert not cms_cores(adapted)
    adapted.delete_adapter("other")
    assert torch.equal(logits(adapted.base_model.model), plain)


def test_adapters_of_two_inits_are_refused_and_harm_nothing():
    adapted = trained_cms("headwise")
    first = logits(adapted)
    with pytest.raises(NlftError, match="could not be saved under the base's names"):
        adapted.add_adapter("other", cms_config("pretrained"))
    assert torch.equal(logits(adapted), first)
    assert torch.equal(logits(adapted.unload()), logits(build("llama")))


@every_kind
def test_a_folder_is_read_whole_and_has_no_tasks_apart(kind, tmp_path):
    adapted = trained_cms(kind)
    adapted.save_pretrained(tmp_path)
    found = read_adapter(tmp_path, apart=False)
    assert isinstance(found.config, CmsPeftConfig)
    with pytest.raises(NlftError, match="shared by all tasks") as caught:
        read_adapter(tmp_path)
    assert "gate: prototype" in caught.value.hint
    check_layout(*vars(stored(adapted)).values())
    key = next(key for key in found.tensors if ".A" in key)
    for change in (lambda t: t[1:], lambda t: t.long(), lambda t: t * torch.inf, lambda t: None):
        tensors = {**found.tensors, key: change(found.tensors[key])}
        if tensors[key] is None:
            del tensors[key]
        with pytest.raises(NlftError, match=r"layers\.0\.mlp"):
            check_layout(found.config, tensors)
    found.config.r += 1
    with pytest.raises(NlftError, match="has the shape"):
        check_layout(found.config, found.tensors)
    with pytest.raises(NlftError, match="there is no block"):
        check_layout(found.config, {})


def test_a_damaged_folder_is_refused_before_it_is_scored(tmp_path):
    adapted = trained_cms("headwise")
    adapted.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 3', '"r": 300000'))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_weights(tmp_path, SimpleNamespace(model=build("llama"), name="llama"))  # pyright: ignore


def test_configs_survive_the_disk(tmp_path):
    for config in (cms_config("sequential", periods=[1, 5], scale=0.25), cms_config("pretrained", gate_layer=2)):
        config.save_pretrained(str(tmp_path))
        assert PeftConfig.from_pretrained(str(tmp_path)).to_dict() == config.to_dict()
