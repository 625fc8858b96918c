"""Runs for tests: a base model and data in a real S3 server, contracts about them, the stages in this process."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim.optimizer import GlobalOptimManager

from lorikeet_api.contract import Manifest, RunContract, run_id
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Dataset, Method, ModelSource, Training
from lorikeet_storage import Checkpoints
from lorikeet_trainer import samples
from lorikeet_trainer.lifecycle import STAGES
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.state import Layout, Prepared, StageResult
from tests import runs
from tests.s3 import S3Server, credentials
from tests.trainer import tiny

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER: dict[str, Any] = {"rank": 8, "alpha": 32, "dropout": 0.0, "targetModules": ALL_LINEAR}
METHODS: dict[str, dict[str, Any]] = {"lora": {"lora": ADAPTER}, "qlora": {"qlora": ADAPTER}, "full": {"full": {}}}
RATES = {"lora": 1e-2, "qlora": 1e-2, "bottleneck": 1e-2, "full": 1e-3}
GPUS = int(os.environ.get("LORIKEET_TEST_GPUS", "0"))
"""GPUs that each run asks for: 1 makes the same tests on a machine that has one."""
_numbers = count(1)


@dataclass
class Lab:
    """A store with buckets, and a folder for everything else."""

    server: S3Server
    root: Path

    def put_folder(self, folder: Path, name: str) -> str:
        """Store a model's files; return its URI."""
        for path in folder.iterdir():
            self.server.put("models", f"{name}/{path.name}", path.read_bytes())
        return f"s3://models/{name}"

    def put_rows(self, name: str, rows: list[tiny.Row] | bytes) -> str:
        """Store rows as JSON lines; return their URI."""
        return self.server.put("datasets", name, rows if isinstance(rows, bytes) else tiny.jsonl(rows))

    def contract(
        self, method: str | dict[str, Any], model: str, train: str | list[dict[str, Any]], **changes: Any
    ) -> RunContract:
        """Return a contract; `dataset` and `training` add to the ones below, other fields replace."""
        sources = [{"uri": train}] if isinstance(train, str) else train
        dataset = Dataset.model_validate({"train": sources, "maxLength": 64, **changes.pop("dataset", {})})
        chosen = METHODS[method] if isinstance(method, str) else method
        rate = RATES[next(iter(chosen))]
        usual = {"learningRate": rate, "batchSize": 8, "seed": 1, "loggingSteps": 10, "warmupRatio": 0.0}
        training = Training.model_validate({**usual, **changes.pop("training", {})})
        objective = Objective.model_validate(changes.pop("objective", {"sft": {}}))
        parts = (ModelSource(uri=model), dataset, Method.model_validate(chosen), objective)
        return runs.contract(
            f"s3://out/run-{next(_numbers)}",
            self.server.access,
            model=parts[0],
            dataset=dataset,
            method=parts[2],
            objective=objective,
            training=training,
            gpus=changes.pop("gpus", GPUS),
            **{"run_id": run_id(*parts, training, changes.get("start")), **changes},
        )

    def layout(self, contract: RunContract) -> Layout:
        """Return the work folder of a contract: one for each output."""
        return Layout(self.root / contract.output_uri.rpartition("/")[2])

    def write(self, contract: RunContract) -> Path:
        """Write the contract as the pod has it."""
        path = self.root / f"contract-{next(_numbers)}.json"
        path.write_text(json.dumps(contract.to_wire()))
        return path

    def run(self, contract: RunContract) -> StageResult:
        """Run all stages but `probe` in this process; return the run's end."""
        # bitsandbytes keeps settings by parameters' addresses, which those of the next run may have again.
        GlobalOptimManager.get_instance().initialize()  # type: ignore[no-untyped-call]
        path, layout = self.write(contract), self.layout(contract)
        result = StageResult(exit_code=0)
        for stage in STAGES:
            if stage == "probe":  # it is to end with its process
                continue
            result = run_stage(stage, path, layout)
            if result.record is not None:
                break
        return result

    def start(self, contract: RunContract, **popen: Any) -> "Started":
        """Start the real `lorikeet-train` on a contract, in an empty folder as a pod has it."""
        work = self.layout(contract)
        folder = work.model.parent
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        command = [str(Path(sys.executable).parent / "lorikeet-train"), "--contract", str(self.write(contract))]
        command += ["--work", str(folder), "--termination-log", str(folder / "termination")]
        environment = {**os.environ, **self.server.env}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **popen)
        return Started(process, folder / "termination", work)

    def checkpoints(self, contract: RunContract) -> Checkpoints:
        """Return the checkpoints of what was last prepared for a contract."""
        return Checkpoints(contract, Prepared.read(self.layout(contract).prepared).basis(contract.date))

    def manifest(self, contract: RunContract) -> Manifest:
        """Return what was published."""
        return Manifest.model_validate_json(self.fetch(contract, "manifest.json"))

    def fetch(self, contract: RunContract, name: str) -> bytes:
        """Return a published file."""
        key = f"{contract.output_uri.removeprefix('s3://out/')}/{contract.run_id}/{name}"
        return self.server.client().get_object(Bucket="out", Key=key)["Body"].read()

    def published(self, contract: RunContract) -> list[str]:
        """Return the names below the run's folder."""
        prefix = f"{contract.output_uri.removeprefix('s3://out/')}/{contract.run_id}/"
        return [key.removeprefix(prefix) for key in self.server.keys("out") if key.startswith(prefix)]


@contextmanager
def open_lab(server: S3Server, root: Path) -> Iterator[Lab]:
    """Make a lab with the questions as data, and one thread for each process: on it sums have one order, and on models
    this small several threads mostly wait for each other."""
    patch = pytest.MonkeyPatch()
    torch.set_num_threads(1)
    patch.setenv("OMP_NUM_THREADS", "1")
    # A tiny model seldom ends an answer by itself, and nobody reads these.
    patch.setattr(samples, "ANSWER_TOKENS", 12)
    with credentials(patch, server):
        made = Lab(server, root)
        for bucket in ("models", "datasets", "out"):
            server.client().create_bucket(Bucket=bucket)
        pairs, held_out = tiny.rows()
        made.put_rows("train.jsonl", pairs)
        made.put_rows("heldout.jsonl", held_out)
        # Libraries' objects stay: a run collects garbage, which then takes no half a second for them each time.
        gc.collect()
        gc.freeze()
        yield made
    patch.undo()


@dataclass
class Started:
    """A running `lorikeet-train`."""

    process: "subprocess.Popen[str]"
    termination: Path
    layout: Layout

    def await_line(self, words: str) -> str:
        """Read the log up to a line with `words`; return it."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if words in line:
                return line
        raise AssertionError(f"no line with {words!r} in:\n{''.join(seen)}")

    def kill(self) -> None:
        """Kill the whole run at once, as the end of a node does."""
        doomed = [self.process.pid, *self.children()]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=30)

    def rank(self) -> int:
        """Return the process of the one rank."""
        (rank,) = [
            pid for pid in self.children() if b"lorikeet_trainer.stage" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return rank

    def children(self) -> list[int]:
        """Return the processes of the run's stage: its ranks, and the upload beside them."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Return exit code, record and the rest of the log; the record's bytes fit the kubelet's limit."""
        log, _ = self.process.communicate(timeout=200)
        message = self.termination.read_bytes()
        assert len(message) <= 4000
        return self.process.returncode, json.loads(message), log
