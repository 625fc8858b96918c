"""Measures what checkpoints cost, and what a preemption does (`make bench-checkpoints`).

    .venv/bin/python -m bench.checkpoints [--pairs 3] [--rate 1e6]

A full fine-tune of a small model on the CPU, one thread, with a real S3 server behind a proxy that takes `rate` bytes a
second. Prints one JSON object:

- `step_ms`: median time of a step, in pairs of runs without and with a checkpoint every 20 steps; `more_percent`: the
  median of the pairs' differences.
- `bytes`, `uploads`: size of a checkpoint, and how many reached the store per run.
- `sigterm`: seconds from SIGTERM to the end of the process, and the steps whose work was lost.
- `sigkill`: steps lost where there is no time to save; at most those since the newest checkpoint in the store.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lorikeet_api.contract import RunContract
from tests.s3 import S3Server
from tests.slow_store import SlowStore, slow_store
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

STEPS = 1000
EVERY = 20
_STEP = re.compile(r"time=(\S+) .*event=step step=(\d+) ")


def contract(lab: Lab, store: SlowStore, every: int, steps: int = STEPS) -> RunContract:
    """Return a run of so many steps with a checkpoint every `every` ones."""
    training = {"epochs": 999.0, "maxSteps": steps, "loggingSteps": 1, "checkpoints": {"everySteps": every}}
    made = lab.contract("full", "s3://models/bench", "s3://datasets/train.jsonl", training=training)
    return made.model_copy(update={"storage": store.access})


def run(lab: Lab, made: RunContract) -> dict[str, Any]:
    """Run to the end; return the median step and what was uploaded."""
    code, _record, log = lab.start(made).end()
    if code != 0:
        raise RuntimeError(log)
    times = [_seconds(match.group(1)) for match in _STEP.finditer(log)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    sizes = [int(size) for size in re.findall(r"event=checkpoint_stored step=\d+ bytes=(\d+)", log)]
    return {"step_ms": round(1000 * statistics.median(gaps), 2), "uploads": len(sizes), "bytes": max(sizes, default=0)}


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.rstrip("Z").partition("T")[2].split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def interrupted(lab: Lab, store: SlowStore, how: signal.Signals) -> dict[str, Any]:
    """Interrupt a run after its first stored checkpoint; return what it cost."""
    made = contract(lab, store, EVERY, 100_000)
    started = lab.start(made)
    started.await_line("event=checkpoint_stored")
    for _ in range(15):
        line = started.await_line("event=step")
    reached = int(_STEP.search(line).group(2))  # type: ignore[union-attr]
    began = time.monotonic()
    if how == signal.SIGKILL:
        started.kill()
    else:
        started.process.send_signal(how)
        _, _, log = started.end()
        reached = max([reached, *(int(match.group(2)) for match in _STEP.finditer(log))])
    seconds = time.monotonic() - began
    stored = next(iter(lab.checkpoints(made).newest())).checkpoint.step
    return {"seconds": round(seconds, 1), "steps_lost": max(0, reached - stored)}


def measure(lab: Lab, pairs: int, rate: float) -> dict[str, Any]:
    """Return all figures."""
    lab.put_folder(tiny.write_model(lab.root / "bench", hidden_size=192, num_hidden_layers=4), "bench")
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    with slow_store(lab.server, None) as store:
        for _ in range(pairs):
            store.rate = None
            without = run(lab, contract(lab, store, 10**6))
            # The manifest and the model at the end go at full speed again: what is measured are the steps.
            store.rate = rate
            found.append((without, run(lab, contract(lab, store, EVERY))))
        more = [100 * (slow["step_ms"] / plain["step_ms"] - 1) for plain, slow in found]
        ends = {how.name.lower(): interrupted(lab, store, how) for how in (signal.SIGTERM, signal.SIGKILL)}
    return {
        "step_ms": {
            "without": [plain["step_ms"] for plain, _ in found],
            "with": [slow["step_ms"] for _, slow in found],
        },
        "more_percent": round(statistics.median(more), 1),
        "bytes": max(slow["bytes"] for _, slow in found),
        "uploads": [slow["uploads"] for _, slow in found],
        **ends,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e6)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as folder,
        S3Server(Path(folder) / "s3") as server,
        open_lab(server, Path(folder)) as lab,
    ):
        print(json.dumps(measure(lab, given.pairs, given.rate), indent=1))


if __name__ == "__main__":
    main()
