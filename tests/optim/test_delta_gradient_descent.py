"""Delta gradient descent against the minimum that defines it, and its view of a layer's inputs."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from nlft.errors import NlftError
from nlft.optim.delta_gradient_descent import DeltaGradientDescent, delta_step
from nlft.optim.multi_timescale import MultiTimescale


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def minimum(weight: torch.Tensor, x: torch.Tensor, u: torch.Tensor, rate: float) -> torch.Tensor:
    """argmin over V of mean_t 1/2 |V x_t - u_t|^2 + 1/(2 rate) |V - W|^2, as one stacked least-squares problem."""
    n = len(x)
    rows = torch.cat([x / n**0.5, torch.eye(x.shape[1], dtype=x.dtype) / rate**0.5])
    values = torch.cat([u / n**0.5, weight.T / rate**0.5])
    return torch.linalg.lstsq(rows, values).solution.T


@pytest.mark.parametrize("norm", [1.0, 2.0])
@pytest.mark.parametrize("rate", [0.1, 1.0, 7.0])
def test_one_input_is_the_argmin_and_the_papers_form(norm: float, rate: float) -> None:
    weight, x, u = draw(3, 5), draw(1, 5, seed=1), draw(1, 3, seed=2)
    x = norm * x / x.norm()
    out = delta_step(weight, -u.T @ x, x.T @ x, rate)
    torch.testing.assert_close(out, minimum(weight, x, u, rate), atol=1e-12, rtol=0)
    r = rate / (1 + rate * norm**2)
    rank_one = weight @ (torch.eye(5, dtype=torch.float64) - r * x.T @ x) + r * u.T @ x
    torch.testing.assert_close(out, rank_one, atol=1e-12, rtol=0)
    printed = rate / (1 + rate)  # right for inputs of length 1 only
    papers = weight @ (torch.eye(5, dtype=torch.float64) - printed * x.T @ x) + printed * u.T @ x
    assert (float((papers - out).abs().max()) < 1e-12) == (norm == 1.0)


@pytest.mark.parametrize("n", [1, 4, 33])
def test_a_batch_is_the_argmin(n: int) -> None:
    weight, x, u = draw(3, 5), 2 * draw(n, 5, seed=1), draw(n, 3, seed=2)
    out = delta_step(weight, -u.T @ x / n, x.T @ x / n, 0.7)
    torch.testing.assert_close(out, minimum(weight, x, u, 0.7), atol=1e-12, rtol=0)


class Net(nn.Module):
    """Two linear layers around a bare matrix, and a bias."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(5, 4, dtype=dtype), Conv1D(2, 4).to(dtype)
            self.bare = nn.Parameter(torch.eye(4, dtype=dtype) + 0.1)
        self.checkpointing: bool | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def body(x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.tanh(self.first(x)) @ self.bare)

        if self.checkpointing is None:
            return body(x)
        return checkpoint(body, x, use_reentrant=self.checkpointing)  # type: ignore[return-value]


def expected(net: Net, x: torch.Tensor, rate: float) -> dict[str, torch.Tensor]:
    """One step by hand: the argmin for `first` and `last`, plain steps for the rest."""
    x = x.flatten(0, -2)
    a = net.first(x)
    b = torch.tanh(a) @ net.bare
    y = net.last(b)
    loss = y.square().sum(-1).mean()
    da, dy, dbare, dbias, dlast = torch.autograd.grad(loss, [a, y, net.bare, net.first.bias, net.last.bias])
    n = len(x)
    return {
        "first.weight": minimum(net.first.weight.detach(), x, -n * da, rate),
        "last.weight": minimum(net.last.weight.detach().T, b.detach(), -n * dy, rate).T,
        "bare": net.bare.detach() - rate * dbare,
        "first.bias": net.first.bias.detach() - rate * dbias,
        "last.bias": net.last.bias.detach() - rate * dlast,
    }


def assert_weights(net: nn.Module, want: dict[str, torch.Tensor], tolerance: float = 1e-12) -> None:
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), want[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_the_optimizer_takes_the_argmin_step(micro_batches: int, checkpointing: bool | None) -> None:
    """Micro-batches of unequal size, eval and no_grad passes between them, forward run twice: the same step."""
    net, x, rate = Net(), draw(6, 3, 5), 0.5
    want = expected(net, x, rate)
    net.checkpointing = checkpointing
    optimizer = DeltaGradientDescent(net.parameters(), rate, model=net)
    for part in (x,) if micro_batches == 1 else (x[:1], x[1:]) if micro_batches == 2 else (x[:1], x[1:3], x[3:]):
        part = part.clone().requires_grad_(checkpointing is True)
        (net(part).square().sum() / 18).backward()
        net.eval()
        net.checkpointing = None  # the reentrant kind refuses `inputs`
        net(9 * part).sum().backward(inputs=[part.requires_grad_()])
        net.train()
        with torch.no_grad():
            net.checkpointing = None
            net(7 * part)
        net.checkpointing = checkpointing
    optimizer.step()
    assert_weights(net, want)
    assert not optimizer.state, "a step forgets what it saw"


def test_tokens_without_gradient_have_no_part() -> None:
    net, x, rate = Net(), draw(6, 5), 0.5
    want = expected(net, x, rate)
    optimizer = DeltaGradientDescent(net.parameters(), rate, model=net)
    padded = torch.cat([x, 5 * draw(4, 5, seed=3)])
    mask = torch.tensor([1.0] * 6 + [0.0] * 4, dtype=torch.float64)
    ((net(padded).square().sum(-1) * mask).sum() / 6).backward()
    optimizer.step()
    assert_weights(net, want)


def test_inputs_wait_for_the_boundary_of_a_slow_group_and_are_saved(tmp_path: Any) -> None:
    """Period 2 over two batches is one step over both, also when saved in between."""
    net, x, rate = Net(), draw(8, 5), 0.5
    want = expected(net, x, rate)

    def make(net: Net) -> MultiTimescale:
        group = {"params": list(net.parameters()), "period": 2}
        return MultiTimescale(DeltaGradientDescent([group], rate, model=net))

    optimizer = make(net)
    net(x[:4]).square().sum(-1).mean().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    other = Net()
    resumed = make(other)
    resumed.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    for n, o in ((net, optimizer), (other, resumed)):
        n(x[4:]).square().sum(-1).mean().backward()
        o.step()
        assert_weights(n, want)


def test_bfloat16_weights_step_in_float32_and_decay() -> None:
    net = Net(torch.float32)
    x = draw(6, 5, dtype=torch.float32).bfloat16()
    net.to(torch.bfloat16)
    before = (net.first.weight.detach() * torch.tensor(0.95, dtype=torch.bfloat16)).float()
    optimizer = DeltaGradientDescent(net.parameters(), 0.5, weight_decay=0.1, model=net)
    net(x).float().square().sum(-1).mean().backward()
    moment = optimizer.state[net.first.weight]["moment"]
    assert moment.dtype == torch.float32
    gradient = net.first.weight.grad
    assert gradient is not None
    optimizer.step()
    want = delta_step(before, gradient.float(), moment / 6, 0.5)
    assert net.first.weight.dtype == torch.bfloat16
    torch.testing.assert_close(net.first.weight.detach().float(), want, atol=0, rtol=2**-8)


def test_hooks_go_with_the_optimizer_and_copies_do_not_count() -> None:
    net = Net()
    optimizer = DeltaGradientDescent(net.parameters(), 0.5, model=net)
    twin = copy.deepcopy(net)
    twin(draw(6, 5)).sum().backward()
    assert not optimizer.state
    seen = weakref.ref(optimizer)
    assert len(net.first._forward_hooks) == len(net.last._forward_hooks) == 1
    del optimizer
    gc.collect()
    assert seen() is None and not net.first._forward_hooks and not net.last._forward_hooks
    optimizer = DeltaGradientDescent(net.parameters(), 0.5, model=net)
    optimizer.close()
    optimizer.close()
    assert not net.first._forward_hooks
    before = net.first.weight.detach().clone()
    net(draw(6, 5)).sum().backward()
    assert net.first.weight.grad is not None
    gradient = net.first.weight.grad.clone()
    optimizer.step()
    assert torch.equal(net.first.weight, before - 0.5 * gradient), "without inputs it is a plain step"


def test_shared_and_missing_layers(make_model: Callable[..., Any]) -> None:
    tied = make_model("llama", tie_word_embeddings=True).requires_grad_(True)
    optimizer = DeltaGradientDescent(tied.parameters(), 0.1, model=tied)
    assert tied.model.embed_tokens.weight is tied.lm_head.weight
    assert tied.lm_head.weight not in optimizer.watched
    assert tied.model.layers[0].mlp.down_proj.weight in optimizer.watched
    with pytest.raises(NlftError, match="found no trained linear layer"):
        DeltaGradientDescent([nn.Parameter(torch.zeros(2))], 0.1, model=tied)


def test_processes_share_what_they_saw(tmp_path: Any) -> None:
    """With one process the sum over processes is the process's own."""
    net, x = Net(), draw(6, 5)
    want = expected(net, x, 0.5)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        optimizer = DeltaGradientDescent(net.parameters(), 0.5, model=net)
        net(x).square().sum(-1).mean().backward()
        optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    assert_weights(net, want)
