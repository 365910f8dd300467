"""What a card says beside its numbers: of a continued run, a quantised base, and what can be verified."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from rich.console import Console

from nlft.cargo import Cargo
from nlft.cli.export import show_size
from nlft.config import BaseConfig
from nlft.export import Exported, write_card
from nlft.manifest import BaseNote, LoraNote, Origin
from nlft.report.card import benchmark_results, card_text
from nlft.report.merged_card import Merged, merged_card
from nlft.snippet import load_lines
from nlft.verification import Verified
from tests.report.test_card import MATRIX, SHA, Planted, made, manifest, measured, results_of

START = "start (earlier adapter)"


def snippet(text: str) -> str:
    found = re.findall(r"`{3,}python\n(.*?)\n`{3,}", text, re.DOTALL)[0]
    compile(found, "snippet", "exec")
    return found


def test_a_continued_run_is_not_held_against_the_base(planted: Planted) -> None:
    summary, run = measured(planted)
    plain = card_text(manifest(), summary, run, made())
    text = card_text(manifest(continued_from=Origin(name="run7", sha256=SHA)), summary, run, made())
    assert f"|  | metric | {START} |" in text and "|  | metric | base |" in plain
    assert f"after every task, the {START} first." in text and "after every task, the base first." in plain
    assert f"of a probe since the {START}" in text and "since the base" not in text
    kinds = {kind for _, kind in results_of(text)}
    assert {"accuracy_lost_since_start", "exact_match_gained_since_start"} <= kinds and "accuracy_lost" not in kinds
    assert not any("base" in str(one.metric_name) for one in ModelCard(text).data.get("eval_results", []))


def test_a_benchmark_of_a_continued_run_names_its_start(planted: Planted) -> None:
    columns = [("people", "task", "test", "exact_match"), ("math", "probe", "test", "exact_match")]
    summary, run = measured(planted, [[0.0, 0.5], [0.9, 0.4]], columns)
    summary["recipe"] = '{"probes": [{"name": "math", "lm_eval": "gsm8k"}]}'
    assert "its base alone 50.00" in benchmark_results(summary, run)["gsm8k.yaml"]
    said = benchmark_results(summary, run | {"start": "{}"})["gsm8k.yaml"]
    assert "continued from 50.00" in " ".join(said.split()) and "base alone" not in said


@pytest.mark.parametrize(("bits", "call"), [("4bit", "load_in_4bit=True"), ("8bit", "load_in_8bit=True")])
def test_a_quantised_base_is_loaded_as_it_was(planted: Planted, bits: Any, call: str) -> None:
    base = BaseNote(model="Qwen/Qwen3-0.6B", revision="c0ffee", sha256=SHA, dtype="float16", quantization=bits)
    text = card_text(manifest(base=base, peft_type="LORA"), None, None, made())
    lines = snippet(text)
    assert call in lines and "import AutoModelForCausalLM, BitsAndBytesConfig" in lines
    assert '("Qwen/Qwen3-0.6B", revision="c0ffee", quantization_config=settings)' in lines
    assert ("bnb_4bit_compute_dtype=torch.float16" in lines and "import torch\n" in lines) == (bits == "4bit")
    assert f"as loaded in {bits[0]} bit: {SHA}" in text and "--onto-full-precision" in text
    summary, run = measured(planted)
    summary["base"]["sha256"] = SHA
    text = card_text(manifest(base=base), summary, run, made())
    assert text.count(SHA) == 1 and f"as loaded in {bits[0]} bit: {SHA}" in text


def test_a_plain_base_is_loaded_plainly() -> None:
    text = card_text(manifest(peft_type="LORA"), None, None, None)
    assert "BitsAndBytesConfig" not in text and "--onto-full-precision" not in text and "as loaded in" not in text
    lines = load_lines(manifest(base=BaseNote(model="builtin:tiny")), "u/n", "abc")
    assert lines[-2] == 'base = AutoModelForCausalLM.from_pretrained(model_location("builtin:tiny"))'
    assert lines[-1] == 'model = PeftModel.from_pretrained(base, "u/n", revision="abc")'
    assert "from nlft.hub import model_location" in lines


def test_the_card_says_what_is_not_verified() -> None:
    text = card_text(manifest(), None, None, None)
    assert "the hash of every file but this one" in text and "its owner may change" in text
    assert "pip install nlft" not in text


def test_words_of_the_table_are_explained(planted: Planted) -> None:
    summary, run = measured(planted, MATRIX, trainable_params=384_000)
    text = card_text(manifest(), summary, run, made())
    assert "Wilson's" in text and "| trainable at a time | 384 k |" in text
    assert "| training, calibration included | " in text and "–: there is none" in text


def test_nothing_learned_is_said() -> None:
    note = LoraNote(bytes=1 << 19, run_id="l", learning=0.0)
    assert "Nothing was learned." in card_text(manifest(lora=note), None, None, None)


@pytest.mark.parametrize(("model", "named"), [("gpt2", "gpt2"), ("a/b", "a/b"), ("builtin:tiny", None)])
def test_a_merged_models_card_loads_it(tmp_path: Path, model: str, named: str | None) -> None:
    merged = Merged(tmp_path, "LORA", (), 0.0, 1e-4, "float32", None, None)
    text = merged_card(merged, BaseConfig(model=model), "runs/a")
    assert ModelCard(text).data.to_dict().get("base_model") == named
    assert 'AutoModelForCausalLM.from_pretrained("USER/NAME")' in snippet(text)


def test_the_licence_is_the_one_that_export_is_given(tmp_path: Path) -> None:
    cargo = Cargo(tmp_path, tmp_path, None, None, None)
    write_card(tmp_path, manifest(), None, cargo, "apache-2.0")
    assert ModelCard.load(tmp_path / "README.md").data.to_dict()["license"] == "apache-2.0"
    write_card(tmp_path, manifest(), None, cargo)
    assert "license" not in ModelCard.load(tmp_path / "README.md").data.to_dict()


def test_an_export_beside_a_lora_that_learned_nothing(tmp_path: Path, capsys: Any) -> None:
    for learning, said in ((0.0, "nothing was learned, by it or by this run"), (0.5, "learned 50% at the end")):
        note = LoraNote(bytes=1, run_id="l", learning=learning)
        show_size(Exported(tmp_path, manifest(lora=note), Verified([]), {}, ""), Console(width=200))
        assert said in capsys.readouterr().out
