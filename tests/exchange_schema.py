"""The fields that others document for their result files, as strict models: a key too many or too few is an error.

PEFT: what `log_results` writes in huggingface/peft, `method_comparison/MetaMathQA/utils.py` at 0134244. Every Eval
Ever: the schema of version 0.2.2 at 21b3d1a, as far as nlft uses it. These are restatements, not their files.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PeftRunInfo(Strict):
    created_at: str | None
    total_time: float | None
    experiment_name: str
    peft_branch: str | None
    train_config: dict[str, Any]
    peft_config: dict[str, Any] | None
    error_msg: str


class PeftTrainInfo(Strict):
    accelerator_memory_reserved_avg: int | None
    accelerator_memory_max: int | None
    accelerator_memory_reserved_99th: int | None
    train_time: float | None
    file_size: int | None
    num_trainable_params: int | None
    num_total_params: int | None
    status: Literal["failed", "success", "canceled"]
    metrics: list[dict[str, Any]]


class PeftMetaInfo(Strict):
    model_info: dict[Literal["sha", "created_at"], str | None]
    dataset_info: dict[str, dict[Literal["sha", "created_at"], str | None]]
    package_info: dict[str, str | None]
    system_info: dict[str, str | None]
    pytorch_info: str | None


class PeftResult(Strict):
    run_info: PeftRunInfo
    train_info: PeftTrainInfo
    meta_info: PeftMetaInfo
    continual: dict[str, Any]
    """Ours."""


Texts = dict[str, str]


class Source(Strict):
    source_name: str
    source_type: Literal["documentation", "evaluation_run"]
    source_organization_name: str
    evaluator_relationship: Literal["first_party", "third_party", "collaborative", "other"]


class Library(Strict):
    name: str
    version: str


class ModelInfo(Strict):
    name: str
    id: str
    developer: str
    additional_details: Texts


class HubData(Strict):
    dataset_name: str
    source_type: Literal["hf_dataset"]
    hf_repo: str
    hf_split: str | None = None
    hf_config: str | None = None
    hf_revision: str | None = None


class OtherData(Strict):
    dataset_name: str
    source_type: Literal["other"]
    additional_details: Texts


class MetricConfig(Strict):
    evaluation_description: str
    metric_id: str
    metric_name: str
    metric_unit: str
    lower_is_better: bool


class ContinuousMetric(MetricConfig):
    """With this `score_type` both bounds must be there."""

    score_type: Literal["continuous"]
    min_score: float
    max_score: float


class StandardError(Strict):
    value: float
    method: str


class Uncertainty(Strict):
    standard_error: StandardError | None = None
    num_samples: int


class Score(Strict):
    score: float = Field(allow_inf_nan=False)
    details: Texts
    uncertainty: Uncertainty


class Result(Strict):
    evaluation_name: str
    evaluation_result_id: str
    source_data: HubData | OtherData
    metric_config: MetricConfig | ContinuousMetric
    score_details: Score


class Record(Strict):
    schema_version: Literal["0.2.2"]
    evaluation_id: str
    retrieved_timestamp: str = Field(pattern=r"^\d+$")
    evaluation_timestamp: str
    source_metadata: Source
    eval_library: Library
    model_info: ModelInfo
    evaluation_results: list[Result]
