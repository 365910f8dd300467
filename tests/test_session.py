"""Sessions: memory that goes on from one sequence to the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parent / "pathways"))
from hope_models import KINDS, hope, keeper_of, lively, rows_of, shaken, train_hope  # pyright: ignore
from pathway_models import build, logits  # pyright: ignore
from peft import LoraConfig, PeftModel, get_peft_model

import nlft
from nlft.errors import CheckpointError, NlftError
from nlft.sessions import KIND

FIRST, SECOND = rows_of([12, 12])[0], rows_of([12, 12], seed=8)[0]
every_kind = pytest.mark.parametrize("kind", KINDS)
OPTIONS: dict[str, Any] = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)


@torch.no_grad()
def read(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model(input_ids=ids, **options).logits


def read_first_in_cache(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=FIRST, use_cache=True).past_key_values


@every_kind
def test_a_sequence_goes_on_where_the_last_one_ended(kind):
    adapted = lively(**KINDS[kind])
    plain = read(adapted, SECOND)
    with nlft.session(adapted) as s:
        assert torch.equal(read(adapted, FIRST), read(lively(**KINDS[kind]), FIRST))
        assert not torch.equal(read(adapted, SECOND), plain)
        state = s.carried.states["model.layers.1.mlp"]
        assert state["count"].tolist() == [24, 24]
    assert torch.equal(read(adapted, SECOND), plain)  # outside of the session nothing is left of it


def test_the_state_of_two_sequences_is_that_of_their_sum():
    """In the first layer, whose input is the token alone, a session and one longer sequence write the same."""
    adapted = lively(layers_to_transform=[0])
    block = "model.layers.0.mlp"
    for layer in adapted.get_base_model().model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    with nlft.session(adapted) as s:
        read(adapted, FIRST)
        read(adapted, SECOND)
        twice = s.carried.states[block]
        s.reset()
        read(adapted, torch.cat([FIRST, SECOND], dim=1))
        once = s.carried.states[block]
    for name, tensor in once.items():
        torch.testing.assert_close(twice[name], tensor, rtol=1e-5, atol=1e-5)


@every_kind
def test_reset_gives_the_model_back_bit_for_bit(kind):
    adapted = lively(**KINDS[kind])
    expected, generated = read(adapted, SECOND), adapted.generate(input_ids=SECOND, **OPTIONS)
    with nlft.session(adapted) as s:
        read(adapted, FIRST)
        assert not torch.equal(read(adapted, SECOND), expected)
        s.reset()
        assert torch.equal(read(adapted, SECOND), expected)
        s.reset()
        assert torch.equal(adapted.generate(input_ids=SECOND, **OPTIONS), generated)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss", "gemma2"])
def test_an_empty_memory_that_does_not_learn_is_the_base(family):
    base = build(family)
    expected, generated = read(base, SECOND), base.generate(input_ids=SECOND, **OPTIONS)
    adapted = shaken(hope(base, initial="zero"))
    with nlft.session(adapted, learn=False) as s:
        assert torch.equal(read(adapted, SECOND), expected)
        assert torch.equal(adapted.generate(input_ids=SECOND, **OPTIONS), generated)
        assert s.changed() == {}
    assert not torch.equal(read(adapted, SECOND), expected)


@every_kind
def test_without_learning_the_memory_is_read_as_it_stands(kind):
    adapted = lively(**KINDS[kind])
    plain = read(adapted, SECOND)
    with nlft.session(adapted) as s:
        read(adapted, FIRST)
        state = {n: t.clone() for n, t in s.carried.states["model.layers.1.mlp"].items()}
        s.carried.learns = False
        once = read(adapted, SECOND)
        assert torch.equal(read(adapted, SECOND), once) and not torch.equal(once, plain)
        # Nor does it move within a sequence.
        kept = read_first_in_cache(adapted).layers[-1].states["model.layers.1.mlp"]
        assert all(torch.equal(t, state[n]) for n, t in kept.items() if n.startswith("running"))
        assert all(torch.equal(t, state[n]) for n, t in s.carried.states["model.layers.1.mlp"].items())


@every_kind
def test_saving_and_loading(kind, tmp_path):
    adapted, file = lively(**KINDS[kind]), tmp_path / "my.session"
    with nlft.session(adapted) as s:
        adapted.generate(input_ids=FIRST, **OPTIONS)
        s.save(file)
        expected = read(adapted, SECOND)
    assert [path.name for path in tmp_path.iterdir()] == ["my.session"]
    adapted.save_pretrained(tmp_path / "adapter")
    again: Any = PeftModel.from_pretrained(build("llama"), str(tmp_path / "adapter"), adapter_name="other").eval()
    with nlft.session(again) as s:
        s.load(file)
        assert {change.tokens[0] for change in s.changed().values()} == {0}
        assert torch.equal(read(again, SECOND), expected)
        assert {change.tokens[0] for change in s.changed().values()} == {12}
        s.reset()
        assert torch.equal(read(again, SECOND), read(lively(**KINDS[kind]), SECOND))
        s.reset()
        s.save(file)  # an empty session
        s.load(file)
        assert s.carried.states is None


def test_what_changed_and_what_surprised():
    adapted = lively(objective="l2")
    ids, mask = rows_of([12, 7])
    with nlft.session(adapted) as s:
        assert s.changed() == {} and s.surprise == {}
        with torch.no_grad():
            adapted(input_ids=ids, attention_mask=mask)
        for block, change in s.changed().items():
            assert change.tokens == [12, 7] and all(0 < one <= 2 for one in change.relative)
            state, core = s.carried.states[block], s.cores[block]
            moved = (state["running"] - core.memory.initial).flatten(1).norm(dim=1)
            torch.testing.assert_close(torch.tensor(change.norm), moved.detach(), rtol=1e-5, atol=0)
        assert set(s.surprise) == set(s.changed())
        for surprise in s.surprise.values():
            assert surprise.shape == ids.shape and torch.equal(surprise > 0, mask == 1)
        one = [t.clone() for t in (read(adapted, ids[:, -3:]), *s.surprise.values())]
        assert [t.shape for t in one[1:]] == [(2, 3), (2, 3)]  # of the last pass alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("model.layers.1.mlp/tail"), "tail is missing"),
        (lambda t, m: t.update({"x/y": torch.zeros(2)}), "x/y is unknown"),
        (lambda t, m: t.update({"model.layers.1.mlp/running": torch.zeros(2, 2, 8, 7)}), "has the shape"),
        (lambda t, m: t.update({"model.layers.1.mlp/count": torch.zeros(3, dtype=torch.long)}), "has the shape"),
        (lambda t, m: t["model.layers.1.mlp/running"].fill_(torch.nan), "not finite"),
        (lambda t, m: t["model.layers.1.mlp/count"].fill_(-1), "counts below zero"),
        (lambda t, m: t.update({"model.layers.1.mlp/running": torch.zeros(2, 2, 8, 8).half()}), "is F16"),
        (lambda t, m: m.update(kind="else"), "is no session"),
        (lambda t, m: m.pop("adapter_digest"), "is no session"),
        (lambda t, m: m.update(base_fingerprint="0" * 64), "one of another base"),
        (lambda t, m: m.update(adapter_digest="0" * 64), "one of another adapter"),
    ],
)
def test_files_that_are_refused(change, message, tmp_path):
    adapted, file = lively(), tmp_path / "s"
    with nlft.session(adapted) as s:
        read(adapted, FIRST)
        s.save(file)
        tensors, metadata = load_file(file), s.identity()
        assert metadata["kind"] == KIND
        change(tensors, metadata)
        save_file(tensors, file, metadata=metadata)
        before, expected = s.carried.states, keeper_of(adapted).carried
        with pytest.raises(CheckpointError, match=message):
            s.load(file)
        assert s.carried.states is before and keeper_of(adapted).carried is expected


def test_other_files_are_refused(tmp_path):
    adapted = lively()
    s = nlft.session(adapted)
    with pytest.raises(CheckpointError, match="cannot be read"):
        s.load(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read"):
        s.load(tmp_path / "text")
    with pytest.raises(CheckpointError, match="could not be saved"):
        s.save(tmp_path / "no folder" / "s")
    with s:
        read(adapted, FIRST)
    s.save(tmp_path / "s")
    with s:
        s.carried.states["model.layers.3.mlp"]["running"][0, 0, 0, 0] = torch.inf
        with pytest.raises(NlftError, match="not finite, so the session was not saved"):
            s.save(tmp_path / "s")
    train_hope(adapted)
    with pytest.raises(CheckpointError, match="before it was trained further"):
        s.load(tmp_path / "s")


def test_misuse_is_refused():
    adapted = lively()
    with nlft.session(adapted) as s:
        with pytest.raises(NlftError, match="open already"), nlft.session(adapted):
            pass
        with pytest.raises(NlftError, match="beams"):
            adapted.generate(input_ids=FIRST, **OPTIONS, num_beams=2)
        s.reset()
        read(adapted, FIRST)
        with pytest.raises(NlftError, match="state is one of"):
            read(adapted, FIRST[:1])
        with pytest.raises(NlftError, match="draft cannot be taken back"):
            read_first_in_cache(adapted).crop(-3)
        s.reset()
        with pytest.raises(NlftError, match="draft cannot be taken back"):
            adapted.generate(input_ids=FIRST[:1], **OPTIONS, assistant_model=build("llama"))
    assert keeper_of(adapted).carried is None
    with pytest.raises(NlftError, match="no memory that learns"):
        nlft.session(get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM")))
    with pytest.raises(NlftError, match="needs a PEFT model"):
        nlft.session(build("llama"))


def test_the_last_pass_can_be_taken_back_as_a_whole():
    adapted = lively()
    with nlft.session(adapted) as s:
        past = read_first_in_cache(adapted)
        before = s.carried.states
        with torch.no_grad():
            adapted(input_ids=SECOND[:, :1], past_key_values=past)
        assert s.carried.states is not before
        past.crop(-1)
        assert s.carried.states is before


def test_importing_nlft_imports_no_torch():
    code = "import sys, nlft; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert nlft.session.__name__ == "session"
    with pytest.raises(AttributeError, match="has no attribute 'sesion'"):
        nlft.sesion  # noqa: B018


def test_weights_are_never_written():
    adapted = lively()
    before = {name: t.clone() for name, t in adapted.state_dict().items()}
    expected = logits(adapted)
    with nlft.session(adapted):
        read(adapted, FIRST)
    after = adapted.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert torch.equal(logits(adapted), expected)
