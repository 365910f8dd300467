"""Block inputs that are kept: what they save, and that they are given back only while nothing has changed them."""

from __future__ import annotations

import random

import pytest
import torch
from families import build
from pathway_models import adapt
from peft import LoraConfig, get_peft_model

from nlft.anatomy import find_blocks, root_of
from nlft.calibrate import block_inputs
from nlft.config import PrefixConfig
from nlft.data.batch import Batch, in_batches
from nlft.data.template import Encoded
from nlft.frozen_prefix import install_prefix
from nlft.kept_inputs import KeptInputs
from nlft.ops.keys import spherical_kmeans
from nlft.pathways import prototype
from nlft.pathways.prototype import drawn, prototypes
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories
from nlft.prefix_store import PrefixStore

BLOCKS = ["model.layers.1.mlp", "model.layers.2.mlp"]


def rows(count: int, seed: int) -> list[Batch]:
    """Batches of four rows of 2 to 9 tokens."""
    rng = random.Random(seed)
    ids = [[rng.randrange(3, 97) for _ in range(rng.randint(2, 9))] for _ in range(count)]
    return in_batches([Encoded(one, one, 0) for one in ids], 4, 0)


def kept(model, store: PrefixStore | None = None):
    """The model with a store, and the number of its forward passes."""
    passes = [0]

    def count(*_: object) -> None:
        passes[0] += 1

    install_prefix(model, "base", PrefixConfig(), store or PrefixStore(None, PrefixConfig()))
    root_of(model).register_forward_pre_hook(count)
    return passes


def finish_task(model, thresholds: float) -> None:
    """A finished task whose slots fire above a cosine."""
    addresses = {}
    for name, core in memories(model).items():
        keys = torch.nn.functional.normalize(torch.randn(5, core.key_width), dim=1)
        addresses[name] = (keys, torch.full((5,), thresholds))
    begin_task(model, f"task {len(model.active_peft_config.tasks)}", addresses)
    for core in memories(model).values():
        torch.nn.init.normal_(core.newest.values)
    end_task(model)


def read(model, batches, **options) -> list[dict[str, torch.Tensor]]:
    return [inputs.states for inputs in block_inputs(model, BLOCKS, batches, **options)]


def assert_equal(one, other) -> None:
    for left, right in zip(one, other, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in BLOCKS)


@pytest.mark.parametrize(("first", "last"), [(True, True), (False, True), (False, False)])
def test_inputs_are_read_once_and_given_back_bit_for_bit(first, last):
    model, batches = adapt(build("llama"), "prototype"), rows(9, 0)
    fresh = read(model, batches, first=first, last=last)
    passes = kept(model)
    assert_equal(read(model, batches, again=True), read(model, batches))
    assert passes == [3]
    assert_equal(read(model, batches, first=first, last=last), fresh)
    assert passes == [3]


def test_what_is_read_once_is_not_kept():
    model, batches = adapt(build("llama"), "prototype"), rows(9, 0)
    passes = kept(model)
    read(model, batches)
    read(model, batches)
    assert passes == [6]


def test_inputs_stand_while_memories_are_silent_and_fall_where_they_speak():
    torch.manual_seed(0)
    batches = rows(13, 1)
    model = adapt(build("llama"), "prototype")
    passes = kept(model)
    before = read(model, batches, again=True)
    finish_task(model, 1.1)  # never reached
    assert_equal(read(model, batches, again=True), before)
    assert passes == [4]
    finish_task(model, 0.0)
    after = read(model, batches, again=True)
    assert passes == [8]
    assert not torch.equal(after[0][BLOCKS[1]], before[0][BLOCKS[1]])
    assert torch.equal(after[0][BLOCKS[0]], before[0][BLOCKS[0]])  # nothing stands in front of it
    with model.disable_adapter():
        assert_equal(read(model, batches), before)
    assert passes == [8]


def test_inputs_with_something_learned_in_them_are_never_kept():
    torch.manual_seed(0)
    batches = rows(5, 2)
    model = adapt(build("llama"), "prototype")
    finish_task(model, 0.0)
    store = PrefixStore(None, PrefixConfig())
    kept(model, store)
    read(model, batches, again=True)
    assert not store.inputs.tensors


def test_other_adapters_and_trained_weights_are_read_afresh():
    batches = rows(5, 3)
    for model in (
        get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")),
        build("llama").requires_grad_(True),
    ):
        assert find_blocks(root_of(model))[1:3] == BLOCKS
        passes = kept(model)
        read(model, batches, again=True)
        read(model, batches, again=True)
        assert passes == [4]


def test_a_full_store_keeps_no_more():
    model, batches = adapt(build("llama"), "prototype"), rows(9, 0)
    store = PrefixStore(None, PrefixConfig(memory_gb=1e-6, disk_gb=0))
    passes = kept(model, store)
    assert_equal(read(model, batches, again=True), read(model, batches))
    assert passes == [6] and not store.inputs.tensors


def test_files_hold_no_inputs(tmp_path):
    """Small files, and more of them than rows have batches, would push out the tables of states."""
    model, batches = adapt(build("llama"), "prototype"), rows(9, 0)
    store = PrefixStore(tmp_path / "p", PrefixConfig(), shared=True)
    passes = kept(model, store)
    read(model, batches, again=True)
    kept(adapt(build("llama"), "prototype"), store)  # the next run of a comparison
    read(model, batches)
    assert passes == [3] and len(store.inputs.tensors) == 3 and not (tmp_path / "p").exists()


def test_inputs_behind_rounded_states_are_others():
    model, batches = adapt(build("llama"), "prototype"), rows(9, 0)
    store = PrefixStore(None, PrefixConfig())
    found = set()
    for prefix in (PrefixConfig(), PrefixConfig(dtype="bfloat16")):
        own = install_prefix(model, "base", prefix, store)
        assert own is not None
        for depth in (0, 1):
            own.depth = depth
            found.add(KeptInputs(root_of(model), BLOCKS).address(batches[0]))
    assert len(found) == 4 and None not in found


@pytest.mark.parametrize("layer, again", [(0, [6]), (1, [6]), (2, [3]), (3, [3])])
def test_inputs_that_somebody_may_change_are_read_afresh(layer, again):
    """Somebody who listens in front of the last block may put something else in the place of what passes."""
    model, batches = adapt(build("llama"), "prototype"), rows(9, 0)
    passes = kept(model)
    root_of(model).get_submodule("model").register_forward_hook(lambda *_: None)  # as gates do
    name = f"model.layers.{layer}" if layer < 2 else f"model.layers.{layer}.mlp"
    root_of(model).get_submodule(name).register_forward_hook(lambda *_: None)
    read(model, batches, again=True)
    read(model, batches)
    assert passes == again


def test_what_wraps_a_whole_module_counts_as_an_adapter():
    config = LoraConfig(target_modules=["lm_head"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    model, batches = get_peft_model(build("llama"), config).requires_grad_(False), rows(5, 3)
    passes = kept(model)
    read(model, batches, again=True)
    read(model, batches, again=True)
    assert passes == [4]


def test_keys_are_found_once_for_equal_queries(monkeypatch):
    model = adapt(build("llama"), "prototype")
    states = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    calls = []
    monkeypatch.setattr(
        prototype, "spherical_kmeans", lambda *given: calls.append(given[1:3]) or spherical_kmeans(*given)
    )
    expected = spherical_kmeans(states, 6, 4, torch.Generator().manual_seed(1))
    assert torch.equal(prototypes(model, states, 6, 4, 1), expected)
    kept(model)
    for _ in range(3):
        assert torch.equal(prototypes(model, states.clone(), 6, 4, 1), expected)
    assert len(calls) == 2
    other = states.clone()
    other[0, 0] += 1e-7
    for asked in ((other, 6, 4, 1), (states, 7, 4, 1), (states, 6, 3, 1), (states, 6, 4, 2)):
        prototypes(model, *asked)
    assert len(calls) == 6


@pytest.mark.parametrize(("counts", "most"), [([7, 0, 5, 9], 6), ([3], 9), ([4, 4], 8), ([0, 6, 0], 1), ([0], 3)])
def test_a_sample_is_of_the_largest_lots(counts, most):
    generator = torch.Generator().manual_seed(5)
    lots = torch.cat([torch.zeros(0), *(torch.rand(count, generator=generator) for count in counts)])
    largest = set(lots.argsort(descending=True)[:most].tolist())
    found, start = [], 0
    for count, places in zip(counts, drawn(counts, most, 5), strict=True):
        assert places.tolist() == sorted(places.tolist()) and all(0 <= place < count for place in places.tolist())
        found += (places + start).tolist()
        start += count
    assert len(found) == len(set(found)) and set(found) == largest
