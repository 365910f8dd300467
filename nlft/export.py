"""`nlft export`: from a run to a PEFT directory that holds what was measured, or to nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import nlft
from nlft.base import FrozenBase, load_base, name_of
from nlft.cargo import Cargo, find_cargo
from nlft.checkpoint import write_folder
from nlft.config import BaseConfig, Recipe
from nlft.continuing import continued_from
from nlft.counterpart import counterpart_of
from nlft.data.domain import load_domains
from nlft.errors import NlftError
from nlft.loading import DTYPES, base_note, free_memory, put_on
from nlft.manifest import BaseNote, Manifest, Origin, TokenizerNote, describe_files, write_manifest
from nlft.measure.items import read_run_items, write_items, write_runs
from nlft.measure.summary import summary_of
from nlft.pathways.base_sample import sample_base
from nlft.pathways.lifecycle import kind_of
from nlft.pathways.task import TaskPeftConfig
from nlft.premises import check_place
from nlft.prepare import Prepared, prepare
from nlft.recipes import dump_recipe
from nlft.remote import WEIGHTS
from nlft.report.card import benchmark_results, card_text, draw_matrix
from nlft.report.card_sources import portable
from nlft.rescoring import Check
from nlft.testimony import hear, witness_rows, write_testimony
from nlft.verification import Verified, calibration_digest, stored_tensors, tokenizer_digest, verify

SILENT = (
    "The adapter computes what its base does on {n} rows, so there is nothing to export. Train it longer or with a"
    " larger learning rate."
)


@dataclass(frozen=True)
class Exported:
    """An exported directory."""

    folder: Path
    manifest: Manifest
    verified: Verified
    parts: dict[str, int]
    """Bytes of learned and of calibrated tensors by their names, and of the other files together."""
    rows_note: str
    """What `witness.safetensors` holds."""


def export(
    run: str | Path,
    out: str | Path,
    dtype: str = "float32",
    rescore: bool = True,
    force: bool = False,
    console: Console | None = None,
    license: str | None = None,
) -> Exported:
    """Writes an adapter with its card, recipe, results and witness, after a fresh process has verified it.

    Args:
        run: a result folder of `nlft train`, a cell of a comparison, or an adapter's folder.
        out: a folder that holds nothing yet.
        dtype: of what was learned; keys, thresholds, whitening and statistics stay as they are.
        rescore: score tasks and probes again in the fresh process.
        force: replace an older export in `out`.
        license: of the adapter, for its card: an id of the Hub, or words.

    Raises:
        NlftError: there is no such adapter, or it is not what was measured; then nothing is left at `out`.
    """
    console, folder = console or Console(quiet=True), Path(out).expanduser().resolve()
    if dtype not in DTYPES:
        raise NlftError(f"--dtype: {dtype!r} is none of {', '.join(DTYPES)}.", "Learned rows are floats.")
    check_place(folder, force)
    cargo = find_cargo(run, console)
    ready = [open_cargo(cargo, dtype)]  # a list, so that it can be let go of
    found: list[Exported] = []

    def write(partial: Path) -> None:
        manifest, learned, note = write_adapter(partial, cargo, *ready.pop(), dtype)
        free_memory()  # nothing holds the base any more, and the fresh process loads it again
        verified = verify(partial, rescore=rescore, console=console, recipe=cargo.recipe_file, exact=True)
        verified.require()
        if cargo.row is not None and cargo.same is None:
            said = "its run noted no hash of it, so it could not be compared"
            verified.checks.append(Check("adapter of the run", said, "the one that was measured", None))
        manifest = write_card(partial, manifest, verified.rescored, cargo, license)
        found.append(Exported(folder, manifest, verified, parts_of(partial, learned), note))
        check_place(folder, force)  # again: what lies there goes now

    write_folder(folder, write, "The exported adapter")
    return found[0]


def open_cargo(cargo: Cargo, dtype: str) -> tuple[BaseConfig, FrozenBase, Any, Prepared | None, str]:
    """The base with its settings, the PEFT model with what was learned in a dtype, the recipe's rows, and why there are
    none."""
    config = cargo.recipe.base if cargo.recipe else base_note(cargo.weights)
    base = load_base(config)
    prepared, missing = rows_of(cargo.recipe, base)
    model = put_on(cargo.weights, base.model)
    shorten(model, dtype)
    return config, base, model, prepared, missing


def rows_of(recipe: Recipe | None, base: FrozenBase) -> tuple[Prepared | None, str]:
    """The recipe's rows, and why there are none."""
    if recipe is None:
        return None, "the adapter lies in no run, so there are no rows"
    try:
        return prepare(recipe, load_domains(recipe), base), ""
    except NlftError as error:
        return None, f"the recipe's rows are not here: {error.message.splitlines()[0]}"


def shorten(model: Any, dtype: str) -> None:
    """Rounds what was learned to a dtype, so that the model in memory is what will be stored.

    Raises:
        NlftError: a number is too large for it.
    """
    with torch.no_grad():
        for name, tensor in stored_tensors(model)[0].items():
            rounded = tensor.to(getattr(torch, dtype)).to(tensor.dtype)
            if not bool(torch.isfinite(rounded).all()):
                raise NlftError(f"{name} holds a number that {dtype} cannot hold.", "Use --dtype bfloat16 or float32.")
            tensor.copy_(rounded)


def write_adapter(
    folder: Path,
    cargo: Cargo,
    settings: BaseConfig,
    base: FrozenBase,
    model: Any,
    prepared: Prepared | None,
    missing: str,
    dtype: str,
) -> tuple[Manifest, frozenset[str], str]:
    """Everything but the card: PEFT's files, witness, recipe, results, and a first manifest.

    Args:
        settings: of the base.
        missing: why there are no rows of a recipe.

    Returns:
        The manifest, the names of the tensors that were trained, and what the witness holds.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base.name, base.revision
    if isinstance(config, TaskPeftConfig) and not config.base_sample:  # an adapter of version 0.1
        config.base_sample, config.base_fingerprint = sample_base(model), base.fingerprint
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    learned, fixed = stored_tensors(model)
    stored = load_file(folder / WEIGHTS)
    # PEFT has written a float32 copy of each; only what was trained may be shorter.
    short = {name: tensor.to(getattr(torch, dtype)) if name in learned else tensor for name, tensor in stored.items()}
    save_file(short, folder / WEIGHTS, metadata={"format": "pt"})

    ids, mask, of_tasks = witness_rows(prepared, base.tokenizer, base.model.get_input_embeddings().num_embeddings)
    said = hear(model, ids, mask, of_tasks)
    if not said.effect:
        raise NlftError(SILENT.format(n=len(ids)))
    write_testimony(folder, said)
    if cargo.recipe is not None:
        (folder / "recipe.yaml").write_text(dump_recipe(portable(cargo.recipe)), encoding="utf-8")
    if cargo.row is not None:
        write_results(folder, cargo)
    manifest = Manifest(
        base=BaseNote(
            model=base.name,
            revision=base.revision,
            sha256=base.fingerprint,
            dtype=name_of(base.model.dtype),
            quantization=settings.quantization,
        ),
        tokenizer=TokenizerNote(model=base.name, revision=base.revision, sha256=tokenizer_digest(base.tokenizer)),
        peft_type=kind_of(config),
        method=next(iter(cargo.recipe.methods)) if cargo.row and cargo.recipe else None,
        tasks=tasks_of(cargo, config),
        dtype=cast(Any, dtype),
        learned_bytes=sum(short[name].nbytes for name in learned),
        calibration_bytes=sum(tensor.nbytes for tensor in fixed.values()),
        calibration_sha256=calibration_digest(fixed),
        files=describe_files(folder),
        lora=counterpart_of(cargo.run, base.model.config),
        continued_from=origin_of(cargo.run) if cargo.row else None,
        versions={name: version(name) for name in ("peft", "transformers", "torch")} | {"nlft": nlft.__version__},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    write_manifest(folder, manifest)
    whose = "tests of the recipe's tasks and probes" if of_tasks else "fixed tokens"
    return manifest, frozenset(learned), f"{len(ids)} rows of {whose}" + (f" ({missing})" if missing else "")


def origin_of(run: Path) -> Origin | None:
    """The adapter that the run went on from."""
    start = continued_from(run)
    return None if start is None else Origin(**start | {"name": shown_start(start)})


def shown_start(start: Mapping[str, Any]) -> str:
    """The name of an adapter that a run went on from: on the Hub whole, of a folder the last part."""
    return start["name"] if start["revision"] else Path(start["name"]).name


def tasks_of(cargo: Cargo, config: Any) -> list[str]:
    """What was learned, in order: the adapter's own list, else the run's."""
    listed = list(getattr(config, "tasks", None) or {})
    return listed or list((cargo.row or {}).get("order") or [])


def write_results(folder: Path, cargo: Cargo) -> None:
    """The scores of this run alone, and their summary with the recipe as it is exported."""
    assert cargo.row is not None
    results = folder / "results"
    results.mkdir()
    name = cargo.row["run_id"]
    write_items(results / "items.parquet", name, read_run_items(cargo.run / "items.parquet").get(name, []))
    start = json.loads(cargo.row["start"] or "null")
    noted = None if start is None else json.dumps(start | {"name": shown_start(start)})
    write_runs(results / "runs.parquet", [cargo.row | {"start": noted}])
    config = results / "config.yaml"  # where a summary looks for it
    shutil.copyfile(folder / "recipe.yaml", config)
    summary = summary_of(results)
    config.unlink()
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    (results / "summary.json").write_text(text, encoding="utf-8")


def write_card(
    folder: Path, manifest: Manifest, rescored: str | None, cargo: Cargo, license: str | None = None
) -> Manifest:
    """The card with its picture and benchmarks, and the manifest with what the check has said."""
    path = folder / "results" / "summary.json"
    summary: Mapping[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if summary is not None and cargo.row is not None:
        draw_matrix(summary, folder / "matrix.png")
        for name, text in benchmark_results(summary, cargo.row).items():
            (folder / ".eval_results").mkdir(exist_ok=True)
            (folder / ".eval_results" / name).write_text(text, encoding="utf-8")
    manifest = manifest.model_copy(update={"rescored": rescored, "files": describe_files(folder)})
    recipe = portable(cargo.recipe) if cargo.recipe else None
    text = card_text(manifest, summary, cargo.row, recipe, license=license)
    (folder / "README.md").write_text(text, encoding="utf-8")
    manifest = manifest.model_copy(update={"files": describe_files(folder)})
    write_manifest(folder, manifest)
    return manifest


def parts_of(folder: Path, learned: frozenset[str]) -> dict[str, int]:
    """Bytes by part: learned and calibrated tensors by their own names, then the other files.

    Args:
        learned: names of the tensors that were trained.
    """
    parts: dict[str, int] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        kind = "learned" if name in learned else "calibration"
        label = f"{kind}: {leaf(name)}"
        parts[label] = parts.get(label, 0) + tensor.nbytes
    others = [path for path in folder.rglob("*") if path.is_file() and path.name != WEIGHTS]
    return dict(sorted(parts.items())) | {"other files": sum(path.stat().st_size for path in others)}


def leaf(name: str) -> str:
    """The last word of a tensor's name that says what it is: `values`, `lora_A`, `keys`."""
    words = [word for word in name.split(".") if not word.isdigit()]
    return words[-2] if words[-1] in ("weight", "bias") and len(words) > 1 else words[-1]
