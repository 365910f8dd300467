"""Conversations: every turn of the assistant is a target, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from data_tokenizers import (
    BARE,
    CHATML,
    MARKED,
    TALK,
    UNSTABLE,
    X,
    byte_level,
    byte_pieces,
    failure,
    one,
    spans,
    targets,
    words,
)

from nlft.data.template import prompt_ids
from nlft.types import Message, Row


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_every_assistant_turn_is_a_target(template):
    tokenizer = byte_level(template)
    encoded = one(TALK, tokenizer)
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in TALK.messages], tokenize=False
    )
    assert tokenizer.decode(encoded.ids) == text.rstrip("\n")
    assert spans(encoded, tokenizer) == ["c d<|im_end|>", "fé<|im_end|>"]
    assert encoded.n_bytes == len("c dfé".encode())
    assert tokenizer.decode(prompt_ids(encoded)).endswith("e<|im_end|>\n<|im_start|>assistant\n")
    # The end of turn is a token of its own, and no end token is added behind it.
    assert encoded.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_markers_and_prefixes_agree():
    assert one(TALK, byte_level(MARKED)) == one(TALK, byte_level(CHATML))


def test_markers_around_the_content_alone():
    tokenizer = byte_level(MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"))
    # The tokenizer's offsets leave out the space at the end, so no token claims that character.
    talk = replace(TALK, messages=(*TALK.messages[:3], Message("assistant", "f ")))
    encoded = one(talk, tokenizer)
    assert spans(encoded, tokenizer) == ["c d", "f"]
    assert encoded.n_bytes == 4


def test_a_token_that_begins_inside_a_turn_belongs_to_it():
    # "im" is one token, and the content ends within it.
    template = MARKED.replace("{{ m.content }}<|im_end|>{% endgeneration %}", "{{ m.content }}{% endgeneration %}m;")
    talk = replace(TALK, messages=(Message("user", "a"), Message("assistant", "hi")))
    assert spans(one(talk, byte_level(template)), byte_level()) == ["him<|end|>"]


def test_markers_on_a_slow_tokenizer():
    tokenizer = byte_pieces()
    tokenizer.chat_template = MARKED
    assert spans(one(TALK, tokenizer), tokenizer) == ["c d<|im_end|>", "fé<|im_end|></s>"]


def test_a_template_without_end_of_turn_gets_the_end_token():
    tokenizer = byte_level(BARE)
    encoded = one(TALK, tokenizer)
    assert tokenizer.decode(encoded.ids) == "user: ab\nassistant: c d\nuser: e\nassistant: fé<|end|>"
    assert spans(encoded, tokenizer) == ["c d", "fé<|end|>"]
    assert encoded.n_bytes == 6


def test_conversation_on_a_slow_tokenizer():
    tokenizer = byte_pieces()
    tokenizer.chat_template = BARE
    encoded = one(TALK, tokenizer)
    assert spans(encoded, tokenizer) == ["c d", "fé</s>"]
    assert encoded.n_bytes == 6


def test_cut_conversation_keeps_a_target():
    tokenizer = byte_level(CHATML)
    whole = one(TALK, tokenizer)
    first = next(i for i, label in enumerate(whole.labels) if label != X)
    for limit in range(2, len(whole.ids)):
        cut = one(TALK, tokenizer, limit, "truncate")
        assert len(cut.ids) == limit and targets(cut)
        # A context that fits in half of the limit is kept from its start.
        if first <= limit // 2:
            assert cut.ids == whole.ids[:limit] and cut.labels == whole.labels[:limit]


def test_markers_around_nothing_are_an_error():
    template = MARKED.replace("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}", "{{ m.content }}")
    template = template.replace("{{ m.content }}", "{% generation %}{% endgeneration %}{{ m.content }}")
    assert failure(TALK, byte_level(template))[0].startswith("talk.jsonl:4 has no target token")


def test_no_chat_template():
    message, hint = failure(TALK, words())
    assert message == "talk.jsonl:4 is a conversation, but the base's tokenizer has no chat template."
    assert "chat_template.jinja" in hint and "prompt and completion" in hint


def test_a_template_that_is_not_prefix_stable():
    message, hint = failure(TALK, byte_level(UNSTABLE))
    assert "talk.jsonl:4: the chat template renders turn 2 differently" in message
    assert "{% generation %}" in hint
    # With one turn of the assistant there is nothing to confuse.
    short = replace(TALK, messages=TALK.messages[:2])
    assert spans(one(short, byte_level(UNSTABLE)), byte_level()) == ["<think></think>c d<|im_end|>"]


def test_a_turn_that_spells_a_special_token():
    row = Row("", "", messages=(Message("user", "a"), Message("assistant", "b<|im_end|>c")), source="t:1")
    assert failure(row, byte_level(CHATML))[0] == "t:1: turn 2 holds '<|im_end|>', a special token of this tokenizer."


def test_a_template_that_refuses():
    template = "{{ raise_exception('roles must alternate') }}"
    message, _ = failure(TALK, byte_level(template))
    assert message == "talk.jsonl:4: the chat template refuses this conversation: roles must alternate"


def test_a_conversation_that_the_assistant_begins():
    row = Row("", "", messages=(Message("assistant", "a"),), source="t:1")
    assert failure(row, byte_level(CHATML))[0] == "t:1 begins with the assistant's turn."
