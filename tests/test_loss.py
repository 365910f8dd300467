"""The loss by its naive twin: values and gradients on every family, in chunks and whole; and what it never makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, TOKENS, build, common_first
from gated_models import begin_gated, gated
from loss_models import ROWS, TARGETS, assert_twins, heads_inputs, learn, model_of
from pathway_models import batch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_outputs import CausalLMOutput

import nlft.head
from nlft.anatomy import decoder_layers
from nlft.config import PrefixConfig
from nlft.data.batch import Batch, collate
from nlft.data.template import Encoded
from nlft.frozen_prefix import install_prefix, keep_prefix, prefix_of
from nlft.head import Head
from nlft.loss import naive_target_loss, target_loss
from nlft.prefix_store import PrefixStore
from nlft.types import IGNORE


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`at_once(n)`: n tokens' logits are a block."""
    return lambda tokens: monkeypatch.setattr(Head, "tokens", lambda self, device: tokens)


@pytest.mark.parametrize("name", common_first(FAMILIES))
def test_every_family_gives_the_twins_loss_and_gradients(name, at_once):
    cases = ("layer", torch.float64, 1000), ("layer", torch.float32, 11), ("all", torch.float64, 11)
    for trained, dtype, tokens in cases:
        at_once(tokens)
        assert_twins(model_of(name, trained, dtype), ROWS, dtype)


@pytest.mark.parametrize("name", common_first(FAMILIES))
def test_every_family_puts_only_targets_into_its_head(name, at_once):
    at_once(TARGETS)
    assert heads_inputs(model_of(name, "layer"), ROWS) == [TARGETS]
    at_once(30)
    # Nothing in the pass itself, nothing to see whether the head is trained; then chunks, once each.
    assert heads_inputs(model_of(name, "layer"), ROWS) == [0, 0, 30, TARGETS - 30]
    # A head that is trained is run again in the backward pass.
    assert sorted(heads_inputs(model_of(name, "all"), ROWS)) == [0, 0, TARGETS - 30, TARGETS - 30, 30, 30]


@pytest.mark.parametrize(
    ("targets", "trained", "dtype"),
    [
        *((targets, "layer", torch.float64) for targets in (0, 1, 6, 7, 8, 13, 14)),
        *((targets, trained, torch.float32) for targets in (0, 1, 8, 14) for trained in ("layer", "all")),
    ],
)
def test_chunks_of_seven_at_awkward_numbers_of_targets(targets, trained, dtype, at_once):
    at_once(7)
    labels = torch.full_like(ROWS.input_ids, IGNORE)
    places = torch.randperm(4 * 9, generator=torch.Generator().manual_seed(1))[:targets]
    labels[places // 9, places % 9 + 1] = ROWS.input_ids[places // 9, places % 9 + 1]  # the last row has none
    rows = Batch(ROWS.input_ids, torch.ones_like(labels), labels)
    assert rows.n_targets == targets
    assert_twins(model_of("llama", trained, dtype), rows, dtype)


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_token_a_target_and_padding_on_either_side(side, at_once):
    at_once(4)
    rows = [Encoded(list(range(5, 5 + length)), list(range(5, 5 + length)), length) for length in (2, 9, 5)]
    assert_twins(model_of("llama", "layer"), collate(rows, 0, side))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("CohereConfig", {"logit_scale": 0.3}),
        ("GraniteConfig", {"logits_scaling": 5.0}),
        ("Gemma2Config", {"final_logit_softcapping": 0.5, "head_dim": 8}),
    ],
)
def test_scales_and_caps_are_the_models_own(kind, fields, at_once):
    small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**TOKENS, **small, num_key_value_heads=2, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    decoder_layers(model)[1][1].requires_grad_(True)
    at_once(11)
    assert_twins(model, ROWS)


def adapted(kind: str) -> Any:
    torch.manual_seed(2)
    if kind == "prompt tuning":
        return get_peft_model(build("llama"), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3))
    options: dict[str, Any] = {
        "lora": {"target_modules": ["q_proj", "down_proj"]},
        "lora at the head": {"target_modules": ["q_proj", "lm_head"]},
        "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    }[kind]
    return get_peft_model(build("llama"), LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **options))


@pytest.mark.parametrize("kind", ["lora", "lora at the head", "saved head", "prompt tuning"])
def test_adapted_models_and_adapted_heads(kind, at_once):
    for tokens in (1000, 11):
        at_once(tokens)
        assert_twins(adapted(kind), ROWS)


@pytest.mark.parametrize("trained", ["layer", "all"])
def test_gradient_checkpointing(trained, at_once):
    at_once(11)
    model = model_of("llama", trained).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_twins(model, ROWS)


@pytest.mark.parametrize("kind", ["lora", "lora at the head"])
def test_mixed_precision_is_that_of_the_pass(kind, at_once):
    # As accelerate does it: around the forward of the outermost module, which chunks do not go through.
    at_once(11)
    model = adapted(kind)
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    assert_twins(model, ROWS, torch.bfloat16)
    made: set[torch.dtype] = set()
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda _module, _args, out: made.add(out.dtype))
    target_loss(model, ROWS)
    assert made == {torch.bfloat16}


def test_rows_that_share_a_line_are_told_apart(at_once):
    ids = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, [0, 1, 5, 6]] = IGNORE
    positions = torch.tensor([[0, 1, 2, 3, 4, *range(7)]] * 2)
    rows = Batch(ids, torch.ones_like(ids), labels, position_ids=positions)
    model = model_of("llama", "layer")
    alone = Batch(ids, torch.ones_like(ids), labels)
    with torch.no_grad():
        assert abs(float(target_loss(model, rows) - target_loss(model, alone))) > 1e-3
    for tokens in (1000, 5):
        at_once(tokens)
        assert_twins(model, rows)


def test_a_pass_that_begins_at_a_frozen_prefix(at_once):
    rows = [Encoded(list(range(5 + i, 12 + 2 * i)), [IGNORE] * 3 + list(range(8 + i, 12 + 2 * i)), 3) for i in range(4)]
    model, several = model_of("llama", "layer"), collate(rows, 0)
    expected = learn(naive_target_loss, model, several)
    install_prefix(model, "base", PrefixConfig(), PrefixStore(None, PrefixConfig()))
    keep_prefix(model, rows, 0)
    prefix: Any = prefix_of(model)
    assert prefix.states(several) is not None
    for tokens in (1000, 5):
        at_once(tokens)
        assert_twins(model, several)
    torch.testing.assert_close(target_loss(model, several).detach(), expected[0])


class Largest(TorchDispatchMode):
    """Notes the most elements of a tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        self.elements = max([self.elements, *(one.numel() for one in made)])
        return out


@pytest.mark.parametrize("trained", ["layer", "all"])
def test_no_tensor_is_as_large_as_the_logits_of_a_batch(trained, at_once):
    at_once(40)
    rows = batch(5, 40, 3)
    model = model_of("llama", trained)  # its head alone has 32 x 97 elements
    with Largest() as naive:
        naive_target_loss(model, rows).backward()
    with Largest() as ours:
        target_loss(model, rows).backward()
    assert naive.elements == 5 * 40 * 97
    assert ours.elements == 5 * 40 * 48  # inside an MLP
    with torch.no_grad(), Largest() as ours:
        target_loss(model, rows)
    assert ours.elements == 5 * 40 * 48


def saved_logits(model: Any, rows: Batch) -> int:
    """Elements of tensors [..., vocabulary] that are there until the backward pass, weights apart."""
    kept: list[weakref.ref[torch.Tensor]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-1:] == (97,) and tensor.shape != (32, 97):
            kept.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = target_loss(model, rows)
    alive = [one for one in (ref() for ref in kept) if one is not None]
    loss.backward()
    return sum({one.data_ptr(): one.numel() for one in alive}.values())


def test_no_logits_wait_for_the_backward_pass(at_once):
    at_once(TARGETS)
    assert saved_logits(model_of("llama", "layer"), ROWS) == 97 * TARGETS
    at_once(11)
    assert saved_logits(model_of("llama", "all"), ROWS) == 0
    assert saved_logits(model_of("llama", "layer"), ROWS) == 0


def test_a_block_is_a_number_of_tokens(monkeypatch):
    head = Head(build("llama"))
    monkeypatch.setitem(nlft.head.BLOCK, "cpu", 97 * 300 + 1)
    assert head.tokens(torch.device("cpu")) == 300
    monkeypatch.setitem(nlft.head.BLOCK, "cpu", 5)
    assert head.tokens(torch.device("cpu")) == nlft.head.FEWEST
    assert head.tokens(torch.device("cuda")) == nlft.head.MOST_BLOCK // 97


def test_logits_of_the_head_alone_are_those_of_a_pass():
    model = build("gemma2")
    seen: list[torch.Tensor] = []
    head = Head(model)
    with torch.no_grad(), head.seeing(lambda states: seen.append(states) or states):
        whole = model(**ROWS.inputs()).logits
        found = head.logits(seen[0].flatten(0, 1))
    torch.testing.assert_close(found, whole.flatten(0, 1))
    assert not model.model._forward_hooks and type(model.model).__name__ == "Gemma2Model"


def test_an_error_in_the_head_leaves_the_decoder_in_its_place():
    model = build("llama")
    with pytest.raises(RuntimeError):
        Head(model).logits(torch.zeros(3, 5))
    assert type(model.model).__name__ == "LlamaModel"


def test_a_pathway_at_the_head_sees_all_tokens(at_once):
    at_once(11)
    model = gated(build("llama"), "gated_lora", target_modules=["lm_head"], layers_to_transform=None)
    begin_gated(model, "first task")
    assert not Head(model).stands_alone
    assert heads_inputs(model, ROWS) == [ROWS.input_ids.numel()]
    assert_twins(model, ROWS)


def test_a_model_that_is_its_own_decoder_makes_all_logits(at_once):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = build("llama").config
            self.embedding, self.head = nn.Embedding(97, 8), nn.Linear(8, 97)

        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            return CausalLMOutput(logits=self.head(self.embedding(input_ids)))

    at_once(11)
    assert not Head(Own()).stands_alone
    assert_twins(Own(), ROWS)
    with pytest.raises(NotImplementedError, match="Own has no decoder"):
        Head(Own()).logits(torch.zeros(3, 8))
