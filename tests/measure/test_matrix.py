"""The matrix: weighted means in the right cells, NaN where nothing was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlft.errors import DataError
from nlft.measure.matrix import build_matrix, columns_of, orient
from nlft.types import Item

NAN = float("nan")


def item(stage: int, column: str, value: float, weight: float = 1.0, metric: str = "exact_match", **other: Any) -> Item:
    fields: dict[str, Any] = {"condition": "on" if stage else "base", "role": "task", "split": "test"}
    fields |= {"item_id": "i", "cluster": "c", "prediction": "", **other}
    return Item(stage=stage, column=column, metric=metric, value=value, weight=weight, **fields)


def test_a_cell_is_the_weighted_mean() -> None:
    items = [
        item(0, "text", 2.0, 3, "nll", role="probe"),
        item(0, "text", 5.0, 1, "nll", role="probe"),
        item(1, "text", 4.0, 3, "nll", role="probe"),
        item(1, "text", 9.0, 2, "bits_per_byte", role="probe"),
    ]
    columns = columns_of(items, [], {"text": "nll"})
    np.testing.assert_array_equal(build_matrix(items, columns, 2), [[2.75], [4.0], [NAN]])
    np.testing.assert_array_equal(orient(build_matrix(items, columns, 1), columns), [[-2.75], [-4.0]])
    other = columns_of(items, [], {"text": "bits_per_byte"})
    np.testing.assert_array_equal(build_matrix(items, other, 1), [[NAN], [9.0]])


def test_columns_are_tests_in_order_then_seen_then_probes() -> None:
    items = [
        item(0, "g", 1, role="probe"),
        item(0, "b/seen", 1, split="seen"),
        item(0, "b", 1),
        item(0, "a/seen", 1, split="seen"),
        item(0, "a", 1, item_id="1"),
        item(0, "a", 1, item_id="2"),
        item(1, "a", 1, item_id="1"),
    ]
    columns = columns_of(items, ["b", "a"], {})
    assert [column.column for column in columns] == ["b", "a", "b/seen", "a/seen", "g"]
    assert [column.name for column in columns] == ["b", "a", "b", "a", "g"]
    assert columns[1].n_items == 2


def test_the_recipes_metric_counts_and_else_the_first() -> None:
    items = [item(0, "a", 1, metric="nll"), item(0, "a", 1, metric="bits_per_byte")]
    assert columns_of(items, ["a"], {"a": "bits_per_byte"})[0].metric == "bits_per_byte"
    assert columns_of(items, ["a"], {})[0].metric == "nll"
    assert columns_of(items, ["a"], {"a": "f1"})[0].metric == "nll"
    column = columns_of(items, ["a"], {"a": "bits_per_byte"})[0]
    assert (column.unit, column.bounded, column.sign) == ("bits/byte", False, -1)


def test_off_is_not_on_and_nan_is_not_zero() -> None:
    items = [item(0, "a", 0.0), item(1, "a", 1.0, condition="off"), item(2, "a", NAN), item(2, "a", 1.0)]
    columns = columns_of(items, ["a"], {})
    np.testing.assert_array_equal(build_matrix(items, columns, 2), [[0.0], [NAN], [NAN]])


def test_a_stage_too_many_is_refused() -> None:
    items = [item(3, "a", 1.0)]
    with pytest.raises(DataError, match="Items of stage 3 in a run of 2 tasks"):
        build_matrix(items, columns_of(items, ["a"], {}), 2)
