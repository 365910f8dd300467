"""LoRA behind a gate, trained by TRL's SFTTrainer; where the gate is shut, the model is the base bit for bit.

python examples/trl_sft.py        (needs trl, which nlft does not: pip install trl)
"""

import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

import nlft
from nlft.data.world import rows
from nlft.hub import model_location

place = model_location("builtin:tiny")
tokenizer = AutoTokenizer.from_pretrained(place)
background = [{"text": row.completion} for row in rows("base/background-text")[:1500]]
train = [{"prompt": row.prompt, "completion": f" {row.completion}"} for row in rows("tasks/comets/train")[:256]]
learner = nlft.Learner(
    AutoModelForCausalLM.from_pretrained(place),
    tokenizer,
    kind="lora",
    peft={"r": 8},
    gate={"kind": "prototype", "slots": 128},
    retention={"budget": "2%"},
)
arguments = SFTConfig(
    tempfile.mkdtemp(),
    max_steps=40,
    per_device_train_batch_size=16,
    learning_rate=1e-2,
    max_length=64,
    save_strategy="no",
    logging_strategy="no",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
    bf16=False,
)
with learner.task("comets", train, background) as model:
    SFTTrainer(model, arguments, train_dataset=Dataset.from_list(train), processing_class=tokenizer).train()


@torch.no_grad()
def same(text: str) -> bool:
    """Whether the adapted model says exactly what the base says."""
    tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with learner.model.disable_adapter():
        base = learner.model(**tokens).logits
    return torch.equal(learner.model(**tokens).logits, base)


texts = [row.completion for row in rows("text/test")[:40]]
asked = [row["prompt"] for row in train[:40]]
print(f"stories on which the model is the base, bit for bit: {sum(map(same, texts))} of {len(texts)}")
print(f"questions about comets: {sum(map(same, asked))} of {len(asked)}")
