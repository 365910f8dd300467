"""Rows as token ids with labels: what is read, and what is learned or scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nlft.data.chat import assistant_spans, check_template, render, special_tokens
from nlft.data.example import as_text, examples_text, with_turns
from nlft.data.tokens import Tokens, count_bytes, tokenise, tokens_before
from nlft.errors import DataError
from nlft.types import IGNORE, Row

TooLong = Literal["error", "truncate", "split"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence for a causal LM.

    `labels[i]` is `ids[i]` where token i is a target and `IGNORE` elsewhere (not shifted, as Hugging Face
    models expect); the first is always `IGNORE`, for nothing predicts it. `n_bytes` counts the UTF-8 bytes of
    the target text; the end token has none. Rows with one `cluster` are about the same thing.
    """

    ids: list[int]
    labels: list[int]
    n_bytes: int
    cluster: str = field(default="", compare=False)

    @property
    def n_targets(self) -> int:
        """Tokens that a causal loss counts."""
        return sum(label != IGNORE for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class _Draft:
    """A whole row before it is fitted: tokens, the ranges [lo, hi) among them that are targets, and what goes
    around them. `begin` is the character from which target text counts, `own` the first token that holds some of
    the completion's own text rather than the join before it."""

    tokens: Tokens
    spans: list[tuple[int, int]]
    bos: list[int]
    eos: list[int]
    begin: int = 0
    own: int = 0
    special: frozenset[int] = frozenset()


def encode(row: Row, tokenizer: Any, max_length: int, too_long: TooLong = "error") -> list[Encoded]:
    """Encode one row; several sequences come back only from `split`.

    - Prompt and completion are tokenised as one text, `prompt + join + completion`, so the ids are those of
      the text. A token that holds any character behind the prompt (the join included) is a target. The end
      token is appended as a target.
    - A row without prompt is plain text: every token is a target, and no end token is added.
    - A conversation goes through the chat template; every assistant turn is a target. The end token is
      appended unless the template ends the last turn with a special token of its own.
    - The begin token comes first if the tokenizer has one (a chat template writes its own).
    - The row's examples are read in front of it, behind a conversation's system prompt.

    Special tokens written in a prompt, completion or text are plain text where the tokenizer allows it.

    `too_long` for rows of more than `max_length` tokens: "error" refuses; "split" cuts plain text into
    sequences that hold each target once; "truncate" cuts the end of a long completion or text, and the start
    of a context that would take more than half of `max_length` from a completion that needs the room.

    Raises `DataError`, naming `row.source`, for a row without target tokens or longer than allowed.
    """
    return encode_rows([row], tokenizer, max_length, too_long)


def encode_rows(rows: Sequence[Row], tokenizer: Any, max_length: int, too_long: TooLong = "error") -> list[Encoded]:
    """`encode` for many rows in one call to the tokenizer; the sequences in the order of the rows."""
    plain = iter(_plain_drafts([row for row in rows if not row.messages], tokenizer))
    chats = iter(_chat_drafts([row for row in rows if row.messages], tokenizer))
    drafts = (next(chats if row.messages else plain) for row in rows)
    return [
        encoded
        for row, draft in zip(rows, drafts, strict=True)
        for encoded in _fit(row, draft, tokenizer, max_length, too_long)
    ]


def prompt_ids(encoded: Encoded) -> list[int]:
    """Ids before the last run of targets: what the model is given when it generates the answer."""
    end = len(encoded.labels)
    while end and encoded.labels[end - 1] == IGNORE:
        end -= 1
    while end and encoded.labels[end - 1] != IGNORE:
        end -= 1
    return encoded.ids[:end]


def preview(encoded: Encoded, tokenizer: Any) -> str:
    """The decoded sequence with its targets in ⟦brackets⟧, special tokens included."""
    ids, labels = encoded.ids, encoded.labels
    edges = [i for i in range(len(ids)) if i and (labels[i] == IGNORE) != (labels[i - 1] == IGNORE)]
    parts, before = [], ""
    for lo, hi in zip([0, *edges], [*edges, len(ids)], strict=True):
        # Decoding from the start keeps the white space that a decoder drops at the start of a text.
        text = tokenizer.decode(ids[:hi])
        part, before = text[len(before) :], text
        parts.append(part if labels[lo] == IGNORE else f"⟦{part}⟧")
    return "".join(parts)


def pad_id(tokenizer: Any) -> int:
    """Id to pad with: the pad token, else the end token, else 0. Padding is masked, so any id will do."""
    known = (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None)
    return next(known, 0)


def _plain_drafts(rows: Sequence[Row], tokenizer: Any) -> list[_Draft]:
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts = [examples_text(row) + as_text(row) for row in rows]
    drafts = []
    for row, tokens in zip(rows, tokenise(texts, tokenizer, markup=False), strict=True):
        begin = len(tokens.text) - len(as_text(row)) + len(row.prompt)
        lo = tokens_before(tokens, begin, tokenizer, markup=False) if begin else 0
        spans = [(lo, len(tokens.ids))]
        at = len(tokens.text) - len(row.completion.lstrip()) if row.prompt else begin
        own = tokens_before(tokens, at, tokenizer, markup=False)
        drafts.append(_Draft(tokens, spans, bos, eos if row.prompt else [], begin, own))
    return drafts


def _chat_drafts(rows: Sequence[Row], tokenizer: Any) -> list[_Draft]:
    wholes = [with_turns(row) for row in rows]
    for whole, _ in wholes:
        check_template(whole, tokenizer)
    special = frozenset(special_tokens(tokenizer)) if rows else frozenset()
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    drafts = []
    texts = [render(whole, tokenizer) for whole, _ in wholes]
    for (whole, shown), tokens in zip(wholes, tokenise(texts, tokenizer, markup=True), strict=True):
        spans = [(lo, hi) for lo, hi in assistant_spans(whole, tokens, tokenizer)[shown:] if lo < hi]
        last = spans[-1][1] if spans else 0
        ended = any(i in special for i in tokens.ids[max(last - 1, 0) :])
        # What follows the last target is never read by one, so it is left out.
        kept = Tokens(tokens.text, tokens.ids[:last], tokens.ends and tokens.ends[:last])
        drafts.append(_Draft(kept, spans, [], [] if ended else eos, 0, 0, special))
    return drafts


def _fit(row: Row, draft: _Draft, tokenizer: Any, max_length: int, too_long: TooLong) -> list[Encoded]:
    head = len(draft.bos)
    ids = draft.bos + draft.tokens.ids + draft.eos
    labels = [IGNORE] * len(ids)
    for lo, hi in draft.spans:
        labels[head + lo : head + hi] = ids[head + lo : head + hi]
    if draft.eos:
        labels[-1] = ids[-1]
    labels[:1] = [IGNORE]
    first = next((i for i, label in enumerate(labels) if label != IGNORE), len(ids))
    # An end token or the space before a completion is no lesson: its own text must give a token.
    text = (head + i for lo, hi in draft.spans for i in range(max(lo, draft.own), hi))
    if not any(labels[i] != IGNORE and ids[i] not in draft.special for i in text):
        why = "nothing after its first token is to be learned"
        if row.prompt:
            why = f"the base's tokenizer has no token for the text of its completion {row.completion!r}"
        raise DataError(
            f"{row.source or 'A row'} has no target token: {why}.",
            "Correct or remove the row; check that the tokenizer belongs to the base.",
        )

    def part(context: list[int], lo: int, hi: int) -> Encoded:
        spans = [(max(a, lo - head), min(b, hi - head)) for a, b in draft.spans]
        n_bytes = sum(count_bytes(draft.tokens, a, b, draft.begin, draft.special, tokenizer) for a, b in spans if a < b)
        return Encoded(
            context + ids[lo:hi], [IGNORE] * len(context) + labels[lo:hi], n_bytes, row.cluster or row.source
        )

    if len(ids) <= max_length:
        return [part(ids[:1], 1, len(ids))]
    if too_long == "truncate":
        room = max_length - head
        context = min(first - head, max(room - (len(ids) - first), room // 2))
        lo = first - context
        if head == 0:
            return [part(ids[lo : lo + 1], lo + 1, lo + room)]
        return [part(ids[:1], lo, min(lo + room, len(ids)))]
    if too_long == "split" and not row.prompt and not row.messages:
        # Each sequence starts with the begin token, or else with the token before it, as context.
        return [
            part(ids[:1] if head else ids[lo - 1 : lo], lo, min(lo + max_length - 1, len(ids)))
            for lo in range(1, len(ids), max_length - 1)
        ]
    only_text = "; `split` cuts plain text only, and this row is none" if too_long == "split" else ""
    raise DataError(
        f"{row.source or 'A row'} has {len(ids)} tokens, more than the limit of {max_length}{only_text}.",
        "Set too_long to `truncate` (cut the row) or `split` (plain text only), or keep `error` and shorten"
        " the row, or raise train.max_length if the base's context allows it.",
    )
