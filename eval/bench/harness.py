"""Throughput of nlft's scoring against lm-eval's HFLM on the same requests, with the same scores.

    taskset -c 0 python eval/bench/harness.py        # one thread, float32, CPU; a few minutes

Requests: multiple choice (4 choices behind one question), log-likelihood of whole texts, and answers up to a full
stop. Models: the built-in base on its own world, and a random Llama of width 256 with 6 layers behind its tokenizer.
Both sides get the same lists, batch size and context. Times are the process's own (CPU seconds), medians over rounds in
which all take turns.

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
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.table import Table

from nlft.anatomy import decoder_layers
from nlft.base import load_base
from nlft.config import BaseConfig, DataConfig, PrefixConfig
from nlft.data.source import load_rows
from nlft.frozen_prefix import install_prefix
from nlft.measure.bridge import BridgeLM
from nlft.measure.isolation import evaluating
from nlft.prefix_store import PrefixStore

their_model: Any = HFLM
ROUNDS, BATCH, CONTEXT = 3, 64, 128
ANSWER = 24
"""Longest answer in tokens."""
SIDES = ["HFLM", "nlft", "nlft, cached"]
"""CPU seconds of each stand in the table."""


def main() -> None:
    """Prints one table."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    base = load_base(BaseConfig())
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=base.model.config.vocab_size, hidden_size=256, intermediate_size=704, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    models = {"builtin:tiny": base.model, "random Llama, 256 x 6": transformers.LlamaForCausalLM(config).eval()}
    table = Table("model", "requests", "number", *SIDES, "times as fast", "cached", "largest difference")
    for name, model in models.items():
        for kind, requests in all_requests().items():
            with contextlib.redirect_stderr(io.StringIO()):
                theirs = their_model(pretrained=model, tokenizer=base.tokenizer, batch_size=BATCH, max_length=CONTEXT)
                ours = BridgeLM(model, base.tokenizer, BATCH, CONTEXT)
                sides = {"HFLM": theirs, "nlft": ours}
                if requests[0] != "generate_until":  # decoding keeps a cache of all layers
                    sides["nlft, cached"] = BridgeLM(half_kept(model), base.tokenizer, BATCH, CONTEXT)
                times, difference = compare(sides, *requests)
            cost = [f"{times[side]:.2f}" if side in times else "" for side in SIDES]
            faster = [f"{times['HFLM'] / times[side]:.2f}" if side in times else "" for side in SIDES[1:]]
            table.add_row(name, kind, str(len(requests[1])), *cost, *faster, difference)
    Console(width=150).print(table)


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


def compare(sides: dict[str, Any], method: str, requests: list[Instance]) -> tuple[dict[str, float], str]:
    """Median seconds of every side, and the largest difference of their scores from HFLM's."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, Any] = {}
    for number in range(ROUNDS + 1):
        for side, lm in sides.items():
            ask: Callable[..., Any] = getattr(lm, method)
            with evaluating(lm.model), contextlib.redirect_stdout(io.StringIO()):
                begun = time.process_time()
                found[side] = ask(requests)
                if number:  # the first one warms up, and keeps what is to be kept
                    times[side].append(time.process_time() - begun)
    theirs, *ours = found.values()
    apart = dict.fromkeys(differences(theirs, one) for one in ours)
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
