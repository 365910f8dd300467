"""What an evaluation's rows are as tokens: made once for a run, which scores them after every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nlft.data.chat import special_tokens
from nlft.data.template import Encoded, TooLong, encode, encode_rows, prompt_ids
from nlft.data.tokens import tokenise
from nlft.types import IGNORE, Message, Row

SPARE_TOKENS = 4
"""Tokens that a generated answer may have beyond the longest reference, by default."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How rows are scored."""

    batch_size: int
    max_length: int
    max_new_tokens: int | None
    too_long: TooLong


class Encodings:
    """What was made of the rows of each column last; so no more is held than one of each kind a column."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, str], tuple[Sequence[Row], Any, Setting, Any]] = {}

    def of(
        self, column: str, kind: str, rows: Sequence[Row], tokenizer: Any, setting: Setting, make: Callable[[], Any]
    ) -> Any:
        """What `make` gives, once for the very same rows and tokenizer (as objects) and equal settings."""
        known = self.made.get((column, kind))
        if known is None or known[0] is not rows or known[1] is not tokenizer or known[2] != setting:
            known = self.made[column, kind] = (rows, tokenizer, setting, make())
        return known[3]


def parts_of(rows: Sequence[Row], tokenizer: Any, setting: Setting) -> list[list[Encoded]]:
    """The sequences of each row: one, or the parts of a text that is split."""
    if setting.too_long == "split":
        return [encode(row, tokenizer, setting.max_length, "split") for row in rows]
    return [[one] for one in encode_rows(rows, tokenizer, setting.max_length, setting.too_long)]


def whole_rows(rows: Sequence[Row], tokenizer: Any, setting: Setting) -> list[Encoded]:
    """One sequence a row: an answer or a choice cannot be scored in parts."""
    too_long = "error" if setting.too_long == "split" else setting.too_long
    return encode_rows(rows, tokenizer, setting.max_length, too_long)


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows whose answers are written."""

    encoded: list[Encoded]
    """With the answer of the row itself."""
    prompts: list[list[int]]
    ends: set[int]
    """Tokens that end an answer because they end these: a chat template may end a turn with one of its own."""
    longest: int
    """Most tokens of an answer."""


def asked_of(rows: Sequence[Row], tokenizer: Any, setting: Setting) -> Asked:
    """Rows whose answers are written.

    Raises:
        DataError: a row that is too long, which is not split.
    """
    encoded = whole_rows(rows, tokenizer, setting)
    special = set(special_tokens(tokenizer))
    ends = {one.ids[-1] for one in encoded if one.ids[-1] in special}
    longest = setting.max_new_tokens or _longest_reference(rows, tokenizer) + SPARE_TOKENS
    return Asked(encoded, [prompt_ids(one) for one in encoded], ends, longest)


def choices_of(rows: Sequence[Row], tokenizer: Any, setting: Setting) -> list[Encoded]:
    """A sequence for every choice of every row, whose targets are the choice alone.

    Raises:
        DataError: a choice that is too long, which is not split.
    """
    special = set(special_tokens(tokenizer))
    candidates = [_with_answer(row, choice) for row in rows for choice in row.choices]
    return [_answer_only(one, special) for one in whole_rows(candidates, tokenizer, setting)]


def _longest_reference(rows: Sequence[Row], tokenizer: Any) -> int:
    texts = sorted({reference for row in rows for reference in row.references})
    return max(len(tokens.ids) for tokens in tokenise(texts, tokenizer, markup=False))


def _with_answer(row: Row, text: str) -> Row:
    if not row.messages:
        return replace(row, completion=text)
    before = row.messages[:-1] if row.messages[-1].role == "assistant" else row.messages
    return replace(row, messages=(*before, Message("assistant", text)))


def _answer_only(encoded: Encoded, special: set[int]) -> Encoded:
    """Targets of the last turn alone, without its end token, which says nothing about the choice."""
    start, end = len(prompt_ids(encoded)), len(encoded.ids)
    while end - 1 > start and (encoded.labels[end - 1] == IGNORE or encoded.ids[end - 1] in special):
        end -= 1
    labels = [label if start <= i < end else IGNORE for i, label in enumerate(encoded.labels)]
    return replace(encoded, labels=labels)
