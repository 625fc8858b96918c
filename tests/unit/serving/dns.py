"""A name server that knows one name: the engines' headless Service, as the cluster's DNS answers for it."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

NAME = "engines.test"
_A, _IN = b"\0\1", b"\0\1"


def answer_to(question: bytes, addresses: Sequence[str]) -> bytes:
    """Return the answer to a question for the name (RFC 1035, 4.1)."""
    end = question.index(b"\0", 12) + 5
    found = addresses if question[end - 4 : end - 2] == _A else []
    records = [b"\xc0\x0c" + _A + _IN + bytes(4) + b"\0\4" + socket.inet_aton(each) for each in found]
    counts = b"".join(count.to_bytes(2, "big") for count in (1, len(records), 0, 0))
    return question[:2] + b"\x81\x80" + counts + question[12:end] + b"".join(records)


@contextmanager
def name_server(addresses: Sequence[str]) -> Iterator[int]:
    """Serve the addresses, those that the sequence has when it is asked; yield the port on loopback."""
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as listening:
        listening.setblocking(False)
        listening.bind(("127.0.0.1", 0))

        def on_question() -> None:
            question, asker = listening.recvfrom(4096)
            listening.sendto(answer_to(question, addresses), asker)

        loop.add_reader(listening, on_question)
        try:
            yield listening.getsockname()[1]
        finally:
            loop.remove_reader(listening)


def resolver(port: int) -> dict[str, Any]:
    """Return what a bootstrap says of a name server."""
    configuration = {
        "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": port}}],
    }
    return {"typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": configuration}}
