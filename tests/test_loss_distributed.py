"""The loss of models that DDP or FSDP stands around: by its naive twin on a model without them, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_models import ROWS, TARGETS, heads_inputs, learn, model_of
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nlft.anatomy import decoder_layers
from nlft.head import Head
from nlft.loss import naive_target_loss, target_loss

both = pytest.mark.parametrize("trained", ["layer", "all"])


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process, and blocks of eleven tokens."""
    monkeypatch.setattr(Head, "tokens", lambda self, device: 11)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@both
@pytest.mark.parametrize("unused", [False, True])
def test_distributed_data_parallel(trained: str, unused: bool) -> None:
    model = model_of("llama", trained)
    expected = learn(naive_target_loss, model, ROWS)[1]
    network = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
    found: dict[str, Any] = {}
    for _ in range(2):  # a second pass fails where the first left gradients unfinished
        found = learn(target_loss, network, ROWS)[1]
    for name, one in expected.items():
        torch.testing.assert_close(found[f"module.{name}"], one, rtol=1e-4, atol=1e-5)


def sharded(trained: str, whole: bool) -> Any:
    """A model whose layers and decoder are sharded, or everything."""
    model = model_of("llama", trained)
    mesh = init_device_mesh("cpu", (1,))
    for layer in decoder_layers(model)[1]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model if whole else model.model, mesh=mesh)
    return model


@both
def test_a_sharded_decoder(trained: str) -> None:
    model = sharded(trained, whole=False)
    assert Head(model).can_repeat
    expected = learn(naive_target_loss, model_of("llama", trained), ROWS)[1]
    found: Any = learn(target_loss, model, ROWS)[1]
    for name, one in expected.items():
        torch.testing.assert_close(
            found[name].full_tensor() if "model." in name else found[name], one, rtol=1e-4, atol=1e-5
        )


@both
def test_a_sharded_head_is_run_in_the_pass_alone(trained: str) -> None:
    model = sharded(trained, whole=True)
    assert not Head(model).can_repeat
    assert heads_inputs(model, ROWS) == [TARGETS]
    expected = learn(naive_target_loss, model_of("llama", trained), ROWS)[1]
    found: Any = learn(target_loss, model, ROWS)[1]
    for name, one in expected.items():
        torch.testing.assert_close(found[name].full_tensor(), one, rtol=1e-4, atol=1e-5)
