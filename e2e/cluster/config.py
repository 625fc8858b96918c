"""Configuration of every component, as pure functions of the addresses and the folders."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.network import NODE_LINK, Addresses
from e2e.cluster.paths import State
from e2e.cluster.pki import NODE_NAME, Pair

REGISTRY_HOST = "lorikeet.local"
"""The registry's name in image references; containerd maps it to the node's own registry."""
REGISTRY_PORT = 5000
API_PORT = 6443
CONTEXT = "lorikeet"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
"""In the namespace's own /run. A path under the state folder may be too long for a socket (107 bytes)."""


@dataclass(frozen=True)
class Settings:
    """All that the components' configuration depends on."""

    state: State
    addresses: Addresses
    pause_image: str
    registry_storage: Path
    bin: Path

    @property
    def pki(self) -> Path:
        """The folder of certificates."""
        return self.state.node / "pki"

    @property
    def cgroup(self) -> str:
        """The cgroup, without a slash, that holds every pod of this cluster."""
        return f"lorikeet-{self.state.id}"

    @property
    def api_url(self) -> str:
        """The API server, from the host and from the node."""
        return f"https://{self.addresses.node}:{API_PORT}"

    @property
    def registry(self) -> str:
        """The registry's address for pushes from the host."""
        return f"{self.addresses.node}:{REGISTRY_PORT}"


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def kubeconfig(server: str, ca: str, pair: Pair) -> str:
    """A kubeconfig that needs no other file. JSON, which is YAML."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": CONTEXT, "cluster": {"server": server, "certificate-authority-data": _b64(ca)}}],
            "users": [
                {
                    "name": CONTEXT,
                    "user": {
                        "client-certificate-data": _b64(pair.certificate),
                        "client-key-data": _b64(pair.key),
                    },
                }
            ],
            "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT}}],
            "current-context": CONTEXT,
        },
        indent=1,
    )


def containerd(settings: Settings) -> str:
    """containerd.toml."""
    state = settings.state
    return f"""\
version = 2
root = "{state.containerd}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", \
"io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", \
"io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.internal.v1.opt"]
path = "{state.node}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{settings.pause_image}"
# Without CAP_SYS_RESOURCE a container's score cannot be lowered, and runc dies trying.
restrict_oom_score_adj = true
# A profile would stay in the machine's kernel after `down`.
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{state.node}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
# The compressed layers are in the registry as well: a second copy is gigabytes for nothing.
discard_unpacked_layers = true

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{state.node}/registries"
"""


def registry_hosts(settings: Settings) -> str:
    """hosts.toml: images of lorikeet.local come from the node's registry, over plain HTTP."""
    url = f"http://{settings.registry}"
    return f'server = "{url}"\n\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n'


def registry(settings: Settings) -> dict[str, Any]:
    """docker-registry's configuration."""
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        # No blob cache: unused layers are collected from outside, and a cache would still promise them.
        "storage": {"filesystem": {"rootdirectory": str(settings.registry_storage)}, "delete": {"enabled": True}},
        "http": {"addr": settings.registry, "secret": settings.state.id},
    }


def cni(settings: Settings) -> dict[str, Any]:
    """The pods' network: one routed link a pod.

    Unlike a bridge this needs no br_netfilter: traffic from a pod to a Service whose pod runs on the same node
    passes the node's rules both ways.
    """
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": str(settings.addresses.pods)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": f"{settings.state.node}/ipam",
    }
    return {
        "cniVersion": "0.4.0",
        "name": "lorikeet",
        "plugins": [
            {"type": "ptp", "ipMasq": False, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def kubelet(settings: Settings) -> dict[str, Any]:
    """The kubelet's configuration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": str(settings.addresses.node),
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{settings.cgroup}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{settings.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{settings.pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{settings.pki}/kubelet.key",
        "clusterDNS": [str(settings.addresses.dns_service)],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{settings.state.node}/resolv.conf",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "maxPods": 200,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "failSwapOn": False,
        # Images are dropped when newer ones are built, never because the developer's disk is nearly full.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "volumePluginDir": f"{settings.state.node}/volume-plugins",
        "logging": {"verbosity": 1},
    }


def proxy(settings: Settings) -> dict[str, Any]:
    """kube-proxy's configuration."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{settings.state.node}/proxy.kubeconfig"},
        "mode": "iptables",
        "clusterCIDR": str(settings.addresses.pods),
        "hostnameOverride": NODE_NAME,
        # Connection tracking limits belong to the whole machine: leave them as they are.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def _apiserver(settings: Settings) -> list[str]:
    pki, addresses = settings.pki, settings.addresses
    options = {
        "etcd-servers": "http://127.0.0.1:2379",
        "advertise-address": addresses.node,
        "bind-address": "0.0.0.0",
        "secure-port": API_PORT,
        "tls-cert-file": f"{pki}/apiserver.crt",
        "tls-private-key-file": f"{pki}/apiserver.key",
        "client-ca-file": f"{pki}/ca.crt",
        "service-account-key-file": f"{pki}/sa.key",
        "service-account-signing-key-file": f"{pki}/sa.key",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-cluster-ip-range": addresses.services,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "kubelet-client-certificate": f"{pki}/apiserver-kubelet.crt",
        "kubelet-client-key": f"{pki}/apiserver-kubelet.key",
        "kubelet-certificate-authority": f"{pki}/ca.crt",
        # Otherwise `kubectl logs` looks the node's name up, and nothing here resolves it.
        "kubelet-preferred-address-types": "InternalIP",
        "allow-privileged": "true",
        "profiling": "false",
    }
    return [f"--{name}={value}" for name, value in options.items()]


def _etcd(settings: Settings) -> list[str]:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        f"--data-dir={settings.state.node}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        "--unsafe-no-fsync",
    ]


def processes(settings: Settings) -> list[dict[str, Any]]:
    """What the namespace's first process starts, in this order; ``after`` is what must answer before."""
    node, pki = settings.state.node, settings.pki
    api = ["tcp:127.0.0.1:6443"]
    kube: list[tuple[str, list[str], list[str]]] = [
        ("etcd", _etcd(settings), []),
        ("kube-apiserver", _apiserver(settings), ["tcp:127.0.0.1:2379"]),
        (
            "kube-controller-manager",
            [
                f"--kubeconfig={node}/controller-manager.kubeconfig",
                f"--service-account-private-key-file={pki}/sa.key",
                f"--root-ca-file={pki}/ca.crt",
                "--use-service-account-credentials",
                "--leader-elect=false",
            ],
            api,
        ),
        ("kube-scheduler", [f"--kubeconfig={node}/scheduler.kubeconfig", "--leader-elect=false"], api),
        (
            "kubelet",
            [
                f"--config={node}/kubelet.yaml",
                f"--kubeconfig={node}/kubelet.kubeconfig",
                f"--hostname-override={NODE_NAME}",
                f"--node-ip={settings.addresses.node}",
            ],
            [*api, f"unix:{CONTAINERD_SOCKET}"],
        ),
        ("kube-proxy", [f"--config={node}/proxy.yaml"], api),
    ]
    return [
        {"name": "containerd", "argv": ["containerd", "--config", f"{node}/containerd.toml"], "after": []},
        {"name": "registry", "argv": ["docker-registry", "serve", f"{node}/registry.yaml"], "after": []},
        *({"name": n, "argv": [str(settings.bin / n), *args], "after": after} for n, args, after in kube),
    ]


def init_spec(settings: Settings) -> dict[str, Any]:
    """What the namespace's first process is told to do."""
    addresses, state = settings.addresses, settings.state
    return {
        "hostname": NODE_NAME,
        "link": NODE_LINK,
        "address": f"{addresses.node}/{addresses.link_net.prefixlen}",
        "gateway": str(addresses.host),
        "cgroup": settings.cgroup,
        # Programs write below these whatever they are told; inside, the node's own folders are there instead.
        "overlays": ["/var/lib"],
        # The kubelet's folder is at its usual place: below the state folder its sockets' names may grow too long.
        "binds": [[f"{state.node}/var-log", "/var/log"], [f"{state.node}/kubelet", "/var/lib/kubelet"]],
        "keep": [str(state.root), str(settings.registry_storage), str(settings.bin)],
        "log": str(state.log),
        "state": str(state.init_state),
        "processes": processes(settings),
    }


def files(settings: Settings, pairs: dict[str, Pair]) -> dict[Path, str]:
    """Every configuration file by its path."""
    node = settings.state.node
    result = {
        node / "containerd.toml": containerd(settings),
        node / "registries" / REGISTRY_HOST / "hosts.toml": registry_hosts(settings),
        node / "registry.yaml": json.dumps(registry(settings), indent=1),
        node / "cni" / "10-lorikeet.conflist": json.dumps(cni(settings), indent=1),
        node / "kubelet.yaml": json.dumps(kubelet(settings), indent=1),
        node / "proxy.yaml": json.dumps(proxy(settings), indent=1),
        # No name server: pods reach nothing outside, and say so at once instead of after a time-out.
        node / "resolv.conf": "",
        settings.state.init_spec: json.dumps(init_spec(settings), indent=1),
    }
    for user in ("controller-manager", "scheduler", "kubelet", "proxy"):
        result[node / f"{user}.kubeconfig"] = kubeconfig(settings.api_url, pairs["ca"].certificate, pairs[user])
    return result
