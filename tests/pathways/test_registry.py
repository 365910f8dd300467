"""PEFT knows the pathways, whoever is imported first."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from nlft.errors import NlftError
from nlft.pathways.registry import peft_type, register_pathways
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import SparseMemoryModel


def test_registering_twice_changes_nothing():
    before = len(list(peft.PeftType))
    register_pathways()
    register_pathways()
    assert len(list(peft.PeftType)) == before == len(set(peft.PeftType))
    member = peft.PeftType("NLFT_SPARSE_MEMORY")
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is SparseMemoryPeftConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is SparseMemoryModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "nlft_"


def test_the_new_member_behaves_like_the_others():
    member = peft_type("nlft_sparse_memory")
    assert isinstance(member, peft.PeftType) and member in list(peft.PeftType)
    assert member is peft.PeftType["NLFT_SPARSE_MEMORY"] is peft.PeftType("NLFT_SPARSE_MEMORY")
    assert (member.name, member.value, member) == ("NLFT_SPARSE_MEMORY",) * 3
    assert pickle.loads(pickle.dumps(member)) is member is copy.deepcopy(member)
    assert json.loads(json.dumps({"peft_type": member})) == {"peft_type": "NLFT_SPARSE_MEMORY"}


def test_a_name_that_is_taken_is_an_error(monkeypatch):
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, peft_type("nlft_sparse_memory"), peft.LoraConfig)
    with pytest.raises(NlftError, match="PEFT already has a method 'nlft_sparse_memory', from peft"):
        register_pathways()


def test_every_order_of_imports_registers():
    check = "from peft import PeftType; assert PeftType('NLFT_SPARSE_MEMORY') in list(PeftType)"
    orders = ["import nlft, sys; assert 'torch' not in sys.modules; import peft", "import nlft.pathways.registry"]
    running = [subprocess.Popen([sys.executable, "-c", f"{imports}; {check}"]) for imports in orders]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
