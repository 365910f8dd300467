"""Packed rows on every family: those that read them apart, those that are refused, windows, prefixes, training."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cms_models import cms
from families import FAMILIES, build
from hope_models import shaken
from peft import PromptTuningConfig, get_peft_model
from rich.console import Console

from nlft.base import fingerprint
from nlft.config import FullConfig, PrefixConfig, TrainConfig
from nlft.data.batch import Batch, collate
from nlft.data.packing import pack
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.events import Events
from nlft.frozen_prefix import install_prefix, keep_prefix, prefix_of
from nlft.loss import target_loss
from nlft.methods import build_method
from nlft.methods.protocol import TaskContext
from nlft.packed import check_packing
from nlft.plan import address_of, plan_cells
from nlft.prefix_store import PrefixStore
from nlft.train import train_stage
from nlft.types import IGNORE

REFUSED = {
    "bloom": "BloomForCausalLM takes no positions",
    "falcon": "reads rows that share a line otherwise",
    "gpt_oss": "reads rows that share a line otherwise",
    "opt": "reads rows that share a line otherwise",
}
"""Families whose attention does not know rows by their positions, and what is said of them."""
PACKING = [name for name in FAMILIES if name not in REFUSED]
FAST = ("llama", "gemma2", "gpt2", "qwen3_vl", "mixtral")
"""Families that differ in masks, positions and experts."""
EXPERTS = ("mixtral", "qwen3_moe")
"""Families whose experts compute in float32 at most."""
ROUNDING = ("gemma2", "gemma3")
"""Families whose norms compute in float32 also where they are given float64."""


def rows_of(*lengths: int) -> list[Encoded]:
    rng = random.Random(1)
    rows = []
    for length in lengths:
        ids = [rng.randrange(3, 80) for _ in range(length)]
        rows.append(Encoded(ids, [IGNORE, *(one if rng.random() < 0.7 else IGNORE for one in ids[1:])], 0))
    return rows


ROWS = rows_of(13, 2, 7, 4, 9, 3, 5, 11, 6)
every_packing = pytest.mark.parametrize(
    "family", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PACKING]
)


def gradients(model: Any, batch: Batch) -> list[torch.Tensor]:
    """The loss, and the gradients of all that is trained."""
    model.zero_grad()
    loss = target_loss(model, batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def differ(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest number of a tensor or a thousandth of the largest gradient."""
    assert len(one) == len(other) > 1
    floor = max(float(b.abs().max()) for b in other[1:]) * 1e-3
    return max(float((a - b).abs().max()) / max(float(b.abs().max()), floor) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_packs_or_is_refused(family, dtype):
    if family in REFUSED:
        with pytest.raises(NlftError, match=REFUSED[family]):
            check_packing(build(family, dtype), ROWS, 0)
    else:
        check_packing(build(family, dtype), ROWS, 0)


@every_packing
def test_loss_and_gradients_of_a_family(family):
    dtypes = {torch.float32: 1e-4} | ({} if family in EXPERTS else {torch.float64: 1e-10})
    if family in ROUNDING:
        dtypes[torch.float64] = 1e-5
    for dtype, tolerance in dtypes.items():
        model = build(family, dtype).requires_grad_(True)
        assert differ(gradients(model, pack(ROWS, 0)), gradients(model, collate(ROWS, 0))) < tolerance


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_window_ends_at_the_row(make_model: Callable[..., Any], attention: str):
    model = make_model("mistral", sliding_window=4)
    model.set_attn_implementation(attention)
    whole = make_model("mistral")
    packed, padded = pack(ROWS, 0), collate(ROWS, 0)
    assert differ(gradients(model, packed), gradients(model, padded)) < 1e-4
    assert differ(gradients(whole, padded), gradients(model, padded)) > 1e-2  # the window cuts rows


@every_packing
def test_a_frozen_prefix_serves_packed_rows(family):
    model, config = shaken(cms(build(family), "headwise", layers_to_transform=[2, 3])), PrefixConfig()
    packed = pack(ROWS, 0)
    apart, together = gradients(model, collate(ROWS, 0)), gradients(model, packed)
    install_prefix(model, fingerprint(model), config, PrefixStore(None, config))
    keep_prefix(model, ROWS, 0)
    prefix = prefix_of(model)
    assert prefix is not None and prefix.states(packed) is not None
    recalled = gradients(model, packed)
    assert differ(recalled, together) < 1e-4 and differ(recalled, apart) < 1e-4


def test_virtual_tokens_are_refused():
    adapted = get_peft_model(build("llama"), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(NlftError, match="virtual tokens"):
        check_packing(adapted, ROWS, 0)


def test_a_lone_row_is_checked_too():
    check_packing(build("llama"), rows_of(3), 0)
    with pytest.raises(NlftError, match="otherwise"):
        check_packing(build("opt"), rows_of(3), 0)


def test_attention_that_packs_a_single_line_alone_is_refused(monkeypatch):
    """Flash attention reads rows apart where there is one line, and joins them where there are more."""
    model = build("llama")
    forward = model.forward

    def flat(input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **options: Any) -> Any:
        return forward(input_ids, position_ids=position_ids if len(input_ids) == 1 else None, **options)

    monkeypatch.setattr(model, "forward", flat)
    with pytest.raises(NlftError, match="otherwise"):
        check_packing(model, ROWS, 0)


def stage(family: str, **options: Any) -> tuple[Any, Any]:
    """A model after three steps of full finetuning, and what they cost."""
    model = build(family).requires_grad_(True)
    method = build_method(FullConfig(kind="full", lr=1e-3))
    method.begin_task(model, TaskContext("t", ROWS, [], [], 1, 1, 6, 0, 0))
    config = TrainConfig(batch_size=6, **options)
    named: dict[str, Any] = dict(label="full: t", events=Events(None), console=Console(quiet=True))
    return model, train_stage(model, method, ROWS, config, steps=3, lr=1e-3, pad_id=0, stage=1, **named)


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 4, "gradient_checkpointing": True}])
def test_training_is_the_same(options):
    (packed, cost), (padded, expected) = stage("llama", packing=True, **options), stage("llama", **options)
    assert cost.tokens == expected.tokens
    assert cost.final_loss == pytest.approx(expected.final_loss, rel=1e-5)
    before = build("llama").state_dict()
    moved = {name: tensor - before[name] for name, tensor in padded.state_dict().items()}
    for name, tensor in packed.state_dict().items():
        assert float((tensor - before[name] - moved[name]).norm()) <= 2e-2 * float(moved[name].norm()), name


def test_training_refuses_what_cannot_be_packed():
    with pytest.raises(NlftError, match=r"train\.packing: OPTForCausalLM"):
        stage("opt", packing=True)


def test_only_packing_changes_an_address(recipe: Callable[..., Any]) -> None:
    def dumped(**train: Any) -> str:
        return address_of(plan_cells(recipe(train={"steps": 6, "batch_size": 8, **train}))[0], "b", "r")

    assert dumped() == dumped(packing=False) != dumped(packing=True)
