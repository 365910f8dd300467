"""Gated LoRA: its arithmetic, its targets, its errors; and what is saved of any gated adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_models import (
    FIRST,
    KINDS,
    SECOND,
    TRAINED,
    begin_gated,
    calibrate_gated,
    end_gated,
    every_kind,
    gated,
    gated_config,
    mixed,
    open_of,
    train_gated,
    trained_gated,
)
from pathway_models import BACKGROUND, TASKS, build, logits, settings
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from nlft.anatomy import map_widths
from nlft.base import fingerprint
from nlft.errors import NlftError
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.gated_lora.model import begin_task, end_task, gated_maps, sees_every_token


def test_maps_equal_their_definition():
    adapted = trained_gated("gated_lora", gate_decay=0.7, lora_alpha=5.0)
    begin_gated(adapted, SECOND, earlier=(FIRST,))
    train_gated(adapted, SECOND)
    logits(adapted, mixed())
    maps = gated_maps(adapted, "default")["model.layers.2.mlp.up_proj"]
    x = torch.randn(6, 12, 32, generator=torch.Generator().manual_seed(0))
    opened, expected = open_of(adapted), torch.zeros(6, 12, 48)
    for row in range(6):
        for t in range(12):
            for number, task in enumerate(maps.task_maps):
                expected[row, t] += opened[row, t, number] * 5.0 / 3 * task.B.detach() @ (task.A.detach() @ x[row, t])
    torch.testing.assert_close(maps(x).detach(), expected, rtol=0, atol=1e-5)
    assert float(expected.abs().max()) > 0.01
    assert maps(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "per_layer"),
    # Experts are one tensor in the two mixtures here, and their router is no nn.Linear.
    {"llama": 7, "gpt2": 4, "gpt_neox": 4, "bloom": 4, "opt": 6, "phi": 6, "mixtral": 4, "gpt_oss": 4}.items(),
)
def test_every_linear_map_behind_the_gate_is_a_target(family, per_layer):
    base = build(family)
    every = {name: m for name, m in base.named_modules() if hasattr(m, "weight") and m.weight.ndim == 2}
    maps = gated_maps(get_peft_model(base, gated_config("gated_lora", gate_layer=2)), "default")
    layers = {int(next(part for part in name.split(".") if part.isdigit())) for name in maps}
    assert layers == {2, 3}
    for name, one in maps.items():
        weight = every[name].weight.shape
        assert sorted((one.width_in, one.width_out)) == sorted(weight)
    assert len(maps) == 2 * per_layer


def test_widths_of_transposed_maps():
    linear, conv = nn.Linear(3, 5), build("gpt2").transformer.h[0].mlp.c_fc
    assert map_widths(linear) == (3, 5) and map_widths(conv) == (32, 128)


class Experts(nn.Module):
    """A layer as models with code of their own have it: each expert gets its own tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(32, 2)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(32, 32)), nn.Sequential(nn.Linear(32, 32))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 32)
        best, output = self.router(flat).argmax(dim=1), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            output[best == number] = expert(flat[best == number])
        return output.view_as(x)


def test_experts_are_left_out_or_refused():
    layer = nn.ModuleDict({"mlp": Experts()})
    found = {name: sees_every_token(layer, name) for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
    assert found == {"mlp.router": True, "mlp.experts.0.0": False, "mlp.experts.1.0": False}

    def with_experts() -> Any:
        base = build("llama")
        base.model.layers[2].mlp = Experts().requires_grad_(False)
        return base

    adapted = gated(with_experts(), "gated_lora")
    begin_gated(adapted, FIRST)
    assert torch.isfinite(logits(adapted)).all()
    assert not any("experts" in name for name in gated_maps(adapted, "default"))
    adapted = gated(with_experts(), "gated_lora", target_modules=["experts.0.0"], layers_to_transform=[2])
    with pytest.raises(NlftError, match="but the gate saw") as caught:
        begin_gated(adapted, FIRST)
        logits(adapted)
    assert "experts" in caught.value.hint


def test_short_names_stay_behind_the_gate():
    adapted = gated(build("llama"), "gated_lora", target_modules=["q_proj", "down_proj"], gate_layer=2)
    names = ("model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.down_proj")
    assert set(gated_maps(adapted, "default")) == {name.format(index) for name in names for index in (2, 3)}
    early = gated(build("llama"), "gated_lora", target_modules=["q_proj"], layers_to_transform=[0])
    begin_gated(early, FIRST)
    with pytest.raises(NlftError, match="stands in front of its gate"):
        logits(early)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r: 0 is no rank"),
        ({"gate_layer": None}, "gated LoRA needs a gate"),
        ({"gate_decay": 1.5}, "gate_decay: 1.5 is no share"),
        ({"gate_layer": 4}, "gate.layer: 4 is no layer of this base"),
        ({"gate_layer": 9}, "gate.layer: 9 is no layer of this base"),
        ({"gate_layer": 2, "layers_to_transform": [1, 3]}, "layer 1 lies in front of the gate"),
        ({"layers_to_transform": [1, 7]}, "names layer 7, but the base has layers 0 to 3"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(NlftError, match=message):
        get_peft_model(build("llama"), gated_config("gated_lora", **fields))


def test_task_errors():
    adapted = gated(build("llama"), "gated_lora")
    with pytest.raises(NlftError, match="No task is being trained"):
        end_task(adapted)
    begin_gated(adapted, FIRST)
    with pytest.raises(NlftError, match="is still being trained"):
        begin_task(adapted, "other", seed=0)
    end_task(adapted)
    assert not any(p.requires_grad for p in adapted.parameters())
    with pytest.raises(NlftError, match="has been learned already"):
        begin_task(adapted, FIRST, seed=0)


@every_kind
def test_finished_tasks_are_frozen_bit_exactly(kind):
    adapted = trained_gated(kind)
    rows = (TASKS[FIRST][0], BACKGROUND[0])
    before = [logits(adapted, one) for one in rows]
    frozen = {name: t.clone() for name, t in adapted.state_dict().items() if ".tasks.0." in name}
    begin_gated(adapted, SECOND, earlier=(FIRST,))
    assert all(torch.equal(logits(adapted, one), old) for one, old in zip(rows, before, strict=True))
    adapted.set_adapter("default")  # PEFT turns every parameter's gradient on
    train_gated(adapted, SECOND)
    trainable = {name.partition(".tasks.")[2] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable == {f"1.{name}" for name in TRAINED[kind]}
    after = adapted.state_dict()
    assert frozen and all(torch.equal(after[name], t) for name, t in frozen.items())
    assert float(open_of(adapted)[..., 1].max()) > 0  # it speaks on its own rows
    assert all(torch.equal(logits(adapted, one), old) for one, old in zip(rows, before, strict=True))


@every_kind
@pytest.mark.parametrize("adapter", ["0", "tasks", "nlft_gate", "layers"])
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_awkward_adapter_names(kind, adapter, tmp_path):
    adapted = trained_gated(kind)
    adapted.save_pretrained(tmp_path)
    options: dict[str, Any] = {"low_cpu_mem_usage": True} if adapter in ("0", "nlft_gate") else {}
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path), adapter_name=adapter, **options)
    assert torch.equal(logits(again, mixed()), logits(adapted, mixed()))
    again.save_pretrained(tmp_path / "twice")
    third = PeftModel.from_pretrained(build("llama"), str(tmp_path / "twice" / adapter))
    assert torch.equal(logits(third, mixed()), logits(adapted, mixed()))


@every_kind
def test_two_adapters_are_saved_apart(kind, tmp_path):
    adapted = trained_gated(kind)
    adapted.add_adapter("other", gated_config(kind, gate_layer=2, gate_decay=0.0, layers_to_transform=[2, 3]))
    adapted.set_adapter("other")
    calibrate_gated(adapted, "other")
    begin_gated(adapted, SECOND, adapter="other")
    train_gated(adapted, SECOND)
    end_gated(adapted, "other")
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    again.load_adapter(str(tmp_path / "other"), adapter_name="x")
    for ours, theirs in (("default", "default"), ("other", "x")):
        adapted.set_adapter(ours)
        again.set_adapter(theirs)
        assert torch.equal(logits(again, mixed()), logits(adapted, mixed()))


@every_kind
def test_a_task_goes_on_after_reloading(kind, tmp_path):
    adapted = trained_gated(kind)
    begin_gated(adapted, SECOND, earlier=(FIRST,))
    train_gated(adapted, SECOND, steps=1)
    adapted.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(build("llama"), str(tmp_path), is_trainable=True).eval()
    assert again.active_peft_config.active_task == SECOND
    for model in (adapted, again):
        train_gated(model, SECOND)
        end_gated(model)
    for rows in (mixed(), TASKS[SECOND][0]):
        assert torch.equal(logits(again, rows), logits(adapted, rows))


@pytest.mark.parametrize("kind", KINDS[1:])  # gated LoRA stands in the matrix
def test_half_precision_base_keeps_a_float32_adapter(kind, tmp_path):
    base = build("llama", torch.bfloat16)
    expected = logits(base)
    adapted = gated(base, kind)
    begin_gated(adapted, FIRST)
    assert torch.equal(logits(adapted), expected)
    train_gated(adapted, FIRST)
    assert logits(adapted).dtype == torch.bfloat16 and not torch.equal(logits(adapted), expected)
    own = {name: t for name, t in adapted.state_dict().items() if "nlft_" in name}
    assert {t.dtype for t in own.values()} <= {torch.float32, torch.int64}
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama", torch.bfloat16), str(tmp_path))
    assert torch.equal(logits(again), logits(adapted))


@every_kind
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_quantised_base(kind, bits, tmp_path):
    build("llama").save_pretrained(tmp_path)
    options: dict[str, Any] = {"load_in_4bit": True} if bits == 4 else {"load_in_8bit": True}
    config = BitsAndBytesConfig(**options)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    base.requires_grad_(False)
    before, expected, background = fingerprint(base), logits(base), logits(base, BACKGROUND[0])
    names = frozenset(name for name, _ in [*base.named_parameters(), *base.named_buffers()])
    adapted = gated(base, kind)
    begin_gated(adapted, FIRST)
    assert torch.equal(logits(adapted), expected)
    train_gated(adapted, FIRST)
    assert not torch.equal(logits(adapted), expected)
    assert torch.equal(logits(adapted, BACKGROUND[0]), background)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected)
    assert fingerprint(adapted, names) == before


def test_configs_survive_the_disk(tmp_path):
    for config in (GatedLoraPeftConfig(r=5, gate_layer=2, gates={"b": 3, "a": 2}), settings("prototype", gate_layer=3)):
        config.save_pretrained(str(tmp_path))
        assert PeftConfig.from_pretrained(str(tmp_path)).to_dict() == config.to_dict()
