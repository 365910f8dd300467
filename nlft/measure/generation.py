"""Greedy decoding of many prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from nlft.data.batch import by_length, collate, tokens_a_pass
from nlft.data.template import Encoded
from nlft.measure.likelihood import Likelihood
from nlft.measure.prefix import can_share, positions_of
from nlft.types import IGNORE


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    budgets: Sequence[int],
    stops: Collection[int],
    pad_id: int,
    batch_size: int,
    ended: Callable[[list[int]], bool] | None = None,
    begun: Sequence[list[int]] | None = None,
) -> list[list[int]]:
    """Greedy continuations of prompts (ids), left-padded in batches; results in the given order.

    A row that has ended leaves its batch, so it costs nothing more and no row runs on beyond its own budget. Call
    under `evaluating(model)`. Decoding settings that come with the model (sampling, repetition penalty, suppressed
    tokens) do not apply.

    Args:
        budgets: most new tokens for each prompt.
        stops: ids that end a continuation; not part of it.
        ended: says of the ids written so far whether the text is over.
        begun: what is known already of each continuation, and is part of it: no stop, and shorter than its budget.
    """
    known = [[] for _ in prompts] if begun is None else begun
    read = [[*prompt, *ids] for prompt, ids in zip(prompts, known, strict=True)]
    left = [budget - len(ids) for budget, ids in zip(budgets, known, strict=True)]
    results: dict[int, list[int]] = {i: [] for i, budget in enumerate(left) if budget < 1}
    most = tokens_a_pass(next(model.parameters()).device)
    if can_share(model):
        order = [i for i in range(len(prompts)) if i not in results]
        for chosen in by_length([len(read[i]) for i in order], batch_size, most):
            some = [order[place] for place in chosen]
            over = [partial(_ended_after, ended, known[i]) for i in some] if ended else None
            texts = _decode(model, [read[i] for i in some], [left[i] for i in some], stops, pad_id, over)
            results.update(zip(some, texts, strict=True))
        return [[*known[i], *results[i]] for i in range(len(prompts))]
    order = sorted((i for i in range(len(prompts)) if i not in results), key=left.__getitem__)
    # Equal budgets together: no row of a batch runs on beyond its own, which could be the end of the context.
    for budget, group in groupby(order, key=left.__getitem__):
        members = list(group)
        for chosen in by_length([len(read[i]) for i in members], batch_size, most):
            some = [members[i] for i in chosen]
            texts = _batch(model, [read[i] for i in some], budget, stops, pad_id)
            results.update(zip(some, texts, strict=True))
    return [[*known[i], *results[i]] for i in range(len(prompts))]


def _ended_after(ended: Callable[[list[int]], bool], begun: list[int], ids: list[int]) -> bool:
    return ended([*begun, *ids])


def _decode(
    model: Any,
    prompts: Sequence[list[int]],
    budgets: Sequence[int],
    stops: Collection[int],
    pad_id: int,
    ended: Sequence[Callable[[list[int]], bool]] | None,
) -> list[list[int]]:
    """One batch, token by token."""
    rows = [Encoded(prompt, [IGNORE] * len(prompt), 0) for prompt in prompts]
    batch = collate(rows, pad_id, side="left").to(next(model.parameters()).device)
    ids, mask = batch.input_ids, batch.attention_mask
    places = positions_of(mask)
    cache = None
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    while True:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, tokens = output.past_key_values, output.logits[:, -1].float().argmax(dim=-1)
        going = []
        for place, (row, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
            if token in stops:
                continue
            written[row].append(token)
            if len(written[row]) < budgets[row] and not (ended and ended[row](written[row])):
                going.append(place)
        if not going:
            return written
        if len(going) < len(active):
            kept = torch.tensor(going, device=tokens.device)
            cache.batch_select_indices(kept)
            mask, places, tokens = mask[kept], places[kept], tokens[kept]
            active = [active[place] for place in going]
        ids, places = tokens[:, None], places[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)


def begins(
    encoded: Encoded, start: int, likelihood: Likelihood, budget: int, stops: Collection[int]
) -> tuple[list[int], bool]:
    """What greedy decoding from `encoded.ids[:start]` writes first, and whether that is all.

    If a token of the answer is the likeliest after the gold ones before it, then by induction greedy decoding writes
    it; so the teacher-forced pass has decoded the answer up to its first miss, and the token in that place. Equal up
    to rounding: two tokens of almost the same likelihood may swap with a cache, as they may between any two batch
    sizes.
    """
    ids = encoded.ids[start : likelihood.missed]
    ids += [] if likelihood.instead is None else [likelihood.instead]
    end = next((at for at, i in enumerate(ids) if i in stops), len(ids))
    return ids[: max(0, min(end, budget))], end < len(ids) or end >= budget


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
