"""Decoding with adapters, and scoring beside lm-eval's own model class."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import harness
from cost import Size
from model import candidates, random_base, random_rows
from rich.table import Table
from step import FLOOR, RIVAL, Setting
from timing import interleaved
from verdict import Verdict, marked

from nlft.base import load_base
from nlft.config import BaseConfig
from nlft.measure.bridge import BridgeLM
from nlft.measure.generation import generate
from nlft.measure.isolation import evaluating

DECODE, EVALUATION = 1.05, 2.0
WRITTEN, PROMPT = 24, 64
"""Tokens that are written behind a prompt, and tokens of the prompt."""
REQUESTS = 240
"""Most requests of a kind."""
ON = ("slots", "product keys", "CMS", "Hope")
"""How the names of methods begin that decode."""
READER = Size(D=256, F=704, L=6, H=8, KV=8, V=0)
"""What scores on a CPU, behind the built-in tokenizer; on a GPU it is the base of the other parts."""


def decode(setting: Setting) -> tuple[list[Table], list[Verdict]]:
    """Greedy decoding with a key-value cache, adapter on over the bare base."""
    base = random_base(setting.size, setting.device, setting.dtype)
    models: dict[str, Any] = {FLOOR: base}
    for name, candidate in candidates(setting.size).items():
        if name == RIVAL or name.startswith(ON):
            models[name] = candidate.build(base).eval()
    table = Table("method", "ms a token, 1 row", "/ base", "ms a token, 8 rows", "/ base", title="Decoding")
    cells: dict[str, list[str]] = {name: [] for name in models}
    found = []
    for rows in (1, 8):
        prompts = [row.ids for row in random_rows(setting.size, rows, PROMPT)]
        runs = {name: writing(model, prompts) for name, model in models.items()}
        times = interleaved(runs, setting.rounds, setting.device)
        for name, seconds in times.items():
            over = median(a / b for a, b in zip(seconds, times[FLOOR], strict=True))
            target = DECODE if name.startswith("slots") else None
            cells[name] += [f"{1e3 * median(seconds) / WRITTEN:.2f}", marked(over, target)]
            if target is not None:
                found.append(Verdict(f"decode / base: {name}, {rows} rows", over, DECODE))
    for name, texts in cells.items():
        table.add_row(name, *texts)
    return [table], found


def writing(model: Any, prompts: list[list[int]]) -> Callable[[], Any]:
    """A function that writes `WRITTEN` tokens behind every prompt."""

    def run() -> None:
        with evaluating(model):
            generate(model, prompts, [WRITTEN] * len(prompts), (), 0, len(prompts))

    return run


def evaluation(setting: Setting) -> tuple[list[Table], list[Verdict]]:
    """The same requests to lm-eval's HFLM and to nlft, with the same batch size and context."""
    logging.disable(logging.WARNING)
    tokenizer = load_base(BaseConfig()).tokenizer
    size = setting.size if setting.device.type == "cuda" else READER
    model = random_base(replace(size, V=len(tokenizer)), setting.device, setting.dtype)
    table = Table("requests", "number", "HFLM, s", "nlft, s", "times as fast", title="Scoring")
    found = []
    total: dict[str, list[float]] = {"HFLM": [], "nlft": []}
    options: Any = {"batch_size": harness.BATCH, "max_length": harness.CONTEXT}
    for kind, (method, requests) in harness.all_requests().items():
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            theirs = harness.their_model(pretrained=model, tokenizer=tokenizer, **options)
            ours = BridgeLM(model, tokenizer, harness.BATCH, harness.CONTEXT)
            sides = {"HFLM": getattr(theirs, method), "nlft": getattr(ours, method)}
            runs = {name: asking(model, ask, requests[:REQUESTS]) for name, ask in sides.items()}
            times = interleaved(runs, max(2, setting.rounds // 2), setting.device)
        over = median(a / b for a, b in zip(times["HFLM"], times["nlft"], strict=True))
        for name, seconds in times.items():
            total[name].append(median(seconds))
        each = (f"{total[name][-1]:.2f}" for name in ("HFLM", "nlft"))
        table.add_row(kind, str(len(requests[:REQUESTS])), *each, marked(over, EVALUATION, at_most=False))
        found.append(Verdict(f"scoring, HFLM / nlft: {kind}", over, EVALUATION, at_most=False))
    old, new = (sum(total[name]) for name in ("HFLM", "nlft"))
    table.add_row("all", "", f"{old:.2f}", f"{new:.2f}", marked(old / new, EVALUATION, at_most=False))
    found.append(Verdict("scoring, HFLM / nlft: all", old / new, EVALUATION, at_most=False))
    logging.disable(logging.NOTSET)
    return [table], found


def asking(model: Any, ask: Callable[[Any], Any], requests: Any) -> Callable[[], Any]:
    """A function that has all requests answered."""

    def run() -> None:
        with evaluating(model):
            ask(requests)

    return run
