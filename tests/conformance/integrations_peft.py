"""Checks of what else PEFT offers: a report of the model, other adapters beside the pathway, and what is refused."""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from subject import (
    PATHWAYS,
    ROWS,
    Refused,
    adapted,
    begin,
    build,
    check,
    end,
    logits,
    loss,
    refuses,
    shared,
    train,
    trained,
)

from nlft.anatomy import decoder_layers, is_map


@check("status", "`get_model_status` and `print_trainable_parameters` name the pathway and count what is trained.")
def is_reported(pathway: str, family: str) -> None:
    base = build(family)
    own = sum(p.numel() for p in base.parameters())
    model = adapted(pathway, base)
    begin(model, pathway)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    status = model.get_model_status()
    kind = str(PATHWAYS[pathway].config().peft_type.value)
    assert status.peft_types == {"default": kind} and status.active_adapters == ["default"] and status.enabled is True
    assert status.trainable_params == count > 0 and status.total_params == own + count
    assert status.num_adapter_layers > 0 and status.requires_grad == {"default": True}
    assert all(layer.devices["default"] == ["cpu"] for layer in model.get_layer_status())
    with redirect_stdout(StringIO()) as printed:
        model.print_trainable_parameters()
    assert f"trainable params: {count:,} || all params: {own + count:,}" in printed.getvalue()


@check(
    "is_trainable",
    "Loaded with `is_trainable=True` in the middle of a task it goes on learning; without, it is frozen.",
)
def goes_on(pathway: str, family: str) -> None:
    model = adapted(pathway, build(family))
    begin(model, pathway)
    train(model, pathway, steps=1)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        frozen = PeftModel.from_pretrained(build(family), folder)
        again = PeftModel.from_pretrained(build(family), folder, is_trainable=True)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert torch.equal(logits(frozen), logits(model))
    for one in (model, again):
        train(one, pathway, steps=1)
    assert not torch.equal(logits(model), logits(frozen))
    assert torch.equal(logits(again), logits(model))
    end(again, pathway)
    assert torch.equal(logits(again), logits(model))


@check("inject", "`inject_adapter_in_model` and `set_peft_model_state_dict` work without a PeftModel.")
def is_injected(pathway: str, family: str) -> None:
    model = shared(pathway, family)
    tensors, config = get_peft_model_state_dict(model), model.peft_config["default"]
    injected = inject_adapter_in_model(config, build(family)).eval()
    found = set_peft_model_state_dict(injected, tensors)
    assert not found.unexpected_keys
    assert torch.equal(logits(injected), logits(model))


def lora(base: Any, adapter: str = "default") -> Any:
    """A LoRA beside the first linear map of every layer."""
    plain = base.get_base_model() if hasattr(base, "get_base_model") else base
    prefix, layers = decoder_layers(plain)
    below = "base_model.model." if plain is not base else ""
    names = [
        f"{below}{prefix}.{index}.{next(name for name, one in layer.named_modules() if is_map(one))}"
        for index, layer in enumerate(layers)
    ]
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=names, init_lora_weights=False)
    torch.manual_seed(7)
    return get_peft_model(base, config, adapter_name=adapter)


@check(
    "LoRA around",
    "A LoRA with a name of its own, put around the loaded adapter, learns alone and loads around it again; under the"
    " adapter's name it is refused.",
)
def carries_a_lora(pathway: str, family: str) -> None:
    with TemporaryDirectory() as folder:
        shared(pathway, family).save_pretrained(f"{folder}/own")
        inner = PeftModel.from_pretrained(build(family), f"{folder}/own")
        expected = logits(inner)
        refuses(lambda: lora(inner), "a name of its own")
        outer = lora(inner, "lora")
        names = [name for name, p in outer.named_parameters() if p.requires_grad]
        assert names and all(".lora_" in name for name in names)
        optimizer = torch.optim.AdamW([p for p in outer.parameters() if p.requires_grad], lr=0.05)
        loss(outer.train(), ROWS).backward()
        optimizer.step()
        found = logits(outer.eval())
        assert not torch.equal(found, expected)
        outer.save_pretrained(f"{folder}/around", selected_adapters=["lora"])
        again = PeftModel.from_pretrained(build(family), f"{folder}/own")
        again = PeftModel.from_pretrained(again, f"{folder}/around/lora", adapter_name="lora")
        assert torch.equal(logits(again), found)
        inner.save_pretrained(f"{folder}/later", selected_adapters=["default"])
        again = PeftModel.from_pretrained(build(family), f"{folder}/later")
        assert torch.equal(logits(again), expected)


@check("LoRA below", "On a model that carries a LoRA it is refused: PEFT would lose one of the two.")
def refuses_a_lora_below(pathway: str, family: str) -> None:
    model = shared(pathway, family)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        below = lora(build(family))
        raise Refused(refuses(lambda: PeftModel.from_pretrained(below, folder), "onto the base itself"))


@check("PeftModel below", "On another PeftModel an adapter of the base is refused: its tensors have no place there.")
def refuses_a_model_below(pathway: str, family: str) -> None:
    model = shared(pathway, family)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        below = trained(pathway, family)
        load = partial(PeftModel.from_pretrained, below, folder, adapter_name="second")
        raise Refused(refuses(load, "has no place in the model"))


@check("weighted sum", "`add_weighted_adapter` refuses: no pathway is linear in its weights.")
def refuses_sums(pathway: str, family: str) -> None:
    model = shared(pathway, family)
    said = "add_weighted_adapter: "
    raise Refused(refuses(lambda: model.add_weighted_adapter(["default"], [1.0], "sum"), said))


@check("mixed rows", "`adapter_names=[…]`, an adapter for each row, is refused in a forward pass and in `generate`.")
def refuses_rows(pathway: str, family: str) -> None:
    model, names = shared(pathway, family), ["default"] * len(ROWS.input_ids)
    refuses(lambda: model.generate(input_ids=ROWS.input_ids, adapter_names=names, max_new_tokens=1), "`adapter_names`")
    raise Refused(refuses(lambda: model(input_ids=ROWS.input_ids, adapter_names=names), "`adapter_names`"))


@check("mixed model", "`PeftMixedModel`, `mixed=True`, and a LoRA added to the same PeftModel are refused by PEFT.")
def refuses_mixing(pathway: str, family: str) -> None:
    model = trained(pathway, family)
    kind = PATHWAYS[pathway].config().peft_type.value
    refuses(lambda: model.add_adapter("lora", LoraConfig(target_modules=["any"])), "different peft types")
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        refuses(lambda: PeftMixedModel.from_pretrained(build(family), folder), kind)
    config = PATHWAYS[pathway].config()
    raise Refused(refuses(lambda: get_peft_model(build(family), config, mixed=True), kind))


@check("hotswap", "PEFT's `hotswap_adapter` refuses: it is written for LoRA.")
def refuses_swapping(pathway: str, family: str) -> None:
    model = trained(pathway, family)
    expected = logits(model)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        sentence = refuses(lambda: hotswap_adapter(model, folder, "default"), "only supports LORA")
    assert torch.equal(logits(model), expected)
    raise Refused(sentence)
