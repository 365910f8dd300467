"""Tokenizers for every test of this folder, and leave to import `data_rows` and `data_tokenizers`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def stories(shared):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "stories260K")


@pytest.fixture(params=["words", "byte_level", "byte_level_bos", "slow", "stories"])
def tokenizer(request) -> Any:
    from data_tokenizers import byte_level, byte_pieces, words

    if request.param == "stories":
        return request.getfixturevalue("stories")
    return {
        "words": words,
        "byte_level": byte_level,
        "byte_level_bos": lambda: byte_level(bos=True),
        "slow": byte_pieces,
    }[request.param]()
