"""A memory beside a frozen model, with nothing but PEFT: put in, trained, saved, loaded.

python examples/peft_in_ten_lines.py [FOLDER]
"""

import sys
import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import nlft  # noqa: F401  (makes its pathways known to PEFT)
from nlft.hub import model_location
from nlft.pathways.cms.config import CmsPeftConfig

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
place = model_location("builtin:tiny")  # or any causal language model's folder or Hub id
tokenizer = AutoTokenizer.from_pretrained(place)
text = "The ship Ravenna was built in Genoa."

model = get_peft_model(AutoModelForCausalLM.from_pretrained(place), CmsPeftConfig(r=8, task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
for _ in range(30):
    model(**tokens, labels=tokens["input_ids"]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained(folder)

again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place), folder)
with torch.no_grad():
    adapted = again(**tokens, labels=tokens["input_ids"]).loss
    with again.disable_adapter():
        base = again(**tokens, labels=tokens["input_ids"]).loss
print(f"nats per token of one sentence: base {base:.2f}, with the adapter {adapted:.2f}")
