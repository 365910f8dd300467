"""Merging: linear adapters alone, measured again from the disk, and never silently into a quantised base."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlft import merging
from nlft.base import load_base
from nlft.cargo import why_not
from nlft.cli import main
from nlft.config import BaseConfig
from nlft.data.domain import load_domains
from nlft.errors import NlftError
from nlft.measure.items import read_items
from nlft.merging import merge, merge_weights
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.report.merged_card import Merged
from nlft.rescore import scored_domains
from nlft.run import run_method

METHODS: dict[str, Any] = {
    "lora": {"kind": "lora", "lr": 1e-2, "peft": {"r": 2, "target_modules": ["down_proj", "q_proj"]}},
    "pretrained": {"kind": "cms", "init": "pretrained", "periods": [1, 2], "rank": 4, "lr": 1e-2},
    "orthogonal": {"kind": "lora", "lr": 1e-2, "tasks": "orthogonal"},
    "apart": {"kind": "lora", "lr": 1e-2, "tasks": "apart"},
    "full": {"kind": "full", "lr": 1e-4},
}
GATED = dict(task_type="CAUSAL_LM", gate_layer=1)


@pytest.fixture(scope="module")
def run(short: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`run(method)` trains it once."""
    made: dict[str, Path] = {}

    def trained(method: str) -> Path:
        if method not in made:
            out = tmp_path_factory.mktemp("runs") / method
            made[method] = run_method(short(methods=METHODS, tasks=short().tasks[:1]), method, out, report=False)
        return made[method]

    return trained


@pytest.fixture(scope="module")
def of_lora(run: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Merged, Path]:
    """The merged LoRA and its folder, made once; from the adapter's folder, which brings its run's recipe."""
    out = tmp_path_factory.mktemp("merged") / "out"
    return merge(str(run("lora") / "adapter"), out), out


def answers(model: Any) -> torch.Tensor:
    ids = torch.arange(64).view(4, 16) * 7 + 3
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


@pytest.mark.parametrize("method", ["lora", "pretrained", pytest.param("orthogonal", marks=pytest.mark.slow)])
def test_a_merged_model_is_a_plain_one_that_computes_the_same(
    run: Any, of_lora: tuple[Merged, Path], tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    merged, out = of_lora if method == "lora" else (merge(str(run(method)), out), out)
    base = load_base(BaseConfig())
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert type(plain) is type(base.model) and tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in base.model.named_parameters()}
    silent = answers(base.model)
    if method != "orthogonal":
        adapted = PeftModel.from_pretrained(base.model, str(run(method) / "adapter")).eval()
        assert float((answers(adapted) - silent).abs().max()) > 0.1
        torch.testing.assert_close(answers(plain), answers(adapted), rtol=0, atol=1e-3)
    assert 0 <= merged.logits < 1e-3 < merged.tolerance and merged.rounding is None and merged.dtype == "float32"
    last = [item for item in read_items(run(method) / "items.parquet") if item.stage == 1]
    for one in merged.scores:
        values = [item.value for item in last if (item.column, item.metric) == (one.column, one.metric)]
        weights = [item.weight for item in last if (item.column, item.metric) == (one.column, one.metric)]
        scored = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
        assert one.n_rows == len(values) and one.adapter == pytest.approx(scored, abs=1e-9)
        assert one.merged == pytest.approx(scored, abs=1e-9 if one.metric == "exact_match" else 1e-3)
    assert {"people", "facts", "text"} == {one.column for one in merged.scores}


def test_what_is_written(run: Any, of_lora: tuple[Merged, Path]) -> None:
    merged, out = of_lora
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "results/merge.json"} <= files
    assert not [name for name in files if "adapter_" in name or "partial" in name]
    facts = json.loads((out / "results" / "merge.json").read_text())
    assert facts["logits"] == merged.logits and [one["merged"] for one in facts["scores"]] == [
        one.merged for one in merged.scores
    ]
    assert len(read_items(out / "results" / "items.parquet")) == 2 * sum(one.n_rows for one in merged.scores)
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["nlft", "merged"],
    }
    assert "measured again after the merge" in card.text and str(out.parent) not in card.content
    assert all(f"| {one.column} | {one.metric.replace('_', chr(92) + '_')} |" in card.text for one in merged.scores)
    with pytest.raises(NlftError, match="is not empty"):
        merge(str(run("lora")), out)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (SparseMemoryPeftConfig(task_type="CAUSAL_LM"), "which of its slots speak is decided anew for every token"),
        (HopePeftConfig(task_type="CAUSAL_LM"), "its memory learns from the sequence that it reads"),
        (CmsPeftConfig(task_type="CAUSAL_LM"), "a nonlinearity of their own"),
        (CmsPeftConfig(init="pretrained", **GATED), "it stands behind a gate"),  # pyright: ignore
        (GatedLoraPeftConfig(**GATED), "it stands behind a gate"),  # pyright: ignore
    ],
)
def test_what_is_not_linear_is_refused_with_its_reason(tmp_path: Path, config: Any, why: str) -> None:
    config.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(NlftError, match=f"adapter cannot be merged: .*{why}") as caught:
        merge(str(tmp_path / "adapter"), tmp_path / "out")
    for way in ("beside the base", "nlft export", "unload()", "Distilling"):
        assert way in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_linear_ones_are_not_refused() -> None:
    assert why_not(LoraConfig()) is None and why_not(CmsPeftConfig(init="pretrained")) is None


def test_a_quantised_recipe_needs_a_word(run: Any, of_lora: tuple[Merged, Path], recipe: Any, tmp_path: Path) -> None:
    quantised = recipe(methods=METHODS, tasks=recipe().tasks[:1], base={"quantization": "4bit"})
    with pytest.raises(NlftError, match=r"quantised \(4bit\), and rounding to 4bit would take away") as caught:
        merge(str(run("lora")), tmp_path / "out", recipe=quantised)
    assert "--onto-full-precision" in caught.value.hint and not (tmp_path / "out").exists()
    merged = merge(str(run("lora")), tmp_path / "out", recipe=quantised, onto_full_precision=True)
    full = of_lora[0]
    assert merged.quantised == "4bit" and [one.merged for one in merged.scores] == [one.merged for one in full.scores]
    ours, theirs = ({(one.column, one.metric): one.adapter for one in each.scores} for each in (merged, full))
    assert abs(ours["text", "nll"] - theirs["text", "nll"]) > 1e-4  # of the 4-bit base, and of the whole
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the two columns are of two models" in card and "| the 4bit base with the adapter on |" in card
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_base_in_bfloat16_stays_one_and_its_rounding_is_said(run: Any, recipe: Any, tmp_path: Path) -> None:
    half = recipe(methods=METHODS, tasks=recipe().tasks[:1], base={"dtype": "bfloat16"})
    merged = merge(str(run("lora")), tmp_path / "out", recipe=half)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    base = load_base(BaseConfig()).model.state_dict()
    adapter = load_file(run("lora") / "adapter" / "adapter_model.safetensors")
    lost = wanted = moved = still = 0.0
    for name, old in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{stem}A.weight" not in adapter:
            assert name not in weights or torch.equal(weights[name], old.bfloat16())  # a tied head is not stored
            continue
        change = adapter[f"{stem}B.weight"] @ adapter[f"{stem}A.weight"] * 4  # PEFT's alpha is 8, and r is 2
        exact = old.bfloat16().float() + change
        assert torch.equal(weights[name], exact.bfloat16())
        lost += float((weights[name].float() - exact).double().square().sum())
        wanted += float((exact - old.bfloat16().float()).double().square().sum())
        moved += int((exact != old.bfloat16().float()).sum())
        still += int(((exact != old.bfloat16().float()) & (weights[name] == old.bfloat16())).sum())
    assert merged.rounding is not None and merged.dtype == "bfloat16" and 0 < merged.logits < merged.tolerance
    assert merged.rounding.lost == pytest.approx((lost / wanted) ** 0.5, rel=1e-6) and merged.rounding.lost > 0.01
    assert merged.rounding.still == pytest.approx(still / moved, rel=1e-6) and 0 < merged.rounding.still < 1
    assert merged.rounding.sentence("bfloat16") in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_that_computes_something_else_leaves_nothing(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    honest = merge_weights

    def broken(model: Any, kind: str) -> Any:
        core, rounding = honest(model, kind)
        core.model.layers[2].mlp.down_proj.weight.data[0] += 0.05
        return core, rounding

    monkeypatch.setattr(merging, "merge_weights", broken)
    with pytest.raises(NlftError, match=r"computes something else: a logit differs by .* Nothing was written"):
        merge(str(run("lora")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_base_is_gone_before_what_was_written_is_loaded(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    bases: list[Any] = []

    def load(config: BaseConfig) -> Any:
        assert [one() for one in bases] == [None] * len(bases)
        if bases:
            raise NlftError("enough")
        bases.append(weakref.ref((base := load_base(config)).model))
        return base

    monkeypatch.setattr(merging, "load_base", load)
    monkeypatch.setattr(merging, "measure", lambda *_: [])
    with pytest.raises(NlftError, match="enough"):
        merge(str(run("lora")), tmp_path / "out")


def test_what_peft_cannot_merge_and_what_is_broken(run: Any, recipe: Any, tmp_path: Path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prefix: Any = get_peft_model(load_base(BaseConfig()).model, config)
    with pytest.raises(NlftError, match="PEFT does not merge this PREFIX_TUNING adapter"):
        merge_weights(prefix, "PREFIX_TUNING")
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in (run("lora") / "adapter").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NlftError, match="brings no recipe"):
        merge(str(folder), tmp_path / "out")
    with pytest.raises(NlftError, match=r"no numbers \(NaN\)"):
        merge(str(folder), tmp_path / "out", recipe=recipe())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_methods_without_one_adapter(run: Any, tmp_path: Path) -> None:
    with pytest.raises(NlftError, match="an adapter for each task and is told which one"):
        merge(str(run("apart")), tmp_path / "out")
    with pytest.raises(NlftError, match="has no adapter: its weights are whole already"):
        merge(str(run("full")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verb_says_both_columns(run: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    line = ["merge", str(run("lora")), str(tmp_path / "out"), "--gguf", str(tmp_path / "model.gguf")]
    with pytest.raises(SystemExit) as stop:
        main(line)
    said = capsys.readouterr()
    assert "base + adapter" in said.out and "merged" in said.out and "at most" in said.out
    # The merge is done; what is missing is the converter.
    assert stop.value.code == 2 and "No GGUF file was written" in said.err and "ready for it" in said.err
    assert (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "model.gguf").exists()


def test_rows_that_are_not_here_are_not_needed(run: Any, recipe: Any, tmp_path: Path) -> None:
    """Train rows stand for nothing in a merge; without tests either the hint names both ways on."""
    chosen = recipe(methods=METHODS, tasks=recipe().tasks[:1], probes=[])
    gone = chosen.tasks[0].train.model_copy(update={"path": "gone.jsonl"})
    half = chosen.model_copy(update={"tasks": [chosen.tasks[0].model_copy(update={"train": gone})]})
    [task] = scored_domains(half, "it").tasks
    assert task.evaluations[0].rows == load_domains(chosen).tasks[0].evaluations[0].rows
    none = chosen.model_copy(update={"tasks": [chosen.tasks[0].model_copy(update={"train": gone, "test": gone})]})
    with pytest.raises(NlftError, match=r"gone\.jsonl") as caught:
        merge(str(run("lora")), tmp_path / "out", recipe=none)
    assert "--recipe" in caught.value.hint and "--no-rescore" in caught.value.hint
    merged = merge(str(run("lora")), tmp_path / "out", recipe=none, rescore=False)
    assert merged.scores == () and 0 <= merged.logits < 1e-3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing was scored after the merge (--no-rescore)" in card and "|---|" not in card
    assert [path.name for path in (tmp_path / "out" / "results").iterdir()] == ["merge.json"]
