"""Checks of generation: what a cache changes, beams, a static cache, left padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from subject import Refused, build, check, shared

NEW = 6
"""Tokens that are generated."""


def rows(pads: tuple[int, ...] = (0, 0, 0)) -> dict[str, torch.Tensor]:
    """Three rows of 8 tokens that read like the task, with so many pads on the left."""
    ids = torch.randint(60, 80, (len(pads), 8), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row, count in enumerate(pads):
        ids[row, :count], mask[row, :count] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """The new tokens, [rows, NEW]."""
    found = model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
    return found[:, inputs["input_ids"].shape[1] :]


def equal_to(family: str, model: Any, one: Callable[[Any], Any], two: Callable[[Any], Any]) -> None:
    """Both ways give the same tokens; where the base alone cannot go one of them, that is said."""
    try:
        expected = two(model)
        found = one(model)
    except Exception as error:
        try:
            one(build(family))
            two(build(family))
        except Exception as same:
            raise Refused(f"transformers: {type(same).__name__}: {str(same).splitlines()[0]}") from error
        raise
    assert torch.equal(found, expected), f"{found.tolist()} is not {expected.tolist()}"


@check("greedy", "Greedy decoding with a cache gives the tokens that it gives without, and other ones than the base.")
def decodes(pathway: str, family: str) -> None:
    model, inputs = shared(pathway, family), rows()
    equal_to(
        family,
        model,
        lambda one: generated(one, inputs),
        lambda one: generated(one, inputs, use_cache=False),
    )
    assert not torch.equal(generated(model, inputs), generated(build(family), inputs))


@check("beams", "So does a search with 3 beams, whose rows change places.")
def searches(pathway: str, family: str) -> None:
    equal_to(
        family,
        shared(pathway, family),
        lambda one: generated(one, rows(), num_beams=3),
        lambda one: generated(one, rows(), num_beams=3, use_cache=False),
    )


@check("static cache", "So does a static cache.")
def decodes_statically(pathway: str, family: str) -> None:
    equal_to(
        family,
        shared(pathway, family),
        lambda one: generated(one, rows((0, 2, 5)), cache_implementation="static"),
        lambda one: generated(one, rows((0, 2, 5)), use_cache=False),
    )


@check("left padding", "Rows of several lengths, padded on the left, give what each gives alone, with a cache and not.")
def skips_padding(pathway: str, family: str) -> None:
    padded = rows((0, 2, 5))

    def alone(model: Any) -> torch.Tensor:
        found = []
        for row, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True):
            ids = row[mask == 1][None]
            found.append(generated(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
        return torch.cat(found)

    for use_cache in (True, False):
        equal_to(
            family,
            shared(pathway, family),
            lambda one, use_cache=use_cache: generated(one, padded, use_cache=use_cache),
            alone,
        )
