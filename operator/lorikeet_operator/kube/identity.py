"""Who calls us: pods, by the tokens that the kubelet gives them for us."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import Unavailable
from lorikeet_operator.kube.kinds import Key, Kind

TOKEN_REVIEW: Final = Kind("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
TRUSTED_SECONDS: Final = 60.0
"""How long an answer of the API server holds: a pod that is gone may go on for as long."""
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"
_KNOWN: Final = 20_000
"""Answers that are kept at most."""
_ASKED: Final = 100
"""Questions to the API server that wait for an answer at most: anybody may send us a token."""


@dataclass(frozen=True)
class Caller:
    """A pod, as its token says."""

    pod: Key
    uid: str


class Callers:
    """Asks the API server who a token belongs to (TokenReview), once a minute for each."""

    def __init__(self, client: Client, audience: str, now: Callable[[], float] = time.monotonic) -> None:
        """Take tokens that were made for `audience` alone."""
        self._client = client
        self._audience = audience
        self._now = now
        self._known: dict[str, tuple[float, Caller]] = {}
        self._asked = 0

    async def who(self, token: str) -> Caller | None:
        """Return the pod that the token was given to; None if there is none. Raises ApiError; Unavailable also if too
        many ask at once.
        """
        # By its hash: what is in memory for long should open nothing.
        name = hashlib.sha256(token.encode()).hexdigest()
        known = self._known.get(name)
        if known is not None and known[0] > self._now():
            return known[1]
        caller = await self._ask(token)
        self._known.pop(name, None)
        if caller is not None:
            self._forget()
            self._known[name] = (self._now() + TRUSTED_SECONDS, caller)
        return caller

    async def _ask(self, token: str) -> Caller | None:
        if self._asked >= _ASKED:
            raise Unavailable(0, "Busy", f"{_ASKED} tokens are being looked at already")
        self._asked += 1
        try:
            body = {"metadata": {}, "spec": {"token": token, "audiences": [self._audience]}}
            answer = await self._client.create(TOKEN_REVIEW, body)
        finally:
            self._asked -= 1
        return _caller(answer.get("status") or {}, self._audience)

    def _forget(self) -> None:
        """Drop what has run out, which is in front, and what is too much."""
        while self._known:
            name = next(iter(self._known))
            if self._known[name][0] > self._now() and len(self._known) < _KNOWN:
                return
            del self._known[name]


def _caller(status: Mapping[str, Any], audience: str) -> Caller | None:
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    kind, _, account = str(user.get("username", "")).partition("serviceaccount:")
    names, uids = extra.get(_POD_NAME), extra.get(_POD_UID)
    # A server that knows no audiences answers without them: its yes is not to us.
    if not status.get("authenticated") or audience not in (status.get("audiences") or []):
        return None
    if kind != "system:" or not names or not uids:
        return None
    return Caller(Key(account.partition(":")[0], names[0]), uids[0])
