"""What is compared when an exported adapter is verified: logits of a witness, hashes and scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from nlft import testimony
from nlft.base import load_base
from nlft.config import BaseConfig
from nlft.data.template import encode
from nlft.errors import NlftError
from nlft.manifest import BaseNote, Manifest, describe_files
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.rescoring import Check, compare_items
from nlft.testimony import FILE, cross_examine, hear, read_testimony, witness_rows, write_testimony
from nlft.types import Item, Row
from nlft.verification import Verified, calibration_digest, check_card, stored_tensors, verify

VOCABULARY = 97


def adapted(make_model: Callable[..., Any], seed: int = 0, **fields: Any) -> Any:
    """LoRA on a tiny Llama, with numbers that say something."""
    config = LoraConfig(**{"target_modules": ["o_proj"], "task_type": "CAUSAL_LM", "r": 2, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(make_model("llama"), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
    return model.eval()


def test_a_witness_is_read_back_and_agrees(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = adapted(make_model)
    ids, mask, of_tasks = witness_rows(None, None, VOCABULARY)
    assert not of_tasks
    assert int(ids.max()) < VOCABULARY
    said = hear(model, ids, mask, of_tasks)
    write_testimony(tmp_path, said)
    again = read_testimony(tmp_path, VOCABULARY)
    assert again.place == said.place
    assert torch.equal(again.top_logprobs, said.top_logprobs)

    with torch.no_grad():
        on = model(input_ids=ids, attention_mask=mask).logits
        with model.disable_adapter():
            off = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(said.top_logprobs, on.log_softmax(-1).topk(16).values)
    assert said.effect == pytest.approx(float((on - off).abs().max()), rel=1e-4)

    found, difference = cross_examine(adapted(make_model), again)
    assert (found.on_sha256, found.off_sha256, difference) == (said.on_sha256, said.off_sha256, 0.0)
    found, difference = cross_examine(adapted(make_model, seed=1), again)
    assert found.on_sha256 != said.on_sha256
    assert found.off_sha256 == said.off_sha256
    assert difference > 0.1


def test_an_adapter_without_a_gate_is_never_asked_with_open_ones(make_model: Callable[..., Any]) -> None:
    silent: Any = get_peft_model(make_model("llama"), LoraConfig(target_modules=["o_proj"], task_type="CAUSAL_LM"))
    said = hear(silent.eval(), *witness_rows(None, None, VOCABULARY))
    assert (said.effect, said.opened) == (0.0, False)


def test_of_a_long_row_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_base(BaseConfig()).tokenizer
    rows = [Row(prompt="one two three four", completion=f"five {word}") for word in ("six", "seven")]
    column = SimpleNamespace(column="facts", rows=rows, split="test")
    prepared: Any = SimpleNamespace(
        domains=SimpleNamespace(evaluations=[column]), too_long={"facts": "error"}, max_length=64, pad_id=0
    )
    whole, _, of_tasks = witness_rows(prepared, tokenizer, VOCABULARY)
    monkeypatch.setattr(testimony, "LENGTH", 3)
    ids, mask, _ = witness_rows(prepared, tokenizer, VOCABULARY)
    longest = int(max(range(2), key=lambda row: len(encode(rows[row], tokenizer, 64, "error")[0].ids)))
    assert of_tasks and ids.shape == mask.shape == (2, 3)
    assert ids[longest].tolist() == whole[longest, -3:].tolist()


def test_padding_says_nothing(make_model: Callable[..., Any]) -> None:
    model = adapted(make_model)
    ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    other = ids.clone()
    other[0, 3:] = 11
    one, two = (hear(model, rows, mask, True) for rows in (ids, other))
    assert (one.on_sha256, one.off_sha256, one.effect) == (two.on_sha256, two.off_sha256, two.effect)
    assert hear(model, ids, torch.ones_like(mask), True).on_sha256 != one.on_sha256


def test_a_gated_adapter_without_its_rows_is_asked_with_open_gates(make_model: Callable[..., Any]) -> None:
    from nlft.pathways.gate import gates_of
    from nlft.pathways.gated_lora.model import begin_task, end_task

    config = GatedLoraPeftConfig(r=2, gate_layer=1, key_width=8, task_type="CAUSAL_LM")
    model: Any = get_peft_model(make_model("llama"), config)
    gate: Any = gates_of(model)["default"]
    gate.others, config.gate_others = torch.eye(1, 8), 1
    gate.add_task(torch.nn.functional.normalize(torch.ones(1, 8)), 0.0, float("inf"))
    config.gates["one"] = 1
    begin_task(model, "one", seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    end_task(model)
    ids, mask, _ = witness_rows(None, None, VOCABULARY)
    silent = hear(model, ids, mask, of_tasks=True)
    assert (silent.effect, silent.opened) == (0.0, False)
    said = hear(model, ids, mask, of_tasks=False)
    assert said.opened
    assert said.effect > 0.01
    assert cross_examine(model, said)[0].on_sha256 == said.on_sha256
    learned, fixed = stored_tensors(model)
    assert {name.rpartition(".")[2] for name in learned} == {"A", "B"}
    assert {name.rpartition(".")[2] for name in fixed} >= {"keys", "height", "drift", "whitener", "mean"}


def test_random_matrices_are_not_learned(make_model: Callable[..., Any]) -> None:
    config = VeraConfig(r=2, target_modules=["o_proj"], task_type="CAUSAL_LM")
    learned, fixed = stored_tensors(get_peft_model(make_model("llama"), config))
    assert {name.rpartition(".")[2] for name in learned} == {"vera_lambda_b", "vera_lambda_d"}
    assert {name.rpartition(".")[2] for name in fixed} == {"vera_A", "vera_B"}
    assert calibration_digest({}) is None
    first = next(iter(fixed))
    changed = {**fixed, first: fixed[first] + 1e-3}
    assert calibration_digest(fixed) == calibration_digest(dict(reversed(fixed.items()))) != calibration_digest(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_ids": torch.full((4, 32), VOCABULARY)}, "outside the vocabulary"),
        ({"top_ids": torch.full((4, 32, 16), -1)}, "outside the vocabulary"),
        ({"attention_mask": torch.ones(4, 31, dtype=torch.int64)}, "attention_mask is"),
        ({"top_logprobs": torch.zeros(4, 32, 16, dtype=torch.float64)}, "top_logprobs is"),
        ({"input_ids": torch.zeros(0, 0, dtype=torch.int64)}, "is torch.int64"),
    ],
)
def test_a_strangers_witness(
    make_model: Callable[..., Any], tmp_path: Path, change: dict[str, torch.Tensor], said: str
) -> None:
    ids, mask, _ = witness_rows(None, None, VOCABULARY)
    write_testimony(tmp_path, hear(adapted(make_model), ids, mask, False))
    tensors = load_file(tmp_path / FILE)
    from safetensors import safe_open

    with safe_open(tmp_path / FILE, "pt") as file:
        metadata = file.metadata()
    save_file({**tensors, **change}, tmp_path / FILE, metadata=metadata)
    with pytest.raises(NlftError, match=said):
        read_testimony(tmp_path, VOCABULARY)
    save_file(tensors, tmp_path / FILE, metadata={"nlft": json.dumps({"place": {}})})
    with pytest.raises(NlftError, match="no witness"):
        read_testimony(tmp_path, VOCABULARY)


def test_a_witness_that_would_fill_the_memory(make_model: Callable[..., Any], tmp_path: Path) -> None:
    said = hear(adapted(make_model), *witness_rows(None, None, VOCABULARY))
    for shape in ((1, 65), (9, 1)):
        ids, top = torch.ones(shape).long(), torch.ones(*shape, 1)
        write_testimony(
            tmp_path, replace(said, input_ids=ids, attention_mask=ids.clone(), top_ids=top.long(), top_logprobs=top)
        )
        with pytest.raises(NlftError, match=r"are the most"):
            read_testimony(tmp_path, VOCABULARY)


def items(values: list[float], metric: str = "exact_match", column: str = "facts") -> list[Item]:
    return [
        Item(2, "on", column, "probe", "test", metric, f"r{i}", f"r{i}", value, 1.0, "")
        for i, value in enumerate(values)
    ]


def verdict(before: list[float], after: list[float], metric: str = "exact_match", **how: bool) -> bool | None:
    [check] = compare_items(items(before, metric), items(after, metric), **{"exact": True, "lossy": False, **how})
    return check.ok


def test_scores_are_compared_by_where_they_were_taken() -> None:
    right = [1.0] * 150 + [0.0] * 50
    flipped = [0.0, *right[1:]]
    assert verdict(right, right) is True
    assert verdict(right, flipped) is False
    assert verdict(right, flipped, exact=False) is True
    assert verdict(right, [0.0] * 3 + right[3:], exact=False) is False
    # Two flips that cancel out in the mean.
    assert verdict(right, [0.0, *right[1:-1], 1.0]) is False
    assert verdict(right, [0.0, 0.0, *right[2:]], lossy=True) is True
    assert verdict(right, [0.0] * 3 + right[3:], lossy=True) is False
    assert verdict([1.0, 0.0], [0.0, 0.0], lossy=True) is True
    assert verdict([1.0, 1.0], [0.0, 0.0], lossy=True) is False


def test_likelihoods_are_compared_by_their_means() -> None:
    assert verdict([2.0, 3.0], [2.0, 3.0 + 1e-4], "nll") is True
    assert verdict([2.0, 3.0], [2.0, 3.01], "nll") is False
    assert verdict([2.0, 3.0], [2.0, 3.001], "nll", exact=False) is True
    assert verdict([2.0, 3.0], [2.0, 3.02], "nll", exact=False) is False
    assert verdict([2.0, 3.0], [2.0, 3.04], "nll", lossy=True) is True
    assert verdict([2.0, 3.0], [2.0, 3.1], "nll", lossy=True) is False
    assert verdict([2.0, 3.0], [2.0, float("nan")], "nll", lossy=True) is False
    weighted = [replace(item, weight=weight) for item, weight in zip(items([2.0, 4.0], "nll"), (3, 1), strict=True)]
    [check] = compare_items(weighted, weighted, exact=True, lossy=False)
    assert check.found.startswith("2.5000")


def test_other_rows_are_not_compared() -> None:
    [check] = compare_items(items([1.0, 0.0]), items([1.0]), exact=False, lossy=False)
    assert check.ok is None
    assert "1 rows, which are others" in check.found
    assert verdict([1.0, 0.0], [1.0], exact=True) is False, "here the rows are those that were measured"
    same = Check("score y (f1)", "1", "1", True)
    assert Verified([check]).rescored == "Not scored again: the rows here are others than those measured."
    assert str(Verified([check, same]).rescored).startswith("A fresh process scored 1 of 1 columns the same")
    assert "Of 1 more the rows" in str(Verified([check, same]).rescored)


def test_what_was_found_is_said() -> None:
    good, bad, open_ = (
        Check("base", "a", "a", True),
        Check("score x (f1)", "1", "2", False),
        Check("scores", "w", "", None),
    )
    assert Verified([good, open_]).ok
    assert Verified([good, open_]).rescored == "Not scored again: w."
    assert Verified([good]).rescored is None
    assert Verified([good, replace(bad, ok=True)]).rescored is not None
    Verified([good, open_]).require()
    assert Verified([good, open_]).sentence == "Nothing that was checked failed; not checked: scores."
    assert Verified([good, replace(bad, ok=True)]).sentence == "It is what was measured."
    assert Verified([good]).sentence == "It is what was exported."
    with pytest.raises(NlftError, match=r"score x \(f1\): 1, wanted 2"):
        Verified([good, bad]).require()
    assert not Verified([good, bad]).ok


def test_only_an_export_can_be_verified(tmp_path: Path) -> None:
    with pytest.raises(NlftError, match=r"has no nlft\.json"):
        verify(tmp_path)


def test_a_card_may_be_edited_and_that_is_said(tmp_path: Path) -> None:
    """The row of the card; before there is one, as at export, there is none."""
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    fields: dict[str, Any] = {"peft_type": "LORA", "dtype": "float32", "learned_bytes": 1, "calibration_bytes": 0}

    def card() -> list[tuple[str, bool | None]]:
        return [(check.found, check.ok) for check in check_card(tmp_path, manifest)]

    manifest = Manifest(base=BaseNote(model="a/b"), files=describe_files(tmp_path), **fields)
    assert card() == []
    (tmp_path / "README.md").write_text("90 %")
    manifest = manifest.model_copy(update={"files": describe_files(tmp_path)})
    assert card() == [("as exported", True)]
    (tmp_path / "README.md").write_text("99 %")
    assert card() == [("edited since the export; its numbers were not checked", None)]
    assert "not checked: card" in Verified(check_card(tmp_path, manifest)).sentence
    (tmp_path / "README.md").unlink()
    assert card() == [("is not here", None)]
