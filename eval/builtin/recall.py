"""What the built-in base knows: recall by kind and wording, held-out sums, likelihood of held-out stories.

    python eval/builtin/recall.py [MODEL_DIRECTORY]

Recall is checked by teacher forcing: every token of the answer and the end of sequence must be the argmax
given the prompt and the answer so far. With one reference this is the same as
an exact match of greedy decoding.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlft.data.world import KINDS, rows
from nlft.types import Row


def encode(row: Row, tokenizer) -> tuple[list[int], int]:
    """Ids of a row and its end of sequence, and the index of the first target (1, after <bos>, for text)."""
    text = row.prompt + row.join + row.completion
    encoding = tokenizer(text, return_offsets_mapping=True)
    first = next(i for i, (_, end) in enumerate(encoding["offset_mapping"]) if end > len(row.prompt) and i > 0)
    return [*encoding["input_ids"], tokenizer.eos_token_id], first


def pad(sequences: Sequence[Sequence[int]], value: int = 0) -> torch.Tensor:
    """LongTensor[B, T], padded on the right; attention is causal, so the padding needs no mask."""
    width = max(map(len, sequences))
    return torch.tensor([[*ids, *[value] * (width - len(ids))] for ids in sequences])


@torch.no_grad()
def exact(model, tokenizer, some: Sequence[Row], batch_size: int = 512) -> list[bool]:
    """For every row, whether greedy decoding gives the completion and then stops."""
    device = next(model.parameters()).device
    found: list[bool] = []
    for start in range(0, len(some), batch_size):
        encoded = [encode(row, tokenizer) for row in some[start : start + batch_size]]
        guess = model(pad([ids for ids, _ in encoded]).to(device)).logits.argmax(-1).tolist()
        found += [
            line[first - 1 : len(ids) - 1] == ids[first:] for line, (ids, first) in zip(guess, encoded, strict=True)
        ]
    return found


@torch.no_grad()
def likelihood(model, tokenizer, some: Sequence[Row], batch_size: int = 256) -> tuple[float, float]:
    """Nats per token and bits per byte of plain text, without the end of sequence."""
    device = next(model.parameters()).device
    nats = tokens = size = 0.0
    for start in range(0, len(some), batch_size):
        part = some[start : start + batch_size]
        encoded = [encode(row, tokenizer)[0][:-1] for row in part]
        ids = pad(encoded, -100).to(device)
        logits = model(ids.clamp_min(0)).logits[:, :-1].float()
        nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        ).item()
        tokens += sum(len(line) - 1 for line in encoded)
        size += sum(len(row.completion.encode()) for row in part)
    return nats / tokens, nats / size / math.log(2)


def recall(model, tokenizer) -> dict[tuple[str, str, str], float]:
    """Exact recall of base facts by (part, kind, wording)."""
    hits: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for part in ("background", "probe"):
        some = rows(f"base/{part}")
        for row, hit in zip(some, exact(model, tokenizer, some), strict=True):
            hits[part, row.meta["kind"], row.meta["wording"]].append(hit)
    return {key: sum(values) / len(values) for key, values in hits.items()}


def sums(model, tokenizer) -> dict[str, float]:
    """Accuracy on held-out sums by operation."""
    hits: dict[str, list[bool]] = defaultdict(list)
    some = rows("arithmetic/test")
    for row, hit in zip(some, exact(model, tokenizer, some), strict=True):
        hits[row.meta["kind"]].append(hit)
    return {key: sum(values) / len(values) for key, values in sorted(hits.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description="What the built-in base knows.")
    parser.add_argument("model", nargs="?", default=str(files("nlft") / "builtin" / "tiny"))
    directory = parser.parse_args().model
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found = recall(model, tokenizer)
    print(f"{'exact recall':<12} {'wording':<10} " + " ".join(f"{kind:>9}" for kind in KINDS))
    for part in ("background", "probe"):
        for wording in map(str, range(6)):
            print(f"{part:<12} {wording:<10} " + " ".join(f"{found[part, kind, wording]:9.3f}" for kind in KINDS))
    for operation, value in sums(model, tokenizer).items():
        print(f"held-out {operation}: {value:.3f}")
    for part in ("train", "test"):
        nats, bits = likelihood(model, tokenizer, rows(f"text/{part}"))
        print(f"text/{part}: {nats:.3f} nats/token, {bits:.3f} bits/byte, perplexity {math.exp(nats):.2f}")


if __name__ == "__main__":
    main()
