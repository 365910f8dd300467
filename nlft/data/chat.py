"""Conversations: the chat template's text, and which of its tokens the assistant said."""

from __future__ import annotations

import re
from typing import Any

from nlft.data.tokens import Tokens, tokens_before
from nlft.errors import DataError
from nlft.types import Row

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and texts of the tokens that are markup."""
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def check_template(row: Row, tokenizer: Any) -> None:
    """Raise `DataError` where the tokenizer has no chat template, or a turn spells a special token.

    A rendered conversation is text in which markup and content look alike, so such a turn could end itself.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"{row.source} is a conversation, but the base's tokenizer has no chat template.",
            "Put a chat_template.jinja beside the tokenizer, use an instruction-tuned base, or write the data"
            " as prompt and completion.",
        )
    for number, message in enumerate(row.messages, start=1):
        held = [text for text in special_tokens(tokenizer).values() if text in message.content]
        if held:
            raise DataError(
                f"{row.source}: turn {number} holds {held[0]!r}, a special token of this tokenizer.",
                "Spell it differently; inside a chat template it would be read as markup.",
            )


def render(row: Row, tokenizer: Any, turns: int | None = None, *, prompt: bool = False) -> str:
    """Text of the first `turns` turns (all when None); `prompt` opens an assistant's turn after them."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(_turns(row)[:turns], tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, ValueError, TypeError) as error:
        raise DataError(
            f"{row.source}: the chat template refuses this conversation: {error}",
            "Check the roles and their order against what the base was tuned with.",
        ) from error


def assistant_spans(row: Row, tokens: Tokens, tokenizer: Any) -> list[tuple[int, int]]:
    """Token ranges [lo, hi) that the assistant said: every turn of its, with the token that ends the turn.

    From the template's own `{% generation %}` markers if it has them, else by rendering the conversation up
    to each turn. `tokens` are those of `render(row, tokenizer)`. White space behind a turn is the template's.
    Raises `DataError` where the template renders a part of a conversation differently from the whole.
    """
    marked = _MARKER.search(tokenizer.get_chat_template())
    spans = []
    for begin, end in _marked(row, tokens, tokenizer) if marked else _rendered(row, tokens, tokenizer):
        end = begin + len(tokens.text[begin:end].rstrip())
        lo = tokens_before(tokens, begin, tokenizer, markup=True)
        hi = tokens_before(tokens, end, tokenizer, markup=True)
        if tokens.ends is not None and hi < len(tokens.ids) and (tokens.ends[hi - 1] if hi else 0) < end:
            hi += 1  # one token holds the last character and what follows it
        spans.append((lo, hi))
    return spans


def _rendered(row: Row, tokens: Tokens, tokenizer: Any) -> list[tuple[int, int]]:
    """Character ranges of the assistant's turns, each the difference of two renderings."""
    ranges = []
    for number, message in enumerate(row.messages):
        if message.role != "assistant":
            continue
        if number == 0:
            raise DataError(f"{row.source} begins with the assistant's turn.", "Begin with a user turn.")
        before = render(row, tokenizer, number, prompt=True)
        upto = render(row, tokenizer, number + 1)
        if not (tokens.text.startswith(upto) and upto.startswith(before)):
            raise DataError(
                f"{row.source}: the chat template renders turn {number + 1} differently inside the whole"
                " conversation than at its end, so the assistant's tokens cannot be told apart.",
                "Use a template with {% generation %} markers, or split the conversation into rows whose only"
                " assistant turn is the last.",
            )
        ranges.append((len(before), len(upto)))
    return ranges


def _marked(row: Row, tokens: Tokens, tokenizer: Any) -> list[tuple[int, int]]:
    """Character ranges between the template's markers.

    `apply_chat_template(return_assistant_tokens_mask=True)` would give a token mask, but one that runs to the
    end of the text where a range ends in a character that no token claims.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, ranges = render_jinja_template(
        conversations=[_turns(row)],
        chat_template=tokenizer.get_chat_template(),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    if texts != [tokens.text]:
        raise DataError(
            f"{row.source}: with its markers, the chat template gives another text than without them.",
            "Use a template without {% generation %} markers.",
        )
    # The library annotates this function's result as a text.
    return [(int(begin), int(end)) for begin, end in ranges[0]]


def _turns(row: Row) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in row.messages]
