"""The matrix R of one run: what every column scored after every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlft.errors import DataError
from nlft.measure.unit import is_bounded, sign_of, unit_of
from nlft.types import Item, Role, Split

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the matrix."""

    column: str
    name: str
    """The task's or probe's name."""
    role: Role
    split: Split
    metric: str
    """The one metric of several that the column's values are of."""
    n_items: int

    @property
    def unit(self) -> str:
        """The unit of the values."""
        return unit_of(self.metric)

    @property
    def bounded(self) -> bool:
        """Whether 1 is the best value there is."""
        return is_bounded(self.unit)

    @property
    def sign(self) -> int:
        """+1 where more is better, -1 where less is."""
        return sign_of(self.metric)


def columns_of(items: Sequence[Item], tasks: Sequence[str], metrics: Mapping[str, str]) -> list[Column]:
    """The columns of a matrix: tasks' test rows in order, tasks' seen wordings, probes.

    Args:
        items: scores of one run or of several on the same rows.
        tasks: names of the tasks in the order of the columns.
        metrics: the metric that counts, by name of task or probe; where it is absent, or the items do not
            have it, the first one written counts.
    """
    metrics_of: dict[str, dict[str, set[str]]] = {}
    kinds: dict[str, tuple[str, Role, Split]] = {}
    for item in items:
        metrics_of.setdefault(item.column, {}).setdefault(item.metric, set()).add(item.item_id)
        name = item.column if item.split == "test" else item.column.removesuffix(f"/{item.split}")
        kinds.setdefault(item.column, (name, item.role, item.split))
    columns = []
    for column, (name, role, split) in kinds.items():
        found = metrics_of[column]
        metric = metrics.get(name, "")
        metric = metric if metric in found else next(iter(found))
        columns.append(Column(column, name, role, split, metric, len(found[metric])))
    places = {name: place for place, name in enumerate(tasks)}

    def place(column: Column) -> tuple[int, int]:
        if column.role == "probe":
            return 2, 0
        return int(column.split == "seen"), places.get(column.name, len(places))

    return sorted(columns, key=place)


def build_matrix(items: Sequence[Item], columns: Sequence[Column], stages: int) -> Matrix:
    """R [S+1, J] float64 in the metrics' own units: row 0 the base, row s after stage s.

    R[s, j] = sum(value * weight) / sum(weight) over the items of stage s and column j, condition "base" in
    row 0 and "on" below. What was not measured is NaN, and so is a mean with an item of no value in it.

    Args:
        items: scores of one run.
        columns: the columns wanted.
        stages: S, the number of tasks of the run.

    Raises:
        DataError: an item of a stage beyond S.
    """
    places = {(column.column, column.metric): j for j, column in enumerate(columns)}
    sums = np.zeros((stages + 1, len(columns)))
    weights = np.zeros_like(sums)
    for item in items:
        j = places.get((item.column, item.metric))
        if j is None or item.condition != ("base" if item.stage == 0 else "on"):
            continue
        if item.stage > stages:
            raise DataError(
                f"Items of stage {item.stage} in a run of {stages} tasks.",
                "Items and runs are of different recipes; run the recipe again into an empty folder.",
            )
        sums[item.stage, j] += item.value * item.weight
        weights[item.stage, j] += item.weight
    return np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)


def orient(values: Matrix, columns: Sequence[Column]) -> Matrix:
    """The same with the sign turned where less is better (nll, bits_per_byte), so that more always is."""
    return values * np.array([column.sign for column in columns], dtype=np.float64)
