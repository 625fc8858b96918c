"""Measures the operator against a real kube-apiserver and etcd of its own (`make bench-operator`).

    .venv/bin/python -m bench.operator_load [--jobs 1000] [--rate 50] [--peer]

No controller manager and no kubelet run, so the batch Jobs stay what they are when they are made: what is measured is
the operator and the API server. Prints one JSON object:

- `burst`: that many FineTuneJobs created at once; jobs a second until each has its batch Job and its status.
- `steady`: the same number created at `rate` a second; seconds from each creation to its status.
- `ceiling`: a bare writer that sends the same requests as fast as it can; `share` is burst / ceiling.
- `restart`: seconds until a fresh operator is ready, and has looked at everything, and the writes meanwhile.
- `peer`, with `--peer`: the burst of Kubeflow Trainer (`bench/peer.py`), built from its Go modules the first time.

Writes are what the API server counted, but for Leases and TokenReviews.

Runs are not checked beforehand here: no pod would ever do it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench import peer
from bench.control_plane import NAMESPACE, PATIENCE, Api, api_of, control_plane, free_port, process, usage
from e2e.cluster.paths import CHECKOUT

JOBS = f"/apis/lorikeet.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"
WRITTEN = ("finetunejobs", "tuningprofiles", "jobs", "pods", "events")
WORKERS = 16


def job(name: str) -> dict[str, Any]:
    """Return a short FineTuneJob."""
    return {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "s3://models/base"},
            "dataset": {"train": [{"uri": "s3://datasets/train.jsonl"}]},
            "method": {"qlora": {}},
        },
    }


def has_job(body: dict[str, Any]) -> bool:
    """Return whether the status of a FineTuneJob names its batch Job."""
    return bool((body.get("status") or {}).get("jobUid"))


@asynccontextmanager
async def api_with_profile(url: str, folder: Path) -> AsyncIterator[Api]:
    """Define our resources and make a profile."""
    async with api_of(url, folder, [CHECKOUT / "crds"]) as api:
        storage = {"uri": "s3://adapters", "endpoint": "http://s3:7070", "secretName": "s3"}
        body = {"apiVersion": "lorikeet.dev/v1alpha1", "kind": "TuningProfile", "metadata": {"name": "default"}}
        body["spec"] = {"storage": storage}
        await api.when_served("POST", "/apis/lorikeet.dev/v1alpha1/tuningprofiles", body)
        yield api


class Operator:
    """The operator as its chart starts it, on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.began = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run it."""
        command = [str(Path(sys.executable).parent / "lorikeet-operator"), "--http-host", "127.0.0.1"]
        command += ["--http-port", str(self.port), "--trainer-image", "trainer:bench"]
        command += ["--lease-namespace", NAMESPACE]
        self.began = time.monotonic()
        with process("operator", self.folder, command, KUBECONFIG=str(self.folder / "kubeconfig")) as running:
            self._process = running
            yield running

    async def metrics(self, session: aiohttp.ClientSession) -> dict[str, float]:
        """Return its metrics by name and labels."""
        async with session.get(f"http://127.0.0.1:{self.port}/metrics") as response:
            text = await response.text()
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in rows}

    async def until_ready(self) -> float:
        """Wait until /readyz says so; return the seconds since it was started."""

        async def is_ready(session: aiohttp.ClientSession) -> bool:
            async with session.get(f"http://127.0.0.1:{self.port}/readyz") as response:
                return response.status == 200

        return await self._poll(is_ready)

    async def until(self, holds: Callable[[dict[str, float]], bool]) -> float:
        """Wait until its metrics are so; return the seconds since it was started."""

        async def are_so(session: aiohttp.ClientSession) -> bool:
            return holds(await self.metrics(session))

        return await self._poll(are_so)

    async def _poll(self, holds: Callable[[aiohttp.ClientSession], Awaitable[bool]]) -> float:
        async with aiohttp.ClientSession() as session:
            while time.monotonic() - self.began < PATIENCE and self._process.poll() is None:
                try:
                    if await holds(session):
                        return time.monotonic() - self.began
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        raise RuntimeError((self.folder / "operator.log").read_text()[-2000:])


def is_idle(metrics: dict[str, float]) -> bool:
    """Return whether it leads and has nothing to do."""
    quiet = ('lorikeet_queue_depth{controller="finetunejob"}', 'lorikeet_queue_in_flight{controller="finetunejob"}')
    return metrics.get("lorikeet_leader") == 1.0 and not any(metrics.get(name, 1.0) for name in quiet)


async def ceiling(api: Api, names: list[str]) -> float:
    """Return jobs a second of a writer that sends what the operator sends, and does nothing else."""
    sample = await api.send("GET", f"{JOBS}/burst-0")
    child = await api.send("GET", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/burst-0-train")
    child["spec"].pop("selector", None)
    child["spec"]["template"]["metadata"].pop("labels", None)
    child.pop("status", None)
    status = {**sample["status"], "conditions": sample["status"]["conditions"][:3]}
    queue = list(names)
    apply = "?fieldManager=ceiling&force=true"

    async def work() -> None:
        while queue:
            name = queue.pop()
            for path, body in (
                (f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", {**child, "metadata": {"name": f"{name}-j"}}),
                (f"/api/v1/namespaces/{NAMESPACE}/events", event(name)),
            ):
                await api.send("POST", path, body)
            for each in (status, sample["status"]):
                body = {"apiVersion": sample["apiVersion"], "kind": sample["kind"], "metadata": {"name": name}}
                applied = "application/apply-patch+yaml"
                await api.send("PATCH", f"{JOBS}/{name}/status{apply}", {**body, "status": each}, applied)

    began = time.monotonic()
    await api.make(JOBS, [job(name) for name in names])
    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return len(names) / (time.monotonic() - began)


def event(name: str) -> dict[str, Any]:
    """Return an Event as the operator writes it."""
    about = {"apiVersion": "lorikeet.dev/v1alpha1", "kind": "FineTuneJob", "namespace": NAMESPACE, "name": name}
    return {"metadata": {"name": f"{name}.e"}, "involvedObject": about, "reason": "Resolved", "type": "Normal"}


async def measure(jobs: int, rate: float, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    with control_plane(folder) as url:
        async with api_with_profile(url, folder) as api:
            found: dict[str, Any] = {"jobs": jobs}
            operator = Operator(folder)
            with operator.running() as running:
                await operator.until(is_idle)
                found["burst"] = await burst(api, operator, jobs)
                found["burst"] |= usage(running.pid)
                found["steady"] = await steady(api, min(jobs, 1000), rate)
            found["ceiling"] = round(await ceiling(api, [f"bare-{number}" for number in range(min(jobs, 1000))]), 1)
            found["share"] = round(found["burst"]["jobs_per_second"] / found["ceiling"], 2)
            again = Operator(folder)
            with again.running() as running:
                # The jobs of the bare writer have no batch Job of ours: they are new to it, once.
                await again.until(is_idle)
            again = Operator(folder)
            with again.running() as running:
                before = await api.writes(*WRITTEN)
                ready = await again.until_ready()
                seconds = await again.until(is_idle)
                found["restart"] = {"ready_seconds": round(ready, 1), "idle_seconds": round(seconds, 1)}
                found["restart"] |= {"writes": await api.writes(*WRITTEN) - before, **usage(running.pid)}
            return found


async def burst(api: Api, operator: Operator, jobs: int) -> dict[str, Any]:
    """Create all jobs at once."""
    before = await api.writes(*WRITTEN)
    found = await api.burst(JOBS, [job(f"burst-{number}") for number in range(jobs)], JOBS, has_job)
    await operator.until(is_idle)
    made = await api.writes(*WRITTEN) - before
    return {**found, "writes_per_job": round(made / jobs - 1, 2)}  # less its creation


async def steady(api: Api, jobs: int, rate: float) -> dict[str, Any]:
    """Create jobs at a rate."""
    names = [f"steady-{number}" for number in range(jobs)]
    watching = asyncio.create_task(api.watch(JOBS, has_job, set(names)))
    await asyncio.sleep(0.5)
    made = await api.make(JOBS, [job(name) for name in names], rate)
    started = await watching
    delays = sorted(started[name] - made[name] for name in names)
    return {
        "rate": rate,
        "median_seconds": round(statistics.median(delays), 3),
        "p99_seconds": round(delays[int(len(delays) * 0.99) - 1], 3),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--peer", action="store_true", help="measure Kubeflow Trainer beside it")
    given = parser.parse_args()
    if given.peer:
        peer.build()
    folder = Path(tempfile.mkdtemp(prefix="lorikeet-bench-"))
    try:
        found = asyncio.run(measure(given.jobs, given.rate, folder / "lorikeet"))
        if given.peer:
            found["peer"] = asyncio.run(peer.measure(given.jobs, found["burst"]["jobs_per_second"], folder))
        print(json.dumps(found, indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
