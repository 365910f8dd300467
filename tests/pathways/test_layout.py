"""Tensors that are not what the settings say are refused by the key at fault."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from lifecycle_models import FIRST, SECOND, WHOLE, empty, every_kind, learned

from nlft.errors import NlftError
from nlft.pathways.layout import check_layout
from nlft.pathways.lifecycle import Adapter, stored, with_slots
from nlft.pathways.shift import SILENT, set_shift

MADE: dict[str, Adapter] = {}


def adapter(kind: str) -> Adapter:
    """A copy of an adapter with two tasks, learned once."""
    if kind not in MADE:
        MADE[kind] = stored(learned(kind, FIRST, SECOND))
    return deepcopy(MADE[kind])


def key_of(found: Adapter, end: str) -> str:
    return next(key for key in found.tensors if key.endswith(end))


@every_kind
def test_what_nlft_writes_passes(kind):
    found = adapter(kind)
    check_layout(found.config, found.tensors)
    check_layout(*vars(stored(empty(kind))).values())
    if kind not in WHOLE:
        size = found.config.tasks[SECOND]
        pruned = with_slots(found, {(SECOND, "model.layers.1.mlp"): torch.arange(size) == 1}, {})
        check_layout(pruned.config, pruned.tensors)
    if kind != "product_key":
        model = learned(kind, FIRST)
        set_shift(model, SILENT)
        check_layout(*vars(stored(model)).values())


@every_kind
@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype", "nan", "size", "huge"])
def test_what_is_wrong_is_named(kind, change):
    found = adapter(kind)
    key = key_of(found, {"gated_lora": "tasks.1.A", "gated_cms": "tasks.1.A0"}.get(kind, "tasks.1.values"))
    tensor, name = found.tensors[key], key.removeprefix("base_model.model.")
    if change == "missing":
        del found.tensors[key]
    elif change == "unknown":
        name += "x"
        found.tensors[key + "x"] = tensor
    elif change == "shape":
        found.tensors[key] = tensor[1:]
    elif change == "dtype":
        found.tensors[key] = tensor.long()
    elif change == "nan":
        tensor[0, 0] = torch.nan
    elif change == "size":
        found.config.tasks[SECOND] += 1
        name = "" if kind not in WHOLE else name
    else:  # a block that the file does not have, so that nothing there could be compared
        found.config.sizes = {SECOND: {"model.layers.7.mlp": 10**12}}
        name = "model.layers.7.mlp"
    with pytest.raises(NlftError) as caught:
        check_layout(found.config, found.tensors)
    assert name in caught.value.message


def order(rows: torch.Tensor) -> torch.Tensor:
    return rows.flip(0)


def twice(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows[:1], rows[:-1]])


def below(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows.new_tensor([-1]), rows[1:]])


def beyond(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows[:-1], rows.new_tensor([24 * 24])])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (order, "rows is not in rising order"),
        (twice, "rows is not in rising order"),
        (below, "rows names a row outside the table of half_keys² = 576"),
        (beyond, "rows names a row outside the table of half_keys² = 576"),
        (torch.Tensor.int, "rows is int32, and int64 is needed"),
    ],
)
def test_rows_of_a_table(change: Callable[[torch.Tensor], torch.Tensor], said: str) -> None:
    found = adapter("product_key")
    key = key_of(found, "tasks.0.rows")
    found.tensors[key] = change(found.tensors[key])
    with pytest.raises(NlftError, match=said):
        check_layout(found.config, found.tensors)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("product_key", {"half_keys": 10**6}, "half_keys has the shape"),
        ("product_key", {"heads": 10**6}, "rotations has the shape"),
        ("prototype", {"key_width": 3}, "whitener has the shape"),
        ("prototype", {"gate_layer": 1}, "gate_layer is 1, and there are 0 gates"),
        ("prototype", {"input_dependent": True}, r"tasks.\d.inputs is missing"),
        ("gated_lora", {"gate_others": 10**9}, "others has the shape"),
        ("gated_lora", {"gates": {FIRST: 10**9, SECOND: 1}}, r"nlft_gate.tasks.\d.keys has the shape"),
        ("gated_lora", {"gates": {SECOND: 1, FIRST: 1}}, "gates lists"),
        ("prototype", {"sizes": {"third": {}}}, "sizes.third names a task that is not there"),
        (
            "prototype",
            {
                "sizes": {FIRST: {"model.layers.1.mlp": 12, "model.layers.2.mlp": 12}},
                "tasks": {FIRST: 10**9, SECOND: 12},
            },
            "is 1000000000, and no block has so many slots",
        ),
    ],
)
def test_settings_that_would_allocate_more_than_is_stored(kind, fields, said):
    found = adapter(kind)
    for name, value in fields.items():
        setattr(found.config, name, value)
    with pytest.raises(NlftError, match=said):
        check_layout(found.config, found.tensors)


def test_infinity_is_silence_in_thresholds_alone():
    found = adapter("prototype")
    for end, value, fine in (
        ("thresholds", torch.inf, True),
        ("thresholds", -torch.inf, False),
        ("keys", 1e999, False),
    ):
        changed = deepcopy(found)
        changed.tensors[key_of(found, f"tasks.0.{end}")].view(-1)[0] = value
        if fine:
            check_layout(changed.config, changed.tensors)
            continue
        with pytest.raises(NlftError, match=f"{end} holds a number that is not finite"):
            check_layout(changed.config, changed.tensors)
