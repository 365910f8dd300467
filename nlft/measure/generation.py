"""Greedy decoding of many prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.measure.likelihood import Likelihood, by_length
from nlft.types import IGNORE


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    budgets: Sequence[int],
    stops: Collection[int],
    pad_id: int,
    batch_size: int,
) -> list[list[int]]:
    """Greedy continuations of prompts (ids), left-padded in batches; results in the given order.

    Call under `evaluating(model)`. Decoding settings that come with the model (sampling, repetition penalty,
    suppressed tokens) do not apply.

    Args:
        budgets: most new tokens for each prompt.
        stops: ids that end a continuation; not part of it.
    """
    results: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=budgets.__getitem__)
    # Equal budgets together: no row of a batch runs on beyond its own, which could be the end of the context.
    for budget, group in groupby(order, key=budgets.__getitem__):
        members = list(group)
        for chosen in by_length([len(prompts[i]) for i in members], batch_size):
            some = [members[i] for i in chosen]
            texts = _batch(model, [prompts[i] for i in some], budget, stops, pad_id)
            results.update(zip(some, texts, strict=True))
    return [results[i] for i in range(len(prompts))]


def is_written(encoded: Encoded, start: int, likelihood: Likelihood, budget: int, stops: Collection[int]) -> bool:
    """True if greedy decoding from `encoded.ids[:start]` writes exactly the rest and stops.

    If every token of the answer is the likeliest after the gold ones before it, then by induction greedy
    decoding writes the answer; so the teacher-forced pass has decoded it already. Equal up to rounding: two
    tokens of almost the same likelihood may swap with a cache, as they may between any two batch sizes.
    """
    *text, end = encoded.ids[start:]
    return likelihood.greedy and end in stops and len(text) <= budget and not any(i in stops for i in text)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a text: the model's generation settings' and the tokenizer's."""
    ends = _core(model).generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {int(i) for i in [*ends, tokenizer.eos_token_id] if i is not None}


def _core(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _batch(
    model: Any, prompts: Sequence[list[int]], budget: int, stops: Collection[int], pad_id: int
) -> list[list[int]]:
    rows = [Encoded(prompt, [IGNORE] * len(prompt), 0) for prompt in prompts]
    batch = collate(rows, pad_id, side="left").to(next(model.parameters()).device)
    config = GenerationConfig(
        max_new_tokens=budget,
        do_sample=False,
        num_beams=1,
        eos_token_id=sorted(stops) or None,
        pad_token_id=pad_id,
    )
    with _settings(_core(model), config):
        output = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=config
        )
    written: torch.Tensor = output[:, batch.input_ids.shape[1] :]
    return [_until(ids, stops) for ids in written.tolist()]


@contextmanager
def _settings(core: Any, config: GenerationConfig) -> Iterator[None]:
    """`generate` fills what a config leaves open from the model's own settings, so these are set aside."""
    before = core.generation_config
    core.generation_config = config
    try:
        yield
    finally:
        core.generation_config = before


def _until(ids: list[int], stops: Collection[int]) -> list[int]:
    end = next((at for at, i in enumerate(ids) if i in stops), len(ids))
    return ids[:end]
