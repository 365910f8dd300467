"""The shape of the package: imports point down, files stay short, cheap modules stay cheap."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import BaseModel

from nlft import config

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nlft"
LAYERS = (
    ("types", "errors"),
    ("hub", "gguf", "launch"),
    ("remote",),
    ("config",),
    ("manifest",),
    ("document", "snippet"),
    ("problem", "suites"),
    ("recipes",),
    ("plan",),
    ("events",),
    ("digest",),
    ("anatomy", "distributed"),
    ("base",),
    ("data",),
    ("ops",),
    ("state_file", "shelf"),
    ("capture", "sharding", "prefix_store", "frozen_depth", "stand_in"),
    ("frozen_prefix",),
    ("kept_inputs",),
    ("head",),
    ("loss", "packed"),
    ("optim",),
    ("calibrate",),
    ("pathways",),
    ("retain",),
    ("methods",),
    ("learner",),
    ("peak",),
    ("train",),
    ("checkpoint",),
    ("premises",),
    ("measure",),
    ("prepare",),
    ("stage", "scoring"),
    ("report",),
    ("witness", "testimony"),
    ("dissect",),
    ("found_recipe",),
    ("adapter",),
    ("origin",),
    ("start",),
    ("run",),
    ("sessions",),
    ("cells",),
    ("workers",),
    ("executor", "bracket", "pace"),
    ("ray_executor", "progress"),
    ("loading",),
    ("compare", "rescore", "joining", "verdict", "exchange"),
    ("continuing",),
    ("rescoring",),
    ("verification",),
    ("counterpart", "cargo"),
    ("export", "merging"),
    ("parcel",),
    ("upload",),
    ("inspect", "lifecycle", "dissection"),
    ("promotion",),
    ("pruning",),
    ("tune",),
    ("chat",),
    ("cli",),
    ("__main__",),
)
"""Lowest first; a module imports from its own line and the lines above it."""
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "matplotlib", "evaluate", "bitsandbytes"}
CHEAP = (
    "__init__.py",
    "__main__.py",
    "types.py",
    "errors.py",
    "hub.py",
    "launch.py",
    "config/__init__.py",
    "config/compare.py",
    "config/measure.py",
    "config/method.py",
    "config/optimizer.py",
    "config/pathway.py",
    "config/prefix.py",
    "config/recipe.py",
    "config/section.py",
    "config/source.py",
    "document.py",
    "manifest.py",
    "parcel.py",
    "plan.py",
    "premises.py",
    "problem.py",
    "recipes.py",
    "remote.py",
    "snippet.py",
    "suites.py",
    "upload.py",
    "workers.py",
)

SOURCES = sorted(PACKAGE.rglob("*.py"))


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(tree: ast.AST, path: Path) -> list[str]:
    """Dotted names of everything that a file imports, at any depth of it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(ROOT).parent.parts)
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{stem}.{alias.name}" for alias in node.names]
    return found


def upward_imports(text: str, path: Path) -> list[str]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return []  # the package itself registers the pathways when peft is imported
    own = RANK[parts[0]]
    names = [name.split(".") for name in imported_modules(ast.parse(text), path)]
    used = {name[1] for name in names if name[0] == "nlft" and len(name) > 1 and name[1] in RANK}
    return sorted(name for name in used if RANK[name] > own)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_point_down(path: Path) -> None:
    top = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert top == "__init__" or top in RANK, f"give {top!r} a place in LAYERS"
    assert upward_imports(path.read_text(encoding="utf-8"), path) == []


def test_an_upward_import_is_found() -> None:
    text = "def f():\n    from nlft.run import run_method\n    import nlft.cli\n    from nlft import errors\n"
    assert upward_imports(text, PACKAGE / "data" / "source.py") == ["cli", "run"]
    assert upward_imports("from ..train import train_stage\n", PACKAGE / "data" / "source.py") == ["train"]


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=label)
def test_files_are_short_nouns(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize(
    "path", [*(PACKAGE / name for name in CHEAP), *sorted((PACKAGE / "cli").glob("*.py"))], ids=label
)
def test_cheap_modules_import_nothing_heavy_at_module_level(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    heavy = {name.split(".")[0] for name in imported_modules(tree, path)} & HEAVY
    assert heavy == set()


@pytest.mark.parametrize("section", [value for value in vars(config).values() if isinstance(value, type)])
def test_every_key_is_documented(section: type) -> None:
    if not issubclass(section, BaseModel):
        return
    undocumented = [name for name, field in section.model_fields.items() if not field.description]
    assert undocumented == []
