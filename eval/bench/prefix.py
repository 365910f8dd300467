"""What the frozen prefix gives and costs: a step and a scoring pass with and without it, and the error of bfloat16.

    python eval/bench/prefix.py [--rounds 7] [--threads 4]

Prints two tables. Times are medians over rounds in which all candidates take turns, and shares of a whole pass. The
error is that of logits (largest, by the largest logit) and of the mean loss per token, against states that are kept as
the base computes them; `builtin:tiny` reads text of the built-in world, the others random tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from model import SIZES, lora, random_base, random_rows
from timing import default_threads, interleaved

from nlft.base import load_base
from nlft.config import BaseConfig, DataConfig, PrefixConfig
from nlft.data.batch import collate
from nlft.data.source import load_rows
from nlft.data.template import Encoded, encode_rows, pad_id
from nlft.frozen_depth import frozen_depth
from nlft.frozen_prefix import FrozenPrefix, install_prefix, keep_prefix, recalling
from nlft.loss import target_loss
from nlft.prefix_store import PrefixStore

SIZE, ROWS, TOKENS = SIZES["small"], 64, 128
BATCH = 8


def kept(model: Any, rows: Sequence[Encoded], pad: int, folder: Path | None = None, **fields: Any) -> FrozenPrefix:
    """A prefix that holds rows."""
    config = PrefixConfig(**fields)
    prefix = install_prefix(model, "base", config, PrefixStore(folder, config))
    assert prefix is not None
    keep_prefix(model, rows, pad)
    assert prefix.depth and not prefix.refused, prefix.refused
    return prefix


def times(rounds: int) -> None:
    """Prints what a step and a scoring pass of a LoRA in the top half take, recalled from memory and from a file."""
    rows = random_rows(SIZE, ROWS, TOKENS)
    base = random_base(SIZE, torch.device("cpu"), torch.float32)
    model = lora(base, layers=list(range(SIZE.L // 2, SIZE.L)))
    root, batch = model.get_base_model(), collate(rows[:BATCH], 0)
    with TemporaryDirectory() as folder:
        prefixes = {
            "whole pass": None,
            "from memory": kept(model, rows, 0),
            "from a file": kept(model, rows, 0, Path(folder) / "prefix", memory_gb=0),
            "from memory, bfloat16": kept(model, rows, 0, dtype="bfloat16"),
        }

        def step(prefix: FrozenPrefix | None, train: bool) -> Callable[[], None]:
            def run() -> None:
                root.nlft_frozen_prefix = prefix
                with torch.set_grad_enabled(train):
                    loss = target_loss(model, batch)
                if train:
                    loss.backward()
                    model.zero_grad()

            return run

        print(f"| {BATCH} x {TOKENS} tokens, D {SIZE.D}, {SIZE.L} layers | step | scoring | assembling, of a step |")
        print("| --- | --- | --- | --- |")
        runs = {(name, train): step(prefix, train) for name, prefix in prefixes.items() for train in (True, False)}
        states = {name: (lambda one=prefix: one.states(batch)) for name, prefix in prefixes.items() if prefix}
        asked = prefixes["from memory"]
        assert asked is not None
        others = {"depth": lambda: frozen_depth(root, asked.layers), "keep": lambda: asked.keep(rows, 0)}
        named = {f"{name} {train}": run for (name, train), run in runs.items()}
        found = interleaved({**named, **states, **others}, rounds, torch.device("cpu"))
        middle = {name: median(values) for name, values in found.items()}
        for name, prefix in prefixes.items():
            shares = [middle[f"{name} {train}"] / middle[f"whole pass {train}"] for train in (True, False)]
            cost = middle[name] / middle[f"{name} True"] if prefix else 0.0
            print(f"| {name} | {shares[0]:.2f} | {shares[1]:.2f} | {cost:.2%} |")
        print(f"\nAsking how deep it is: {middle['depth'] * 1e6:,.0f} µs;"
              f" keeping {ROWS} rows that are known: {middle['keep'] * 1e6:,.0f} µs.\n")  # fmt: skip


def tiny() -> tuple[Any, list[Encoded], int]:
    """`builtin:tiny`, text that it knows, and the id to pad with."""
    base = load_base(BaseConfig(model="builtin:tiny"))
    rows = load_rows(DataConfig(path="builtin:world/text/test", limit=64))
    return base.model, encode_rows(rows, base.tokenizer, base.context, "truncate"), pad_id(base.tokenizer)


def errors() -> None:
    """Prints how far bfloat16 states lie from those of the base."""
    print("| base | layers below | logits | loss per token, nats | changed by |")
    print("| --- | --- | --- | --- | --- |")
    bases = {"builtin:tiny": tiny}
    for name in ("tiny", "small"):
        size = SIZES[name]
        bases[f"random Llama, D {size.D}"] = lambda size=size: (
            random_base(size, torch.device("cpu"), torch.float32), random_rows(size, 16, 64), 0
        )  # fmt: skip
    for name, make in bases.items():
        model, rows, pad = make()
        depth = model.config.num_hidden_layers // 2
        model.get_decoder().layers[depth:].requires_grad_(True)
        batch = collate(rows, pad)
        found = []
        with torch.no_grad():
            for dtype in ("base", "bfloat16"):
                prefix = kept(model, rows, pad, dtype=dtype)
                assert prefix.depth == depth and prefix.states(batch) is not None
                with recalling(model, batch):
                    logits = model(**batch.inputs(), use_cache=False).logits
                found.append((logits[batch.attention_mask != 0], float(target_loss(model, batch)) / batch.n_targets))
        (logits, loss), (other, rounded) = found
        error = float((logits - other).abs().max() / logits.abs().max())
        layers = f"{depth} of {model.config.num_hidden_layers}"
        print(f"| {name} | {layers} | {error:.1e} | {loss:.4f} | {rounded - loss:+.1e} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    times(options.rounds)
    errors()
