"""A frozen base shared out over processes: each holds a part of every layer, which is whole only while it computes
(FSDP2). What is trained lies in every process, as without sharding.

Only decoder layers are sharded: embeddings, head and norms are read outside of a forward pass too. Adapters come later
and are no part of it, for FSDP2 manages the parameters that it finds. Layers that the frozen prefix replaces by
stand-ins are not run, so they are not gathered. A pass that calibration ends early leaves the layer where it ended
gathered until the next pass through it.

Checked by tests with gloo and two processes on the CPU. On several GPUs it has not been run.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh

from nlft.anatomy import decoder_layers
from nlft.base import FrozenBase, choose_device
from nlft.config import BaseConfig
from nlft.distributed import shards_base, world
from nlft.errors import NlftError


def shared_out(base: FrozenBase, config: BaseConfig) -> FrozenBase:
    """The base, sharded in place if a config of accelerate wants that; its fingerprint was taken before.

    Every process reads the whole base into main memory first, and moves its parts to its device.

    Raises:
        NlftError: the base is quantised, whose weights cannot be sharded.
    """
    if not shards_base():
        return base
    if config.quantization != "none":
        raise NlftError(
            f"base.quantization: a base in {config.quantization} cannot be sharded (FSDP2).",
            "Leave one of them out: examples/accelerate/ddp.yaml gives every process a whole base.",
        )
    from torch.distributed.fsdp import fully_shard

    device = choose_device(config.device)
    mesh = init_device_mesh(device.type, (world(),))
    layers = decoder_layers(base.model)[1]
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    decoder = base.model.get_decoder() if hasattr(base.model, "get_decoder") else None
    if decoder is not None:  # one root, so that one layer is gathered while another computes
        managed = {parameter for layer in layers for parameter in layer.parameters()}
        fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - managed)
    base.model.to(device)
    # The first pass makes buffers; made in inference mode, nothing could be trained through them.
    with torch.no_grad():
        base.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=False)
    return base


def check_method(changes_base: bool, name: str) -> None:
    """Refuses to train the weights of a sharded base.

    Raises:
        NlftError: naming the method.
    """
    if changes_base and shards_base():
        raise NlftError(
            f"methods.{name} trains the base's own weights, and a sharded base stays frozen.",
            "Take examples/accelerate/ddp.yaml, which gives every process a whole base.",
        )
