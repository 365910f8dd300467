"""Hope's state in the cache: prefill and decoding, padding, beams, static caches, drafts."""

from __future__ import annotations

import pytest
import torch
from hope_models import (
    KINDS,
    WIDTH,
    every_kind,
    lively,
    places_of,
    rows_of,
)
from pathway_models import SHAPES, build, every_shape
from transformers import DynamicCache

from nlft.errors import NlftError
from nlft.pathways.state import StateLayer

LENGTHS = [12, 11, 7]
kind_by_family = pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, list(KINDS)[number % len(KINDS)]) for number, family in enumerate(SHAPES)),
        *(("llama", kind) for kind in list(KINDS)[1:]),
    ],
)


@kind_by_family
def test_prefill_and_decoding_equal_one_forward(family, kind):
    adapted = lively(family, **KINDS[kind])
    ids, mask = rows_of(LENGTHS)
    real = mask == 1

    @torch.no_grad()
    def outputs(start: int, stop: int, **options) -> torch.Tensor:
        places = places_of(mask)[:, start:stop]
        return adapted(
            input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=places, **options
        ).logits

    whole = outputs(0, WIDTH)
    for split in range(1, WIDTH):
        past = DynamicCache()
        for start, stop in [(0, split), (split, split + 1), (split + 1, WIDTH)][: 3 if split < WIDTH - 1 else 2]:
            part, there = outputs(start, stop, past_key_values=past, use_cache=True), real[:, start:stop]
            torch.testing.assert_close(part[there], whole[:, start:stop][there], rtol=1e-5, atol=1e-4)


@every_kind
@every_shape
def test_padding_on_either_side_changes_nothing(family, kind):
    adapted = lively(family, **KINDS[kind])
    for side in ("left", "right"):
        ids, mask = rows_of(LENGTHS, side)
        with torch.no_grad():
            found = adapted(input_ids=ids, attention_mask=mask, position_ids=places_of(mask)).logits
            for row in range(len(LENGTHS)):
                there = mask[row] == 1
                alone = adapted(input_ids=ids[row : row + 1, there]).logits[0]
                torch.testing.assert_close(found[row, there], alone, rtol=1e-5, atol=1e-4)


@every_kind
def test_right_padding_in_front_of_new_tokens_changes_nothing(kind):
    adapted = lively(**KINDS[kind])
    ids, mask = rows_of(LENGTHS, "right")
    more = rows_of([12, 12, 12], seed=6)[0][:, :6]
    both, places = torch.cat([mask, torch.ones_like(more)], dim=1), None
    places = places_of(both)
    with torch.no_grad():
        past = DynamicCache()
        adapted(input_ids=ids, attention_mask=mask, position_ids=places[:, :WIDTH], past_key_values=past)
        found = adapted(
            input_ids=more, attention_mask=both, position_ids=places[:, WIDTH:], past_key_values=past
        ).logits
        for row, length in enumerate(LENGTHS):
            alone = adapted(input_ids=torch.cat([ids[row, :length], more[row]])[None]).logits[0, length:]
            torch.testing.assert_close(found[row], alone, rtol=1e-5, atol=1e-4)


@kind_by_family
def test_generation(family, kind, monkeypatch):
    adapted = lively(family, **KINDS[kind])
    ids, mask = rows_of([12, 9, 7])
    options = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    rows = dict(input_ids=ids, attention_mask=mask)
    found = adapted.generate(**rows, **options)
    with adapted.disable_adapter():
        assert not torch.equal(adapted.generate(**rows, **options), found)
    assert torch.equal(adapted.generate(**rows, **options, use_cache=False), found)
    for row, length in enumerate((12, 9, 7)):  # rows do not know of each other, nor of padding
        alone = adapted.generate(input_ids=ids[row : row + 1, -length:], **options)
        assert torch.equal(alone[0, length:], found[row, 12:]), row
    static = adapted.generate(**rows, **options, cache_implementation="static")
    assert torch.equal(static, found)

    beams = dict(**rows, **options, num_beams=3, num_return_sequences=2)
    expected = adapted.generate(**beams, use_cache=False, return_dict_in_generate=True, output_scores=True)
    cached = adapted.generate(**beams, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(cached.sequences, expected.sequences)
    torch.testing.assert_close(cached.sequences_scores, expected.sequences_scores, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(StateLayer, "reorder_cache", lambda *_: None)  # the control
    control = adapted.generate(**beams, return_dict_in_generate=True, output_scores=True)
    assert not torch.allclose(control.sequences_scores, expected.sequences_scores, rtol=1e-5, atol=1e-5)


def test_drafts_are_refused_unless_all_of_them_is_accepted():
    adapted = lively()
    ids = rows_of([12])[0]
    options = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    with pytest.raises(NlftError, match="of a draft cannot be taken back"):
        adapted.generate(input_ids=ids, **options, assistant_model=build("llama"))
    repeated = torch.cat([ids, ids], dim=1)
    with pytest.raises(NlftError, match="of a draft cannot be taken back"):
        adapted.generate(input_ids=repeated, **options, prompt_lookup_num_tokens=3)
    with adapted.disable_adapter():  # nothing was read, and nothing need be forgotten
        assert adapted.generate(input_ids=ids, **options, assistant_model=build("llama")).shape == (1, 20)
