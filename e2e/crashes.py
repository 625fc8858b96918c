"""Kills the operator for real at every write of a job's life, and compares how the job ends (`make crashes`).

A proxy stands between an operator, a process of this machine, and the development cluster's API server. One life of a
small job without a fault, from its creation to its deletion with all that it has written, shows which writes there are.
Then a life is lived for each of them twice: the operator gets SIGKILL right before the write reaches the API server,
and right after. Another operator goes on. All else is real: the agent's pods, the trainer's, S3.
`tests/unit/finetune/test_crashes.py` does the same in seconds, for more lives, against an API server of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import secrets
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from e2e.deploy import NAMESPACE, RELEASE, install
from e2e.small import request, upload_model, upload_rows
from e2e.target import Target, development
from e2e.workspace import FINAL, Workspace
from tests.trainer import tiny

LIFE_SECONDS = 240
JOB = "mortal"


@dataclass
class Fate:
    """Which write kills the operator, and whether the API server still gets it."""

    number: int = -1
    arrives: bool = False
    writes: list[str] = field(default_factory=list)
    struck: bool = False


class Proxy:
    """Passes on what the operator asks of the API server, until fate strikes."""

    def __init__(self, upstream: str, context: ssl.SSLContext) -> None:
        self._upstream = upstream
        self._context = context
        self.fate = Fate()
        self.operator: subprocess.Popen[bytes] | None = None

    def app(self) -> web.Application:
        """Return what is to be served."""
        app = web.Application(client_max_size=1 << 24)
        app.cleanup_ctx.append(self._session)
        app.router.add_route("*", "/{tail:.*}", self._pass)
        return app

    async def _session(self, app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
        async with aiohttp.ClientSession(self._upstream, connector=connector, timeout=timeout) as self._http:
            yield

    async def _pass(self, asked: web.Request) -> web.StreamResponse:
        fate, number = self.fate, len(self.fate.writes)
        if asked.method != "GET":
            fate.writes.append(f"{asked.method} {asked.path}")
        doomed = asked.method != "GET" and number == fate.number
        if doomed and not fate.arrives:
            return self._strike()
        body = await asked.read() or None  # an empty one would get a Content-Type
        names = ("Content-Type", "Accept", "User-Agent")
        headers = {name: asked.headers[name] for name in names if name in asked.headers}
        async with self._http.request(asked.method, asked.rel_url, headers=headers, data=body) as answer:
            if doomed and fate.arrives:
                await answer.read()
                return self._strike()
            told = web.StreamResponse(status=answer.status)
            told.content_type = answer.content_type
            with suppress(ConnectionResetError):  # who asked is dead
                await told.prepare(asked)
                async for chunk in answer.content.iter_any():
                    await told.write(chunk)
            return told

    def _strike(self) -> web.Response:
        assert self.operator is not None
        self.operator.kill()
        self.operator.wait()
        self.fate.struck = True
        return web.Response(status=502)  # nobody reads it


class Lives:
    """Lets jobs live, each in a namespace of its own."""

    def __init__(self, target: Target, sources: tuple[str, str], proxy: Proxy, kubeconfig: Path, log: Path) -> None:
        self._target = target
        self._sources = sources
        self._proxy = proxy
        self._kubeconfig = kubeconfig
        self._log = log

    async def live(self, fate: Fate) -> dict[str, Any]:
        """Return how the job ends, in what should be equal for all lives."""
        workspace = Workspace(self._target, f"e2e-crash-{secrets.token_hex(3)}")
        await asyncio.to_thread(workspace.create)
        self._proxy.fate = fate
        self._start(workspace.namespace)
        try:
            body = request(
                workspace, JOB, *self._sources, training={"maxSteps": 3}, deletionPolicy="Delete", maxRetries=0
            )
            await asyncio.to_thread(workspace.apply, body)
            status = await self._until_it_ends(workspace)
            end = await asyncio.to_thread(ending, workspace, status)
            await asyncio.to_thread(workspace.kubectl, "delete", "finetunejob", JOB, "--wait=false")
            await self._until_it_is_gone(workspace)
            return {**end, "left": await asyncio.to_thread(workspace.published, JOB)}
        finally:
            operator = self._proxy.operator
            if operator is not None:
                operator.kill()
                operator.wait()
            await asyncio.to_thread(workspace.delete)

    def _start(self, namespace: str) -> None:
        found = self._target
        command = [str(Path(sys.executable).with_name("lorikeet-operator")), "--namespaces", namespace]
        command += ["--trainer-image", found.trainer_image, "--agent-image", found.agent_image]
        command += ["--http-host", "127.0.0.1", "--http-port", "0"]
        with self._log.open("ab") as log:
            self._proxy.operator = subprocess.Popen(
                command, env={**os.environ, "KUBECONFIG": str(self._kubeconfig)}, stdout=log, stderr=log
            )

    def _go_on(self, workspace: Workspace) -> None:
        operator = self._proxy.operator
        if operator is not None and operator.poll() is not None:
            self._start(workspace.namespace)

    async def _until_it_is_gone(self, workspace: Workspace) -> None:
        deadline = time.monotonic() + LIFE_SECONDS
        get = ("get", "finetunejob", JOB, "--ignore-not-found", "-o", "name")
        while time.monotonic() < deadline:
            self._go_on(workspace)
            if not await asyncio.to_thread(workspace.kubectl, *get):
                return
            await asyncio.sleep(0.5)
        raise AssertionError(f"not gone within {LIFE_SECONDS} s\n{await asyncio.to_thread(workspace.story)}")

    async def _until_it_ends(self, workspace: Workspace) -> dict[str, Any]:
        deadline = time.monotonic() + LIFE_SECONDS
        quiet = 0
        while time.monotonic() < deadline:
            self._go_on(workspace)
            status: dict[str, Any] = (await asyncio.to_thread(workspace.job, JOB)).get("status", {})
            # A moment longer: what follows the end (its Event) is a write that fate may have chosen, too.
            quiet = quiet + 1 if status.get("phase") in FINAL else 0
            if quiet > 2 and not (self._proxy.fate.struck and quiet < 8):
                return status
            await asyncio.sleep(0.5)
        raise AssertionError(f"no end within {LIFE_SECONDS} s\n{await asyncio.to_thread(workspace.story)}")


def ending(workspace: Workspace, status: dict[str, Any]) -> dict[str, Any]:
    """Return what should be equal for all lives: no name of a pod, no time."""
    listed = json.loads(workspace.kubectl("get", "jobs,pods", "-o", "json"))["items"]
    ours = [each for each in listed if each["metadata"].get("labels", {}).get("lorikeet.dev/finetunejob") == JOB]
    made = sorted(f"{each['kind']}/{each['metadata']['name']}" for each in ours if each["kind"] != "Pod")
    pods = sorted(each["metadata"]["labels"]["app.kubernetes.io/component"] for each in ours if each["kind"] == "Pod")
    metrics = status.get("metrics", {})
    return {
        "phase": status.get("phase"),
        "conditions": [(each["type"], each["status"], each["reason"]) for each in status.get("conditions", [])],
        "attempts": status.get("attempts"),
        "runId": status.get("artifacts", {}).get("runId"),
        "loss": metrics.get("trainLoss"),
        "adapter": adapter(workspace, status),
        "made": made,
        "pods": pods,
    }


def adapter(workspace: Workspace, status: dict[str, Any]) -> str | None:
    """Return the sha256 of the adapter's weights as the manifest has it."""
    run_id = status.get("artifacts", {}).get("runId")
    key = f"{workspace.namespace}/{JOB}/{run_id}/manifest.json"
    if key not in workspace.published(JOB):
        return None
    manifest = json.loads(workspace.s3.get_object(Bucket="adapters", Key=key)["Body"].read())
    return next((file["sha256"] for file in manifest["files"] if file["path"].endswith(".safetensors")), None)


@asynccontextmanager
async def lives(target: Target, folder: Path) -> AsyncIterator[Lives]:
    """Begin to serve the proxy, with the rights of an administrator."""
    config = json.loads(target.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    proxy = Proxy(*upstream(config, folder))
    runner = web.AppRunner(proxy.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "proxy",
                "clusters": [{"name": "proxy", "cluster": {"server": address}}],
                "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
                "users": [{"name": "proxy", "user": {"token": "none"}}],
            }
        )
    )
    model = await asyncio.to_thread(upload_model, target, folder / "model")
    # One for all, so that equal lives have equal results.
    data = await asyncio.to_thread(upload_rows, Workspace(target, "default"), tiny.rows()[0], "crashes.jsonl")
    try:
        yield Lives(target, (model, data), proxy, kubeconfig, folder / "operator.log")
    finally:
        await runner.cleanup()


def upstream(config: dict[str, Any], folder: Path) -> tuple[str, ssl.SSLContext]:
    """Return URL and TLS by which the development cluster's administrator reaches the API server."""
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    pem = {"ca": cluster["certificate-authority-data"], "crt": user["client-certificate-data"]}
    pem["key"] = user["client-key-data"]
    for name, data in pem.items():
        (folder / name).write_bytes(base64.b64decode(data))
    context = ssl.create_default_context(cafile=folder / "ca")
    context.load_cert_chain(folder / "crt", folder / "key")
    return cluster["server"], context


async def run(numbers: list[int]) -> int:
    """Live every life and return how many ended otherwise than the first."""
    target = development()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        async with lives(target, Path(name)) as living:
            reference = Fate()
            wanted = await living.live(reference)
            print(f"{len(reference.writes)} writes; the reference: {json.dumps(wanted)}", flush=True)
            for number in numbers or range(len(reference.writes)):
                for arrives in (False, True):
                    fate = Fate(number, arrives)
                    began = time.monotonic()
                    found = await living.live(fate)
                    good = found == wanted and fate.struck
                    bad += not good
                    when = "after" if arrives else "before"
                    what = fate.writes[number] if len(fate.writes) > number else "(no such write)"
                    seconds = time.monotonic() - began
                    print(f"{'ok ' if good else 'BAD'} {seconds:4.0f} s  killed {when} {number}: {what}", flush=True)
                    if not good:
                        print(f"     {json.dumps(found)}", flush=True)
    return bad


def main() -> int:
    """Kill the operator at every write, or at those whose numbers are given; return 1 if an end was another one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, help="writes to be killed at; default: every one")
    given = parser.parse_args()
    found = development()
    install(found)  # for its resources; the operator that dies is another one
    replicas = ("-n", NAMESPACE, "scale", f"deployment/{RELEASE}")
    found.kubectl(*replicas, "--replicas=0")
    try:
        bad = asyncio.run(run(given.numbers))
    finally:
        found.kubectl(*replicas, "--replicas=2")
    print("every life ended the same" if not bad else f"{bad} lives ended otherwise")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
