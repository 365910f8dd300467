"""From a recipe's data sections to tasks, probes and background rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nlft.config import ProbeConfig, Recipe, TaskConfig
from nlft.data import harness
from nlft.data.contamination import Contamination, find_contamination
from nlft.data.example import BETWEEN
from nlft.data.source import load, share_choices
from nlft.errors import DataError, NlftError, combined
from nlft.types import Evaluation, HarnessTask, Role, Row, Task

WITHOUT_EARLIER = (
    "Rows of earlier tasks set thresholds that keep new parts silent on them, and show what they lose; to go on without"
    " both, set earlier=[]."
)
"""What a missing file of an earlier task means."""


@dataclass(frozen=True)
class Domains:
    """All rows of a recipe."""

    tasks: tuple[Task, ...]
    probes: tuple[Evaluation, ...]
    background: tuple[Row, ...]
    descriptions: tuple[str, ...]
    """One line a source: what was found where."""
    contamination: Mapping[str, Contamination] = field(default_factory=dict)
    """By column, the share of rows that train rows or the background hold a part of."""
    earlier: tuple[Task, ...] = ()
    """Tasks that the adapter has learned from which the run goes on; their evaluations are among the probes."""

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Columns of the matrix: tests of the tasks, their seen wordings, probes."""
        tests = [e for task in self.tasks for e in task.evaluations if e.split == "test"]
        seen = [e for task in self.tasks for e in task.evaluations if e.split == "seen"]
        return (*tests, *seen, *self.probes)

    def in_order(self, names: list[str]) -> Domains:
        """The same rows with the tasks in another order."""
        by_name = {task.name: task for task in self.tasks}
        return replace(self, tasks=tuple(by_name[name] for name in names))


def load_domains(recipe: Recipe) -> Domains:
    """Reads every data section of a recipe.

    An earlier task is a probe of the run: what it scores before the first stage is what later ones can lose. Wordings
    of it that were trained on stay a column of their own, which counts in no mean.

    Raises:
        RecipeError: with all problems of all sections at once.
    """
    problems: list[NlftError] = []
    descriptions: list[str] = []

    def read(config, where: str) -> tuple[Row, ...]:
        try:
            source = load(config, where)
        except NlftError as error:
            lost = WITHOUT_EARLIER if where.startswith("earlier.") else ""
            problems.append(DataError(error.message, f"{error.hint} {lost}".strip()))
            return ()
        descriptions.append(f"{where}: {source.description}")
        return tuple(source.rows)

    def read_task(entry: TaskConfig, where: str, role: Role) -> Task:
        train, test = read(entry.train, f"{where}.train"), read(entry.test, f"{where}.test")
        evaluations = [Evaluation(entry.name, role, "test", tuple(share_choices(train, test)), entry.metric)]
        if entry.seen is not None:
            seen = share_choices(train, read(entry.seen, f"{where}.seen"))
            evaluations.append(Evaluation(entry.name, "task", "seen", tuple(seen), entry.metric))
        return Task(entry.name, train, tuple(evaluations))

    earlier = [read_task(entry, f"earlier.{entry.name}", "probe") for entry in recipe.earlier]
    tasks = [read_task(entry, f"tasks.{entry.name}", "task") for entry in recipe.tasks]
    probes = []
    for entry in recipe.probes:
        where = f"probes.{entry.name}"
        if entry.data is None:
            try:
                probes.append(harness_probe(entry))
                count = harness.count_documents(probes[-1].harness)
                descriptions.append(f"{where}: {count} documents of the lm-eval task {probes[-1].harness.task!r}")
            except NlftError as error:
                problems.append(DataError(f"{where}.lm_eval: {error.message}", error.hint))
            continue
        rows = read(entry.data, f"{where}.data")
        stop = ""
        if entry.shots_from is not None:
            shots = read(entry.shots_from, f"{where}.shots_from")
            try:
                rows = with_shots(rows, shots, entry.shots)
            except DataError as error:
                problems.append(DataError(f"{where}.shots_from: {error.message}", error.hint))
            stop = "" if any(row.messages for row in rows) else BETWEEN
        probes.append(Evaluation(entry.name, "probe", "test", rows, entry.metric, stop))
    background = read(recipe.background, "background") if recipe.background else ()
    if problems:
        raise combined(problems)
    learned = [evaluation for task in earlier for evaluation in task.evaluations]
    found = tuple([*learned, *probes])
    domains = Domains(tuple(tasks), found, background, tuple(descriptions), earlier=tuple(earlier))
    texts = {one.column: harness.task_texts(one.harness) for one in probes if one.harness is not None}
    return replace(
        domains, contamination=find_contamination(domains.evaluations, [*earlier, *tasks], background, texts)
    )


def harness_probe(entry: ProbeConfig) -> Evaluation:
    """A probe whose documents and metric an lm-eval task brings; loads both.

    Raises:
        DataError: lm-eval is missing, or the task cannot be loaded or scored by document.
    """
    spec = harness_task(entry)
    metric = harness.choose_metric(spec, entry.metric.partition(",")[0])
    return Evaluation(entry.name, "probe", "test", (), metric, harness=spec)


def harness_task(entry: ProbeConfig) -> HarnessTask:
    """What a probe says of its lm-eval task."""
    task = entry.lm_eval if isinstance(entry.lm_eval, str) else json.dumps(entry.lm_eval)
    return HarnessTask(task, entry.limit, entry.num_fewshot, entry.metric.partition(",")[2])


def with_shots(rows: tuple[Row, ...], shots: tuple[Row, ...], count: int) -> tuple[Row, ...]:
    """Every row behind the first `count` of `shots`.

    Raises:
        DataError: there are fewer, one of them is a row to be scored, or one is plain text.
    """
    chosen = tuple(replace(row, choices=(), gold=None) for row in shots[:count])
    if shots and len(shots) < count:
        raise DataError(f"shots is {count}, and there are {len(shots)} rows.", "Lower shots, or give more rows.")
    scored = {(row.prompt, row.completion, row.messages) for row in rows}
    same = [row for row in chosen if (row.prompt, row.completion, row.messages) in scored]
    if same:
        raise DataError(
            f"{same[0].source or 'A row'} is also a row to be scored.",
            "Use `skip` to take other rows, or another file.",
        )
    if any(not row.prompt and not row.messages for row in chosen):
        raise DataError("Plain text without a prompt shows no answer.", "Give rows with prompt and completion.")
    return tuple(replace(row, examples=chosen) for row in rows)


def overlaps(domains: Domains) -> list[str]:
    """One sentence for each evaluation whose rows are partly among its task's train rows.

    Real data repeat themselves, so this is said aloud and not refused; a `seen` split is meant to overlap.
    """
    sentences = []
    for task in domains.tasks:
        trained = {(row.prompt, row.completion, row.messages) for row in task.train}
        rows = next(e for e in task.evaluations if e.split == "test").rows
        count = sum((row.prompt, row.completion, row.messages) in trained for row in rows)
        if count:
            sentences.append(f"{count} of {len(rows)} test rows of task {task.name!r} are also train rows.")
    return sentences


def contaminated(domains: Domains) -> list[str]:
    """One sentence for each column of which the model is trained or calibrated on parts."""
    sentences: list[str] = []
    for column in (one.column for one in domains.evaluations if one.split != "seen"):
        found = domains.contamination.get(column)
        if found is None:
            continue
        parts = [(found.train, "train rows"), (found.background, "the background")]
        said = " and ".join(f"{share:.1%} with {of}" for share, of in parts if share)
        if said:
            sentences.append(f"Rows of {column!r} that share {found.n} words in a row, or all of fewer: {said}.")
    return sentences


def unseen_labels(domains: Domains) -> list[str]:
    """One sentence for each task with test rows whose label no train row has, so that it cannot be learned."""
    sentences = []
    for task in domains.tasks:
        rows = next(e for e in task.evaluations if e.split == "test").rows
        # Label rows share one set of choices, in the train part as in the test part.
        if any(len({row.choices for row in part}) != 1 or not part[0].choices for part in (task.train, rows)):
            continue
        learned = {row.completion for row in task.train}
        unseen = [row.completion for row in rows if row.completion not in learned]
        if unseen:
            names = sorted(set(unseen))
            shown = ", ".join(map(repr, names[:5])) + (" …" if len(names) > 5 else "")
            sentences.append(
                f"{len(unseen)} of {len(rows)} test rows of task {task.name!r} have a label that no train row has"
                f" ({shown})."
            )
    return sentences


def remarks(domains: Domains) -> list[str]:
    """What is odd about the rows and yet allowed, in sentences."""
    return [*overlaps(domains), *unseen_labels(domains), *contaminated(domains)]
