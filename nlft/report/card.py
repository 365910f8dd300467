"""The model card of an exported adapter: `README.md` with front matter, the picture of its matrix, and what the Hub
reads of its results.

Whatever comes from files is escaped, for Markdown and for HTML: the Hub renders both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nlft.config import Recipe
from nlft.hub import is_hub_model
from nlft.manifest import Manifest
from nlft.measure.unit import show_level, size
from nlft.remote import WEIGHTS
from nlft.report.card_results import (
    Entry,
    Summary,
    benchmark_results,
    cost_grid,
    entry_of,
    model_index,
    score_grid,
    start_of,
)
from nlft.report.card_sources import (
    UNSTATED,
    shown_data,
    shown_model,
    shown_recipe,
    source_grid,
    trained_on,
)
from nlft.report.findings import short_facts
from nlft.report.ledger import integrity_lines
from nlft.report.markdown import fenced_text, grid_text, plain_text
from nlft.snippet import ID, load_lines

__all__ = ["ID", "PICTURE", "benchmark_results", "card_text", "draw_matrix"]

PICTURE = "matrix.png"
LANGUAGE = r"[a-z]{2,3}|code|multilingual"
VERSIONS = {"peft": "PEFT", "transformers": "Transformers", "torch": "PyTorch"}
"""As PEFT writes them into the cards that it edits."""


def card_text(
    manifest: Manifest,
    summary: Summary | None,
    run: Mapping[str, Any] | None,
    recipe: Recipe | None,
    *,
    license: str | None = None,
    language: Sequence[str] = (),
    data_licenses: Mapping[str, str] | None = None,
) -> str:
    """The whole `README.md` of an exported adapter.

    Args:
        manifest: of the exported directory; of its files only the length of the weights is read.
        summary: of the one run, as `summary_of` makes it; None where nothing was measured.
        run: its line of `runs.parquet`.
        recipe: of the run; None for a bare adapter.
        license: of the adapter, an id of the Hub or words, as its maker states it; none is made up.
        language: ISO 639 codes, as the maker states them.
        data_licenses: by the recipe's `path`, as the maker states them.
    """
    entry = entry_of(summary)
    continued = manifest.continued_from is not None
    template = _environment().from_string(
        (files("nlft.report") / "templates" / "card.md.jinja").read_text(encoding="utf-8")
    )
    named = shown_model(manifest.base.model)
    name = recipe.name if recipe else summary["name"] if summary else "adapter"
    return template.render(
        front_matter=Markup(_front_matter(manifest, summary, entry, recipe, name, license, language)),
        title=f"{name}: {manifest.method or manifest.peft_type} on {named}",
        manifest=manifest,
        base=named,
        learned=f", trained on {', then '.join(manifest.tasks)}" if manifest.tasks else "",
        snippet=Markup(fenced_text("\n".join(load_lines(manifest, ID, base=f"path/to/{named}")), "python")),
        placeholder=ID,
        ours=manifest.peft_type.startswith("NLFT_"),
        summary=summary,
        entry=entry,
        facts=short_facts(summary) if summary and entry else [],
        scores=Markup(grid_text(score_grid(summary, entry, continued))) if summary and entry else "",
        picture=PICTURE,
        start=start_of(continued),
        matrix_words=_matrix_words() if entry and entry["matrix"] else "",
        unmeasured=_unmeasured(summary),
        size_lines=_size_lines(manifest),
        costs=Markup(grid_text(cost_grid(entry))) if entry else "",
        license_line=f"Licence of this adapter: {license.strip() if license and license.strip() else UNSTATED}.",
        sources=Markup(grid_text(source_grid(recipe, data_licenses or {}))) if recipe else "",
        base_lines=_base_lines(manifest, summary),
        limits=_limits(manifest, summary, run, entry, recipe),
        recipe_text=Markup(fenced_text(shown_recipe(recipe).rstrip())) if recipe else "",
        versions=_versions(manifest),
    )


def draw_matrix(summary: Summary, path: Path) -> None:
    """Writes the heat map of the run's matrix as PNG to `path`; nothing where no run finished."""
    from nlft.report import matrices

    entry = entry_of(summary)
    if entry is None or not entry["matrix"]:
        return
    with TemporaryDirectory() as folder:  # the picture comes with a table beside it
        path.write_bytes(matrices.draw_matrix(summary, entry, Path(folder)).png.read_bytes())


def _environment() -> Environment:
    """Every value is escaped on its way out, but for text that is Markdown already (`Markup`)."""
    return Environment(
        finalize=lambda value: value if isinstance(value, Markup) else plain_text(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _front_matter(
    manifest: Manifest,
    summary: Summary | None,
    entry: Entry | None,
    recipe: Recipe | None,
    name: str,
    license: str | None,
    language: Sequence[str],
) -> str:
    """The YAML between two lines of `---`."""
    results = model_index(summary, entry, recipe, manifest.continued_from is not None) if summary and entry else []
    tags = ["nlft", "continual-learning", manifest.peft_type.lower().replace("_", "-")]
    base = manifest.base.model if is_hub_model(manifest.base.model) else None
    spoken = [code for code in language if re.fullmatch(LANGUAGE, code)]
    written = (license or "").strip().lower()
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", written) is not None
    data = ModelCardData(
        base_model=base,
        datasets=(trained_on(recipe) if recipe else []) or None,
        eval_results=results or None,
        language=spoken or None,
        library_name="peft",
        license=(written if known else "other") if written else None,
        license_name=None if known or not written else _slug(written),
        model_name=f"{name}-{_slug(manifest.method or manifest.peft_type)}" if results else None,
        pipeline_tag="text-generation",
        tags=[*tags, f"base_model:adapter:{base}"] if base else tags,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:90] or "other"


def _matrix_words() -> str:
    from nlft.report.matrices import WORDS

    return WORDS


def _unmeasured(summary: Summary | None) -> str:
    if summary is None:
        return "Nothing was measured: neither what was learned nor what the base has lost is known."
    return f"{summary['outcome']} What was learned and what the base has lost is not known."


def _size_lines(manifest: Manifest) -> list[str]:
    stored = manifest.files.get(WEIGHTS)
    whole = stored.bytes if stored else manifest.learned_bytes + manifest.calibration_bytes
    text = f"{size(whole)} as exported: {size(manifest.learned_bytes)} that was trained ({manifest.dtype})"
    if manifest.calibration_bytes:
        text += f" and {size(manifest.calibration_bytes)} of keys, thresholds and statistics"
    lines, lora = [f"{text}."], manifest.lora
    if manifest.peft_type == "LORA":
        return lines
    if lora is None:
        return [*lines, "How large a LoRA of equal learning would be is not known."]
    rank = f" of rank {lora.rank}" if lora.rank else ""
    times = f" (this adapter: ×{whole / lora.bytes:.2g})" if lora.bytes else ""
    if lora.computed:
        text = f"A LoRA{rank} on every linear layer of this base takes {size(lora.bytes)}{times}, worked out from its"
        return [*lines, f"{text} shapes; what it would learn was not measured."]
    if lora.learning is not None and lora.learning <= 0:
        return [
            *lines,
            f"Nothing was learned. A LoRA{rank} that learned nothing either takes {size(lora.bytes)}{times}.",
        ]
    learned = f" at {show_level(lora.learning)} of what could be learned" if lora.learning is not None else ""
    return [*lines, f"A LoRA{rank} that learned as much{learned} takes {size(lora.bytes)}{times}."]


def _base_lines(manifest: Manifest, summary: Summary | None) -> list[str]:
    base, origin = manifest.base, manifest.continued_from
    revision = f", revision {base.revision}" if base.revision else ", no revision recorded"
    kept = f", {base.dtype}" if base.dtype else ""
    loaded = f", loaded in {_bits(base.quantization)}" if base.quantization != "none" else ""
    lines = [f"{shown_model(base.model)}{'' if base.model.startswith('builtin:') else revision}{kept}{loaded}."]
    if not is_hub_model(base.model):
        whose = "comes with nlft" if base.model.startswith("builtin:") else "was a folder on its maker's machine"
        lines.append(f"This base {whose}; it is not named by an id of the Hub.")
    found = integrity_lines(summary) if summary else []
    as_loaded = f"base's weights, as loaded in {_bits(base.quantization)}" if loaded else "base's weights"
    found = [line.replace("sha256 of the base's weights", f"sha256 of the {as_loaded}") for line in found]
    lines += found
    if base.sha256 and not any(base.sha256 in line for line in found):
        lines.append(f"sha256 of the {as_loaded}: {base.sha256}")
    if manifest.tokenizer:
        lines.append(f"Tokenizer: {_tokenizer(manifest)}, not copied; sha256 {manifest.tokenizer.sha256}")
    if origin:
        where = f", revision {origin.revision}" if origin.revision else ""
        lines.append(f"Continued from {shown_model(origin.name)}{where}; sha256 of its weights: {origin.sha256}")
    return lines


def _bits(quantization: str) -> str:
    """`4bit` as `4 bit`."""
    return quantization.replace("bit", " bit")


def _tokenizer(manifest: Manifest) -> str:
    own = manifest.tokenizer
    assert own is not None
    if (own.model, own.revision) == (manifest.base.model, manifest.base.revision):
        return "the base's"
    return shown_model(own.model) + (f", revision {own.revision}" if own.revision else "")


def _limits(
    manifest: Manifest,
    summary: Summary | None,
    run: Mapping[str, Any] | None,
    entry: Entry | None,
    recipe: Recipe | None,
) -> list[str]:
    lines = []
    if summary and entry:
        lines.append(_how_many(summary, run, entry))
        if entry.get("told_task"):
            lines.append("It was told each row's task when it was scored: a bound on what it does by itself.")
        lines.append("Nothing but the rows of the table was measured; safety and bias were not, unless a row asks.")
    if manifest.calibration_bytes:
        text = f"on {shown_data(recipe.background.path)}" if recipe and recipe.background else "on background text"
        lines.append(
            f"Its keys and thresholds were calibrated {text}. What it does with text unlike that and unlike its tasks"
            " was not measured."
        )
    if manifest.base.quantization != "none":
        lines.append(
            f"Trained and scored on a base in {_bits(manifest.base.quantization)}; other weights score otherwise."
        )
    if manifest.peft_type == "LORA":
        whose, how = "the base's weights", "“nlft merge”"
        if manifest.base.quantization != "none":
            whose, how = "the unquantised base's weights", "“nlft merge … --onto-full-precision”"
        lines.append(f"It can be merged into {whose} ({how}). The merged model is another one; measure it again.")
    elif manifest.peft_type.startswith("NLFT_"):
        lines.append(
            "It is no change of weights: what it adds depends on its input. So it cannot in general be merged into the"
            " base, nor turned into GGUF; “nlft merge” says what can be."
        )
    return lines


def _how_many(summary: Summary, run: Mapping[str, Any] | None, entry: Entry) -> str:
    n = entry["n_finished"]
    if n > 1:
        return f"Means over {n} runs."
    seed = (run or {}).get("seed")
    order = " and one order of the tasks" if len(summary["tasks"]) > 1 else ""
    return (
        f"One run: one seed{'' if seed is None else f' ({seed})'}{order}. Brackets are over rows; nothing is known of"
        " other seeds."
    )


def _versions(manifest: Manifest) -> list[str]:
    lines = [f"{VERSIONS.get(name, name)} {version}" for name, version in sorted(manifest.versions.items())]
    return [*lines, f"exported {manifest.created}"] if manifest.created else lines
