"""A cluster in memory with ModelDeployments in it: an API server over HTTP, agents over HTTP, and what others do."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import pytest
from aiohttp import web

from lorikeet_api import names
from lorikeet_api.serving import (
    ROUTER_WANTED,
    WANTED,
    AdapterState,
    AgentState,
    Found,
    ResolveContract,
    ResolveRecord,
    RouterState,
    WantedAdapters,
    fingerprint,
)
from lorikeet_api.yaml import load_all
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT, TUNINGPROFILE
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.events import Recorder
from lorikeet_operator.kube.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    EVENT,
    JOB,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Key,
    Kind,
    Object,
)
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.throttle import TokenBucket
from lorikeet_operator.kube.writer import Writer
from lorikeet_operator.serving.poll import Poller
from lorikeet_operator.serving.reconcile import QUIET, ModelDeploymentController
from lorikeet_operator.serving.setup import Installation
from tests.golden import FOLDER
from tests.resources import UID, deployment_body, job_body, profile_body
from tests.unit.kube.api import Api, Seen, configuration_for, serve

KINDS: Final = (
    EVENT,
    POD,
    JOB,
    CONFIG_MAP,
    SERVICE,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    FINETUNEJOB,
    TUNINGPROFILE,
    MODELDEPLOYMENT,
)
NAME: Final = Key("team-a", "assistant")
ENGINE: Final = Key("team-a", "assistant-engine")
ROUTER: Final = Key("team-a", "assistant-router")
PIN: Final = "ab" * 32
BASE: Final = "base-abababab"
FIRST, SECOND, THIRD = "11" * 32, "22" * 32, "33" * 32
"""Contents of adapters, each by the sha256 of its manifest."""
ADDRESSES: Final = {names.ENGINE: 2, names.ROUTER: 12}
"""By component: the last part of the loopback address of its first pod."""
RIGHTS: Final = FOLDER / "chart" / "rbac.yaml"
OPERATOR_ROLE: Final = "lorikeet-system:lorikeet"
SETUP: Final = (Installation("agent:test", "vllm:test", "envoy:test"), "1Gi")

FROM_JOB: Final[dict[str, Any]] = {"name": "sql", "from": {"fineTuneJobRef": {"name": "sql-v1"}}}
FROM_URI: Final[dict[str, Any]] = {"name": "dpo", "from": {"uri": "s3://adapters/dpo"}}
SPLIT: Final[list[dict[str, Any]]] = [
    {"model": "support", "variants": [{"name": "a", "adapter": "sql", "weight": 90}, {"name": "b", "weight": 10}]}
]


class Agents:
    """The agents of all pods, each at its pod's own loopback address."""

    def __init__(self) -> None:
        self.port = 0
        self.states: dict[str, AgentState | RouterState] = {}
        """By address. One that is not here has no answer."""

    async def handle(self, request: web.Request) -> web.Response:
        state = self.states.get(request.host.partition(":")[0])
        if request.path != "/state" or state is None:
            return web.Response(status=503)
        return web.json_response(state.to_wire())


@asynccontextmanager
async def agents() -> AsyncIterator[Agents]:
    made = Agents()
    app = web.Application()
    app.router.add_get("/{tail:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    for first in ADDRESSES.values():
        for last in range(first, first + 4):
            await web.TCPSite(runner, f"127.0.0.{last}", made.port).start()
            made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@dataclass
class World:
    """A cluster, what the operator has in its cache of it, and a clock."""

    api: Api
    cache: Cache
    controller: ModelDeploymentController
    agents: Agents
    now: datetime = field(default_factory=lambda: datetime(2026, 11, 23, 10, tzinfo=UTC))
    start: Callable[[], tuple[Cache, ModelDeploymentController]] = field(default=lambda: pytest.fail("nobody starts"))

    def restart(self) -> None:
        """Replace the operator by one that knows nothing but what the API server has."""
        self.cache, self.controller = self.start()

    def put(self, kind: Kind, obj: Object, *, seen: bool = True) -> Object:
        """Change an object in the cluster; `seen`: the operator's watch has told it."""
        made = self.api.add(kind, obj)
        if seen:
            self.cache.put(kind, made)
        return made

    def change(self, kind: Kind, key: Key, *, seen: bool = True, **fields: Any) -> Object:
        """Replace top-level fields of an object."""
        return self.put(kind, {**self.get(kind, key), **fields}, seen=seen)

    def get(self, kind: Kind, key: Key) -> Object:
        return self.api.objects[kind.path(*key)]

    def all(self, kind: Kind) -> list[Object]:
        return [obj for path, obj in self.api.objects.items() if f"/{kind.plural}/" in path]

    def delete(self, kind: Kind, key: Key, *, seen: bool = True) -> None:
        gone = self.get(kind, key)
        self.api.remove(kind, gone, silently=True)
        if seen:
            metadata = {**gone["metadata"], "resourceVersion": str(self.api.version)}
            self.cache.delete(kind, {**gone, "metadata": metadata})

    async def reconcile(self, key: Key = NAME, *, seconds: float = 1) -> Requeue | None:
        """Let time pass, then reconcile."""
        self.now += timedelta(seconds=seconds)
        return await self.controller.reconcile(key)

    def steer(self, key: Key = NAME, **spec: Any) -> None:
        """Change fields of the spec, as a user does."""
        held = self.get(MODELDEPLOYMENT, key)
        metadata = {**held["metadata"], "generation": held["metadata"]["generation"] + 1}
        self.change(MODELDEPLOYMENT, key, spec={**held["spec"], **spec}, metadata=metadata)

    # What is told

    @property
    def status(self) -> dict[str, Any]:
        return self.status_of(NAME)

    def status_of(self, key: Key) -> dict[str, Any]:
        found: dict[str, Any] = self.get(MODELDEPLOYMENT, key)["status"]
        return found

    def condition(self, kind: str, key: Key = NAME) -> tuple[str, str]:
        """Return status and reason of a condition."""
        found = self.whole_condition(kind, key)
        return found["status"], found["reason"]

    def whole_condition(self, kind: str, key: Key = NAME) -> dict[str, Any]:
        return next(each for each in self.status_of(key)["conditions"] if each["type"] == kind)

    def told(self) -> list[tuple[str, str]]:
        """Return type and reason of the Events so far."""
        return [(event["type"], event["reason"]) for event in self.all(EVENT)]

    def led(self, key: Key = NAME) -> dict[str, dict[str, tuple[str, int]]]:
        """Return what the routers are told: by model and variant, the served name and the weight."""
        wanted = json.loads(self.routers_file(key))
        metadata = wanted["routes"]["resources"][0]["virtual_hosts"][0]["routes"][-1]["metadata"]["filter_metadata"]
        models = {name.removeprefix("model "): each for name, each in metadata["lorikeet"].items() if name != "list"}
        return {
            model: {variant["name"]: (variant["served"], variant["weight"]) for variant in each["variants"]}
            for model, each in models.items()
        }

    def routers_file(self, key: Key = NAME) -> str:
        data = self.get(CONFIG_MAP, Key(key.namespace, names.router(key.name)))["data"]
        return str(data[ROUTER_WANTED.rpartition("/")[2]])

    def engines_file(self, key: Key = NAME) -> str:
        data = self.get(CONFIG_MAP, Key(key.namespace, names.engine(key.name)))["data"]
        return str(data[WANTED.rpartition("/")[2]])

    def wanted(self, key: Key = NAME) -> list[str]:
        """Return the served names that engines are told to hold."""
        return [each.served for each in WantedAdapters.model_validate_json(self.engines_file(key)).adapters]

    # What others do

    def job(self, name: str = "sql-v1", sha256: str = "", phase: str = "", namespace: str = "team-a") -> None:
        """Put a FineTuneJob: one that has published, if it has a digest."""
        artifacts = {"uri": f"s3://adapters/{name}/run", "runId": "run", "revision": sha256[:8], "sha256": sha256}
        status: dict[str, Any] = {"phase": phase or ("Succeeded" if sha256 else "Running")}
        body = {**job_body(name, namespace), "status": status | ({"artifacts": artifacts} if sha256 else {})}
        self.put(FINETUNEJOB, body)

    def lookups(self) -> list[Object]:
        """Return the batch Jobs that look up URIs, in the order in which they were made."""
        found = [job for job in self.all(JOB) if "-resolve-" in job["metadata"]["name"]]
        return sorted(found, key=lambda job: int(job["metadata"]["uid"].removeprefix("uid-")))

    def asked(self, job: Object) -> ResolveContract:
        """Return what a batch Job is to find out."""
        text = job["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_CONTRACT]
        return ResolveContract.model_validate_json(text)

    def answers(self, *found: Found, job: Object | None = None, **record: Any) -> None:
        """Let the pod of a look-up, the last one unless `job` says which, end with its record."""
        of = job or self.lookups()[-1]
        pin = PIN if self.asked(of).model else ""
        body = ResolveRecord(**{"reason": "Resolved", "pin": pin, **record}, adapters=list(found))
        ended = {"exitCode": 0, "message": json.dumps(body.to_wire())}
        self.lookup_pod(of, {"state": {"terminated": ended}}, phase="Succeeded")

    def lookup_pod(self, job: Object, container: Mapping[str, Any], phase: str = "Pending") -> None:
        """Put the pod of a look-up."""
        owner = {"controller": True, "uid": job["metadata"]["uid"]}
        metadata = {
            "name": f"{job['metadata']['name']}-pod",
            "namespace": job["metadata"]["namespace"],
            "labels": job["metadata"]["labels"],
            "ownerReferences": [owner],
        }
        status = {"phase": phase, "containerStatuses": [{"name": names.AGENT_CONTAINER, **container}]}
        self.put(POD, {"metadata": metadata, "spec": {"nodeName": "n1", "containers": []}, "status": status})

    def pod(self, component: str, number: int, *, of: Key = NAME, ready: bool = True, **status: Any) -> Object:
        """Put a pod of the engines or routers."""
        key = Key(of.namespace, names.engine(of.name) if component == names.ENGINE else names.router(of.name))
        name = f"{key.name}-{number}"
        metadata: dict[str, Any] = {"name": name, "namespace": of.namespace}
        if POD.path(of.namespace, name) in self.api.objects:
            metadata = self.get(POD, Key(of.namespace, name))["metadata"]
        metadata["labels"] = self.get(DEPLOYMENT, key)["spec"]["template"]["metadata"]["labels"]
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        body = {"phase": "Running", "podIP": self.address(component, number), "conditions": conditions, **status}
        return self.put(POD, {"metadata": metadata, "spec": {"nodeName": "n1", "containers": []}, "status": body})

    @staticmethod
    def address(component: str, number: int) -> str:
        return f"127.0.0.{ADDRESSES[component] + number}"

    def rolls_out(self, of: Key = NAME) -> None:
        """Let the Deployments of engines and routers make all their pods, which become ready."""
        for component, name in ((names.ENGINE, names.engine(of.name)), (names.ROUTER, names.router(of.name))):
            key = Key(of.namespace, name)
            count = self.get(DEPLOYMENT, key)["spec"]["replicas"]
            for number in range(count):
                self.pod(component, number, of=of)
            self.counts(key, count)

    def counts(self, key: Key, available: int, replicas: int | None = None, updated: int | None = None) -> None:
        """Let a Deployment say how many pods it has."""
        total = available if replicas is None else replicas
        status = {
            "observedGeneration": self.get(DEPLOYMENT, key)["metadata"]["generation"],
            "replicas": total,
            "updatedReplicas": total if updated is None else updated,
            "availableReplicas": available,
        }
        self.change(DEPLOYMENT, key, status=status)

    def pods(self, component: str, of: Key = NAME) -> list[Object]:
        """Return the pods of the engines or routers that are there."""
        labels = {names.LABEL_MODELDEPLOYMENT: of.name, names.LABEL_COMPONENT: component}
        return [
            pod
            for pod in self.all(POD)
            if pod["metadata"]["namespace"] == of.namespace and labels.items() <= pod["metadata"]["labels"].items()
        ]

    def engine(self, number: int, *states: AdapterState, engine: bool = True, of: Key = NAME) -> None:
        """Let the agent of an engine say how it stands: it has read its file."""
        wanted = WantedAdapters.model_validate_json(self.engines_file(of)).fingerprint
        state = AgentState(wanted=wanted, engine=engine, draining=False, adapters=list(states))
        self.agents.states[self.address(names.ENGINE, number)] = state

    def engines_load(self, *numbers: int, of: Key = NAME) -> None:
        """Let engines (all, unless numbers are given) load what they are told to hold, and nothing else."""
        for number in numbers or range(len(self.pods(names.ENGINE, of))):
            self.engine(number, *(loaded(served) for served in self.wanted(of)), of=of)

    def routers_lead(self, *numbers: int, busy: Sequence[str] = (), of: Key = NAME) -> None:
        """Let routers (all, unless numbers are given) do as they are told, with requests still on the way to `busy`."""
        routed = fingerprint(self.routers_file(of).encode())
        served = {served for variants in self.led(of).values() for served, _ in variants.values()}
        state = RouterState(wanted=routed, routed=routed, served=sorted(served | set(busy)))
        for number in numbers or range(len(self.pods(names.ROUTER, of))):
            self.agents.states[self.address(names.ROUTER, number)] = state

    async def settle(self, key: Key = NAME) -> None:
        """Let everybody do what they are told until there is nothing more to do."""
        for _ in range(10):
            again = await self.reconcile(key)
            if again == Requeue(QUIET) and self.status_of(key)["phase"] == "Available":
                return
            for lookup in self.lookups():
                if POD.path(key.namespace, f"{lookup['metadata']['name']}-pod") not in self.api.objects:
                    self.answers(*map(found, (each.name for each in self.asked(lookup).adapters)), job=lookup)
            if DEPLOYMENT.path(key.namespace, names.engine(key.name)) in self.api.objects:
                self.rolls_out(key)
                self.engines_load(of=key)
                self.routers_lead(of=key)
        pytest.fail(f"it does not come to rest: {self.status_of(key)}")


def loaded(served: str) -> AdapterState:
    return AdapterState(served=served, state="loaded")


def loading(served: str) -> AdapterState:
    return AdapterState(served=served, state="loading")


def failed(served: str) -> AdapterState:
    return AdapterState(served=served, state="failed", reason="RankTooHigh", message="rank 64 is above maxLoraRank 16")


def found(name: str, sha256: str = SECOND, run_id: str = "run") -> Found:
    return Found(name=name, run_id=run_id, sha256=sha256)


def request(name: str = "assistant", namespace: str = "team-a", uid: str = UID, **spec: Any) -> Object:
    """Return a ModelDeployment as the API server has it before anybody has looked at it."""
    body = deployment_body(name, namespace, **spec)
    body["metadata"] |= {"uid": uid, "generation": 1, "creationTimestamp": "2026-11-23T10:00:00Z"}
    return body


def as_stored(kind: Kind, obj: Object) -> Object:
    """Return what the API server makes of an object, as Kubernetes does: defaults, canonical quantities."""
    stored = deepcopy(obj)
    if kind == SERVICE:
        stored["spec"] = {"clusterIP": "10.0.0.7", "sessionAffinity": "None", **stored["spec"]}
    if kind != DEPLOYMENT:
        return stored
    pod = stored["spec"]["template"]["spec"]
    pod |= {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler"}
    for container in (*pod["initContainers"], *pod["containers"]):
        container["imagePullPolicy"] = "IfNotPresent"
        for amounts in container["resources"].values():
            amounts |= {name: _canonical(amount) for name, amount in amounts.items()}
        for variable in container.get("env", []):
            if variable.get("value") == "":
                del variable["value"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                container[probe] = {"successThreshold": 1, "timeoutSeconds": 1, **container[probe]}
    return stored


def _canonical(amount: Any) -> str:
    text = str(amount)
    return text.removesuffix("000m") if text.endswith("000m") else text


@cache
def _roles() -> dict[str, Any]:
    return {name: rules for each in load_all(RIGHTS) for name, rules in each.items()}


def beyond_its_rights(seen: Sequence[Seen]) -> set[str]:
    """Return which requests the chart gives the operator no right to."""
    roles, verbs = _roles(), {"POST": "create", "PATCH": "patch"}
    asked: set[tuple[str, str]] = set()
    for request in seen:
        kind = next(each for each in KINDS if f"/{each.plural}" in request.path)
        _, _, name = request.path.partition(f"/{kind.plural}/")
        subresource = "/status" if name.endswith("/status") else ""
        resource = f"{kind.plural}{subresource}.{kind.group}".rstrip(".")
        asked.add((verbs.get(request.method, "get" if name else "list"), resource))
    return {f"{verb} {resource}" for verb, resource in asked if verb not in roles[OPERATOR_ROLE].get(resource, [])}


@asynccontextmanager
async def cluster(make: Callable[..., Client] = Client) -> AsyncIterator[World]:
    """A profile, and an operator that has nothing to do yet, and that may do what the chart lets it do."""
    api = Api(kinds=KINDS, defaults=as_stored)
    server = await serve(api)
    async with agents() as made, make(configuration_for(server), "tester", TokenBucket(10**6, 10**6), 10) as client:
        poller = Poller(made.port, now=lambda: world.now)

        def start() -> tuple[Cache, ModelDeploymentController]:
            cache = Cache()
            for watch in ModelDeploymentController.watches:
                cache.register(watch.kind, watch.index, watch.slim)
                items = [obj for path, obj in api.objects.items() if f"/{watch.kind.plural}/" in path]
                cache.replace(watch.kind, [cache.kept(watch.kind, obj) for obj in items], api.version)
            kube = Kube(cache, Writer(client, cache), Recorder(client, "tester", lambda: world.now), client)
            return cache, ModelDeploymentController(kube, *SETUP, poller=poller, now=lambda: world.now)

        world = World(api, *start(), made, start=start)
        profile = profile_body()
        profile["metadata"] |= {"generation": 1}
        world.put(TUNINGPROFILE, profile)
        yield world
    await server.close()
    beyond = beyond_its_rights(api.seen)
    assert not beyond, beyond
