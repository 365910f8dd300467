"""Background statistics: what the base's hidden states look like where a memory will stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nlft.anatomy import block_input, root_of
from nlft.capture import inference, run_until_captured
from nlft.distributed import in_turn
from nlft.errors import NlftError
from nlft.frozen_prefix import recalling
from nlft.kept_inputs import KeptInputs

if TYPE_CHECKING:
    from nlft.data.batch import Batch

SHRINKAGE = 0.01
"""Part of the average variance that is mixed into every direction's variance."""
WIDE = 256
"""Wider states are multiplied in float32, `ROWS` of them at a time, and summed in float64, in a third of the time."""
ROWS = 256
"""So few that the sums of one product are off by about 1e-8 of a variance."""


class Inputs(NamedTuple):
    """The inputs of several blocks in one batch, at the same N tokens."""

    states: dict[str, torch.Tensor]
    """[N, D] float32 by block."""
    rows: torch.Tensor
    """[N] int64: the row of the batch that each token belongs to."""


def counted(batch: Batch, first: bool = False, last: bool = True) -> torch.Tensor:
    """The tokens of a batch that `block_inputs` reads, [B, T] bool."""
    mask = batch.attention_mask
    kept = mask != 0 if first else (mask != 0) & (mask.cumsum(dim=1) > 1)
    return kept if last else kept & (mask.flip(1).cumsum(dim=1).flip(1) > 1)


def block_inputs(
    model: Any,
    blocks: Sequence[str],
    batches: Iterable[Batch],
    first: bool = False,
    last: bool = True,
    again: bool = False,
) -> Iterator[Inputs]:
    """Streams the inputs of blocks, batch by batch.

    Tokens that are padding are left out, and so is the first token of every row: it acts as an attention sink
    and looks like no other. The model runs in eval mode without gradient, no further than the last block, and
    is put back into the mode in which it was found.

    Args:
        model: a causal language model, or a PEFT model (its active adapters take part).
        blocks: full names of modules of the base model.
        batches: `input_ids` and `attention_mask`, each [B, T] int64; either side may be padded.
        first: keep the first token of every row too.
        last: keep the last token of every row too, after which nothing is predicted.
        again: these batches will be read again, so what is read is kept where there is room, see `nlft.kept_inputs`.
    """
    root = root_of(model)
    modules = {name: root.get_submodule(block_input(root, name)) for name in blocks}
    device = root.get_input_embeddings().weight.device
    kept = KeptInputs(root, blocks)

    def read(batch: Batch) -> dict[str, torch.Tensor]:
        states = kept.find(batch)
        if states is not None:
            return states
        with inference(root), recalling(root, batch):
            captured = run_until_captured(model, modules, batch.input_ids, batch.attention_mask)
        flat = (batch.attention_mask != 0).flatten()
        return {name: captured[name].reshape(flat.numel(), -1)[flat] for name in blocks}

    # Several processes share the passes, and each gets all states.
    for batch, states in in_turn(read, (batch.to(device) for batch in batches)):
        if again:
            kept.add(batch, states)
        real, wanted = batch.attention_mask != 0, counted(batch, first, last)
        chosen = wanted[real]
        yield Inputs({name: own[chosen].float() for name, own in states.items()}, wanted.nonzero()[:, 0])


class Moments:
    """Count, mean and covariance of a stream in float64, merged by blocks (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, dtype=torch.float64)

    def add(self, states: torch.Tensor) -> None:
        """Takes in states [N, D]; N may be 0."""
        if not len(states):
            return
        states = states.double()
        mean = states.mean(dim=0)
        centred = states - mean
        scatter = centred.new_zeros(centred.shape[1], centred.shape[1])
        for part in centred.float().split(ROWS) if centred.shape[1] > WIDE else (centred,):
            scatter += part.T @ part
        if not self.count:
            self.count, self.mean, self.scatter = len(states), mean, scatter
            return
        total = self.count + len(states)
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * len(states) / total)
        self.mean = self.mean + shift * (len(states) / total)
        self.count = total

    @property
    def covariance(self) -> torch.Tensor:
        """[D, D] float64, divided by the count."""
        return self.scatter / max(1, self.count)


def whitener(moments: Moments, shrinkage: float = SHRINKAGE) -> torch.Tensor:
    """Projection onto the principal directions, scaled to unit variance.

    The covariance is shrunk towards a multiple of the identity, `(1 - a) C + a tr(C) / D I` (Ledoit & Wolf
    2004, with a fixed), so that directions that the sample hardly shows are not blown up and fewer states
    than dimensions do no harm.

    Args:
        moments: of at least one state.
        shrinkage: a, above 0 and at most 1.

    Returns:
        [D, D] float32, directions by falling variance; each direction's largest entry is positive.
    """
    covariance = moments.covariance
    size = len(covariance)
    average = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    identity = torch.eye(size, dtype=torch.float64, device=covariance.device)
    variances, directions = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * average * identity)
    variances, directions = variances.flip(0), directions.flip(1)
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    return (directions * signs / variances.sqrt()).float()


def calibrate_base(
    model: Any, blocks: Sequence[str], batches: Iterable[Batch]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean [D] and whitener [D, D] of the input of every block, float32, on the model's device.

    Raises:
        NlftError: the batches hold no token after the first of a row.
    """
    moments = {name: Moments() for name in blocks}
    for inputs in block_inputs(model, blocks, batches, again=True):
        for name, states in inputs.states.items():
            moments[name].add(states)
    if not all(one.count for one in moments.values()):
        raise NlftError(
            "The background holds no token to calibrate on.", "Give `background` rows of at least two tokens."
        )
    return {name: (one.mean.float(), whitener(one)) for name, one in moments.items()}
