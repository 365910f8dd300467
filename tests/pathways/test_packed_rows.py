"""Every pathway on packed rows: the loss and all gradients of the same rows in lines of their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cms_models import cms
from families import build
from gated_models import begin_gated, gated, open_of, train_gated
from hope_models import KINDS, hope, keeper_of, lively, shaken
from pathway_models import adapt, begin
from peft import LoraConfig, get_peft_model

from nlft.data.batch import Batch, collate
from nlft.data.packing import pack
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.loss import target_loss
from nlft.pathways import forward_pass
from nlft.sessions import session
from nlft.types import IGNORE

FIRST = "first task"
CHUNK = 3
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
"""Of losses and gradients, relative to the largest of a tensor."""


def rows_of(lengths: list[int], low: int = 3, high: int = 97) -> list[Encoded]:
    """Rows that begin like the background and end like the first task; about half of the tokens are targets."""
    rng = random.Random(4)
    rows = []
    for length in lengths:
        ids = [rng.randrange(3, 60) if i < length // 3 else rng.randrange(60, 80) for i in range(length)]
        rows.append(Encoded(ids, [IGNORE, *(one if rng.random() < 0.5 else IGNORE for one in ids[1:])], 0))
    return rows


ROWS = rows_of([11, 2, 7, 4, 9, 3, 5, 12, 1, 6])


def open_gated(kind: str, **fields: Any) -> Any:
    """A task behind a gate that is open for training, and has been trained a little."""
    adapted = gated(build("llama"), kind, **fields)
    begin_gated(adapted, FIRST)
    train_gated(adapted, FIRST)
    return adapted


def open_memory(addressing: str, **fields: Any) -> Any:
    adapted = adapt(build("llama"), addressing, **fields)
    begin(adapted, FIRST)
    return shaken(adapted)


SUBJECTS: dict[str, Callable[[], Any]] = {
    "full": lambda: build("llama").requires_grad_(True),
    "lora": lambda: shaken(get_peft_model(build("llama"), LoraConfig(r=3, target_modules="all-linear")), size=0.1),
    "prototype": lambda: open_memory("prototype"),
    "input-dependent": lambda: open_memory("prototype", input_dependent=True),
    "product_key": lambda: open_memory("product_key"),
    "gated lora": lambda: open_gated("gated_lora"),
    "gated lora, decaying": lambda: open_gated("gated_lora", gate_decay=0.5),
    "gated prototype": lambda: open_gated("prototype"),
    "gated product_key": lambda: open_gated("product_key"),
    "gated cms": lambda: open_gated("cms"),
    "gated cms online": lambda: shaken(open_gated("cms", online_chunk=CHUNK)),
    "cms": lambda: shaken(cms(build("llama"), "headwise")),
    "cms online": lambda: shaken(cms(build("llama"), "headwise", online_chunk=CHUNK)),
    "cms pretrained": lambda: shaken(cms(build("llama"), "pretrained")),
    **{f"hope {kind}": lambda kind=kind: lively(**KINDS[kind]) for kind in KINDS},
    "hope, short gradients": lambda: lively(bptt_chunks=1),
}
KEEPING = ("gated lora", "gated cms online", "cms online", "hope dot", "hope mlp")
"""Those among them that carry something from token to token, of every kind."""


def gradients(model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, and the gradient of everything that is trained."""
    model.zero_grad()
    model.train()
    loss = target_loss(model, batch)
    loss.backward()
    model.eval()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def differ(one: Any, other: Any) -> float:
    """The largest difference of losses or of gradients, relative to the largest number of a tensor."""
    assert one[1].keys() == other[1].keys() and one[1]
    pairs = [(one[0], other[0]), *((one[1][name], other[1][name]) for name in one[1])]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in pairs)


@pytest.mark.parametrize("name", SUBJECTS)
def test_loss_and_gradients_are_those_of_rows_apart(name):
    model, packed, padded = SUBJECTS[name](), pack(ROWS, 0), collate(ROWS, 0)
    assert len(packed.input_ids) <= len(ROWS) / 2
    for dtype, tolerance in TOLERANCE.items():
        model = model.to(dtype)
        assert differ(gradients(model, packed), gradients(model, padded)) < tolerance


@pytest.mark.parametrize("name", KEEPING)
def test_the_comparison_sees_what_rows_carry_over(name, monkeypatch):
    model = SUBJECTS[name]().double()
    apart = gradients(model, collate(ROWS, 0))
    monkeypatch.setattr(forward_pass, "find_documents", lambda *_: None)
    assert differ(gradients(model, pack(ROWS, 0)), apart) > 1e-3


@pytest.mark.parametrize("name", ["lora", "gated product_key", "cms online", "hope dot"])
def test_checkpointed_layers_know_their_rows(name):
    model = SUBJECTS[name]().double()
    apart = gradients(model, collate(ROWS, 0))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if name == "lora":
        model.enable_input_require_grads()
    assert differ(gradients(model, pack(ROWS, 0)), apart) < TOLERANCE[torch.float64]


def test_a_gate_opens_anew_in_every_row():
    model, packed, padded = open_gated("gated_lora"), pack(ROWS, 0), collate(ROWS, 0)
    opened = []
    with torch.no_grad():
        for batch in (packed, padded):
            model(**batch.inputs(), use_cache=False)
            seen = open_of(model)
            places = zip(ROWS, batch.places, strict=True)
            opened.append(torch.cat([seen[line, at : at + len(row.ids)] for row, (line, at) in places]))
    assert torch.equal(*opened) and 0 < float(opened[0].mean()) < 1


@pytest.mark.parametrize("name", ["gated lora", "hope dot"])
def test_a_cache_of_packed_rows_is_refused(name):
    model = SUBJECTS[name]()
    with pytest.raises(NlftError, match="attend to each other"), torch.no_grad():
        model(**pack(ROWS, 0).inputs(), use_cache=True)
    with torch.no_grad():  # nothing of it is left
        model(**collate(ROWS, 0).inputs(), use_cache=True)


def test_packed_rows_leave_no_state():
    model = lively()
    with torch.no_grad():
        model(**pack(ROWS, 0).inputs(), use_cache=False)
    now = keeper_of(model).now
    assert now.states is None and now.kept is None and now.documents is None


def test_a_session_of_packed_rows_is_refused():
    model = hope(build("llama"))
    with session(model), pytest.raises(NlftError, match="several rows share a line"), torch.no_grad():
        model(**pack(ROWS, 0).inputs(), use_cache=False)
