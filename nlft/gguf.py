"""GGUF files through llama.cpp's own converter, if it is on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from nlft.errors import NlftError

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
"""Environment variable with llama.cpp's folder, or the script itself."""
WHERE = "https://github.com/ggml-org/llama.cpp"
TOLD = 12
"""Last lines of a failed converter that are shown."""


def find_converter() -> Path | None:
    """llama.cpp's converter: in $LLAMA_CPP, on PATH, or beside an installed `gguf` or `llama_cpp` package.

    Raises:
        NlftError: $LLAMA_CPP names neither the script nor a folder with it.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named).expanduser()
        path = path / SCRIPT if path.is_dir() else path
        if path.name != SCRIPT or not path.is_file():
            raise NlftError(f"{VARIABLE}={named} holds no {SCRIPT}.", f"Name llama.cpp's folder ({WHERE}).")
        return path.resolve()
    # Not `shutil.which`, which wants it executable: here Python runs it.
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for package in ("gguf", "llama_cpp"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            own = Path(spec.origin).resolve().parent
            folders += [own, own.parent.parent]  # a checkout of llama.cpp holds gguf-py/gguf
    return next((folder / SCRIPT for folder in folders if (folder / SCRIPT).is_file()), None)


def convert_to_gguf(model: Path, file: Path) -> Path:
    """Converts a Hugging Face model's folder, in the converter's own default type.

    Args:
        file: written whole or not at all; must not be there yet.

    Returns:
        The converter that did it.

    Raises:
        NlftError: there is no converter, or it failed, with what it said.
    """
    converter = find_converter()
    if converter is None:
        raise NlftError(
            f"No GGUF file was written: llama.cpp's {SCRIPT} is neither on PATH nor in ${VARIABLE}. The merged model"
            f" in {model} is ready for it.",
            f"Get llama.cpp ({WHERE}) and install its requirements, then run: python {SCRIPT} {model} --outfile {file}",
        )
    partial = file.with_name(f"{file.name}.partial")
    command = [sys.executable, str(converter), str(model), "--outfile", str(partial)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not partial.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-TOLD:]
            raise NlftError(
                f"{converter} failed (exit code {done.returncode}), and no GGUF file was written. It said:\n"
                + "\n".join(f"  {line}" for line in said),
                f"The merged model in {model} is whole. The converter may not know this architecture or tokenizer.",
            )
        partial.replace(file)
    except OSError as error:
        raise NlftError(f"{file} cannot be written: {error.strerror}.", "Give another file with --gguf.") from error
    finally:
        partial.unlink(missing_ok=True)
    return converter


def check_free(file: Path) -> None:
    """Refuses to write over something.

    Raises:
        NlftError: something is there.
    """
    if file.exists():
        raise NlftError(f"{file} is there already.", "Give another file with --gguf.")
