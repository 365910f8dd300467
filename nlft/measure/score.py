"""Scoring one column of the matrix: rows in, one or two `Item`s a row out."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nlft.data.template import Encoded, TooLong, pad_id
from nlft.errors import DataError
from nlft.measure.encodings import Asked, Encodings, Setting, asked_of, choices_of, parts_of
from nlft.measure.evaluation import check_evaluation
from nlft.measure.generation import begins, generate, stop_ids
from nlft.measure.isolation import evaluating
from nlft.measure.kl import Reference, divergences
from nlft.measure.likelihood import Likelihood, likelihoods
from nlft.measure.metric import (
    bits_per_byte,
    choice_margin,
    choose,
    metric_spec,
    nats_per_token,
    text_scorer,
)
from nlft.types import IGNORE, Condition, Evaluation, Item, Row


@dataclass(frozen=True, slots=True)
class Value:
    """One metric's value of one row, and its weight in the mean."""

    metric: str
    value: float
    weight: float = 1.0
    prediction: str = ""


def score(
    model: Any,
    tokenizer: Any,
    evaluation: Evaluation,
    *,
    stage: int,
    condition: Condition,
    batch_size: int,
    max_length: int,
    max_new_tokens: int | None = None,
    too_long: TooLong = "error",
    reference: Reference | None = None,
    encodings: Encodings | None = None,
) -> list[Item]:
    """Scores every row of an evaluation; items in the order of the rows.

    The metric decides what the model does:

    - likelihood (`nll`, `bits_per_byte`): one teacher-forced pass; items `nll` (nats/token, weight = target
      tokens) and `bits_per_byte` (weight = the target's UTF-8 bytes).
    - generation (`exact_match`, `answer_match`, `f1`, `contains`, `evaluate` metrics): a greedily decoded answer,
      in `prediction`; items of the metric, and of `nll` from the teacher-forced pass that comes first.
    - choice (`accuracy`, `accuracy_norm`): the choice of the highest summed log-likelihood given the prompt,
      end token not counted (`accuracy`), and of the highest per UTF-8 byte of the choice (`accuracy_norm`); and
      by how many nats the right one is ahead of the best other (`margin`). The named metric comes first.
    - divergence (`kl`): the base and the model read the same tokens; nats/token of KL(base || model), weight =
      target tokens, 0 for the base.
    - a task of lm-evaluation-harness does what it does (`bridge.py`).

    Results do not depend on `batch_size` beyond rounding. Training modes, random states, gradients and the
    model's generation settings are afterwards as before.

    Args:
        model: a causal language model or a PEFT model around one, as `transformers` gives it.
        tokenizer: its tokenizer.
        stage: 0 for the base, s after the s-th task.
        condition: "base", "on" or "off"; recorded, not acted on.
        batch_size: sequences a forward pass.
        max_length: longest sequence in tokens, prompt and answer together.
        max_new_tokens: longest generated answer in tokens; the longest reference and 4 more when None.
        too_long: what to do with rows beyond `max_length`, as `encode` does it. The parts of a split
            text count as one row; answers and choices are never split.
        reference: loads the base, for `kl` of a model that is not an adapter around it.
        encodings: where the rows' tokens are kept that will be scored again.

    Raises:
        DataError: no rows, or a row that the metric cannot score.
        RecipeError: a metric that cannot be loaded.
    """
    rows = evaluation.rows
    check_evaluation(evaluation)
    if evaluation.harness is not None:
        from nlft.measure.bridge import score_harness  # lm-eval is an extra

        return score_harness(model, tokenizer, evaluation, stage, condition, batch_size, max_length)
    if metric_spec(evaluation.metric).scoring == "divergence" and any(row.examples for row in rows):
        return []  # the base does not read the examples that are put into the context, so there is no common token
    setting = Setting(batch_size, max_length, max_new_tokens, too_long)
    scoring = metric_spec(evaluation.metric).scoring
    known = encodings or Encodings()

    def made(kind: str, make: Callable[..., Any]) -> Any:
        return known.of(evaluation.column, kind, rows, tokenizer, setting, partial(make, rows, tokenizer, setting))

    with evaluating(model):
        if scoring == "likelihood":
            values = _predict(model, tokenizer, rows, made("parts", parts_of), setting)
        elif scoring == "choice":
            values = _choose(model, tokenizer, evaluation, made("choices", choices_of), setting)
        elif scoring == "divergence":
            values = _diverge(model, tokenizer, made("parts", parts_of), condition, reference, setting)
        else:
            values = _answer(model, tokenizer, evaluation, made("asked", asked_of), setting)
    ids = made("ids", lambda rows, *_: item_ids(rows))
    return [
        Item(
            stage=stage,
            condition=condition,
            column=evaluation.column,
            role=evaluation.role,
            split=evaluation.split,
            metric=value.metric,
            item_id=item_id,
            cluster=row.cluster or item_id,
            value=value.value,
            weight=value.weight,
            prediction=value.prediction,
        )
        for row, item_id, of_row in zip(rows, ids, values, strict=True)
        for value in of_row
    ]


def item_ids(rows: Sequence[Row]) -> list[str]:
    """Ids from the content of rows, so that they hold under another limit or order.

    16 hex digits of sha256 over prompt, completion, messages and choices; equal rows are told apart by `-1`,
    `-2` and so on.
    """
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        content = [row.prompt, row.completion, [[m.role, m.content] for m in row.messages], row.choices]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        ids.append(f"{digest}-{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return ids


def _predict(
    model: Any, tokenizer: Any, rows: Sequence[Row], parts: Sequence[Sequence[Encoded]], setting: Setting
) -> list[list[Value]]:
    flat = likelihoods(model, [part for of_row in parts for part in of_row], pad_id(tokenizer), setting.batch_size)
    results, values = iter(flat), []
    for row, of_row in zip(rows, parts, strict=True):
        found = [next(results) for _ in of_row]
        whole = Likelihood(sum(one.nats for one in found), sum(one.tokens for one in found))
        n_bytes = sum(part.n_bytes for part in of_row)
        if not n_bytes:
            raise DataError(f"{row.source or 'A row'} has no target text.", "Give it a completion or remove it.")
        bits = Value("bits_per_byte", bits_per_byte(whole.nats, n_bytes), n_bytes)
        values.append([_nll(whole), bits])
    return values


def _nll(likelihood: Likelihood) -> Value:
    return Value("nll", nats_per_token(likelihood.nats, likelihood.tokens), likelihood.tokens)


def _diverge(
    model: Any,
    tokenizer: Any,
    parts: Sequence[Sequence[Encoded]],
    condition: Condition,
    reference: Reference | None,
    setting: Setting,
) -> list[list[Value]]:
    flat = [part for of_row in parts for part in of_row]
    if condition == "base":  # by definition
        found = iter([0.0] * len(flat))
    else:
        found = iter(divergences(model, reference, flat, pad_id(tokenizer), setting.batch_size))
    values = []
    for of_row in parts:
        nats = sum(next(found) for _ in of_row)
        tokens = sum(label != IGNORE for part in of_row for label in part.labels[1:])
        values.append([Value("kl", nats / tokens, tokens)])
    return values


def _answer(model: Any, tokenizer: Any, evaluation: Evaluation, asked: Asked, setting: Setting) -> list[list[Value]]:
    rows, metric, stop = evaluation.rows, evaluation.metric, evaluation.stop
    scorer = text_scorer(metric)  # before the work, for it may fail
    found = likelihoods(model, asked.encoded, pad_id(tokenizer), setting.batch_size)
    stops = stop_ids(model, tokenizer) | asked.ends
    budgets = [min(asked.longest, setting.max_length - len(prompt)) for prompt in asked.prompts]
    begun = [
        begins(one, len(prompt), likelihood, budget, stops)
        for one, prompt, likelihood, budget in zip(asked.encoded, asked.prompts, found, budgets, strict=True)
    ]
    answers = [ids for ids, _ in begun]
    rest = [i for i, (_, over) in enumerate(begun) if not over]
    written = generate(
        model,
        [asked.prompts[i] for i in rest],
        [budgets[i] for i in rest],
        stops,
        pad_id(tokenizer),
        setting.batch_size,
        (lambda ids: stop in tokenizer.decode(ids)) if stop else None,
        [answers[i] for i in rest],
    )
    for i, ids in zip(rest, written, strict=True):
        answers[i] = ids
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    values = []
    for row, likelihood, text in zip(rows, found, texts, strict=True):
        text = (text.split(stop)[0] if stop else text).strip()
        values.append([Value(metric, scorer(text, row.references), prediction=text), _nll(likelihood)])
    return values


def _choose(
    model: Any, tokenizer: Any, evaluation: Evaluation, encoded: Sequence[Encoded], setting: Setting
) -> list[list[Value]]:
    found = iter(likelihoods(model, encoded, pad_id(tokenizer), setting.batch_size))
    values = []
    for row in evaluation.rows:
        summed = [-next(found).nats for _ in row.choices]
        by_byte = [each / max(len(choice.encode()), 1) for each, choice in zip(summed, row.choices, strict=True)]
        assert row.gold is not None  # checked before
        margin = Value("margin", choice_margin(summed, row.gold))
        of_row = [_choice("accuracy", row, summed), _choice("accuracy_norm", row, by_byte), margin]
        values.append(sorted(of_row, key=lambda value: value.metric != evaluation.metric))
    return values


def _choice(metric: str, row: Row, log_likelihoods: Sequence[float]) -> Value:
    if any(math.isnan(each) for each in log_likelihoods):  # a model that diverged chooses nothing
        return Value(metric, 0.0)
    chosen = choose(log_likelihoods)
    return Value(metric, float(chosen == row.gold), prediction=row.choices[chosen])
