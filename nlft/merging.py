"""An adapter merged into its base's weights, where that is possible, and measured again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from torch import Tensor

from nlft.adapter import read_config, recipe_of
from nlft.base import FrozenBase, load_base, name_of, named_tensors
from nlft.cargo import check_linear
from nlft.checkpoint import holds_nothing, write_folder
from nlft.config import BaseConfig, Recipe
from nlft.errors import NlftError, reason
from nlft.found_recipe import beside
from nlft.loading import check_fingerprint, free_memory, put_on
from nlft.manifest import whole_manifest
from nlft.measure.items import write_items
from nlft.methods import build_method
from nlft.pathways.lifecycle import kind_of
from nlft.prepare import Prepared, prepare
from nlft.remote import CONFIG, fetch_adapter
from nlft.report.merged_card import Merged, MergedScore, Rounding, merged_card
from nlft.rescore import scored_domains, side_by_side, weights_of
from nlft.scoring import measure
from nlft.testimony import logits_of, witness_rows
from nlft.types import Item

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of a logit that a merge may make, by dtype, as a share of the largest logit."""
KEEP = "Keep the adapter beside the base (`nlft export RUN DIR`)"


def merge(
    source: str,
    out: Path,
    *,
    recipe: Recipe | None = None,
    onto_full_precision: bool = False,
    any_base: bool = False,
    rescore: bool = True,
    console: Console | None = None,
) -> Merged:
    """Merges a linear adapter into its base, scores what was written, and keeps it if it computes the same.

    Args:
        source: a run, an adapter's folder, or USER/NAME[@REVISION] on the Hub.
        out: folder of the merged model; written whole or not at all.
        recipe: base and columns; a run and an exported adapter bring their own.
        onto_full_precision: merge into the unquantised base where the recipe's is quantised.
        any_base: the base may be another one than the adapter was made for.
        rescore: score tasks and probes before and after; else logits alone are compared, on fixed tokens.

    Raises:
        NlftError: the adapter is not linear, the base is quantised, or the merged model computes something else.
    """
    console, out = console or Console(quiet=True), out.expanduser().resolve()
    if not holds_nothing(out):
        raise NlftError(f"{out} is not empty.", "Give another folder.")
    folder = fetch_adapter(source)
    manifest = whole_manifest(folder)
    weights = weights_of(folder)
    check_linear(source, weights)
    recipe = recipe or recipe_beside(folder, weights, console)
    if recipe is None:
        raise NlftError(
            f"{source} brings no recipe, and without one nothing can be measured again.", "Name one with --recipe."
        )
    quantised = None if recipe.base.quantization == "none" else recipe.base.quantization
    if quantised is not None and not onto_full_precision:
        raise NlftError(
            f"The recipe's base is quantised ({quantised}), and rounding to {quantised} would take away much of what"
            " was learned, so nothing is merged into it.",
            f"Add --onto-full-precision to merge into the unquantised base, with the scores of both. Or: {KEEP}.",
        )
    domains = scored_domains(recipe, source) if rescore else None
    base = load_base(recipe.base)
    if not any_base and (weights / CONFIG).is_file():
        remark = check_fingerprint(manifest, base, read_config(weights))
        if remark is not None:
            console.print(remark, markup=False, highlight=False, soft_wrap=True)
    prepared, before = None if domains is None else prepare(recipe, domains, base), None
    if quantised is not None and prepared is not None:
        console.print(f"Scoring the {quantised} base with the adapter on.", highlight=False)
        before = measure(load_adapted(source, weights, base, recipe, any_base), base, recipe, prepared, 1, "on")
    if quantised is not None:
        del base
        free_memory()
        base = load_base(recipe.base.model_copy(update={"quantization": "none"}))
    if getattr(base.model, "is_quantized", False):
        raise NlftError(
            f"The weights of {recipe.base.model} are stored quantised, and nothing is merged into such weights.",
            f"Name the unquantised base in a recipe (base.model) and give that with --recipe. Or: {KEEP}.",
        )
    model = load_adapted(source, weights, base, recipe, any_base)
    told = ask(model, base, recipe, prepared, before)
    core, rounding = merge_weights(model, told.kind)
    parts = [core, base.tokenizer]
    del base, model, core
    found: list[Merged] = []

    def write(partial: Path) -> None:
        while parts:
            parts.pop(0).save_pretrained(partial)
        free_memory()  # nothing holds the base any more, and what was written is as large
        scores, after, logits, allowed = score_stored(partial, recipe, prepared, told)
        merged = Merged(out, told.kind, scores, logits, allowed, name_of(told.dtype), quantised, rounding)
        found.append(merged)
        write_results(partial, merged, told.items, after)
        (partial / "README.md").write_text(merged_card(merged, recipe.base, source), encoding="utf-8")

    if prepared is not None:
        console.print("Scoring the merged model as it was written.", highlight=False)
    write_folder(out, write, "The merged model")
    return found[0]


@dataclass(frozen=True)
class Told:
    """What the base with the adapter on has said, which stays when both are let go of."""

    rows: tuple[Tensor, Tensor]
    """Ids and mask [N, T] of the witness."""
    logits: Tensor
    """[tokens, V] float32, of them."""
    items: Sequence[Item]
    kind: str
    """PEFT's name of the adapter's kind."""
    dtype: torch.dtype
    """Of the base."""


def ask(model: Any, base: FrozenBase, recipe: Recipe, prepared: Prepared | None, items: Sequence[Item] | None) -> Told:
    """Asks the base with the adapter on.

    Args:
        items: its scores, if they were taken already, of the quantised base.
    """
    ids, mask, _ = witness_rows(prepared, base.tokenizer, model.get_input_embeddings().num_embeddings)
    said = said_of(model, ids, mask)
    if items is None and prepared is not None:
        items = measure(model, base, recipe, prepared, 1, "on")
    return Told((ids, mask), said, items or [], kind_of(model.active_peft_config), base.model.dtype)


def score_stored(
    folder: Path, recipe: Recipe, prepared: Prepared | None, told: Told
) -> tuple[tuple[MergedScore, ...], list[Item], float, float]:
    """Loads what lies on the disk and scores it.

    Returns:
        Scores beside those with the adapter on, its items, the largest difference of a logit, and the largest allowed.

    Raises:
        NlftError: it computes something else.
    """
    stored = load_base(of_folder(recipe.base, folder))
    logits, allowed = compare(told.logits, said_of(stored.model, *told.rows), told.dtype)
    after = [] if prepared is None else measure(stored.model, stored, recipe, prepared, 1, "on")
    lines = side_by_side(told.items, after)
    scores = tuple(MergedScore(column, metric, count, one, two) for column, metric, count, one, two in lines)
    return scores, after, logits, allowed


def recipe_beside(folder: Path, weights: Path, console: Console) -> Recipe | None:
    """The recipe of a run, of the run that an adapter lies in, or of an exported directory."""
    found = beside(folder, console)
    return found[1] if found is not None else recipe_of(weights, None, console)


def load_adapted(source: str, weights: Path, base: FrozenBase, recipe: Recipe, any_base: bool) -> Any:
    """The base with the adapter on.

    Raises:
        NlftError: it does not fit, or there is none to merge.
    """
    if (weights / CONFIG).is_file():
        return put_on(weights, base.model, any_base).eval()
    [method] = recipe.methods.values()  # only the method knows what it saved
    learner = build_method(method)
    if learner.told_task:
        raise NlftError(
            f"{source} cannot be merged: it has an adapter for each task and is told which one to use, and a merged"
            " model cannot be told.",
            f"{KEEP}, or merge one of the folders in {weights} with --recipe.",
        )
    model: Any = learner.load(base, weights)
    if not isinstance(model, PeftModel):
        raise NlftError(f"{source} has no adapter: its weights are whole already.", f"They are in {weights}.")
    return model.eval()


@torch.no_grad()
def merge_weights(model: Any, kind: str) -> tuple[Any, Rounding | None]:
    """Merges the active adapters; weights in half precision are summed in float32 and rounded once.

    Args:
        kind: PEFT's name of the adapter's kind.

    Returns:
        The base's model with the merged weights, each in the dtype that it had, and what rounding took.

    Raises:
        NlftError: PEFT cannot merge adapters of this kind, or a merged weight is not finite.
    """
    half = (torch.bfloat16, torch.float16)
    before = {name: tensor.data for name, tensor in named_tensors(model) if tensor.dtype in half}
    if before:
        model.float()
    try:
        core = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise NlftError(f"PEFT does not merge this {kind} adapter: {reason(error)}", f"{KEEP}.") from error
    sums = torch.zeros(4, dtype=torch.float64)
    for name, tensor in named_tensors(core):
        old = before.get(name)
        if old is None:
            continue
        rounded, change = tensor.data.to(old.dtype), tensor.data - old.float()
        moved = change != 0
        lost = rounded.float() - tensor.data
        parts = (
            change.double().square().sum(),
            lost.double().square().sum(),
            moved.sum(),
            (moved & (rounded == old)).sum(),
        )
        sums += torch.stack([part.double().cpu() for part in parts])
        tensor.data = rounded
    if not before:
        return core, None
    wanted, lost, moved, still = sums.tolist()
    return core, Rounding(math.sqrt(lost / wanted) if wanted else 0.0, still / moved if moved else 0.0)


def of_folder(base: BaseConfig, folder: Path) -> BaseConfig:
    """The base's settings for a model that lies in a folder, unquantised."""
    return base.model_copy(update={"model": str(folder), "revision": None, "quantization": "none"})


def said_of(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits at every token that is no padding, [N, V] float32.

    Raises:
        NlftError: one is no number.
    """
    said = logits_of(model, ids, mask, "on")[mask.bool()]
    if bool(said.isnan().any()):
        raise NlftError("The model computes logits that are no numbers (NaN).", "Take a whole copy of the adapter.")
    return said


def compare(said: Tensor, again: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """The largest difference of a logit, and the largest allowed.

    Raises:
        NlftError: it is more than that, or a number is not finite.
    """
    difference = float((said - again).abs().max())
    allowed = TOLERANCE.get(dtype, TOLERANCE[torch.float32]) * max(1.0, float(said.abs().max()))
    if not difference <= allowed:
        raise NlftError(
            f"The merged model computes something else: a logit differs by {difference:.2g} from the base with the"
            f" adapter on, and {allowed:.2g} is allowed in {name_of(dtype)}. Nothing was written.",
            f"{KEEP}, or merge in float32: base.dtype in a recipe that you give with --recipe.",
        )
    return difference, allowed


def write_results(folder: Path, merged: Merged, before: Sequence[Item], after: Sequence[Item]) -> None:
    """Writes `results/`: every item before and after, and the summary as JSON."""
    results = folder / "results"
    results.mkdir()
    if after:
        write_items(results / "items.parquet", "adapter", before)
        write_items(results / "items.parquet", "merged", after)
    facts = {name: value for name, value in asdict(merged).items() if name != "folder"}
    (results / "merge.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
