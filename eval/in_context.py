"""What a Hope memory holds of a document that the base's attention no longer sees: new facts, and a needle.

    python eval/in_context.py facts             # N new facts about new people, eight of them asked for again
    python eval/in_context.py needle            # one number in N tokens of stories, asked for at the end
    python eval/in_context.py facts --seed 1 --steps 800 --out eval/results/hope/facts-1.json

The base is `builtin:tiny`; "cut" is the same weights with a sliding attention window (Beltagy et al. 2020) of W tokens.
Every adapter is trained for the same steps on the same rows at one size and tested at others, at the best of its
learning rates on rows of the training size that are neither trained on nor tested. Nothing can be learned by heart:
names are new in every row, and what is said of them is drawn. Controls: the memory switched off; the state that
another row's document has left, in the place of one's own.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import MistralConfig, MistralForCausalLM

import nlft
from nlft.base import FrozenBase, fingerprint, load_base, named_tensors
from nlft.config import BaseConfig, DataConfig, HopeConfig, LoraConfig, TrainConfig
from nlft.data.batch import collate
from nlft.data.source import load_rows
from nlft.data.template import Encoded
from nlft.events import Events
from nlft.methods import build_method
from nlft.methods.protocol import TaskContext
from nlft.train import train_stage
from nlft.types import IGNORE, Row

WINDOW = 16
"""W, tokens that the cut base attends to."""
TRAINED_AT = {"facts": 8, "needle": 128}
SIZES = {"facts": (4, 8, 16, 32, 64), "needle": (128, 512, 2048, 4096)}
RATES = {
    "facts": {"hope": (1e-2, 2e-2), "lora": (3e-3, 1e-2)},
    "needle": {"hope": (3e-3, 1e-2), "lora": (3e-3, 1e-2)},
}
HOPE: dict[str, Any] = {"layers": [0, 1, 2], "heads": 1, "head_width": 128, "chunk": 32}
QUESTIONS, DIGITS = 8, 3


@dataclass(frozen=True)
class Example:
    """A document, and questions about it with the labels of their answers."""

    document: list[int]
    question: list[int]
    labels: list[int]


def main() -> None:
    """Trains, tests and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=48, help="test rows of each size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hope", type=json.loads, default={}, help="other fields of the Hope config, as JSON")
    parser.add_argument("--only", action="store_true", help="Hope alone, without its rivals")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    console = Console(width=120)
    make = {"facts": facts, "needle": needle}[options.task]
    results = []
    models = [("hope, cut", "hope", True), ("LoRA, whole", "lora", False), ("LoRA, cut", "lora", True)]
    for name, kind, cut in models[:1] if options.only else models:
        fits = [train(options, make, kind, cut, lr, console) for lr in RATES[options.task][kind]]
        best = max(fits, key=lambda fit: fit.validation)
        results.append(Result(name, best.lr, best.validation, test(options, make, best), best.loss))
    results = [*untrained(options, make), *results]
    show(results, options, console)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")


@dataclass
class Result:
    """Shares of right answers of one model."""

    name: str
    lr: float | None
    validation: float
    """At the training size, on rows for the choice of the learning rate."""
    accuracy: dict[int, dict[str, float]]
    """By size N, then by condition."""
    loss: float | None = None


def base_model(cut: bool) -> FrozenBase:
    """`builtin:tiny`, whole or with a window of W tokens: Mistral is Llama with a window."""
    base = load_base(BaseConfig(dtype="float32", device="cpu"))
    if not cut:
        return base
    fields = base.model.config.to_dict()
    config = MistralConfig(
        **{key: fields[key] for key in MistralConfig().to_dict() if key in fields and key != "model_type"}
    )
    config.sliding_window = WINDOW
    model: Any = MistralForCausalLM(config)
    model.load_state_dict(base.model.state_dict())
    model.eval().requires_grad_(False)
    names = frozenset(name for name, _ in named_tensors(model))
    return FrozenBase(model, base.tokenizer, f"builtin:tiny, window {WINDOW}", None, fingerprint(model), names, 4096)


def facts(base: FrozenBase, count: int, size: int, seed: int) -> list[Example]:
    """Facts about N new people in one of four wordings each; up to eight are asked for, in wordings drawn anew."""
    draw = random.Random(f"facts {size} {seed}")
    rows = [row for row in load_rows(DataConfig(path="builtin:world/base/background")) if row.meta["kind"] == "people"]
    names = [row.cluster.split() for row in rows]
    first, last = sorted({name[0] for name in names}), sorted({name[-1] for name in names})
    by_relation: dict[str, list[Row]] = {}
    for row in rows:
        by_relation.setdefault(row.meta["relation"], []).append(row)
    found = []
    for _ in range(count):
        people = draw.sample([f"{one} {other}" for one in first for other in last], size)
        said = [(name, draw.choice(sorted(by_relation))) for name in people]
        said = [(name, relation, draw.choice(by_relation[relation]).completion) for name, relation in said]
        document = [token for fact in said for part in tell(base, draw, by_relation, *fact) for token in part]
        question, labels = [], []
        for fact in draw.sample(said, min(QUESTIONS, size)):
            prompt, answer = tell(base, draw, by_relation, *fact)
            question += [*prompt, *answer]
            labels += [IGNORE] * len(prompt) + answer
        found.append(Example(document, question, labels))
    return found


def tell(
    base: FrozenBase, draw: random.Random, rows: dict[str, list[Row]], name: str, relation: str, answer: str
) -> tuple[list[int], list[int]]:
    """Token ids of a fact in a drawn wording, and of its answer."""
    row = draw.choice(rows[relation])
    return encode(base, " " + row.prompt.replace(row.cluster, name)), encode(base, " " + answer)


def needle(base: FrozenBase, count: int, size: int, seed: int) -> list[Example]:
    """N tokens of stories with one sentence about a number at a random depth, asked for at the end."""
    draw = random.Random(f"needle {size} {seed}")
    stories = [encode(base, " " + row.completion) for row in load_rows(DataConfig(path="builtin:world/text/train"))]
    found = []
    for _ in range(count):
        number = "".join(draw.choice("0123456789") for _ in range(DIGITS))
        question, answer = encode(base, " The hidden number is"), encode(base, " " + number)
        sentence = [*question, *answer, *encode(base, ".")]
        hay: list[int] = []
        while len(hay) < size:
            hay += draw.choice(stories)
        at = draw.randrange(size - len(sentence) - WINDOW)  # never within the window of the question
        document = [*hay[:at], *sentence, *hay[at : size - len(sentence)]]
        found.append(Example(document, [*question, *answer], [IGNORE] * len(question) + answer))
    return found


def encode(base: FrozenBase, text: str) -> list[int]:
    """Token ids of a text."""
    return base.tokenizer(text, add_special_tokens=False)["input_ids"]


def whole(example: Example) -> Encoded:
    """Document and questions as one row."""
    labels = [IGNORE] * len(example.document) + example.labels
    return Encoded([*example.document, *example.question], labels, 0)


Maker = Callable[[FrozenBase, int, int, int], list[Example]]


@dataclass
class Fit:
    """A trained adapter."""

    kind: str
    base: FrozenBase
    model: Any
    lr: float
    loss: float | None
    validation: float


def train(options: Any, make: Maker, kind: str, cut: bool, lr: float, console: Console) -> Fit:
    """One adapter at one learning rate."""
    base = base_model(cut)
    size = TRAINED_AT[options.task]
    config: Any = (
        HopeConfig(kind="hope", lr=lr, **{**HOPE, **options.hope})
        if kind == "hope"
        else LoraConfig(kind="lora", lr=lr, peft={"r": 16, "target_modules": "all-linear"})
    )
    method = build_method(config)
    rows = [whole(example) for example in make(base, 16 * options.steps, size, 1000 + options.seed)]
    model = method.attach(base, options.seed)
    method.begin_task(model, TaskContext(options.task, rows, [], [], 1, 1, 16, 0, options.seed))
    cost = train_stage(
        model, method, rows, TrainConfig(steps=options.steps, batch_size=16), steps=options.steps, lr=lr, pad_id=0,
        stage=1, label=f"{kind} {lr:g}", events=Events(None), console=console,
    )  # fmt: skip
    method.end_task(model)
    right = accuracy(model, make(base, options.rows, size, 2000 + options.seed), "on")
    said = f"{kind}, {'cut' if cut else 'whole'}, lr {lr:g}: loss {cost.final_loss:.3f}, {100 * right:.1f} % right"
    console.print(f"{said}, {cost.trainable:,} weights, {cost.seconds:.0f} s", highlight=False)
    return Fit(kind, base, model, lr, cost.final_loss, right)


def test(options: Any, make: Maker, fit: Fit) -> dict[int, dict[str, float]]:
    """Shares of right answers by size and condition."""
    conditions = ("on", "off", "own state", "other's state") if fit.kind == "hope" else ("on",)
    return {
        N: {one: accuracy(fit.model, make(fit.base, options.rows, N, 3000 + options.seed), one) for one in conditions}
        for N in SIZES[options.task]
    }


def untrained(options: Any, make: Maker) -> list[Result]:
    """The base itself, whole and cut."""
    found = []
    for name, cut in (("base, whole", False), ("base, cut", True)):
        base = base_model(cut)
        by_size = {
            N: {"on": accuracy(base.model, make(base, options.rows, N, 3000 + options.seed), "on")}
            for N in SIZES[options.task]
        }
        found.append(Result(name, None, float("nan"), by_size))
    return found


@torch.inference_mode()
def accuracy(model: Any, examples: list[Example], condition: str) -> float:
    """Share of answers all of whose tokens are the likeliest."""
    right, total = 0, 0
    rows = max(2, 8192 // len(examples[0].document))
    model.eval()
    for at in range(0, len(examples), rows):
        part = examples[at : at + rows]
        logits, labels = compute(model, part, condition)
        hits = (logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == IGNORE)
        for hit, label in zip(hits, labels[:, 1:] != IGNORE, strict=True):
            starts = label & ~torch.cat([label.new_zeros(1), label[:-1]])
            answer = starts.cumsum(0)[label]
            wrong = torch.zeros(int(answer.max()), dtype=torch.long).index_add_(0, answer - 1, (~hit[label]).long())
            right, total = right + int((wrong == 0).sum()), total + len(wrong)
    return right / total


def compute(model: Any, examples: list[Example], condition: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, T, vocabulary] and labels [B, T]; with the memory off, or with the state of another document."""
    if condition in ("on", "off"):
        batch = collate([whole(example) for example in examples], 0)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if condition == "on":
            return model(**inputs).logits, batch.labels
        with model.disable_adapter():
            return model(**inputs).logits, batch.labels
    read = collate([Encoded(example.document, example.document, 0) for example in examples], 0)
    asked = collate([Encoded(example.question, example.labels, 0) for example in examples], 0)
    with nlft.session(model) as session:
        model(input_ids=read.input_ids, attention_mask=read.attention_mask)
        if condition == "other's state":
            session.carried.states = {
                block: {name: tensor.roll(1, 0) for name, tensor in state.items()}
                for block, state in (session.carried.states or {}).items()
            }
        return model(input_ids=asked.input_ids, attention_mask=asked.attention_mask).logits, asked.labels


def show(results: list[Result], options: Any, console: Console) -> None:
    """Prints shares of right answers in percent."""
    table = Table("model", "lr", "condition", *(f"N = {N}" for N in SIZES[options.task]))
    for one in results:
        for condition in next(iter(one.accuracy.values())):
            lr = "" if one.lr is None else f"{one.lr:g}"
            table.add_row(one.name, lr, condition, *(f"{100 * row[condition]:.1f}" for row in one.accuracy.values()))
    console.print(f"{options.task}: {options.steps} steps at N = {TRAINED_AT[options.task]}, window {WINDOW}, % right")
    console.print(table)


if __name__ == "__main__":
    main()
