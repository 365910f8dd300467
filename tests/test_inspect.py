"""Inspection of keys: what it finds on the built-in base, before and after training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlft.base import load_base
from nlft.calibrate import block_inputs
from nlft.config import BaseConfig
from nlft.data.batch import in_batches
from nlft.data.template import encode_rows
from nlft.errors import NlftError
from nlft.inspect import core_remark, inspect_keys, method_with_keys
from nlft.measure.firing import Core, core_of, fire, wordings
from nlft.pathways.sparse_memory.model import begin_task, memories
from nlft.types import Row


def test_wordings_of_one_fact_share_cluster_and_completion():
    rows = [
        Row("a is", "x", cluster="a"),
        Row("what is a", "x", cluster="a"),
        Row("a is", "x", cluster="a"),  # said twice
        Row("a is not", "y", cluster="a"),  # another fact, in one wording
        Row("b is", "x"),
        Row("", "text", cluster="c"),
        Row("d is", "z", cluster="d"),
        Row("who is d", "z", cluster="d"),
        Row("d?", "z", cluster="d"),
    ]
    kept, facts = wordings(rows)
    assert [row.prompt for row in kept] == ["a is", "what is a", "d is", "who is d", "d?"]
    assert facts == [[0, 1], [2, 3, 4]]


def test_core_of_facts_by_hand():
    sets = {0: {1, 2}, 1: {2, 3}, 2: {5}, 3: {6}, 4: {7}}
    assert core_of([[0, 1], [2, 3, 4]], sets) == Core(2, (1 / 3 + 0) / 2, 0.5, 1)
    assert core_of([], sets) == Core(0, 0.0, 0.0, 0)
    assert list(core_remark("t", [core_of([[0, 1]], sets)])) == []
    [sentence] = core_remark("t", [core_of([[2, 3]], sets)])
    assert sentence.startswith("t: the core set is empty")


def test_firing_counts_tokens_rows_and_prompts():
    """Against a look at every token by itself."""
    from peft import get_peft_model

    from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig

    base = load_base(BaseConfig())
    config = SparseMemoryPeftConfig(addressing="product_key", half_keys=8, heads=2, topk=3, layers_to_transform=[3])
    model = get_peft_model(base.model, config).eval()
    [(block, core)] = memories(model).items()
    torch.manual_seed(0)
    core.rotations.copy_(torch.linalg.qr(torch.randn(core.rotations.shape)).Q)
    core.half_keys.copy_(torch.nn.functional.normalize(torch.randn(core.half_keys.shape), dim=-1))
    begin_task(model, "t", {block: torch.arange(0, 64, 5)})
    texts = [Row("Greta Quint was born in", "Vienna", join=" "), Row("The hobby of Greta is", "riding", join=" ")]
    rows = encode_rows(texts, base.tokenizer, 64)
    found = fire(model, 0, rows, 0)
    own = found.blocks[block]
    fired, fired_rows, ever = 0, 0, set()
    for number, row in enumerate(rows):
        [inputs] = block_inputs(model, [block], in_batches([row], 1, 0), first=True)
        slots = [set(one.tolist()) for one in core.route(inputs.states[block])[0]]
        read = [{slot // 5 for slot in one if slot % 5 == 0} for one in slots]
        fired += sum(bool(one) for one in read)
        fired_rows += any(read)
        ever |= set().union(*read)
        end = next(i for i, label in enumerate(row.labels) if label >= 0)
        assert own.prompts[number] == set().union(*read[1:end])
        assert own.table[number] == set().union(*slots[1:end])
    assert (found.rows, found.tokens) == (2, sum(len(row.ids) for row in rows))
    assert (found.fired_tokens, found.fired_rows, own.tokens) == (fired, fired_rows, fired)
    assert 0 < fired < found.tokens
    assert own.ever.nonzero().squeeze(1).tolist() == sorted(ever)


@pytest.mark.parametrize("method", ["prototype", pytest.param("product_key", marks=pytest.mark.slow)])
def test_a_recipe_is_inspected_without_training(recipe: Callable[..., Any], method: str, tmp_path: Path) -> None:
    from nlft.recipes import dump_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe()), encoding="utf-8")
    found = inspect_keys(str(path), method=method)
    assert [(one.task, one.slots > 0) for one in found.slots][:1] == [("people", True)]
    assert {one.task for one in found.firing} == {"people", "ships"}
    own = next(one for one in found.firing if one.text == "its train rows")
    background = next(one for one in found.firing if one.text.startswith("background"))
    assert own.row_share > 0.5
    assert bool(found.tables) is (method == "product_key")
    if method == "prototype":
        assert background.row_share == 0.0  # it has set the thresholds
        limits = found.slots[0].thresholds
        assert limits is not None and limits == sorted(limits)
    else:
        assert background.token_share > 0.5  # product keys are always read
        assert all(0 < one.usage <= 1 and sum(one.deciles) == round(one.usage * one.slots) for one in found.tables)
        assert all(one.table_core and one.table_core.shared >= one.core.shared for one in found.slots)


def test_methods_without_keys_are_refused(recipe: Callable[..., Any]) -> None:
    with pytest.raises(NlftError, match=r"has no keys\. Choose one of .* with --method"):
        method_with_keys(recipe(), "full")
    with pytest.raises(NlftError, match="methods of the recipe have keys"):
        method_with_keys(recipe(), None)


def test_the_verb_prints_tables_and_writes_json(recipe: Callable[..., Any], tmp_path: Path, capsys: Any) -> None:
    from nlft.cli import main
    from nlft.recipes import dump_recipe

    path, out = tmp_path / "recipe.yaml", tmp_path / "found.json"
    path.write_text(dump_recipe(recipe()), encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", str(path), "--method", "product_key", "--json", str(out)])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("usage", "top 1 %", "core", "tokens that read"))
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found) == {"tables", "slots", "firing", "remarks"} and len(found["tables"][0]["deciles"]) == 10
