"""Keeps an engine's other doors shut: ASGI middleware that runs inside the engine (vLLM's `--middleware`).

vLLM serves its admin endpoints on the port of its completions, and its API key guards but a few of them. Whoever is not
on the pod's own loopback gets what is in ALLOWED, and 403 for all else. One file, of the standard library alone: it is
mounted into images that know nothing of us.
"""

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ALLOWED: Final = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/health"),  # the kubelet's probes, which come from the node
    }
)
"""Methods and paths for everybody."""
FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
"""With such a header the server may take a client's word for where it is."""
_REFUSAL: Final = json.dumps(
    {"error": {"message": "this is not served here", "type": "forbidden", "param": None, "code": "forbidden"}}
).encode()


class Guard:
    """The middleware."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or is_allowed(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})


def is_allowed(scope: Scope) -> bool:
    """Return whether a request may reach the engine."""
    if scope["type"] == "http" and (scope["method"], scope["path"]) in ALLOWED:
        return True
    client = scope.get("client")
    forwarded = any(name.lower() in FORWARDED for name, _ in scope.get("headers") or ())
    return client is not None and not forwarded and _is_loopback(client[0])


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a socket's path, or a name: nobody of ours
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
