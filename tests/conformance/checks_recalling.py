"""The check of the frozen prefix: a pass that begins in front of the first adapted layer is the whole pass."""

from __future__ import annotations

from typing import Any

import torch
from integrations_quantised import quantised
from subject import ROWS, adapted, begin, build, check, train

from nlft.config import PrefixConfig
from nlft.data.batch import Batch, collate
from nlft.data.template import Encoded
from nlft.frozen_prefix import ATTRIBUTE, install_prefix, keep_prefix
from nlft.loss import target_loss
from nlft.prefix_store import PrefixStore
from nlft.types import IGNORE

PAD = 0


def rows_of(batch: Batch) -> list[Encoded]:
    """The rows of a padded batch, longest first, as a frozen prefix computes them."""
    found = [ids[mask != 0].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    return [Encoded(ids, [IGNORE, *ids[1:]], 0) for ids in sorted(found, key=lambda ids: (-len(ids), ids))]


def gradients(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """The loss, and the gradient of everything that is trained, by name."""
    model.zero_grad()
    loss = target_loss(model, batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def recalls_on(base: Any, pathway: str) -> None:
    model = adapted(pathway, base, layers_to_transform=[1, 2, 3])
    begin(model, pathway)
    train(model, pathway, steps=1)
    names, padded = list(model.state_dict()), rows_of(ROWS)
    shortest = len(padded[-1].ids)
    for rows in (padded, [Encoded(row.ids[:shortest], row.labels[:shortest], 0) for row in padded]):
        batch = collate(rows, PAD)
        expected = gradients(model, batch)
        assert len(expected) > 1 and any(float(one.abs().max()) > 0 for one in list(expected.values())[1:])
        prefix = install_prefix(model, "base", PrefixConfig(), PrefixStore(None, PrefixConfig()))
        keep_prefix(model, rows, PAD)
        assert prefix is not None and prefix.depth == 1 and prefix.refused is None and prefix.states(batch) is not None
        found = gradients(model, batch)
        assert found.keys() == expected.keys() and list(model.state_dict()) == names
        delattr(prefix.root, ATTRIBUTE)
        # What stands at padding is 0, and product keys sort it in among the rest before they sum.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@check(
    "recall",
    "With the frozen layers in front left out and their states given back, loss and all gradients are bit for bit those"
    " of a whole pass, and equal up to rounding where rows are padded.",
)
def recalls(pathway: str, family: str) -> None:
    recalls_on(build(family), pathway)


@check("recall 4-bit", "The same beside a base in 4 bit (nf4).", families=("llama", "gemma3"))
def recalls_quantised(pathway: str, family: str) -> None:
    recalls_on(quantised(family, 4), pathway)
