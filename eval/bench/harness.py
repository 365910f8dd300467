"""Throughput of nlft's scoring against lm-eval's HFLM on the same requests, with the same scores.

    taskset -c 0 python eval/bench/harness.py        # one thread, float32, CPU; several minutes

Requests: multiple choice (4 choices behind one question), log-likelihood of whole texts, and answers up to a full
stop. Models: the built-in base on its own world, and a random Llama of width 256 with 6 layers behind its tokenizer.
Both sides get the same lists and context. nlft tunes its passes up to its batch size; HFLM runs with each of several
batch sizes, and its best is what nlft is compared with, kind by kind. Times are medians over rounds in which all take
turns, CPU seconds of the process where one thread works. `all` is the sum over all kinds, that of HFLM's bests;
"cached" takes answers, which are not cached, as they are.

"cached" is a second scoring of the same rows with a frozen prefix of half the layers: the model listens at its middle
layer, as one does whose memories stand in the upper half.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from cost import Size
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from model import random_base
from rich.console import Console
from rich.table import Table
from step import Setting
from timing import CPU, interleaved
from verdict import Verdict, marked

from nlft.anatomy import decoder_layers
from nlft.base import load_base
from nlft.config import BaseConfig, DataConfig, PrefixConfig
from nlft.data.source import load_rows
from nlft.frozen_prefix import install_prefix
from nlft.measure.bridge import BridgeLM
from nlft.measure.isolation import evaluating
from nlft.prefix_store import PrefixStore

their_model: Any = HFLM
BATCH, CONTEXT = 64, 128
THEIRS = (16, 64)
"""Batch sizes of HFLM."""
TARGET = 2.0
"""Least number of times that nlft is as fast."""
READER = Size(D=256, F=704, L=6, H=8, KV=8, V=0)
"""A random base that scores on a CPU, behind the built-in tokenizer."""
FEW = 120
"""Most requests of a kind in the one table of ratios."""
ANSWER = 24
"""Longest answer in tokens."""
OURS, CACHED = "nlft", "nlft, cached"
SIDES = [*(f"HFLM, {size}" for size in THEIRS), OURS, CACHED]
"""Seconds of each stand in the table."""


def main() -> None:
    """Prints a table for each model."""
    torch.set_num_threads(1)
    base = load_base(BaseConfig())
    random_model = random_base(replace(READER, V=len(base.tokenizer)), CPU, torch.float32, deviation=0.1)
    for name, model in {"builtin:tiny": base.model, "random Llama, 256 x 6": random_model}.items():
        Console(width=170).print(scoring(name, model, base.tokenizer, 3)[0])


def evaluation(setting: Setting) -> tuple[list[Table], list[Verdict]]:
    """A random model and few requests, for the one table of ratios."""
    tokenizer = load_base(BaseConfig()).tokenizer
    size = setting.size if setting.device.type == "cuda" else READER
    model = random_base(replace(size, V=len(tokenizer)), setting.device, setting.dtype, deviation=0.1)
    table, found = scoring("random", model, tokenizer, 2, FEW)
    return [table], found


def scoring(name: str, model: Any, tokenizer: Any, rounds: int, most: int | None = None) -> tuple[Table, list[Verdict]]:
    """One row for each kind of requests, and one for all of them.

    Args:
        most: requests of a kind.
    """
    table = Table(
        "requests", "number", *(f"{side}, s" for side in SIDES), "HFLM's best / nlft", "/ cached",
        "largest difference", title=f"Scoring: {name}",
    )  # fmt: skip
    total = {"best": 0.0, OURS: 0.0, CACHED: 0.0}
    found = []
    for kind, (method, every) in all_requests().items():
        requests = every[:most]
        with quiet():
            sides = {f"HFLM, {size}": hflm(model, tokenizer, size) for size in THEIRS}
            sides[OURS] = BridgeLM(model, tokenizer, BATCH, CONTEXT)
            if method != "generate_until":  # decoding keeps a cache of all layers
                sides[CACHED] = BridgeLM(half_kept(model), tokenizer, BATCH, CONTEXT)
            times, difference = compare(sides, method, requests, rounds, next(model.parameters()).device)
        best = min(times[side] for side in sides if side.startswith("HFLM"))
        total["best"] += best
        total[OURS] += times[OURS]
        total[CACHED] += times.get(CACHED, times[OURS])
        cost = [f"{times[side]:.2f}" if side in times else "" for side in SIDES]
        faster = [marked(best / times[side], TARGET, False) if side in times else "" for side in (OURS, CACHED)]
        table.add_row(kind, str(len(requests)), *cost, *faster, difference)
        found.append(Verdict(f"scoring, HFLM's best / nlft: {kind}", best / times[OURS], TARGET, at_most=False))
    ratios = {side: total["best"] / total[side] for side in (OURS, CACHED)}
    cost = [f"best {total['best']:.2f}", *[""] * (len(THEIRS) - 1), f"{total[OURS]:.2f}", f"{total[CACHED]:.2f}"]
    table.add_section()
    table.add_row("all", "", *cost, *(marked(ratio, TARGET, False) for ratio in ratios.values()), "")
    for side, ratio in ratios.items():
        found.append(Verdict(f"scoring, HFLM's best / {side}: all kinds", ratio, TARGET, at_most=False))
    return table, found


def hflm(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's own model class."""
    return their_model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=CONTEXT)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is said while requests are answered is not shown."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
    logging.disable(logging.NOTSET)


def half_kept(model: Any) -> Any:
    """A copy of a model with a frozen prefix that ends at its middle layer."""
    model = copy.deepcopy(model).requires_grad_(False)
    layers = decoder_layers(model)[1]
    layers[len(layers) // 2].register_forward_pre_hook(lambda *_: None)
    config = PrefixConfig()
    install_prefix(model, "base", config, PrefixStore(None, config))
    return model


def all_requests() -> dict[str, tuple[str, list[Instance]]]:
    """Requests of the three kinds: the method of an `LM` that takes them, and themselves."""
    draw = random.Random(0)
    facts = load_rows(DataConfig(path="builtin:world/base/probe", limit=160))
    stories = [row.completion for row in load_rows(DataConfig(path="builtin:world/text/test", limit=300))]
    lines = [row.completion for row in load_rows(DataConfig(path="builtin:world/base/background-text", limit=600))]
    completions = [row.completion for row in facts]
    choices, shared = [], []
    for row in facts:
        texts = [row.completion, *draw.sample(completions, 3)]
        choices += [(row.prompt, f" {text}") for text in texts]
        # A passage in front of the question, as reading tests have it.
        passage = " ".join(draw.sample(stories, 1)[0].split()[:40])
        shared += [(f"{passage}\n\n{row.prompt}", f" {text}") for text in texts]
    # A story up to its last sentence, and four endings, as HellaSwag has them.
    endings = []
    parts = [text.rstrip().rpartition(". ") for text in stories[:160]]
    for begin, _, own in parts:
        others = [other for _, _, other in draw.sample(parts, 3)]
        endings += [(f"{begin}.", f" {ending}") for ending in (own, *others)]
    # Questions, and beginnings of stories, whose next sentence is written.
    prompts = [row.prompt for row in facts] + [" ".join(text.split()[:8]) for text in stories[:160]]
    until = {"until": ["\n\n", "."], "max_gen_toks": ANSWER}
    return {
        "choices, short question": ("loglikelihood", instances("loglikelihood", choices)),
        "choices, after a passage": ("loglikelihood", instances("loglikelihood", shared)),
        "choices, endings of stories": ("loglikelihood", instances("loglikelihood", endings)),
        "texts of like length": rolling(stories),
        "texts of mixed length": rolling(lines),
        "answers": ("generate_until", instances("generate_until", [(one, dict(until)) for one in prompts])),
    }


def rolling(texts: Sequence[str]) -> tuple[str, list[Instance]]:
    """Requests for the log-likelihood of whole texts."""
    return "loglikelihood_rolling", instances("loglikelihood_rolling", [(text,) for text in texts])


def instances(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    """Requests as lm-eval passes them on."""
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


def compare(
    sides: dict[str, Any], method: str, requests: list[Instance], rounds: int, device: torch.device
) -> tuple[dict[str, float], str]:
    """Median seconds of every side, and the largest difference of nlft's scores from HFLM's."""
    found: dict[str, Any] = {}

    def ask(side: str) -> None:
        with evaluating(sides[side].model):
            found[side] = getattr(sides[side], method)(requests)

    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    # The first round warms up, and keeps what is to be kept.
    times = interleaved({side: partial(ask, side) for side in sides}, rounds, device, clock)
    theirs = next(iter(found.values()))
    apart = dict.fromkeys(differences(theirs, found[side]) for side in (OURS, CACHED) if side in found)
    return {side: median(own) for side, own in times.items()}, ", ".join(apart)


def differences(theirs: Sequence[Any], ours: Sequence[Any]) -> str:
    """How far two lists of scores or answers lie apart."""
    if isinstance(theirs[0], str):
        return f"{sum(a != b for a, b in zip(theirs, ours, strict=True))} answers"
    if isinstance(theirs[0], tuple):
        other = sum(a[1] != b[1] for a, b in zip(theirs, ours, strict=True))
        apart = max(abs(a[0] - b[0]) for a, b in zip(theirs, ours, strict=True))
        return f"{apart:.1e} nats, {other} greedy"
    return f"{max(abs(a - b) for a, b in zip(theirs, ours, strict=True)):.1e} nats"


if __name__ == "__main__":
    main()
