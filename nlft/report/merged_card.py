"""README.md of a merged model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nlft
from nlft.config import BaseConfig
from nlft.hub import is_hub_model
from nlft.remote import is_adapter_id
from nlft.report.markdown import plain_text

SCORED = "Every number below was measured again after the merge, on the files of this folder."
UNSCORED = "Nothing was scored after the merge (--no-rescore): logits alone were compared, on fixed tokens."


@dataclass(frozen=True)
class MergedScore:
    """One column before and after the merge."""

    column: str
    metric: str
    n_rows: int
    adapter: float
    """With the adapter on, beside the base that it was trained on."""
    merged: float


@dataclass(frozen=True)
class Rounding:
    """What the dtype of the weights took from the change."""

    lost: float
    """Norm of what rounding took, as a share of the norm of the change."""
    still: float
    """Share of the weights with a change that did not move at all."""

    def sentence(self, dtype: str) -> str:
        """The same in words."""
        return (
            f"The weights are {dtype}: rounding took {self.lost:.1%} of the change (by norm), and {self.still:.1%} of"
            " the weights that should have moved did not."
        )


@dataclass(frozen=True)
class Merged:
    """What a merge made and how it was measured."""

    folder: Path
    kind: str
    """PEFT's name of the adapter's kind."""
    scores: tuple[MergedScore, ...]
    """A line for every column and metric."""
    logits: float
    """Largest absolute difference of a logit between the merged model and its base with the adapter on."""
    tolerance: float
    """The largest that was allowed."""
    dtype: str
    """Of the weights."""
    quantised: str | None
    """Quantisation under which the adapter was trained, if it was merged into the unquantised base."""
    rounding: Rounding | None
    """What the dtype of the weights took; None in float32."""


def merged_card(merged: Merged, base: BaseConfig, source: str) -> str:
    """The whole card, with YAML front matter; text from files is escaped.

    Args:
        source: the adapter, as it was named; only an id of the Hub is repeated.
    """
    from huggingface_hub import ModelCardData

    adapter = source if is_adapter_id(source) else None
    on_hub = is_hub_model(base.model)
    data = ModelCardData(
        base_model=base.model if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nlft", "merged"],
    )
    beside = f"the {merged.quantised} base with the adapter on" if merged.quantised else "the base with the adapter on"
    about = "the unquantised base with the adapter on" if merged.quantised else beside
    name = plain_text(base.model) if on_hub or base.model.startswith("builtin:") else "a local model"
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        "# A merged model",
        "",
        f"The weights of {name}{f' at {plain_text(base.revision)}' if base.revision else ''} with a"
        f" {plain_text(merged.kind)} adapter{f' ({plain_text(adapter)})' if adapter else ''} merged into them by nlft"
        f" {nlft.__version__}. The base's licence holds for them too.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("USER/NAME")  # or the path of this folder',
        'tokenizer = AutoTokenizer.from_pretrained("USER/NAME")',
        "```",
        "",
        (SCORED if merged.scores else UNSCORED) + f" A logit differs from {about} by {merged.logits:.2g} at most.",
        *(["", merged.rounding.sentence(merged.dtype)] if merged.rounding else []),
        *(
            ["", f"The adapter was trained on a base in {merged.quantised}, so the two columns are of two models."]
            if merged.quantised
            else []
        ),
        "",
        *([f"| column | metric | rows | {beside} | merged |", "|---|---|---:|---:|---:|"] if merged.scores else []),
        *(
            f"| {plain_text(one.column)} | {plain_text(one.metric)} | {one.n_rows} | {one.adapter:.4f} |"
            f" {one.merged:.4f} |"
            for one in merged.scores
        ),
        "",
        *(["Single items are in `results/items.parquet`."] if merged.scores else []),
        "The adapter is part of the weights now, so it can no longer be switched off.",
        "",
    ]
    return "\n".join(lines)
