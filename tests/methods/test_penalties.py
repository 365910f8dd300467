"""Penalties and kept rows against their definitions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nlft.config import EwcConfig, L2spConfig, LoraConfig, ReplayConfig
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.methods.anchor import Ewc, L2sp, fisher_diagonal
from nlft.methods.penalty import read_state, write_state
from nlft.methods.protocol import TaskContext
from nlft.methods.replay import Replay, packed, unpacked, until_end
from nlft.methods.task_lora import overlap
from nlft.types import IGNORE

VOCABULARY, WIDTH = 5, 3


class Bigram(nn.Module):
    """Logits of the next token are a linear map of the last one's fixed embedding."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.head(self.embedding[input_ids]))


def row(*ids: int, prompt: int = 1) -> Encoded:
    return Encoded(list(ids), [IGNORE] * prompt + list(ids[prompt:]), 0)


def context(train: list[Encoded], number: int = 1, **more: Any) -> TaskContext:
    fields: dict[str, Any] = {"name": f"t{number}", "earlier": [], "background": [], "n_tasks": 2, "batch_size": 2}
    fields |= {"pad_id": 0, "seed": number}
    return TaskContext(train=train, number=number, **(fields | more))


def there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def move(model: Bigram, seed: int) -> None:
    with torch.no_grad():
        noise = torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(seed))
        model.head.weight += 0.1 * noise


def hand_fisher(model: Bigram, rows: list[Encoded]) -> Tensor:
    """The gradient of a row's loss by hand: sum over targets of (softmax - one-hot) times the input."""
    found, tokens = torch.zeros(VOCABULARY, WIDTH), 0
    for one in rows:
        gradient = torch.zeros(VOCABULARY, WIDTH)
        for here, after, label in zip(one.ids, one.ids[1:], one.labels[1:], strict=False):
            if label != IGNORE:
                state = model.embedding[here]
                odds = (model.head.weight.detach() @ state).softmax(0)
                odds[after] -= 1
                gradient += torch.outer(odds, state)
                tokens += 1
        found += gradient.square()
    return found / tokens


def test_fisher_is_that_of_rows_by_hand() -> None:
    """Squares of whole rows' gradients, not of a batch's and not of tokens'; padding and prompts take no part."""
    model, rows = Bigram(), [row(1, 2, 3, 4), row(2, 2), row(3, 1, 4, prompt=2)]
    (found,) = fisher_diagonal(model, dict(model.named_parameters()), rows, 0).values()
    assert torch.allclose(found, hand_fisher(model, rows), atol=1e-6)
    assert model.head.weight.grad is None and model.training


def test_l2sp_draws_towards_the_start() -> None:
    model, penalty = Bigram(), L2sp(L2spConfig(weight=0.3))
    penalty.begin_task(model, context([]))
    start = model.head.weight.detach().clone()
    assert there(penalty.term(model)).item() == 0  # where it starts
    move(model, 1)
    penalty.begin_task(model, context([], 2))
    term = there(penalty.term(model))
    term.backward()
    moved = model.head.weight.detach() - start
    assert term.item() == pytest.approx(0.15 * float(moved.square().sum()))
    assert torch.allclose(there(model.head.weight.grad), 0.3 * moved)


def test_ewc_has_the_gradient_of_every_quadratic(tmp_path: Any) -> None:
    """Background and two tasks, each with its own Fisher and anchor, against the sum written out; over a resume."""
    model, config = Bigram(), EwcConfig(weight=2.0, of=["background", "tasks"], rows=10)
    ewc = Ewc(config)
    parts = [[row(1, 2), row(2, 3, 1)], [row(4, 4, 1)], [row(3, 2, 1, 1)]]
    quadratics = [(hand_fisher(model, parts[0]), model.head.weight.detach().clone())]
    for number, part in enumerate(parts[1:], start=1):
        ewc.begin_task(model, context(part, number, background=parts[0]))
        move(model, number)
        quadratics.append((hand_fisher(model, part), model.head.weight.detach().clone()))
        ewc.end_task(model)
        write_state([ewc], tmp_path)
        ewc = Ewc(config)
        read_state([ewc], tmp_path)
    ewc.begin_task(model, context([row(1, 1)], 3))
    move(model, 9)
    there(ewc.term(model)).backward()
    here = model.head.weight.detach()
    expected = torch.stack([2.0 * fisher * (here - anchor) for fisher, anchor in quadratics]).sum(0)
    assert float(expected.abs().max()) > 0.01
    assert torch.allclose(there(model.head.weight.grad), expected, atol=1e-6)


def test_ewc_is_silent_before_it_knows_anything() -> None:
    model, ewc = Bigram(), Ewc(EwcConfig(weight=1.0))
    ewc.begin_task(model, context([row(1, 2)]))
    assert ewc.term(model) is None


def test_replay_keeps_a_share_of_every_task(tmp_path: Any) -> None:
    model = Bigram()
    replay = Replay(ReplayConfig(source="tasks", keep=0.1))
    first, second = ([row(1, n % 4, m % 4, 2) for n in range(30)] for m in (1, 2))
    replay.begin_task(model, context(first))
    assert replay.batches is None and len(replay.kept) == 3
    write_state([replay], tmp_path)
    again = Replay(replay.config)
    read_state([again], tmp_path)
    assert [one.ids for one in again.kept] == [one.ids for one in replay.kept]
    again.begin_task(model, context(second, 2))
    assert all(one.ids[2] == 1 for one in again.rows) and len(again.kept) == 6
    assert again.batches is not None and len(next(again.batches)) == 1
    assert again.n_bytes == 4 * (2 * 3 * 4 + 3)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_process_without_old_rows_waits_for_none(monkeypatch: pytest.MonkeyPatch, sharded: bool) -> None:
    """One old row a step for two processes; only a sharded base has the other pass a row too, which weighs nothing."""
    for name, value in {"world": 2, "rank": 1, "shards_base": sharded}.items():
        monkeypatch.setattr(f"nlft.methods.replay.{name}", lambda value=value: value)
    model, replay = Bigram(), Replay(ReplayConfig(source="background", ratio=0.1))
    replay.begin_task(model, context([row(1, 2)], background=[row(1, 2), row(2, 3, 1)]))
    term = replay.term(model)
    assert there(term).item() == 0 if sharded else term is None


def test_packed_rows_come_back() -> None:
    rows = [row(1, 2, 3), row(4, 1, prompt=1)]
    assert [(one.ids, one.labels) for one in unpacked(packed(rows))] == [(one.ids, one.labels) for one in rows]


@pytest.mark.parametrize(
    ("ids", "kept"), [([1, 5, 2, 9], [1, 5, 2]), ([2, 5, 6], [2, 5, 6]), ([1, 2], [1, 2]), ([1], [1])]
)
def test_a_written_row_ends_at_its_end(ids: list[int], kept: list[int]) -> None:
    assert until_end(ids, {2}) == kept


def test_the_base_writes_what_it_finds_likely(make_model: Any) -> None:
    """Seeded, without a trace in global random states, and by the base's own odds."""
    from nlft.methods.replay import draw_texts, written_rows

    model = make_model("llama")
    config = ReplayConfig(source="self", rows=70, length=6)
    before = torch.get_rng_state()
    one, two = (written_rows(model, context([], begin_id=1, seed=s), config) for s in (3, 3))
    other = written_rows(model, context([], begin_id=1, seed=4), config)
    assert torch.equal(before, torch.get_rng_state())
    assert [r.ids for r in one] == [r.ids for r in two] != [r.ids for r in other]
    assert len(one) == 70 and all(r.ids[0] == 1 and r.labels == [IGNORE, *r.ids[1:]] for r in one)
    # Shares of the first drawn token are the odds, within four standard errors.
    texts = draw_texts(model, torch.ones(4000, dtype=torch.long), 2, set(), torch.Generator().manual_seed(0))
    with torch.no_grad():
        odds = model(input_ids=torch.tensor([[1]])).logits[0, -1].softmax(0)
    shares = torch.bincount(torch.tensor([text[1] for text in texts]), minlength=len(odds)) / 4000
    assert bool(((shares - odds).abs() < 4 * (odds / 4000).sqrt() + 1e-3).all())
    # Without a begin token the first tokens are the background's.
    begun = written_rows(model, context([], background=[row(7, 1), row(9, 1)]), config)
    assert {r.ids[0] for r in begun} == {7, 9}
    with pytest.raises(NlftError, match="no begin-of-text token"):
        written_rows(model, context([]), config)


def test_overlap_is_the_sum_of_products_of_first_maps(make_model: Any) -> None:
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    settings = PeftLora(r=2, target_modules=["q_proj"])
    model = get_peft_model(make_model("llama"), settings, adapter_name="task1")
    assert overlap(model, ["task1"]) is None
    for name in ("task2", "task3"):
        model.add_adapter(name, settings)
    total = 0.0
    for layer in range(4):
        maps: Any = model.get_submodule(f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A")
        for earlier in ("task1", "task2"):
            for a in maps[earlier].weight:
                total += sum(abs((a @ b).item()) for b in maps["task3"].weight)
    assert there(overlap(model, ["task1", "task2", "task3"])).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"replay": {"keep": "1%"}}, "`keep` belongs to"),
        ({"replay": {"source": "tasks", "rows": 3}}, "belong to `source: self`"),
        ({"tasks": "apart", "peft_type": "IA3"}, "made for LORA, not for IA3"),
        ({"tasks": "merged", "gate": "prototype"}, "adapters without a gate"),
        ({"tasks": "apart", "peft": {"init_lora_weights": "pissa"}}, "leave out `init_lora_weights`"),
        ({"orthogonality": 1.0}, "belongs to `tasks: orthogonal`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LoraConfig.model_validate({"kind": "lora", "lr": 1.0, **fields})


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"kind": "full", "lr": 1, "ewc": {"weight": 1, "of": "background"}}, "needs `background`"),
        ({"kind": "lora", "lr": 1, "peft": {"init_lora_weights": "corda"}}, "needs `background`"),
        ({"kind": "lora", "lr": 1, "tasks": "apart", "ewc": {"weight": 1}}, "nothing to hold"),
    ],
)
def test_a_recipe_says_what_a_method_lacks(recipe: Any, method: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        recipe(background=None, methods={"x": method})


def test_a_task_that_is_told_is_no_bound_of_all_at_once(recipe: Any) -> None:
    """Its one adapter would be of a task that no row belongs to."""
    methods = {"x": {"kind": "lora", "lr": 1, "tasks": "apart"}}
    with pytest.raises(ValueError, match="multitask: 'x' has an adapter a task"):
        recipe(methods=methods, compare={"bounds": {"multitask": ["x"]}})
