"""`nlft export`: from a run to a PEFT directory that holds what was measured, or to nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import nlft
from nlft.adapter import WEIGHTS
from nlft.base import FrozenBase, load_base
from nlft.cargo import Cargo, find_cargo
from nlft.checkpoint import holds_nothing, write_folder
from nlft.config import Recipe
from nlft.continuing import continued_from
from nlft.counterpart import counterpart_of
from nlft.data.domain import load_domains
from nlft.errors import NlftError
from nlft.loading import base_note, put_on
from nlft.manifest import FILE as MANIFEST
from nlft.manifest import BaseNote, Manifest, Origin, TokenizerNote, describe_files, write_manifest
from nlft.measure.items import read_run_items, write_items, write_runs
from nlft.measure.summary import summary_of
from nlft.pathways.base_sample import sample_base
from nlft.pathways.lifecycle import kind_of
from nlft.pathways.task import TaskPeftConfig
from nlft.prepare import Prepared, prepare
from nlft.recipes import dump_recipe
from nlft.report.card import benchmark_results, card_text, draw_matrix
from nlft.testimony import hear, witness_rows, write_testimony
from nlft.verification import Verified, digest_tensors, stored_tensors, tokenizer_digest, verify

DTYPES = ("float32", "bfloat16", "float16")
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
) -> Exported:
    """Writes an adapter with its card, recipe, results and witness, after a fresh process has verified it.

    Args:
        run: a result folder of `nlft train`, a cell of a comparison, or an adapter's folder.
        out: a folder that holds nothing yet.
        dtype: of what was learned; keys, thresholds, whitening and statistics stay as they are.
        rescore: score tasks and probes again in the fresh process.
        force: replace an older export in `out`.

    Raises:
        NlftError: there is no such adapter, or it is not what was measured; then nothing is left at `out`.
    """
    console, folder = console or Console(quiet=True), Path(out).expanduser().resolve()
    if dtype not in DTYPES:
        raise NlftError(f"--dtype: {dtype!r} is none of {', '.join(DTYPES)}.", "Learned rows are floats.")
    check_place(folder, force)
    cargo = find_cargo(run, console)
    base = load_base(cargo.recipe.base if cargo.recipe else base_note(cargo.weights))
    prepared, missing = rows_of(cargo.recipe, base)
    model = put_on(cargo.weights, base.model)
    shorten(model, dtype)
    found: dict[str, Any] = {}

    def write(partial: Path) -> None:
        found["manifest"], found["note"] = write_adapter(partial, cargo, base, model, prepared, dtype)
        found["verified"] = verify(partial, rescore=rescore, console=console, recipe=cargo.recipe_file, exact=True)
        found["verified"].require()
        found["manifest"] = write_card(partial, found["manifest"], found["verified"].rescored, cargo)

    write_folder(folder, write, "The exported adapter")
    manifest: Manifest = found["manifest"]
    note = found["note"] + (f" ({missing})" if missing else "")
    return Exported(folder, manifest, found["verified"], parts_of(folder, model), note)


def check_place(folder: Path, force: bool) -> None:
    """Refuses a folder that holds something.

    Raises:
        NlftError: it does, and is no older export or nobody said that it may go.
    """
    if holds_nothing(folder):
        return
    if not (folder / MANIFEST).is_file():
        raise NlftError(f"{folder} is not empty.", "Give a folder of its own.")
    if not force:
        raise NlftError(f"{folder} holds an exported adapter.", "Replace it with --force, or give another folder.")


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
    folder: Path, cargo: Cargo, base: FrozenBase, model: Any, prepared: Prepared | None, dtype: str
) -> tuple[Manifest, str]:
    """Everything but the card: PEFT's files, witness, recipe, results, and a first manifest."""
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
    quantization = cargo.recipe.base.quantization if cargo.recipe else "none"
    manifest = Manifest(
        base=BaseNote(
            model=base.name,
            revision=base.revision,
            sha256=base.fingerprint,
            dtype=str(base.model.dtype).removeprefix("torch."),
            quantization=quantization,
        ),
        tokenizer=TokenizerNote(model=base.name, revision=base.revision, sha256=tokenizer_digest(base.tokenizer)),
        peft_type=kind_of(config),
        method=next(iter(cargo.recipe.methods)) if cargo.row and cargo.recipe else None,
        tasks=tasks_of(cargo, config),
        dtype=dtype,
        learned_bytes=sum(short[name].nbytes for name in learned),
        calibration_bytes=sum(tensor.nbytes for tensor in fixed.values()),
        calibration_sha256=digest_tensors(fixed),
        files=describe_files(folder),
        lora=counterpart_of(cargo.run, base.model.config),
        continued_from=origin_of(cargo.run) if cargo.row else None,
        versions={name: version(name) for name in ("peft", "transformers", "torch")} | {"nlft": nlft.__version__},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    write_manifest(folder, manifest)
    whose = "tests of the recipe's tasks and probes" if of_tasks else "fixed tokens"
    return manifest, f"{len(ids)} rows of {whose}"


def origin_of(run: Path) -> Origin | None:
    """The adapter that the run went on from; of a folder its name alone."""
    start = continued_from(run)
    if start is None:
        return None
    name = start["name"] if start["revision"] else Path(start["name"]).name
    return Origin(name=name, revision=start["revision"], sha256=start["sha256"])


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
    write_runs(results / "runs.parquet", [cargo.row])
    config = results / "config.yaml"  # where a summary looks for it
    shutil.copyfile(folder / "recipe.yaml", config)
    summary = summary_of(results)
    config.unlink()
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    (results / "summary.json").write_text(text, encoding="utf-8")


def write_card(folder: Path, manifest: Manifest, rescored: str | None, cargo: Cargo) -> Manifest:
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
    (folder / "README.md").write_text(card_text(manifest, summary, cargo.row, recipe), encoding="utf-8")
    manifest = manifest.model_copy(update={"files": describe_files(folder)})
    write_manifest(folder, manifest)
    return manifest


def portable(recipe: Recipe) -> Recipe:
    """The recipe without what is of this machine alone: its device, its output folder, folders above a file.

    A path below the current folder becomes relative to it; another absolute one is left with its last part.
    """

    def shown(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: shown(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [shown(entry) for entry in value]
        path = Path(value).expanduser() if isinstance(value, str) and value.startswith(("/", "~")) else None
        if path is None or not path.is_absolute():
            return value
        here = Path.cwd()
        return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name

    data = recipe.model_dump()
    base = data.pop("base") | {"device": "auto"}
    return Recipe.model_validate({**shown(data), "base": base, "out": None})


def parts_of(folder: Path, model: Any) -> dict[str, int]:
    """Bytes by part: learned and calibrated tensors by their own names, then the other files."""
    learned, _ = stored_tensors(model)
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
