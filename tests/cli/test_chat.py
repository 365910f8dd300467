"""`nlft chat` with the built-in base: answers, keeps learning, goes on from its file."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from nlft.base import load_base
from nlft.chat import Chat, open_chat
from nlft.cli import main
from nlft.config import BaseConfig
from nlft.pathways.hope.config import HopePeftConfig
from nlft.sessions import Session

QUESTION = "Where was the company founded?"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}"
)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base, generator = load_base(BaseConfig(model="builtin:tiny")), torch.Generator().manual_seed(0)
    config = HopePeftConfig(task_type="CAUSAL_LM", heads=2, head_width=8, chunk=4)
    adapted: Any = get_peft_model(base.model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def count(session: Session) -> int:
    """Tokens that the memory has read."""
    states: Any = session.carried.states
    return int(next(iter(states.values()))["count"])


def chat(monkeypatch: Any, capsys: Any, adapter: Path, file: Path, *lines: str, options: tuple[str, ...] = ()) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    with pytest.raises(SystemExit) as caught:
        main(["chat", str(adapter), "--session", str(file), "--length", "4", *options])
    said = capsys.readouterr()
    return f"{caught.value.code}\n{said.out}{said.err}"


def test_a_chat_learns_and_goes_on(monkeypatch, capsys, adapter, tmp_path):
    file = tmp_path / "my.session"
    said = chat(monkeypatch, capsys, adapter, file, "/changed", QUESTION, "/changed", "/off", "/what", "/quit", "never")
    assert said.startswith("0") and "Nothing was read yet." in said and "tokens read" in said
    first = file.read_bytes()
    said = chat(monkeypatch, capsys, adapter, file, "/changed", QUESTION)
    assert " 0 tokens read, 0.0% of the memory is new." in said and file.read_bytes() != first
    chat(monkeypatch, capsys, adapter, file, "/reset")
    said = chat(monkeypatch, capsys, adapter, file, "/changed")
    assert "Nothing was read yet." in said
    assert not list(tmp_path.glob("*.partial"))


def test_the_conversation_and_the_memory(adapter, tmp_path):
    opened = open_chat(str(adapter), tmp_path / "s", "builtin:tiny", 4)
    with opened.session as s:
        one = opened.answer(QUESTION)
        assert opened.tokenizer.decode(opened.ids, skip_special_tokens=True).startswith(QUESTION)
        read = count(s)
        assert read == len(opened.ids) - 1  # the last token was said and not read
        ids, past = list(opened.ids), opened.past
        off = opened.answer_without(QUESTION)
        assert (opened.ids, opened.past) == (ids, past) and count(s) == read
        opened.answer("And why?")
        assert count(s) == len(opened.ids) - 1 > read
        opened.context = len(opened.ids) + 4  # full
        opened.answer(QUESTION)
        assert len(opened.ids) < len(ids) + 4  # a new conversation, and the memory has gone on
        assert count(s) > len(opened.ids)
        opened.reset()
        opened.context = 100
        assert opened.answer(QUESTION) == one
    base = load_base(BaseConfig(model="builtin:tiny"))
    inputs = torch.tensor([base.tokenizer(QUESTION)["input_ids"]])
    made = base.model.generate(input_ids=inputs, max_new_tokens=4, do_sample=False)[0, inputs.shape[1] :]
    opened.begin()
    assert opened.answer_without(QUESTION) == base.tokenizer.decode(made, skip_special_tokens=True).strip()
    assert isinstance(off, str)


def test_a_chat_template_is_used_turn_by_turn(adapter, tmp_path):
    opened = open_chat(str(adapter), tmp_path / "s", "builtin:tiny", 4)
    opened.tokenizer.chat_template = TEMPLATE

    def text(ids: list[int]) -> str:
        return opened.tokenizer.decode(ids)

    def plain(text: str) -> str:
        return opened.tokenizer.decode(opened.tokenizer(text, add_special_tokens=False)["input_ids"])

    assert text(opened.said("a b")) == plain("<user>a b</><assistant>")
    opened.messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    opened.ids = [5]
    assert text(opened.said("d")) == plain("<user>d</><assistant>")
    assert isinstance(opened, Chat)


def test_errors(monkeypatch, capsys, adapter, tmp_path):
    said = chat(monkeypatch, capsys, adapter, tmp_path / "no" / "s", QUESTION)
    assert said.startswith("2") and "there is no folder" in said
    (tmp_path / "bad").write_text("x")
    said = chat(monkeypatch, capsys, adapter, tmp_path / "bad", QUESTION)
    assert said.startswith("2") and "cannot be read" in said
    said = chat(monkeypatch, capsys, tmp_path, tmp_path / "s", QUESTION)
    assert said.startswith("0")  # the folder of a run
    said = chat(monkeypatch, capsys, adapter, tmp_path / "t", "many words " * 500)
    assert said.startswith("2") and "the model takes" in said and not (tmp_path / "t").exists()
