"""lm-evaluation-harness tasks on the adapted model, in this process: its documents and metrics, our passes.

`lm_eval` runs a task's requests through an `LM`. The one below scores them as `likelihood.py` and `generation.py`
score rows: every pass begins with fresh states and fresh caches, requests of like length go together whatever their
order, and what several share is read once. So a score depends neither on the batch size nor on the requests beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from nlft.data.harness import document_metrics, load_task, quiet
from nlft.data.template import Encoded, pad_id
from nlft.errors import DataError
from nlft.measure.generation import generate, stop_ids
from nlft.measure.isolation import evaluating
from nlft.measure.likelihood import likelihoods
from nlft.measure.metric import bits_per_byte, choice_margin
from nlft.types import IGNORE, Condition, Evaluation, Item

LONGEST_ANSWER = 256
"""Tokens of an answer for which a task names no limit (lm-eval's own)."""


class BridgeLM(LM):
    """A causal language model as lm-eval asks it; the same requests give what lm-eval's `HFLM` gives.

    Args:
        model: as `transformers` or PEFT gives it; may be under a condition (an adapter switched off).
        max_length: longest input in tokens; contexts lose their beginning first.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.batch_size, self.max_length = model, tokenizer, batch_size, max_length
        begin = tokenizer.bos_token_id
        self.prefix = tokenizer.eos_token_id if begin is None else begin
        self.begin_text = tokenizer.decode(self.prefix)

    def encode(self, texts: Sequence[str], bare: bool = False) -> list[list[int]]:
        """Ids of texts, with what the tokenizer adds; without where a text has it already, or with `bare`."""
        results: dict[int, list[int]] = {}
        plain = [i for i, text in enumerate(texts) if bare or text.startswith(self.begin_text)]
        other = sorted(set(range(len(texts))) - set(plain))
        for chosen, added in ((plain, False), (other, True)):
            if chosen:
                some = [texts[i] for i in chosen]
                results.update(zip(chosen, self.tokenizer(some, add_special_tokens=added)["input_ids"], strict=True))
        return [results[i] for i in range(len(texts))]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Nats of each continuation after its context, and whether it is what greedy decoding writes."""
        pairs = [_apart(*request.args) for request in requests]
        whole = self.encode([before + after for before, after in pairs if before])
        texts = list(dict.fromkeys(before for before, _ in pairs if before))
        contexts = dict(zip(texts, self.encode(texts), strict=True))
        alone = iter(self.encode([after for before, after in pairs if not before], bare=True))
        joined = iter(whole)
        encoded = []
        for before, _ in pairs:
            if before:
                start = len(contexts[before])
                ids = next(joined)
            else:
                ids = next(alone)
                ids, start = (ids, 1) if ids[0] == self.prefix else ([self.prefix, *ids], 1)
            encoded.append(self._targets(ids, start))
        found = likelihoods(self.model, encoded, pad_id(self.tokenizer), self.batch_size)
        return [(-one.nats, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Nats of each whole text; a text longer than the context is read in windows that hold each token once."""
        encoded, owners = [], []
        for owner, ids in enumerate(self.encode([request.args[0] for request in requests])):
            windows = get_rolling_token_windows(ids, self.prefix, self.max_length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                encoded.append(self._targets([*context, *continuation], len(context)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        found = likelihoods(self.model, encoded, pad_id(self.tokenizer), self.batch_size)
        for owner, one in zip(owners, found, strict=True):
            totals[owner] -= one.nats
        return totals

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Greedy answers, each up to the first of its stop texts."""
        contexts = self.encode([request.args[0] for request in requests])
        end = self.tokenizer.decode(self.tokenizer.eos_token_id)
        asked: dict[tuple[str, ...], list[int]] = {}
        budgets = []
        for index, request in enumerate(requests):
            options: Any = normalize_gen_kwargs(request.args[1], LONGEST_ANSWER)
            budgets.append(options["max_gen_toks"])
            asked.setdefault(tuple(handle_stop_sequences(options.get("until"), end)), []).append(index)
            if budgets[-1] >= self.max_length:
                raise DataError(
                    f"An answer may have {budgets[-1]} tokens, and the context has {self.max_length}.",
                    "Lower the task's max_gen_toks, or leave it out.",
                )
        answers = [""] * len(requests)
        stops = stop_ids(self.model, self.tokenizer)
        for until, chosen in asked.items():
            prompts = [contexts[i][-(self.max_length - budgets[i]) :] for i in chosen]
            written = generate(
                self.model,
                prompts,
                [budgets[i] for i in chosen],
                stops,
                pad_id(self.tokenizer),
                self.batch_size,
                self._ended(until),
            )
            for index, ids in zip(chosen, written, strict=True):
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                answers[index] = postprocess_generated_text(text, list(until), None)
        return answers

    def _targets(self, ids: list[int], start: int) -> Encoded:
        """Targets from `start` on, in a sequence that is cut at its beginning to fit."""
        cut = max(0, len(ids) - self.max_length - 1)
        start = max(start - cut, 1)
        return Encoded(ids[cut:], [IGNORE] * start + ids[cut + start :], 0)

    def _ended(self, until: Sequence[str]) -> Callable[[list[int]], bool]:
        # A token has at least one byte, so a stop text and what begins before it lie in so many tokens.
        longest = max((len(stop.encode()) for stop in until), default=0) + 2

        def ended(ids: list[int]) -> bool:
            text = self.tokenizer.decode(ids[-longest:])
            return any(stop and stop in text for stop in until)

        return ended


def _apart(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context belongs to the continuation, as tokenizers see it."""
    kept = context.rstrip()
    return (kept, context[len(kept) :] + continuation) if context else ("", continuation)


def score_harness(
    model: Any,
    tokenizer: Any,
    evaluation: Evaluation,
    stage: int,
    condition: Condition,
    batch_size: int,
    max_length: int,
) -> list[Item]:
    """Runs a task and gives its items, one a document and metric; the metric that counts comes first.

    A document's id is lm-eval's hash of it, so documents pair over stages. A text's log-likelihood is an item of
    `bits_per_byte`, and a choice has its `margin` too. Modes and random states are afterwards as before.

    Raises:
        DataError: the task cannot be loaded, or its answers do not go through the filter named.
    """
    spec = evaluation.harness
    assert spec is not None
    loaded = load_task(spec)
    with evaluating(model), quiet():
        lm = BridgeLM(model, tokenizer, batch_size, max_length)
        results: Any = evaluate(lm, loaded, limit=spec.limit, bootstrap_iters=0, log_samples=True)
    items: list[Item] = []
    seen: Counter[str] = Counter()
    for name, samples in results["samples"].items():
        task = loaded["tasks"][name]
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        kept = spec.filter or filters[0]
        if kept not in filters:
            raise DataError(f"The lm-eval task {name!r} has no filter {kept!r}.", f"It has {', '.join(filters)}.")
        for sample in (one for one in samples if one["filter"] == kept):
            values = _values(task, sample)
            digest = sample["doc_hash"][:16]
            item_id = f"{digest}-{seen[digest]}" if seen[digest] else digest
            seen[digest] += 1
            answer = sample["filtered_resps"][0] if task.OUTPUT_TYPE == "generate_until" else ""
            items += [
                Item(
                    stage=stage,
                    condition=condition,
                    column=evaluation.column,
                    role=evaluation.role,
                    split=evaluation.split,
                    metric=metric,
                    item_id=item_id,
                    cluster=item_id,
                    value=values[metric][0],
                    weight=values[metric][1],
                    prediction=str(answer),
                )
                for metric in sorted(values, key=lambda metric: metric != evaluation.metric)
            ]
    return items


def _values(task: Any, sample: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Value and weight of a document by metric."""
    found: dict[str, tuple[float, float]] = {}
    for name in document_metrics(task):
        value = sample.get(name)
        if name == "bits_per_byte" and value is not None:
            found[name] = bits_per_byte(-value[0], value[1]), float(value[1])
        elif isinstance(value, Real | bool):
            found[name] = float(value), 1.0
    if task.OUTPUT_TYPE == "multiple_choice":
        choices, gold = task.doc_to_choice(sample["doc"]), sample["target"]
        gold = choices.index(gold) if gold in choices else gold
        nats = [float(answer[0]) for answer in sample["filtered_resps"][: len(choices)]]
        if isinstance(gold, int) and 0 <= gold < len(nats) == len(choices):
            found["margin"] = choice_margin(nats, gold), 1.0
    return found
