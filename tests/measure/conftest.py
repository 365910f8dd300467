"""A tokenizer and models that are small enough to score in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nlft.data.template import Encoded
from nlft.measure.score import score
from nlft.types import Evaluation, Item, Message, Row

VOCABULARY = 320
CORPUS = [
    "Where was Ada born? In Rome.",
    "Where was Bo born? In Köln.",
    "Who wrote the red book? Nobody knows the man.",
    "The capital of the north is Oslo, and the river runs to the sea.",
] * 4


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Byte-level BPE: `<s>` 0, `</s>` 1, `<pad>` 2, 256 bytes and a few merges; begins texts with `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """A random Llama, width 32, 2 layers, for `tiny_tokenizer`; weights large enough for decided argmaxes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(fields | changes))).eval()


@pytest.fixture
def llama() -> Any:
    """A fresh random Llama."""
    return tiny_llama()


@pytest.fixture
def make_llama() -> Any:
    """`make_llama(seed=0, **config)` builds a random Llama."""
    return tiny_llama


FACTS = (
    ("Where was Ada born?", "Rome"),
    ("Where was Bo born?", "Köln"),
    ("Who wrote the red book?", "Nobody knows the man"),
    ("The capital of the north is", "Oslo"),
    ("Where does the long river of the north run to in the end?", "the sea"),
    ("Where was Cy born?", "in the north"),
    ("Who knows the man?", "Ada"),
    ("The red book is", "old"),
    ("Bo?", "man"),
)
ROWS = tuple(
    Row(prompt, completion, join=" ", source=f"facts.jsonl:{i}") for i, (prompt, completion) in enumerate(FACTS)
)


def run(model: Any, tokenizer: Any, rows: Sequence[Row], metric: str, **options: Any) -> list[Item]:
    evaluation = Evaluation("facts", "task", "test", tuple(rows), metric)
    settings: dict[str, Any] = {"batch_size": 8, "max_length": 256} | options
    return score(model, tokenizer, evaluation, stage=1, condition="on", **settings)


def of(items: list[Item], metric: str) -> list[Item]:
    return [item for item in items if item.metric == metric]


def nats_by_hand(model: Any, encoded: Encoded) -> tuple[float, int]:
    """Summed negative log-likelihood of the targets of one sequence, token by token in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded.ids])).logits[0].double()
    targets = [t for t, label in enumerate(encoded.labels) if label != -100]
    return -sum(float(logits[t - 1].log_softmax(-1)[encoded.ids[t]]) for t in targets), len(targets)


def written_by_hand(model: Any, prompt: list[int], budget: int, stops: set[int]) -> list[int]:
    """Greedy decoding of one prompt without cache or padding."""
    ids = list(prompt)
    for _ in range(budget):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stops:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


def train(model: Any, rows: list[Encoded], steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        for row in rows:
            ids, labels = torch.tensor([row.ids]), torch.tensor([row.labels])
            model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Turns end in a special token that is not the tokenizer's end token."""
    monkeypatch.setattr(tiny_tokenizer, "chat_template", CHAT)
    return tiny_tokenizer


def conversation(answer: str, **fields: Any) -> Row:
    turns = (Message("user", "Who?"), Message("assistant", "Ada"), Message("user", "Where?"))
    return Row("", "", messages=(*turns, Message("assistant", answer)), **fields)


@pytest.fixture
def hand() -> SimpleNamespace:
    """What the tests share: rows, `run` and `of` for items, and passes written out by hand."""
    return SimpleNamespace(
        rows=ROWS,
        conversation=conversation,
        run=run,
        of=of,
        nats=nats_by_hand,
        written=written_by_hand,
        train=train,
    )
