"""Measures the operator against a real kube-apiserver and etcd of its own (`make bench-operator`).

    .venv/bin/python -m bench.operator_load [--jobs 1000] [--rate 50]

No controller manager and no kubelet run, so the batch Jobs stay what they are when they are made: what is measured is
the operator and the API server. Prints one JSON object:

- `burst`: that many FineTuneJobs created at once; jobs a second until each has its batch Job and its status.
- `steady`: the same number created at `rate` a second; seconds from each creation to its status.
- `ceiling`: a bare writer that sends the same requests as fast as it can; `share` is burst / ceiling.
- `restart`: seconds until a fresh operator is ready, and has looked at everything, and the writes that it made.

Runs are not checked beforehand here: no pod would ever do it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
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
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from e2e.cluster import components
from e2e.cluster.paths import CHECKOUT

NAMESPACE = "bench"
TOKEN = "bench"  # of a server on loopback that lives for a minute
JOBS = "/apis/lorikeet.dev/v1alpha1/namespaces/bench/finetunejobs"
AT_ONCE = 32
WORKERS = 16
PATIENCE = 600.0


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(name: str, folder: Path, command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with its output in a file; stop it at the end."""
    with (folder / f"{name}.log").open("ab") as log:
        running = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)


@contextmanager
def control_plane(folder: Path) -> Iterator[str]:
    """Run etcd and a kube-apiserver on loopback; yield the server's URL. Its certificate is tls/apiserver.crt."""
    kube = components.build(["kube"], print)["kube"].parent
    client, peer, port = free_port(), free_port(), free_port()
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (folder / "sa.key").write_bytes(key)
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
    etcd = [f"{kube}/etcd", f"--data-dir={folder}/etcd", "--unsafe-no-fsync"]
    etcd += [f"--{kind}-client-urls=http://127.0.0.1:{client}" for kind in ("listen", "advertise")]
    etcd += [f"--listen-peer-urls=http://127.0.0.1:{peer}"]
    server = [f"{kube}/kube-apiserver", f"--etcd-servers=http://127.0.0.1:{client}", "--bind-address=127.0.0.1"]
    server += [f"--secure-port={port}", f"--cert-dir={folder}/tls", f"--token-auth-file={folder}/tokens.csv"]
    server += ["--service-account-issuer=https://bench", "--authorization-mode=RBAC", "--advertise-address=127.0.0.1"]
    server += [f"--service-account-{which}-file={folder}/sa.key" for which in ("key", "signing-key")]
    server += ["--service-cluster-ip-range=10.0.0.0/24", "--disable-admission-plugins=ServiceAccount"]
    with process("etcd", folder, etcd), process("apiserver", folder, server):
        yield f"https://127.0.0.1:{port}"


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


class Api:
    """Requests to the API server."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def send(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Send a request; return the answer, raise if it is none of 2xx."""
        data = None if body is None else json.dumps(body)
        async with self.session.request(method, path, data=data, headers={"Content-Type": kind}) as response:
            if response.status >= 300:
                raise RuntimeError(f"{method} {path}: {response.status} {await response.text()}")
            return await response.json(content_type=None)

    async def make_jobs(self, names: list[str], rate: float | None = None) -> dict[str, float]:
        """Create jobs, all at once or so many a second; return when each was there."""
        gate, made = asyncio.Semaphore(AT_ONCE), dict[str, float]()
        began = time.monotonic()

        async def make(number: int, name: str) -> None:
            if rate is not None:
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            async with gate:
                await self.send("POST", JOBS, job(name))
                made[name] = time.monotonic()

        await asyncio.gather(*(make(number, name) for number, name in enumerate(names)))
        return made

    async def watch_started(self, wanted: int, started: dict[str, float]) -> None:
        """Note when each job's status names its batch Job, until `wanted` do; a watch that ends is begun again."""
        version = (await self.send("GET", f"{JOBS}?limit=1"))["metadata"]["resourceVersion"]
        while len(started) < wanted:
            url = f"{JOBS}?watch=1&resourceVersion={version}"
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as response:
                buffer = b""
                async for chunk in response.content.iter_any():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        body = json.loads(line)["object"]
                        version = body["metadata"]["resourceVersion"]
                        if (body.get("status") or {}).get("jobUid"):
                            started.setdefault(body["metadata"]["name"], time.monotonic())
                    if len(started) >= wanted:
                        return


@asynccontextmanager
async def api_of(url: str, folder: Path) -> AsyncIterator[Api]:
    """Wait until the API server is ready, define our resources, make a namespace and a profile."""
    deadline = time.monotonic() + 60
    while not (folder / "tls" / "apiserver.crt").exists():
        if time.monotonic() > deadline:
            raise RuntimeError((folder / "apiserver.log").read_text()[-2000:])
        await asyncio.sleep(0.1)
    context = ssl.create_default_context(cafile=str(folder / "tls" / "apiserver.crt"))
    connector = aiohttp.TCPConnector(ssl=context, limit=2 * AT_ONCE)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(url, connector=connector, headers=headers) as session:
        api = Api(session)
        while True:
            try:
                async with session.get("/readyz") as response:
                    if response.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError("the API server does not become ready")
            await asyncio.sleep(0.2)
        kubectl = components.build(["kube"], print)["kube"].parent / "kubectl"
        define = [str(kubectl), "--kubeconfig", str(folder / "kubeconfig"), "apply", "--server-side", "-f"]
        write_kubeconfig(folder, url)
        subprocess.run([*define, str(CHECKOUT / "crds")], check=True, stdout=subprocess.DEVNULL)
        await api.send("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        storage = {"uri": "s3://adapters", "endpoint": "http://s3:7070", "secretName": "s3"}
        body = {"apiVersion": "lorikeet.dev/v1alpha1", "kind": "TuningProfile", "metadata": {"name": "default"}}
        await until_defined(api, {**body, "spec": {"storage": storage}})
        yield api


async def until_defined(api: Api, body: dict[str, Any]) -> None:
    """Make a resource as soon as its definition is served."""
    for _ in range(100):
        try:
            await api.send("POST", "/apis/lorikeet.dev/v1alpha1/tuningprofiles", body)
        except RuntimeError:
            await asyncio.sleep(0.1)
        else:
            return
    raise RuntimeError("the definitions are not served")


def write_kubeconfig(folder: Path, url: str) -> None:
    """Write a kubeconfig for kubectl and the operator."""
    cluster = {"server": url, "certificate-authority": str(folder / "tls" / "apiserver.crt")}
    text = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bench", "cluster": cluster}],
        "users": [{"name": "bench", "user": {"token": TOKEN}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "current-context": "bench",
    }
    (folder / "kubeconfig").write_text(json.dumps(text))


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


def writes(metrics: dict[str, float]) -> float:
    """Return the operator's writes, less those of its Lease."""
    rows = (row for row in metrics.items() if row[0].startswith("lorikeet_api_requests_total"))
    reads = ('verb="get"', 'verb="list"')
    return sum(value for name, value in rows if "leases" not in name and not any(verb in name for verb in reads))


def is_idle(metrics: dict[str, float]) -> bool:
    """Return whether it leads and has nothing to do."""
    quiet = ('lorikeet_queue_depth{controller="finetunejob"}', 'lorikeet_queue_in_flight{controller="finetunejob"}')
    return metrics.get("lorikeet_leader") == 1.0 and not any(metrics.get(name, 1.0) for name in quiet)


def usage(pid: int) -> dict[str, float]:
    """Return the memory (MiB) and the CPU seconds of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(times[11]) + int(times[12])
    return {
        "peak_mib": round(int(status["VmHWM"].split()[0]) / 1024),
        "cpu_seconds": round(ticks / os.sysconf("SC_CLK_TCK"), 1),
    }


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
    await api.make_jobs(names)
    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return len(names) / (time.monotonic() - began)


def event(name: str) -> dict[str, Any]:
    """Return an Event as the operator writes it."""
    about = {"apiVersion": "lorikeet.dev/v1alpha1", "kind": "FineTuneJob", "namespace": NAMESPACE, "name": name}
    return {"metadata": {"name": f"{name}.e"}, "involvedObject": about, "reason": "Resolved", "type": "Normal"}


async def measure(jobs: int, rate: float, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    with control_plane(folder) as url:
        async with api_of(url, folder) as api:
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
                ready = await again.until_ready()
                seconds = await again.until(is_idle)
                async with aiohttp.ClientSession() as session:
                    made = writes(await again.metrics(session))
                found["restart"] = {"ready_seconds": round(ready, 1), "idle_seconds": round(seconds, 1)}
                found["restart"] |= {"writes": made, **usage(running.pid)}
            return found


async def burst(api: Api, operator: Operator, jobs: int) -> dict[str, Any]:
    """Create all jobs at once."""
    names = [f"burst-{number}" for number in range(jobs)]
    started: dict[str, float] = {}
    watching = asyncio.create_task(api.watch_started(jobs, started))
    await asyncio.sleep(0.5)
    began = time.monotonic()
    await api.make_jobs(names)
    created = time.monotonic()
    await watching
    seconds = max(started.values()) - began
    await operator.until(is_idle)
    async with aiohttp.ClientSession() as session:
        made = writes(await operator.metrics(session))
    return {
        "created_in": round(created - began, 1),
        "seconds": round(seconds, 1),
        "jobs_per_second": round(jobs / seconds, 1),
        "writes_per_job": round(made / jobs, 2),
    }


async def steady(api: Api, jobs: int, rate: float) -> dict[str, Any]:
    """Create jobs at a rate."""
    names = [f"steady-{number}" for number in range(jobs)]
    started: dict[str, float] = {}
    watching = asyncio.create_task(api.watch_started(jobs, started))
    await asyncio.sleep(0.5)
    made = await api.make_jobs(names, rate)
    await watching
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
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lorikeet-bench-"))
    try:
        print(json.dumps(asyncio.run(measure(given.jobs, given.rate, folder)), indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
