"""What pydantic found wrong with a recipe, as sentences about what the user wrote."""

from __future__ import annotations

from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from nlft.config import Recipe, Section
from nlft.document import Document, KeyPath, dotted

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text; put it in quotes",
    "list_type": "a list",
    "dict_type": "a section of `key: value` lines",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "too_short": "a list with at least {min_length:g} entry",
}
"""Pydantic's name of an error, and what would have been right."""


def problems(failure: ValidationError, document: Document) -> list[str]:
    """One sentence an error: place, dotted key, what is allowed, and what was written."""
    found: dict[str, None] = {}
    for error in failure.errors(include_url=False):
        path, annotation, member = _follow(error["loc"])
        if member and member.startswith("list[") != isinstance(_value_at(document.data, path), list):
            continue  # a complaint about the other member of `number or list of numbers`
        found[_sentence(error, path, annotation, document)] = None
    return list(found)


def type_at(path: KeyPath) -> Any:
    """The schema's type at a path, as far as it depends on no `kind`."""
    return _follow(path)[1]


def booleans_as_numbers(document: Document, recipe: Recipe) -> list[str]:
    """`steps: true` would pass as 1; nobody means that."""

    def walk(written: Any, read: Any, path: KeyPath) -> list[str]:
        if isinstance(written, dict) and isinstance(read, dict):
            return [line for key in written for line in walk(written[key], read.get(key), (*path, key))]
        if isinstance(written, list) and isinstance(read, list):
            pairs = enumerate(zip(written, read, strict=False))
            return [line for index, (one, other) in pairs for line in walk(one, other, (*path, index))]
        if isinstance(written, bool) and isinstance(read, int | float) and not isinstance(read, bool):
            return [f"{document.where(path)}: {dotted(path)}: must be a number, not {_shown(written)}."]
        return []

    return walk(document.data, recipe.model_dump(), ())


def _sentence(error: Any, path: KeyPath, annotation: Any, document: Document) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind.startswith("union_tag"):
        kinds = list(_kinds(_members(annotation)))
        path = (*path, "kind")
        said = f"this key is missing; {_allowed(kinds)}." if kind == "union_tag_not_found" else ""
        said = said or _choice(context["tag"], kinds)
    elif kind == "extra_forbidden":
        fields = list(type_at(error["loc"][:-1]).model_fields)
        near = get_close_matches(str(path[-1]), fields, n=1)
        said = f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; {_allowed(fields)}."
    elif kind == "missing":
        field = type_at(error["loc"][:-1]).model_fields[path[-1]]
        said = f"this key is missing. It holds: {field.description}"
    elif kind == "literal_error":
        said = _choice(value, list(get_args(annotation)))
    elif kind == "value_error":
        said = f"{context['error']}."
        # Checks across sections begin with the key that they are about.
        path, said = (path, said) if path else _leading_key(said, document)
    elif kind == "string_pattern_mismatch":
        space = "spaces, " if " " in context["pattern"] else ""
        allowed = f"letters, digits, {space}'_', '.' and '-', and begins with a letter or digit"
        said = f"a name holds {allowed}, not {_shown(value)}."
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind].format(**context)
        said = f"must be {expected}, not {_shown(value)}."
    else:
        said = f"{error['msg']}, not {_shown(value)}."
    return f"{document.where(path)}: {dotted(path)}{': ' if path else ''}{said}"


def _leading_key(said: str, document: Document) -> tuple[KeyPath, str]:
    first, _, rest = said.partition(" ")
    path = tuple(first.rstrip(":").split("."))
    return (path, rest) if path in document.origins else ((), said)


def _choice(value: Any, options: list[str]) -> str:
    near = get_close_matches(str(value), options, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"{_shown(value)} is not possible; {_allowed(options)}.{guess}"


def _allowed(options: list[str]) -> str:
    return f"allowed: {', '.join(options)}"


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _value_at(data: Any, path: KeyPath) -> Any:
    """The value at a path, or the last one on the way that holds no others."""
    for key in path:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int):
            return data
    return data


def _members(annotation: Any) -> list[Any]:
    """The types that an annotation stands for, without None."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part) if member is not type(None)]
    return [annotation]


def _kinds(members: list[Any]) -> dict[str, type[Section]]:
    """The members of a tagged union by their `kind`; empty if it is none."""
    sections = [member for member in members if isinstance(member, type) and issubclass(member, Section)]
    if len(sections) < 2:
        return {}
    return {get_args(section.model_fields["kind"].annotation)[0]: section for section in sections}


def _follow(loc: KeyPath) -> tuple[KeyPath, Any, str]:
    """The user's path of one of pydantic's locations, the type there, and the union member meant.

    Pydantic puts the tag of a tagged union (`lora`) and the name of a union's member (`list[float]`) into its
    location, though nobody wrote those.
    """
    annotation: Any = Recipe
    path: KeyPath = ()
    member = ""
    for element in loc:
        members = _members(annotation)
        kinds = _kinds(members)
        if kinds:
            annotation = kinds.get(str(element), Any)
            continue
        if len(members) > 1 and isinstance(element, str):
            member = element
            annotation = members[0] if not element.startswith("list[") else members[-1]
            continue
        if isinstance(members[0], type) and issubclass(members[0], Section):
            field = members[0].model_fields.get(str(element))
            annotation = field.annotation if field else Any
        else:
            annotation = (get_args(members[0]) or (Any,))[-1]
        path = (*path, element)
    members = _members(annotation)
    return path, members[0] if len(members) == 1 else annotation, member
