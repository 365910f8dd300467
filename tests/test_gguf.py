"""GGUF files by llama.cpp's converter, for which a script stands in."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlft.errors import NlftError
from nlft.gguf import check_free, convert_to_gguf, find_converter

GOOD = """\
import sys
from pathlib import Path
folder, option, out = sys.argv[1:]
assert option == "--outfile" and (Path(folder) / "config.json").is_file()
Path(out).write_text("GGUF of " + Path(folder).name)
"""
BAD = """\
import sys
from pathlib import Path
Path(sys.argv[3]).write_text("half of a file")
print("INFO: loading", file=sys.stderr)
sys.exit("NotImplementedError: BPE pre-tokenizer was not recognized")
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to convert, on a machine without a converter."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    for name in ("bin", "llama", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def put(folder: Path, text: str) -> Path:
    path = folder / "convert_hf_to_gguf.py"
    path.write_text(text)
    return path


def test_a_converter_on_the_path_writes_the_file(model: Path, tmp_path: Path) -> None:
    script = put(tmp_path / "bin", GOOD)
    assert convert_to_gguf(model, tmp_path / "deep" / "m.gguf") == script
    assert (tmp_path / "deep" / "m.gguf").read_text() == "GGUF of model"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m.gguf"]


def test_what_a_failed_converter_says_is_passed_on(model: Path, tmp_path: Path) -> None:
    put(tmp_path / "bin", BAD)
    with pytest.raises(NlftError, match=r"failed \(exit code 1\)(.|\n)*pre-tokenizer was not recognized") as caught:
        convert_to_gguf(model, tmp_path / "m.gguf")
    assert "is whole" in caught.value.hint
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("m.gguf")]
    put(tmp_path / "bin", "")  # a success that writes nothing is none
    with pytest.raises(NlftError, match=r"failed \(exit code 0\)"):
        convert_to_gguf(model, tmp_path / "m.gguf")


def test_without_a_converter_it_is_said_where_to_get_one(model: Path, tmp_path: Path) -> None:
    assert find_converter() is None
    with pytest.raises(NlftError, match="ready for it") as caught:
        convert_to_gguf(model, tmp_path / "m.gguf")
    assert "https://github.com/ggml-org/llama.cpp" in caught.value.hint and str(model) in caught.value.hint


def test_the_variable_comes_first(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "bin", BAD)
    script = put(tmp_path / "llama", GOOD)
    for value in (tmp_path / "llama", script):
        monkeypatch.setenv("LLAMA_CPP", str(value))
        assert find_converter() == script
    for value in (model, model / "config.json"):
        monkeypatch.setenv("LLAMA_CPP", str(value))
        with pytest.raises(NlftError, match=r"LLAMA_CPP=.* holds no convert_hf_to_gguf.py"):
            find_converter()


def test_a_checkout_beside_its_python_package(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llama" / "gguf-py" / "gguf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(package.parent))
    script = put(tmp_path / "llama", GOOD)
    assert find_converter() == script


def test_nothing_is_written_over(model: Path) -> None:
    with pytest.raises(NlftError, match="is there already"):
        check_free(model / "config.json")
    check_free(model / "new.gguf")
