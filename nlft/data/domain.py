"""From a recipe's data sections to tasks, probes and background rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nlft.config import Recipe
from nlft.data.source import load, share_choices
from nlft.errors import NlftError, combined
from nlft.types import Evaluation, Row, Task


@dataclass(frozen=True)
class Domains:
    """All rows of a recipe."""

    tasks: tuple[Task, ...]
    probes: tuple[Evaluation, ...]
    background: tuple[Row, ...]
    descriptions: tuple[str, ...]
    """One line a source: what was found where."""

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

    Raises:
        RecipeError: with all problems of all sections at once.
    """
    problems: list[NlftError] = []
    descriptions: list[str] = []

    def read(config, where: str) -> tuple[Row, ...]:
        try:
            source = load(config, where)
        except NlftError as error:
            problems.append(error)
            return ()
        descriptions.append(f"{where}: {source.description}")
        return tuple(source.rows)

    tasks, probes = [], []
    for entry in recipe.tasks:
        where = f"tasks.{entry.name}"
        train, test = read(entry.train, f"{where}.train"), read(entry.test, f"{where}.test")
        evaluations = [Evaluation(entry.name, "task", "test", tuple(share_choices(train, test)), entry.metric)]
        if entry.seen is not None:
            seen = share_choices(train, read(entry.seen, f"{where}.seen"))
            evaluations.append(Evaluation(entry.name, "task", "seen", tuple(seen), entry.metric))
        tasks.append(Task(entry.name, train, tuple(evaluations)))
    for entry in recipe.probes:
        probes.append(
            Evaluation(entry.name, "probe", "test", read(entry.data, f"probes.{entry.name}.data"), entry.metric)
        )
    background = read(recipe.background, "background") if recipe.background else ()
    if problems:
        raise combined(problems)
    return Domains(tuple(tasks), tuple(probes), background, tuple(descriptions))


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
    return [*overlaps(domains), *unseen_labels(domains)]
