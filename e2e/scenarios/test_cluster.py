"""The development cluster itself: up, used, hurt, healed, and down without a trace.

Each test module run has clusters of its own in temporary folders; the checkout's own cluster is not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from e2e.cluster import paths, teardown
from e2e.cluster.api import Api
from e2e.cluster.paths import State
from e2e.cluster.process import ProcessRef
from e2e.cluster.record import Record

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.geteuid() != 0, reason="run these as root: sudo .venv/bin/pytest e2e/scenarios/test_cluster.py"
    ),
    pytest.mark.skipif(os.environ.get("CLUSTER") == "existing", reason="of the development cluster alone"),
]


def until(holds: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"after {seconds} s still not true: {what}"
        time.sleep(0.05)
    return value


@dataclass
class Cluster:
    state: State

    def run(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "e2e.cluster", "--state", str(self.state.root), *arguments]
        result = subprocess.run(command, cwd=paths.CHECKOUT, capture_output=True, text=True)
        assert not ok or result.returncode == 0, result.stdout + result.stderr
        return result

    @property
    def record(self) -> Record:
        found = Record.load(self.state)
        assert found is not None
        return found

    @property
    def init(self) -> ProcessRef:
        return self.record.processes[0]

    def api(self) -> Api:
        return Api(self.record.api, self.state.node / "pki")

    def well(self) -> bool:
        return self.run("status", ok=False).returncode == 0

    def components(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state.init_state.read_text())
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Cluster(State(tmp_path_factory.mktemp("cluster")))
    running.run("up")
    yield running
    running.run("clean")


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Cluster]:
    # As long as a checkout's path may be: a socket's name may not have more than 107 bytes.
    other = Cluster(State(tmp_path / f"another-{'long' * 25}"))
    yield other
    other.run("clean")


def members(pid_namespace: str) -> list[str]:
    """The processes inside a PID namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "ns/pid").readlink()) == pid_namespace:
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()[:80]!r}")
        except OSError:
            continue
    return found


def host_snapshot(ours: State) -> dict[str, set[str]]:
    """All that a cluster could leave on the host, less what other clusters of this machine have."""
    links = [link["ifname"] for link in json.loads(subprocess.check_output(["ip", "-json", "link"]))]
    listed = subprocess.check_output(["ip", "-4", "route", "show", "table", "all"], text=True).splitlines()
    routes = [line.strip() for line in listed]
    groups = {str(path) for path in Path("/sys/fs/cgroup").rglob("*") if path.is_dir()}
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    rules = subprocess.check_output(["iptables-save"], text=True).splitlines()
    folders = ("/run", "/var/lib", "/var/log", "/opt", "/etc", "/usr/libexec", "/var/run/netns")
    settings = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys")

    def of_another(text: str) -> bool:
        return ("lk-" in text or "lorikeet-" in text) and ours.id not in text

    return {
        "links": {link for link in links if not of_another(link)},
        "routes": {route for route in routes if not of_another(route)},
        "cgroups": {group for group in groups if not of_another(group)},
        "mounts": {mount for mount in mounts if "/buildah/" not in mount},
        "iptables": {rule for rule in rules if rule.startswith(("-A", ":"))},
        "files": {str(path) for folder in folders for path in Path(folder).glob("*")},
        "settings": {f"{s}={Path('/proc/sys', s).read_text().strip()}" for s in settings},
    }


def test_down_leaves_nothing_behind(another: Cluster) -> None:
    before = host_snapshot(another.state)
    began = time.monotonic()
    another.run("up")
    seconds = time.monotonic() - began
    namespace = str(Path(f"/proc/{another.init.pid}/ns/pid").readlink())
    during = host_snapshot(another.state)
    inside = members(namespace)
    outer = another.record.processes[1]

    another.run("down")

    # That there was something to leave: otherwise this test would say nothing.
    assert len(inside) > 10
    assert seconds < 60
    assert during["links"] - before["links"] == {f"lk-{another.state.id}"}
    assert any("kubepods" in group for group in during["cgroups"] - before["cgroups"])
    assert until(lambda: not members(namespace), "no process is left")
    assert not outer.alive()
    # Groups of other programs of the machine come and go.
    after = host_snapshot(another.state)
    assert not {
        group for group in after.pop("cgroups") - before.pop("cgroups") if "kubepods" in group or "lori" in group
    }
    assert after == before
    left = {path.name for path in another.state.root.iterdir()}
    assert left == {"containerd", "images.json", "lock", "log"}


def test_images_survive_down_and_are_not_pulled_again(another: Cluster) -> None:
    another.run("up")
    another.run("down")
    another.run("up")

    pulled = "Pulling image"
    with another.api() as api:
        events = json.loads(api.text("/api/v1/events"))["items"]
    assert [e for e in events if e["reason"] == "Pulled"]
    assert not [e for e in events if pulled in e.get("message", "")]


def test_up_twice_changes_nothing_and_is_quick(cluster: Cluster) -> None:
    before = cluster.state.record.read_text()

    began = time.monotonic()
    output = cluster.run("up").stdout

    assert "is up already" in output
    assert cluster.state.record.read_text() == before
    assert time.monotonic() - began < 20


def test_it_heals_after_its_first_process_was_killed(cluster: Cluster) -> None:
    os.kill(cluster.init.pid, signal.SIGKILL)
    until(lambda: not cluster.well(), "status says that it is not up")

    cluster.run("up")

    assert cluster.well()


@pytest.mark.parametrize("gone", ["record and certificates", "etcd", "link", "everything"])
def test_it_heals_after_half_of_it_was_lost(cluster: Cluster, gone: str) -> None:
    old = cluster.init
    match gone:
        case "record and certificates":
            cluster.state.record.unlink()
            shutil.rmtree(cluster.state.node / "pki")
        case "etcd":
            shutil.rmtree(cluster.state.node / "etcd")
        case "link":
            subprocess.run(["ip", "link", "delete", f"lk-{cluster.state.id}"], check=True)
        case "everything":
            # As much as can be deleted under a running cluster, which writes new files meanwhile.
            shutil.rmtree(cluster.state.root, ignore_errors=True)
    assert not cluster.well()

    cluster.run("up")

    assert cluster.well()
    assert not old.alive()
    assert teardown.running(cluster.state) == list(cluster.record.processes)


def test_down_works_without_the_record(another: Cluster) -> None:
    another.run("up")
    init, namespace = another.init, str(Path(f"/proc/{another.init.pid}/ns/pid").readlink())
    another.state.record.unlink()

    another.run("down")

    assert not init.alive()
    assert until(lambda: not members(namespace), "no process is left")
    assert another.run("down").returncode == 0


@pytest.mark.parametrize("name", ["kubelet", "kube-controller-manager", "containerd"])
def test_a_component_that_dies_is_started_again(cluster: Cluster, name: str) -> None:
    before = cluster.components()[name]
    record = cluster.state.record.read_text()
    cluster.run("exec", "--", "kill", "-9", str(before["pid"]))
    until(lambda: cluster.components()[name]["restarts"] > before["restarts"], f"{name} was seen to end")

    # It may not run again yet: `up` waits for that, rather than starting from nothing.
    cluster.run("up")

    assert cluster.components()[name]["pid"] not in (0, before["pid"])
    assert cluster.state.record.read_text() == record
    with cluster.api() as api:
        node = api.get("Node", "lorikeet") or {}
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"


def test_two_clusters_run_side_by_side(cluster: Cluster, another: Cluster) -> None:
    another.run("up")

    ours, theirs = cluster.record, another.record
    for field in ("api", "registry", "pods", "services", "s3_url", "link", "cgroup"):
        assert getattr(ours, field) != getattr(theirs, field)
    assert cluster.well()
    assert another.well()

    another.run("down")

    assert cluster.well()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace in which only pods that keep to the strictest rules are let in."""
    name = f"test-{time.monotonic_ns()}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    with cluster.api() as api:
        api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        until(lambda: api.get("ServiceAccount", "default", name), "the namespace has its service account")
        yield name
        api.delete("Namespace", name)


def run_pod(cluster: Cluster, namespace: str, script: str, volumes: list[dict[str, Any]]) -> str:
    """Run a Python script in a restricted pod that asks for a GPU; returns what it printed."""
    refs = json.loads(cluster.state.images.read_text())
    container = {
        "name": "c",
        "image": refs["base"],
        "command": ["python3", "-c", script],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "volumeMounts": [{"name": v["name"], "mountPath": f"/{v['name']}"} for v in volumes],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 12345,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    with cluster.api() as api:
        meta = {"name": "p", "namespace": namespace}
        api.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

        def phase() -> str:
            found = (api.get("Pod", "p", namespace) or {}).get("status", {}).get("phase", "")
            return found if found in ("Succeeded", "Failed") else ""

        ended = until(phase, "the pod has ended", 120)
        output = api.text(f"/api/v1/namespaces/{namespace}/pods/p/log")
    assert ended == "Succeeded", output
    return output


@pytest.fixture
def base_image(cluster: Cluster) -> None:
    cluster.run("images", "base")


@pytest.mark.usefixtures("base_image")
def test_a_restricted_pod_with_a_gpu_runs_resolves_names_and_reaches_services(cluster: Cluster, namespace: str) -> None:
    script = """
import socket, urllib.error, urllib.request
print("address", socket.gethostbyname("kubernetes.default.svc.cluster.local"))
try:
    urllib.request.urlopen("http://s3.lorikeet-s3.svc:7070/", timeout=10)
except urllib.error.HTTPError as error:
    print("s3 says", error.code)
try:
    socket.gethostbyname("no-such-service.default.svc.cluster.local")
except socket.gaierror:
    print("unknown names fail")
"""
    output = run_pod(cluster, namespace, script, [])

    services = cluster.record.services.removesuffix(".0/24")
    assert output.splitlines() == [f"address {services}.1", "s3 says 403", "unknown names fail"]


@pytest.mark.usefixtures("base_image")
def test_a_pod_sees_a_folder_of_the_host_through_a_claim(cluster: Cluster, namespace: str) -> None:
    from e2e.cluster import addons

    folder = Path(cluster.record.volumes) / namespace
    folder.mkdir()
    (folder / "hello").write_text("from the host")
    with cluster.api() as api:
        for body in addons.volume("data", namespace, str(folder)):
            api.apply(body)
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]

    output = run_pod(cluster, namespace, "print(open('/data/hello').read())", volumes)

    assert output == "from the host\n"


def test_a_pod_that_is_not_restricted_is_refused(cluster: Cluster, namespace: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"containers": [{"name": "c", "image": "lorikeet.local/base:none"}]},
    }
    with cluster.api() as api, pytest.raises(Exception, match="refused PATCH") as caught:
        api.apply(pod)

    assert "violates PodSecurity" in str(caught.value)


def test_s3_takes_and_gives_from_the_host(cluster: Cluster) -> None:
    record = cluster.record
    client = boto3.client(
        "s3",
        endpoint_url=record.s3_url,
        aws_access_key_id=record.s3_access_key,
        aws_secret_access_key=record.s3_secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )
    client.create_bucket(Bucket="things")
    client.put_object(Bucket="things", Key="a/b", Body=b"content")

    assert client.get_object(Bucket="things", Key="a/b")["Body"].read() == b"content"
    with pytest.raises(client.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="things", Key="a/b", Body=b"other", IfNoneMatch="*")


def test_the_kubeconfig_works_with_kubectl_alone(cluster: Cluster) -> None:
    kubectl = [str(cluster.state.bin / "kubectl"), "--kubeconfig", str(cluster.state.kubeconfig)]

    output = subprocess.run(
        [*kubectl, "--context", "lorikeet", "get", "nodes", "-o", "name"],
        capture_output=True,
        text=True,
        env={"HOME": "/nonexistent"},
    )

    assert output.stdout == "node/lorikeet\n", output.stderr


def test_exec_runs_inside(cluster: Cluster) -> None:
    links = json.loads(cluster.run("exec", "--", "ip", "-json", "link").stdout)

    assert "node0" in {link["ifname"] for link in links}
