"""The lines of Python that load an adapter onto its base. Nothing here imports torch."""

from __future__ import annotations

import json
import re

from nlft.hub import is_hub_model
from nlft.manifest import Manifest

ID = "USER/NAME"
"""Stands in a card for the repository's id, which nobody knows before `nlft push`."""


def load_lines(manifest: Manifest, adapter: str, revision: str | None = None, base: str | None = None) -> list[str]:
    """Imports, base and adapter, one line each; what is not a plain name stands in quotes that it cannot end.

    Args:
        adapter: its folder, or USER/NAME.
        revision: the adapter's commit on the Hub.
        base: what to write for a base that is a folder; its path where None.
    """
    note = manifest.base
    hub, builtin = is_hub_model(note.model), note.model.startswith("builtin:")
    quantised = note.quantization != "none"
    classes = "AutoModelForCausalLM" + (", BitsAndBytesConfig" if quantised else "")
    lines = ["import torch"] if note.quantization == "4bit" else []
    lines += ["import nlft"] + (["from nlft.hub import model_location"] if builtin else [])
    lines += ["from peft import PeftModel", f"from transformers import {classes}", ""]
    named = json.dumps(note.model if hub or builtin or base is None else base)
    arguments = [f"model_location({named})" if builtin else named]
    arguments += [f"revision={json.dumps(note.revision)}"] if note.revision and hub else []
    if quantised:
        lines.append(f"settings = {settings_of(manifest)}")
        arguments.append("quantization_config=settings")
    lines.append(f"base = AutoModelForCausalLM.from_pretrained({', '.join(arguments)})")
    pinned = f", revision={json.dumps(revision)}" if revision else ""
    return [*lines, f"model = PeftModel.from_pretrained(base, {json.dumps(adapter)}{pinned})"]


def settings_of(manifest: Manifest) -> str:
    """A call of `BitsAndBytesConfig` with the settings that `nlft.base.quantization` uses."""
    if manifest.base.quantization == "8bit":
        return "BitsAndBytesConfig(load_in_8bit=True)"
    dtype = manifest.base.dtype or ""
    compute = dtype if re.fullmatch("float32|bfloat16|float16", dtype) else "bfloat16"
    return f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.{compute})'
