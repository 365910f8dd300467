"""Replay as a regulariser: rows of the past, or that the base wrote, are trained on beside the new ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlft.base import without_adapter
from nlft.capture import inference
from nlft.config import ReplayConfig
from nlft.data.batch import Sampler, collate
from nlft.data.template import Encoded
from nlft.distributed import rank, shards_base, shares, world
from nlft.errors import NlftError
from nlft.frozen_prefix import keep_prefix
from nlft.loss import target_loss
from nlft.methods.protocol import TaskContext
from nlft.types import IGNORE

WRITTEN_ROWS, WRITTEN_LENGTH = 256, 64
"""Rows that the base writes and their longest, in tokens, where the recipe says nothing."""
WRITTEN_AT_ONCE = 64


class Replay:
    """Adds the mean loss of a batch of old rows to every optimiser step; does nothing without a config."""

    name = "replay"

    def __init__(self, config: ReplayConfig | None) -> None:
        self.config = config
        self.kept: list[Encoded] = []
        """Rows of finished tasks and of the one that is trained, or those that the base wrote."""
        self.rows: Sequence[Encoded] = ()
        """What is replayed in this task."""
        self.batches: Iterator[list[Encoded]] | None = None
        self.pad_id = 0

    @property
    def remembers(self) -> bool:
        """Background rows come with every task; others have to be kept."""
        return self.config is not None and self.config.source != "background"

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Chooses the old rows; with `source: tasks` there are none in the first task."""
        self.batches = None
        if self.config is None:
            return
        if self.config.source == "self" and context.number == 1:
            self.kept = written_rows(model, context, self.config)
        self.rows = context.background if self.config.source == "background" else list(self.kept)
        if self.config.source == "tasks":
            self.kept += sample(context.train, 1.0 if self.config.keep is None else self.config.keep, context.seed)
        if self.rows:
            size = max(1, round(self.config.ratio * context.batch_size))
            self.batches = iter(Sampler(self.rows, size, context.seed))
            self.pad_id = context.pad_id
            keep_prefix(model, self.rows, self.pad_id)

    def term(self, model: nn.Module) -> Tensor | None:
        """Weighted mean loss of the next old rows, nats per target token; of several processes, this one's part."""
        if self.config is None or self.batches is None:
            return None
        device = next(model.parameters()).device
        rows = next(self.batches)
        own = [rows[i] for i in shares([len(row.ids) for row in rows], world())[rank()]]
        if not own and not shards_base():
            return None
        # With a sharded base one without a share passes a row too: the others cannot compute without it.
        nats = target_loss(model, collate(own or rows[:1], self.pad_id).to(device)) * (world() if own else 0)
        return self.config.weight * nats / sum(row.n_targets for row in rows)

    def end_task(self, model: nn.Module) -> None:
        """The task's rows were kept when it began."""

    def state(self) -> dict[str, Tensor]:
        """The kept rows, see `packed`."""
        return packed(self.kept) if self.remembers else {}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """The rows of a run that goes on."""
        self.kept = unpacked(tensors)

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows that this task replays, as `packed` holds them."""
        return sum(one.numel() * one.element_size() for one in packed(self.rows).values())


def sample(rows: Sequence[Encoded], share: float, seed: int) -> list[Encoded]:
    """A share of the rows in their order, at least one."""
    if share >= 1:
        return list(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[i] for i in sorted(order[: max(1, round(share * len(rows)))].tolist())]


def packed(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Rows end to end: `ids` and `labels` int32 [sum of T], `lengths` int32 [B]."""
    parts = {
        "ids": [i for row in rows for i in row.ids],
        "labels": [i for row in rows for i in row.labels],
        "lengths": [len(row.ids) for row in rows],
    }
    return {name: torch.tensor(values, dtype=torch.int32) for name, values in parts.items()}


def unpacked(tensors: dict[str, Tensor]) -> list[Encoded]:
    """The rows that `packed` wrote, without byte counts and groups, which replay has no use for."""
    lengths = tensors["lengths"].tolist()
    ids, labels = (tensors[name].long().split(lengths) for name in ("ids", "labels"))
    return [Encoded(a.tolist(), b.tolist(), 0) for a, b in zip(ids, labels, strict=True)]


def written_rows(model: Any, context: TaskContext, config: ReplayConfig) -> list[Encoded]:
    """Texts that the base draws from itself at temperature 1, every token but the first a target.

    They begin with the begin-of-text token; where the tokenizer has none, with the first tokens of background rows,
    drawn anew for each. A row ends with the base's end-of-text token or at its length. The draws are `context.seed`'s
    own: no global random state is read or changed.

    Args:
        model: computes, with its adapter off, what the base does.

    Raises:
        NlftError: there is nothing to begin with.
    """
    if context.begin_id is None and not context.background:
        raise NlftError(
            "replay.source: self needs something to begin with: the tokenizer has no begin-of-text token.",
            "Give `background`: the first tokens of its rows begin the texts.",
        )
    draws = torch.Generator().manual_seed(context.seed)
    count = config.rows or WRITTEN_ROWS
    if context.begin_id is not None:
        first = torch.full((count,), context.begin_id)
    else:
        starts = torch.tensor([row.ids[0] for row in context.background])
        first = starts[torch.randint(len(starts), (count,), generator=draws)]
    length = min(config.length or WRITTEN_LENGTH, context.max_length or WRITTEN_LENGTH)
    ends = model.generation_config.eos_token_id
    stops = set(ends) if isinstance(ends, list) else {ends}
    with without_adapter(model), inference(model):
        texts = [
            text for some in first.split(WRITTEN_AT_ONCE) for text in draw_texts(model, some, length, stops, draws)
        ]
    return [Encoded(ids, [IGNORE, *ids[1:]], 0) for ids in texts]


def draw_texts(
    model: Any, first: Tensor, length: int, stops: set[int | None], draws: torch.Generator
) -> list[list[int]]:
    """Continues each first token [B] by draws at temperature 1, up to an end token (kept) or `length` tokens."""
    device = next(model.parameters()).device
    ids, cache = first[:, None], None
    while ids.shape[1] < length:
        output = model(input_ids=ids[:, -1:].to(device), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        odds = output.logits[:, -1].float().softmax(-1).cpu()
        ids = torch.cat([ids, torch.multinomial(odds, 1, generator=draws)], dim=1)
    return [until_end(text, stops) for text in ids.tolist()]


def until_end(ids: list[int], stops: set[int | None]) -> list[int]:
    """A text up to the first end token behind its first token, which is kept."""
    end = next((at for at, i in enumerate(ids) if at and i in stops), len(ids) - 1)
    return ids[: end + 1]
