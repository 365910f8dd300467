"""A layer that has no MLP block but two bare maps (OPT's): memories read what the first reads and add to the second."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gated_models import begin_gated, gated, train_gated
from hope_models import lively
from pathway_models import TASKS, build, logits, trained

from nlft.calibrate import block_inputs
from nlft.pathways.block import PathwayLayer
from nlft.pathways.sparse_memory.model import memories

NAME = "model.decoder.layers.1"


def seen(model: Any, *names: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of modules of the base in one forward pass."""
    found: dict[str, Any] = {}
    handles = [
        model.get_base_model()
        .get_submodule(name)
        .register_forward_hook(lambda _m, args, out, name=name: found.update({name: (args[0], out)}))
        for name in names
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", ["prototype", "hope"])
def test_it_reads_the_first_and_adds_to_the_second(kind):
    model = trained("opt", "prototype") if kind == "prototype" else lively("opt")
    found = seen(model, f"{NAME}.fc1", f"{NAME}.fc2.base_layer", f"{NAME}.fc2")
    layer = model.get_base_model().get_submodule(f"{NAME}.fc2")
    x, added = found[f"{NAME}.fc1"][0], found[f"{NAME}.fc2"][1] - found[f"{NAME}.fc2.base_layer"][1]
    assert isinstance(layer, PathwayLayer) and x.shape == (50, 32) and layer.heard is None
    assert float(added.abs().max()) > 0.01
    if kind == "prototype":
        torch.testing.assert_close(memories(model)[f"{NAME}.fc2"](x), added, rtol=0, atol=1e-5)
    else:  # five rows that know nothing of each other, though the layer has joined them
        ids = TASKS["first task"][0].input_ids
        with torch.no_grad():
            alone = model(input_ids=ids[:1]).logits
        torch.testing.assert_close(logits(model)[:1], alone, rtol=0, atol=1e-4)


def test_calibration_sees_what_the_memory_reads():
    model = trained("opt", "prototype")
    [inputs] = block_inputs(model, [f"{NAME}.fc2"], TASKS["first task"], first=True)
    x = seen(model, f"{NAME}.fc1")[f"{NAME}.fc1"][0]
    kept = TASKS["first task"][0].attention_mask.flatten() == 1
    assert torch.equal(inputs.states[f"{NAME}.fc2"], x[kept])


def test_a_copy_hears_its_own_and_unloading_ends_it():
    model = trained("opt", "prototype")
    twin, expected = copy.deepcopy(model), logits(model)
    plain = model.unload()
    assert not plain.get_submodule(f"{NAME}.fc1")._forward_pre_hooks
    assert torch.equal(logits(plain), logits(build("opt")))
    assert torch.equal(logits(twin), expected)


def test_a_changed_map_reads_its_own_input():
    model = gated(build("opt"), "gated_lora")
    begin_gated(model, "first task")
    train_gated(model, "first task")
    layers = [one for one in model.modules() if isinstance(one, PathwayLayer)]
    assert layers and all(one.listener is None for one in layers)
    found = seen(model, f"{NAME}.fc2", f"{NAME}.fc2.base_layer")
    x, added = found[f"{NAME}.fc2"][0], found[f"{NAME}.fc2"][1] - found[f"{NAME}.fc2.base_layer"][1]
    core: Any = model.get_base_model().get_submodule(f"{NAME}.fc2").cores["default"]
    logits(model)
    torch.testing.assert_close(core(x).detach(), added, rtol=0, atol=1e-5)
