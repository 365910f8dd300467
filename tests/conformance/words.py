"""A tokenizer for the random models of every family: a word for each of their 97 tokens, no download."""

from __future__ import annotations

import torch
from families import TOKENS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """`w60` is token 60, and so on; the first four are pad, begin, end and unknown."""
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), TOKENS["vocab_size"]))]
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=SPECIAL[3]))
    inner.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def text_of(ids: torch.Tensor) -> str:
    """The text of token ids [T]."""
    return "".join(f" w{int(number)}" for number in ids)
