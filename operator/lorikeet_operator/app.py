"""The process: starts the parts, joins them, and stops them in order."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from kubernetes.aio.client.configuration import Configuration

from lorikeet_api.names import FIELD_MANAGER, PROGRESS_MANAGER
from lorikeet_api.progress import AUDIENCE
from lorikeet_operator import logs, metrics
from lorikeet_operator.finetune.job import ProgressEndpoint
from lorikeet_operator.finetune.reconcile import FineTuneController
from lorikeet_operator.kube import config, probes, watches
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.controller import Controller, Kube, Watch
from lorikeet_operator.kube.errors import ApiError
from lorikeet_operator.kube.events import Recorder
from lorikeet_operator.kube.identity import Callers
from lorikeet_operator.kube.kinds import Key, Kind, Object, key_of
from lorikeet_operator.kube.lease import Lease, LeaseLost, Timing
from lorikeet_operator.kube.queue import KeyedQueue
from lorikeet_operator.kube.relist import Relister
from lorikeet_operator.kube.serve import Certificate, serve
from lorikeet_operator.kube.throttle import TokenBucket
from lorikeet_operator.kube.writer import Writer
from lorikeet_operator.progress.board import Board
from lorikeet_operator.progress.endpoint import Endpoint
from lorikeet_operator.serving.reconcile import ModelDeploymentController
from lorikeet_operator.serving.setup import Installation
from lorikeet_operator.settings import Settings

_log = logging.getLogger(__name__)

_FLUSH_SECONDS = 3.0
"""How long the last progress may take to be written at a shutdown."""

Make: TypeAlias = Callable[[Kube, Settings, Certificate | None], Sequence[Controller]]
"""Makes the controllers of an operator; the certificate is that of the progress endpoint, if there is one."""


def controllers(kube: Kube, settings: Settings, certificate: Certificate | None) -> list[Controller]:
    """Return every controller that this operator runs."""

    def endpoint() -> ProgressEndpoint | None:
        return None if certificate is None else ProgressEndpoint(settings.progress_url, certificate.authorities)

    finetune = FineTuneController(
        kube,
        settings.trainer_image,
        agent_image=settings.agent_image,
        agent_memory=settings.agent_memory,
        endpoint=endpoint,
    )
    metrics.phase_gauge("lorikeet_finetunejobs", "FineTuneJobs by phase", finetune.phases)
    metrics.phase_gauge(
        "lorikeet_finetunejobs_quiet_seconds",
        "For how long the FineTuneJob of a phase that has told nothing new for longest has told nothing new",
        finetune.quiet,
    )
    if not settings.agent_image:
        return [finetune]
    installed = Installation(
        settings.agent_image, settings.vllm_image, settings.router_image, settings.network_policies
    )
    serving = ModelDeploymentController(kube, installed, settings.agent_memory)
    metrics.phase_gauge("lorikeet_modeldeployments", "ModelDeployments by phase", serving.phases)
    metrics.read_gauge(
        "lorikeet_modeldeployment_phase",
        "1 for the phase that a ModelDeployment is in",
        ["namespace", "modeldeployment", "phase"],
        serving.standing,
    )
    return [finetune, serving]


class Operator:
    """Controllers with their queues, over one cache."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        make: Make = controllers,
        lease: Lease | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self.settings = settings
        self.lease = lease
        self.cache = Cache()
        kube = Kube(self.cache, Writer(client, self.cache), Recorder(client, FIELD_MANAGER), client)
        self.controllers = list(make(kube, settings, certificate))
        self.watches = watches.merge([watch for each in self.controllers for watch in each.watches])
        self.queues = [self._queue(each) for each in self.controllers]
        for watch in self.watches:
            self._register(watch)
        self.cache.subscribe(self._enqueue)
        self.relister = Relister(client, self.cache, self.watches, settings.namespaces, settings.relist_interval)

    def _queue(self, controller: Controller) -> KeyedQueue:
        return KeyedQueue(
            controller.name,
            controller.reconcile,
            workers=self.settings.workers,
            timeout=self.settings.reconcile_timeout,
        )

    def _register(self, watch: Watch) -> None:
        kind = watch.kind
        self.cache.register(kind, watch.index, watch.slim)
        metrics.WATCH_AGE.labels(kind.resource).set_function(lambda: self.cache.watch_age(kind))
        metrics.RELIST_AGE.labels(kind.resource).set_function(lambda: self.cache.relist_age(kind))
        metrics.CACHED.labels(kind.resource).set_function(lambda: len(self.cache.all(kind)))

    def _enqueue(self, kind: Kind, obj: Object) -> None:
        for controller, queue in zip(self.controllers, self.queues, strict=True):
            if any(watch.kind == kind for watch in controller.watches):
                try:
                    keys = list(controller.keys_for(kind, obj))
                except Exception:  # noqa: BLE001  one odd object must not end the watch of all the others
                    _log.exception("%s does not know whom %s %s concerns", controller.name, kind, key_of(obj))
                    continue
                for key in keys:
                    queue.add(key)

    async def work(self) -> None:
        """Work for ever, once every kind is listed: before, a child that is not in the cache may well exist.

        Where replicas elect a leader, work while this one leads. Raises LeaseLost in a group when it no longer does.
        """
        await self.cache.wait_synced()
        _log.info("caches are synced")
        async with asyncio.TaskGroup() as group:
            if self.lease is not None:
                await self.lease.acquire()
                group.create_task(self.lease.hold(), name="lease")
                # What the last leader wrote just now may be on its way to the watches still.
                for watch in self.watches:
                    await self.relister.relist(watch.kind)
            metrics.LEADER.set(1)
            for queue in self.queues:
                queue.start()
            await asyncio.Event().wait()

    def unhealthy(self) -> list[str]:
        """Return why the process should be restarted."""
        return probes.unhealthy(self.cache, self.queues, self.settings.relist_interval)

    async def drain(self) -> None:
        """Let running reconciles end, within the grace period all together; at once if another replica may lead."""
        metrics.LEADER.set(0)
        grace = self.settings.shutdown_grace if self.lease is None or self.lease.leads else 0.0
        ended = await asyncio.gather(*(queue.stop(grace) for queue in self.queues))
        if not all(ended):
            _log.warning("reconciles were cancelled: they did not end within %.0f s", grace)
        _log.info("this replica works no more")


async def run(settings: Settings, make: Make = controllers) -> None:
    """Run until SIGTERM or SIGINT; raise if the operator cannot go on."""
    configuration = await config.load()
    bucket = TokenBucket(settings.qps, settings.burst)
    async with AsyncExitStack() as stack:
        lease = None
        if settings.lease_namespace:
            timing = Timing(settings.lease_duration)
            # With a client whose requests wait for no other.
            voter = Client(configuration, FIELD_MANAGER, TokenBucket(10, 10), timing.renew_deadline)
            await stack.enter_async_context(voter)
            key = Key(settings.lease_namespace, settings.lease_name)
            lease = Lease(voter, key, settings.identity or socket.gethostname(), timing)
        may_write = (lambda: True) if lease is None else (lambda: lease.leads)
        client = Client(configuration, FIELD_MANAGER, bucket, settings.request_timeout, may_write)
        await stack.enter_async_context(client)
        certificate = Certificate(Path(settings.progress_tls)) if settings.progress_url else None
        operator = Operator(client, settings, make, lease, certificate)
        if certificate is not None:
            await stack.enter_async_context(_progress(operator.cache, certificate, configuration, settings))
        server = await probes.serve(
            settings.http_host, settings.http_port, operator.unhealthy, lambda: probes.unready(operator.cache)
        )
        try:
            await _work(operator, configuration)
        finally:
            if lease is not None:
                # Before anything else ends: the next leader waits for it.
                await lease.release()
            await server.cleanup()


@asynccontextmanager
async def _progress(
    cache: Cache, certificate: Certificate, configuration: Configuration, settings: Settings
) -> AsyncIterator[None]:
    """Take what trainers tell. With a client of its own: a replica that does not lead writes progress, too."""
    metrics.CERTIFICATE_EXPIRES.set_function(lambda: certificate.expires.timestamp())
    async with AsyncExitStack() as stack:
        # One for each: whoever sends us tokens holds up no news of those who may.
        writes, reviews = [
            await stack.enter_async_context(
                Client(configuration, PROGRESS_MANAGER, TokenBucket(50, 100), settings.request_timeout)
            )
            for _ in range(2)
        ]
        board = Board(cache, Writer(writes, cache))
        endpoint = Endpoint(cache, Callers(reviews, AUDIENCE), board, lambda: datetime.now(UTC))
        server = await serve(endpoint.app(), settings.http_host, settings.progress_port, certificate.context)
        tasks = [asyncio.create_task(each) for each in (board.run(), certificate.keep())]
        try:
            yield
        finally:
            await server.cleanup()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_SECONDS):
                    await board.flush()


async def _work(operator: Operator, configuration: Configuration) -> None:
    stopping = asyncio.Event()
    stop_watches = asyncio.Event()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    take_signals()
    parts = [
        asyncio.create_task(stopping.wait(), name="signal"),
        asyncio.create_task(operator.relister.run(), name="lists"),
        asyncio.create_task(operator.work(), name="work"),
    ]
    streams = asyncio.create_task(_stream(operator, configuration, stop_watches, take_signals), name="watches")
    try:
        done, _ = await asyncio.wait([*parts, streams], return_when=asyncio.FIRST_COMPLETED)
        # Reconciles end before the streams do, on a cache that is still fed.
        await operator.drain()
    finally:
        for part in parts:
            part.cancel()
        stop_watches.set()
        ends = await asyncio.gather(*parts, streams, return_exceptions=True)
    errors = [end for end in ends if isinstance(end, Exception)]
    if stopping.is_set():
        for error in errors:
            _log.warning("while stopping: %s", _cause(error))
    elif errors:
        raise errors[0]
    else:
        raise RuntimeError(f"{', '.join(part.get_name() for part in done)} ended without a reason")


async def _stream(
    operator: Operator, configuration: Configuration, stop: asyncio.Event, on_started: Callable[[], None]
) -> None:
    """Watch once the first lists are in: they fail in clear words where kopf would go on trying."""
    waits = [asyncio.create_task(operator.cache.wait_synced()), asyncio.create_task(stop.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if stop.is_set():
        return
    await watches.run(
        operator.watches,
        operator.settings.namespaces,
        operator.cache,
        configuration,
        stop=stop,
        on_listing=operator.relister.hint,
        on_started=on_started,
    )


def main() -> int:
    """Run the operator: `lorikeet-operator`. Return 0 after SIGTERM, 1 if it could not go on."""
    settings = Settings.load(sys.argv[1:])
    logs.set_up(settings.log_level)
    metrics.BUILD.info({"version": version("lorikeet")})
    try:
        asyncio.run(run(settings))
    except Exception as error:  # noqa: BLE001  whatever it was, the kubelet starts us again
        cause = _cause(error)
        # What the API server says needs no traceback; anything else does.
        trace = None if isinstance(cause, ApiError | LeaseLost) else error
        _log.critical("the operator ends, to be started again: %s", cause, exc_info=trace)
        return 1
    _log.info("the operator has ended as asked")
    return 0


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong first, out of the groups that task groups wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
