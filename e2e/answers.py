"""Asks base and tuned model the held-out questions and counts exact answers.

    python -m e2e.answers MODEL_FOLDER ADAPTER_FOLDER HELDOUT_JSONL

Prints one JSON object: `questions`, `base` and `tuned` (exact matches), `examples` (question, expected, both
answers). A process of its own, so that torch's memory goes with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

LONGEST_ANSWER = 32
SHOWN = 3
BATCH = 60


def answers(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    """Return the model's greedy answers through the chat template, as an engine would give them."""
    found: list[str] = []
    for start in range(0, len(questions), BATCH):
        chats = [[{"role": "user", "content": question}] for question in questions[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        found += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return found


def main() -> int:
    """Compare the two models and print the result as JSON."""
    folder, adapter, heldout = (Path(argument) for argument in sys.argv[1:4])
    rows = [json.loads(line) for line in heldout.read_text(encoding="utf-8").splitlines()]
    questions, expected = [row["prompt"] for row in rows], [row["completion"].strip() for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = answers(model.eval(), tokenizer, questions)
    tuned = answers(PeftModel.from_pretrained(model, adapter).eval(), tokenizer, questions)
    result = {
        "questions": len(rows),
        "base": sum(a == b for a, b in zip(base, expected, strict=True)),
        "tuned": sum(a == b for a, b in zip(tuned, expected, strict=True)),
        "examples": [
            dict(zip(("question", "expected", "base", "tuned"), item, strict=True))
            for item in list(zip(questions, expected, base, tuned, strict=True))[:SHOWN]
        ],
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
