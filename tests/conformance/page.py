"""Runs every check of every pathway on every family and writes the page of what came of it.

    python tests/conformance/page.py [--keep OUTCOMES.json]

With `--keep`, outcomes that the file holds are not found again, and new ones are added to it: an interrupted run goes
on, and a check that was mended is run again by taking it out of the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "pathways")]

import transformers

# Importing them registers their checks; what they register comes in this order on the page.
import checks_inserting  # noqa: F401  # isort: skip
import checks_saving  # noqa: F401  # isort: skip
import checks_generating  # noqa: F401  # isort: skip
import integrations_peft  # noqa: F401  # isort: skip
import integrations_training  # noqa: F401  # isort: skip
import integrations_quantised  # noqa: F401  # isort: skip
import checks_recalling  # noqa: F401  # isort: skip
import integrations_trl  # noqa: F401  # isort: skip
import integrations_evaluating  # noqa: F401  # isort: skip
from reload import reload_elsewhere
from subject import CHECKS, FAMILIES, PATHWAYS, Outcome, outcome

PAGE = Path(__file__).parent.parent.parent / "eval" / "results" / "conformance.md"
PASS, FAIL, NOT_RUN = "✓", "✗", "·"
Outcomes = dict[tuple[str, str, str], Outcome]
"""By pathway, family and check."""
HEAD = """# Conformance

Every pathway on tiny random models of {families} families, checked as PEFT checks its own methods: {checks} checks,
{cells} cells, of which {passed} pass, {refused} refuse with a sentence, and {failed} fail. `prototype` and
`product_key` are the two addressings of sparse memory, `cms_pretrained` is CMS with `init: pretrained`; each model has
one trained task. Made by `python tests/conformance/page.py` with {versions}.
"""
LEGEND = """## One line a check

✓ the check passes · a number: the call is refused with that sentence below, and nothing is harmed · ✗ it fails · a dot:
not run on this family, on which it would say what it says on another.
"""


def cells() -> list[tuple[str, str, str]]:
    """All cells of the matrix, in an order in which models are built once."""
    return [
        (pathway, family, name)
        for family in FAMILIES
        for pathway in PATHWAYS
        for name, check in CHECKS.items()
        if family in check.families
    ]


def run_cells(wanted: Iterable[tuple[str, str, str]], keep: Path | None = None) -> Outcomes:
    """Runs the cells; says on stderr what fails, and what each pathway and family took."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found: Outcomes = {}
    if keep is not None and keep.exists():
        stored = json.loads(keep.read_text(encoding="utf-8"))
        found = {(pathway, family, name): Outcome(*rest) for pathway, family, name, *rest in stored}
    wanted = list(wanted)
    found = {cell: one for cell, one in found.items() if cell in wanted}  # checks and their families may have changed
    wanted = list(wanted)
    left = [cell for cell in wanted if cell not in found]
    if afresh := [(pathway, family) for pathway, family, name in left if name == "fresh process"]:
        reload_elsewhere(afresh)
    start = time.perf_counter()
    for number, (pathway, family, name) in enumerate(left):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = found[pathway, family, name] = outcome(name, pathway, family)
        if one.kind == "fail":
            print(f"{FAIL} {pathway} on {family}: {name}: {one.sentence}", file=sys.stderr, flush=True)
        if number + 1 == len(left) or left[number + 1][:2] != (pathway, family):
            print(f"{time.perf_counter() - start:6.0f} s {pathway} on {family}", file=sys.stderr, flush=True)
            if keep is not None:
                rows = [[*cell, one.kind, one.sentence] for cell, one in found.items()]
                keep.write_text(json.dumps(rows, indent=0), encoding="utf-8")
    return {cell: found[cell] for cell in wanted}


def table(corner: str, columns: Iterable[str], rows: Mapping[str, Iterable[str]]) -> str:
    """A Markdown table."""
    columns = list(columns)
    lines = [[corner, *columns], ["---", *["---"] * len(columns)], *([name, *row] for name, row in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page(found: Outcomes) -> str:
    """The page of these outcomes."""
    kinds = [one.kind for one in found.values()]
    packages = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "lm_eval")
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    parts = [
        HEAD.format(
            families=len(FAMILIES),
            checks=len(CHECKS),
            cells=len(found),
            versions=", ".join(versions),
            **{
                word: kinds.count(kind)
                for word, kind in (("passed", "pass"), ("refused", "refuse"), ("failed", "fail"))
            },
        ),
        "## One cell a pathway and family\n\nPasses + refusals, and failures if there are any.\n",
        table(
            "family",
            PATHWAYS,
            {family: [summary_of(found, pathway, family) for pathway in PATHWAYS] for family in FAMILIES},
        ),
        LEGEND,
        "".join(f"* **{check.name}**: {check.words}\n" for check in CHECKS.values()),
    ]
    sentences = {text: f"{number}" for number, text in enumerate(dict.fromkeys(refusals(found)), start=1)}
    for pathway in PATHWAYS:
        rows = {name: [mark(found.get((pathway, family, name)), sentences) for family in FAMILIES] for name in CHECKS}
        parts += [f"## {pathway}\n", table("check", FAMILIES, rows)]
    parts += ["## Refusals\n", "".join(f"{number}. {escaped(text)}\n" for text, number in sentences.items())]
    failures = [f"* {' · '.join(cell)}: {escaped(one.sentence)}\n" for cell, one in found.items() if one.kind == "fail"]
    return "\n".join([*parts, *(["## Failures\n", "".join(failures)] if failures else [])])


def told(one: Outcome) -> str:
    """A sentence as the page has it, whichever tensor it names."""
    return re.sub(r"base_model\.model\.\S+", "base_model.model.…", one.sentence)


def refusals(found: Outcomes) -> list[str]:
    """Sentences of all refusals, pathway by pathway as on the page."""
    order = [(pathway, family, name) for pathway in PATHWAYS for name in CHECKS for family in FAMILIES]
    return [told(found[cell]) for cell in order if cell in found and found[cell].kind == "refuse"]


def summary_of(found: Outcomes, pathway: str, family: str) -> str:
    """Counts of one pathway on one family."""
    kinds = [one.kind for (own, other, _), one in found.items() if (own, other) == (pathway, family)]
    failed = f" {kinds.count('fail')} {FAIL}" if "fail" in kinds else ""
    return f"{kinds.count('pass')} + {kinds.count('refuse')}{failed}"


def mark(one: Outcome | None, sentences: Mapping[str, str]) -> str:
    """What stands in a cell."""
    if one is None:
        return NOT_RUN
    return {"pass": PASS, "fail": FAIL}.get(one.kind) or sentences[told(one)]


def escaped(text: str) -> str:
    """A sentence on one line, with nothing that Markdown or HTML would take for its own."""
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", type=Path, help="JSON file of outcomes")
    outcomes = run_cells(cells(), parser.parse_args().keep)
    PAGE.write_text(page(outcomes), encoding="utf-8")
    sys.exit(any(one.kind == "fail" for one in outcomes.values()))
