"""Adapters that are taken out of the weights, and methods that need weights that can be moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nlft.base import FrozenBase, load_base
from nlft.config import BaseConfig, FullConfig, LoraConfig
from nlft.data.template import Encoded, encode_rows
from nlft.data.world import rows
from nlft.errors import BaseModelError
from nlft.methods import build_method
from nlft.methods.protocol import TaskContext

LAYER = "model.layers.2.mlp.up_proj"
IDS = torch.arange(4, 24)[None]


def fresh() -> FrozenBase:
    return load_base(BaseConfig(device="cpu", dtype="float32"))


def corda(method: str | None = None) -> LoraConfig:
    peft: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "corda"}
    if method:
        peft["corda_config"] = {"corda_method": method}
    return LoraConfig(kind="lora", lr=1e-3, peft=peft)


def encoded(base: FrozenBase, path: str) -> list[Encoded]:
    return encode_rows(list(rows(path))[:40], base.tokenizer, base.context)


def covariance(base: FrozenBase, some: list[Encoded]) -> Tensor:
    """Of the inputs of one matrix, as PEFT takes it: every row scaled by its largest entry, plus a hundredth."""
    seen: list[Tensor] = []
    handle = base.model.get_submodule(LAYER).register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    with torch.no_grad():
        for row in some:
            base.model(input_ids=torch.tensor([row.ids]))
    handle.remove()
    scaled = [one / one.max().abs() for one in seen]
    found = torch.stack([one.T @ one for one in scaled]).mean(0)
    return found + 0.01 * found.diagonal().mean() * torch.eye(len(found))


@pytest.mark.parametrize(("mode", "path", "end"), [(None, "base/background-text", -4), ("ipm", "tasks/ships/train", 0)])
def test_corda_takes_out_what_the_rows_use_least_or_most(mode: str | None, path: str, end: int) -> None:
    """The trained directions are the last (first) singular ones of W C, and the function stays."""
    base = fresh()
    weight = base.model.get_submodule(LAYER).weight.detach().clone()
    used = covariance(base, encoded(base, path))
    with torch.no_grad():
        plain = base.model(input_ids=IDS).logits
    method = build_method(corda(mode))
    model: Any = method.attach(base, 0)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, plain)
    train, background = encoded(base, "tasks/ships/train"), encoded(base, "base/background-text")
    method.begin_task(model, TaskContext("ships", train, [], background, 1, 1, 8, 0, 0))
    with torch.no_grad():
        assert torch.allclose(model.eval()(input_ids=IDS).logits, plain, atol=2e-3)
    layer = model.get_submodule(f"base_model.model.{LAYER}")
    change = layer.get_delta_weight("default").detach()
    left = layer.get_base_layer().weight.detach()
    assert float(change.abs().max()) > 1e-4 and torch.allclose(left + change, weight, atol=1e-5)
    u, s, vh = torch.linalg.svd(weight @ used, full_matrices=False)
    part = slice(end, None) if end else slice(0, 4)
    expected = u[:, part] @ torch.diag(s[part]) @ vh[part] @ torch.linalg.inv(used)
    assert torch.allclose(change, expected, atol=0.02 * float(weight.abs().max()))
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert trained and all("lora_" in name for name in trained)


def test_corda_keeps_what_is_known_unless_told_otherwise() -> None:
    for given, mode in (({"verbose": True}, "kpm"), ({"corda_method": "ipm"}, "ipm")):
        config = corda()
        method: Any = build_method(config.model_copy(update={"peft": {**config.peft, "corda_config": given}}))
        assert method.peft_config.corda_config.corda_method == mode


def test_corda_trains_in_float32_on_any_base() -> None:
    base = load_base(BaseConfig(device="cpu", dtype="bfloat16"))
    method = build_method(corda())
    model: Any = method.attach(base, 0)
    background = encoded(base, "base/background-text")[:4]
    method.begin_task(model, TaskContext("ships", [], [], background, 1, 1, 8, 0, 0))
    kinds = {one.requires_grad: one.dtype for one in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_osf_leaves_the_base_and_its_main_directions() -> None:
    base = fresh()
    weight = base.model.get_submodule(LAYER).weight.detach().clone()
    config = LoraConfig(kind="lora", lr=1e-3, peft_type="OSF", peft={"effective_rank": 16})
    method = build_method(config)
    model: Any = method.attach(base, 0)
    assert not method.changes_base
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    layer = model.get_submodule(f"base_model.model.{LAYER}")
    assert torch.equal(layer.get_base_layer().weight, weight)
    main = torch.linalg.svd(weight, full_matrices=False).U[:, :16]
    gradient = layer.osf_svd_params["default"]["U_low"].grad
    assert float(gradient.abs().max()) > 0
    assert float((main.T @ gradient).abs().max()) < 1e-3 * float(gradient.abs().max())


@pytest.mark.parametrize(
    "config",
    [
        FullConfig(kind="full", lr=1e-3),
        LoraConfig(kind="lora", lr=1e-3, tasks="merged"),
        LoraConfig(kind="lora", lr=1e-3, peft={"init_lora_weights": "pissa"}),
        corda(),
    ],
)
def test_weights_that_cannot_be_moved_are_refused(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = fresh()
    monkeypatch.setattr(base.model, "is_quantized", True, raising=False)
    with pytest.raises(BaseModelError, match="needs unquantised weights"):
        build_method(config).attach(base, 0)
