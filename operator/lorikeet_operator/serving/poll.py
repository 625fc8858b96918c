"""Asks the agents of engines and routers how they stand: over HTTP, all at once, and no answer is an answer."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import aiohttp
from pydantic import ValidationError

from lorikeet_api.base import Model
from lorikeet_api.serving import AGENT_PORT, AgentState, RouterState
from lorikeet_operator.finetune.patience import age
from lorikeet_operator.kube.kinds import Object, uid_of
from lorikeet_operator.serving.rollout import EngineReplica, RouterReplica
from lorikeet_operator.serving.trouble import is_going, is_ready

SECONDS: Final = 2.0
"""How long an answer may take."""
LIMIT: Final = 1 << 20
"""Bytes of the longest answer: whoever may make pods in a namespace may label them as ours."""
FORGOTTEN: Final = timedelta(minutes=10)
"""After which one that nobody asks any more is gone."""
S = TypeVar("S", bound=Model)


class Poller:
    """Asks pods by their address."""

    def __init__(self, port: int = AGENT_PORT, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._port = port
        self._now = now
        self._silent: dict[str, tuple[datetime, datetime]] = {}
        """By uid of a ready pod that does not answer: since when, and when it was asked last."""

    async def engines(self, pods: Sequence[Object]) -> list[EngineReplica]:
        """Return the engine's pods that are to stay, with what their agents say."""
        kept = [pod for pod in pods if not is_going(pod)]
        states = await self._ask(kept, AgentState)
        return [
            EngineReplica(pod["metadata"]["name"], is_ready(pod), said, self._silence(pod, said))
            for pod, said in zip(kept, states, strict=True)
        ]

    async def routers(self, pods: Sequence[Object]) -> list[RouterReplica]:
        """Return the router's pods, those that are going, too: they may have requests on the way.

        These are not ready, whatever their probes say: their kubelets bring them no news any more. Left out is one that
        has never run, and one that should be gone by now: its node may be lost.
        """
        alive = [pod for pod in pods if self._may_lead(pod)]
        states = await self._ask(alive, RouterState)
        return [
            RouterReplica(pod["metadata"]["name"], is_ready(pod) and not is_going(pod), said, self._silence(pod, said))
            for pod, said in zip(alive, states, strict=True)
        ]

    def _silence(self, pod: Object, said: Model | None) -> float:
        """Return for how many seconds a ready pod that is to stay has not answered, this time included."""
        now, uid = self._now(), uid_of(pod)
        if said is not None or is_going(pod) or not is_ready(pod):
            self._silent.pop(uid, None)
            return 0.0
        self._silent = {each: times for each, times in self._silent.items() if now - times[1] < FORGOTTEN}
        since, _ = self._silent.get(uid, (now, now))
        self._silent[uid] = (since, now)
        return (now - since).total_seconds()

    def _may_lead(self, pod: Object) -> bool:
        status, gone_by = pod.get("status", {}), pod["metadata"].get("deletionTimestamp")
        late = gone_by is not None and age(gone_by, self._now()) > 0
        return bool(status.get("podIP")) and status.get("phase") not in ("Succeeded", "Failed") and not late

    async def _ask(self, pods: Sequence[Object], model: type[S]) -> list[S | None]:
        # Agents are in pods: no proxy is between. However many there are, none waits for another.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=SECONDS),
            auto_decompress=False,
            trust_env=False,
        ) as session:
            return await asyncio.gather(*(self._ask_one(session, pod, model) for pod in pods))

    async def _ask_one(self, session: aiohttp.ClientSession, pod: Object, model: type[S]) -> S | None:
        address = pod.get("status", {}).get("podIP")
        if not address:
            return None
        host = f"[{address}]" if ":" in address else address
        try:
            async with session.get(f"http://{host}:{self._port}/state", allow_redirects=False) as answer:
                return model.model_validate_json(await _read(answer)) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
            return None


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body, or as much of it as nobody has to say."""
    body = b""
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > LIMIT:
            break
    return body
