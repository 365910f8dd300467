"""Scoring one column of the matrix: rows in, one or two `Item`s a row out."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nlft.data.chat import special_tokens
from nlft.data.template import Encoded, TooLong, encode, encode_rows, pad_id, prompt_ids
from nlft.data.tokens import tokenise
from nlft.errors import DataError
from nlft.measure.evaluation import check_evaluation
from nlft.measure.generation import generate, is_written, stop_ids
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
from nlft.types import IGNORE, Condition, Evaluation, Item, Message, Row

SPARE_TOKENS = 4
"""Tokens that a generated answer may have beyond the longest reference, by default."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How rows are scored."""

    batch_size: int
    max_length: int
    max_new_tokens: int | None
    too_long: TooLong


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
    with evaluating(model):
        scoring = metric_spec(evaluation.metric).scoring
        if scoring == "likelihood":
            values = _predict(model, tokenizer, rows, setting)
        elif scoring == "choice":
            values = _choose(model, tokenizer, rows, evaluation.metric, setting)
        elif scoring == "divergence":
            values = _diverge(model, tokenizer, rows, condition, reference, setting)
        else:
            values = _answer(model, tokenizer, evaluation, setting)
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
        for row, item_id, of_row in zip(rows, item_ids(rows), values, strict=True)
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


def _predict(model: Any, tokenizer: Any, rows: Sequence[Row], setting: Setting) -> list[list[Value]]:
    parts = _parts(rows, tokenizer, setting)
    flat = likelihoods(model, [part for of_row in parts for part in of_row], pad_id(tokenizer), setting.batch_size)
    results, values = iter(flat), []
    for row, of_row in zip(rows, parts, strict=True):
        found = [next(results) for _ in of_row]
        whole = Likelihood(sum(f.nats for f in found), sum(f.tokens for f in found), all(f.greedy for f in found))
        n_bytes = sum(part.n_bytes for part in of_row)
        if not n_bytes:
            raise DataError(f"{row.source or 'A row'} has no target text.", "Give it a completion or remove it.")
        bits = Value("bits_per_byte", bits_per_byte(whole.nats, n_bytes), n_bytes)
        values.append([_nll(whole), bits])
    return values


def _nll(likelihood: Likelihood) -> Value:
    return Value("nll", nats_per_token(likelihood.nats, likelihood.tokens), likelihood.tokens)


def _parts(rows: Sequence[Row], tokenizer: Any, setting: Setting) -> list[list[Encoded]]:
    if setting.too_long == "split":
        return [encode(row, tokenizer, setting.max_length, "split") for row in rows]
    return [[one] for one in encode_rows(rows, tokenizer, setting.max_length, setting.too_long)]


def _whole(rows: Sequence[Row], tokenizer: Any, setting: Setting) -> list[Encoded]:
    """One sequence a row: an answer or a choice cannot be scored in parts."""
    too_long = "error" if setting.too_long == "split" else setting.too_long
    return encode_rows(rows, tokenizer, setting.max_length, too_long)


def _diverge(
    model: Any, tokenizer: Any, rows: Sequence[Row], condition: Condition, reference: Reference | None, setting: Setting
) -> list[list[Value]]:
    parts = _parts(rows, tokenizer, setting)
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


def _answer(model: Any, tokenizer: Any, evaluation: Evaluation, setting: Setting) -> list[list[Value]]:
    rows, metric, stop = evaluation.rows, evaluation.metric, evaluation.stop
    scorer = text_scorer(metric)  # before the work, for it may fail
    encoded = _whole(rows, tokenizer, setting)
    prompts = [prompt_ids(one) for one in encoded]
    found = likelihoods(model, encoded, pad_id(tokenizer), setting.batch_size)
    # A chat template may end a turn with a token of its own.
    special = set(special_tokens(tokenizer))
    stops = stop_ids(model, tokenizer) | {one.ids[-1] for one in encoded if one.ids[-1] in special}
    longest = setting.max_new_tokens or _longest_reference(rows, tokenizer) + SPARE_TOKENS
    budgets = [min(longest, setting.max_length - len(prompt)) for prompt in prompts]
    answers: dict[int, list[int]] = {}
    for i, (one, prompt) in enumerate(zip(encoded, prompts, strict=True)):
        if is_written(one, len(prompt), found[i], budgets[i], stops):
            answers[i] = one.ids[len(prompt) : -1]
    rest = [i for i in range(len(rows)) if i not in answers]
    written = generate(
        model,
        [prompts[i] for i in rest],
        [budgets[i] for i in rest],
        stops,
        pad_id(tokenizer),
        setting.batch_size,
        (lambda ids: stop in tokenizer.decode(ids)) if stop else None,
    )
    answers.update(zip(rest, written, strict=True))
    values = []
    for i, row in enumerate(rows):
        text = tokenizer.decode(answers[i], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = (text.split(stop)[0] if stop else text).strip()
        values.append([Value(metric, scorer(text, row.references), prediction=text), _nll(found[i])])
    return values


def _longest_reference(rows: Sequence[Row], tokenizer: Any) -> int:
    texts = sorted({reference for row in rows for reference in row.references})
    return max(len(tokens.ids) for tokens in tokenise(texts, tokenizer, markup=False))


def _choose(model: Any, tokenizer: Any, rows: Sequence[Row], metric: str, setting: Setting) -> list[list[Value]]:
    special = set(special_tokens(tokenizer))
    candidates: list[Row] = []
    for row in rows:
        candidates += [_with_answer(row, choice) for choice in row.choices]
    encoded = [_answer_only(one, special) for one in _whole(candidates, tokenizer, setting)]
    found = iter(likelihoods(model, encoded, pad_id(tokenizer), setting.batch_size))
    values = []
    for row in rows:
        summed = [-next(found).nats for _ in row.choices]
        by_byte = [each / max(len(choice.encode()), 1) for each, choice in zip(summed, row.choices, strict=True)]
        assert row.gold is not None  # checked before
        margin = Value("margin", choice_margin(summed, row.gold))
        of_row = [_choice("accuracy", row, summed), _choice("accuracy_norm", row, by_byte), margin]
        values.append(sorted(of_row, key=lambda value: value.metric != metric))
    return values


def _choice(metric: str, row: Row, log_likelihoods: Sequence[float]) -> Value:
    if any(math.isnan(each) for each in log_likelihoods):  # a model that diverged chooses nothing
        return Value(metric, 0.0)
    chosen = choose(log_likelihoods)
    return Value(metric, float(chosen == row.gold), prediction=row.choices[chosen])


def _with_answer(row: Row, text: str) -> Row:
    if not row.messages:
        return replace(row, completion=text)
    before = row.messages[:-1] if row.messages[-1].role == "assistant" else row.messages
    return replace(row, messages=(*before, Message("assistant", text)))


def _answer_only(encoded: Encoded, special: set[int]) -> Encoded:
    """Targets of the last turn alone, without its end token, which says nothing about the choice."""
    start, end = len(prompt_ids(encoded)), len(encoded.ids)
    while end - 1 > start and (encoded.labels[end - 1] == IGNORE or encoded.ids[end - 1] in special):
        end -= 1
    labels = [label if start <= i < end else IGNORE for i, label in enumerate(encoded.labels)]
    return replace(encoded, labels=labels)
