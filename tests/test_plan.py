"""The plan of a comparison: orders, sweeps, bounds, addresses, rates beyond a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from nlft.bracket import beyond
from nlft.config import CompareConfig
from nlft.data.domain import Domains, with_shots
from nlft.errors import NlftError
from nlft.plan import address_of, addressed, plan_cells
from nlft.prepare import digest_rows
from nlft.types import Evaluation, Row

FULL = {"full": {"kind": "full", "lr": [1e-4, 1e-3]}}


def test_a_latin_square_has_every_task_once_in_every_place() -> None:
    orders = CompareConfig(orders="latin").orders_of("abcd")
    assert orders == [list("abcd"), list("bcda"), list("cdab"), list("dabc")]
    assert all(sorted(place) == list("abcd") for place in zip(*orders, strict=True))
    assert CompareConfig(orders=[["b", "a"]]).orders_of("ab") == [["b", "a"]]
    assert CompareConfig().orders_of("ab") == [["a", "b"]]


def test_an_order_that_lacks_a_task_is_refused(recipe: Callable[..., Any]) -> None:
    with pytest.raises(ValidationError, match=r"compare\.orders: \['ships'\] does not hold each"):
        recipe(compare={"orders": [["ships"]]})
    with pytest.raises(ValidationError, match="'latn' is neither `latin` nor lists of task names"):
        recipe(compare={"orders": "latn"})
    with pytest.raises(ValidationError, match=r"compare\.bounds\.single: 'lora9' is none of the methods"):
        recipe(compare={"bounds": {"single": ["lora9"]}})


def test_cells_are_the_product(recipe: Callable[..., Any]) -> None:
    methods = {"full": FULL["full"] | {"steps": [3, 6]}, "memory": {"kind": "sparse_memory", "lr": 0.3}}
    cells = plan_cells(recipe(methods=methods, compare={"seeds": [0, 3], "orders": "latin"}))
    assert len(cells) == (2 * 2 + 1) * 2 * 2
    assert len({cell.name for cell in cells}) == 20
    assert [(cell.lr, cell.steps) for cell in cells[:5]] == [(1e-4, 3), (1e-3, 3), (1e-4, 6), (1e-3, 6), (0.3, 6)]
    last = cells[-1].recipe
    assert [task.name for task in last.tasks] == ["ships", "people"]
    assert (last.train.seeds.data, last.train.seeds.init, last.train.seeds.dropout) == (3, 3, 3)
    assert last.methods["memory"].lr == 0.3 and list(last.methods) == ["memory"]


def test_only_bounds_that_no_sequence_gives_are_run(recipe: Callable[..., Any]) -> None:
    compare = {"bounds": {"single": ["full"], "multitask": ["full"]}}
    bounds = [cell for cell in plan_cells(recipe(methods=FULL, compare=compare)) if cell.setting != "sequence"]
    told = [(cell.setting, [task.name for task in cell.recipe.tasks], cell.lr, cell.steps) for cell in bounds]
    assert told == [
        ("single", ["ships"], 1e-4, 6),
        ("single", ["ships"], 1e-3, 6),
        ("multitask", ["people", "ships"], 1e-4, 12),
        ("multitask", ["people", "ships"], 1e-3, 12),
    ]
    latin = plan_cells(recipe(methods=FULL, compare=compare | {"orders": "latin"}))
    assert {cell.setting for cell in latin} == {"sequence", "multitask"}


def test_a_run_twice_is_refused(recipe: Callable[..., Any]) -> None:
    with pytest.raises(NlftError, match=r"would be 'full-lr0\.001-steps6-seed0-people\.ships'"):
        plan_cells(recipe(methods={"full": {"kind": "full", "lr": 1e-3}}, compare={"seeds": [0, 0]}))


def test_an_address_holds_all_that_decides_and_no_name_of_a_folder(recipe: Callable[..., Any]) -> None:
    methods = {"lora": {"kind": "lora", "lr": 1e-2}}

    def address(rows: str = "r", base: str = "b", **changes: Any) -> str:
        cells = plan_cells(recipe(**({"methods": methods} | changes)))
        return address_of(cells[0], base, rows)

    first = address()
    same = [
        address(name="other", out="elsewhere"),
        address(compare={"seeds": [0, 1], "orders": "latin", "widen": 2}),
        address(methods={**methods, "full": {"kind": "full", "lr": 1}}),
        address(methods={"lora": {"kind": "lora", "lr": [1e-2, 1e-1], "steps": 6}}),
        address(prefix={"memory_gb": 2, "disk_gb": 0}),
        address(prefix={"enabled": False, "dtype": "bfloat16"}),
    ]
    assert set(same) == {first}
    others = [
        address(rows="q"),
        address(base="q"),
        address(methods={"lora": {"kind": "lora", "lr": 1e-2, "steps": 7}}),
        address(methods={"lora": {"kind": "lora", "lr": 1e-2 * (1 + 1e-12)}}),
        address(methods={"lora": {"kind": "lora", "lr": 1e-2, "peft": {"r": 4}}}),
        address(methods={"lora2": methods["lora"]}),
        address(train={"steps": 6, "batch_size": 4}),
        address(compare={"seeds": [1]}),
        address(compare={"orders": [["ships", "people"]]}),
        address(measure={"max_new_tokens": 3}),
        address(prefix={"dtype": "bfloat16"}),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_a_name_ends_in_its_address_and_rows_are_hashed_once_an_order(recipe: Callable[..., Any]) -> None:
    asked = []
    cells = addressed(
        plan_cells(recipe(methods=FULL, compare={"orders": "latin"})), "b", lambda order: str(asked.append(order))
    )
    assert asked == [["people", "ships"], ["ships", "people"]]
    assert all(cell.name.endswith("-" + cell.address[:12]) for cell in cells)
    assert cells[0].name.startswith("full-lr0.0001-steps6-seed0-people.ships-")


NEVER = -math.inf


@pytest.mark.parametrize(
    ("learned", "rates"),
    [
        ({1e-4: 0.2, 2e-4: 0.5, 4e-4: 0.4}, []),
        ({1e-4: 0.2, 2e-4: 0.5, 6e-4: 0.6}, [1.8e-3]),
        ({1e-4: 0.7, 2e-4: 0.5, 6e-4: 0.6}, [5e-5]),
        ({1e-3: 0.7}, [3.3e-4, 3e-3]),
        ({1e-4: 0.2, 2e-4: 0.5, 4e-4: NEVER}, []),
        ({1e-4: 0.2, 2e-4: NEVER, 4e-4: NEVER}, [5e-5]),
        ({1e-2: NEVER, 1e-1: NEVER}, [1e-3]),
        ({1e-3: 1.0, 1e-2: 1.0}, []),
        ({}, []),
    ],
)
def test_a_rate_is_added_beyond_an_end_that_learned_most(learned: dict[float, float], rates: list[float]) -> None:
    assert [lr for lr, _ in beyond(learned)] == pytest.approx(rates)


def test_worked_examples_are_part_of_the_rows() -> None:
    def digest(*shots: Row) -> str:
        rows = with_shots((Row("Who?", "Ada"),), shots, len(shots))
        return digest_rows(Domains((), (Evaluation("g", "probe", "test", rows, "exact_match"),), (), ()))

    one, two = Row("Where?", "Rome"), Row("Where?", "Oslo")
    assert len({digest(), digest(one), digest(two)}) == 3 and digest(one) == digest(one)
