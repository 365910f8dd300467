"""Checks on a quantised base: bitsandbytes in 4 and in 8 bit, on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from subject import FAMILIES, ROWS, adapted, begin, build, check, end, logits, loss, train
from transformers import BitsAndBytesConfig

KINDS: dict[int, tuple[str, dict[str, Any]]] = {
    4: ("Linear4bit", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}),
    8: ("Linear8bitLt", {"load_in_8bit": True}),
}
"""By bits: class of a quantised map, and the settings."""
QUANTISED = tuple(family for family in FAMILIES if family != "falcon")
"""transformers quantises `nn.Linear` alone and no class made from it, so that Falcon stays as it is."""


def quantised(family: str, bits: int) -> Any:
    """The random model of a family in 4 or 8 bit."""
    plain, (kind, settings) = build(family), KINDS[bits]
    with TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        base = type(plain).from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(**settings), device_map={"": "cpu"}
        )
    assert any(type(module).__name__ == kind for module in base.modules())
    return base.eval().requires_grad_(False)


def learns_beside(pathway: str, family: str, bits: int) -> None:
    """Identity, training, saving, and loading onto the quantised and onto the full base."""
    base = quantised(family, bits)
    expected = logits(base)
    model = adapted(pathway, base)
    begin(model, pathway)
    assert torch.equal(logits(model), expected)
    train(model, pathway)
    end(model, pathway)
    found = logits(model)
    assert torch.isfinite(found).all() and float((found - expected).abs().max()) > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    with TemporaryDirectory() as name:
        folder = str(Path(name) / "adapter")
        model.save_pretrained(folder)
        assert torch.equal(logits(PeftModel.from_pretrained(quantised(family, bits), folder)), found)
        full = PeftModel.from_pretrained(build(family), folder)
    with torch.no_grad():  # what was learned beside rounded weights helps beside the whole ones too
        assert float(loss(full, ROWS)) < float(loss(build(family), ROWS))


@check(
    "4-bit",
    "On a base in 4 bit (nf4) it is the identity, learns, and loads onto that base and the full one.",
    QUANTISED,
)
def learns_beside_4_bit(pathway: str, family: str) -> None:
    learns_beside(pathway, family, 4)


@check("8-bit", "So it does on a base in 8 bit.", QUANTISED)
def learns_beside_8_bit(pathway: str, family: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "MatMul8bitLt")
        learns_beside(pathway, family, 8)
