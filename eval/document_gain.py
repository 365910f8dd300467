"""What a Hope memory gains from a document that it has read, apart from what its weights have learned of the domain.

    python eval/document_gain.py --model models/stories260K --train data/domains/medical_medquad.jsonl

Documents of 2 T tokens. Everything is measured on their second halves, read with a fresh key-value cache:

- persistent gain: what the trained adapter wins over the base there when its state was reset;
- in-context gain: what it wins on top of that when its state comes from the first half of the same document;
- the same with the state of another document, which must win less, and with the memory switched off.

Rivals: LoRA of the same number of weights, and the base with both halves in its attention.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import nlft
from nlft.base import FrozenBase, load_base
from nlft.config import BaseConfig, DataConfig, HopeConfig, LoraConfig, TrainConfig
from nlft.data.source import load_rows
from nlft.data.template import Encoded
from nlft.events import Events
from nlft.methods import build_method
from nlft.methods.protocol import TaskContext
from nlft.train import train_stage
from nlft.types import IGNORE

RATES = {"hope": (1e-3, 3e-3, 1e-2), "lora": (1e-3, 3e-3, 1e-2)}


def main() -> None:
    """Trains, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True, help="file of documents; a quarter of them is for testing")
    parser.add_argument("--half", type=int, default=128, help="T, tokens of half a document")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    console = Console(width=120)
    base = load(options)
    documents = read_documents(base, options)
    cut = len(documents) // 8
    test, validation, train = documents[:cut], documents[cut : 2 * cut], documents[2 * cut :]
    console.print(f"{len(train)} documents of {2 * options.half} tokens to train on, {len(test)} to test on.")
    results: dict[str, dict[str, list[float]]] = {"base": {"reset": per_document(base.model, test, "reset")}}
    results["base"]["whole document"] = per_document(base.model, test, "whole")
    for kind in RATES:
        models = [fit(options, kind, lr, train, console) for lr in RATES[kind]]
        condition = "own state" if kind == "hope" else "reset"
        losses = [mean(per_document(model, validation, condition)) for model in models]
        best = models[losses.index(min(losses))]
        console.print(f"{kind}: best learning rate {RATES[kind][losses.index(min(losses))]:g} of {RATES[kind]}")
        names = ("reset", "own state", "other's state", "off") if kind == "hope" else ("reset", "whole")
        results[kind] = {name: per_document(best, test, name) for name in names}
    show(results, console)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results), encoding="utf-8")


def load(options: Any) -> FrozenBase:
    """A fresh base."""
    return load_base(BaseConfig(model=options.model, dtype="float32", device="cpu"))


def read_documents(base: FrozenBase, options: Any) -> torch.Tensor:
    """Every document that is long enough, cut to 2 T tokens, [N, 2 T]."""
    rows = load_rows(DataConfig(path=options.train))
    texts = [f"{row.prompt} {row.completion}".strip() for row in rows]
    ids = [base.tokenizer(text)["input_ids"] for text in dict.fromkeys(texts)]
    long = [one[: 2 * options.half] for one in ids if len(one) >= 2 * options.half]
    order = torch.randperm(len(long), generator=torch.Generator().manual_seed(options.seed))
    return torch.tensor(long)[order]


def fit(options: Any, kind: str, lr: float, train: torch.Tensor, console: Console) -> Any:
    """An adapter trained on whole documents."""
    base = load(options)
    width = base.model.config.hidden_size
    depth = base.model.config.num_hidden_layers
    config: Any = (
        HopeConfig(kind="hope", lr=lr, layers=list(range(depth // 2)), heads=1, head_width=width, chunk=32)
        if kind == "hope"
        else LoraConfig(kind="lora", lr=lr)
    )
    method = build_method(config)
    rows = [Encoded(ids, [IGNORE, *ids[1:]], 0) for ids in train.tolist()]
    model = method.attach(base, options.seed)
    method.begin_task(model, TaskContext("documents", rows, [], [], 1, 1, 16, 0, options.seed))
    cost = train_stage(
        model, method, rows, TrainConfig(steps=options.steps, batch_size=16), steps=options.steps, lr=lr, pad_id=0,
        stage=1, label=f"{kind} {lr:g}", events=Events(None), console=console,
    )  # fmt: skip
    method.end_task(model)
    console.print(f"{kind} {lr:g}: {cost.trainable:,} weights, loss {cost.final_loss:.3f}, {cost.seconds:.0f} s")
    return model


@torch.inference_mode()
def per_document(model: Any, documents: torch.Tensor, condition: str) -> list[float]:
    """Nats per token of every document's second half."""
    model.eval()
    half = documents.shape[1] // 2
    found: list[float] = []
    for part in documents.split(32):
        first, second = part[:, :half], part[:, half:]
        if condition.startswith("whole"):
            logits = model(input_ids=part).logits[:, half:]
        elif condition == "off":
            with model.disable_adapter():
                logits = model(input_ids=second).logits
        elif condition == "reset":
            logits = model(input_ids=second).logits
        else:
            with nlft.session(model) as session:
                model(input_ids=first)
                if condition != "own state":
                    session.carried.states = {
                        block: {name: tensor.roll(1, 0) for name, tensor in state.items()}
                        for block, state in (session.carried.states or {}).items()
                    }
                logits = model(input_ids=second).logits
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), second[:, 1:], reduction="none")
        found += losses.mean(1).tolist()
    return found


def mean(values: list[float]) -> float:
    """Mean of some numbers."""
    return sum(values) / len(values)


def interval(differences: list[float]) -> str:
    """A mean with its 95 % bootstrap interval over documents."""
    values = torch.tensor(differences, dtype=torch.float64)
    draws = torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{float(values.mean()):.3f} ({low:.3f} to {high:.3f})"


def show(results: dict[str, dict[str, list[float]]], console: Console) -> None:
    """Prints losses and gains."""
    table = Table("model", "condition", "nats a token")
    for name, conditions in results.items():
        for condition, values in conditions.items():
            table.add_row(name, condition, f"{mean(values):.3f}")
    console.print(table)
    base, hope, lora = results["base"]["reset"], results["hope"], results["lora"]["reset"]
    for what, before, after in (
        ("LoRA, persistent gain", base, lora),
        ("Hope, persistent gain (state reset)", base, hope["reset"]),
        ("Hope, in-context gain (own first half)", hope["reset"], hope["own state"]),
        ("Hope, the same with another document's state", hope["reset"], hope["other's state"]),
        ("base, in-context gain of attention", base, results["base"]["whole document"]),
    ):
        difference = [a - b for a, b in zip(before, after, strict=True)]
        console.print(f"{what}: {interval(difference)} nats a token", highlight=False)


if __name__ == "__main__":
    main()
