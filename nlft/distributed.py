"""Several processes of one run: each computes its share, and what they found is put together alike in all of them.

No model is wrapped. What is trained is small and the base is frozen, so the gradients of a step are summed in one
buffer behind the backward pass (`sum_gradients`). That is exact for any split of a batch, needs no search for
parameters that a process did not use, and leaves the hooks of PEFT and of torch.compile alone. Everything here does
nothing, at no cost, in a process that runs alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nlft.digest import digest_tensors
from nlft.errors import NlftError
from nlft.launch import processes

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = timedelta(days=7)
"""For another process: one may score or write while others wait. A launcher ends them all as soon as one fails."""
BUCKET = 2**26
"""Most numbers of a buffer of gradients, but for one parameter that is larger."""


def join_processes(device: torch.device) -> None:
    """Meets the other processes that a launcher has started, if it has.

    Args:
        device: of the base, as the recipe names it; by its kind they talk over gloo or NCCL.

    Raises:
        NlftError: all of them would use one GPU.
    """
    if processes() == 1 or dist.is_initialized():
        return
    if device.index is not None:
        raise NlftError(
            f"base.device: {str(device)!r} is one GPU, and the launcher has started {processes()} processes.",
            "Use `auto`: each process then takes a GPU of its own.",
        )
    from accelerate import PartialState

    PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


def leave_processes() -> None:
    """Parts from the others, at the end of a run that went well."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def leads() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def shards_base() -> bool:
    """Whether the base is to be sharded over the processes (FSDP2), as a config of accelerate says."""
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    return wanted and world() > 1


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if world() > 1:
        dist.barrier()


def gather(value: T) -> list[T]:
    """The value of every process, by rank. Values are pickled, so they are small."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def shares(weights: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of pieces dealt out evenly: the heaviest first, each to whoever has least (Graham 1969).

    Returns:
        A list for each part, indices rising; some are empty where there are fewer pieces than parts.
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for index in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        least = min(range(parts), key=lambda part: (loads[part], len(dealt[part]), part))
        dealt[least].append(index)
        loads[least] += weights[index]
    return [sorted(part) for part in dealt]


def dealt_out(work: Callable[[T], R], pieces: Sequence[T], weights: Sequence[int]) -> list[R]:
    """`work` of every piece, in their order, each piece done by one process; the results are small (`gather`).

    With a sharded base all processes do every piece together, for none can compute without the others.
    """
    if world() == 1 or shards_base():
        return [work(piece) for piece in pieces]
    own = {index: work(pieces[index]) for index in shares(weights, world())[rank()]}
    found = {index: result for part in gather(own) for index, result in part.items()}
    return [found[index] for index in range(len(pieces))]


def in_turn(
    work: Callable[[T], dict[str, torch.Tensor]], pieces: Iterable[T]
) -> Iterator[tuple[T, dict[str, torch.Tensor]]]:
    """Every piece with `work` of it, in their order, bit for bit what one process would find; computed in rounds of one
    piece a process, whose tensors all of them then get.

    So whatever is made of the stream (moments, largest cosines, samples, cluster centres) is the same in every process
    and as from one: nothing has to be merged. A process sends the tensors of its pieces once to each of the others.

    Args:
        pieces: alike in all processes.
        work: gives the same names and numbers of dimensions for every piece; on the device by which processes talk.
    """
    if world() == 1:
        yield from ((piece, work(piece)) for piece in pieces)
        return
    stream = iter(pieces)
    while together := list(islice(stream, world())):
        # In the last round some repeat the last piece: with a sharded base none can compute without the others.
        own = work(together[min(rank(), len(together) - 1)])
        shapes = gather({name: (tensor.shape, tensor.dtype) for name, tensor in own.items()})
        device = next(iter(own.values())).device
        for sender, piece in enumerate(together):
            found = {}
            for name, (shape, dtype) in shapes[sender].items():
                mine = sender == rank()
                found[name] = own[name].contiguous() if mine else torch.empty(shape, dtype=dtype, device=device)
                send(found[name], sender)
            yield piece, found


def send(tensor: torch.Tensor, sender: int) -> None:
    """Puts the sender's values into a contiguous tensor, as bytes: not every backend knows every dtype."""
    if tensor.numel():
        dist.broadcast(tensor.detach().view(-1).view(torch.uint8), sender)


@torch.no_grad()
def sum_gradients(parameters: Sequence[torch.Tensor], most: int = BUCKET) -> None:
    """Puts the sum over processes in the place of every gradient; one that is None counts as 0.

    A parameter that has no gradient in any process keeps None, so that optimisers pass it over. Sums are float32, or
    float64 where a parameter is; every process gets the same bits.
    """
    if world() == 1:
        return
    for bucket in buckets(parameters, most):
        device = bucket[0].device
        dtype = torch.float64 if any(one.dtype == torch.float64 for one in bucket) else torch.float32
        there = torch.tensor([one.grad is not None for one in bucket], dtype=dtype, device=device)
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in bucket]
        flat = torch.cat([there, *(one.flatten().to(dtype) for one in gradients)])
        dist.all_reduce(flat)
        counts, *sums = flat.split([len(bucket), *(one.numel() for one in bucket)])
        for one, count, total in zip(bucket, counts.tolist(), sums, strict=True):
            one.grad = total.view_as(one).to(one.dtype) if count else None


def buckets(parameters: Sequence[torch.Tensor], most: int) -> Iterator[list[torch.Tensor]]:
    """Parameters in their order, in lists of at most so many numbers, or of one."""
    bucket: list[torch.Tensor] = []
    for one in parameters:
        if bucket and sum(other.numel() for other in bucket) + one.numel() > most:
            yield bucket
            bucket = []
        bucket.append(one)
    if bucket:
        yield bucket


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over processes."""
    if world() > 1:
        dist.all_reduce(value)
    return value


@torch.no_grad()
def take_from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Puts the values of the first process into tensors of the same shapes: kernels of a GPU may add in any order, so
    that what each process worked out by itself differs in its last bits."""
    if world() > 1:
        for tensor in tensors:
            whole = tensor.contiguous()
            send(whole, 0)
            tensor.copy_(whole)


def check_same_run(stages: int, recipe: str) -> None:
    """Makes sure that all processes are about to do the same, before they first wait for each other.

    Args:
        stages: that are finished, as this process sees the result folder.
        recipe: as text.

    Raises:
        NlftError: one of them was given another recipe, or sees another folder.
    """
    seen = gather((stages, hashlib.sha256(recipe.encode()).hexdigest()))
    if len({digest for _, digest in seen}) > 1:
        raise NlftError(
            "The processes were given different recipes.", "Start all of them with the same words and the same files."
        )
    if len({number for number, _ in seen}) > 1:
        raise NlftError(
            f"The processes see different numbers of finished stages in --out: {[number for number, _ in seen]}.",
            "Put --out where all machines see the same files.",
        )


def check_alike(tensors: Iterable[torch.Tensor], label: str) -> None:
    """Makes sure that all processes hold the same bits.

    Raises:
        NlftError: they have drifted apart.
    """
    if world() == 1:
        return
    digest = digest_tensors((str(number), tensor) for number, tensor in enumerate(tensors))
    if len(set(gather(digest))) > 1:
        raise NlftError(
            f"{label}: the processes have trained different weights.",
            "This is a bug in nlft, or their versions of torch or their devices differ; one process alone is right.",
        )
