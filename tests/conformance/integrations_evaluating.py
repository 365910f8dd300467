"""Checks of lm-eval with the model as it was loaded."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from pathway_models import SHAPES
from subject import build, check, shared
from words import text_of, tokenizer_of_words

LENGTHS = ((3, 2), (6, 3), (4, 1), (6, 5))
"""Tokens of the context and of the continuation of every request."""


def requests(seed: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids of contexts and continuations that read like the task."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(60, 80, (before + after,), generator=generator) for before, after in LENGTHS]
    return [(ids[:before], ids[before:]) for ids, (before, _) in zip(drawn, LENGTHS, strict=True)]


def harness(model: Any, batch_size: int) -> Any:
    """lm-eval around a model that is there already."""
    made: Any = HFLM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made(
            pretrained=model, backend="causal", tokenizer=tokenizer_of_words(), batch_size=batch_size, max_length=32
        )


def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    """Requests in lm-eval's form."""
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@torch.no_grad()
def likelihood(model: Any, context: torch.Tensor, continuation: torch.Tensor) -> float:
    """Log likelihood of a continuation, in nats, from the model alone."""
    ids = torch.cat([context, continuation])[None]
    found = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1)
    places = torch.arange(len(context) - 1, ids.shape[1] - 1)
    return float(found[places, continuation].sum())


@check(
    "lm-eval",
    "lm-eval's `HFLM` around the loaded model gives its likelihoods, in batches and alone, in any order, and its"
    " greedy text: nothing of one request is left for the next.",
    SHAPES,
)
def is_evaluated(pathway: str, family: str) -> None:
    model, asked = shared(pathway, family), requests()
    expected = [likelihood(model, *one) for one in asked]
    plain = [likelihood(build(family), *one) for one in asked]
    assert any(abs(one - two) > 1e-3 for one, two in zip(expected, plain, strict=True))
    for batch_size in (1, 3):
        lm = harness(model, batch_size)
        for order in (asked, asked[::-1]):
            texts = [(text_of(context).strip(), text_of(continuation)) for context, continuation in order]
            found = [value for value, _ in lm.loglikelihood(instances("loglikelihood", texts), disable_tqdm=True)]
            wanted = expected if order is asked else expected[::-1]
            torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=0, atol=2e-4)
        options = {"until": ["</s>"], "max_gen_toks": 4, "do_sample": False}
        texts = [(text_of(context).strip(), options) for context, _ in asked]
        written = lm.generate_until(instances("generate_until", texts), disable_tqdm=True)
        alone = [
            model.generate(input_ids=one[None], max_new_tokens=4, do_sample=False)[0, len(one) :] for one, _ in asked
        ]
        words = [str(tokenizer_of_words().decode(ids, skip_special_tokens=True)) for ids in alone]
        assert [text.split() for text in written] == [text.split() for text in words]
