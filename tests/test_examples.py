"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from hub_stand_in import HubStandIn, connect  # pyright: ignore

EXAMPLES = Path(__file__).parent.parent / "examples"
Example = Callable[..., list[str]]


@pytest.fixture
def example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Example:
    """`example(name, *words)` runs a script in this process and gives the lines that it prints."""

    def run(name: str, *words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *words])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.strip().splitlines()

    return run


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_they_are_short_and_tested(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f'example("{path.name}"' in Path(__file__).read_text(encoding="utf-8")


def test_load_with_peft(example: Example, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "of.before").touch()
    lines = [line.split(" | ") for line in example("load_with_peft.py", str(tmp_path))]
    assert len(lines) == 3
    wanted = [line[0].split(" … ")[1] for line in lines]
    assert [line[2].removeprefix("adapted: ") for line in lines] == wanted
    assert [line[1].removeprefix("base: ") for line in lines] != wanted


def test_peft_in_ten_lines(example: Example, tmp_path: Path) -> None:
    [line] = example("peft_in_ten_lines.py", str(tmp_path / "adapter"))
    base, adapted = (float(part.split()[-1]) for part in line.split(": ")[1].split(", "))
    assert adapted < base / 2
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "adapter").iterdir()}


@pytest.mark.slow
def test_hf_trainer(example: Example) -> None:
    lines = [line for line in example("hf_trainer.py") if " | wanted: " in line]
    assert len(lines) == 4
    for line in lines:
        said, wanted = line.split(" | wanted: ")
        assert said.endswith(f"… {wanted}")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.slow
def test_trl_sft(example: Example) -> None:
    *_, stories, questions = example("trl_sft.py")
    assert stories.endswith(": 40 of 40") and questions.endswith(": 0 of 40")


@pytest.mark.slow
def test_session_memory(example: Example) -> None:
    line = example("session_memory.py", "40")[-1]
    before, after = (int(word) for word in line.replace(",", "").split() if word.isdecimal() and word != "20")
    assert before <= 3 and after >= before + 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_continue_from_hub(example: Example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    with HubStandIn() as hub:
        connect(monkeypatch, hub, tmp_path)
        first, *lines = [line for line in example("continue_from_hub.py", "alice/people") if "%" in line or "@" in line]
    assert first.startswith("pushed as alice/people@")
    before = {line.split()[1]: float(line.split()[2].rstrip("%")) for line in lines}
    after = {line.split()[1]: float(line.split()[4].rstrip("%")) for line in lines}
    assert lines[0].split()[:2] == ["task", "ships"] and set(after) == {"ships", "people", "facts"}
    assert after["ships"] > before["ships"] + 50 and after["people"] == before["people"] > 50


def test_continue_from_hub_says_what_it_wants(example: Example) -> None:
    with pytest.raises(SystemExit, match=r"usage: .* USER/NAME"):
        example("continue_from_hub.py")


def cells(kind: str) -> list[dict[str, Any]]:
    """The notebook's cells of a kind."""
    story = json.loads((EXAMPLES / "story.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in story["cells"] if cell["cell_type"] == kind]


def test_the_notebook_has_pictures_and_tells_nothing_of_its_maker() -> None:
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert all(output["output_type"] != "error" for output in outputs)
    said = "".join("".join(output.get("text", [])) for output in outputs)
    assert "/home" not in said and "/tmp" not in said and str(EXAMPLES.parent) not in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    for cell in cells("code"):
        source = "".join(cell["source"])
        exec(source.replace("STEPS = 100", "STEPS = 3"), names)
    assert set(names["runs"]) == {"full", "lora", "sparse_memory"}
