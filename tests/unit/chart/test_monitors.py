"""What Prometheus makes of the chart's monitors: the right pods, each endpoint once, and labels as the rules ask."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from e2e.monitors import Role, endpoint_targets, pod_targets, scrape_configs
from e2e.prometheus import Prometheus, configuration, running
from lorikeet_api.serving import WantedAdapters
from lorikeet_operator.serving.engine_pods import engine_objects
from lorikeet_operator.serving.router_pods import router_objects
from lorikeet_operator.serving.setup import Installation, settle
from tests.resources import deployment, profile
from tests.unit.chart.helm import NAMESPACE, objects, of_kind

MONITORS: dict[str, Any] = {
    "serviceMonitor": {"enabled": True, "interval": "1s"},
    "podMonitor": {"enabled": True, "interval": "1s"},
}
TOLD = 'told{path="%s", namespace="told", modeldeployment="told"} 1\n'

Labels = dict[str, str]


def monitors(**values: Any) -> list[dict[str, Any]]:
    return of_kind(objects({**MONITORS, **values}), "ServiceMonitor", "PodMonitor")


def pod_of(made: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return a pod of the Deployment among these, as it runs."""
    (found,) = of_kind(made, "Deployment")
    template = found["spec"]["template"]
    metadata = {**template["metadata"], "name": name, "namespace": found["metadata"]["namespace"]}
    return {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Running", "podIP": "10.0.0.1"}}


def served_pods() -> list[dict[str, Any]]:
    """Return an engine and a router of the ModelDeployment `assistant`."""
    asked = deployment()
    setup = settle(asked, profile(), Installation("agent:1", "vllm:1", "envoy:1"))
    engines, routers = engine_objects(asked, setup, "0" * 64, WantedAdapters()), router_objects(asked, setup, b"{}")
    return [pod_of(engines, "engine-0"), pod_of(routers, "router-0")]


def endpoints_of_the_operator() -> list[dict[str, Any]]:
    """Return the Endpoints of the chart's Services."""
    target = {"kind": "Pod", "name": "operator-0"}
    return [
        {
            "metadata": service["metadata"],
            "subsets": [{"addresses": [{"ip": "10.0.0.2", "targetRef": target}], "ports": service["spec"]["ports"]}],
        }
        for service in of_kind(objects(), "Service")
    ]


class Exporter(BaseHTTPRequestHandler):
    """Tells the path that it is asked for, and labels that are not for it to tell."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write((TOLD % self.path).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def scraped(folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that finds all these pods by the chart's monitors; each port is an address of its own."""
    server = ThreadingHTTPServer(("0.0.0.0", 0), Exporter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    numbers = itertools.count(1)
    found: dict[Role, list[dict[str, Any]]] = {
        "pod": list(pod_targets([*served_pods(), pod_of(objects(), "operator-0")])),
        "endpoints": list(endpoint_targets(endpoints_of_the_operator())),
    }
    for each in itertools.chain.from_iterable(found.values()):
        each["targets"] = [f"127.0.0.{next(numbers)}:{server.server_port}"]
    discovery = {role: {"static_configs": targets} for role, targets in found.items()}
    scrapes = scrape_configs(monitors(), discovery)
    try:
        with running(configuration(scrapes, "1s"), folder) as started:
            yield started
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    if which("prometheus") is None:
        pytest.skip("there is no prometheus here: Debian's package has it")
    with scraped(tmp_path_factory.mktemp("prometheus")) as started:
        yield started


def told(prometheus: Prometheus, selector: str, count: int) -> list[Labels]:
    """Return the labels of what was told, once there are so many series of it."""
    end = time.monotonic() + 60
    while len(series := prometheus.query(f"told{selector}")) < count:
        assert time.monotonic() < end, series
        time.sleep(0.2)
    return [each.labels for each in series]


def test_each_endpoint_is_scraped_once_and_no_other(found: Prometheus) -> None:
    wanted = [
        ("engine-0", "agent", "/engine/metrics"),
        ("engine-0", "agent", "/metrics"),
        ("operator-0", "http", "/metrics"),
        ("router-0", "agent", "/metrics"),
        ("router-0", "status", "/metrics?usedonly="),
    ]
    scraped = [tuple(labels[name] for name in ("pod", "endpoint", "path")) for labels in told(found, "", len(wanted))]
    assert sorted(scraped) == wanted
    assert len(found.query("up == 1")) == len(wanted), "two endpoints are one target"


def test_a_pod_tells_of_no_other_namespace_and_deployment_than_its_own(found: Prometheus) -> None:
    for labels in told(found, '{pod=~"engine-0|router-0"}', 4):
        assert (labels["namespace"], labels["modeldeployment"]) == ("team-a", "assistant")
        assert (labels["exported_namespace"], labels["exported_modeldeployment"]) == ("told", "told")


def test_the_operator_tells_of_the_namespaces_of_others(found: Prometheus) -> None:
    (labels,) = told(found, '{pod="operator-0"}', 1)
    assert (labels["namespace"], labels["modeldeployment"]) == ("told", "told")
    (up,) = found.query('up{pod="operator-0"}')
    assert up.labels["namespace"] == NAMESPACE


def test_the_policy_of_engines_lets_prometheus_in() -> None:
    asked = deployment()
    installed = Installation("agent:1", "vllm:1", "envoy:1")
    made = engine_objects(asked, settle(asked, profile(), installed), "0" * 64, WantedAdapters())
    (policy,) = of_kind(made, "NetworkPolicy")
    open_to_all = {port["port"] for rule in policy["spec"]["ingress"] if "from" not in rule for port in rule["ports"]}
    pod = pod_of(made, "engine-0")["spec"]
    containers = [*pod["initContainers"], *pod["containers"]]
    ports = {port["name"]: port["containerPort"] for each in containers for port in each.get("ports", [])}
    (monitor,) = [each for each in of_kind(monitors(), "PodMonitor") if each["metadata"]["name"].endswith("-engine")]
    assert {ports[each["port"]] for each in monitor["spec"]["podMetricsEndpoints"]} <= open_to_all


def test_pods_are_looked_for_where_the_operator_serves() -> None:
    everywhere = [each["spec"]["namespaceSelector"] for each in of_kind(monitors(), "PodMonitor")]
    assert everywhere == [{"any": True}] * 2
    named = [each["spec"]["namespaceSelector"] for each in of_kind(monitors(watchNamespaces=["a", "b"]), "PodMonitor")]
    assert named == [{"matchNames": ["a", "b"]}] * 2
