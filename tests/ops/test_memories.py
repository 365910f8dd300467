"""What every memory of sequences keeps: equal to its twin with all gradients, causal, the same however it is cut."""

from __future__ import annotations

import pytest
import torch
from memory_models import (
    EVERY,
    MEMORIES,
    assert_same,
    compare,
    fresh,
    leaves,
    memory_state,
    tokens,
    weighted,
)

from nlft.errors import NlftError

every = pytest.mark.parametrize(
    ("name", "options"), EVERY, ids=lambda x: "-".join(x.values()) if isinstance(x, dict) else x
)
DTYPES = [torch.float64, torch.float32]


def holes(rows: int, length: int, seed: int = 3) -> torch.Tensor:
    """Pads anywhere: left in row 0, right in row 1, all of row 2, at random in the others."""
    attended = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.7
    third = length // 3
    for row, place in enumerate([slice(third), slice(length - third, None), slice(None)][:rows]):
        attended[row] = True
        attended[row, place] = False
    return attended


@every
@pytest.mark.parametrize(
    ("dtype", "chunk"), [*((torch.float64, c) for c in (1, 3, 16, 37, 64)), (torch.float32, 3), (torch.float32, 64)]
)
def test_equals_its_twin_with_all_gradients(name, options, dtype, chunk):
    state, inputs = memory_state(name, [0, 0], dtype, chunk), tokens(name, 2, 37, dtype)
    compare(name, state, inputs, dtype, chunk=chunk, **options)


@every
@pytest.mark.parametrize(
    ("dtype", "chunk", "length"),
    [
        *((torch.float64, *sizes) for sizes in ((1, 9), (3, 1), (3, 2), (3, 20), (16, 9), (16, 35))),
        (torch.float32, 3, 20),
    ],
)
def test_rows_at_different_places_with_pads_anywhere(name, options, dtype, chunk, length):
    state, inputs = memory_state(name, [0, 7, 5, 3 * chunk, 16], dtype, chunk), tokens(name, 5, length, dtype)
    compare(name, state, inputs, dtype, chunk=chunk, **options)
    compare(name, state, inputs, dtype, chunk=chunk, attended=holes(5, length), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("objective", ["dot", "l2"])
def test_strong_decay_does_not_overflow_in_a_long_chunk(name, objective, dtype):
    state, inputs = memory_state(name, [0], dtype), tokens(name, 1, 260, dtype, decay=0.5)
    if "log_decays" in inputs:
        inputs["log_decays"].fill_(torch.tensor(0.5).log())
    compare(name, state, inputs, dtype, chunk=256, objective=objective)


@every
@pytest.mark.parametrize("every_n", [1, 2])
def test_truncated_gradients_equal_the_twin(name, options, every_n):
    state, inputs = memory_state(name, [0, 7, 5], chunk=3), tokens(name, 3, 17)
    compare(name, state, inputs, torch.float64, chunk=3, bptt_chunks=every_n, attended=holes(3, 17), **options)
    before = fresh(state)
    reads = MEMORIES[name].run(before, **inputs, chunk=3, bptt_chunks=every_n, **options)[0]
    last = (every_n + 1) * 3  # row 0 starts at a boundary
    for place, reached in ((slice(last, None), False), (slice(3), True)):  # nothing comes through the cut
        gradients = torch.autograd.grad(reads[0, :, place].sum(), leaves(before), allow_unused=True, retain_graph=True)
        assert any(g is not None and g[0].any() for g in gradients) == reached


@every
def test_gradcheck_through_two_chunks(name, options):
    state, inputs = memory_state(name, [1], chunk=2), {k: x[:, :1] for k, x in tokens(name, 1, 4).items()}
    state = {k: x[:, :1] if x.dim() > 1 else x for k, x in state.items()}
    if "offsets" in inputs:
        inputs["offsets"] = tokens(name, 1, 4)["offsets"][:1]
    names = [k for k in state if k != "count"]

    def run(*values):
        before = {"count": state["count"], **dict(zip(names, values, strict=False))}
        given = dict(zip(inputs, values[len(names) :], strict=True))
        reads, after, surprise = MEMORIES[name].run(before, **given, chunk=2, **options)
        return reads, surprise, *leaves(after)

    given = [x.clone().requires_grad_() for x in (*(state[k] for k in names), *inputs.values())]
    assert torch.autograd.gradcheck(run, given)


@every
@pytest.mark.parametrize("chunk", [3, 8])
def test_reads_see_only_earlier_tokens(name, options, chunk):
    state, inputs = memory_state(name, [0, 4], chunk=chunk), tokens(name, 2, 15)
    run = MEMORIES[name].run
    reads, _, surprise = run(state, **inputs, chunk=chunk, **options)
    for t in range(15):
        changed = {k: x.clone() for k, x in inputs.items()}
        for key, x in changed.items():
            if key == "offsets":
                continue
            x[:, :, t] += 0.3 if x.dim() > 3 else -0.1
        after, _, startled = run(state, **changed, chunk=chunk, **options)
        assert torch.equal(after[:, :, :t], reads[:, :, :t]) or (after - reads)[:, :, :t].abs().max() < 1e-14
        torch.testing.assert_close(startled[:, :, :t], surprise[:, :, :t], rtol=0, atol=1e-14)
        changed["queries"] = inputs["queries"]  # its own write does not reach its own read
        after = run(state, **changed, chunk=chunk, **options)[0]
        torch.testing.assert_close(after[:, :, : t + 1], reads[:, :, : t + 1], rtol=0, atol=1e-14)
        if options.get("reads") == "token" and t < 14:
            assert (after - reads)[:, :, t + 1].abs().max() > 1e-6
        ends = [t // chunk * chunk + chunk, (t + 4) // chunk * chunk + chunk - 4]  # of the chunk of t in each row
        for row, end in enumerate(ends):
            if end < 15:
                assert (after - reads)[row, :, end].abs().max() > 1e-6


@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padded", [False, True])
def test_split_anywhere_is_one_pass(name, options, dtype, padded):
    state, inputs = memory_state(name, [0, 2, 6], dtype, 4), tokens(name, 3, 13, dtype)
    attended = holes(3, 13) if padded else None
    run = MEMORIES[name].run
    whole = run(state, **inputs, chunk=4, attended=attended, **options)
    for cut in range(14):
        now, parts = state, []
        for place in (slice(cut), slice(cut, None)):
            given = {k: x if k == "offsets" else x[:, :, place] for k, x in inputs.items()}
            mask = None if attended is None else attended[:, place]
            reads, now, surprise = run(now, **given, chunk=4, attended=mask, **options)
            parts.append((reads, surprise))
        joined = [torch.cat(part, dim=2) for part in zip(*parts, strict=True)]
        assert_same((joined[0], now, joined[1]), whole, dtype)


@every
def test_token_by_token_is_one_pass(name, options):
    state, inputs = memory_state(name, [0, 2], chunk=4), tokens(name, 2, 11)
    run, now, parts = MEMORIES[name].run, state, []
    for t in range(11):
        given = {k: x if k == "offsets" else x[:, :, t : t + 1] for k, x in inputs.items()}
        reads, now, surprise = run(now, **given, chunk=4, **options)
        parts.append((reads, surprise))
    joined = [torch.cat(part, dim=2) for part in zip(*parts, strict=True)]
    whole = run(state, **inputs, chunk=4, **options)
    assert_same((joined[0], now, joined[1]), whole, torch.float64)


@every
def test_rows_do_not_see_each_other_and_pads_are_not_there(name, options):
    """Every row alone and without its pads gives the same; what lies at pads does not matter, be it NaN."""
    state, inputs = memory_state(name, [0, 7, 5, 2], chunk=4), tokens(name, 4, 13)
    attended, run = holes(4, 13), MEMORIES[name].run
    for key, x in inputs.items():
        if key != "offsets":
            x.masked_fill_(~attended.view(4, 1, 13, *(1,) * (x.dim() - 3)), torch.nan)
    reads, after, surprise = run(state, **inputs, chunk=4, attended=attended, **options)
    assert not reads.transpose(1, 2)[~attended].any() and not surprise.transpose(1, 2)[~attended].any()
    for row in range(4):
        one = {k: x[row : row + 1] for k, x in state.items()}
        given = {k: x if k == "offsets" else x[row : row + 1, :, attended[row]] for k, x in inputs.items()}
        alone = run(one, **given, chunk=4, **options)
        rest = {k: x[row : row + 1] for k, x in after.items()}
        found = reads[row : row + 1, :, attended[row]], rest, surprise[row : row + 1, :, attended[row]]
        assert_same(found, alone, torch.float64)


@every
def test_no_tokens_change_nothing(name, options):
    state, inputs = memory_state(name, [0, 3], chunk=4), tokens(name, 2, 0)
    for attended in (None, torch.zeros(2, 0, dtype=torch.bool)):
        reads, after, surprise = MEMORIES[name].run(state, **inputs, chunk=4, attended=attended, **options)
        assert reads.shape[2] == 0 and surprise.shape == (2, 2, 0)
        assert all(torch.equal(after[k], state[k]) for k in state)


@every
def test_bf16_inputs_are_worked_on_in_float32(name, options):
    state, inputs = memory_state(name, [0, 3], torch.float32, 8), tokens(name, 2, 21, torch.bfloat16)
    run = MEMORIES[name].run
    wide = {k: x.float() for k, x in inputs.items()}
    expected = run(state, **wide, chunk=8, **options)
    for found in (run(state, **inputs, chunk=8, **options), under_autocast(run, state, wide, options)):
        assert found[0].dtype == torch.float32
        assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
        assert all(torch.equal(found[1][k], expected[1][k]) for k in state)


def under_autocast(run, state, inputs, options):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return run(state, **inputs, chunk=8, **options)


@pytest.mark.parametrize("name", MEMORIES)
def test_every_input_takes_a_gradient(name):
    state, inputs = fresh(memory_state(name, [0, 3], chunk=4)), fresh(tokens(name, 2, 13))
    weighted(MEMORIES[name].run(state, **inputs, chunk=4, objective="l2")).backward()
    for key, x in {**state, **inputs}.items():
        if x.is_floating_point():
            assert x.grad is not None and x.grad.any(), key


@pytest.mark.parametrize("name", MEMORIES)
def test_unknown_names_are_refused(name):
    state, inputs = memory_state(name, [0]), tokens(name, 1, 3)
    with pytest.raises(NlftError, match=r"objective is 'cosine'. Choose dot or l2"):
        MEMORIES[name].run(state, **inputs, chunk=2, objective="cosine")
    if name != "mlp":
        with pytest.raises(NlftError, match=r"reads is 'later'. Choose token or boundary"):
            MEMORIES[name].run(state, **inputs, chunk=2, reads="later")
