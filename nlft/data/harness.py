"""Tasks of lm-evaluation-harness (EleutherAI), loaded with their documents: by name, from a YAML file, or inline.

It is an optional extra, and everything of it is imported in here and in `measure/bridge.py` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlft.errors import DataError, reason
from nlft.hub import offline_unless_reachable
from nlft.types import HarnessTask

LOCAL = ("json", "csv", "parquet", "text", "arrow", "pandas")
"""Builders of `datasets` that read files."""
FEWSHOT_SEED = 1234
"""Seed of the worked examples, as lm-eval's own command takes it."""


def check_installed() -> None:
    """Refuses where lm-eval is not installed.

    Raises:
        DataError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise DataError(
            "lm-evaluation-harness is not installed, and a probe names one of its tasks.",
            "Install its extra, in the copy of nlft's repository: pip install -e .[lm-eval]. Or leave the probe out.",
        )


def task_name(task: HarnessTask) -> str:
    """What a task is called in sentences."""
    return json.loads(task.task).get("task", "inline") if task.task.startswith("{") else task.task


def check_task(task: HarnessTask) -> str:
    """What can be said of a task without loading it: nothing wrong, in one line.

    Raises:
        DataError: lm-eval is missing, or a YAML file.
    """
    check_installed()
    if task.task.startswith("{"):
        return f"lm-eval task {task_name(task)!r}, given inline"
    path = Path(task.task).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise DataError(f"There is no file {task.task!r} with an lm-eval task.", "Check the path.")
        return f"lm-eval task from {task.task}"
    return f"lm-eval task {task.task!r}, not looked up"


def load_task(task: HarnessTask) -> dict[str, Any]:
    """The task, or the tasks of a group, with their documents: `tasks` by name, and `groups`.

    Reads nothing twice in one process. What it prints is kept to itself.

    Raises:
        DataError: lm-eval is missing, the task is unknown, its data cannot be read, or it cannot be run here.
    """
    check_task(task)
    return _load(replace(task, limit=None, filter=""))


@lru_cache(maxsize=16)
def _load(task: HarnessTask) -> dict[str, Any]:
    name = task_name(task)
    local = _is_local(task)
    with quiet(), nullcontext(True) if local else _hub() as reachable:
        try:
            loaded = _manager(_brings_itself(task)).load([_specification(task)])
        except KeyError as error:
            if _brings_itself(task):
                raise _unloadable(name, error, True) from error
            near = get_close_matches(name, _manager(False).all_tasks, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "`lm_eval ls tasks` lists them; a file ends in .yaml."
            raise DataError(f"lm-eval has no task {name!r}.", hint) from error
        except Exception as error:  # a task's own code runs here, so anything may come out
            raise _unloadable(name, error, reachable) from error
    for one in loaded["tasks"].values():
        _check_runs_here(one)
        if task.num_fewshot is not None and one.get_config("num_fewshot") != 0:
            one.set_config(key="num_fewshot", value=task.num_fewshot)
        elif one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=0)
        one.set_fewshot_seed(seed=FEWSHOT_SEED)
    return dict(loaded)


def document_metrics(task: Any) -> list[str]:
    """Metrics of one loaded task that every document has a value of, and of which more is better; and bits/byte.

    What is computed over all documents at once (corpus BLEU, F1 of a class) has no value to pair.
    """
    from lm_eval.api.metrics import mean

    better = task.higher_is_better()
    return [
        name
        for name, function in task.aggregation().items()
        if name == "bits_per_byte" or (function is mean and better.get(name, True))
    ]


def choose_metric(task: HarnessTask, wanted: str) -> str:
    """The metric that counts: `wanted`, or the first that all tasks of a group have.

    Raises:
        DataError: there is none.
    """
    tasks = load_task(task)["tasks"].values()
    names = [document_metrics(one) for one in tasks]
    shared = [name for name in names[0] if all(name in other for other in names)]
    if wanted in shared:
        return wanted
    if shared and not wanted:
        return shared[0]
    said = f"the metric {wanted!r}" if wanted else "a metric that is a mean over documents"
    raise DataError(
        f"The lm-eval task {task_name(task)!r} does not have {said}.",
        f"It has {', '.join(shared)}." if shared else "Leave the probe out.",
    )


def count_documents(task: HarnessTask) -> int:
    """How many documents are scored."""
    return sum(min(len(one.eval_docs), task.limit or len(one.eval_docs)) for one in load_task(task)["tasks"].values())


@lru_cache(maxsize=16)
def task_texts(task: HarnessTask) -> list[str]:
    """Question and answer of every document that is scored, without worked examples."""
    texts = []
    for one in load_task(task)["tasks"].values():
        docs = list(one.eval_docs)[: task.limit]
        for doc in docs:
            target = one.doc_to_target(doc)
            choices = one.doc_to_choice(doc) if one.OUTPUT_TYPE == "multiple_choice" else None
            if choices and isinstance(target, int) and 0 <= target < len(choices):
                target = choices[target]
            texts.append(f"{one.doc_to_text(doc)} {target}")
    return texts


@contextmanager
def _hub() -> Iterator[bool]:
    from datasets import config as settings

    with offline_unless_reachable(settings) as reachable:
        yield reachable


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's progress bars and remarks."""
    import contextlib
    import io
    import logging

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@lru_cache(maxsize=2)
def _manager(bare: bool) -> Any:
    """lm-eval's list of tasks; `bare` leaves out its own, whose index takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=not bare)


def _brings_itself(task: HarnessTask) -> bool:
    return task.task.startswith("{") or Path(task.task).suffix in (".yaml", ".yml")


def _specification(task: HarnessTask) -> Any:
    if task.task.startswith("{"):
        return json.loads(task.task)
    return str(Path(task.task).expanduser().resolve()) if _brings_itself(task) else task.task


def _is_local(task: HarnessTask) -> bool:
    """Whether the task's data are files, so that nobody needs to ask the Hub."""
    if not _brings_itself(task):
        return False
    if task.task.startswith("{"):
        config = json.loads(task.task)
    else:
        from lm_eval.tasks._yaml_loader import load_yaml

        config = load_yaml(Path(task.task).expanduser().resolve(), resolve_func=False)
    source = str(config.get("dataset_path", ""))
    return source in LOCAL or Path(source).is_dir()


def _unloadable(name: str, error: Exception, reachable: bool) -> DataError:
    said = reason(error) if reachable else "the Hub cannot be reached, and its cache does not hold the task's data."
    return DataError(
        f"The lm-eval task {name!r} cannot be loaded: {said}",
        "Correct the task, or bring its data here: a YAML task with `dataset_path: json` and `data_files` reads files.",
    )


def _check_runs_here(task: Any) -> None:
    why = ""
    if getattr(task, "UNSAFE_CODE", False):
        why = "runs code that the model writes"
    elif getattr(task, "MULTIMODAL", False):
        why = "shows pictures"
    elif (task.get_config("generation_kwargs") or {}).get("do_sample"):
        why = "samples its answers, and nlft scores greedy ones"
    if why:
        raise DataError(f"The lm-eval task {task.task_name!r} {why}.", "Leave the probe out.")
