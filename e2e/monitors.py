"""What the Prometheus operator, and Prometheus' discovery of Kubernetes, make of the chart's monitors (pure).

Debian's Prometheus is built without that discovery: so it is told by HTTP what it would have found by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

Role = Literal["pod", "endpoints"]
_META = "__meta_kubernetes_"


def scrape_configs(monitors: Iterable[Mapping[str, Any]], discovery: Mapping[Role, Any]) -> list[dict[str, Any]]:
    """Return the scrape configs of ServiceMonitors and PodMonitors, as far as the chart's go.

    They are those of prometheus-operator/prometheus-operator in 2026 (`pkg/prometheus/promcfg.go`).

    Args:
        monitors: the monitors.
        discovery: what finds the targets of each role, such as `{"http_sd_configs": […]}`.
    """
    made = []
    for monitor in monitors:
        role: Role = "pod" if monitor["kind"] == "PodMonitor" else "endpoints"
        endpoints = monitor["spec"]["podMetricsEndpoints" if role == "pod" else "endpoints"]
        made += [_scrape_config(monitor, role, index, each) | discovery[role] for index, each in enumerate(endpoints)]
    return made


def _scrape_config(monitor: Mapping[str, Any], role: Role, index: int, endpoint: Mapping[str, Any]) -> dict[str, Any]:
    spec = monitor["spec"]
    name = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    kind = monitor["kind"][0].lower() + monitor["kind"][1:]
    namespaces = spec["namespaceSelector"].get("matchNames")
    relabelings = [
        {"action": "drop", "source_labels": [f"{_META}pod_phase"], "regex": "(Failed|Succeeded)"},
        *([_keep(["namespace"], "|".join(namespaces))] if namespaces else []),
        *_selected(spec["selector"]["matchLabels"], "pod" if role == "pod" else "service"),
        _keep(["pod_container_port_name" if role == "pod" else "endpoint_port_name"], endpoint["port"]),
        _copy("namespace", "namespace"),
        _copy("pod_container_name", "container"),
        _copy("pod_name", "pod"),
        *([_copy("service_name", "service")] if role == "endpoints" else []),
        {"target_label": "job", "replacement": name} if role == "pod" else _copy("service_name", "job"),
        {"target_label": "endpoint", "replacement": endpoint["port"]},
        *({_snake(key): value for key, value in each.items()} for each in endpoint.get("relabelings", [])),
    ]
    return {
        "job_name": f"{kind}/{name}/{index}",
        "honor_labels": endpoint.get("honorLabels", False),
        "scrape_interval": endpoint["interval"],
        "metrics_path": endpoint["path"],
        "params": endpoint.get("params", {}),
        "relabel_configs": relabelings,
    }


def _selected(labels: Mapping[str, str], of: str) -> Iterator[dict[str, Any]]:
    for name, value in labels.items():
        yield _keep([f"{of}_label_{_name(name)}", f"{of}_labelpresent_{_name(name)}"], f"({value});true")


def _keep(sources: Iterable[str], regex: str) -> dict[str, Any]:
    return {"action": "keep", "source_labels": [_META + each for each in sources], "regex": regex}


def _copy(source: str, label: str) -> dict[str, Any]:
    return {"source_labels": [_META + source], "target_label": label}


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", r"_\1", name).lower()


def _name(label: str) -> str:
    return re.sub(r"\W", "_", label)


def pod_targets(pods: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what discovery by role `pod` tells: each port of each container."""
    for pod in pods:
        address = pod["status"].get("podIP")
        if not address:
            continue
        metadata, spec = pod["metadata"], pod["spec"]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            for port in container.get("ports", []):
                told = {
                    "namespace": metadata["namespace"],
                    "pod_name": metadata["name"],
                    "pod_phase": pod["status"]["phase"],
                    "pod_container_name": container["name"],
                    "pod_container_port_name": port.get("name", ""),
                }
                yield _target(f"{address}:{port['containerPort']}", told, metadata, "pod")


def endpoint_targets(endpoints: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what discovery by role `endpoints` tells: each port of each pod. They have the labels of their Service."""
    for each in endpoints:
        for subset in each.get("subsets", []):
            for address in subset.get("addresses", []):
                for port in subset["ports"]:
                    told = {
                        "namespace": each["metadata"]["namespace"],
                        "service_name": each["metadata"]["name"],
                        "endpoint_port_name": port.get("name", ""),
                        "pod_name": address["targetRef"]["name"],
                    }
                    yield _target(f"{address['ip']}:{port['port']}", told, each["metadata"], "service")


def _target(address: str, told: Mapping[str, str], metadata: Mapping[str, Any], of: str) -> dict[str, Any]:
    labels = {_META + name: value for name, value in told.items()}
    for name, value in metadata.get("labels", {}).items():
        labels |= {f"{_META}{of}_label_{_name(name)}": value, f"{_META}{of}_labelpresent_{_name(name)}": "true"}
    return {"targets": [address], "labels": labels}
