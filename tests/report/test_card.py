"""Model cards: the Hub's client reads them, their numbers are the run's, and nothing in them runs or leads away."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt

from nlft.config import Recipe
from nlft.manifest import BaseNote, FileNote, LoraNote, Manifest, Origin
from nlft.measure.items import read_runs
from nlft.measure.summary import summary_of
from nlft.report.card import PICTURE, benchmark_results, card_text, draw_matrix

Planted = Callable[..., Path]
COLUMNS = [
    ("people", "task", "test", "exact_match"),
    ("ships", "task", "test", "exact_match"),
    ("facts", "probe", "test", "accuracy"),
    ("text", "probe", "test", "bits_per_byte"),
]
MATRIX = [[0.0, 0.2, 0.9, 1.5], [0.8, 0.3, 0.8, 1.6], [0.6, 0.7, 0.75, 1.75]]
EVIL = "<script>alert(1)</script> | `x` [y](javascript:alert(2)) ![z](//e.il/z)\n\n# big\n---\n'\": {{ 7*7 }} ```"
SECRET = "/home/maker/secret-project"
SHA = "ab" * 32


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "base": BaseNote(model="Qwen/Qwen3-0.6B", revision="c0ffee", sha256=SHA, dtype="bfloat16"),
        "peft_type": "NLFT_SPARSE_MEMORY",
        "method": "sparse_memory",
        "tasks": ["people", "ships"],
        "dtype": "float32",
        "learned_bytes": 3 << 20,
        "calibration_bytes": 1 << 20,
        "files": {"adapter_model.safetensors": FileNote(bytes=4 << 20, sha256=SHA)},
        "versions": {"nlft": "0.1.0", "peft": "0.21.2"},
    }
    return Manifest(**{**fields, **changes})


def made(**changes: Any) -> Recipe:
    def task(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "train": f"{SECRET}/{name}.jsonl",
            "test": {"path": "someone/facts", "only": {"k": [name]}},
        }

    fields: dict[str, Any] = {
        "name": "planted",
        "base": {"model": "Qwen/Qwen3-0.6B"},
        "tasks": [task("people"), task("ships")],
        "probes": [
            {"name": "facts", "data": {"path": "someone/facts", "name": "old"}, "metric": "accuracy"},
            {"name": "text", "data": "builtin:world/text/test", "metric": "bits_per_byte"},
        ],
        "background": {"path": "some/background", "revision": "f00d"},
        "methods": {"sparse_memory": {"kind": "sparse_memory", "lr": 0.03}},
        "out": f"{SECRET}/out",
    }
    return Recipe.model_validate({**fields, **changes})


def measured(planted: Planted, matrix: Any = MATRIX, columns: Any = COLUMNS, **fields: Any) -> tuple[Any, Any]:
    """Summary and line of one run."""
    costs = {"trainable_params": 1_460_000, "stored_bytes": 4 << 20, "train_s": 84.0, "latency_ratio": 1.32}
    run = {"method": "sparse_memory", "matrix": matrix, "base_unchanged": True, "off_equals_base": True} | costs
    folder = planted(
        [{**run, "created_at": "2026-11-21T16:00:00+00:00", "versions": '{"nlft": "0.1.0"}', **fields}], columns
    )
    return summary_of(folder), read_runs(folder / "runs.parquet")[0]


def results_of(text: str) -> dict[tuple[str, str], Any]:
    """Value by (dataset's name, metric) of a card's `model-index`, after a round trip through the Hub's own code."""
    results = ModelCard(text).data.get("eval_results", [])
    _, again = model_index_to_eval_results(eval_results_to_model_index("m", results))
    assert again == results
    return {(one.dataset_name, one.metric_type): one.metric_value for one in results}


class Page(HTMLParser):
    """Tags and addresses of a card as a page renders it, with its HTML let through."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        body = ModelCard(text).text
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_numbers_are_the_runs_own(planted: Planted) -> None:
    summary, run = measured(planted)
    page = Page(text := card_text(manifest(), summary, run, made()))
    assert summary["paragraph"] in page.text and "no forgetting" not in text.lower()
    ends = summary["runs"][0]["intervals"]["probes"]["facts"]
    low, high = (f"{100 * ends[end]:.1f}".replace("-", "−") for end in ("low", "high"))
    assert rf"| probe facts | accuracy | 90.0 % | – | 75.0 % | – | −15.0 points \[{low}, {high}\] | 20 |" in text
    assert r"| task people | exact\_match | 0.0 % | 80.0 % | 60.0 % | +60.0 points | −20.0 points \[" in text
    assert r"| task ships | exact\_match | 20.0 % | 70.0 % | 70.0 % | +50.0 points | – | 20 |" in text
    assert r"| probe text | bits\_per\_byte (lower is better) | 1.500 bits/byte | – | 1.750 bits/byte | – | −" in text
    for words in ("1.46 M", "4.00 MiB as exported", "×1.32", "bfloat16", "one seed (0) and one order"):
        assert words in page.text, words
    assert page.links == [PICTURE]


def test_model_index_has_levels_and_losses(planted: Planted) -> None:
    summary, run = measured(planted)
    text = card_text(manifest(), summary, run, made())
    assert results_of(text) == {
        ("people (someone/facts)", "exact_match"): 0.6,
        ("people (someone/facts)", "exact_match_gained"): 0.6,
        ("people (someone/facts)", "exact_match_lost_since_learned"): 0.2,
        ("ships (someone/facts)", "exact_match"): 0.7,
        ("ships (someone/facts)", "exact_match_gained"): 0.5,
        ("ships (someone/facts)", "exact_match_lost_since_learned"): 0.0,
        ("facts (someone/facts)", "accuracy"): 0.75,
        ("facts (someone/facts)", "accuracy_lost"): 0.15,
        ("text (builtin:world/text/test)", "bits_per_byte"): 1.75,
        ("text (builtin:world/text/test)", "bits_per_byte_lost"): 0.25,
    }
    kinds = {one.dataset_name: one.dataset_type for one in ModelCard(text).data.get("eval_results", [])}
    assert kinds["facts (someone/facts)"] == "someone/facts"
    assert kinds["text (builtin:world/text/test)"] == "unknown"  # never taken for somebody's dataset


def test_front_matter_says_what_is_known(planted: Planted) -> None:
    summary, run = measured(planted)
    data = ModelCard(card_text(manifest(), summary, run, made())).data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-0.6B" and data["library_name"] == "peft"
    assert data["pipeline_tag"] == "text-generation" and data["datasets"] == ["some/background"]
    tags = ["nlft", "continual-learning", "nlft-sparse-memory", "base_model:adapter:Qwen/Qwen3-0.6B"]
    assert data["tags"] == tags and data["model-index"][0]["name"] == "planted-sparse-memory"
    assert not {"license", "license_name", "language", "model_name", "eval_results"} & set(data)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("MIT", {"license": "mit"}),
        ("apache-2.0", {"license": "apache-2.0"}),
        ("Ours: ask us", {"license": "other", "license_name": "ours-ask-us"}),
        (" ", {}),
    ],
)
def test_licences_are_as_given(given: str, wanted: dict[str, str]) -> None:
    text = card_text(
        manifest(), None, None, made(), license=given, language=["en", "x: y"], data_licenses={"some/background": "CC0"}
    )
    data = ModelCard(text).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == wanted
    assert data["language"] == ["en"]
    assert f"Licence of this adapter: {given.strip() or 'not stated'}." in text
    assert re.search(r"\| some/background, train \| background \|.*\| f00d \| CC0 \|", text)
    assert re.search(r"\| people.jsonl \| people \| training \| – \| not stated \|", text)


def test_nothing_measured_is_said() -> None:
    text = card_text(manifest(tasks=[], method=None, calibration_bytes=0), None, None, None)
    assert "Nothing was measured" in text and "matrix.png" not in text and "Recipe" not in text
    assert not results_of(text) and "model-index" not in text


def test_a_run_that_failed_has_no_numbers(planted: Planted) -> None:
    summary, run = measured(planted, matrix=[], status="failed: training diverged")
    text = card_text(manifest(), summary, run, made())
    assert "The run did not finish (failed: training diverged)." in Page(text).text
    assert not results_of(text) and "matrix.png" not in text


def test_what_is_missing_is_left_out(planted: Planted, tmp_path: Path) -> None:
    nan = float("nan")
    summary, run = measured(planted, [[0.0, 0.2, 0.9, nan], [0.8, 0.3, 0.8, nan], [0.6, 0.7, 0.75, nan]])
    text = card_text(manifest(), summary, run, made())
    assert not {name for name, _ in results_of(text) if name.startswith("text")}
    assert "| probe facts |" in text and "| probe text |" not in text
    assert "nan" not in text.lower().replace("finan", "")
    (tmp_path / "out").mkdir()
    draw_matrix(summary, tmp_path / "out" / PICTURE)
    (drawn,) = (tmp_path / "out").iterdir()  # and no table beside it
    assert drawn.name == PICTURE and drawn.read_bytes().startswith(b"\x89PNG")


def test_one_task_without_probes(planted: Planted) -> None:
    summary, run = measured(planted, [[0.1], [0.9]], COLUMNS[:1])
    text = card_text(manifest(peft_type="LORA", calibration_bytes=0), summary, run, None)
    assert "there were no probes" in text and "one seed (0)." in text and "one order" not in text
    assert "can be merged" in text and "calibrated" not in text and "pip install nlft" not in text
    assert results_of(text)["people", "exact_match_gained"] == 0.8


def test_text_from_outside_stays_text(planted: Planted) -> None:
    summary, run = measured(planted, method=EVIL, run_id="evil")
    for column in summary["columns"]:
        column["metric"] = EVIL
    summary["paragraph"], summary["outcome"] = EVIL, EVIL
    summary = json.loads(json.dumps(summary).replace('"ships"', json.dumps(EVIL)))
    hostile = manifest(
        base=BaseNote(model=EVIL, revision=EVIL, sha256=SHA),
        peft_type=EVIL,
        method=EVIL,
        tasks=[EVIL],
        continued_from=Origin(name=EVIL, revision=EVIL, sha256=SHA),
        rescored=EVIL,
        versions={EVIL: EVIL},
    )
    recipe = made(base={"model": EVIL}, probes=[{"name": "facts", "lm_eval": {"task": EVIL, "doc_to_text": EVIL}}])
    clean = Page(card_text(manifest(continued_from=hostile.continued_from), summary, run, made()))
    text = card_text(hostile, summary, run, recipe, license=EVIL, data_licenses={"some/background": EVIL})
    page = Page(text)
    allowed = "h[123]|p|pre|code|strong|ul|li|img|table|thead|tbody|tr|th|td"
    assert [tag for tag in page.tags if not re.fullmatch(allowed, tag)] == []
    assert page.links == [PICTURE]
    assert all(page.tags.count(tag) == clean.tags.count(tag) for tag in ("h1", "h2", "h3", "pre", "table"))
    assert "<script>alert(1)</script>" in page.text  # shown, not run
    rows = [line for line in text.splitlines() if line.startswith(("| task", "| probe"))]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in rows] == [9, 9, 9, 9]
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "other" and "base_model" not in data
    assert compile(re.findall(r"`{3,}python\n(.*?)\n`{3,}", text, re.DOTALL)[0], "snippet", "exec")


def test_places_of_the_makers_machine_do_not_leak(planted: Planted) -> None:
    summary, run = measured(planted)
    summary["base"]["model"] = f"{SECRET}/base"
    recipe = made(
        base={"model": f"{SECRET}/base"},
        probes=[{"name": "facts", "lm_eval": {"task": "t", "dataset_kwargs": {"data_files": f"{SECRET}/f.json"}}}],
    )
    local = manifest(
        base=BaseNote(model=f"{SECRET}/base", sha256=SHA), continued_from=Origin(name=f"{SECRET}/run7", sha256=SHA)
    )
    text = card_text(local, summary, run, recipe)
    assert "secret-project" not in text and "/home" not in text
    for words in ("people.jsonl", "f.json", "Continued from run7", "path/to/base", "a folder on its maker's machine"):
        assert words in text, words
    assert "base_model" not in text.split("\n---\n")[0]


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (None, "How large a LoRA of equal learning would be is not known."),
        (LoraNote(bytes=1 << 19, rank=8, computed=True), "what it would learn was not measured"),
        (LoraNote(bytes=1 << 19, rank=8, run_id="l", learning=0.9), "A LoRA of rank 8 that learned as much at 90 % of"),
    ],
)
def test_size_stands_beside_lora(lora: LoraNote | None, words: str) -> None:
    text = card_text(manifest(lora=lora), None, None, None)
    assert words in text and ("×8)" in text) == (lora is not None)


def test_only_whole_benchmarks_become_eval_results(planted: Planted) -> None:
    columns = [COLUMNS[0]] + [(n, "probe", "test", "exact_match") for n in ("math", "part", "own", "mine")]
    summary, run = measured(planted, [[0.0, 0.5, 0.5, 0.5, 0.5], [0.9, 0.4, 0.4, 0.4, 0.4]], columns)
    probes = [
        {"name": "math", "lm_eval": "gsm8k", "num_fewshot": 5, "metric": "exact_match,strict-match"},
        {"name": "part", "lm_eval": "gsm8k", "limit": 100},
        {"name": "own", "data": "builtin:world/base/probe"},
        {"name": "mine", "lm_eval": {"task": "gsm8k"}},
    ]
    files = benchmark_results({**summary, "recipe": yaml.safe_dump({"probes": probes})}, run)
    assert list(files) == ["gsm8k.yaml"]
    (found,) = parse_eval_result_entries(yaml.safe_load(files["gsm8k.yaml"]))
    assert (found.dataset_id, found.task_id, found.value, found.date) == ("openai/gsm8k", "gsm8k", 40.0, "2026-11-21")
    assert "exact_match,strict-match, 5 shots" in (found.notes or "") and "its base alone 50.00" in (found.notes or "")
    assert benchmark_results(summary, run) == {}


def test_a_card_survives_pefts_own_saving(planted: Planted, make_model: Any, tmp_path: Path) -> None:
    import peft
    from peft import LoraConfig, get_peft_model

    summary, run = measured(planted)
    text = card_text(manifest(versions={"peft": peft.__version__}), summary, run, made())
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"])).save_pretrained(str(tmp_path))
    again = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ModelCard(again).text.strip() == ModelCard(text).text.strip()
    assert results_of(again) == results_of(text)
