"""Hope beside a frozen base: identity, gradients, causality and arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hope_models import (
    KINDS,
    core_of,
    every_kind,
    hope,
    lively,
    rows_of,
    shaken,
    train_hope,
)
from pathway_models import TASKS, build, every_shape, logits, loss

from nlft.base import fingerprint
from nlft.ops.delta_memory import delta_steps
from nlft.pathways.forward_pass import RecallPass
from nlft.pathways.hope.memory import FIRST_DECAY
from nlft.pathways.state import KEEPERS

ROWS = TASKS["first task"][0]


def hook_count(model: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_shape
def test_identity_gradients_and_removal(family, dtype):
    base = build(family, dtype)
    before, hooks, expected = fingerprint(base), hook_count(base), logits(base)
    names = frozenset(name for name, _ in [*base.named_parameters(), *base.named_buffers()])
    adapted = hope(base, periods=[1, 8], r=4)
    assert torch.equal(logits(adapted), expected)
    if family != "gpt2":  # it has dropout
        adapted.train()
        assert torch.equal(logits(adapted), expected)

    def gradients() -> dict[str, float]:
        adapted.zero_grad()
        loss(adapted, ROWS).backward()
        own = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
        assert all("nlft_hope_core" in name for name in own)
        return {n: 0.0 if g is None else float(g.abs().max()) for n, g in own.items()}

    zero = ("output.weight", ".B0", ".B1")  # the factors that are zero at first
    found = gradients()
    assert all((value > 0) == name.endswith(zero) for name, value in found.items()), found
    train_hope(adapted, steps=1)
    found = gradients()
    assert len(found) == 2 * 13 and all(value > 0 for value in found.values()), found
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)
    adapted.eval()
    assert not torch.equal(logits(adapted), expected) and logits(adapted).dtype == dtype
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}

    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected)
    assert fingerprint(adapted, names) == before
    plain = adapted.unload()
    assert torch.equal(logits(plain), expected) and fingerprint(plain) == before
    assert hook_count(plain) == hooks and not hasattr(plain.get_decoder(), KEEPERS)


@every_kind
def test_everything_is_alive_at_the_second_step(kind):
    base = build("llama")
    expected = logits(base)
    adapted = hope(base, **KINDS[kind])
    assert torch.equal(logits(adapted), expected)
    train_hope(adapted, steps=1)
    adapted.zero_grad()
    loss(adapted, ROWS).backward()
    dead = [n for n, p in adapted.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert dead == []


@pytest.mark.parametrize("initial", ["learned", "zero"])
def test_a_memory_equals_its_definition(initial):
    """The whole core, token by token, from the equations."""
    adapted = lively(initial=initial, rate_max=0.7)
    core, x = core_of(adapted), torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = core.project(x)
        c = torch.zeros_like(p)
        for t in range(9):
            for j in range(4):
                if t - j >= 0:
                    c[:, t] += p[:, t - j] * core.taps[:, 3 - j]
        q, k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in c.chunk(3, dim=-1))
        q, k = (z / z.norm(dim=-1, keepdim=True) for z in (q, k))
        rate = 0.7 * core.memory.rate(x).sigmoid().transpose(1, 2)
        decay = -torch.log1p(core.memory.decay(x).exp()).transpose(1, 2)
        first = core.memory.initial if initial == "learned" else torch.zeros(2, 8, 8)
        reads, _ = delta_steps(first.expand(2, 2, 8, 8), q, k, rate[..., None] * v, rate, decay)
        expected = reads.transpose(1, 2).flatten(2) @ core.output.weight.T
        torch.testing.assert_close(core(x), expected, rtol=0, atol=1e-5)
    assert float(expected.abs().max()) > 0.1 and hasattr(core.memory, "initial") == (initial == "learned")


def test_a_fresh_token_forgets_a_thousandth():
    core = core_of(hope(build("llama")))
    _, log_decays = core.memory.writes(torch.zeros(1, 1, 32), True)
    torch.testing.assert_close(log_decays.exp(), torch.full((1, 2, 1), FIRST_DECAY))


@every_kind
def test_causality_through_the_whole_model(kind):
    adapted = lively(**KINDS[kind])
    ids, _ = rows_of([12, 12])
    with torch.no_grad():
        whole = adapted(input_ids=ids).logits
        for t in range(1, 12):
            other = ids.clone()
            other[:, t] = 3 + (other[:, t] - 2) % 90
            changed = adapted(input_ids=other).logits
            torch.testing.assert_close(changed[:, :t], whole[:, :t], rtol=0, atol=1e-5)
            assert not torch.equal(changed[:, t:], whole[:, t:])


@pytest.mark.parametrize("kind", ["dot", "boundary"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(kind, reentrant):
    """Two forward passes before one backward pass: layers are recomputed with the padding of their own pass."""
    ids, mask = rows_of([12, 9, 7])
    labels = ids.masked_fill(mask == 0, -100)

    def gradients(checkpointing: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        adapted = lively(**KINDS[kind])
        if checkpointing:
            adapted.enable_input_require_grads()
            adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        adapted.train()
        total = adapted(input_ids=ids, attention_mask=mask, labels=labels).loss + loss(adapted, ROWS)
        logits(adapted.eval(), ROWS)
        adapted.train()
        total.backward()
        found = [p.grad for p in adapted.parameters() if p.requires_grad]
        layers = adapted.unload().get_decoder().layers
        assert not any(isinstance(getattr(one, "_gradient_checkpointing_func", None), RecallPass) for one in layers)
        return total.detach(), found

    (plain_loss, plain), (same_loss, recomputed) = gradients(False), gradients(True)
    assert torch.equal(plain_loss, same_loss)
    for one, two in zip(plain, recomputed, strict=True):
        assert float(one.abs().max()) > 0
        assert torch.equal(one, two)


def test_truncation_stops_gradients_at_chunks():
    ids, _ = rows_of([12, 12])
    found = {}
    for chunks in (None, 1):
        adapted = lively(bptt_chunks=chunks)
        out = adapted(input_ids=ids).logits
        adapted.zero_grad()
        out[:, 8:].square().mean().backward()  # the third chunk
        found[chunks] = out.detach(), float(core_of(adapted).memory.initial.grad.abs().max())
    assert torch.equal(found[None][0], found[1][0])
    assert found[1][1] == 0 < found[None][1]


@every_kind
@pytest.mark.parametrize("chunk", [4, 64])
@pytest.mark.parametrize("size", [0.0, 0.3])
def test_memories_stay_bounded_over_many_tokens(kind, chunk, size):
    core = core_of(shaken(hope(build("llama"), **{**KINDS[kind], "chunk": chunk}), size))
    keeper = core.keeper[0]
    keeper.now.kept = {}
    with torch.no_grad():
        core(torch.randn(1, 4096, 32, generator=torch.Generator().manual_seed(0)))
    for name, tensor in keeper.now.kept[core.block].items():
        assert not name.startswith("running") or float(tensor.norm()) < 100, name
