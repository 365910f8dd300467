"""Trains sparse memory on one domain and loads the adapter with PEFT, as for any other adapter.

python examples/load_with_peft.py [OUTPUT FOLDER]
"""

import sys
import tempfile
import warnings
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import logging as transformers_logging

import nlft  # noqa: F401  (makes the adapter's type known to PEFT)
from nlft.cli.argument import fresh_folder
from nlft.data.world import rows
from nlft.hub import model_location
from nlft.recipes import load_recipe
from nlft.run import run_method

transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)

# A run has a folder of its own: run, run-2, run-3 ...
out = fresh_folder(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "run")
recipe = load_recipe("demo", ["methods.sparse_memory.lr=0.3", "background.limit=1000"])
run_method(recipe.model_copy(update={"tasks": recipe.tasks[:1], "probes": []}), "sparse_memory", out, report=False)

location = model_location("builtin:tiny")
base = AutoModelForCausalLM.from_pretrained(location, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(location)
model = PeftModel.from_pretrained(base, out / "adapter")

for row in rows("tasks/people/train")[:3]:
    tokens = tokenizer(row.prompt, return_tensors="pt", return_token_type_ids=False)
    answers = []
    for adapter_on in (False, True):
        if adapter_on:
            output = model.generate(**tokens, max_new_tokens=6, do_sample=False)
        else:
            with model.disable_adapter():
                output = model.generate(**tokens, max_new_tokens=6, do_sample=False)
        answers.append(tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    print(f"{row.prompt} … {row.completion} | base: {answers[0]} | adapted: {answers[1]}")
