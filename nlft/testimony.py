"""`witness.safetensors`: what an adapted model said of a few rows, so that another process can be held against it."""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nlft.base import UNREADABLE, name_of
from nlft.data.batch import collate
from nlft.data.template import Encoded, TooLong, encode
from nlft.errors import NlftError, reason
from nlft.manifest import AGAIN
from nlft.pathways.task import TaskPeftConfig
from nlft.pathways.voices import replaced, wide_open
from nlft.prepare import Prepared
from nlft.types import Row

FILE = "witness.safetensors"
ROWS, LENGTH, LIKELIEST = 8, 64, 16
"""Rows and their longest length in tokens; likeliest tokens that are kept at a position."""
MAX_BYTES = 16 << 20
"""Longest file that is read."""
TENSORS = ("attention_mask", "input_ids", "top_ids", "top_logprobs")


@dataclass(frozen=True)
class Place:
    """Where logits were computed; the same model gives the same bits in the same place."""

    dtype: str
    """Of the base's weights."""
    device: str
    threads: int
    torch: str


@dataclass(frozen=True)
class Testimony:
    """What a model says of rows [N, T]. Padded positions count nowhere."""

    input_ids: Tensor
    """[N, T] int64."""
    attention_mask: Tensor
    """[N, T] int64."""
    top_ids: Tensor
    """[N, T, up to 16] int64: the likeliest tokens, likeliest first."""
    top_logprobs: Tensor
    """The same shape, float32, in nats."""
    on_sha256: str
    """Of the float32 logits with the adapter on."""
    off_sha256: str
    """With it off."""
    effect: float
    """Largest absolute difference of a logit between on and off."""
    opened: bool
    """Gates and thresholds were held open: the rows are no rows of the tasks, on which the adapter may be silent."""
    place: Place


def witness_rows(prepared: Prepared | None, tokenizer: Any, vocabulary: int) -> tuple[Tensor, Tensor, bool]:
    """Rows of the tests of tasks and probes, in turn; without them fixed ids from the whole vocabulary.

    Returns:
        ids [N, T] and mask [N, T], int64, and whether they are rows of a recipe.
    """
    if prepared is None:
        step = max(1, vocabulary // (4 * 32))
        return torch.arange(4 * 32).mul(step).remainder(vocabulary).view(4, 32), torch.ones(4, 32).long(), False
    columns: list[list[tuple[Row, TooLong]]] = [
        [(row, prepared.too_long[evaluation.column]) for row in evaluation.rows[:ROWS]]
        for evaluation in prepared.domains.evaluations
        if evaluation.split == "test"
    ]
    chosen = [pair for layer in zip_longest(*columns) for pair in layer if pair][:ROWS]
    encoded = [encode(row, tokenizer, prepared.max_length, policy)[0] for row, policy in chosen]
    # Their ends: what is asked and answered stands there, after examples and instructions.
    batch = collate([Encoded(row.ids[-LENGTH:], row.labels[-LENGTH:], 0) for row in encoded], prepared.pad_id)
    return batch.input_ids, batch.attention_mask, True


def hear(model: Any, input_ids: Tensor, attention_mask: Tensor, of_tasks: bool) -> Testimony:
    """Asks a PEFT model, with its adapter on and off.

    Args:
        of_tasks: the rows are those of the tasks. On others a gated adapter is silent, so it is asked with open gates
            if it is.
    """
    off = logits_of(model, input_ids, attention_mask, "off")
    on, opened = logits_of(model, input_ids, attention_mask, "on"), False
    if not of_tasks and is_gated(model) and torch.equal(on, off):
        on, opened = logits_of(model, input_ids, attention_mask, "open"), True
    top = on.log_softmax(-1).topk(min(LIKELIEST, on.shape[-1]), dim=-1)
    kept = attention_mask.bool()
    return Testimony(
        input_ids=input_ids,
        attention_mask=attention_mask,
        top_ids=top.indices,
        top_logprobs=top.values,
        on_sha256=digest(on[kept]),
        off_sha256=digest(off[kept]),
        effect=float((on - off)[kept].abs().max()),
        opened=opened,
        place=place_of(model),
    )


def cross_examine(model: Any, said: Testimony) -> tuple[Testimony, float]:
    """Asks another process's model about the same rows.

    Returns:
        What it says, and the largest difference of a log-probability at the tokens that were likeliest, in nats.
    """
    ids, mask = said.input_ids, said.attention_mask
    off = logits_of(model, ids, mask, "off")
    on = logits_of(model, ids, mask, "open" if said.opened else "on")
    found = on.log_softmax(-1).gather(-1, said.top_ids)
    kept = mask.bool()
    again = Testimony(
        ids,
        mask,
        said.top_ids,
        found,
        digest(on[kept]),
        digest(off[kept]),
        float((on - off)[kept].abs().max()),
        said.opened,
        place_of(model),
    )
    return again, float((found - said.top_logprobs)[kept].abs().max())


def is_gated(model: Any) -> bool:
    """Whether gates or thresholds decide where the adapter speaks."""
    config = model.active_peft_config
    return isinstance(config, TaskPeftConfig) and config.keeps_tasks_apart


def logits_of(model: Any, input_ids: Tensor, attention_mask: Tensor, mode: str) -> Tensor:
    """Logits [N, T, V] on the CPU, float32, with the adapter `on`, `off`, or its gates held `open`."""
    device = next(model.parameters()).device
    model.eval()
    context: Any = nullcontext()
    if mode == "off":
        context = model.disable_adapter()
    elif mode == "open" and is_gated(model):
        context = replaced(wide_open(model))
    with torch.inference_mode(), context:
        output = model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device))
    return output.logits.float().cpu()


def digest(tensor: Tensor) -> str:
    """sha256 of a float32 tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def place_of(model: Any) -> Place:
    """Where a model computes."""
    weight = next(model.parameters())
    cuda = weight.device.type == "cuda"
    capability = torch.backends.cpu.get_cpu_capability()
    device = torch.cuda.get_device_name(weight.device) if cuda else f"{platform.machine()} CPU, {capability}"
    return Place(name_of(weight.dtype), device, torch.get_num_threads(), torch.__version__)


def write_testimony(folder: Path, said: Testimony) -> None:
    """Writes `witness.safetensors`."""
    facts = {"on_sha256": said.on_sha256, "off_sha256": said.off_sha256, "effect": said.effect, "opened": said.opened}
    tensors = {name: getattr(said, name).contiguous() for name in TENSORS}
    save_file(tensors, folder / FILE, metadata={"nlft": json.dumps({**facts, "place": asdict(said.place)})})


def read_testimony(folder: Path, vocabulary: int) -> Testimony:
    """Reads it back.

    Args:
        vocabulary: ids lie below it.

    Raises:
        NlftError: it is missing, damaged, or no witness.
    """
    path = folder / FILE
    if not path.is_file():
        raise NlftError(f"{folder} has no {FILE}.", AGAIN)
    if path.stat().st_size > MAX_BYTES:
        raise NlftError(f"{path} is longer than {MAX_BYTES:,} bytes, so it is no witness of `nlft export`.", AGAIN)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in TENSORS}
            facts = json.loads((file.metadata() or {})["nlft"])
        place = Place(**facts.pop("place"))
        said = Testimony(**tensors, **facts, place=place)
        check_shapes(said, vocabulary)
        return said
    except UNREADABLE as error:
        raise NlftError(f"{path} is no witness of `nlft export`: {reason(error)}", AGAIN) from error


def check_shapes(said: Testimony, vocabulary: int) -> None:
    """Refuses tensors of other shapes or kinds.

    Raises:
        ValueError: naming the first that is odd.
    """
    shape = said.input_ids.shape
    most = (ROWS, LENGTH, LIKELIEST)
    if said.top_ids.ndim != 3 or any(size > limit for size, limit in zip(said.top_ids.shape, most, strict=True)):
        raise ValueError(f"it holds {list(said.top_ids.shape)} tokens, and {list(most)} are the most")
    wanted = {"input_ids": shape, "attention_mask": shape, "top_ids": (*shape, said.top_ids.shape[-1])}
    for name, size in {**wanted, "top_logprobs": said.top_ids.shape}.items():
        tensor = getattr(said, name)
        kind = torch.float32 if name == "top_logprobs" else torch.int64
        if tuple(tensor.shape) != tuple(size) or tensor.dtype != kind or len(shape) != 2 or not tensor.numel():
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
    for name in ("input_ids", "top_ids"):
        tensor = getattr(said, name)
        if int(tensor.min()) < 0 or int(tensor.max()) >= vocabulary:
            raise ValueError(f"{name} names a token outside the vocabulary of {vocabulary}")
    if not isinstance(said.effect, float) or not isinstance(said.opened, bool) or not said.attention_mask.any():
        raise ValueError("its facts are none")
