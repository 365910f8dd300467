"""Trains the built-in base `builtin:tiny` from nothing: a 1.5 M Llama that knows the world by heart.

    python eval/builtin/pretrain_tiny.py --out DIRECTORY [--device cuda]

Takes 14 minutes on four busy CPU cores (750 steps; no GPU was used for the weights that are shipped). Obtained after
reloading: exact recall of base facts 1.000 in every kind and wording, held-out sums 0.999, held-out stories 0.740 nats
per token (perplexity 2.1). `recall.py` prints the whole table. Copy DIRECTORY to nlft/builtin/tiny to ship it.

The loss weighs a prompt's tokens little: which entity or which numbers come is chance, and with full weight that
noise drowns the sums. Every row ends with <eos>, which is learned too.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from recall import encode, exact, likelihood, pad
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from nlft.data.vocabulary import ANSWERS, PARTS
from nlft.data.world import KINDS, rows
from nlft.types import Row

SPECIAL = ("<pad>", "<bos>", "<eos>")
VOCABULARY = 2048
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
PROMPT_WEIGHT = {"facts": 0.2, "sums": 0.02, "stories": 1.0}
"""Weight of a prompt's tokens in the loss: which entity or number comes is chance, the answer is not."""
BATCH = {"facts": 96, "sums": 96, "stories": 12}


def material() -> dict[str, list[Row]]:
    """All rows that the base is trained on."""
    facts = rows("base/background") + rows("base/probe")
    return {"facts": facts, "sums": rows("arithmetic/train"), "stories": rows("text/train")}


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level unigram tokenizer whose pieces are the words of the material and the parts of names.

    Every text is read as if it began with a space, so that a name has the same pieces everywhere. Digits
    stand alone. Words that are not in the material fall into frequent short pieces, then bytes.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    words: Counter[str] = Counter()
    for text in texts:
        words.update(piece for piece, _ in splitter.pre_tokenize_str(" " + text))
    for kind in KINDS:
        firsts, seconds, between = PARTS[kind]
        space = "Ġ" if between else ""
        if not between:  # names of one word are never pieces themselves, only their two parts are
            for word in list(words):
                if re.fullmatch(f"Ġ({'|'.join(firsts)})({'|'.join(seconds)})", word):
                    del words[word]
        words.update({f"Ġ{first}": 80 for first in firsts} | {f"{space}{second}": 80 for second in seconds})
    for phrase in (answer for answers in ANSWERS.values() for answer in answers):
        words.update({f"Ġ{word}": 30 for word in phrase.split()})
    short: Counter[str] = Counter()
    for word in words:
        short.update(word[i : i + n] for n in (2, 3, 4) for i in range(len(word) - n + 1))
    total = sum(words.values())
    pieces = {special: 0.0 for special in SPECIAL}
    pieces |= {byte: -30.0 for byte in sorted(pre_tokenizers.ByteLevel.alphabet())}
    pieces |= {word: math.log(count / total) for word, count in sorted(words.items())}
    for piece, count in sorted(short.items(), key=lambda item: (-item[1], item[0])):
        if len(pieces) < VOCABULARY:
            pieces.setdefault(piece, -20.0 + math.log(count) / 10)
    tokenizer = Tokenizer(models.Unigram(list(pieces.items())))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace(Regex("^ {2}"), " ")])
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=128,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def make_model(vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def shuffled(encoded: list[tuple[list[int], int]], size: int, seed: str) -> Iterator[list[tuple[list[int], int]]]:
    """Endless batches; every epoch is shuffled anew."""
    rng = random.Random(seed)
    queue: list[tuple[list[int], int]] = []
    while True:
        while len(queue) < size:
            queue += rng.sample(encoded, len(encoded))
        yield queue[:size]
        queue = queue[size:]


def loss_of(
    model, batch: list[tuple[list[int], int]], prompt_weight: float, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed weighted loss and summed weights of a batch."""
    ids = pad([ids for ids, _ in batch]).to(device)
    weights = pad([[1] * len(ids) for ids, _ in batch]).float().to(device)
    starts = torch.tensor([first for _, first in batch], device=device)[:, None]
    weights = torch.where(torch.arange(ids.shape[1], device=device) < starts, weights * prompt_weight, weights)
    logits = model(ids).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum(), weights[:, 1:].sum()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al., 2024); about half of AdamW's steps here.

    Newton-Schulz runs in float32 and on all matrices of one shape at once. In bfloat16, as in
    torch.optim.Muon, it is far slower on most CPUs.
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                shapes[p.shape].append(p)
            for shape, same in shapes.items():
                grads = torch.stack([p.grad for p in same if p.grad is not None])
                state = self.state[same[0]]
                momentum = state.setdefault("momentum", torch.zeros_like(grads))
                momentum.lerp_(grads, 1 - group["momentum"])
                update = orthogonal(grads.lerp(momentum, group["momentum"]))
                update *= 0.2 * max(shape) ** 0.5  # the size of an AdamW update (Liu et al., 2025)
                for p, change in zip(same, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices of [N, A, B], by Jordan et al.'s quintic Newton-Schulz iteration."""
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-12)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Stores the weights in half precision; they are read back as float32."""
    copy.deepcopy(model).cpu().half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    # Half precision is for storage only; and every version of transformers knows this name of the class.
    for name, setting in (
        ("config", {"dtype": "float32"}),
        ("tokenizer_config", {"tokenizer_class": TOKENIZER_CLASS}),
    ):
        path = out / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | setting, indent=2) + "\n")
    (out / "model.safetensors").chmod(0o644)


def check(out: Path, device: str, facts: int | None = None) -> tuple[float, float, float]:
    """Recall of facts, held-out sums and nats per token of held-out stories, after reloading from `out`."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(device=device).eval()  # pyright: ignore[reportCallIssue]
    some = rows("base/background") + rows("base/probe")
    if facts:
        some = random.Random(0).sample(some, facts)
    hits = exact(model, tokenizer, some)
    held_out = exact(model, tokenizer, rows("arithmetic/test")[:facts])
    return (
        sum(hits) / len(hits),
        sum(held_out) / len(held_out),
        likelihood(model, tokenizer, rows("text/test"))[0],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the built-in base from nothing.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--threads", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    disable_progress_bar()
    torch.set_float32_matmul_precision("high")
    data = material()
    tokenizer = make_tokenizer([row.prompt + row.join + row.completion for part in data.values() for row in part])
    model = make_model(len(tokenizer)).to(device=args.device)  # pyright: ignore[reportCallIssue]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    encoded = {name: [encode(row, tokenizer) for row in part] for name, part in data.items()}
    batches = {name: shuffled(encoded[name], BATCH[name], f"pretrain/{name}") for name in data}
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(hidden, lr=args.lr, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / args.steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    began = time.time()
    for step in range(1, args.steps + 1):
        shown = {}
        for name in data:
            loss, weight = loss_of(model, next(batches[name]), PROMPT_WEIGHT[name], args.device)
            (loss / weight / len(data)).backward()
            shown[name] = loss.detach() / weight
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            losses = " ".join(f"{name} {value.item():.3f}" for name, value in shown.items())
            print(f"{step:6d} {time.time() - began:6.0f} s {losses}", flush=True)
        if step % 250 == 0 or step == args.steps:
            save(model, tokenizer, args.out)
            fact, held_out, nats = check(args.out, args.device, None if step == args.steps else 600)
            print(f"{step:6d} recall {fact:.4f} held-out sums {held_out:.4f} stories {nats:.3f}", flush=True)


if __name__ == "__main__":
    main()
