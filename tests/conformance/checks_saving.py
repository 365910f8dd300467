"""Checks of what comes back from the disk: under any name, by every door of PEFT and transformers."""

from __future__ import annotations

import atexit
import warnings
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import torch
import transformers
from peft import AutoPeftModelForCausalLM, PeftModel
from reload import reloaded
from safetensors.torch import load_file
from subject import SEEING, Refused, add, begin, build, check, end, logits, refuses, shared, train, trained

AWKWARD = ("other", "down", "0", "layers", "tasks", "mlp", "nlft")
"""Names of adapters that are parts of other names too; the last one is a part of PEFT's prefix."""


@lru_cache(maxsize=1)
def scratch() -> Path:
    """A folder that lives as long as the process."""
    folder = Path(mkdtemp(prefix="nlft-conformance-"))
    atexit.register(rmtree, folder, ignore_errors=True)
    return folder


@lru_cache(maxsize=1)
def saved_base(family: str) -> Path:
    """The base on disk."""
    folder = scratch() / "bases" / family
    build(family).save_pretrained(folder)
    return folder


@lru_cache(maxsize=1)
def saved(pathway: str, family: str) -> Path:
    """The shared model's adapter on disk, with the base's folder as the base's name."""
    folder, model = scratch() / "adapters" / f"{pathway}-{family}", shared(pathway, family)
    model.peft_config["default"].base_model_name_or_path = str(saved_base(family))
    model.save_pretrained(folder)
    return folder


def load(folder: Path, family: str, adapter: str = "default", **options: Any) -> Any:
    """By PEFT, onto a fresh base."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter name")  # that is a part of the prefix
        return PeftModel.from_pretrained(build(family), str(folder), adapter_name=adapter, **options)


@check("save", "The file holds the adapter's tensors, no weight of the base, no pickle and no adapter name.")
def is_saved(pathway: str, family: str) -> None:
    folder = saved(pathway, family)
    assert {path.name for path in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors and all(".nlft_" in key and ".default" not in key for key in tensors)
    shapes = {tuple(p.shape) for p in build(family).parameters() if p.ndim >= 2}
    learned = {name.replace(".default", ""): p for name, p in shared(pathway, family).state_dict().items()}
    assert all(torch.equal(tensor, learned[key]) for key, tensor in tensors.items())
    assert not [key for key, tensor in tensors.items() if "base_layer" in key and tuple(tensor.shape) in shapes]


@check("reload", "`PeftModel.from_pretrained` on a fresh base gives the same logits bit for bit.")
def is_reloaded(pathway: str, family: str) -> None:
    again = load(saved(pathway, family), family)
    assert torch.equal(logits(again), logits(shared(pathway, family)))
    assert not torch.equal(logits(again), logits(build(family)))


@check("fresh process", "So does a process that has only imported nlft.")
def is_reloaded_elsewhere(pathway: str, family: str) -> None:
    shared(pathway, family)  # says so if the pathway cannot stand here
    found = reloaded(pathway, family)
    assert found == "equal", found


@check("names", "Saved and loaded under awkward adapter names, twice over, it gives the same logits bit for bit.")
def has_any_name(pathway: str, family: str) -> None:
    expected, folder = logits(shared(pathway, family)), saved(pathway, family)
    for number, name in enumerate(AWKWARD):
        again = load(folder, family, adapter=name)
        assert torch.equal(logits(again), expected), name
        again.save_pretrained(scratch() / f"twice-{pathway}-{family}-{number}")
        folder = scratch() / f"twice-{pathway}-{family}-{number}" / name
    assert (
        load_file(folder / "adapter_model.safetensors").keys()
        == load_file(saved(pathway, family) / "adapter_model.safetensors").keys()
    )


@check("two on disk", "Two adapters are saved apart, and load beside each other.")
def are_saved_apart(pathway: str, family: str) -> None:
    model = trained(pathway, family)
    first = logits(model)
    add(model, pathway, "0")
    begin(model, pathway)
    train(model, pathway, steps=3)
    end(model, pathway)
    second, folder = logits(model), scratch() / f"two-{pathway}-{family}"
    model.save_pretrained(folder)
    again = load(folder, family)
    again.load_adapter(str(folder / "0"), adapter_name="x")
    assert torch.equal(logits(again), first)
    again.set_adapter("x")
    assert torch.equal(logits(again), second)


@check("low memory", "`low_cpu_mem_usage=True` gives the same logits, and leaves nothing on the meta device.")
def loads_in_little_memory(pathway: str, family: str) -> None:
    again = load(saved(pathway, family), family, low_cpu_mem_usage=True)
    assert not [name for name, tensor in again.state_dict().items() if tensor.is_meta]
    assert torch.equal(logits(again), logits(shared(pathway, family)))


@check("AutoPeft", "`AutoPeftModelForCausalLM.from_pretrained(folder)` finds the base by itself.")
def loads_by_path_alone(pathway: str, family: str) -> None:
    folder, expected = saved(pathway, family), logits(shared(pathway, family))
    if family in SEEING:
        refused = refuses(lambda: AutoPeftModelForCausalLM.from_pretrained(folder), "for this kind of AutoModel")
        sentence = refused.split(". ")[0].split(".\n")[0]
        raise Refused(f"transformers: {sentence}. Load the base by AutoModelForImageTextToText, and PeftModel on it.")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), expected)


@check("load_adapter", "transformers' own `model.load_adapter(folder)` gives the same logits.")
def loads_natively(pathway: str, family: str) -> None:
    auto = transformers.AutoModelForImageTextToText if family in SEEING else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(saved_base(family))
    model.load_adapter(str(saved(pathway, family)))
    assert torch.equal(logits(model), logits(shared(pathway, family)))
    model.disable_adapters()
    assert torch.equal(logits(model), logits(build(family)))
