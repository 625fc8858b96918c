"""A process that knows nothing of Lorikeet: loads what a run has published, and writes what the model computes.

Its libraries take seconds to load, so that it does that once; what it is asked, a line of JSON each, a fork answers
that has loaded no model before.
"""

import json
import multiprocessing
import os
import sys
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def read(base: str, published: str, method: str, out: str, dtype: str, ids: list[list[int]]) -> None:
    """Write to `out` the logits of a model on `ids`."""
    model: Any
    if method == "full":
        model = AutoModelForCausalLM.from_pretrained(f"{published}/model")
    else:
        four = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        more = {"quantization_config": four} if method == "qlora" else {}
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), **more)
        model = PeftModel.from_pretrained(model, f"{published}/adapter", autocast_adapter_dtype=False)
    model.eval()
    # accelerate wraps the forward pass so.
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(input_ids=torch.tensor(ids)).logits.float()
    torch.save(logits, out)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    for line in sys.stdin:
        fork = multiprocessing.get_context("fork").Process(target=read, args=json.loads(line))
        fork.start()
        fork.join()
        answers.write("read\n" if fork.exitcode == 0 else "failed\n")
        answers.flush()
