"""The base and the data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nlft.config.section import NAME, Section


class BaseConfig(Section):
    """The frozen pretrained model."""

    model: str = "builtin:tiny"
    """`builtin:tiny`, a directory, or a Hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the base weights; `auto` is bfloat16 where the device computes in it, else float32."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """bitsandbytes quantisation of the base."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:0` …"""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave off unless you have read that code."""


class DataConfig(Section):
    """Rows from a file, a directory, a Hub dataset or the built-in world."""

    path: str
    """A JSONL, JSON, CSV or Parquet file, a directory of them, a Hub dataset id, or `builtin:world/…`."""
    split: str = "train"
    """Split of a Hub dataset."""
    name: str | None = None
    """Configuration name of a Hub dataset."""
    revision: str | None = None
    """Hub revision of the dataset."""
    format: Literal["auto", "completion", "messages", "label", "text"] = "auto"
    """Layout of a record; `auto` looks at the columns and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Own column names, as `prompt: question` (nlft's name: the file's name)."""
    join: str = " "
    """Text between prompt and completion, unless white space is there already."""
    too_long: Literal["error", "truncate", "split"] = "error"
    """What to do with a row longer than the context: refuse, cut its end, or (plain text only) split it."""
    limit: int | None = Field(default=None, ge=1)
    """Keep this many rows, drawn with `sample_seed`; all rows when empty."""
    skip: int = Field(default=0, ge=0)
    """Leave out this many rows of the shuffled order first (to cut disjoint parts out of one file)."""
    sample_seed: int = 0
    """Seed of the shuffle behind `limit` and `skip`."""

    @model_validator(mode="before")
    @classmethod
    def path_alone(cls, value: Any) -> Any:
        """`train: file.jsonl` is short for `train: {path: file.jsonl}`."""
        return {"path": value} if isinstance(value, str) else value


class TaskConfig(Section):
    """One domain to learn."""

    name: str = Field(pattern=NAME)
    """Name in tables and figures."""
    train: DataConfig
    """Rows to train on."""
    test: DataConfig
    """Rows that are never trained on; wordings that were never trained on, if the domain has several."""
    seen: DataConfig | None = None
    """Rows in wordings that were trained on, scored apart."""
    metric: str = "exact_match"
    """`exact_match`, `f1`, `accuracy`, `nll`, or the path or Hub id of an `evaluate` metric."""


class ProbeConfig(Section):
    """Held-out knowledge of the base; never trained on."""

    name: str = Field(pattern=NAME)
    """Name in tables and figures."""
    data: DataConfig
    """Rows to score."""
    metric: str = "exact_match"
    """As for a task."""
