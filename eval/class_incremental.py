"""Class-incremental intent and topic classification, after section 9.1 of Nested Learning (Behrouz et al. 2025).

    python eval/class_incremental.py clinc150 --data data/classification --model models/stories260K --out runs/clinc150

and the same with `banking77` or `dbpedia`.


Groups of classes come one after another (CLINC150 by its 10 domains, Banking77 by 7 groups of 11 labels in the order of
the alphabet, DBpedia by its 9 upper classes); the model is asked for one class among all, and is not told the group.
A class is one token of the base's vocabulary, so that an answer is one greedy token. The paper's bases are Llama-3 8B
and 3B after 15 billion tokens of further pretraining; ours is as small as you make it, and its numbers are no
reproduction of theirs. Rivals: full finetuning, LoRA, both with replay of earlier groups, and class means of frozen
features (with one covariance for all classes, or none), which cannot forget.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from rich.console import Console
from rich.table import Table

from nlft.base import FrozenBase, load_base
from nlft.compare import compare
from nlft.config import BaseConfig
from nlft.data.template import pad_id
from nlft.methods.class_means import prompt_states
from nlft.ops.discriminant import nearest_class, shrunk
from nlft.recipes import load_recipe

FILES = {
    "clinc150": ("clinc150_train.jsonl", "clinc150_test.jsonl"),
    "banking77": ("banking77_train.jsonl", "banking77_test.jsonl"),
    "dbpedia": ("dbpedia_classes_l2_val.jsonl", "dbpedia_classes_l2_test.jsonl"),
}
LONGEST = 200
"""Characters of a text that are read; DBpedia's are long."""
Record = dict[str, str]


def main() -> None:
    """Prepares the groups, runs all methods, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=list(FILES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--background", type=Path, help="general text for gates and slots; methods without otherwise")
    parser.add_argument("--test", type=int, default=10, help="test rows a class")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    console = Console(width=120)
    base = load_base(BaseConfig(model=options.model, device="cpu", dtype="float32"))
    train, test = (read(options.data / name, options.dataset) for name in FILES[options.dataset])
    test = few(test, options.test)
    groups = group_names(train)
    tokens = class_tokens(base, sorted({record["label"] for record in train}))
    recipe = write_recipe(options, groups, train, test, tokens)
    compare(load_recipe(str(recipe)), options.out / "runs", jobs=options.jobs, console=console)
    show(options, groups, class_means(base, train, test), console)


def read(path: Path, dataset: str) -> list[Record]:
    """Text, label and group of every record that has a class."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if dataset == "banking77":
        labels = sorted({record["label"] for record in records})
        records = [{**record, "group": f"group {labels.index(record['label']) // 11 + 1}"} for record in records]
    key = {"clinc150": "domain", "banking77": "group", "dbpedia": "l1"}[dataset]
    return [
        {"text": record["text"][:LONGEST], "label": record["label"], "group": record[key].replace("_", " ")}
        for record in records
        if record["label"] != "oos"
    ]


def few(records: Sequence[Record], count: int) -> list[Record]:
    """Some records of every class."""
    order = sorted(records, key=lambda record: (record["label"], record["text"]))
    random.Random(0).shuffle(order)
    seen: dict[str, int] = {}
    found = []
    for record in order:
        seen[record["label"]] = seen.get(record["label"], 0) + 1
        if seen[record["label"]] <= count:
            found.append(record)
    return found


def group_names(records: Sequence[Record]) -> list[str]:
    """Groups in one drawn order."""
    names = sorted({record["group"] for record in records})
    random.Random(0).shuffle(names)
    return names


def class_tokens(base: FrozenBase, labels: Sequence[str]) -> dict[str, str]:
    """A word for every class that is one token behind a line break, whatever stands before it."""
    encode = lambda text: base.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    prompts = [f"{text}\n" for text in ("a", "what is this?", "I ran.")]
    words = []
    for piece in base.tokenizer.convert_ids_to_tokens(range(len(base.tokenizer) - 1, -1, -1)):
        word = piece.replace("▁", " ").strip()
        whole = all(encode(prompt + word)[:-1] == encode(prompt) for prompt in prompts)
        if word and word.isprintable() and "<" not in word and word not in words and whole:
            words.append(word)
    if len(words) < len(labels):
        raise SystemExit(f"The tokenizer has {len(words)} words of one token, and there are {len(labels)} classes.")
    return dict(zip(labels, words, strict=False))


def write_recipe(
    options: Any, groups: list[str], train: Sequence[Record], test: Sequence[Record], tokens: dict[str, str]
) -> Path:
    """Writes the rows of every group, and a recipe over them."""
    folder = (options.out / "data").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for group in groups:
        task: dict[str, Any] = {"name": group}
        for split, records in (("train", train), ("test", test)):
            rows = [
                {"prompt": record["text"].strip() + "\n", "completion": tokens[record["label"]]}
                for record in records
                if record["group"] == group
            ]
            path = folder / f"{group.replace(' ', '-')}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            task[split] = {"path": str(path), "join": ""}
        tasks.append(task)
    replay = {"source": "tasks", "ratio": 0.25}
    methods: dict[str, Any] = {
        "full": {"kind": "full", "lr": [1e-3, 3e-3]},
        "lora": {"kind": "lora", "lr": [1e-2, 3e-2]},
        "full-replay": {"kind": "full", "lr": [1e-3], "replay": replay},
        "lora-replay": {"kind": "lora", "lr": [1e-2], "replay": replay},
        "cms": {"kind": "cms", "periods": [1, 4, 16], "rank": 24, "lr": [1e-2, 3e-2]},
        "cms-replay": {"kind": "cms", "periods": [1, 4, 16], "rank": 24, "lr": [1e-2], "replay": replay},
        "hope": {"kind": "hope", "layers": [1, 2], "heads": 1, "head_width": 64, "periods": [1, 4, 16], "lr": [1e-2]},
    }
    if options.background is not None:
        gate = {"gate": {"layer": 1}, "retention": "20%"}
        methods["gated-cms"] = {"kind": "cms", "periods": [1, 4, 16], "rank": 24, "lr": [1e-2], **gate}
        methods["slots"] = {"kind": "sparse_memory", "input_dependent": True, "lr": [0.1], "kmeans_steps": 5}
    recipe: dict[str, Any] = {
        "name": f"class-incremental-{options.dataset}",
        "base": {"model": str(Path(options.model).resolve()), "device": "cpu"},
        "tasks": tasks,
        "methods": methods,
        "train": {"steps": options.steps, "batch_size": 16},
        "measure": {"max_new_tokens": 1, "batch_size": 256},
        "compare": {"seeds": options.seeds},
    }
    if options.background is not None:
        text = {"path": str(options.background.resolve()), "limit": 600, "too_long": "split"}
        recipe["background"] = text
    path = options.out / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def features(base: FrozenBase, records: Sequence[Record]) -> torch.Tensor:
    """Mean of the last hidden states of every text, [N, D] float64."""
    texts = [record["text"] for record in records]
    ids = base.tokenizer(texts, truncation=True, max_length=base.context)["input_ids"]
    return prompt_states(base.model, ids, pad_id(base.tokenizer))


def class_means(base: FrozenBase, train: Sequence[Record], test: Sequence[Record]) -> dict[str, float]:
    """Accuracy of the nearest class mean, and of linear discriminants (one covariance for all classes)."""
    labels = sorted({record["label"] for record in train})
    known, asked = features(base, train), features(base, test)
    classes = torch.tensor([labels.index(record["label"]) for record in train])
    gold = torch.tensor([labels.index(record["label"]) for record in test])
    means = torch.stack([known[classes == number].mean(0) for number in range(len(labels))])
    near = torch.cdist(asked, means).argmin(1)
    centred = known - means[classes]
    found = nearest_class(asked, means, shrunk(centred.T @ centred / len(known)))
    right = {"nearest class mean": near, "class means, one covariance": found}
    return {name: float((found == gold).float().mean()) for name, found in right.items()}


def show(options: Any, groups: list[str], means: dict[str, float], console: Console) -> None:
    """Prints, for every run, what it knows right after each group, at the end, and lost in between."""
    items = pq.read_table(options.out / "runs" / "items.parquet").to_pylist()
    table = Table("run", "right after, %", "at the end, %", "lost, points", "mean over the stages, %")
    for name, value in means.items():
        table.add_row(name, "", f"{100 * value:.1f}", "0", "")
    for run in sorted({item["run_id"] for item in items}):
        own = [item for item in items if item["run_id"] == run and item["metric"] == "exact_match"]
        at = {(stage, group): share(own, stage, {group}) for stage in range(len(groups) + 1) for group in groups}
        now = [at[stage, group] for stage, group in enumerate(groups, start=1)]
        lost = [at[stage, group] - at[len(groups), group] for stage, group in enumerate(groups[:-1], start=1)]
        seen = [share(own, stage, set(groups[:stage])) for stage in range(1, len(groups) + 1)]
        numbers = (sum(now) / len(now), seen[-1], sum(lost) / len(lost), sum(seen) / len(seen))
        table.add_row(run, *(f"{100 * number:.1f}" for number in numbers))
    console.print(f"{options.dataset}: {options.steps} steps a group, {len(groups)} groups, chance far below 2 %")
    console.print(table)


def share(items: Sequence[dict[str, Any]], stage: int, groups: set[str]) -> float:
    """Share of right answers at one stage on some groups."""
    values = [item["value"] for item in items if item["stage"] == stage and item["column"] in groups]
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
