"""Measures training beside trl's own script (`make bench-training`).

    .venv/bin/python -m bench.training [--pairs 5] [--steps 40]

The same model, data and settings on the CPU, two threads, in pairs of runs one after the other: `lorikeet-train` with a
real S3 server, and `trl/scripts/sft.py` on the same files; unpacked and packed. Both are timed by the lines that they
log of each step, from a quarter of the steps on, so that nothing of their start counts. Prints one JSON object, for
each of `unpacked` and `packed`:

- `lorikeet`, `trl`: tokens a second of each pair, without padding.
- `ratio`: the median of the pairs' ratios, above 1 where Lorikeet is faster.
- `loss`: the training loss of the last quarter of the steps, of both.
- `peak_mib`: the largest peak memory of the process that trains, of both.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from lorikeet_api.contract import RunContract
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

SHAPE: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
THREADS = "2"
BATCH, MICRO, LENGTH = 8, 4, 256
ADAPTER: dict[str, Any] = {"rank": 16, "alpha": 32, "dropout": 0.0, "targetModules": ["q_proj", "k_proj", "v_proj"]}
_STEP = re.compile(r"event=step step=\d+ .*\bloss=(\S+)")


@dataclass(frozen=True)
class Figures:
    """What one run came to."""

    tokens_per_second: float
    loss: float
    peak_bytes: int


def rows() -> list[tiny.Row]:
    """Return examples whose lengths differ much, as those of real data do."""
    return [
        {**row, "completion": " ".join([row["completion"]] * (1 + (7 * number) % 60))}
        for number, row in enumerate(tiny.rows()[0] * 8)
    ]


def contract(lab: Lab, steps: int, *, packing: bool) -> RunContract:
    """Return the run of Lorikeet."""
    training = {
        "epochs": 999.0,
        "maxSteps": steps,
        "loggingSteps": 1,
        "learningRate": 1e-3,
        "batchSize": BATCH,
        "microBatchSize": MICRO,
        "scheduler": "constant",
        "precision": "fp32",
    }
    dataset = {"maxLength": LENGTH, "packing": packing}
    sources = ("s3://models/bench", "s3://datasets/bench.jsonl")
    return lab.contract({"lora": ADAPTER}, *sources, dataset=dataset, training=training)


def peers_command(model: Path, data: Path, output: Path, steps: int, *, packing: bool) -> list[str]:
    """Return trl's command for the same."""
    settings = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": output,
        "max_steps": steps,
        "logging_steps": 1,
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": BATCH // MICRO,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "max_length": LENGTH,
        "packing": packing,
        "seed": 1,
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "include_num_input_tokens_seen": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "use_peft": True,
        "lora_r": ADAPTER["rank"],
        "lora_alpha": ADAPTER["alpha"],
        "lora_dropout": ADAPTER["dropout"],
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-u", "-m", "trl.scripts.sft", *words, "--lora_target_modules", *ADAPTER["targetModules"]]


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


def steady(steps: list[tuple[Line, float]], tokens: float) -> Figures:
    """Return the figures of logged steps, each with its loss, that see `tokens` each in the mean."""
    first = len(steps) // 4
    seconds = steps[-1][0].when - steps[first][0].when
    losses = [loss for _, loss in steps[-first:]]
    peak = max(line.held_bytes for line, _ in steps)
    return Figures(tokens * (len(steps) - 1 - first) / seconds, statistics.fmean(losses), peak)


def ours(lab: Lab, made: RunContract) -> Figures:
    """Run Lorikeet's trainer."""
    started = lab.start(made)
    steps = [
        (line, float(match.group(1)))
        for line in lines(started.process)
        if (match := _STEP.search(line.text)) is not None
    ]
    code, record, _ = started.end()
    if code != 0:
        raise RuntimeError(record["message"])
    metrics = record["metrics"]
    seen = metrics["tokensPerSecond"] * metrics["trainSeconds"]
    return steady(steps, seen / metrics["steps"])


def peers(model: Path, data: Path, output: Path, steps: int, *, packing: bool) -> Figures:
    """Run trl's script."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = peers_command(model, data, output, steps, packing=packing)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        log = list(lines(process))
    if process.returncode != 0:
        raise RuntimeError("".join(line.text for line in log))
    told = [(line, ast.literal_eval(line.text)) for line in log if line.text.startswith("{") and "'loss'" in line.text]
    seen = float(told[-1][1]["num_tokens"])
    return steady([(line, float(figures["loss"])) for line, figures in told], seen / steps)


def measure(lab: Lab, pairs: int, steps: int) -> dict[str, Any]:
    """Return all figures."""
    model = tiny.write_model(lab.root / "bench", **SHAPE)
    lab.put_folder(model, "bench")
    lab.put_rows("bench.jsonl", rows())
    data = lab.root / "data"
    data.mkdir()
    (data / "train.jsonl").write_bytes(
        tiny.jsonl(
            [
                {
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "completion": [{"role": "assistant", "content": row["completion"]}],
                }
                for row in rows()
            ]
        )
    )
    os.environ["OMP_NUM_THREADS"] = THREADS
    found: dict[str, Any] = {}
    for name, packing in (("unpacked", False), ("packed", True)):
        both = [
            (
                ours(lab, contract(lab, steps, packing=packing)),
                peers(model, data, lab.root / "trl", steps, packing=packing),
            )
            for _ in range(pairs)
        ]
        found[name] = {
            "lorikeet": [round(one.tokens_per_second) for one, _ in both],
            "trl": [round(other.tokens_per_second) for _, other in both],
            "ratio": round(statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in both), 3),
            "loss": [round(statistics.median(each.loss for each in side), 4) for side in zip(*both, strict=True)],
            "peak_mib": [max(each.peak_bytes for each in side) >> 20 for side in zip(*both, strict=True)],
        }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as folder,
        S3Server(Path(folder) / "s3") as server,
        open_lab(server, Path(folder)) as lab,
    ):
        print(json.dumps(measure(lab, given.pairs, given.steps), indent=1))


if __name__ == "__main__":
    main()
