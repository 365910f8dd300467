"""A memory that goes on learning while it reads: what one conversation said is known in the next.

python examples/session_memory.py [STEPS]
"""

import random
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nlft
from nlft.data.batch import in_batches
from nlft.data.world import rows
from nlft.hub import model_location

place = model_location("builtin:tiny")
tokenizer = AutoTokenizer.from_pretrained(place)
draw = random.Random(0)
people = [row for row in rows("base/background") if row.meta["kind"] == "people"]
names = sorted({row.cluster for row in people})
towns = sorted({row.completion for row in people if row.meta["relation"] == "birthplace"})


def fact() -> tuple[str, str]:
    """Somebody new, and a town."""
    first, last = draw.choice(names).split()[0], draw.choice(names).split()[-1]
    return f"{first} {last} was born in", draw.choice(towns)


def lesson() -> dict[str, str]:
    """Four facts, then one of them again. All are drawn anew: there is nothing to learn by heart but how to read."""
    said = [fact() for _ in range(4)]
    prompt, answer = draw.choice(said)
    return {"prompt": " ".join(f"{who} {town}." for who, town in said) + f" {prompt}", "completion": answer}


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 120
hope = {"kind": "hope", "layers": [0, 1, 2], "heads": 1, "head_width": 128, "chunk": 32}
learner = nlft.Learner(AutoModelForCausalLM.from_pretrained(place), tokenizer, **hope)
lessons = [lesson() for _ in range(16 * steps)]
with learner.task("reading", lessons) as model:
    optimizer = learner.optimizer(lr=1e-2)
    for batch in in_batches(learner.encode(lessons), 16, pad_id=0):
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

read = knew = 0
for prompt, answer in [fact() for _ in range(20)]:
    told = tokenizer(f"{prompt} {answer}.", return_tensors="pt", return_token_type_ids=False)
    asked = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    knew += answer in tokenizer.decode(model.generate(**asked, max_new_tokens=4, do_sample=False)[0])
    with nlft.session(model), torch.no_grad():
        model(**told)  # the first conversation
        read += answer in tokenizer.decode(model.generate(**asked, max_new_tokens=4, do_sample=False)[0])  # the next
print(f"of 20 new facts the model gave {knew} before it had read them, and {read} in the conversation after")
