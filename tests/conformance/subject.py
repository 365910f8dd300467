"""What the conformance matrix is about: every pathway on tiny models of every family, and the registry of checks.

A check is a function of a pathway's and a family's name. It returns where everything is as it should be, raises
`Refused` with the sentence where nlft rightly refuses, and raises anything else where the product fails.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parent.parent / "pathways"))

import cms_models
import gated_models
import hope_models
import pathway_models
from families import FAMILIES, SEEING, build
from pathway_models import BACKGROUND, TASKS, batch, logits, loss

from nlft.errors import NlftError
from nlft.pathways.sparse_memory.model import end_task as end_memory

__all__ = [
    "BACKGROUND", "CHECKS", "FAMILIES", "PATHWAYS", "REFUSED_PAIRS", "ROWS", "SEEING", "Outcome", "Refused",
    "adapted", "add", "batch", "begin", "build", "check", "end", "logits", "loss", "outcome", "refuses", "shared",
    "train", "trained",
]  # fmt: skip

FIRST, SECOND = TASKS
ROWS = TASKS[FIRST][0]
"""Five right padded rows of the task that `begin` opens."""


class Refused(Exception):
    """A refusal that is right; its text is the sentence that the user reads."""


def adapted(pathway: str, base: Any, adapter: str = "default", **fields: Any) -> Any:
    """The PEFT model with the pathway inserted and calibrated, in eval mode; computes what the base does.

    Raises:
        Refused: the pathway cannot stand on this family, and says so.
    """
    family = base.config.model_type
    try:
        return PATHWAYS[pathway].insert(base, adapter, **fields)
    except NlftError as error:
        expected = REFUSED_PAIRS.get((pathway, family))
        if expected and re.search(expected, str(error)):
            raise Refused(str(error)) from error
        raise


def begin(model: Any, pathway: str) -> None:
    """Opens the first task, if the pathway has tasks; the model still computes what the base does."""
    PATHWAYS[pathway].begin(model)


def train(model: Any, pathway: str, steps: int = 2) -> None:
    """AdamW on what is trainable, with steps that are large enough to see; leaves the model in eval mode."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=PATHWAYS[pathway].lr, weight_decay=0.0
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, ROWS).backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()


def end(model: Any, pathway: str) -> None:
    """Closes the task, if the pathway has tasks; the model computes what it did."""
    PATHWAYS[pathway].end(model)


def trained(pathway: str, family: str, dtype: torch.dtype = torch.float32, adapter: str = "default") -> Any:
    """A fresh model with one finished and trained task."""
    model = adapted(pathway, build(family, dtype), adapter)
    begin(model, pathway)
    train(model, pathway)
    end(model, pathway)
    return model


@lru_cache(maxsize=1)
def shared(pathway: str, family: str) -> Any:
    """The trained model again, for checks that leave it as it is; the last one that was asked for is kept."""
    return trained(pathway, family)


def add(model: Any, pathway: str, adapter: str) -> None:
    """Adds a second adapter of the same pathway, active and calibrated; the model then computes what the base does."""
    model.add_adapter(adapter, PATHWAYS[pathway].config())
    model.set_adapter(adapter)
    PATHWAYS[pathway].calibrate(model, adapter)
    model.eval()


@dataclass(frozen=True)
class Pathway:
    """How a pathway is inserted and how its first task is opened and closed."""

    insert: Callable[..., Any]
    """(base, adapter, **fields of its config) to a calibrated PEFT model."""
    config: Callable[[], Any]
    """The config that `insert` uses."""
    begin: Callable[[Any], None] = lambda model: None
    end: Callable[[Any], None] = lambda model: None
    calibrate: Callable[[Any, str], None] = lambda model, adapter: None
    """Of an adapter that was added to a model."""
    lr: float = 0.05


def active(model: Any) -> str:
    """The one active adapter."""
    [name] = model.active_adapters
    return name


def memory(addressing: str) -> Pathway:
    """Sparse memory with one of its addressings."""
    return Pathway(
        lambda base, adapter, **fields: pathway_models.adapt(base, addressing, adapter, **fields),
        lambda: pathway_models.settings(addressing),
        lambda model: pathway_models.begin(model, FIRST),
        end_memory,
        lambda model, adapter: pathway_models.calibrate(model),
        lr=0.5,
    )


def levels(kind: str) -> Pathway:
    """Continuum memory without a gate, of one of its kinds."""
    return Pathway(
        lambda base, adapter, **fields: cms_models.cms(base, kind, adapter, **fields),
        lambda: cms_models.cms_config(kind),
    )


PATHWAYS: dict[str, Pathway] = {
    "prototype": memory("prototype"),
    "product_key": memory("product_key"),
    "cms": levels("headwise"),
    "cms_pretrained": levels("pretrained"),
    "hope": Pathway(hope_models.hope, hope_models.hope_config),
    "gated_lora": Pathway(
        lambda base, adapter, **fields: gated_models.gated(base, "gated_lora", adapter, **fields),
        lambda: gated_models.gated_config("gated_lora"),
        lambda model: gated_models.begin_gated(model, FIRST, adapter=active(model)),
        lambda model: gated_models.end_gated(model, active(model)),
        gated_models.calibrate_gated,
    ),
}
REFUSED_PAIRS: dict[tuple[str, str], str] = {
    ("cms_pretrained", family): "is a mixture of experts, which has no last map"
    for family in ("mixtral", "qwen3_moe", "gpt_oss")
}
"""Pathways that cannot stand on a family, and how the sentence goes that says so."""


@dataclass(frozen=True)
class Check:
    """One column of the matrix."""

    name: str
    words: str
    """What is required, as the page explains it."""
    run: Callable[[str, str], None]
    """(pathway, family)."""
    families: tuple[str, ...]
    """On which it says something that it does not say on others; the page shows a dot for these."""


CHECKS: dict[str, Check] = {}
"""By name, in the order of the page's columns."""


def check(
    name: str, words: str, families: Iterable[str] = FAMILIES
) -> Callable[[Callable[[str, str], None]], Callable[[str, str], None]]:
    """Registers a check.

    Args:
        name: the column's head, a few characters.
        words: what is required, one sentence.
        families: on which it is run.
    """

    def register(run: Callable[[str, str], None]) -> Callable[[str, str], None]:
        assert name not in CHECKS, name
        CHECKS[name] = Check(name, words, run, tuple(families))
        return run

    return register


@dataclass(frozen=True)
class Outcome:
    """What came of one check: `pass`, `refuse` with a sentence, or `fail` with what went wrong."""

    kind: str
    sentence: str = ""


def outcome(name: str, pathway: str, family: str) -> Outcome:
    """Runs one check."""
    try:
        CHECKS[name].run(pathway, family)
    except Refused as refusal:
        return Outcome("refuse", str(refusal))
    except Exception as error:
        return Outcome("fail", f"{type(error).__name__}: {error}")
    return Outcome("pass")


def refuses(call: Callable[[], Any], said: str) -> str:
    """The sentence with which a call is refused.

    Args:
        said: regular expression that the sentence must hold.
    """
    try:
        call()
    except (NlftError, NotImplementedError, ValueError) as error:
        assert re.search(said, str(error)), f"refused with other words: {error}"
        return str(error)
    raise AssertionError(f"nobody refused: {said}")
