"""What analyses look at, and what cannot be taken apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from nlft.base import load_base
from nlft.config import BaseConfig, LoraConfig
from nlft.dissect.study import Study, fewer
from nlft.dissection import dissect_run
from nlft.errors import NlftError
from nlft.methods import build_method
from nlft.run import run_method
from nlft.types import Evaluation, HarnessTask


@pytest.mark.parametrize(("limit", "kept"), [(None, 64), (5, 5), (500, 64)])
def test_few_documents_of_a_task_of_lm_eval(limit: int | None, kept: int) -> None:
    quiz = Evaluation("quiz", "probe", "test", (), "acc", harness=HarnessTask("quiz", limit))
    assert fewer(quiz, 64).harness == HarnessTask("quiz", kept)


def test_the_base_is_loaded_again_in_the_precision_of_the_run(recipe: Callable[..., Any]) -> None:
    base = load_base(BaseConfig(device="cpu", dtype="bfloat16"))
    learner: Any = build_method(LoraConfig(kind="lora", lr=1, tasks="merged"))
    made = recipe(base={"dtype": "bfloat16", "device": "cpu"})
    study = Study(learner, learner.attach(base, 0), base, made, cast(Any, None), 2)
    assert study.untouched.model.dtype == torch.bfloat16
    assert study.untouched.is_unchanged(study.untouched.model), "buffers in float32 stay so"


def test_an_upper_bound_has_nothing_to_take_apart(recipe: Callable[..., Any], tmp_path: Path) -> None:
    made = recipe(methods={"shots": {"kind": "few_shot"}})
    out = run_method(made, None, tmp_path / "run", report=False, setting="multitask")
    with pytest.raises(NlftError, match="'multitask'"):
        dissect_run(str(out))


@pytest.mark.parametrize("key", ["conditions", "dissect"])
def test_what_is_measured_is_listed_once(recipe: Callable[..., Any], key: str) -> None:
    entry = {"conditions": "off", "dissect": "recovery"}[key]
    with pytest.raises(ValueError, match=f"'{entry}' is listed twice"):
        recipe(measure={key: [entry, entry]})
