"""Throughput of nlft's scoring against lm-eval's HFLM on the same requests, with the same scores.

    taskset -c 0 python eval/bench/harness.py        # one thread, float32, CPU; a few minutes

Requests: multiple choice (4 choices behind one question), log-likelihood of whole texts, and answers up to a full
stop. Models: the built-in base on its own world, and a random Llama of width 256 with 6 layers behind its tokenizer.
Both sides get the same lists, batch size and context. Times are the process's own (CPU seconds), medians over rounds in
which the two take turns.
"""

from __future__ import annotations

import contextlib
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

from nlft.base import load_base
from nlft.config import BaseConfig, DataConfig
from nlft.data.source import load_rows
from nlft.measure.bridge import BridgeLM
from nlft.measure.isolation import evaluating

their_model: Any = HFLM
ROUNDS, BATCH, CONTEXT = 3, 64, 128
ANSWER = 24
"""Longest answer in tokens."""


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
    table = Table("model", "requests", "number", "HFLM, CPU s", "nlft, CPU s", "times as fast", "largest difference")
    for name, model in models.items():
        for kind, requests in all_requests().items():
            with contextlib.redirect_stderr(io.StringIO()):
                theirs = their_model(pretrained=model, tokenizer=base.tokenizer, batch_size=BATCH, max_length=CONTEXT)
                ours = BridgeLM(model, base.tokenizer, BATCH, CONTEXT)
                old, new, difference = compare(model, theirs, ours, *requests)
            table.add_row(name, kind, str(len(requests[1])), f"{old:.2f}", f"{new:.2f}", f"{old / new:.2f}", difference)
    Console(width=140).print(table)


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


def compare(model: Any, theirs: Any, ours: Any, method: str, requests: list[Instance]) -> tuple[float, float, str]:
    """Median seconds of both sides, and the largest difference of their scores."""
    times: dict[int, list[float]] = {0: [], 1: []}
    found: dict[int, Any] = {}
    for _ in range(ROUNDS):
        for side, lm in enumerate((theirs, ours)):
            ask: Callable[..., Any] = getattr(lm, method)
            with evaluating(model), contextlib.redirect_stdout(io.StringIO()):
                begun = time.process_time()
                found[side] = ask(requests)
                times[side].append(time.process_time() - begun)
    return median(times[0]), median(times[1]), differences(found[0], found[1])


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
