"""Sparse memory: config, the memory's own arithmetic, tasks and their errors."""

from __future__ import annotations

import pytest
import torch
from pathway_models import BACKGROUND, TASKS, adapt, begin, build, settings
from peft import PeftConfig, get_peft_model

import nlft.ops.prototype_read as read_file
import nlft.pathways.sparse_memory.layer as layer_file
from nlft.config import SparseMemoryConfig
from nlft.errors import NlftError
from nlft.ops.prototype_read import compact_read
from nlft.ops.slots import half_scores, naive_product_read, naive_product_topk, naive_prototype_read, product_topk
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories, set_statistics


def test_fields_of_the_recipe_have_the_same_names_and_defaults():
    recipe = {name: field.default for name, field in SparseMemoryConfig.model_fields.items()}
    config = SparseMemoryPeftConfig()
    names = {"addressing", "slots", "margin", "half_keys", "heads", "topk", "temperature"}
    assert {name: getattr(config, name) for name in names} == {name: recipe[name] for name in names}


def test_tasks_keep_their_order_on_disk(tmp_path):
    settings("prototype", tasks={"b": 3, "a": 2}, active_task="a").save_pretrained(str(tmp_path))
    again = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(again, SparseMemoryPeftConfig)
    assert list(again.tasks.items()) == [("b", 3), ("a", 2)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"addressing": "hash"}, "addressing: 'hash' is unknown"),
        ({"addressing": "product_key", "half_keys": 3, "topk": 10}, "topk: 10 slots cannot be read"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(NlftError, match=message):
        SparseMemoryPeftConfig(**fields)


@pytest.mark.parametrize(
    ("layers", "message"),
    [([1, 4], "names layer 4, but the base has layers 0 to 3"), ([], "no layer is named")],
)
def test_layers_that_are_not_there(layers, message):
    with pytest.raises(NlftError, match=message):
        get_peft_model(build("llama"), settings("prototype", layers_to_transform=layers))


@pytest.mark.parametrize(
    ("fields", "blocks"),
    [
        ({"layers_to_transform": None}, [0, 1, 2, 3]),
        ({"layers_to_transform": 3}, [3]),
        ({"target_modules": ["mlp"], "layers_to_transform": [0, 2]}, [0, 2]),
        ({"target_modules": r".*\.3\.mlp"}, [3]),
        ({"layers_to_transform": None, "exclude_modules": ["layers.0.mlp"]}, [1, 2, 3]),
    ],
)
def test_chosen_layers(fields, blocks):
    adapted = get_peft_model(build("llama"), settings("prototype", **fields))
    assert list(memories(adapted)) == [f"model.layers.{index}.mlp" for index in blocks]


@pytest.mark.parametrize("addressing", ["prototype", "product_key"])
@pytest.mark.parametrize("key_width", [None, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("by_pairs", [True, False])
def test_memory_equals_its_definition(monkeypatch, addressing, key_width, dtype, tolerance, by_pairs):
    called = []
    monkeypatch.setattr(read_file, "compact_read", lambda *args: called.append(1) or compact_read(*args))
    monkeypatch.setattr(read_file, "DENSEST", 1 if by_pairs else 10**9)
    adapted = get_peft_model(build("llama"), settings(addressing, key_width=key_width))
    core = memories(adapted)["model.layers.1.mlp"].to(dtype)
    torch.manual_seed(0)
    for buffer in core.buffers():
        buffer.normal_()
    k = core.key_width
    if addressing == "prototype":
        keys = torch.nn.functional.normalize(torch.randn(12, k, dtype=dtype), dim=1)
        core.begin_task(keys=keys, thresholds=torch.linspace(-0.2, 0.3, 12, dtype=dtype))
    else:
        core.begin_task(rows=torch.arange(0, 36, 3))
    core.tasks.to(dtype)
    torch.nn.init.normal_(core.newest.values)
    x = torch.randn(2, 5, 32, dtype=dtype)
    flat = x.reshape(-1, 32)
    queries = (flat - core.mean) @ core.whitener
    queries = queries / queries.norm(dim=1, keepdim=True)
    values = core.newest.values.detach().clone().requires_grad_()
    if addressing == "prototype":
        expected = naive_prototype_read(queries, core.newest.keys, core.newest.thresholds, values)
    else:
        scores, slots = naive_product_topk(half_scores(queries, core.rotations, core.half_keys) / 2, core.topk)
        weights = torch.softmax(8.0 * scores, dim=-1)
        expected = naive_product_read(slots.flatten(1), weights.flatten(1), core.newest.rows, values)
    out = core(x)
    torch.testing.assert_close(out, expected.view_as(x), rtol=0, atol=tolerance)
    assert float(out.detach().abs().max()) > 0.01
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected.view_as(x) * weight).sum().backward()
    torch.testing.assert_close(core.newest.values.grad, values.grad, rtol=0, atol=10 * tolerance)
    assert bool(called) == (by_pairs and addressing == "prototype")


def test_blocks_of_a_route_bound_the_sums_too(monkeypatch):
    """Where topk is large, sums of the best halves outnumber the half scores."""
    adapted = get_peft_model(build("llama"), settings("product_key", topk=5))
    core = memories(adapted)["model.layers.1.mlp"]
    for buffer in core.buffers():
        buffer.normal_()
    x = torch.randn(23, 32)
    whole = core.route(x)
    sums = []

    def measured(scores: torch.Tensor, topk: int):
        sums.append(scores.shape[0] * scores.shape[1] * topk**2)
        return product_topk(scores, topk)

    monkeypatch.setattr(layer_file, "product_topk", measured)
    monkeypatch.setattr(layer_file, "BLOCK", 220)
    for one, other in zip(core.route(x), whole, strict=True):
        torch.testing.assert_close(one, other)
    assert len(sums) == 6 and max(sums) <= 220


def test_routing_takes_no_gradient():
    adapted = adapt(build("llama"), "prototype")
    begin(adapted, "first task")
    core = memories(adapted)["model.layers.1.mlp"]
    x = torch.randn(3, 32, requires_grad=True)
    assert torch.autograd.grad((core(x) + x).sum(), x)[0].eq(1).all()


def test_task_errors():
    adapted = adapt(build("llama"), "prototype")
    with pytest.raises(NlftError, match="No task is being trained"):
        end_task(adapted)
    begin(adapted, "first task")
    with pytest.raises(NlftError, match="'first task' is still being trained"):
        begin_task(adapted, "other", {})
    end_task(adapted)
    with pytest.raises(NlftError, match="'first task' has been learned already"):
        begin_task(adapted, "first task", {})
    with pytest.raises(NlftError, match=r"'model.layers.1.mlp' is missing"):
        begin_task(adapted, "other", {"model.layers.2.mlp": None})
    with pytest.raises(NlftError, match=r"'model.layers.0.mlp' has no memory"):
        set_statistics(adapted, {f"model.layers.{i}.mlp": None for i in range(3)})  # pyright: ignore
    with pytest.raises(NlftError, match=r"equally many slots, at least one; these have \[2, 3\]"):
        sizes = {"model.layers.1.mlp": 2, "model.layers.2.mlp": 3}
        begin_task(adapted, "other", {name: (torch.zeros(m, 32), torch.zeros(m)) for name, m in sizes.items()})
    with pytest.raises(NlftError, match="'nobody' is no sparse memory adapter"):
        end_task(adapted, adapter="nobody")
    assert list(adapted.active_peft_config.tasks) == ["first task"]


def test_begin_task_copies_its_addresses():
    adapted = adapt(build("llama"), "prototype")
    keys, thresholds = torch.eye(4, 32), torch.full((4,), 0.5)
    begin_task(adapted, "t", {name: (keys, thresholds) for name in memories(adapted)})
    keys.zero_()
    assert float(memories(adapted)["model.layers.1.mlp"].newest.keys.sum()) == 4.0
    assert len(BACKGROUND) == 2 and len(TASKS) == 2
