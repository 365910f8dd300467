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
from peft.utils.constants import DUMMY_TARGET_MODULES, INCLUDE_LINEAR_LAYERS_SHORTHAND
from pydantic import TypeAdapter, ValidationError
from torch import nn

from nlft.errors import CheckpointError, NlftError, reason
from nlft.pathways.header import PREFIX, WHOLE

LARGEST = 1 << 24
"""Largest whole number in settings: slots, keys, ranks, heads, periods."""
LONGEST = 1000
"""Characters of a text in settings."""
SHORTHANDS = (INCLUDE_LINEAR_LAYERS_SHORTHAND, DUMMY_TARGET_MODULES)
"""Texts that PEFT itself turns into names."""
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
    """Refuses what cannot be names of modules. PEFT takes a text in the place of a list for a regular expression,
    which `name_modules` resolves, and every entry of `modules_to_save` for one too.

    Raises:
        NlftError: naming the field.
    """
    if value is None:
        return
    if isinstance(value, str) and name != "modules_to_save":
        check_value(name, value)
        return
    listed = isinstance(value, list | tuple | set)
    for one in value if listed else [value]:
        if not listed or not isinstance(one, str) or not re.fullmatch(r"[\w.\- ]{1,500}", one):
            raise NlftError(f"{name}: {shown(one)} is no name of a module.", "List names such as `layers.1.mlp`.")


def check_listed(config: Any) -> None:
    """Refuses a regular expression in the settings of an adapter that was found: one can be written that keeps `re`
    busy for ever. nlft stores none.

    Raises:
        NlftError: naming the field.
    """
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name)
        if isinstance(value, str):
            raise NlftError(
                f"{name}: {shown(value)} is a pattern, and the settings of a stored adapter list names of modules.",
                "If the adapter is your own, put the list of the names there.",
            )


def name_modules(config: Any, model: nn.Module) -> None:
    """Puts the names of modules in the place of regular expressions, so that none is stored.

    Raises:
        NlftError: it is none, it matches nothing, or it came with an adapter that was found.
    """
    names = [name for name, _ in model.named_modules()]
    for field in ("exclude_modules", "target_modules"):
        pattern = getattr(config, field)
        if not isinstance(pattern, str) or pattern in SHORTHANDS:
            continue
        if not config.is_new:
            check_listed(config)
        try:
            found = {name for name in names if re.fullmatch(pattern, name)}
        except (re.error, RecursionError, OverflowError) as error:
            said = f"{field}: {shown(pattern)} is no regular expression: {reason(error)}."
            raise NlftError(said, "List the names of the modules instead.") from error
        setattr(config, field, found)
        if field == "target_modules":
            if not found:
                raise NlftError(f"{field}: {shown(pattern)} matches no module's name.", "Look at `named_modules()`.")
            # PEFT also takes every module whose name ends with one of a list.
            ends = {name: [name[dot.end() :] for dot in re.finditer(r"\.", name)] for name in set(names) - found}
            beyond = {name for name, parts in ends.items() if any(part in found for part in parts)}
            config.exclude_modules = {*(config.exclude_modules or ()), *beyond} or None


def check_stored(config: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Compares tensors that are about to be put into a model with their config: names, shapes, dtypes and values.

    Args:
        tensors: under the names that PEFT stores, with its prefix for the base or without.

    Raises:
        CheckpointError: naming the first that differs.
    """
    from nlft.pathways.layout import check_layout  # it knows every pathway, and every pathway this

    named = {key if key.startswith(PREFIX) else PREFIX + key: tensor for key, tensor in tensors.items()}
    try:
        check_layout(config, named)
    except NlftError as error:
        raise CheckpointError(f"The adapter is damaged: {error.message}", error.hint or WHOLE) from error


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
