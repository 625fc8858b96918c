"""What every engine must keep of `lorikeet_engines.base.Engine`, in each of its modes: real ones, a pod for each mode.

An engine that comes adds its modes to MODES. The tests reach a pod by its loopback, as the agent beside an engine does.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from e2e import colours
from e2e.pods import restricted_pod
from e2e.serving import forwarded
from e2e.small import until
from e2e.target import Target, TargetError
from e2e.workspace import Workspace, condition
from lorikeet_agent.serving import guard
from lorikeet_agent.serving.engine_http import EngineHttp
from lorikeet_api.modeldeployment import EngineChoice
from lorikeet_api.serving import GUARD_MODULE
from lorikeet_engines import ENGINES, Engine, EngineError, Launch
from tests.unit.agent.serving.engine import Recorder
from tests.unit.agent.serving.pod import eventually

pytestmark = pytest.mark.e2e

RANK: Final = 8
# On a CPU, vLLM adds the adapter in its last slot to answers of the base model that share a batch with an adapter's
# (https://github.com/vllm-project/vllm/pull/48421): more slots than are ever filled here.
_VLLM: Final[dict[str, Any]] = {"maxLoraRank": RANK, "maxLoras": 32, "args": ["--enforce-eager"]}
MODES: Final = {
    "vllm-hot": EngineChoice.model_validate({"vllm": _VLLM}),
    "vllm-at-start": EngineChoice.model_validate({"vllm": {**_VLLM, "hotLoading": False}}),
}
HOT: Final = [mode for mode, settings in MODES.items() if ENGINES[settings.name].hot_loading(settings)]
AT_START: Final = [mode for mode in MODES if mode not in HOT]
ENVIRONMENT: Final = {"HOME": "/tmp", "USER": "lorikeet", "VLLM_CPU_KVCACHE_SPACE": "1"}

FILES: Final = "/files"
BASE, RED, BLUE, WIDE = "base-12345678", "red-1a1a1a1a", "blue-2b2b2b2b", "wide-3c3c3c3c"
FOLDERS: Final = {RED: f"{FILES}/red", BLUE: f"{FILES}/blue", WIDE: f"{FILES}/wide"}

every = pytest.mark.parametrize("engine", MODES, indirect=True)
hot = pytest.mark.parametrize("engine", HOT, indirect=True)
at_start = pytest.mark.parametrize("engine", AT_START, indirect=True)


@dataclass(frozen=True)
class Running:
    """An engine that runs, and the way to it."""

    kind: Engine
    settings: EngineChoice
    http: EngineHttp
    workspace: Workspace
    pod: str

    async def served(self) -> frozenset[str]:
        return await self.kind.served(self.http)

    async def load(self, served: str) -> None:
        await self.kind.load(self.http, served, FOLDERS[served])

    async def unload(self, served: str) -> None:
        await self.kind.unload(self.http, served)

    async def ask(self, served: str) -> tuple[int, str]:
        """Return status and text of an answer to a request as the router sends it."""
        question = [{"role": "user", "content": "What colour is sky?"}]
        body = {"model": served, "messages": question, "max_tokens": 32, "temperature": 0}
        answer = await self.http("POST", "/v1/chat/completions", body)
        return answer.status, answer.text

    async def in_flight(self) -> int:
        return self.kind.in_flight((await self.http("GET", self.kind.metrics_path)).text)

    def from_elsewhere(self, path: str) -> str:
        """Return what is answered to the API server, which is not in the engine's pod."""
        proxy = f"/api/v1/namespaces/{self.workspace.namespace}/pods/{self.pod}:{self.kind.port}/proxy{path}"
        return self.workspace.kubectl("get", "--raw", proxy, check=False)


@pytest.fixture(scope="module")
def started(lorikeet: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A namespace in which an engine of each mode starts."""
    here = Workspace(lorikeet, f"e2e-{secrets.token_hex(3)}")
    here.create()
    try:
        files = _write_files(tmp_path_factory.mktemp("engines"))
        for name, file in files.items():
            here.kubectl("create", "configmap", name, f"--from-file={file}")
        for mode in MODES:
            here.apply(_pod(here, mode, list(files)))
        yield here
    finally:
        here.delete()


def _write_files(folder: Path) -> dict[str, Path]:
    """Make what the pods have below FILES; it is small enough for ConfigMaps."""
    base = colours.write_base(folder / "model")
    (folder / "guard").mkdir()
    (folder / "guard" / f"{GUARD_MODULE}.py").write_bytes(Path(guard.__file__).read_bytes())
    return {
        "model": base,
        "guard": folder / "guard",
        "red": colours.write_adapter(folder / "red", base, "red", RANK),
        "blue": colours.write_adapter(folder / "blue", base, "blue", RANK),
        "wide": colours.write_adapter(folder / "wide", base, "green", 2 * RANK),
    }


def _pod(workspace: Workspace, mode: str, files: list[str]) -> dict[str, Any]:
    settings = MODES[mode]
    engine = ENGINES[settings.name]
    launch = Launch(
        model=f"{FILES}/model",
        base=BASE,
        port=engine.port,
        gpus=0,
        lora=True,
        settings=settings,
        adapters=[(served, FOLDERS[served]) for served in (RED, BLUE) if mode in AT_START],
        guard=f"{GUARD_MODULE}.Guard",
        environment={**ENVIRONMENT, "PYTHONPATH": f"{FILES}/guard"},
    )
    mounts = [{"name": name, "mountPath": f"{FILES}/{name}"} for name in files]
    pod = restricted_pod(
        mode,
        workspace.target.engine_image,
        folder=FILES,
        config_map="",
        **engine.container(launch),
        ports=[{"containerPort": engine.port}],
        readinessProbe={"httpGet": {"path": engine.health_path, "port": engine.port}, "periodSeconds": 1},
        resources={"requests": {"cpu": "100m", "memory": "2Gi"}, "limits": {"memory": "6Gi"}},
        volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}, *mounts],
    )
    volumes = [{"name": name, "configMap": {"name": name}} for name in files]
    shared = {"name": "shm", "emptyDir": {"medium": "Memory"}}
    pod["spec"]["volumes"] = [{"name": "tmp", "emptyDir": {}}, shared, *volumes]
    return pod


@pytest.fixture
async def engine(started: Workspace, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """The engine of a mode, once it is healthy."""
    mode = request.param
    settings = MODES[mode]
    kind = ENGINES[settings.name]

    def story() -> str:
        return started.kubectl("describe", "pod", mode) + started.kubectl("logs", mode, check=False)

    def healthy() -> bool:
        status = started.get("pod", mode)["status"]
        if status["phase"] == "Failed":
            raise TargetError(f"the engine has ended\n{story()}")
        return bool(condition(status, "Ready")["status"] == "True")

    until(healthy, "healthy engine", 400, story)
    with forwarded(started, f"pod/{mode}", kind.port) as port:
        async with aiohttp.ClientSession(trust_env=False) as session:
            yield Running(kind, settings, EngineHttp(session, port), started, mode)


@pytest.fixture
async def with_both(engine: Running) -> AsyncIterator[Running]:
    """The engine with two adapters, in whichever way it comes by them."""
    loaded = [RED, BLUE] if engine.kind.hot_loading(engine.settings) else []
    for served in loaded:
        await engine.load(served)
    yield engine
    for served in loaded:
        await engine.unload(served)


def test_every_engine_is_held_against_this() -> None:
    assert {settings.name for settings in MODES.values()} == set(ENGINES)


@every
async def test_one_that_is_healthy_answers_for_its_base_model(engine: Running) -> None:
    assert (await engine.http("GET", engine.kind.health_path)).status == 200
    assert BASE in await engine.served()
    assert (await engine.ask(BASE))[0] == 200


@every
async def test_base_model_and_adapters_answer_beside_each_other_each_for_itself(with_both: Running) -> None:
    engine = with_both
    assert await engine.served() == {BASE, RED, BLUE}
    answers = dict(zip((BASE, RED, BLUE), await asyncio.gather(*map(engine.ask, (BASE, RED, BLUE))), strict=True))
    assert {status for status, _ in answers.values()} == {200}
    assert "red red red" in answers[RED][1]
    assert "blue blue blue" in answers[BLUE][1]
    assert "red red" not in answers[BASE][1]
    assert "blue blue" not in answers[BASE][1]


@hot
async def test_an_adapter_comes_and_goes_while_another_answers(engine: Running) -> None:
    assert await engine.served() == {BASE}
    await engine.load(BLUE)
    await engine.load(RED)
    assert await engine.served() == {BASE, RED, BLUE}
    await engine.unload(RED)
    assert await engine.served() == {BASE, BLUE}
    assert (await engine.ask(RED))[0] == 404
    assert "blue blue blue" in (await engine.ask(BLUE))[1]
    await engine.unload(BLUE)
    assert await engine.served() == {BASE}


@hot
async def test_what_is_done_already_is_done(engine: Running) -> None:
    for _ in range(2):
        await engine.load(RED)
        assert await engine.served() == {BASE, RED}
    assert "red red red" in (await engine.ask(RED))[1]
    for _ in range(2):
        await engine.unload(RED)
        assert await engine.served() == {BASE}


@hot
async def test_what_is_no_adapter_is_refused_in_the_engines_words(engine: Running) -> None:
    nowhere = f"{FILES}/nowhere"
    with pytest.raises(EngineError, match=re.escape(nowhere)):
        await engine.kind.load(engine.http, RED, nowhere)
    assert await engine.served() == {BASE}


@hot
async def test_a_rank_above_its_highest_is_refused_in_the_engines_words(engine: Running) -> None:
    assert engine.kind.max_lora_rank(engine.settings) == RANK, "that of the adapters which it takes"
    with pytest.raises(EngineError, match="rank"):
        await engine.load(WIDE)
    assert await engine.served() == {BASE}


@at_start
async def test_one_that_loads_at_its_start_keeps_what_it_has_and_takes_no_more(engine: Running) -> None:
    await engine.load(RED)
    with pytest.raises(EngineError):
        await engine.load(WIDE)
    with pytest.raises(EngineError):
        await engine.unload(RED)
    assert await engine.served() == {BASE, RED, BLUE}


@every
async def test_warming_has_it_answer(with_both: Running) -> None:
    for served in (BASE, RED, BLUE):
        asked = Recorder(with_both.http)
        await with_both.kind.warm(asked, served)
        assert [answer.status for answer in asked.answers] == [200]


@every
async def test_its_metrics_tell_how_many_requests_are_in_flight(engine: Running) -> None:
    async def busy() -> bool:
        return await engine.in_flight() > 0

    async def idle() -> bool:
        return await engine.in_flight() == 0

    assert await idle()
    told = asyncio.Event()

    async def ask_on() -> None:
        while not told.is_set():
            await engine.ask(BASE)

    async with asyncio.TaskGroup() as users:
        for _ in range(8):
            users.create_task(ask_on())
        await eventually(busy)
        told.set()
    await eventually(idle)


@every
async def test_its_guard_keeps_all_but_completions_for_its_own_pod(engine: Running) -> None:
    assert "Forbidden" not in engine.from_elsewhere(engine.kind.health_path)
    for path in (engine.kind.metrics_path, "/v1/models"):
        assert (await engine.http("GET", path)).status == 200
        assert "Forbidden" in engine.from_elsewhere(path)
