"""What the adapter reads: which task a prompt names, what two tasks read in common, what fires on the probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from nlft.data.batch import Batch, by_length, collate, in_batches
from nlft.data.template import Encoded, encode_rows, prompt_ids
from nlft.dissect.study import ROWS, Study, spread
from nlft.measure.identity import Identity, tell_classes
from nlft.measure.isolation import evaluating
from nlft.measure.kl import divergence
from nlft.pathways.reads import count_reads
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.task import TaskPeftConfig
from nlft.pathways.voices import cores
from nlft.types import Evaluation, Item

TAU = 0.01
"""Nats of KL divergence from the base from which a token's prediction counts as changed."""
TOKENS = 2048
"""Tokens of a batch whose logits of base and adapter are held at once."""
CHUNK = 256
"""Tokens whose distributions are float32 at one time."""
MOST = 1000
"""Rows a class for `identity`."""
BATCH = 32
"""Rows of a forward pass that counts reads."""
ELSE = "no task"
"""The class of probes and background."""


def encoded(study: Study, evaluation: Evaluation, most: int) -> list[Encoded]:
    """Few rows of a column."""
    prepared = study.prepared
    rows = spread(evaluation.rows, most)
    return encode_rows(rows, study.base.tokenizer, prepared.max_length, prepared.too_long[evaluation.column])


def prompt_identity(study: Study) -> Identity | None:
    """How well a bag of words tells the task from the prompt alone, and probes from tasks.

    Train rows tell the tasks, background tells what is none of them; without background every other row of the probes
    does, and the rest is told. Of plain text all tokens are taken, for all of it is context.
    """
    prepared = study.prepared
    train = {task.name: words(spread(prepared.train[task.name], MOST)) for task in prepared.domains.tasks}
    tests = [one for task in prepared.domains.tasks for one in task.evaluations if one.split == "test"]
    test = {one.name: words(encoded(study, one, MOST)) for one in tests}
    probes = [ids for probe in prepared.domains.probes for ids in words(encoded(study, probe, MOST))]
    known = words(spread(prepared.background, MOST))
    train[ELSE], test[ELSE] = (known, probes) if known else (probes[::2], probes[1::2])
    return tell_classes(train, test)


def words(rows: Sequence[Encoded]) -> list[list[int]]:
    """Tokens of the prompts; of rows without one all tokens."""
    return [prompt if len(prompt := prompt_ids(row)) > 1 else row.ids for row in rows]


def read_overlap(study: Study) -> dict[str, Any] | None:
    """Jaccard index of what the test rows of every two tasks read: slots of all blocks, or tasks whose gate opens.

    With product keys a slot is a row of the table that some task has trained. None for a part that all tasks share.
    """
    config = getattr(study.model, "peft_config", {}).get("default")
    if not isinstance(config, TaskPeftConfig) or not config.keeps_tasks_apart:
        return None
    names, found = list(config.tasks), []
    memories = cores(study.model, "default")
    for task in study.prepared.domains.tasks:
        evaluation = next(one for one in task.evaluations if one.split == "test")
        rows = encoded(study, evaluation, 4 * ROWS)
        reads = count_reads(study.model, in_batches(rows, BATCH, study.prepared.pad_id))
        if not isinstance(config, SparseMemoryPeftConfig):
            found.append({name for name in names if reads.tokens[name]})
            continue
        own: set[Any] = set()
        for (name, block), counts in reads.slots.items():
            slots = (counts > 0).nonzero().squeeze(1)
            if config.addressing == "product_key":
                part = memories[block].tasks[names.index(name)]
                own |= {(block, row) for row in part.rows[slots].tolist()}
            else:
                own |= {(block, name, slot) for slot in slots.tolist()}
        found.append(own)
    jaccard = [[len(one & two) / len(one | two) if one | two else None for two in found] for one in found]
    return {"parts": [task.name for task in study.prepared.domains.tasks], "jaccard": jaccard}


def firing_tokens(study: Study) -> dict[str, float] | None:
    """Share of each probe's tokens that read any task's part: a slot fires, or the gate is open."""
    config = getattr(study.model, "peft_config", {}).get("default")
    if not isinstance(config, TaskPeftConfig) or not config.keeps_tasks_apart:
        return None
    found = {}
    for probe in (one for one in study.prepared.domains.probes if one.rows):  # an lm-eval task has none
        reads = count_reads(study.model, in_batches(encoded(study, probe, ROWS), BATCH, study.prepared.pad_id))
        found[probe.column] = reads.fired / max(1, reads.total)
    return found


def changed_tokens(study: Study) -> dict[str, float] | None:
    """Share of each probe's tokens at which KL(base || adapted) of the next token exceeds `TAU`.

    The method prepares the model as for scoring. None where base and adapted model cannot read the same rows in one
    pass, as when examples are put into the context.
    """
    shares: dict[str, float] = {}

    def ask(network: Any, evaluation: Evaluation) -> list[Item]:
        rows = encoded(study, evaluation, ROWS)
        if study.learner.changes_base or hasattr(network, "disable_adapter"):
            with evaluating(network):
                parts = [exceeding(study, network, batch) for batch in small_batches(rows, study.prepared.pad_id)]
            shares[evaluation.column] = sum(hit for hit, _ in parts) / max(1, sum(n for _, n in parts))
        return []

    for probe in (one for one in study.prepared.domains.probes if one.rows):  # an lm-eval task has none
        study.learner.score(study.model, probe, "on", ask)
    return shares or None


def small_batches(rows: Sequence[Encoded], pad_id: int) -> Iterator[Batch]:
    """Batches of at most `TOKENS` tokens, padding included."""
    for chosen in by_length([len(row.ids) for row in rows], ROWS, TOKENS):
        yield collate([rows[place] for place in chosen], pad_id)


def exceeding(study: Study, network: Any, batch: Batch) -> tuple[int, int]:
    """Tokens of a batch whose prediction has changed, and all of its tokens."""
    batch = batch.to(study.base.device)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    reference = study.untouched.model if study.learner.changes_base else network
    on = network(**inputs).logits
    with nullcontext() if study.learner.changes_base else network.disable_adapter():
        base = reference(**inputs).logits
    kept = batch.attention_mask != 0
    on, base, hits = on[:, -kept.shape[1] :][kept], base[:, -kept.shape[1] :][kept], 0
    for p, q in zip(base.split(CHUNK), on.split(CHUNK), strict=True):
        hits += int((divergence(p, q) > TAU).sum())
    return hits, len(on)
