"""An engine's pod: its files, the agent in this process, an engine that only speaks, and adapters in a real store."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from lorikeet_agent.serving.main import serve
from lorikeet_agent.serving.settings import DIGEST, Settings
from lorikeet_api.contract import FileDigest, Manifest, Servable, SourceDigest, StorageAccess, canonical_json
from lorikeet_api.serving import (
    DRAIN_HEADER,
    AdapterRevision,
    AdapterState,
    AgentState,
    EngineContract,
    WantedAdapters,
)
from lorikeet_api.training import ModelSource
from lorikeet_storage.publish import publish
from tests import runs
from tests.s3 import S3Server, free_port
from tests.unit.agent.serving.engine import LOCAL, FakeEngine

SECRET = "s3cret"
WEIGHTS = b"the base model's weights"
BASE = "s3://models/tiny"
_seeds = count(1)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def base_digest(weights: bytes = WEIGHTS, uri: str = BASE) -> SourceDigest:
    files = [("config.json", b"{}"), ("model.safetensors", weights)]
    return SourceDigest(
        uri=uri, files=[FileDigest(path=name, sha256=sha256(data), size=len(data)) for name, data in files]
    )


def adapter_contents(weights: bytes) -> dict[str, bytes]:
    """Return the files of an adapter as the trainer writes them, and some that no engine needs."""
    return {
        "adapter/adapter_config.json": b'{"r": 8}',
        "adapter/adapter_model.safetensors": weights,
        "adapter/tokenizer.json": b"{}",
        "adapter/training_args.bin": b"a pickle",
        "adapter/chat_template.jinja": b"{{ x }}",
        "metrics.json": b"{}",
    }


@dataclass
class Store:
    """Adapters in one bucket of a store."""

    server: S3Server
    bucket: str
    scratch: Path

    def publish(
        self,
        name: str,
        *,
        weights: bytes | None = None,
        files: dict[str, bytes] | None = None,
        output: str = "",
        access: StorageAccess | None = None,
        **changes: Any,
    ) -> AdapterRevision:
        """Publish a run as the trainer does, its manifest with `changes`; return the revision."""
        seed = next(_seeds)
        contract = runs.contract(f"s3://{self.bucket}/{output or name}", self.server.access, seed=seed)
        folder = self.scratch / f"run-{seed}"
        contents = files if files is not None else adapter_contents(weights or f"weights {seed}".encode())
        for path, data in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        draft = runs.draft(contract).model_copy(
            update={"base_model": base_digest(), "rank": 8, "servable": Servable(lora=True), **changes}
        )
        made = publish(folder, draft).artifacts
        return AdapterRevision(served=f"{name}-{made.revision}", uri=made.uri, sha256=made.sha256)

    def key(self, revision: AdapterRevision, path: str) -> str:
        return f"{revision.uri.removeprefix(f's3://{self.bucket}/')}/{path}"

    def overwrite(self, revision: AdapterRevision, path: str, content: bytes) -> None:
        self.server.put(self.bucket, self.key(revision, path), content)

    def read(self, revision: AdapterRevision, path: str) -> bytes:
        return self.server.client().get_object(Bucket=self.bucket, Key=self.key(revision, path))["Body"].read()

    def manifest(self, revision: AdapterRevision) -> Manifest:
        return Manifest.model_validate_json(self.read(revision, "manifest.json"))


def contract(access: StorageAccess, engine_port: int = 1, **changes: Any) -> EngineContract:
    fields: dict[str, Any] = {
        "namespace": "team-a",
        "name": "support",
        "engine": "vllm",
        "engine_port": engine_port,
        "model": ModelSource(uri=BASE),
        "pin": "12345678" * 8,
        "base": "base-12345678",
        "storage": access,
        "lora": True,
        "max_lora_rank": 16,
        "hot_loading": True,
        "drain": SECRET,
        "drain_seconds": 30,
    }
    return EngineContract(**{**fields, **changes})


def settings_in(folder: Path, told: EngineContract, **changes: Any) -> Settings:
    """Return the settings of a pod that lies in a folder, with shorter times."""
    settings = Settings(
        contract=told,
        model=folder / "model",
        wanted=folder / "config" / "adapters.json",
        adapters=folder / "adapters",
        guard=folder / "guard",
        cache=folder / "cache",
        port=free_port(),
        look_seconds=0.02,
        turn_seconds=0.1,
        fresh_seconds=3.0,
        pause_seconds=0.1,
        longest_pause_seconds=0.2,
        failed_seconds=0.3,
        notice_seconds=0.1,
        idle_seconds=0.05,
    )
    return replace(settings, **changes)


def write_base(folder: Path, digest: SourceDigest | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DIGEST).write_text(json.dumps((digest or base_digest()).to_wire()))


async def eventually(holds: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - the state of others
            await asyncio.sleep(0.02)


@dataclass
class Pod:
    """What is in one pod; agent and engine are started one by one."""

    settings: Settings
    engine: FakeEngine
    session: aiohttp.ClientSession
    agent: asyncio.Task[None] | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def want(self, *revisions: AdapterRevision, led: Sequence[AdapterRevision] = ()) -> str:
        """Have the engine hold these; return their fingerprint."""
        wanted = WantedAdapters(adapters=list(revisions), led=[revision.served for revision in led])
        self.write(canonical_json(wanted.to_wire()))
        return wanted.fingerprint

    def write(self, content: bytes) -> None:
        """Exchange the wanted file as the kubelet does."""
        self.settings.wanted.parent.mkdir(exist_ok=True)
        new = self.settings.wanted.with_name("..new")
        new.write_bytes(content)
        new.rename(self.settings.wanted)

    def start_agent(self) -> None:
        self.stopped = asyncio.Event()
        self.agent = asyncio.create_task(serve(self.settings, self.stopped))

    async def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.agent

    async def restart_agent(self) -> None:
        await self.kill_agent()
        self.start_agent()

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Ask the agent; status 0: it does not answer."""
        try:
            async with self.session.get(f"http://{LOCAL}:{self.settings.port}{path}", headers=headers) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectorError:
            return 0, ""

    async def status(self, path: str) -> int:
        return (await self.get(path))[0]

    async def drain(self, secret: str = SECRET) -> int:
        return (await self.get("/drain", **{DRAIN_HEADER: secret}))[0]

    async def state(self) -> AgentState:
        status, text = await self.get("/state")
        assert status in (0, 200)
        return AgentState.model_validate_json(text) if status else AgentState(wanted="", engine=False, draining=False)

    async def of(self, revision: AdapterRevision) -> AdapterState | None:
        return next((each for each in (await self.state()).adapters if each.served == revision.served), None)

    async def until(self, revision: AdapterRevision, state: str, reason: str | None = None) -> AdapterState:
        """Wait until an adapter stands so; return how."""
        found: AdapterState | None = None

        async def is_so() -> bool:
            nonlocal found
            found = await self.of(revision)
            return found is not None and (found.state, found.reason) == (state, reason)

        await eventually(is_so)
        assert found is not None
        return found

    async def until_wanted(self, fingerprint: str) -> None:
        async def is_so() -> bool:
            return (await self.state()).wanted == fingerprint

        await eventually(is_so)

    async def until_status(self, path: str, status: int) -> None:
        async def is_so() -> bool:
            return await self.status(path) == status

        await eventually(is_so)

    async def until_engine(self, *names: str) -> None:
        """Wait until the engine serves these names beside the base."""

        async def is_so() -> bool:
            return sorted(self.engine.served) == sorted([self.engine.base, *names])

        await eventually(is_so)

    async def until_folders(self, *names: str) -> None:
        async def is_so() -> bool:
            return self.folders() == sorted(names)

        await eventually(is_so)

    async def turns(self, number: int = 3) -> None:
        """Wait until the agent has gone so often through all that there is to do."""
        enough = self.engine.asked + number + 1

        async def is_so() -> bool:
            return self.engine.asked >= enough

        await eventually(is_so)

    def folders(self) -> list[str]:
        """Return all that lies in the folder of adapters."""
        root = self.settings.adapters
        return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


@asynccontextmanager
async def pod_in(folder: Path, access: StorageAccess, **changes: Any) -> AsyncIterator[Pod]:
    """Make a pod with a base model, of which nothing runs yet. `changes` are of the contract or of the settings."""
    engine = FakeEngine()
    of_contract = {name: changes.pop(name) for name in list(changes) if name in EngineContract.model_fields}
    settings = settings_in(folder, contract(access, engine.port, **of_contract), **changes)
    write_base(settings.model)
    async with aiohttp.ClientSession() as session:
        pod = Pod(settings, engine, session)
        try:
            yield pod
        finally:
            if pod.agent is not None:
                pod.stopped.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await pod.agent
            await engine.stop()


@asynccontextmanager
async def running(
    folder: Path, access: StorageAccess, wanted: Sequence[AdapterRevision] = (), **changes: Any
) -> AsyncIterator[Pod]:
    """Run a pod with what is wanted; it may not be loaded yet."""
    async with pod_in(folder, access, **changes) as pod:
        await pod.engine.start()
        pod.want(*wanted)
        pod.start_agent()
        yield pod
