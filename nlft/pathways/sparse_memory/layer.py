"""The memory itself, and the block that carries it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from nlft.ops.keys import BLOCK, whitened
from nlft.ops.prototype_read import prototype_read
from nlft.ops.search import MANY_KEYS, Clusters, Index, clustered, grouped, indexed
from nlft.ops.slots import half_scores, product_read, product_topk
from nlft.pathways.block import PathwayLayer
from nlft.pathways.gate import LARGEST_KEY_WIDTH, PrototypeGate
from nlft.pathways.part import TaskPart
from nlft.pathways.precision import stored
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.tally import Tally


class TaskSlots(TaskPart):
    """The slots of one task: what addresses them (buffers) and their values [M, D].

    With `inputs` [M, K] every slot is a hidden unit of its own: what it says depends on the query that reads it.

    Values and inputs are parameters while the task is trained and buffers afterwards, so that nothing can train
    them again.
    """

    keys: torch.Tensor
    thresholds: torch.Tensor
    shift: torch.Tensor
    rows: torch.Tensor
    values: torch.Tensor
    inputs: torch.Tensor

    def __init__(self, address: dict[str, torch.Tensor], learned: dict[str, torch.Tensor], trainable: bool) -> None:
        super().__init__()
        self.tally: Tally | None = None
        self.look_up = LookUp()
        for name, tensor in address.items():
            self.register_buffer(name, tensor)
        if "keys" in address:
            self.register_buffer("shift", torch.zeros((), device=address["keys"].device))
        self.hold(learned, trainable)

    @property
    def slots(self) -> int:
        """M."""
        return len(self.values)

    def __getstate__(self) -> dict[str, Any]:
        # What can be worked out anew is neither copied nor stored.
        return {**self.__dict__, "look_up": LookUp()}


class Known(NamedTuple):
    """What follows from keys, thresholds and shift."""

    stamps: tuple[tuple[torch.Tensor, int], ...]
    """These three as they are stored, and how often each had been written to."""
    thresholds: torch.Tensor
    """[M], with the shift."""
    index: Index
    clusters: Clusters | None
    """Of the keys, where they are many."""


class LookUp:
    """What a look-up among one task's prototypes knows beforehand, until a key, a threshold or the shift changes."""

    def __init__(self) -> None:
        self.known: Known | None = None
        """Put in place as one, so that a second thread never meets half of it."""

    @property
    def index(self) -> Index | None:
        """None until something was looked up."""
        return None if self.known is None else self.known.index

    def of(self, task: TaskSlots) -> tuple[torch.Tensor, Index | None]:
        """Thresholds [M] with the shift, and an index; None off the CPU and where tensors tell no change."""
        if torch.compiler.is_compiling():
            return task.thresholds + task.shift, None
        tensors = [stored(tensor) for tensor in (task.keys, task.thresholds, task.shift)]
        if task.keys.device.type != "cpu" or any(tensor.is_inference() for tensor in tensors):
            self.known = None  # of other tensors, which have been moved away
            return task.thresholds + task.shift, None
        known = self.known
        if known is None or not all(map(unchanged, tensors, known.stamps)):
            # As normal tensors, since the next pass may be one that trains.
            with torch.inference_mode(False), torch.no_grad():
                self.known = known = worked_out(task, tensors, known)
        return known.thresholds, known.index


def unchanged(tensor: torch.Tensor, stamp: tuple[torch.Tensor, int]) -> bool:
    """Whether a tensor is the one that was stamped and nobody has written to it since."""
    return tensor is stamp[0] and tensor._version == stamp[1]


def worked_out(task: TaskSlots, tensors: list[torch.Tensor], before: Known | None) -> Known:
    """What is known of stored keys, thresholds and shift; clusters stay as they were while no key has moved."""
    stamps = tuple((tensor, tensor._version) for tensor in tensors)
    thresholds = task.thresholds + task.shift
    index = indexed(task.keys, thresholds)
    clusters = before.clusters if before is not None and unchanged(tensors[0], before.stamps[0]) else None
    if len(index.places) >= MANY_KEYS:
        clusters = clusters or clustered(task.keys)
        index = index._replace(groups=grouped(index, task.keys, clusters))
    return Known(stamps, thresholds, index, clusters)


class SparseMemory(nn.Module):
    """The memory of one adapter at one block: [..., D] to [..., D] float32.

    Every task has slots of its own and the memory adds up what they say, so a later task can neither
    overwrite an earlier one nor change the order of its sums: outputs of finished tasks stay bit-equal.

    Routing (whitening, keys, thresholds) takes no gradient: the memory trains values only, and no gradient
    flows through it into lower layers.

    Buffers: `mean` [D], `whitener` [D, K]; with product keys also `rotations` [H, K, 2 * K_half] and
    `half_keys` [H, 2, n, K_half]. Slots of a task: prototype `keys` [M, K], `thresholds` [M] and a
    `shift` [] that is added to all of them; product key `rows` [M] int64.
    """

    mean: torch.Tensor
    whitener: torch.Tensor
    rotations: torch.Tensor
    half_keys: torch.Tensor

    def __init__(self, width: int, config: SparseMemoryPeftConfig) -> None:
        super().__init__()
        self.width = width
        self.key_width = min(width, config.key_width or LARGEST_KEY_WIDTH)
        self.addressing = config.addressing
        self.topk, self.temperature = config.topk, config.temperature
        self.init_weights, self.input_dependent = config.init_weights, config.input_dependent
        self.gate: tuple[PrototypeGate] | None = None
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitener", torch.eye(width, self.key_width))
        if self.addressing == "product_key":
            half = self.key_width // 2
            self.register_buffer("rotations", torch.zeros(config.heads, self.key_width, 2 * half))
            self.register_buffer("half_keys", torch.zeros(config.heads, 2, config.half_keys, half))
        self.tasks = nn.ModuleList()
        for name, slots in config.tasks.items():
            self.add_task(self.blank_address(slots), trainable=name == config.active_task)

    def blank_address(self, slots: int) -> dict[str, torch.Tensor]:
        """Tensors of the right shape for a checkpoint to fill."""
        if self.addressing == "product_key":
            return {"rows": torch.arange(slots)}
        return {"keys": torch.zeros(slots, self.key_width), "thresholds": torch.ones(slots)}

    def begin_task(self, **address: torch.Tensor) -> None:
        """Adds the slots of a new task, with values to train that are zero.

        Args:
            **address: `keys` [M, K] and `thresholds` [M], or `rows` [M] int64 in rising order.
        """
        self.add_task(address, trainable=True)

    def add_task(self, address: Mapping[str, torch.Tensor], trainable: bool) -> None:
        """Adds slots with values that are zero."""
        slots = len(next(iter(address.values())))
        values = torch.zeros(slots, self.width) if self.init_weights else torch.randn(slots, self.width)
        device = self.mean.device
        tensors = {name: tensor.detach().to(device, copy=True) for name, tensor in address.items()}
        learned = {"values": values.to(device)}
        if self.input_dependent:
            learned["inputs"] = torch.zeros(slots, self.key_width, device=device)
        self.tasks.append(TaskSlots(tensors, learned, trainable))

    def end_task(self) -> None:
        """Freezes the values of the newest task; the output stays bit-equal."""
        self.newest.freeze()

    @property
    def newest(self) -> TaskSlots:
        """Slots of the task that came last."""
        return self.task_slots[-1]

    @property
    def task_slots(self) -> list[TaskSlots]:
        """Slots by task, in the order of learning."""
        return cast("list[TaskSlots]", list(self.tasks))

    def queries(self, states: torch.Tensor) -> torch.Tensor:
        """Block inputs [N, D] to whitened queries [N, K] of length 1, without a gradient."""
        return whitened(states.detach().to(self.mean.dtype), self.mean, self.whitener)

    @torch.no_grad()
    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Product keys: the slots [N, H * topk] int64 that block inputs [N, D] read, and their weights."""
        heads, _, n_keys, _ = self.half_keys.shape
        widest = max(2 * n_keys, min(self.topk, n_keys) ** 2)  # half scores, or sums of the best halves
        parts = self.queries(x).split(max(1, BLOCK // (heads * widest)))
        found = [product_topk(half_scores(part, self.rotations, self.half_keys), self.topk) for part in parts]
        scores, slots = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
        # The mean of both halves is the cosine of the whole key.
        weights = torch.softmax(self.temperature / 2 * scores, dim=-1)
        return slots.flatten(1), weights.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over tasks of what their slots add at each token; exactly zero where no slot is read."""
        if torch.is_autocast_enabled(x.device.type):
            # It would round the queries and move them across thresholds.
            with torch.autocast(x.device.type, enabled=False):
                return self.total(x)
        return self.total(x)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """`forward`, outside of autocast."""
        flat = x.detach().reshape(-1, self.width)
        tasks = self.task_slots
        if not tasks:
            return torch.zeros(x.shape, dtype=self.mean.dtype, device=x.device)
        routed = self.queries(flat) if self.addressing == "prototype" else self.route(flat)
        output = None
        for number, task in enumerate(tasks):
            added = self.read(task, routed)
            if self.gate is not None:
                added = added * self.gate[0].values(number, x).reshape(-1, 1)
            output = added if output is None else output + added
        assert output is not None
        return output.view(x.shape)

    def read(self, task: TaskSlots, routed: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """What one task's slots add, [N, D]."""
        if isinstance(routed, tuple):
            slots, weights = routed
            added = product_read(slots, weights, task.rows, task.values)
            if task.tally is not None and added.requires_grad:
                # In the backward pass, which a checkpointed block runs once and its forward pass twice.
                added.register_hook(partial(task.tally.count, slots))
            return added
        thresholds, index = task.look_up.of(task)
        # 1 at first, so that values alone decide what is learned first.
        inputs = task.inputs if self.input_dependent else None
        return prototype_read(routed, task.keys, thresholds, task.values, inputs, index)


class SparseMemoryLayer(PathwayLayer):
    """An MLP block with sparse memories beside it."""

    adapter_layer_names = ("nlft_sparse_memory_core",)

    def make_core(self, config: SparseMemoryPeftConfig) -> SparseMemory:  # pyright: ignore
        """A memory with the tasks that the config lists."""
        return SparseMemory(self.width, config)
