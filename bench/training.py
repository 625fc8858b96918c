"""Measures training beside trl's own script (`make bench-training`).

    .venv/bin/python -m bench.training [--gpu] [--pairs 5] [--steps 40] [--only NAME …]

The same model, data and settings in pairs of runs one after the other: `lorikeet-train` with a real S3 server, and
`trl/scripts/sft.py` on the same files. Both are timed by the lines that they log of each step, from a quarter of the
steps on, so that nothing of their start counts. On the CPU two threads train a small model, unpacked and packed; and
`whole`, where nothing is drawn, neither first weights nor an order of rows: each step trains the whole model on all
rows, so that the losses of both have to be equal. With `--gpu` one GPU trains a model of random weights in the shape of
Llama 2 7B, on examples of 2,048 tokens: by qlora as it is, and by lora without activation checkpointing, with torch's
kernels, and as `liger` with Liger's. Prints one JSON object, for each of them:

- `lorikeet`, `trl`: tokens a second of each pair, without padding.
- `ratio`: the median of the pairs' ratios, above 1 where Lorikeet is faster.
- `loss`: the training loss of the last quarter of the steps, of both.
- `apart`: the largest difference of their losses at a step, of the pair that differs most.
- `peak_mib`: the largest peak memory of both: what torch has reserved of the GPU, else that of the process.
- `tflops`: what Lorikeet's tokens a second are worth with `--gpu`: 4 FLOP for each parameter and token, forward and
  backward through weights that are frozen; what is computed twice for activation checkpointing does not count.
- `seconds`: where the last run's time went.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from lorikeet_api.contract import RunContract
from lorikeet_api.training import Kernels
from lorikeet_storage.folders import use_folders
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

THREADS = "2"
SMALL: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
SEVEN_B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
}
SEVEN_B_PARAMETERS = 6_738_415_616
ADAPTER: dict[str, Any] = {
    "rank": 16,
    "alpha": 32,
    "dropout": 0.0,
    "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
_STEP = re.compile(r"event=step step=\d+ .*\bloss=(\S+)")
_PEERS_PEAK = re.compile(r"peak of the GPU: (\d+)")
_PEER = (
    "import runpy, torch; runpy.run_module('trl.scripts.sft', run_name='__main__');"
    "print('peak of the GPU:', torch.cuda.max_memory_reserved())"
)


@dataclass(frozen=True)
class Case:
    """What is trained, by both."""

    method: str = "lora"
    packing: bool = False
    batch: int = 8
    micro: int = 4
    length: int = 256
    gpu: bool = False
    kernels: Kernels = "torch"
    checkpointing: bool = False
    learning_rate: float = 1e-3

    @property
    def draws(self) -> bool:
        """Whether first weights and the order of rows are drawn at random."""
        return self.method != "full"

    def contract(self, lab: Lab, data: str, steps: int) -> RunContract:
        """Return the run of Lorikeet."""
        training = {
            "epochs": 999.0,
            "maxSteps": steps,
            "loggingSteps": 1,
            "learningRate": self.learning_rate,
            "batchSize": self.batch,
            "microBatchSize": self.micro,
            "scheduler": "constant",
            "warmupRatio": 0.0,
            "precision": "bf16" if self.gpu else "fp32",
            "kernels": self.kernels,
            "activationCheckpointing": self.checkpointing,
        }
        dataset = {"maxLength": self.length, "packing": self.packing, "overlong": "truncate"}
        sources = ("s3://models/bench", f"s3://datasets/{data}")
        method = {self.method: ADAPTER if self.draws else {}}
        return lab.contract(method, *sources, dataset=dataset, training=training, gpus=1 if self.gpu else 0)

    def peers_command(self, model: Path, data: Path, output: Path, steps: int) -> list[str]:
        """Return trl's command for the same."""
        four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
        adapter = {
            "use_peft": True,
            "lora_r": ADAPTER["rank"],
            "lora_alpha": ADAPTER["alpha"],
            "lora_dropout": ADAPTER["dropout"],
        }
        settings = {
            "model_name_or_path": model,
            "dataset_name": data,
            "output_dir": output,
            "max_steps": steps,
            "logging_steps": 1,
            "per_device_train_batch_size": self.micro,
            "gradient_accumulation_steps": self.batch // self.micro,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "optim": "paged_adamw_8bit" if self.method == "qlora" and self.gpu else "adamw_torch",
            "max_length": self.length,
            "packing": self.packing,
            "seed": 1,
            "dtype": "bfloat16" if self.gpu else "float32",
            "bf16": self.gpu,
            "use_cpu": not self.gpu,
            "use_liger_kernel": self.kernels == "liger",
            "activation_checkpointing": self.checkpointing,
            "include_num_input_tokens_seen": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": "none",
            **(adapter if self.draws else {}),
            **(four_bits if self.method == "qlora" else {}),
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        words += ["--lora_target_modules", *ADAPTER["targetModules"]] if self.draws else []
        started = ["-c", _PEER] if self.gpu else ["-m", "trl.scripts.sft"]
        return [sys.executable, "-u", *started, *words]


ON_CPU = {"unpacked": Case(), "packed": Case(packing=True), "whole": Case("full", batch=16)}
ON_GPU = {
    "qlora": Case("qlora", micro=1, length=2048, gpu=True, checkpointing=True, learning_rate=1e-4),
    "lora": Case("lora", length=2048, gpu=True, learning_rate=1e-4),
    "liger": Case("lora", length=2048, gpu=True, kernels="liger", learning_rate=1e-4),
}


@dataclass(frozen=True)
class Figures:
    """What one run came to."""

    tokens_per_second: float
    losses: list[float]
    """Of each step."""
    peak_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean of the last quarter of the steps."""
        return statistics.fmean(self.losses[-max(1, len(self.losses) // 4) :])


def rows(case: Case) -> list[tiny.Row]:
    """Return examples: on the CPU of lengths that differ much, as those of real data do; on the GPU all of them too
    long, and cut. Where nothing is drawn they are the texts of one batch."""
    if not case.draws:
        return [{"text": f"{row['prompt']} {row['completion']}"} for row in tiny.rows()[0][: case.batch]]
    if not case.gpu:
        return [
            {**row, "completion": " ".join([row["completion"]] * (1 + (7 * number) % 60))}
            for number, row in enumerate(tiny.rows()[0] * 8)
        ]
    draw, words = random.Random(1), [*tiny.COLOURS, *tiny.COLOURS.values()]
    return [{**row, "completion": " ".join(draw.choices(words, k=case.length))} for row in tiny.rows()[0]]


def as_peers(row: tiny.Row) -> dict[str, Any]:
    """Return a row as trl takes it."""
    if "text" in row:
        return row
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


@dataclass(frozen=True)
class Line:
    """What a run has logged."""

    when: float
    """On the monotonic clock, in seconds."""
    text: str
    held_bytes: int
    """Memory of the largest of its processes then."""


def lines(process: subprocess.Popen[str]) -> Iterator[Line]:
    """Yield what a process logs, while it does."""
    assert process.stdout is not None
    for text in process.stdout:
        held = [0]
        with suppress(psutil.NoSuchProcess):
            ours = psutil.Process(process.pid)
            held += [one.memory_info().rss for one in (ours, *ours.children(recursive=True))]
        yield Line(time.monotonic(), text, max(held))


def steady(steps: list[tuple[Line, float]], tokens: float, peak: int | None, seconds: dict[str, float]) -> Figures:
    """Return the figures of logged steps, each with its loss, that see `tokens` each in the mean."""
    first = max(1, len(steps) // 4)
    passed = steps[-1][0].when - steps[first][0].when
    held = max(line.held_bytes for line, _ in steps)
    speed = tokens * (len(steps) - 1 - first) / passed
    return Figures(speed, [loss for _, loss in steps], peak or held, seconds)


def ours(lab: Lab, data: str, case: Case, steps: int) -> Figures:
    """Run Lorikeet's trainer."""
    made = case.contract(lab, data, steps)
    started = lab.start(made)
    told = [
        (line, float(match.group(1)))
        for line in lines(started.process)
        if (match := _STEP.search(line.text)) is not None
    ]
    code, record, _ = started.end()
    if code != 0:
        raise RuntimeError(record["message"])
    metrics = record["metrics"]
    seen = metrics["tokensPerSecond"] * metrics["trainSeconds"]
    spent = json.loads(lab.fetch(made, "metrics.json"))["seconds"]
    return steady(told, seen / metrics["steps"], metrics["peakMemoryBytes"] if case.gpu else None, spent)


def peers(model: Path, data: Path, output: Path, case: Case, steps: int) -> Figures:
    """Run trl's script."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = case.peers_command(model, data, output, steps)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        log = list(lines(process))
    text = "".join(line.text for line in log)
    if process.returncode != 0:
        raise RuntimeError(text)
    told = [(line, ast.literal_eval(line.text)) for line in log if line.text.startswith("{") and "'loss'" in line.text]
    seen = float(told[-1][1]["num_tokens"])
    peak = _PEERS_PEAK.search(text)
    return steady(
        [(line, float(figures["loss"])) for line, figures in told], seen / steps, int(peak[1]) if peak else None, {}
    )


def compared(case: Case, both: Sequence[tuple[Figures, Figures]]) -> dict[str, Any]:
    """Return the figures of pairs of runs, Lorikeet's and trl's."""
    speed = statistics.median(one.tokens_per_second for one, _ in both)
    work = {"tflops": round(4 * SEVEN_B_PARAMETERS * speed / 1e12)} if case.gpu else {}
    return {
        "lorikeet": [round(one.tokens_per_second) for one, _ in both],
        "trl": [round(other.tokens_per_second) for _, other in both],
        "ratio": round(statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in both), 3),
        "loss": [round(statistics.median(each.loss for each in side), 4) for side in zip(*both, strict=True)],
        "apart": max(abs(a - b) for one, other in both for a, b in zip(one.losses, other.losses, strict=True)),
        "peak_mib": [max(each.peak_bytes for each in side) >> 20 for side in zip(*both, strict=True)],
        **work,
        "seconds": both[-1][0].seconds,
    }


def write_model(folder: Path, *, gpu: bool) -> Path:
    """Write the base model; that for the GPU is drawn there, in the type in which it is kept."""
    if not gpu:
        return tiny.write_model(folder, **SMALL)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        written = tiny.write_model(folder, **SEVEN_B)
    torch.set_default_dtype(torch.float32)
    torch.cuda.empty_cache()
    return written


def measure(lab: Lab, cases: dict[str, Case], pairs: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of one case after the other."""
    some = next(iter(cases.values()))
    model = write_model(lab.root / "bench", gpu=some.gpu)
    use_folders({"s3://models/bench": model})
    if not some.gpu:
        os.environ["OMP_NUM_THREADS"] = THREADS
    for name, case in cases.items():
        file, data = f"{name}.jsonl", lab.root / name
        lab.put_rows(file, rows(case))
        data.mkdir()
        (data / "train.jsonl").write_bytes(tiny.jsonl([as_peers(row) for row in rows(case)]))
        both = [(ours(lab, file, case, steps), peers(model, data, lab.root / "trl", case, steps)) for _ in range(pairs)]
        yield {name: compared(case, both)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=[*ON_CPU, *ON_GPU])
    given = parser.parse_args()
    cases = {name: case for name, case in (ON_GPU if given.gpu else ON_CPU).items() if name in (given.only or [name])}
    with (
        tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as folder,
        S3Server(Path(folder) / "s3") as server,
        open_lab(server, Path(folder)) as lab,
    ):
        for found in measure(lab, cases, given.pairs, given.steps):
            print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
