"""The whole process but for its controllers, against an API server over HTTP, with kopf's own streams."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from lorikeet_operator import app, metrics
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT, TUNINGPROFILE
from lorikeet_operator.kube import relist, watches
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.controller import Controller, Kube, Watch
from lorikeet_operator.kube.errors import NotFound
from lorikeet_operator.kube.kinds import (
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    EVENT,
    JOB,
    LEASE,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Key,
    Kind,
    Object,
    key_of,
)
from lorikeet_operator.kube.lease import LeaseLost
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.serve import Certificate
from lorikeet_operator.settings import Settings
from tests.resources import deployment_body, job_body, profile_body
from tests.unit.kube.api import THING, Api
from tests.unit.kube.objects import CONFIG_MAP, config_map
from tests.unit.kube.waiting import until

A = Key("ns", "a")
SETTINGS = Settings(http_host="127.0.0.1", http_port=0, shutdown_grace=5)


class Things:
    """Says in the status of a Thing what is in its spec."""

    name = "things"
    watches: Sequence[Watch] = (Watch(THING), Watch(CONFIG_MAP, label_selector="managed=yes"))

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self.entered: list[Key] = []
        self.reconciled: list[Key] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def keys_for(self, kind: Kind, obj: Object) -> Iterable[Key]:
        if obj["metadata"]["name"] == "poison":
            raise ValueError("odd")
        return [key_of(obj)]

    async def reconcile(self, key: Key) -> Requeue | None:
        self.entered.append(key)
        await self.gate.wait()
        self.reconciled.append(key)
        thing = self.kube.cache.get(THING, key)
        if thing is not None:
            await self.kube.writer.write_status(THING, thing, {"seen": thing.get("spec")})
        return None


class Process:
    """A running operator."""

    def __init__(self, settings: Settings) -> None:
        self.made: list[Things] = []
        self.task = asyncio.create_task(app.run(settings, self._make))

    def _make(self, kube: Kube, settings: Settings, certificate: Certificate | None) -> list[Controller]:
        self.made.append(Things(kube))
        return [self.made[-1]]

    @property
    def things(self) -> Things:
        return self.made[0]

    async def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(self.task, 15)


@pytest.fixture(autouse=True)
async def kubeconfig(server: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {
        "users": [{"name": "u", "user": {"token": "t"}}],
        "clusters": [{"name": "c", "cluster": {"server": str(server.make_url("/")).rstrip("/")}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **body}))
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    monkeypatch.setenv("KUBECONFIG", str(file))
    monkeypatch.setattr(relist, "_SETTLE_SECONDS", 0.0)


@asynccontextmanager
async def running(api: Api, settings: Settings = SETTINGS) -> AsyncIterator[Process]:
    process = Process(settings)
    try:
        await until(lambda: process.task.done() or (api.watched(THING) and api.watched(CONFIG_MAP)), "watches")
        if process.task.done():
            process.task.result()
        yield process
    finally:
        if not process.task.done():
            await process.stop()
        for kind in (THING, CONFIG_MAP):
            api.send(kind, None)


def thing(name: str = "a", **more: Any) -> Object:
    return config_map(name, version=0, uid=f"uid-{name}", **more)


def status(api: Api, name: str = "a") -> Any:
    return api.objects.get(THING.path("ns", name), {}).get("status")


def lists_of_things(api: Api) -> int:
    return len([each for each in api.seen if each.path == THING.path() and "watch" not in each.query])


async def test_what_is_there_and_what_comes_is_reconciled_in_one_write_each(api: Api) -> None:
    api.add(THING, thing(spec=1))
    async with running(api) as process:
        await until(lambda: status(api) == {"seen": 1}, "the first is reconciled")
        api.add(THING, thing("b", spec=2))
        await until(lambda: status(api, "b") == {"seen": 2}, "the second is reconciled")
        api.add(CONFIG_MAP, thing("child"))
        await until(lambda: Key("ns", "child") in process.things.reconciled, "the child is noticed")
    assert [write.path for write in api.writes] == [
        THING.path("ns", "a", "status"),
        THING.path("ns", "b", "status"),
    ]


async def test_a_deletion_is_noticed(api: Api) -> None:
    made = api.add(THING, thing(spec=1))
    async with running(api) as process:
        await until(lambda: status(api) == {"seen": 1}, "it is there")
        await until(lambda: lists_of_things(api) == 3, "ours, kopf's, and ours for kopf's; none comes to help below")
        seen = len(process.things.reconciled)
        api.remove(THING, made)
        await until(lambda: process.things.kube.cache.get(THING, A) is None, "it is gone from the cache")
        await until(lambda: len(process.things.reconciled) > seen, "it is reconciled once more")


async def test_a_restart_writes_nothing(api: Api) -> None:
    api.add(THING, thing(spec=1))
    async with running(api):
        await until(lambda: status(api) == {"seen": 1}, "it is reconciled")
    before = len(api.writes)
    async with running(api) as process:
        await until(lambda: A in process.things.reconciled, "it is reconciled again")
        api.add(CONFIG_MAP, thing("child"))
        await until(lambda: Key("ns", "child") in process.things.reconciled, "the streams have been read")
    assert len(api.writes) == before


async def test_labels_are_selected_by_the_server(api: Api) -> None:
    async with running(api):
        pass
    asked = [each.query for each in api.seen if each.path == CONFIG_MAP.path()]
    assert len(asked) >= 3  # our list, kopf's list and its watch
    assert {query.get("labelSelector") for query in asked} == {"managed=yes"}


async def test_only_the_given_namespaces_are_asked_for(api: Api) -> None:
    settings = Settings(http_host="127.0.0.1", http_port=0, namespaces=("one", "two"))
    async with running(api, settings):
        await until(lambda: len(api.streams[THING]) == 2, "both namespaces are watched")
    paths = {each.path for each in api.seen if each.path.endswith("/things")}
    assert paths == {THING.path("one"), THING.path("two")}


async def test_of_two_replicas_one_works_and_the_other_takes_over(api: Api) -> None:
    api.kinds = (*api.kinds, LEASE)
    first, second = (
        Process(replace(SETTINGS, lease_namespace="ns", lease_duration=1.5, identity=name)) for name in "ab"
    )
    api.add(THING, thing(spec=1))
    await until(lambda: status(api) == {"seen": 1}, "one of them works")
    await until(lambda: len(api.streams.get(THING, [])) == 2, "both watch")
    leader, other = (first, second) if first.things.reconciled else (second, first)
    assert other.things.reconciled == []
    leader.task.cancel()
    await asyncio.wait([leader.task])
    api.add(THING, thing("b", spec=2))
    await until(lambda: status(api, "b") == {"seen": 2}, "the other one works")
    assert set(leader.things.reconciled) == {A}
    assert A in other.things.reconciled, "it looks at everything anew"
    other.task.cancel()  # a signal would reach the one of them that was started last
    await asyncio.wait([other.task])
    assert api.objects[LEASE.path("ns", "lorikeet")]["spec"]["holderIdentity"] == ""


async def test_a_process_that_loses_its_lease_ends(api: Api) -> None:
    api.kinds = (*api.kinds, LEASE)
    process = Process(replace(SETTINGS, lease_namespace="ns", lease_duration=1.5))
    api.add(THING, thing(spec=1))
    await until(lambda: status(api) == {"seen": 1}, "it works")
    process.things.gate.clear()
    api.add(THING, thing("b", spec=2))
    await until(lambda: Key("ns", "b") in process.things.entered, "it is at work")
    held = api.objects[LEASE.path("ns", "lorikeet")]
    api.add(LEASE, {**held, "spec": {**held["spec"], "holderIdentity": "another"}})
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(process.task, 10)
    assert caught.group_contains(LeaseLost)
    assert status(api, "b") is None


async def test_sigterm_lets_a_reconcile_end(api: Api) -> None:
    async with running(api) as process:
        process.things.gate.clear()
        api.add(THING, thing(spec=1))
        await until(lambda: process.things.entered, "it is being reconciled")
        os.kill(os.getpid(), signal.SIGTERM)
        api.add(THING, thing("late", spec=1))
        await until(lambda: process.things.kube.cache.get(THING, Key("ns", "late")), "the cache is still fed")
        process.things.gate.set()
        await asyncio.wait_for(process.task, 15)
    assert status(api) == {"seen": 1}
    assert process.things.entered == [A]


async def test_sigterm_cancels_a_reconcile_that_does_not_end(api: Api) -> None:
    async with running(api, Settings(http_host="127.0.0.1", http_port=0, shutdown_grace=0)) as process:
        process.things.gate.clear()
        api.add(THING, thing(spec=1))
        await until(lambda: process.things.entered, "it is being reconciled")
        await process.stop()
    assert status(api) is None


async def test_a_stream_that_ends_is_taken_up_again(api: Api) -> None:
    async with running(api):
        api.send(THING, None)
        await until(lambda: not api.watched(THING), "the stream is closed")
        await until(lambda: api.watched(THING), "it is opened again")
        api.add(THING, thing(spec=1))
        await until(lambda: status(api) == {"seen": 1}, "its news come through")


async def test_after_410_the_ghosts_are_found(api: Api) -> None:
    ghost = api.add(THING, thing("ghost", spec=1))
    api.add(THING, thing(spec=1))
    async with running(api) as process:
        await until(lambda: status(api, "ghost") == {"seen": 1}, "it is there")
        api.remove(THING, ghost, silently=True)
        api.send(THING, {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
        cache = process.things.kube.cache
        await until(lambda: cache.get(THING, Key("ns", "ghost")) is None, "the ghost is gone")
        assert cache.get(THING, A) is not None


async def test_another_error_in_a_stream_ends_the_process(api: Api) -> None:
    async with running(api) as process:
        api.send(THING, {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd is sad"}})
        with pytest.raises(Exception, match="etcd is sad"):
            await asyncio.wait_for(process.task, 15)
        await until(lambda: not api.watched(CONFIG_MAP), "the other streams are closed")


async def test_without_its_kinds_the_process_ends_at_once(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.answers += [web.Response(status=404, text="404 page not found") for _ in range(2)]
    with pytest.raises(BaseExceptionGroup) as caught:
        await asyncio.wait_for(Process(SETTINGS).task, 15)
    assert isinstance(app._cause(caught.value), NotFound)
    assert "are the CRDs installed" in caplog.text


async def test_a_server_that_comes_late_is_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relist, "_RETRY_SECONDS", 0.0)
    api.answers += [web.Response(status=503) for _ in range(4)]
    async with running(api) as process:
        assert process.things.kube.cache.synced(THING)


async def test_an_object_that_confuses_a_controller_stops_no_other(api: Api) -> None:
    api.add(THING, thing("poison", spec=1))
    async with running(api):
        api.add(THING, thing(spec=2))
        await until(lambda: status(api) == {"seen": 2}, "the other is reconciled")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """Keep the gauges of the real controllers apart: each may be registered once in a process."""
    registry = CollectorRegistry()
    monkeypatch.setattr(metrics, "REGISTRY", registry)
    return registry


@pytest.mark.parametrize(
    ("agent", "expected"),
    [("agent:1", ["finetunejob", "modeldeployment"]), ("", ["finetunejob"])],
    ids=["with an agent", "without"],
)
async def test_deployments_are_served_where_there_is_an_agent(
    client: Client, registry: CollectorRegistry, agent: str, expected: list[str]
) -> None:
    operator = app.Operator(client, replace(SETTINGS, agent_image=agent))
    assert [each.name for each in operator.controllers] == expected
    kinds = [watch.kind for watch in operator.watches]
    assert (MODELDEPLOYMENT in kinds, DEPLOYMENT in kinds) == (bool(agent), bool(agent))
    assert len(kinds) == len(set(kinds)), "what both watch is watched once"


async def test_a_change_reaches_each_controller_that_it_concerns(api: Api, registry: CollectorRegistry) -> None:
    api.kinds = (EVENT, POD, JOB, DEPLOYMENT, SERVICE, DISRUPTION_BUDGET, NETWORK_POLICY, CONFIG_MAP)
    api.kinds += (FINETUNEJOB, TUNINGPROFILE, MODELDEPLOYMENT)
    settings = replace(
        SETTINGS, agent_image="agent:1", vllm_image="vllm:1", router_image="envoy:1", trainer_image="t:1"
    )
    deployed = deployment_body(adapters=[{"name": "sql", "from": {"fineTuneJobRef": {"name": "sql-v1"}}}])
    process = asyncio.create_task(app.run(settings))
    try:
        bodies = {TUNINGPROFILE: profile_body(), FINETUNEJOB: job_body(), MODELDEPLOYMENT: deployed}
        await until(lambda: process.done() or all(map(api.watched, bodies)), "it watches")
        for kind, body in bodies.items():
            body["metadata"] |= {"generation": 1}
            api.add(kind, body)

        def made() -> set[str]:
            return {obj["metadata"]["name"].rpartition("-")[0] for path, obj in api.objects.items() if "/jobs/" in path}

        await until(lambda: made() == {"sql-v1", "assistant-resolve"}, "the job is checked, the model is looked up")
        phases = {sample.labels["phase"] for metric in registry.collect() for sample in metric.samples}
        assert phases == {"Validating", "Pending"}
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(process, 15)


async def test_two_ways_to_watch_a_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"things.x.dev is watched in two different ways"):
        watches.merge([Watch(THING), Watch(THING, label_selector="a=b")])


def test_main_returns_1_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def fail(_: Settings) -> None:
        raise ExceptionGroup("parts", [NotFound(404, "NotFound", "no such kind")])

    monkeypatch.setattr(app, "run", fail)
    monkeypatch.setattr("sys.argv", ["lorikeet-operator"])
    assert app.main() == 1
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["level"] == "CRITICAL"
    assert line["message"] == "the operator ends, to be started again: 404 NotFound: no such kind"
    assert "exc_info" not in line
