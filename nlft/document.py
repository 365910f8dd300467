"""YAML with the line of every key, and numbers read as people write them.

PyYAML follows YAML 1.1, in which `1e-4` is text, `no` is false and `1:30` is ninety. Here plain scalars are
read as YAML 1.2's core schema reads them: `1e-4` is a number and only `true` and `false` are booleans.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[Hashable, ...]
"""Keys and list indices from the top of a document to a value."""

_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*"
    r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_CORE = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"^<<$"), ["<"]),
)
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own name and shape)


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or `_Loader` would not read as text."""


for _tag, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


@dataclass(slots=True)
class Document:
    """Plain data, and where each value of it was written."""

    label: str
    """The file's name as the user wrote it."""
    data: Any
    origins: dict[KeyPath, str] = field(default_factory=dict)
    """KeyPath of a value to `file:line`, or to the override that set it."""
    overridden: set[KeyPath] = field(default_factory=set)
    """Those of `origins` that are overrides."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the text itself and did not stop the reading of the rest."""

    def where(self, path: KeyPath) -> str:
        """The place of a value, or of the nearest thing around it that was written down.

        What overrides set inside the value is part of it, so they are named too.
        """
        inside = [place for at, place in self.origins.items() if at in self.overridden and at[: len(path)] == path]
        known = (self.origins[path[:length]] for length in range(len(path), 0, -1) if path[:length] in self.origins)
        return " and ".join(dict.fromkeys([next(known, self.label), *inside]))


def dotted(path: KeyPath) -> str:
    """`("tasks", 0, "name")` as `tasks.0.name`."""
    return ".".join(str(key) for key in path)


def parse(text: str, label: str) -> Document:
    """Read YAML; raises `yaml.YAMLError` where the text is no YAML. Duplicate keys become `problems`."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        document = Document(label, None)
        if root is not None:
            document.data = _value(root, (), loader, document, frozenset())
        return document
    finally:
        loader.dispose()


def _value(node: yaml.Node, path: KeyPath, loader: _Loader, document: Document, around: frozenset[int]) -> Any:
    if id(node) in around:
        raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
    around = around | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        entries = []
        for index, child in enumerate(node.value):
            here = (*path, index)
            document.origins[here] = _place(child, document)
            entries.append(_value(child, here, loader, document, around))
        return entries
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, loader, document, around)
    return loader.construct_object(node)


def _mapping(
    node: yaml.MappingNode, path: KeyPath, loader: _Loader, document: Document, around: frozenset[int]
) -> dict[str, Any]:
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, child in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be one word", problem_mark=key_node.start_mark)
        if key_node.tag == _MERGE:
            found = _value(child, path, loader, document, around)
            for part in reversed(found if isinstance(found, list) else [found]):
                if not isinstance(part, dict):
                    raise yaml.MarkedYAMLError(problem="`<<` takes a mapping", problem_mark=child.start_mark)
                merged |= part
            continue
        key = key_node.value
        here = (*path, key)
        line = key_node.start_mark.line + 1
        if key in lines:
            document.problems.append(
                f"{_place(key_node, document)}: {dotted(here)}: this key is written twice, first in line "
                f"{lines[key]}; keep one."
            )
        lines.setdefault(key, line)
        document.origins[here] = _place(key_node, document)
        value = _value(child, here, loader, document, around)
        # Both of two sections of one name are checked, so that one pass shows every problem.
        own[key] = own[key] | value if isinstance(own.get(key), dict) and isinstance(value, dict) else value
    return merged | own


def _place(node: yaml.Node, document: Document) -> str:
    return f"{document.label}:{node.start_mark.line + 1}"


def scalar(text: str) -> Any:
    """The value of an override: YAML on one line. Raises `yaml.YAMLError`."""
    return parse(text, "").data


def dump(data: Any) -> str:
    """YAML that `parse` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
