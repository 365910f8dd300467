"""Holds an exported directory against what was measured, in a process that knows nothing of the one that wrote it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict
from rich.console import Console
from torch import Tensor

from nlft.adapter import read_config
from nlft.base import FrozenBase, load_base, name_of
from nlft.data.domain import load_domains
from nlft.digest import digest_tensors
from nlft.errors import NlftError, reason
from nlft.found_recipe import own_recipe
from nlft.loading import base_note, put_on, vouched
from nlft.manifest import Manifest, read_manifest, sha256_of, whole_manifest
from nlft.measure.items import read_items, read_runs
from nlft.pathways.part import TaskPart
from nlft.premises import NOTHING, check_exported
from nlft.prepare import prepare
from nlft.rescoring import Check, compare_items
from nlft.scoring import measure
from nlft.testimony import Place, cross_examine, read_testimony

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Nats by which a log-probability may differ on another machine, by the dtype of the base."""
FULL = "This machine has too little memory for the base beside what runs on it: end that, or use a larger machine."
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
"""So that what the process says in the end is about its failure."""
ENTRY = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv[1]];"
    " from nlft.verification import main; main(*sys.argv[2:])"
)
"""What the fresh process runs, given where this nlft lies. `python -m` would import what lies in the current folder,
which may be a stranger's clone with a file `torch.py`."""
CARD = "README.md"


@dataclass(frozen=True)
class Verified:
    """What was checked."""

    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Nothing that was checked failed."""
        return all(check.ok is not False for check in self.checks)

    @property
    def sentence(self) -> str:
        """What may be said of a directory of which nothing failed."""
        left = [check.name for check in self.checks if check.ok is None]
        if left:
            return f"Nothing that was checked failed; not checked: {', '.join(left)}."
        measured = any(check.name.startswith("score ") for check in self.checks)
        return f"It is what was {'measured' if measured else 'exported'}."

    @property
    def rescored(self) -> str | None:
        """What came of scoring again, in a sentence; None where nothing was measured."""
        columns = [check for check in self.checks if check.name.startswith("score ")]
        compared = [check for check in columns if check.ok is not None]
        if columns and not compared:
            return "Not scored again: the rows here are others than those measured."
        if columns:
            within, left = sum(check.ok is True for check in compared), len(columns) - len(compared)
            others = f" Of {left} more the rows here are others than those measured." if left else ""
            return (
                f"A fresh process scored {within} of {len(compared)} columns the same, within the stated tolerance."
                + others
            )
        return next((f"Not scored again: {check.found}." for check in self.checks if check.name == "scores"), None)

    def require(self) -> None:
        """Raises for what failed.

        Raises:
            NlftError: naming every check that failed.
        """
        failed = [f"{check.name}: {check.found}, wanted {check.wanted}" for check in self.checks if check.ok is False]
        if failed:
            raise NlftError(
                f"The adapter is not what was measured. {'; '.join(failed)}.", "Nothing of it should be used."
            )


def verify(
    folder: Path,
    *,
    rescore: bool = True,
    any_base: bool = False,
    console: Console | None = None,
    recipe: Path | None = None,
    exact: bool = False,
) -> Verified:
    """Loads an exported directory in a fresh process and compares it with its witness and its results.

    Args:
        rescore: score tasks and probes again where their rows are here.
        any_base: take the base as it is, whatever its weights.
        recipe: names base and rows in place of the directory's own `recipe.yaml`.
        exact: the same machine wrote it, so logits must be the same bits.

    Raises:
        NlftError: the directory cannot be read or loaded.
    """
    check_exported(folder)
    manifest = whole_manifest(folder)
    assert manifest is not None
    size = sum(note.bytes for note in manifest.files.values())
    files = Check("files", f"{len(manifest.files)} files, {size:,} bytes", "those of nlft.json", True)
    asked = {"rescore": rescore, "any_base": any_base, "recipe": str(recipe) if recipe else None, "exact": exact}
    asked["threads"] = torch.get_num_threads()  # sums are other bits with another number of them
    with tempfile.TemporaryDirectory(prefix="nlft-") as place:
        answer = Path(place) / "answer.json"
        # Its own interpreter: nothing of this process's memory, patches or registered classes reaches it.
        home = str(Path(__file__).resolve().parent.parent)
        words = [sys.executable, "-c", ENTRY, home, str(folder.resolve()), str(answer), json.dumps(asked)]
        console = console or Console(quiet=True)
        with console.status("Loading it in a fresh process" + (" and scoring it again" if rescore else "")):
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=os.environ | QUIET,
            )
        if not answer.is_file():
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise NlftError(
                f"The process that loads {folder} ended with code {done.returncode}: {said[-1] if said else 'no word'}",
                f"If it was killed, {FULL[0].lower()}{FULL[1:]}",
            )
        found = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in found:
        raise NlftError(*found["error"])
    return Verified([files, *check_card(folder, manifest), *(Check(**check) for check in found["checks"])])


def check_card(folder: Path, manifest: Manifest) -> list[Check]:
    """Whether the card, which its owner may edit, is the one that was exported; nothing before there is one."""
    note, path = manifest.files.get(CARD), folder / CARD
    if note is None:
        return []
    if not path.is_file():
        return [Check("card", "is not here", "", None)]
    if path.stat().st_size == note.bytes and sha256_of(path) == note.sha256:
        return [Check("card", "as exported", "", True)]
    return [Check("card", "edited since the export; its numbers were not checked", "", None)]


def examine(folder: Path, rescore: bool, any_base: bool, recipe: str | None, exact: bool) -> list[Check]:
    """What the fresh process does.

    Raises:
        NlftError: the directory cannot be read or loaded.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise NlftError(f"{folder} has no nlft.json.", NOTHING)
    # One that came with the directory says nothing about the base, which the manifest names.
    base = load_base(own_recipe(Path(recipe)).base if recipe else base_note(folder))
    checks = [check_base(manifest, base, any_base, read_config(folder))]
    if manifest.tokenizer is not None:
        found = tokenizer_digest(base.tokenizer)
        checks.append(same("tokenizer", found, manifest.tokenizer.sha256, any_base))
    model: Any = put_on(folder, base.model, any_base)
    learned, fixed = stored_tensors(model)
    checks.append(same("calibration", calibration_digest(fixed), manifest.calibration_sha256))
    checks.append(check_numbers(learned))
    said = read_testimony(folder, base.model.get_input_embeddings().num_embeddings)
    again, difference = cross_examine(model, said)
    at_home = again.place == said.place
    bits = again.on_sha256 == said.on_sha256
    # A quarter of what the adapter does: a tolerance above that would let an adapter pass that does nothing.
    tolerance = 0.0 if exact and at_home else min(TOLERANCE.get(again.place.dtype, 0.25), said.effect / 4)
    shown = "the same bits" if bits else f"log-probabilities differ by up to {difference:.2g} nats"
    wanted = "the same bits" if not tolerance else f"within {tolerance:g} nats of what was exported"
    within = bits or (tolerance > 0 and difference <= tolerance)
    checks.append(Check("logits, on", shown, wanted, None if any_base and not within else within))
    if at_home and not any_base:
        equal = again.off_sha256 == said.off_sha256
        off = "the same bits" if equal else "other bits"
        checks.append(Check("logits, off", off, "the base's bits", equal if exact else equal or None))
    effect = f"logits moved by up to {again.effect:.3g}"
    checks.append(Check("different from the base", effect, f"more than 0 ({said.effect:.3g})", again.effect > 0))
    if not rescore:
        return [*checks, Check("scores", "skipped (--no-rescore)", "", None)]
    file = Path(recipe) if recipe else folder / "recipe.yaml"
    return checks + check_scores(folder, manifest, file, model, base, again.place, bits)


def check_base(manifest: Manifest, base: FrozenBase, any_base: bool, config: Any) -> Check:
    """The base's weights.

    Raises:
        NlftError: they are others than the adapter's sample says, and not any base will do.
    """
    dtype = name_of(base.model.dtype)
    if manifest.base.sha256 != base.fingerprint and dtype != manifest.base.dtype:
        return Check("base", f"{base.name} in {dtype}", f"{manifest.base.dtype}, so hashes differ", None)
    if manifest.base.sha256 not in (None, base.fingerprint) and not any_base and vouched(config, base):
        found = f"sha256 {base.fingerprint[:12]}…, but the weights that the adapter notes"
        return Check(f"base {base.name}", found, f"sha256 {str(manifest.base.sha256)[:12]}…", None)
    return same(f"base {base.name}", base.fingerprint, manifest.base.sha256, any_base)


def same(name: str, found: str | None, wanted: str | None, lenient: bool = False) -> Check:
    """Compares two hashes; one that nobody took is no failure, and none where another one is allowed."""
    shown, asked = (f"sha256 {value[:12]}…" if value else "none" for value in (found, wanted))
    ok = None if wanted is None and found is not None else found == wanted
    return Check(name, shown, asked, None if lenient and not ok else ok)


def check_numbers(learned: dict[str, Tensor]) -> Check:
    """Learned rows are there and finite."""
    odd = [name for name, tensor in learned.items() if not bool(torch.isfinite(tensor).all())]
    count = sum(tensor.numel() for tensor in learned.values())
    found = f"{odd[0]} is not finite" if odd else f"{count:,} finite numbers"
    return Check("learned rows", found, "finite numbers", not odd and count > 0)


def check_scores(
    folder: Path, manifest: Manifest, file: Path, model: Any, base: FrozenBase, place: Place, same_bits: bool
) -> list[Check]:
    """Tasks and probes, scored again."""
    table = folder / "results" / "items.parquet"
    if not table.is_file() or not file.is_file():
        return []
    items = read_items(table)
    last = max((item.stage for item in items), default=0)
    before = [item for item in items if item.stage == last and item.condition == "on"]
    try:
        recipe = own_recipe(file)
        prepared = prepare(recipe, load_domains(recipe), base)
    except NlftError as error:
        # Rows stay with their owner, so who has only the adapter cannot score it.
        return [Check("scores", f"the rows are not here ({error.message.splitlines()[0].rstrip('.')})", "", None)]
    after = measure(model, base, recipe, prepared, last, "on")
    [row, *_] = read_runs(folder / "results" / "runs.parquet")
    torch_of_run = json.loads(row["versions"] or "{}").get("torch")
    here = (row["dtype"], torch_of_run) == (place.dtype, place.torch) and place.device.startswith(row["device"] or "?")
    return compare_items(before, after, same_bits and here, lossy=manifest.dtype != "float32")


def stored_tensors(model: Any, adapter: str = "default") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What PEFT saves of an adapter: what was learned, and what calibration left.

    A pathway keeps what must never be trained in buffers, and so do PEFT's own methods (VeRA's random matrices). The
    parts of finished tasks are buffers too, which know their names.
    """
    tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    parts = [module for module in model.modules() if isinstance(module, TaskPart)]
    trained = [*model.parameters(), *(getattr(part, name) for part in parts for name in part.names)]
    places = {tensor.data_ptr() for tensor in trained if tensor.numel()}
    learned = {name: tensor for name, tensor in tensors.items() if tensor.data_ptr() in places}
    return learned, {name: tensor for name, tensor in tensors.items() if name not in learned}


def calibration_digest(fixed: dict[str, Tensor]) -> str | None:
    """sha256 of what calibration left of an adapter; None of nothing."""
    return digest_tensors(fixed.items()) if fixed else None


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 over a tokenizer's sorted vocabulary and its special tokens."""
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    words = [sorted(tokenizer.get_vocab().items()), special]
    return hashlib.sha256(json.dumps(words, ensure_ascii=True).encode()).hexdigest()


def main(folder: str, answer: str, asked: str) -> None:
    """Entry of the fresh process: writes checks, or an error's sentence and hint, as JSON."""
    wanted = json.loads(asked)
    torch.set_num_threads(wanted.pop("threads"))
    try:
        found: dict[str, Any] = {"checks": [asdict(check) for check in examine(Path(folder), **wanted)]}
    except NlftError as error:
        found = {"error": [error.message, error.hint]}
    except (torch.OutOfMemoryError, MemoryError) as error:
        found = {"error": [f"The fresh process has too little memory for the base: {reason(error)}", FULL]}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")
