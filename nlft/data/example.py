"""Solved examples in front of a row, as text or as turns of its conversation."""

from __future__ import annotations

from dataclasses import replace

from nlft.types import Message, Row

BETWEEN = "\n\n"
"""Between two examples, and between the last one and the row."""


def as_text(row: Row) -> str:
    """A whole row as plain text; of a conversation what was said, one turn a line."""
    if row.messages:
        return "\n".join(message.content for message in row.messages)
    return row.prompt + row.join + row.completion if row.prompt else row.completion


def examples_text(row: Row) -> str:
    """What is read in front of a row that is no conversation; empty without examples."""
    return "".join(as_text(example) + BETWEEN for example in row.examples)


def turns(row: Row) -> tuple[Message, ...]:
    """An example as turns, without a system prompt of its own; plain text, which nobody asked for, has none."""
    if row.messages:
        return tuple(message for message in row.messages if message.role != "system")
    return (Message("user", row.prompt), Message("assistant", row.completion)) if row.prompt else ()


def with_turns(row: Row) -> tuple[Row, int]:
    """A conversation with its examples as earlier turns, behind its system prompt, and how many the assistant said."""
    shown = tuple(message for example in row.examples for message in turns(example))
    system = sum(message.role == "system" for message in row.messages[:1])
    messages = (*row.messages[:system], *shown, *row.messages[system:])
    return replace(row, messages=messages, examples=()), sum(message.role == "assistant" for message in shown)
