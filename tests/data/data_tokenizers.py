"""Tokenizers of three kinds, small enough to work out ids by hand, and chat templates."""

from __future__ import annotations

from typing import Any

import pytest

from nlft.data.template import Encoded, encode
from nlft.errors import DataError
from nlft.types import IGNORE, Message, Row

X = IGNORE


WORDS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "the", "capital", "of", "Peru", "is", "Lima", ".", "?"]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


# Like templates that keep the reasoning of the last turn only.
UNSTABLE = CHATML.replace(
    "{{ m.content }}", "{{ '<think></think>' if loop.last and m.role == 'assistant' }}{{ m.content }}"
)


TALK = Row(
    "",
    "",
    messages=(
        Message("user", "ab"),
        Message("assistant", "c d"),
        Message("user", "e"),
        Message("assistant", "fé"),
    ),
    source="talk.jsonl:4",
)


PERU = Row("the capital of Peru is", "Lima.", join=" ", source="peru.jsonl:1")


def words(**special: Any) -> Any:
    """One id a word: the index in WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = special or {"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", **special)


def byte_level(template: str | None = None, bos: bool = False) -> Any:
    """Byte-level BPE as GPT-2's, with no merges but " L", "im" and " Lim"."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from tokenizers import decoders as decode
    from transformers import PreTrainedTokenizerFast

    order = [chr(i) for i in (*range(33, 127), *range(161, 173), *range(174, 256))]
    order += [chr(256 + i) for i in range(256 - len(order))]
    merges = [("Ġ", "L"), ("i", "m"), ("ĠL", "im")]
    vocabulary = {symbol: i for i, symbol in enumerate([*order, *map("".join, merges)])}
    model = Tokenizer(models.BPE(vocabulary, merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    model.post_processor = processors.ByteLevel(trim_offsets=True)  # type: ignore[assignment]
    model.decoder = decode.ByteLevel()  # type: ignore[assignment]
    special: dict[str, Any] = {"eos_token": "<|end|>"} | ({"bos_token": "<|end|>"} if bos else {})
    extra = ["<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **special, additional_special_tokens=extra)
    tokenizer.chat_template = template
    return tokenizer


def byte_pieces() -> Any:
    """A slow tokenizer: every UTF-8 byte is a token, byte + 3; no begin token, `</s>` is 1."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=0)


def one(row: Row, tokenizer: Any, max_length: int = 512, too_long: Any = "error") -> Encoded:
    (encoded,) = encode(row, tokenizer, max_length, too_long)
    return encoded


def targets(encoded: Encoded) -> list[int]:
    return [label for label in encoded.labels if label != IGNORE]


def spans(encoded: Encoded, tokenizer: Any) -> list[str]:
    """Decoded runs of targets."""
    runs: list[list[int]] = [[]]
    for label in encoded.labels:
        if label != X:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def failure(row: Row, tokenizer: Any, max_length: int = 512, too_long: Any = "error") -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        encode(row, tokenizer, max_length, too_long)
    return caught.value.message, caught.value.hint
