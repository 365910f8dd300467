"""Layouts of a record: which columns hold what, and the row that they make."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from nlft.data.file import Record
from nlft.errors import DataError
from nlft.types import Message, Row

Format = Literal["completion", "messages", "label", "text"]

ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction"),
    "completion": ("completion", "answer", "output", "response"),
    "messages": ("messages", "conversations"),
    "text": ("text",),
    "label": ("label",),
    "input": ("input",),
    "answers": ("answers",),
    "choices": ("choices",),
    "gold": ("gold",),
    "cluster": ("cluster",),
}
"""nlft's name of a column: the names under which it is looked for, in this order."""

TITLES: dict[str, str] = {
    "completion": "prompt/completion",
    "messages": "messages",
    "label": "text/label",
    "text": "plain text",
}
LAYOUTS = (
    "Accepted layouts: prompt + completion (or question + answer, instruction + output), prompt + answers,"
    " prompt + choices + gold, messages (or conversations), text + label, text."
    " Other names can be given with `columns`, as `columns: {prompt: my_column}`."
)
_ROLES = {"human": "user", "gpt": "assistant"} | {
    role: role for role in ("system", "developer", "user", "assistant", "tool", "function", "ipython")
}
"""A turn's role as files spell it, and as chat templates do."""


def find_columns(found: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """Map nlft's names to the file's columns: those of `own` first, then names and aliases that are `found`.

    Raises `DataError` where `own` has a name that nlft does not know, or a column that the file lacks.
    """
    for name, column in own.items():
        if name not in ALIASES:
            near = difflib.get_close_matches(name, ALIASES, n=1)
            raise DataError(
                f"columns: {name!r} is no column that nlft reads.",
                f"Did you mean {near[0]!r}?" if near else f"It reads {', '.join(ALIASES)}.",
            )
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1)
            raise DataError(
                f"columns.{name} is {column!r}, but the columns are {', '.join(found)}.",
                f"Did you mean {near[0]!r}?" if near else "",
            )
    columns = dict(own)
    for name, aliases in ALIASES.items():
        taken = set(columns.values())
        match = next((alias for alias in aliases if alias in found and alias not in taken), None)
        if name not in columns and match is not None:
            columns[name] = match
    # `input` belongs to an instruction; beside a prompt or a question the word can mean anything.
    if "input" not in own and columns.get("prompt") != "instruction":
        columns.pop("input", None)
    return columns


def detect_format(columns: Mapping[str, str], wanted: str = "auto") -> Format:
    """Choose the layout: messages, else completion, else label, else text.

    `columns` is what `find_columns` gave. Raises `DataError` where no layout, or not the `wanted` one, fits.
    """
    has = set(columns)
    fits = {
        "messages": "messages" in has,
        "completion": "prompt" in has and ("completion" in has or "answers" in has or {"choices", "gold"} <= has),
        "label": {"text", "label"} <= has,
        "text": "text" in has,
    }
    if wanted != "auto":
        if not fits[wanted]:
            raise DataError(f"format is {wanted!r}, but the columns for {TITLES[wanted]} are not there.", LAYOUTS)
        return cast(Format, wanted)
    match = next((name for name, fit in fits.items() if fit), None)
    if match is None:
        raise DataError("The layout of the columns is unknown.", LAYOUTS)
    return cast(Format, match)


def used_columns(layout: Format, columns: Mapping[str, str]) -> list[str]:
    """The file's columns that the layout reads."""
    reads = {
        "completion": ("prompt", "input", "completion", "answers", "choices", "gold"),
        "messages": ("messages",),
        "label": ("text", "label"),
        "text": ("text",),
    }[layout]
    return [columns[name] for name in (*reads, "cluster") if name in columns]


def to_rows(records: Sequence[Record], layout: Format, columns: Mapping[str, str], join: str) -> list[Row]:
    """Turn records into rows, one for one.

    A text becomes a row without prompt; a label row has the file's sorted labels as choices. An instruction
    and its input are put together with a line break. `Row.join` is `join`, or nothing where the prompt ends
    or the completion begins with white space. Raises `DataError` naming file and line for a field that is
    missing, empty or of the wrong type; no record is left out.
    """
    make: Callable[[Record, Mapping[str, str], str], Row]
    make = {"completion": _completion, "messages": _messages, "label": _label, "text": _plain}[layout]
    rows = [make(record, columns, join) for record in records]
    return with_choices(rows, sorted({row.completion for row in rows})) if layout == "label" else rows


def with_choices(rows: Sequence[Row], labels: Sequence[str]) -> list[Row]:
    """Give label rows these labels as choices; `gold` is the completion's index."""
    from dataclasses import replace

    choices = tuple(labels)
    index = {label: i for i, label in enumerate(choices)}
    return [replace(row, choices=choices, gold=index[row.completion]) for row in rows]


def _completion(record: Record, columns: Mapping[str, str], join: str) -> Row:
    prompt = _text(record, columns["prompt"])
    extra = record.fields.get(columns["input"]) if "input" in columns else None
    if extra not in (None, ""):
        prompt = f"{prompt}\n{_text(record, columns['input'])}"
    answers = _texts(record, columns["answers"]) if "answers" in columns else ()
    choices = _texts(record, columns["choices"]) if "choices" in columns else ()
    gold = _gold(record, columns["gold"], choices) if choices and "gold" in columns else None
    if "completion" in columns:
        completion = _text(record, columns["completion"])
    elif choices and gold is not None:
        completion = choices[gold]
    elif answers:
        completion = answers[0]
    else:
        raise DataError(f"{record.source} has neither a completion, answers, nor choices with gold.", LAYOUTS)
    if choices and gold is None and completion not in choices:
        raise DataError(f"{record.source}: the completion {_short(completion)} is none of the choices.")
    gold = choices.index(completion) if choices and gold is None else gold
    if gold is not None and choices[gold] != completion:
        raise DataError(
            f"{record.source}: gold is {gold}, which is {_short(choices[gold])},"
            f" but the completion is {_short(completion)}.",
            "gold counts from 0.",
        )
    space = prompt[-1].isspace() or completion[0].isspace()
    return Row(
        prompt,
        completion,
        answers,
        choices,
        gold,
        (),
        "" if space else join,
        record.source,
        _cluster(record, columns),
    )


def _label(record: Record, columns: Mapping[str, str], join: str) -> Row:
    prompt, value = _text(record, columns["text"]), record.fields.get(columns["label"])
    number = isinstance(value, int) and not isinstance(value, bool)
    completion = str(value) if number else _text(record, columns["label"])
    space = prompt[-1].isspace() or completion[0].isspace()
    return Row(
        prompt,
        completion,
        join="" if space else join,
        source=record.source,
        cluster=_cluster(record, columns),
    )


def _plain(record: Record, columns: Mapping[str, str], join: str) -> Row:
    return Row("", _text(record, columns["text"]), source=record.source, cluster=_cluster(record, columns))


def _messages(record: Record, columns: Mapping[str, str], join: str) -> Row:
    turns = record.fields.get(columns["messages"])
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{record.source}: {columns['messages']!r} must be a list of turns, but is {_short(turns)}.")
    messages = tuple(_turn(record.source, number, turn) for number, turn in enumerate(turns, start=1))
    if messages[-1].role != "assistant":
        raise DataError(
            f"{record.source} ends with a turn of {messages[-1].role!r}, so nothing there can be learned.",
            "The last turn must be the assistant's.",
        )
    return Row("", "", messages=messages, source=record.source, cluster=_cluster(record, columns))


def _turn(source: str, number: int, turn: Any) -> Message:
    fields = turn if isinstance(turn, dict) else {}
    role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{source}: turn {number} is {_short(turn)}.",
            'A turn has the texts "role" and "content" (or "from" and "value").',
        )
    if _ROLES.get(role) == "assistant" and not content.strip():
        raise DataError(f"{source}: turn {number} of the assistant is empty.", "Correct or remove the row.")
    if role not in _ROLES:
        near = difflib.get_close_matches(role.lower(), _ROLES, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{source}: turn {number} has the unknown role {_short(role)}.{guess}", f"Known are {', '.join(_ROLES)}."
        )
    return Message(_ROLES[role], _encodable(source, "content", content))


def _text(record: Record, column: str) -> str:
    """A field that must be text with more than white space in it."""
    value = record.fields.get(column)
    if value is None:
        raise DataError(f"{record.source} has no {column!r}.", "Every record needs it; correct or remove the row.")
    if not isinstance(value, str):
        raise DataError(f"{record.source}: {column!r} must be text, but is {_short(value)}.", "Write it as text.")
    if not value.strip():
        raise DataError(f"{record.source}: {column!r} is empty.", "Correct or remove the row.")
    return _encodable(record.source, column, value)


def _texts(record: Record, column: str) -> tuple[str, ...]:
    """A list of texts; CSV, which has no lists, may hold one in JSON."""
    value = record.fields.get(column)
    if value is None:
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = record.fields[column]
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise DataError(
            f"{record.source}: {column!r} must be a list of texts, but is {_short(value)}.",
            'As ["one", "two"].',
        )
    return tuple(_encodable(record.source, column, text) for text in value)


def _gold(record: Record, column: str, choices: Sequence[str]) -> int:
    value = record.fields.get(column)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(choices):
        raise DataError(
            f"{record.source}: {column!r} is {_short(value)}, but must index its {len(choices)} choices.",
            f"Count from 0: 0 to {len(choices) - 1}.",
        )
    return value


def _cluster(record: Record, columns: Mapping[str, str]) -> str:
    value = record.fields.get(columns["cluster"]) if "cluster" in columns else None
    return "" if value is None else str(value)


def _encodable(source: str, column: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{source}: {column!r} holds half of a surrogate pair at character {error.start}.",
            "Correct the text; UTF-8 cannot hold it.",
        ) from error
    return text


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
