"""The frozen prefix: a pass begun behind it gives the loss and the gradients of a whole one, or is a whole one.

The same for every pathway and family is the column `recall` of the conformance page.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from prefix_models import PAD, ROWS, equal, gradients, keeping, row, train_from, whole_and_recalled

from nlft.anatomy import decoder_layers
from nlft.config import PrefixConfig
from nlft.data.batch import collate
from nlft.data.packing import pack
from nlft.data.template import Encoded
from nlft.frozen_prefix import FrozenPrefix, install_prefix, keep_prefix, prefix_of, prefix_remarks, recalling
from nlft.loss import target_loss
from nlft.prefix_store import PrefixStore

WINDOWED = [("mistral", {"sliding_window": 4}), ("gemma2", {"sliding_window": 4}), ("gemma3", {"sliding_window": 4})]


@pytest.mark.parametrize("family, fields", [*WINDOWED, ("gpt2", {}), ("phi", {}), ("qwen3_moe", {})])
def test_bit_equal_in_the_same_batch(make_model: Callable[..., Any], family: str, fields: dict[str, Any]) -> None:
    """Of experts where there is no padding: what stands at it is 0, and goes to others, who sum in another order."""
    rows = ROWS[1:3] if family == "qwen3_moe" else ROWS
    whole, recalled = whole_and_recalled(train_from(make_model(family, **fields), 2), collate(rows, PAD), rows=rows)
    assert len(whole) > 5 and equal(whole, recalled)


@pytest.mark.parametrize(
    "family, fields, dtype, tolerance",
    [
        *((*case, torch.float32, 1e-5) for case in [("llama", {}), ("gpt2", {}), *WINDOWED]),
        # Gemma 2's own logits are NaN in float64 where a window lies in padding.
        *((*case, torch.float64, 1e-12) for case in [("llama", {}), ("gpt2", {}), WINDOWED[0], WINDOWED[2]]),
    ],
)
def test_equal_up_to_rounding_in_any_batch(
    make_model: Callable[..., Any], family: str, fields: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    model = train_from(make_model(family, **fields).to(dtype), 2)
    other = [ROWS[3], ROWS[5], ROWS[1]]
    for batch in (collate(other, PAD), pack(ROWS, PAD)):
        assert (batch.position_ids is not None) is (len(batch.rows) > len(other))
        torch.testing.assert_close(*whole_and_recalled(model, batch), rtol=tolerance, atol=tolerance)
        delattr(model, "nlft_frozen_prefix")


def test_a_width_leaves_out_the_last_columns(make_model: Callable[..., Any]) -> None:
    model = train_from(make_model("llama"), 2)
    prefix = keeping(model)
    for batch in (collate(ROWS, PAD), pack(ROWS, PAD)):
        for width in (-1, 7):
            with torch.no_grad():
                whole = model(**batch.inputs(width), use_cache=False).logits
                with recalling(model, batch, width):
                    part = model(**batch.inputs(width), use_cache=False).logits
            states = prefix.states(batch, width)
            assert states is not None and states.shape[:2] == batch.input_ids[:, :width].shape
            real = batch.attention_mask[:, :width] != 0
            torch.testing.assert_close(part[real], whole[real], rtol=1e-5, atol=1e-5)


def test_rows_at_other_positions_are_read_whole(make_model: Callable[..., Any]) -> None:
    """Padding on the left moves learned positions, and nobody says by how much."""
    model = train_from(make_model("gpt2"), 2)
    left = collate(ROWS, PAD, side="left")
    expected = gradients(model, left)
    prefix = keeping(model)
    assert prefix.states(left) is None and prefix.states(collate([*ROWS, row(99, 4)], PAD)) is None
    assert equal(gradients(model, left), expected)


def test_gradient_checkpointing(make_model: Callable[..., Any]) -> None:
    model = train_from(make_model("llama"), 2)
    batch = collate(ROWS, PAD)
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    keeping(model)
    model.train()
    assert equal(gradients(model, batch), expected)


def test_a_base_that_draws_is_recalled_in_scoring_alone(make_model: Callable[..., Any]) -> None:
    model = train_from(make_model("llama", attention_dropout=0.1), 2)
    prefix = keeping(model)
    batch = collate(ROWS, PAD)
    assert prefix.states(batch) is not None
    [line] = prefix_remarks(model)
    assert line.startswith("The first 2 of 4 layers give constants: 6 rows, 0.0 MB in memory; not while training")
    model.train()
    assert prefix.states(batch) is None


def test_layers_are_put_back_whatever_happens(make_model: Callable[..., Any]) -> None:
    model = train_from(make_model("llama"), 2)
    layers, names = list(decoder_layers(model)[1]), list(model.state_dict())
    prefix, batch = keeping(model), collate(ROWS, PAD)
    assert list(model.state_dict()) == names
    with pytest.raises(KeyboardInterrupt), recalling(model, batch):
        assert decoder_layers(model)[1][0] is not layers[0]
        raise KeyboardInterrupt
    assert all(one is two for one, two in zip(decoder_layers(model)[1], layers, strict=True))
    assert list(model.state_dict()) == names and prefix.stand_ins[-1].states is None


def test_a_copy_has_no_prefix(make_model: Callable[..., Any]) -> None:
    model = train_from(make_model("llama"), 2)
    keeping(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert prefix_of(twin) is None and prefix_of(model) is not None
        assert equal(gradients(twin, collate(ROWS, PAD)), gradients(model, collate(ROWS, PAD)))
    config = PrefixConfig(enabled=False)
    assert install_prefix(model, "base", config, PrefixStore(None, config)) is None
    assert prefix_of(model) is None, "switched off, none of before stays"


def test_what_is_kept_does_not_depend_on_who_asked_first(make_model: Callable[..., Any]) -> None:
    """Bits of rows that several ask for: by the sets that are declared, and by the latest that asked."""
    model = train_from(make_model("llama"), 2)
    task, background, other = ROWS[:3], ROWS[3:], [row(50, 14), ROWS[1]]
    batch = collate([ROWS[1], ROWS[4]], PAD)

    def kept(*requests: Sequence[Encoded]) -> torch.Tensor:
        prefix = keeping(model, requests[0], units=[task, background])
        for rows in requests[1:]:
            keep_prefix(model, rows, PAD)
        found = prefix.states(batch)
        assert found is not None
        return found

    alone = kept(task, background)
    for before in ([background[::-1], task[::-1]], [[*background, *task]], [other, background, task], [ROWS, task[:1]]):
        assert torch.equal(kept(*before), alone)
    assert torch.equal(kept(task, other, background), kept(background, other)), "the latest set that holds a row serves"


def test_what_does_not_fit_is_read_whole_and_said(make_model: Callable[..., Any]) -> None:
    """Two columns that are asked for in turn: the first is kept and serves, the second is never computed."""
    model = train_from(make_model("llama"), 2)
    one, two, calls = ROWS[:2], ROWS[2:], []
    config = PrefixConfig(memory_gb=31 * 32 * 4 / 1e9, disk_gb=0)
    prefix = install_prefix(model, "base", config, PrefixStore(None, config))
    assert prefix is not None
    keep_prefix(model, one, PAD)
    first = decoder_layers(model)[1][0]
    first.forward = counting(first.forward, calls)
    for rows in (two, one, [*one, *two], two):
        keep_prefix(model, rows, PAD)
    assert not calls and prefix.states(collate(one, PAD)) is not None and prefix.states(collate(two, PAD)) is None
    depth, room = sorted(prefix_remarks(model), reverse=True)
    assert "constants: 2 rows" in depth and "computed in every pass" in room


def test_two_short_beginnings_are_checked_and_no_logits_made(make_model: Callable[..., Any]) -> None:
    """Of long rows with a large vocabulary, logits would take gigabytes. A sliding window is passed by."""
    seen: list[int] = []
    for window, tokens in ((None, 256), (300, 364), (2000, 256)):
        seen.clear()
        model = train_from(make_model("mistral", sliding_window=window), 2)
        decoder_layers(model)[1][3].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        model.lm_head.register_forward_hook(lambda *_: pytest.fail("logits"))
        prefix = keeping(model, [row(0, 400)])
        assert prefix.depth == 2 and prefix.refused is None and seen == [tokens, tokens]


@pytest.mark.parametrize("size, dtype, refused", [(1e-3, "base", True), (1e-8, "base", False)])
def test_what_stands_in_the_same_batch_is_the_same_to_a_few_steps(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, size: float, dtype: str, refused: bool
) -> None:
    """In bfloat16 too, where a model that is slightly wrong hides behind a wide tolerance."""
    for base in (torch.float32, torch.bfloat16):
        model = train_from(make_model("llama").to(base), 2)
        own = FrozenPrefix.last_states
        times: list[int] = []

        def off(self: Any, batch: Any, times: list[int] = times, base: torch.dtype = base, own: Any = own) -> Any:
            times.append(1)
            states = own(self, batch)
            step = size * (40 if base == torch.bfloat16 else 1)
            return states + step * float(states.abs().max()) if len(times) == 2 else states

        monkeypatch.setattr(FrozenPrefix, "last_states", off)
        assert (keeping(model, dtype=dtype).refused is not None) is refused and len(times) == 2
        monkeypatch.undo()


def test_rows_that_are_known_are_not_computed_again(make_model: Callable[..., Any]) -> None:
    model = train_from(make_model("llama"), 2)
    prefix, calls = keeping(model, units=[ROWS[:3]]), []
    first = decoder_layers(model)[1][0]
    first.forward = counting(first.forward, calls)
    for rows in (ROWS[1:], ROWS[:3], [*ROWS, *ROWS]):
        keep_prefix(model, rows, PAD)
    assert not calls
    config = prefix.config
    install_prefix(model, "base", config, prefix.store, [ROWS[:3]])  # as the next stage of a run does
    keep_prefix(model, ROWS[:3], PAD)
    assert len(calls) == 1, "two rows are read once to see whether all is well"
    install_prefix(model, "another base", config, prefix.store)
    keep_prefix(model, ROWS[:3], PAD)
    assert len(calls) == 3


def counting(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_bfloat16_halves_the_room_at_a_stated_error(make_model: Callable[..., Any], family: str) -> None:
    """On these random models: logits within 0.5 % of the largest, the loss within 0.1 %; it is not exact."""
    model = train_from(make_model(family), 2)
    batch = collate(ROWS, PAD)
    with torch.no_grad():
        logits, loss = model(**batch.inputs()).logits, target_loss(model, batch)
        prefix = keeping(model, dtype="bfloat16")
        with recalling(model, batch):
            found = model(**batch.inputs()).logits
        error = float(target_loss(model, batch) / loss - 1)
    real = batch.attention_mask != 0
    assert 0 < float((found - logits)[real].abs().max() / logits[real].abs().max()) < 5e-3
    assert abs(error) < 1e-3
    [table] = prefix.store.tables.values()
    assert table.dtype == torch.bfloat16 and found.dtype == logits.dtype


@pytest.mark.slow
def test_torch_compile_makes_one_graph_for_all_batches(make_model: Callable[..., Any]) -> None:
    counters = torch._dynamo.utils.counters["stats"]
    model = train_from(make_model("llama"), 2)
    rows = [row(seed, 9) for seed in range(8)]
    prefix = keeping(model, rows)
    compiled, batches = torch.compile(model, backend="eager"), [collate(rows[i : i + 2], PAD) for i in (0, 2, 4, 6)]
    torch._dynamo.reset()
    counters.clear()
    found = [gradients(compiled, batch) for batch in batches]
    assert counters["unique_graphs"] == 1 and prefix.states(batches[0]) is not None
    delattr(model, "nlft_frozen_prefix")
    for batch, one in zip(batches, found, strict=True):
        expected = gradients(model, batch)
        torch.testing.assert_close({name.removeprefix("_orig_mod."): g for name, g in one.items()}, expected)
    gradients(compiled, batches[0])
    assert counters["unique_graphs"] == 2, "a whole pass is another graph, and not taken for the first"
