"""The base and the data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

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
    only: dict[str, list[str]] = Field(default_factory=dict)
    """Keep the records whose column (by the file's name) holds one of these values, as `domain: [travel, banking]`. A
    label row that is kept still chooses among all labels of the file."""

    @model_validator(mode="before")
    @classmethod
    def path_alone(cls, value: Any) -> Any:
        """`train: file.jsonl` is short for `train: {path: file.jsonl}`."""
        return {"path": value} if isinstance(value, str) else value

    @field_validator("only", mode="before")
    @classmethod
    def one_value(cls, value: Any) -> Any:
        """`only: {domain: travel}` is short for `only: {domain: [travel]}`."""
        if not isinstance(value, dict):
            return value
        return {column: wanted if isinstance(wanted, list) else [wanted] for column, wanted in value.items()}


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
    """`exact_match`, `answer_match`, `f1`, `contains`, `accuracy`, `margin`, `nll`, `bits_per_byte`, or the path or Hub
    id of an `evaluate` metric."""

    @field_validator("metric")
    @classmethod
    def no_distance(cls, metric: str) -> str:
        """The distance from the base is no measure of learning."""
        if metric == "kl":
            raise ValueError("`kl` is the distance from the base and belongs to a probe")
        return metric


class ProbeConfig(Section):
    """Held-out knowledge of the base; never trained on."""

    name: str = Field(pattern=NAME)
    """Name in tables and figures."""
    data: DataConfig | None = None
    """Rows to score; or else `lm_eval`."""
    metric: str = "exact_match"
    """As for a task; also `kl`: nats/token that the model has moved away from the base. For an lm-eval task one of
    that task's own (`acc_norm`, or with a filter `exact_match,strict-match`); its first when empty."""
    shots: int = Field(default=0, ge=0)
    """Worked examples in front of every prompt, the same for all rows: a base that was not taught to answer
    questions answers after some. An answer then ends at a blank line."""
    shots_from: DataConfig | None = None
    """Where the first `shots` rows are taken from; rows that are not scored."""
    lm_eval: str | dict[str, Any] | None = None
    """A task of lm-evaluation-harness: its name, a YAML file, or its settings. Needs the extra `lm-eval`.
    Its templates and functions are code that runs here, so read those of a recipe that you were given."""
    limit: int | None = Field(default=None, ge=1)
    """Documents of the lm-eval task; all when empty. For `data` it is `data.limit`."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Worked examples of the lm-eval task; its own number when empty."""

    @model_validator(mode="before")
    @classmethod
    def metric_of_its_own(cls, value: Any) -> Any:
        """An lm-eval task knows its metric."""
        if isinstance(value, dict) and value.get("lm_eval") is not None:
            return {"metric": "", **value}
        return value

    @model_validator(mode="after")
    def one_source(self) -> ProbeConfig:
        """Rows or an lm-eval task, and no key that would have no effect."""
        if (self.data is None) == (self.lm_eval is None):
            raise ValueError(f"the probe {self.name!r} needs either `data` (rows) or `lm_eval` (a task)")
        if self.lm_eval is None:
            unused = [key for key in ("limit", "num_fewshot") if getattr(self, key) is not None]
            if unused:
                hint = "write data.limit" if unused[0] == "limit" else "write shots and shots_from"
                raise ValueError(f"{unused[0]} belongs to an lm-eval task; {hint}")
            if self.shots and self.metric == "kl":
                raise ValueError("`kl` compares with the base on rows as they are; leave shots out")
            if not self.metric:
                raise ValueError("the metric is empty")
            if bool(self.shots) != (self.shots_from is not None):
                raise ValueError("`shots` (how many) and `shots_from` (rows to take them from) go together")
        elif self.shots or self.shots_from:
            raise ValueError("shots belong to rows; for an lm-eval task write num_fewshot")
        return self
