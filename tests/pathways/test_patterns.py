"""Modules that somebody names by a pattern are stored by their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pathway_models import build, settings
from peft import get_peft_model

from nlft.adapter import read_config
from nlft.errors import NlftError
from nlft.pathways.sparse_memory.model import memories
from nlft.pathways.stranger import name_modules


def test_patterns_that_people_write_are_stored_as_names(tmp_path: Path) -> None:
    base = build("llama")
    base.text = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"norm": torch.nn.Identity()})})
    config = settings(
        "prototype",
        layers_to_transform=None,
        target_modules=r"^(?!.*vision).*(model|text_model).*\.layers\.\d+\.mlp$",
        exclude_modules=r".*\.[02]\..*",
    )
    model = get_peft_model(base, config)
    assert sorted(memories(model)) == ["model.layers.1.mlp", "model.layers.3.mlp"]
    model.save_pretrained(str(tmp_path))
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(stored["target_modules"]) == [f"model.layers.{layer}.mlp" for layer in range(4)]
    read_config(tmp_path)


def test_a_pattern_matches_whole_names() -> None:
    """PEFT would take every module whose name ends with a listed one."""
    config, base = settings("prototype", layers_to_transform=None, target_modules=r"model\.norm"), build("llama")
    base.text = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"norm": torch.nn.Identity()})})
    name_modules(config, base)
    assert (config.target_modules, config.exclude_modules) == ({"model.norm"}, {"text.model.norm"})
    for pattern, said in (("(", "is no regular expression"), ("mlp", "'mlp' matches no module's name")):
        with pytest.raises(NlftError, match=said):
            name_modules(settings("prototype", layers_to_transform=None, target_modules=pattern), base)
