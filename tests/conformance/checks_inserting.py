"""Checks of what a pathway does to a model: inserting, learning, switching off, taking away."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from families import image_rows
from subject import (
    PATHWAYS,
    ROWS,
    SEEING,
    Refused,
    adapted,
    add,
    begin,
    build,
    check,
    logits,
    loss,
    refuses,
    shared,
    train,
    trained,
)

from nlft.anatomy import decoder_layers
from nlft.base import fingerprint, named_tensors
from nlft.pathways.block import PathwayLayer


def pathway_layers(model: Any) -> dict[str, PathwayLayer]:
    """Wrapped modules by name."""
    root = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {name: module for name, module in root.named_modules() if isinstance(module, PathwayLayer)}


def hooks(model: Any) -> int:
    """Forward hooks of all modules."""
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())


def trainable(model: Any) -> dict[str, Any]:
    """What takes a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@check("insert", "Blocks of the text decoder are found and wrapped, and nothing else; an image is still seen.")
def inserts(pathway: str, family: str) -> None:
    base = build(family)
    kinds = {name: type(module) for name, module in base.named_modules()}
    prefix, _ = decoder_layers(base)
    model = adapted(pathway, base)
    wrapped = pathway_layers(model)
    assert wrapped and all(name.startswith(f"{prefix}.") for name in wrapped)
    left = {name: type(module) for name, module in base.named_modules() if ".nlft_" not in f".{name}"}
    assert all(left[name] is kind for name, kind in kinds.items() if name in left and name not in wrapped)
    if family not in SEEING:
        return
    begin(model, pathway)
    with torch.no_grad():
        seen = base.model.get_image_features(**image_rows("pixels"))
        expected = build(family)(**image_rows()).logits
        assert torch.equal(model(**image_rows()).logits, expected)
    train(model, pathway)
    with torch.no_grad():
        assert not torch.equal(model(**image_rows()).logits, expected) or pathway in ("prototype", "gated_lora")
        again = base.model.get_image_features(**image_rows("pixels"))
    assert all(torch.equal(one, two) for one, two in zip(tensors_of(seen), tensors_of(again), strict=True))


def tensors_of(found: Any) -> list[torch.Tensor]:
    """All tensors of an output."""
    if isinstance(found, torch.Tensor):
        return [found]
    if found is None:
        return []
    return [tensor for part in (found.values() if hasattr(found, "values") else found) for tensor in tensors_of(part)]


@check("identity", "Inserted, calibrated and with an open task, the model gives the base's logits bit for bit.")
def is_identity(pathway: str, family: str) -> None:
    base = build(family)
    expected = logits(base)
    model = adapted(pathway, base)
    assert torch.equal(logits(model), expected)
    begin(model, pathway)
    assert torch.equal(logits(model), expected)
    assert torch.isfinite(expected).all()


@check("gradient", "Only the pathway takes a gradient, and after one step each of its tensors has one.")
def gets_gradients(pathway: str, family: str) -> None:
    model = adapted(pathway, build(family))
    begin(model, pathway)
    own = trainable(model)
    assert own and all(".nlft_" in name for name in own)
    loss(model, ROWS).backward()
    assert any(float(p.grad.abs().max()) > 0 for p in own.values() if p.grad is not None)
    assert all(p.grad is None for name, p in model.named_parameters() if name not in own)
    train(model, pathway, steps=1)
    loss(model, ROWS).backward()
    silent = [name for name, p in own.items() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert not silent, f"no gradient: {silent}"


@check("learn", "Two steps of AdamW move the logits and lower the loss.")
def learns(pathway: str, family: str) -> None:
    base, model = build(family), shared(pathway, family)
    assert float((logits(model) - logits(base)).abs().max()) > 1e-2
    with torch.no_grad():
        assert float(loss(model, ROWS)) < float(loss(base, ROWS))


@check("frozen", "No bit of the base's weights and buffers has changed.")
def leaves_the_base(pathway: str, family: str) -> None:
    base = build(family)
    names = frozenset(name for name, _ in named_tensors(base))
    assert fingerprint(shared(pathway, family), names) == fingerprint(base)


@check("bf16", "On a bfloat16 base the pathway is the identity, learns, and stays float32.")
def works_in_half_precision(pathway: str, family: str) -> None:
    base = build(family, torch.bfloat16)
    expected = logits(base)
    model = adapted(pathway, base)
    begin(model, pathway)
    assert torch.equal(logits(model), expected)
    train(model, pathway)
    found = logits(model)
    assert found.dtype == torch.bfloat16 and torch.isfinite(found).all() and not torch.equal(found, expected)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}


@check("deepcopy", "A copy learns without its original.")
def is_copied(pathway: str, family: str) -> None:
    model = adapted(pathway, build(family))
    begin(model, pathway)
    expected = logits(model)
    twin = deepcopy(model)
    train(twin, pathway)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(twin), logits(shared(pathway, family)))


@check("disable", "`disable_adapter()` gives the base's logits bit for bit, and the adapter's again behind it.")
def is_disabled(pathway: str, family: str) -> None:
    model = shared(pathway, family)
    expected = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build(family)))
    assert torch.equal(logits(model), expected)


@check("two adapters", "A second adapter starts as the base and learns; switching gives either bit for bit.")
def switches(pathway: str, family: str) -> None:
    model = trained(pathway, family)
    first, plain = logits(model), logits(build(family))
    add(model, pathway, "other")
    assert torch.equal(logits(model), plain)
    begin(model, pathway)
    train(model, pathway, steps=3)
    second = logits(model)
    PATHWAYS[pathway].end(model)
    assert not torch.equal(second, plain) and not torch.equal(second, first)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.base_model.set_adapter(["default", "other"])
    assert not torch.equal(logits(model), first) and not torch.equal(logits(model), second)
    model.set_adapter("other")
    assert torch.equal(logits(model), second)


@check("delete", "Deleting one of two adapters leaves the other bit for bit; deleting both leaves the base.")
def is_deleted(pathway: str, family: str) -> None:
    model = trained(pathway, family)
    expected = logits(model)
    add(model, pathway, "other")
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(logits(model), expected)
    assert not [name for name in model.state_dict() if ".other." in name]
    model.delete_adapter("default")
    assert torch.equal(logits(model.base_model.model), logits(build(family)))
    assert not [name for name in model.state_dict() if ".nlft_" in name]


@check("unload", "`unload()` gives back the very modules of the base, without hooks, wrappers or changes.")
def is_unloaded(pathway: str, family: str) -> None:
    base = build(family)
    modules, before, count = dict(base.named_modules()), fingerprint(base), hooks(base)
    model = adapted(pathway, base)
    begin(model, pathway)
    train(model, pathway)
    plain = model.unload()
    assert dict(plain.named_modules()) == modules
    assert hooks(plain) == count and fingerprint(plain) == before
    assert torch.equal(logits(plain), logits(build(family)))


@check("merge", "A linear pathway merges and unmerges; any other refuses with the reason, in both of PEFT's functions.")
def merges(pathway: str, family: str) -> None:
    model = shared(pathway, family)
    expected = logits(model)
    if pathway == "cms_pretrained":
        model = deepcopy(model)
        model.merge_adapter()
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=2e-4)
        model.unmerge_adapter()
        assert torch.equal(logits(model), expected)
        plain = model.merge_and_unload()
        torch.testing.assert_close(logits(plain), expected, rtol=0, atol=2e-4)
        assert not pathway_layers(plain)
        return
    sentences = {refuses(call, "merg.*unload") for call in (model.merge_and_unload, model.merge_adapter)}
    assert torch.equal(logits(model), expected)
    raise Refused(sentences.pop())
