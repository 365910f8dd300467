"""Naive Bayes over bags of tokens, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nlft.measure.identity import tell_classes


def test_words_that_occur_in_one_class_only_tell_it() -> None:
    told = tell_classes({"a": [[1, 2], [1, 3]], "b": [[4, 5]]}, {"a": [[1], [2, 9]], "b": [[5]]})
    assert told is not None
    assert (told.accuracy, told.chance, told.n) == (1.0, 0.5, 3)


def test_smoothed_counts_decide_as_worked_out_by_hand() -> None:
    """V = 3: a has counts (0, 2, 1), b (0, 1, 0). Smoothed: token 1 is 3/6 in a and 2/4 in b, which is a tie; token 2
    is 2/6 in a and 1/4 in b; token 0 is 1/6 in a and 1/4 in b."""
    train = {"a": [[1, 1, 2]], "b": [[1]]}
    told = tell_classes(train, {"a": [[1], [2], [1, 2]], "b": [[0], [0, 2]]})
    assert told is not None
    # A tie is told wrong; [0, 2] is 2/36 in a and 1/16 in b.
    assert told.recall == {"a": pytest.approx(2 / 3), "b": 1.0}
    assert told.accuracy == pytest.approx(5 / 6)  # the mean over classes, not over rows (4 of 5)


def test_equal_texts_tell_nothing_and_noise_is_at_chance() -> None:
    same = {name: [[1, 2, 3]] * 5 for name in "abc"}
    told = tell_classes(same, same)
    assert told is not None and told.accuracy == 0.0  # a tie is no answer
    rng = np.random.default_rng(0)
    draw = {name: rng.integers(50, size=(400, 8)).tolist() for name in "abcd"}
    other = {name: rng.integers(50, size=(400, 8)).tolist() for name in "abcd"}
    noise = tell_classes(draw, other)
    assert noise is not None and abs(noise.accuracy - noise.chance) < 0.05


def test_one_class_is_no_question() -> None:
    assert tell_classes({"a": [[1]], "b": []}, {"a": [[1]], "b": [[2]]}) is None
    assert tell_classes({"a": [[1]], "b": [[2]]}, {"a": [[1]]}) is None
