"""Brings one ModelDeployment a step further: reads the cache, asks the agents, decides, writes. Any number of times."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from lorikeet_api import names
from lorikeet_api.modeldeployment import ModelDeployment, ModelDeploymentStatus
from lorikeet_api.request import Refused
from lorikeet_api.serving import (
    LOOKED_UP_AT_ONCE,
    ROUTER_WANTED,
    WANTED,
    AdapterRevision,
    Found,
    ResolveContract,
    ResolveRecord,
    Unresolved,
    WantedAdapters,
    fingerprint,
)
from lorikeet_api.training import ModelSource
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_engines import ENGINES
from lorikeet_operator import watched
from lorikeet_operator.finding import Finding
from lorikeet_operator.finetune.evidence import Ask, Evidence, unexplained
from lorikeet_operator.finetune.observe import CHECKING, UNPREPARED, checking, newest, observe
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT, TUNINGPROFILE
from lorikeet_operator.kube.cache import by_label
from lorikeet_operator.kube.controller import Kube, Watch
from lorikeet_operator.kube.errors import Conflict, Forbidden, HeldByOther, Invalid, NotFound
from lorikeet_operator.kube.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    JOB,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Key,
    Kind,
    Object,
    controller_uid,
    is_deleted,
    key_of,
    label_of,
    uid_of,
)
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.times import timestamp
from lorikeet_operator.serving import engine_pods, router_pods
from lorikeet_operator.serving import status as story
from lorikeet_operator.serving.facts import are_heard, gather, is_moving
from lorikeet_operator.serving.lookup import lookup_job, said
from lorikeet_operator.serving.pace import STARTING, Pace
from lorikeet_operator.serving.plan import Plan, origin, plan
from lorikeet_operator.serving.poll import Poller
from lorikeet_operator.serving.rollout import EngineReplica, RouterReplica, Told, lead, to_hold, to_start_with
from lorikeet_operator.serving.setup import Installation, Setup, settle
from lorikeet_operator.serving.trouble import is_being_prepared, is_going, trouble, unprepared

QUIET: Final = 30.0
"""Seconds between two looks while nothing is on its way."""
REFUSED_AGAIN: Final = 30.0
SAID_AGAIN: Final = timedelta(minutes=4)
"""A node that cannot prepare a pod tries again, and says so again, at least every two minutes."""
HURRY_AGAIN: Final = 5.0
"""Seconds after which a kubelet that has brought nothing is told again."""
APPLIED: Final = {kind.kind: kind for kind in (CONFIG_MAP, SERVICE, DEPLOYMENT, DISRUPTION_BUDGET, NETWORK_POLICY)}
"""The kinds that a ModelDeployment is made of."""
_CHILD: Final = names.LABEL_MODELDEPLOYMENT


class ModelDeploymentController:
    """The controller of ModelDeployments."""

    name = "modeldeployment"
    watches = (
        watched.MODELDEPLOYMENTS,
        watched.FINETUNEJOBS,
        watched.TUNINGPROFILES,
        watched.JOBS,
        watched.PODS,
        *(Watch(kind, label_selector=_CHILD, index=by_label(_CHILD)) for kind in APPLIED.values()),
    )

    def __init__(
        self,
        kube: Kube,
        installed: Installation,
        agent_memory: str,
        poller: Poller | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube = kube
        self._installed = installed
        self._agent_memory = agent_memory
        self._poller = poller or Poller()
        self._now = now
        self._evidence = Evidence(kube, now)
        self._pace = Pace(now)

    def keys_for(self, kind: Kind, obj: Object) -> Iterable[Key]:
        """Return the ModelDeployments that a change concerns: itself, the owner, or those that refer to it."""
        if kind == MODELDEPLOYMENT:
            return [key_of(obj)]
        if kind == TUNINGPROFILE:
            name = obj["metadata"]["name"]
            return [key_of(each) for each in self._kube.cache.all(MODELDEPLOYMENT) if _profile_name(each) == name]
        if kind == FINETUNEJOB:
            return [key_of(each) for each in self._kube.cache.indexed(MODELDEPLOYMENT, *key_of(obj))]
        owner = label_of(obj, names.LABEL_MODELDEPLOYMENT)
        return [Key(key_of(obj).namespace, owner)] if owner else []

    def phases(self) -> Mapping[str, int]:
        """Return the number of ModelDeployments by phase, for the metrics."""
        return Counter(_phase(body) for body in self._kube.cache.all(MODELDEPLOYMENT))

    def standing(self) -> Mapping[tuple[str, ...], float]:
        """Return 1 for namespace, name and phase of each ModelDeployment, for the metrics."""
        bodies = self._kube.cache.all(MODELDEPLOYMENT)
        return {(*key_of(body), _phase(body)): 1 for body in bodies}

    async def reconcile(self, key: Key) -> Requeue | None:
        """Bring the ModelDeployment `key` a step further."""
        body = self._kube.cache.get(MODELDEPLOYMENT, key)
        if body is None or is_deleted(body):
            self._pace.forget(key)
            return None  # what it is made of goes with it, by owner references
        try:
            deployment = ModelDeployment.parse(body)
        except ValidationError as error:
            await self._unreadable(body, error)
            return None
        try:
            setup = self._setup(deployment)
            return await self._serve(body, deployment, setup)
        except Refused as refused:
            return await self._refused(body, deployment, Finding(True, refused.reason, refused.message))
        except HeldByOther as error:
            message = f"{error}: delete or rename it, or create the ModelDeployment under another name"
            return await self._refused(body, deployment, Finding(True, "NameTaken", message))
        except Invalid as error:
            message = (
                f"Kubernetes refuses what is to be made: {error.message}; correct the request or its TuningProfile"
            )
            return await self._refused(body, deployment, Finding(True, "InvalidSpec", message))
        except Forbidden as error:
            message = f"Kubernetes forbids what is to be made: {error.message}; it is tried again"
            return await self._refused(body, deployment, Finding(True, "Forbidden", message))

    def _setup(self, deployment: ModelDeployment) -> Setup:
        name = deployment.spec.profile_ref.name
        held = self._kube.cache.get(TUNINGPROFILE, Key("", name))
        if held is None:
            raise Refused("ProfileNotFound", f"there is no TuningProfile {name!r}: create it, or name another one")
        try:
            profile = TuningProfile.parse(held)
            return settle(deployment, profile, self._installed)
        except ValidationError as error:
            raise Refused("InvalidSpec", f"TuningProfile {name!r} does not fit: {_sentence(error)}") from error

    async def _serve(self, body: Object, deployment: ModelDeployment, setup: Setup) -> Requeue:
        key = key_of(body)
        found: dict[str, Found] = {}
        current = self._plan(deployment, found)
        pin = deployment.status.model_pin
        if pin is None or current.unresolved:
            wrong, found_pin = await self._look_up(deployment, setup, current, found)
            pin = pin or found_pin
            current = self._plan(deployment, found)
            if pin is None:
                finding = wrong or Finding(False, "Resolving", "the base model is being looked up")
                await self._write(body, story.refused(deployment, finding, self._time()))
                return Requeue(REFUSED_AGAIN)
        pods = list(self._kube.cache.indexed(POD, key.namespace, watched.of_deployment(key.name)))
        engines = [pod for pod in pods if label_of(pod, names.LABEL_COMPONENT) == names.ENGINE]
        routers = [pod for pod in pods if label_of(pod, names.LABEL_COMPONENT) == names.ROUTER]
        told = self._told(deployment)
        replicas, router_replicas = await asyncio.gather(self._poller.engines(engines), self._poller.routers(routers))

        led = lead(deployment, names.served_base(pin), current.targets, replicas, told)
        routed = router_pods.wanted_bytes(deployment, led)
        to_do = router_pods.wanted_fingerprint(routed)
        wanted = to_hold(deployment, led, current.targets, told, router_replicas, to_do)
        hot = ENGINES[deployment.spec.engine.name].hot_loading(deployment.spec.engine)
        # What is superseded may be what keeps a pod from its start.
        if not hot and not any(trouble(pod, surge=False) for pod in engines if not is_going(pod)):
            wanted = to_start_with(wanted, told)
        # Routers first: where their Service cannot be had, no engine takes a GPU.
        made = [
            *router_pods.router_objects(deployment, setup, routed),
            *engine_pods.engine_objects(deployment, setup, pin, wanted),
        ]
        live = {(each["kind"], key_of(each).name): await self._apply(each) for each in made}
        await self._hurry(engines, wanted.fingerprint, replicas)
        await self._hurry(routers, to_do, router_replicas)

        facts = gather(
            deployment,
            current,
            led,
            {
                names.ENGINE: live["Deployment", names.engine(key.name)],
                names.ROUTER: live["Deployment", names.router(key.name)],
            },
            {names.ENGINE: engines, names.ROUTER: routers},
            replicas,
            router_replicas,
            to_do,
            await self._unprepared(pods),
            url=router_pods.url(deployment),
            pin=pin,
        )
        status = story.told(deployment, facts, self._time())
        await self._write(body, status)
        if is_moving(facts, [each.served for each in wanted.adapters] if hot else []):
            heard = [each.state for each in replicas], [each.state for each in router_replicas]
            return Requeue(self._pace.next(key, (to_do, wanted, heard)))
        self._pace.forget(key)
        return Requeue(QUIET if status.phase == "Available" and are_heard(facts) else STARTING)

    def _plan(self, deployment: ModelDeployment, found: Mapping[str, Found]) -> Plan:
        jobs = {
            name: job
            for name in _jobs_of_spec(deployment)
            if (job := self._kube.cache.get(FINETUNEJOB, Key(deployment.metadata.namespace or "", name))) is not None
        }
        return plan(deployment, jobs, found)

    async def _look_up(
        self, deployment: ModelDeployment, setup: Setup, current: Plan, found: dict[str, Found]
    ) -> tuple[Finding | None, str | None]:
        """Have pods find out what URIs mean, for `found`; return what is wrong with the model, and its pin."""
        origins = {adapter.name: origin(adapter.from_) for adapter in deployment.spec.adapters}
        model = None if deployment.status.model_pin else deployment.spec.model
        wrong, pin = None, None
        for ask in _questions(model, current.unresolved, setup):
            answer = await self._answer(deployment, setup, ask)
            if answer is None:
                continue
            if ask.model is not None and not answer.pin:
                wrong = Finding(not answer.retryable, answer.reason, answer.message)
            pin = pin or answer.pin or None
            # What keeps a pod from its work keeps it from each of its adapters.
            why = Found(name="", reason=answer.reason, message=answer.message[:320])
            answers = answer.adapters or [why.model_copy(update={"name": each.name}) for each in ask.adapters]
            found |= {origins[each.name]: each for each in answers if each.name in origins}
        return wrong, pin

    async def _answer(self, deployment: ModelDeployment, setup: Setup, ask: ResolveContract) -> ResolveRecord | None:
        """Return what a pod has found out, or what keeps it from that. None: it is at work."""
        job = await self._kube.writer.create(JOB, lookup_job(deployment, setup, ask, self._agent_memory))
        key = key_of(job)
        all_pods = self._kube.cache.indexed(POD, key.namespace, watched.of_deployment(deployment.metadata.name))
        pods = [pod for pod in all_pods if controller_uid(pod) == uid_of(job)]
        answer = said(pods)
        if answer is not None:
            return answer
        finding = checking(observe(job, pods, await self._evidence.told(unexplained(job, pods), job)))
        if finding == CHECKING:
            return None
        return ResolveRecord(reason=finding.reason, message=finding.message[:600], retryable=True)

    def _told(self, deployment: ModelDeployment) -> Told:
        """Return what engines and routers have been told so far.

        Revisions that requests are led to are among what is held, whatever has become of the ConfigMap.
        """
        led = {variant.served_name for route in deployment.status.routes for variant in route.variants}
        known = [
            AdapterRevision(served=names.served_adapter(each.adapter, each.sha256), uri=each.uri, sha256=each.sha256)
            for each in deployment.status.history
        ]
        namespace, name = deployment.metadata.namespace or "", deployment.metadata.name
        told = self._file(Key(namespace, names.engine(name)), WANTED)
        routed = self._file(Key(namespace, names.router(name)), ROUTER_WANTED)
        try:
            wanted = WantedAdapters.model_validate_json(told or "{}")
        except ValidationError:
            wanted = WantedAdapters()
        held = [*(each for each in known if each.served in led), *wanted.adapters]
        return Told(held, wanted.fingerprint, fingerprint(routed.encode()))

    def _file(self, key: Key, path: str) -> str:
        """Return what a ConfigMap has for the file that is at `path` in pods; empty without it."""
        held = self._kube.cache.get(CONFIG_MAP, key) or {}
        return str((held.get("data") or {}).get(path.rpartition("/")[2], ""))

    async def _apply(self, desired: Object) -> Object:
        return await self._kube.writer.apply(APPLIED[desired["kind"]], desired)

    async def _unprepared(self, pods: Sequence[Object]) -> Finding | None:
        """Return what a node says that prepares a pod in vain: the newest one, which tells of the others, too."""
        pod = newest([each for each in pods if is_being_prepared(each)])
        if pod is None:
            return None
        said = await self._evidence.told(Ask(pod, UNPREPARED, timestamp(self._now() - SAID_AGAIN)), pod)
        return None if said is None else unprepared(pod, said)

    async def _hurry(
        self, pods: Sequence[Object], fingerprint: str, replicas: Sequence[EngineReplica | RouterReplica]
    ) -> None:
        """Have kubelets bring a changed ConfigMap to its pods now, and not within a minute.

        A kubelet may hear of the pod's change before it hears of the ConfigMap's. So one whose pod goes on reading the
        old content is told again.
        """
        read = {each.name: each.state.wanted for each in replicas if each.state is not None}
        mark = f"{fingerprint}.{int(self._now().timestamp() // HURRY_AGAIN)}"
        for pod in pods:
            marked = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_WANTED, "")
            there = read.get(pod["metadata"]["name"], fingerprint) == fingerprint
            if is_going(pod) or (marked.startswith(fingerprint) and there):
                continue
            try:
                patch = {"metadata": {"annotations": {names.ANNOTATION_WANTED: mark}}}
                await self._kube.writer.patch(POD, pod, patch, "status")
            except (Conflict, NotFound):
                continue  # it is gone, or another one by now

    async def _refused(self, body: Object, deployment: ModelDeployment, finding: Finding) -> Requeue:
        await self._write(body, story.refused(deployment, finding, self._time()))
        return Requeue(REFUSED_AGAIN)

    async def _unreadable(self, body: Object, error: ValidationError) -> None:
        """Report a resource that the API server let in and this version cannot read; the rest of its status stays."""
        message = f"this version of Lorikeet cannot read the ModelDeployment: {_sentence(error)}"
        await self._kube.writer.write_status(MODELDEPLOYMENT, body, {**(body.get("status") or {}), "message": message})

    async def _write(self, body: Object, status: ModelDeploymentStatus) -> Object:
        """Write the status where it differs, and tell what is new in it as Events."""
        before = ModelDeployment.parse(body).status
        written = await self._kube.writer.write_status(MODELDEPLOYMENT, body, status.to_wire())
        if written is not body:
            known = {each.type: (each.status, each.reason) for each in before.conditions}
            for each in status.conditions:
                if known.get(each.type) != (each.status, each.reason) and each.reason not in story.WAITING:
                    bad = (each.status == "True") == (each.type == "Degraded")
                    if each.type != "Degraded" or bad:
                        await self._kube.recorder.event(body, "Warning" if bad else "Normal", each.reason, each.message)
        return written

    def _time(self) -> str:
        return timestamp(self._now())


def _phase(body: Object) -> str:
    return str((body.get("status") or {}).get("phase") or "Pending")


def _questions(model: ModelSource | None, unresolved: Sequence[Unresolved], setup: Setup) -> list[ResolveContract]:
    """Return what pods are to find out, each as much as its record has room for."""
    parts = [unresolved[at : at + LOOKED_UP_AT_ONCE] for at in range(0, len(unresolved) or 1, LOOKED_UP_AT_ONCE)]
    return [
        ResolveContract(model=None if number else model, adapters=list(part), storage=setup.storage)
        for number, part in enumerate(parts)
    ]


def _jobs_of_spec(deployment: ModelDeployment) -> list[str]:
    references = (adapter.from_.fine_tune_job_ref for adapter in deployment.spec.adapters)
    return [reference.name for reference in references if reference is not None]


def _profile_name(body: Object) -> str:
    reference = body.get("spec", {}).get("profileRef") or {}
    return str(reference.get("name") or names.DEFAULT_PROFILE)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
