"""Text as token ids that know where in the text they end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text, its token ids and, from a fast tokenizer, the character at which each token ends."""

    text: str
    ids: list[int]
    ends: list[int] | None


def tokenise(texts: Sequence[str], tokenizer: Any, *, markup: bool) -> list[Tokens]:
    """Tokenise texts without adding tokens to them.

    With `markup`, special tokens written in the text are special tokens (a rendered chat template). Without,
    they are read as plain text where the tokenizer allows it (`split_special_tokens`): data that mentions
    `</s>` must not end a sequence.
    """
    if not texts:
        return []
    options = {"add_special_tokens": False, "split_special_tokens": not markup, "verbose": False}
    if not tokenizer.is_fast:
        return [Tokens(text, list(tokenizer(text, **options)["input_ids"]), None) for text in texts]
    encoding = tokenizer(list(texts), return_offsets_mapping=True, return_attention_mask=False, **options)
    return [
        Tokens(text, ids, list(accumulate((end for _, end in offsets), max)))
        for text, ids, offsets in zip(texts, encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


def tokens_before(tokens: Tokens, at: int, tokenizer: Any, *, markup: bool) -> int:
    """Number of leading tokens that lie wholly before character `at`.

    A token that spans the boundary lies behind it. A slow tokenizer gives no offsets; there, it is the tokens
    that the text shares with its part before `at`.
    """
    if tokens.ends is not None:
        return bisect_right(tokens.ends, at)
    if at == 0:
        return 0
    part = tokenise([tokens.text[:at]], tokenizer, markup=markup)[0].ids
    shared = (i for i, (a, b) in enumerate(zip(part, tokens.ids, strict=False)) if a != b)
    return next(shared, min(len(part), len(tokens.ids)))


def count_bytes(tokens: Tokens, lo: int, hi: int, begin: int, special: Collection[int], tokenizer: Any) -> int:
    """UTF-8 bytes of the text under tokens `lo` to `hi`, from character `begin` on, without `special` tokens.

    Exact with a fast tokenizer; with a slow one it is the length of the decoded ids.
    """
    if tokens.ends is None:
        return len(tokenizer.decode(tokens.ids[lo:hi], skip_special_tokens=True).encode())

    def width(lo: int, hi: int) -> int:
        assert tokens.ends is not None
        start = max(begin, tokens.ends[lo - 1] if lo else 0)
        return len(tokens.text[start : tokens.ends[hi - 1]].encode())

    return width(lo, hi) - sum(width(i, i + 1) for i in range(lo, hi) if special and tokens.ids[i] in special)
