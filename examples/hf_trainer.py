"""Sparse memory in Hugging Face's Trainer: one domain after another, each with slots of its own.

python examples/hf_trainer.py
"""

import tempfile

from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import nlft
from nlft.data.world import rows
from nlft.hub import model_location

place = model_location("builtin:tiny")
tokenizer = AutoTokenizer.from_pretrained(place)
background = [{"text": row.completion} for row in rows("base/background-text")[:600]]
learner = nlft.Learner(AutoModelForCausalLM.from_pretrained(place), tokenizer, kind="sparse_memory", slots=300)
arguments = TrainingArguments(
    tempfile.mkdtemp(),
    max_steps=40,
    per_device_train_batch_size=16,
    learning_rate=0.3,
    save_strategy="no",
    logging_strategy="no",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
)
domains = {
    name: [{"prompt": row.prompt, "completion": row.completion} for row in rows(f"tasks/{name}/train")[:256]]
    for name in ("people", "ships")
}
for name, train in domains.items():
    with learner.task(name, train, background, n_tasks=2) as model:
        collator = DataCollatorForSeq2Seq(tokenizer)
        Trainer(model, arguments, train_dataset=learner.dataset(train), data_collator=collator).train()

for name, train in domains.items():
    for row in train[:2]:
        tokens = tokenizer(row["prompt"], return_tensors="pt", return_token_type_ids=False)
        output = learner.model.generate(**tokens, max_new_tokens=8, do_sample=False)
        answer = tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        print(f"{name} | {row['prompt']} … {answer} | wanted: {row['completion']}")
