"""A Prometheus that scrapes the cluster as the chart's monitors say, and the queries of the chart's dashboards."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from e2e.cluster import components
from e2e.deploy import CHART, NAMESPACE, RELEASE
from e2e.monitors import Role, endpoint_targets, pod_targets, scrape_configs
from e2e.target import Target, TargetError

RULES = CHART / "files" / "rules.yaml"
DASHBOARDS = CHART / "files" / "dashboards"
LOCAL = "127.0.0.1"
OURS = "app.kubernetes.io/part-of=lorikeet"


@dataclass(frozen=True)
class Query:
    """One query of a dashboard."""

    title: str
    """Of the dashboard, and of the panel."""
    expr: str
    labels: tuple[str, ...]
    """Those that its legend names: each of its series has them."""


def dashboard_queries(variables: Mapping[str, str]) -> Iterator[Query]:
    """Yield each query of both dashboards with its variables filled in.

    Args:
        variables: `namespace`, `deployment`, `model`, `operator` (the operator's namespace), and `__rate_interval`.
    """
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text(encoding="utf-8"))
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                expr = re.sub(r"\$(\w+)", lambda found: variables[found[1]], target["expr"])
                labels = tuple(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                yield Query(f"{board['title']}: {panel['title']}", expr, labels)


@dataclass(frozen=True)
class Series:
    """One series, as it is now."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def query(self, expr: str) -> list[Series]:
        """Return the series that an expression has now.

        Raises:
            TargetError: if Prometheus refuses it.
        """
        answer = self._client.post("/api/v1/query", data={"query": expr}).json()
        if answer["status"] != "success":
            raise TargetError(f"{expr}: {answer['error']}")
        return [Series(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]

    def ready(self) -> bool:
        """Return whether it answers queries."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def prometheus(target: Target, folder: Path, interval: str = "5s") -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes the operator and all that serves, and records and alerts by the chart's rules.

    It reaches pods through the API server, and so those of any cluster that kubectl reaches; `folder` is for its data.
    """
    with _proxy(target) as api, _discovery(api) as url:
        roles: tuple[Role, ...] = ("pod", "endpoints")
        asks = {role: {"http_sd_configs": [{"url": f"{url}/{role}", "refresh_interval": interval}]} for role in roles}
        scrapes = [_through(each, api) for each in scrape_configs(monitors(target, interval), asks)]
        with running(configuration(scrapes, interval), folder) as started:
            yield started


def monitors(target: Target, interval: str) -> list[dict[str, Any]]:
    """Return the chart's ServiceMonitor and PodMonitors; only a cluster with the Prometheus operator takes them."""
    names = ("serviceMonitor", "podMonitor")
    text = target.helm(
        *("template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", components.KUBERNETES_VERSION),
        *(word for name in names for word in ("--set", f"{name}.enabled=true,{name}.interval={interval}")),
        *(word for name in names for word in ("--show-only", f"templates/{name.lower()}.yaml")),
    )
    return [each for each in YAML(typ="safe", pure=True).load_all(text) if each]


@contextmanager
def _discovery(api: str) -> Iterator[str]:
    """Answer by HTTP what there is to scrape, by role; yield the URL. Prometheus asks again and again."""
    client = httpx.Client(base_url=f"http://{api}/api/v1", params={"labelSelector": OURS}, trust_env=False, timeout=10)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                found = list(_targets(client, self.path.lstrip("/")))
            except httpx.HTTPError as error:
                self.send_error(503, explain=str(error))  # Prometheus goes on with what it knows
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            with suppress(ConnectionError):  # it ends while it asks
                self.wfile.write(json.dumps(found).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((LOCAL, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{LOCAL}:{server.server_port}"
        finally:
            server.shutdown()


def _targets(client: httpx.Client, role: str) -> Iterator[dict[str, Any]]:
    if role == "pod":
        return pod_targets(_items(client, "/pods"))
    return endpoint_targets(_items(client, f"/namespaces/{NAMESPACE}/endpoints"))


def _items(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get(path).raise_for_status().json()["items"]
    return items


def _through(config: Mapping[str, Any], api: str) -> dict[str, Any]:
    """Return a scrape config whose targets are reached through the API server at `api` (host and port)."""
    where = ["__meta_kubernetes_namespace", "__meta_kubernetes_pod_name", "__address__", "__metrics_path__"]
    path = {
        "source_labels": where,
        "regex": r"(.+);(.+);.+:(\d+);(.+)",
        "target_label": "__metrics_path__",
        "replacement": "/api/v1/namespaces/$1/pods/$2:$3/proxy$4",
    }
    instance = {"source_labels": ["__address__"], "target_label": "instance"}
    address = {"target_label": "__address__", "replacement": api}
    return {**config, "relabel_configs": [*config["relabel_configs"], instance, path, address]}


def configuration(scrapes: Sequence[Mapping[str, Any]], interval: str) -> dict[str, Any]:
    """Return Prometheus' configuration, with the chart's rules."""
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(RULES)],
        "scrape_configs": list(scrapes),
    }


@contextmanager
def running(config: Mapping[str, Any], folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with a configuration; its data, configuration and log are in `folder`.

    Raises:
        TargetError: if there is none on this machine, or if it does not start.
    """
    if shutil.which("prometheus") is None:
        raise TargetError("prometheus is not on the PATH: scripts/bootstrap.sh cluster installs it")
    folder.mkdir(parents=True, exist_ok=True)
    file, log = folder / "prometheus.json", folder / "prometheus.log"
    file.write_text(json.dumps(config), encoding="utf-8")
    port = _free_port()
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={LOCAL}:{port}", "--log.level=warn"]
    with log.open("w") as out, _process(command, stdout=out, stderr=out) as process:
        started = Prometheus(f"http://{LOCAL}:{port}")
        end = time.monotonic() + 60
        while not started.ready():
            if process.poll() is not None or time.monotonic() > end:
                raise TargetError(f"Prometheus does not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield started


@contextmanager
def _proxy(target: Target) -> Iterator[str]:
    """Run `kubectl proxy`, which knows every way to log in; yield the host and port at which it is the API server."""
    command = ["kubectl", "--context", target.context, "proxy", f"--address={LOCAL}", "--port=0"]
    with _process(command, env=target.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"Starting to serve on (\S+)", said)
        if found is None:
            raise TargetError(f"{' '.join(command)}: {said or 'it has ended'}")
        yield found[1]


@contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        port: int = probe.getsockname()[1]
        return port
