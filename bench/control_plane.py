"""A kube-apiserver and an etcd of its own for a measurement, and what is measured alike of every operator."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from e2e.cluster import components

NAMESPACE = "bench"
TOKEN = "bench"  # of a server on loopback that lives for a minute
AT_ONCE = 32
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
    folder.mkdir(exist_ok=True)
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

    async def when_served(self, method: str, path: str, body: Any = None) -> None:
        """Send a request as soon as the definition of its resource is served."""
        for _ in range(100):
            try:
                await self.send(method, path, body)
            except RuntimeError as error:
                failed = error
                await asyncio.sleep(0.1)
            else:
                return
        raise failed

    async def make(self, path: str, bodies: list[dict[str, Any]], rate: float | None = None) -> dict[str, float]:
        """Create resources, all at once or so many a second; return when each was there, by name."""
        gate, made = asyncio.Semaphore(AT_ONCE), dict[str, float]()
        began = time.monotonic()

        async def make(number: int, body: dict[str, Any]) -> None:
            if rate is not None:
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            async with gate:
                await self.send("POST", path, body)
                made[body["metadata"]["name"]] = time.monotonic()

        await asyncio.gather(*(make(number, body) for number, body in enumerate(bodies)))
        return made

    async def watch(self, path: str, holds: Callable[[dict[str, Any]], bool], names: set[str]) -> dict[str, float]:
        """Return when it first held of each resource named; a watch that ends is begun again."""
        seen = dict[str, float]()
        version = (await self.send("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        while True:
            url = f"{path}?watch=1&resourceVersion={version}"
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as response:
                if response.status == 429:  # a resource that has just been defined
                    await asyncio.sleep(0.1)
                    continue
                response.raise_for_status()
                buffer = b""
                async for chunk in response.content.iter_any():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        body = json.loads(line)["object"]
                        version = body["metadata"]["resourceVersion"]
                        if body["metadata"]["name"] in names and holds(body):
                            seen.setdefault(body["metadata"]["name"], time.monotonic())
                    if len(seen) == len(names):
                        return seen

    async def writes(self, *resources: str) -> int:
        """Return how many writes of these resources, or of parts of them, the API server has had from anybody."""
        async with self.session.get("/metrics") as response:
            text = await response.text()
        found = 0.0
        for labels, count in re.findall(r"^apiserver_request_total\{(.*)\} (.+)$", text, re.M):
            told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if told["resource"] in resources and told["verb"] in ("APPLY", "DELETE", "PATCH", "POST", "PUT"):
                found += float(count)
        return int(found)

    async def burst(
        self, path: str, bodies: list[dict[str, Any]], watched: str, started: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Create all at once; measure until each has, among those watched, one of its name that counts as started."""
        names = {body["metadata"]["name"] for body in bodies}
        watching = asyncio.create_task(self.watch(watched, started, names))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await self.make(path, bodies)
        created = time.monotonic()
        seconds = max((await watching).values()) - began
        return {
            "created_in": round(created - began, 1),
            "seconds": round(seconds, 1),
            "jobs_per_second": round(len(names) / seconds, 1),
        }


@asynccontextmanager
async def api_of(url: str, folder: Path, definitions: list[Path]) -> AsyncIterator[Api]:
    """Wait until the API server is ready, define resources, make a namespace; `kubeconfig` in the folder names it."""
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
        write_kubeconfig(folder, url)
        kubectl = components.build(["kube"], print)["kube"].parent / "kubectl"
        define = [str(kubectl), "--kubeconfig", str(folder / "kubeconfig"), "apply", "--server-side"]
        files = [argument for file in definitions for argument in ("-f", str(file))]
        subprocess.run([*define, *files], check=True, stdout=subprocess.DEVNULL)
        await api.send("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        yield api


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


def usage(pid: int) -> dict[str, float]:
    """Return the memory (MiB) and the CPU seconds of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(times[11]) + int(times[12])
    return {
        "peak_mib": round(int(status["VmHWM"].split()[0]) / 1024),
        "cpu_seconds": round(ticks / os.sysconf("SC_CLK_TCK"), 1),
    }
