"""What the settings of an adapter may hold before anything is made of them: they come from a file that anyone wrote."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from math import isfinite
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from peft import PeftConfig
from pydantic import TypeAdapter, ValidationError

from nlft.errors import NlftError, reason

LARGEST = 1 << 24
"""Largest whole number in settings: slots, keys, ranks, heads, periods."""
LONGEST = 1000
"""Characters of a text in settings."""
LONGEST_PATTERN = 500
HARDEST = 10**8
"""Most ways in which a pattern may be tried on one name, see `check_pattern`."""
PLAIN = (int, float, bool, str, type(None))


@lru_cache
def plain_fields(kind: type[PeftConfig]) -> dict[str, TypeAdapter]:
    """The fields of a config that hold plain values or lists of them, and what checks their types.

    Choices (`Literal`) and mappings are left to those who know them.
    """
    inherited = {field.name for field in fields(PeftConfig)}
    hints = get_type_hints(kind)
    own = [field.name for field in fields(kind) if field.name not in inherited]
    return {name: TypeAdapter(hints[name]) for name in own if is_plain(hints[name])}


def is_plain(hint: Any) -> bool:
    """Whether a type is made of plain values, unions and lists alone."""
    if get_origin(hint) in (list, Union, types.UnionType):
        return all(map(is_plain, get_args(hint)))
    return hint in PLAIN


def check_fields(config: Any) -> None:
    """Refuses values of another type, numbers beyond all use, and texts that cannot be printed.

    Raises:
        NlftError: naming the field.
    """
    for name, adapter in plain_fields(type(config)).items():
        value = getattr(config, name)
        value = list(value) if isinstance(value, tuple | range | set) else value
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise NlftError(f"{name}: {shown(value)} will not do: {said}.", "Correct the value.") from error
        for one in value if isinstance(value, list) else [value]:
            check_value(name, one)
    for name in ("base_model_name_or_path", "revision", "peft_version"):
        value = getattr(config, name)
        if value is not None and not isinstance(value, str):
            raise NlftError(f"{name}: {shown(value)} is no text.", "Correct the value.")
        check_value(name, value)
    check_mapping(config.auto_mapping)
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        check_modules(name, getattr(config, name))


def check_value(name: str, value: Any) -> None:
    """Refuses a plain value that is beyond all use.

    Raises:
        NlftError: naming its field.
    """
    if isinstance(value, str) and not (len(value) <= LONGEST and value.isprintable()):
        raise NlftError(f"{name}: {shown(value)} is too long or cannot be printed.", "Correct the value.")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise NlftError(f"{name}: {shown(value)} is more than any adapter has ({LARGEST:,}).", "Correct the value.")
    if isinstance(value, float) and not isfinite(value):
        raise NlftError(f"{name}: {value} is no number.", "Correct the value.")


def check_mapping(found: Any) -> None:
    """Refuses a note of the base's class that is none; nlft imports nothing because it says so, and PEFT's
    `AutoPeftModel` only from the libraries that it allows.

    Raises:
        NlftError: it is no object of texts.
    """
    if found is None:
        return
    if not isinstance(found, dict) or not all(isinstance(one, str) for pair in found.items() for one in pair):
        raise NlftError("auto_mapping must be an object of texts.", "Correct the value.")
    for value in found.values():
        check_value("auto_mapping", value)


def check_modules(name: str, value: Any) -> None:
    """Refuses what cannot be names of modules. PEFT takes a text in the place of a list for a regular expression, and
    every entry of `modules_to_save` for one too.

    Raises:
        NlftError: naming the field.
    """
    if value is None:
        return
    if isinstance(value, str) and name != "modules_to_save":
        check_pattern(name, value)
        return
    listed = isinstance(value, list | tuple | set)
    for one in value if listed else [value]:
        if not listed or not isinstance(one, str) or not re.fullmatch(r"[\w.\- ]{1,500}", one):
            raise NlftError(f"{name}: {shown(one)} is no name of a module.", "List names such as `layers.1.mlp`.")


def check_pattern(name: str, text: str) -> None:
    """Refuses a regular expression that could keep `re` busy for longer than anybody waits.

    A repeated group can double the work with every letter, so none is allowed. The rest is counted as the ways in which
    a name of a hundred letters could be split among repeats, optional parts and alternatives.

    Raises:
        NlftError: naming the field.
    """
    hint = "List the names of the modules instead."
    try:
        re.compile(text[:LONGEST_PATTERN])
    except (re.error, RecursionError, OverflowError) as error:
        raise NlftError(f"{name}: {shown(text)} is no regular expression: {reason(error)}.", hint) from error
    if len(text) > LONGEST_PATTERN or not text.isprintable():
        raise NlftError(f"{name}: a pattern has at most {LONGEST_PATTERN} letters that can be printed.", hint)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", text)).replace("(?", "(")
    bare = re.sub(r"([*+}])[?+]", r"\1", bare)  # lazy and possessive repeats are repeats
    ways = 100 ** sum(map(bare.count, "*+{")) * 2 ** bare.count("?")
    alternatives = [1]
    for letter in bare:
        if letter == "|":
            alternatives[-1] += 1
        elif letter == "(":
            alternatives.append(1)
        elif letter == ")":
            ways *= alternatives.pop()
    if re.search(r"\)[*+{]", bare) or ways > HARDEST:
        raise NlftError(f"{name}: {shown(text)} could take for ever to match.", hint)


def check_stored(config: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Compares tensors that are about to be put into a model with their config: names, shapes, dtypes and values.

    Args:
        tensors: under the names that PEFT stores, with its prefix for the base or without.

    Raises:
        NlftError: naming the first that differs.
    """
    from nlft.pathways.layout import check_layout  # it knows every pathway, and every pathway this

    prefix = "base_model.model."
    named = {key if key.startswith(prefix) else prefix + key: tensor for key, tensor in tensors.items()}
    try:
        check_layout(config, named)
    except NlftError as error:
        raise NlftError(f"The adapter is damaged: {error.message}", error.hint) from error


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Turns what torch says when it gets no memory into a sentence.

    Raises:
        NlftError: there is not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if not isinstance(error, MemoryError) and "can't allocate" not in said and "not enough memory" not in said:
            raise
        raise NlftError(
            f"{what}: the sizes in its settings need more memory than there is: {reason(error)}",
            "Take a whole copy of the adapter, or a larger machine.",
        ) from error


def shown(value: Any) -> str:
    """A value for a sentence: short, and without characters that do more than be read."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
