"""Ids and labels by hand, on tokenizers of four kinds; masks, cuts and every error."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from data_tokenizers import (
    CHATML,
    PERU,
    TALK,
    X,
    byte_level,
    byte_pieces,
    failure,
    one,
    targets,
    words,
)

from nlft.config import DataConfig
from nlft.data.source import load_rows
from nlft.data.template import Encoded, encode, encode_rows, pad_id, preview, prompt_ids
from nlft.types import Row


def test_words_by_hand():
    encoded = one(PERU, words())
    assert encoded.ids == [1, 4, 5, 6, 7, 8, 9, 10, 2]
    assert encoded.labels == [X, X, X, X, X, X, 9, 10, 2]
    assert encoded.n_bytes == len(" Lima.")
    assert prompt_ids(encoded) == [1, 4, 5, 6, 7, 8]


def test_plain_text_by_hand():
    encoded = one(Row("", "the capital."), words())
    assert encoded == Encoded([1, 4, 5, 10], [X, 4, 5, 10], len("the capital."))
    assert prompt_ids(encoded) == [1]


def test_without_begin_and_end_tokens_by_hand():
    bare = words(pad_token="[PAD]")
    assert one(PERU, bare) == Encoded([4, 5, 6, 7, 8, 9, 10], [X, X, X, X, X, 9, 10], 6)
    # Nothing predicts the first token, so it is no target and its bytes do not count.
    assert one(Row("", "the capital."), bare) == Encoded([4, 5, 10], [X, 5, 10], len(" capital."))


def test_byte_level_by_hand():
    tokenizer = byte_level()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("I", "n", ":", "Ġ", "ĠLim", "a", "Ã", "©")}
    end = tokenizer.eos_token_id
    encoded = one(Row("In:", "Lima", join=" "), tokenizer)
    assert encoded.ids == [ids["I"], ids["n"], ids[":"], ids["ĠLim"], ids["a"], end]
    assert encoded.labels == [X, X, X, ids["ĠLim"], ids["a"], end]
    assert encoded.n_bytes == 5
    # A space that the prompt already has belongs to the token that the completion begins with.
    encoded = one(Row("In: ", "Lima"), tokenizer)
    assert encoded.ids == [ids["I"], ids["n"], ids[":"], ids["ĠLim"], ids["a"], end]
    assert encoded.labels == [X, X, X, ids["ĠLim"], ids["a"], end]
    assert encoded.n_bytes == 4
    # A join that is a token of its own is a target, and so is every byte of a character.
    encoded = one(Row("In", "é", join=" "), tokenizer)
    assert encoded.ids == [ids["I"], ids["n"], ids["Ġ"], ids["Ã"], ids["©"], end]
    assert encoded.labels == [X, X, ids["Ġ"], ids["Ã"], ids["©"], end]
    assert encoded.n_bytes == 3


def test_begin_token_of_a_tokenizer_that_does_not_add_it():
    tokenizer = byte_level(bos=True)
    assert tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id
    encoded = one(Row("In:", "Lima", join=" "), tokenizer)
    assert encoded.ids[0] == tokenizer.bos_token_id and encoded.labels[0] == X
    assert encoded.ids[1:] == one(Row("In:", "Lima", join=" "), byte_level()).ids


def test_slow_tokenizer_by_hand():
    encoded = one(Row("ab", "é", join=" "), byte_pieces())
    assert encoded.ids == [100, 101, 35, 198, 172, 1]
    assert encoded.labels == [X, X, 35, 198, 172, 1]
    assert encoded.n_bytes == 3


def test_stories_by_hand(stories):
    encoded = one(Row("What is red?", "A colour.", join=" "), stories)
    pieces = stories.convert_ids_to_tokens(encoded.ids)
    assert " ".join(pieces) == "<s> ▁ W h at ▁ is ▁r ed ? ▁ A ▁c o l ou r . </s>"
    assert encoded.labels == [X] * 10 + encoded.ids[10:]
    assert encoded.n_bytes == len(" A colour.")


ROWS = [
    Row("the capital of Peru is", "Lima.", join=" "),
    Row("In: ", "Lima"),
    Row("", "the capital of Peru is Lima"),
    Row("日本", "é ü", join=" "),
    Row("the", "\nPeru  is"),
    Row("?", "Lima</s> <s> <|im_end|>", join=" "),
    Row("", "<s> the <unk> Lima</s>"),
]


@pytest.mark.parametrize("row", ROWS)
def test_ids_are_those_of_the_whole_text(tokenizer, row):
    text = row.prompt + row.join + row.completion
    whole = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [tokenizer.eos_token_id] if row.prompt else []
    encoded = one(row, tokenizer)
    assert encoded.ids == bos + whole + eos
    assert all(label in (X, i) for label, i in zip(encoded.labels, encoded.ids, strict=True))
    # Targets are one run to the end, and what is before them is the tokens of the prompt.
    n = len(targets(encoded))
    assert encoded.labels == [X] * (len(encoded.ids) - n) + encoded.ids[-n:]
    assert prompt_ids(encoded) == encoded.ids[:-n]
    if row.prompt and row.join:
        prompt = tokenizer(row.prompt, add_special_tokens=False)["input_ids"]
        assert prompt_ids(encoded) == bos + prompt
        assert encoded.n_bytes == len((row.join + row.completion).encode())


def test_many_equal_one_by_one(tokenizer):
    rows = [replace(row, source=f"r:{i}") for i, row in enumerate(ROWS * 3)]
    if "<|im_end|>" in tokenizer.get_vocab():
        tokenizer.chat_template = CHATML
        rows = [*rows[:2], TALK, *rows[2:], TALK]
    cases: list[tuple[int, Any]] = [(512, "error"), (6, "truncate")]
    for limit, too_long in cases:
        singles = [encoded for row in rows for encoded in encode(row, tokenizer, limit, too_long)]
        assert encode_rows(rows, tokenizer, limit, too_long) == singles
        assert len(singles) == len(rows)


def test_real_rows_many_equal_one_by_one(shared, stories):

    for name in ("domains/trace_Py150_test", "domains/trace_C-STANCE_test", "text/wikitext2_test"):
        rows = load_rows(DataConfig(path=str(shared / "data" / f"{name}.jsonl"), limit=30))
        many = encode_rows(rows, stories, 200, "truncate")
        assert many == [encoded for row in rows for encoded in encode(row, stories, 200, "truncate")]
        assert all(len(targets(encoded)) >= 1 and len(encoded.ids) <= 200 for encoded in many)


def test_stories_token_count_of_its_sample(shared, stories):

    rows = load_rows(DataConfig(path=str(shared / "data/text/tinystories_sample.jsonl")))
    encoded = encode_rows(rows, stories, 512, "truncate")
    assert sum(len(targets(row)) for row in encoded) == 917313


def test_special_tokens_in_data_are_text(stories):
    encoded = one(Row("a", "b</s> <s>", join=" "), stories)
    assert encoded.ids.count(stories.eos_token_id) == 1 and encoded.ids.count(stories.bos_token_id) == 1
    assert stories.decode(targets(encoded)[:-1]) == "b</s> <s>"


LONG = Row("the capital of Peru is", "Lima . Lima . Lima .", join=" ", source="long.jsonl:9")


def test_truncate_by_hand():
    tokenizer = words()
    assert one(LONG, tokenizer).ids == [1, 4, 5, 6, 7, 8, 9, 10, 9, 10, 9, 10, 2]
    # 12 tokens behind [BOS] in 11 places: the prompt's 5 are no more than half, so the end goes.
    cut = one(LONG, tokenizer, 12, "truncate")
    assert cut == Encoded(
        [1, 4, 5, 6, 7, 8, 9, 10, 9, 10, 9, 10], [X] * 6 + [9, 10, 9, 10, 9, 10], len(" Lima . Lima . Lima .")
    )
    # 7 places: 3 for the end of the prompt, 4 for the start of the completion.
    cut = one(LONG, tokenizer, 8, "truncate")
    assert cut == Encoded([1, 6, 7, 8, 9, 10, 9, 10], [X, X, X, X, 9, 10, 9, 10], len(" Lima . Lima ."))
    # A short completion stays whole; the prompt loses its start.
    cut = one(PERU, tokenizer, 6, "truncate")
    assert cut == Encoded([1, 7, 8, 9, 10, 2], [X, X, X, 9, 10, 2], 6)
    cut = one(PERU, words(pad_token="[PAD]"), 4, "truncate")
    assert cut == Encoded([7, 8, 9, 10], [X, X, 9, 10], 6)
    cut = one(Row("", "the capital of Peru"), tokenizer, 3, "truncate")
    assert cut == Encoded([1, 4, 5], [X, 4, 5], len("the capital"))


@pytest.mark.parametrize("limit", [2, 3, 4, 7, 11])
@pytest.mark.parametrize("row", ROWS)
def test_truncate_on_every_tokenizer(tokenizer, row, limit):
    whole, cut = one(row, tokenizer), one(row, tokenizer, limit, "truncate")
    assert len(cut.ids) == min(limit, len(whole.ids))
    assert len(targets(cut)) >= 1 and cut.labels[0] == X
    assert targets(whole)[: len(targets(cut))] == targets(cut)
    assert cut.n_bytes <= whole.n_bytes
    if len(whole.ids) <= limit:
        assert cut == whole


@pytest.mark.parametrize("limit", [2, 3, 5, 8])
def test_split_holds_every_target_once(tokenizer, limit):
    row = Row("", "the capital of Peru is Lima. é the capital?")
    whole, pieces = one(row, tokenizer), encode(row, tokenizer, limit, "split")
    assert all(len(piece.ids) <= limit and piece.labels[0] == X for piece in pieces)
    assert [label for piece in pieces for label in targets(piece)] == targets(whole)
    assert sum(piece.n_bytes for piece in pieces) == whole.n_bytes or not tokenizer.is_fast
    if tokenizer.bos_token_id is not None:
        assert all(piece.ids[0] == tokenizer.bos_token_id for piece in pieces)


def test_split_by_hand():
    row = Row("", "the capital of Peru is")
    pieces = encode(row, words(), 3, "split")
    assert [piece.ids for piece in pieces] == [[1, 4, 5], [1, 6, 7], [1, 8]]
    assert [piece.n_bytes for piece in pieces] == [11, 8, 3]
    pieces = encode(row, words(pad_token="[PAD]"), 3, "split")
    assert [piece.ids for piece in pieces] == [[4, 5, 6], [6, 7, 8]]
    assert [piece.labels for piece in pieces] == [[X, 5, 6], [X, 7, 8]]


def test_a_row_of_exactly_the_limit_fits():
    assert one(PERU, words(), 9) == one(PERU, words(), 512)


def test_too_long_is_an_error():
    message, hint = failure(LONG, words(), 12)
    assert message == "long.jsonl:9 has 13 tokens, more than the limit of 12."
    assert all(choice in hint for choice in ("`truncate`", "`split`", "`error`", "train.max_length"))


def test_split_refuses_rows_with_a_prompt():
    message, _ = failure(LONG, words(), 12, "split")
    assert message.startswith("long.jsonl:9 has 13 tokens, more than the limit of 12; `split` cuts plain text only")
    assert "talk.jsonl:4" in failure(TALK, byte_level(CHATML), 12, "split")[0]


def test_a_row_without_targets_is_an_error():
    message, _ = failure(Row("the", "   ", source="r.jsonl:3"), words())
    assert message.startswith("r.jsonl:3 has no target token")
    message, _ = failure(Row("", "the", source="r.jsonl:3"), words(pad_token="[PAD]"))
    assert message.startswith("r.jsonl:3 has no target token")
    assert one(Row("", "the"), words()).labels == [X, 4]


def test_the_space_before_a_completion_is_no_lesson():
    """A tokenizer that has no token for a text drops it; what is left is the join."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.BPE({"a": 0, "b": 1, " ": 2, "<e>": 3}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<e>")
    assert one(Row("a", "b", join=" "), tokenizer).labels == [X, 2, 1, 3]
    for row in (Row("a", "ж", join=" ", source="r.jsonl:3"), Row("a", " ж", source="r.jsonl:3")):
        message, _ = failure(row, tokenizer)
        assert message.startswith("r.jsonl:3 has no target token: the base's tokenizer has no token for")
        assert "ж" in message


def test_preview_marks_the_targets(stories):
    encoded = one(Row("What is red?", "A colour.", join=" "), stories)
    assert preview(encoded, stories) == "<s> What is red?⟦ A colour.</s>⟧"
    tokenizer = byte_level(CHATML)
    assert preview(one(TALK, tokenizer), tokenizer).count("⟦") == 2
    assert preview(one(TALK, tokenizer), tokenizer).endswith("assistant\n⟦fé<|im_end|>⟧")


def test_pad_id():
    assert pad_id(words()) == 0
    assert pad_id(byte_level()) == byte_level().eos_token_id
    assert pad_id(words(bos_token="[BOS]")) == 0


def test_speed_of_many_rows():
    tokenizer = words()
    rows = [Row(f"the capital of Peru is {i}", "Lima .", join=" ") for i in range(10_000)]
    encode_rows(rows[:10], tokenizer, 64)
    start = time.perf_counter()
    encoded = encode_rows(rows, tokenizer, 64)
    # Under a second on one idle core; generous here, for machines that are busy.
    assert len(encoded) == 10_000 and time.perf_counter() - start < 10
