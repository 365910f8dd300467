"""Everything that can fail before a run starts: rows are read, tokenised and checked, and nothing is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from nlft.base import FrozenBase
from nlft.config import DataConfig, Recipe
from nlft.data.domain import Domains
from nlft.data.harness import task_texts
from nlft.data.template import Encoded, TooLong, encode_rows, pad_id
from nlft.errors import DataError, NlftError, combined
from nlft.measure.encodings import Encodings
from nlft.measure.evaluation import check_evaluation
from nlft.methods.calibration import check_budget
from nlft.methods.protocol import TaskContext
from nlft.types import Row, Task


@dataclass(frozen=True)
class Prepared:
    """The rows of a recipe, tokenised for one base."""

    domains: Domains
    train: dict[str, list[Encoded]]
    """Train rows by task, those of earlier tasks too."""
    background: list[Encoded]
    too_long: dict[str, TooLong]
    """What to do with an overlong row, by column."""
    max_length: int
    """Longest row in tokens."""
    pad_id: int
    rows_sha256: str
    """Hash of every row, in the recipe's order of tasks."""
    encodings: Encodings = field(default_factory=Encodings, repr=False, compare=False)
    """Tokens of the rows that are scored."""

    def joined(self) -> Prepared:
        """The same with all tasks as one, named `a+b+c`: all their train rows, and a column for each one's tests."""
        tasks = self.domains.tasks
        name = "+".join(task.name for task in tasks)
        rows = tuple(row for task in tasks for row in task.train)
        one = Task(name, rows, tuple(evaluation for task in tasks for evaluation in task.evaluations))
        train = {name: [row for task in tasks for row in self.train[task.name]]}
        train |= {task.name: self.train[task.name] for task in self.domains.earlier}
        return replace(self, domains=replace(self.domains, tasks=(one,)), train=train)

    def context(self, recipe: Recipe, base: FrozenBase, stage: int, learned: int) -> TaskContext:
        """What a method is told of a stage.

        Args:
            stage: from 1.
            learned: tasks that the adapter held before the first stage; no seed is drawn from twice.
        """
        tasks, number = self.domains.tasks, learned + stage
        before = [*self.domains.earlier, *tasks[: stage - 1]]
        return TaskContext(
            name=tasks[stage - 1].name,
            train=self.train[tasks[stage - 1].name],
            earlier=[row for task in before for row in self.train[task.name]],
            background=self.background,
            number=number,
            n_tasks=learned + len(tasks),
            batch_size=recipe.train.batch_size,
            pad_id=self.pad_id,
            seed=recipe.train.seeds.init + 1000 * number,
            rows=tasks[stage - 1].train,
            max_length=self.max_length,
            begin_id=base.tokenizer.bos_token_id,
        )


def prepare(recipe: Recipe, domains: Domains, base: FrozenBase, learned: int = 0) -> Prepared:
    """Tokenises the rows of a recipe.

    Args:
        learned: tasks that the adapter holds already from which the run goes on.

    Raises:
        RecipeError: with every unusable source; DataError if there is only one.
    """
    longest = min(recipe.train.max_length or base.context, base.context)
    problems: list[NlftError] = []

    def encode(rows: tuple[Row, ...], config: DataConfig, where: str) -> list[Encoded]:
        try:
            encoded = encode_rows(rows, base.tokenizer, longest, config.too_long)
        except NlftError as error:
            problems.append(DataError(f"{where}: {error.message}", error.hint))
            return []
        if not encoded:
            problems.append(DataError(f"{where} has no rows.", "Give a source with at least one row."))
        return encoded

    places = {task.name: (task.train, f"{section}.{task.name}.train") for section, _, task in recipe.all_tasks()}
    train = {task.name: encode(task.train, *places[task.name]) for task in (*domains.tasks, *domains.earlier)}
    too_long: dict[str, TooLong] = {}
    for evaluation in domains.evaluations:
        if evaluation.harness is not None:  # read and checked when it was loaded
            too_long[evaluation.column] = "error"
            continue
        config, where = evaluation_config(recipe, evaluation.name, evaluation.split)
        too_long[evaluation.column] = config.too_long
        encode(evaluation.rows, config, where)
        try:
            if evaluation.rows:
                check_evaluation(evaluation)
        except NlftError as error:
            problems.append(DataError(f"{where}: {error.message}", error.hint))
    background = encode(domains.background, recipe.background, "background") if recipe.background else []
    for name, method in recipe.methods.items():
        try:
            check_budget(method, background, max(learned, len(recipe.earlier)) + len(recipe.tasks))
        except NlftError as error:
            problems.append(NlftError(f"methods.{name}.retention: {error.message}", error.hint))
    if problems:
        raise combined(problems)
    return Prepared(domains, train, background, too_long, longest, pad_id(base.tokenizer), digest_rows(domains))


def digest_rows(domains: Domains) -> str:
    """sha256 over what is trained on, scored and calibrated with."""
    digest = hashlib.sha256()
    train = (task.train for task in (*domains.earlier, *domains.tasks))
    for rows in (*train, *(e.rows for e in domains.evaluations), domains.background):
        for row in rows:
            text = (row.prompt, row.join, row.completion, row.answers, row.choices, row.messages)
            # Groups decide which rows are held out.
            digest.update(repr((*text, row.cluster)).encode())
            if row.examples:
                shown = [(one.prompt, one.join, one.completion, one.messages) for one in row.examples]
                digest.update(repr(shown).encode())
        digest.update(b"next")
    for task in (evaluation.harness for evaluation in domains.evaluations if evaluation.harness is not None):
        digest.update(repr(task_texts(task)).encode())
    return digest.hexdigest()


def evaluation_config(recipe: Recipe, name: str, split: str) -> tuple[DataConfig, str]:
    """The data section behind an evaluation's rows, and its dotted key."""
    for section, _, task in recipe.all_tasks():
        if task.name == name:
            if split == "seen" and task.seen is not None:
                return task.seen, f"{section}.{name}.seen"
            return task.test, f"{section}.{name}.test"
    data = next(probe.data for probe in recipe.probes if probe.name == name)
    assert data is not None  # an lm-eval task has no rows
    return data, f"probes.{name}.data"
