"""Bringing a cluster up: from nothing, from half of one, or finding that it is up already."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import addons, cgroups, checks, components, config, images, network, paths, pki, teardown
from e2e.cluster.api import Api, condition
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import State
from e2e.cluster.process import MARK, ProcessRef, children
from e2e.cluster.record import Record

Say = Callable[[str], None]
GPUS = "8"
READY_S = 90.0
SETTLE_S = 45.0
CRASHES = 4
"""A component that has ended this often while the cluster comes up will not come up."""
POLL_S = 0.05


class Steps:
    """Says what happens, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line."""
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


@dataclass
class Health:
    """How a running cluster is, with the reason if it is not well."""

    ok: bool
    why: str = ""
    passing: bool = False
    """True for what mends itself in a while: a component that is being started again, a busy API server."""


def health(state: State) -> Health:
    """Whether the cluster of this state folder runs and works."""
    record = Record.load(state)
    if record is None:
        return Health(False, "there is no record of it")
    if not all(process.alive() for process in record.processes):
        return Health(False, "its processes have ended")
    if not network.link_exists(record.link):
        return Health(False, "its network link is gone")
    needed = (state.kubeconfig, state.init_state, state.node / "pki", state.node / "etcd", state.bin, state.volumes)
    if gone := [path.name for path in (*needed, state.containerd) if not path.exists()]:
        return Health(False, f"{', '.join(gone)} is missing from {state.root}")
    down = [name for name, c in component_states(state).items() if not c["pid"]]
    if down:
        return Health(False, f"{', '.join(down)} is not running (see {state.log})", passing=True)
    with Api(record.api, state.node / "pki") as api:
        if not api.ready():
            return Health(False, "its API server does not answer", passing=True)
    return Health(True)


def settled_health(state: State, seconds: float = SETTLE_S) -> Health:
    """The health once it no longer changes by itself: a busy cluster must not be mistaken for a broken one."""
    deadline = time.monotonic() + seconds
    while (now := health(state)).passing and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return now


def component_states(state: State) -> dict[str, dict[str, str]]:
    """What the namespace's first process says about each component; nothing where it says nothing."""
    try:
        found: dict[str, dict[str, str]] = json.loads(state.init_state.read_text())
    except (OSError, ValueError):
        return {}
    return found


def up(state: State, say: Say) -> Record:
    """Bring the cluster up, or make sure that it is; returns its record once everything in it is ready."""
    checks.check_packages()
    state.root.mkdir(parents=True, exist_ok=True)
    with paths.lock(state.root / "lock"):
        now = settled_health(state)
        record = Record.load(state)
        if now.ok and record is not None:
            say("the cluster is up already; making sure that everything in it is ready")
            _finish(state, record, _up_tags(say), say)
            return record
        if teardown.take_down(state):
            say(f"removed what was left of an earlier cluster: {now.why}")
        checks.check_disk(state.root, checks.UP_GIB)
        try:
            return _bring_up(state, say)
        except BaseException:
            # Half a cluster would only be in the way. The logs stay.
            teardown.take_down(state)
            raise


def _up_tags(say: Say) -> dict[str, str]:
    """The images that a cluster cannot do without, built if they are not there."""
    # Another checkout may be building for minutes; do not wait for it when there is nothing to do.
    if tags := images.pushed(images.FOR_UP, say):
        return tags
    with images.building():
        return images.Builder(say).build(images.FOR_UP)


def _bring_up(state: State, say: Say) -> Record:
    binaries = components.build(components.FOR_UP, say)
    tags = _up_tags(say)
    images.registry_storage().mkdir(parents=True, exist_ok=True)
    # The choice of addresses and the link that claims them are one step, or two clusters choose the same.
    with paths.lock(paths.cache_dir() / "network.lock"):
        addresses = network.choose(state.id, network.taken_here())
        settings = config.Settings(
            state=state,
            addresses=addresses,
            pause_image=images.reference("pause", tags["pause"]),
            registry_storage=images.registry_storage(),
            bin=binaries["kube"].parent,
        )
        _write_files(settings)
        processes = _start_namespace(settings)
        network.create_link(addresses, processes[0].pid)
    record = _record(settings, processes)
    record.save(state)
    say(f"started the node's namespaces; its address is {addresses.node}")
    _finish(state, record, tags, say)
    return record


def _write_files(settings: config.Settings) -> None:
    state = settings.state
    for folder in (state.node, state.log, state.bin, state.containerd, state.volumes):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("etcd", "opt", "ipam", "var-log", "kubelet", "volume-plugins", "s3"):
        (state.node / name).mkdir(mode=0o700 if name == "etcd" else 0o755)
    os.chown(state.node / "s3", addons.S3_USER, addons.S3_USER)
    for log in state.log.glob("*.log"):
        log.unlink()
    pairs = pki.create(settings.addresses)
    pki.write(pairs, settings.pki)
    for file, text in config.files(settings, pairs).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        paths.write_atomically(file, text, mode=0o600)
    kubeconfig = config.kubeconfig(settings.api_url, pairs["ca"].certificate, pairs["admin"])
    paths.write_atomically(state.kubeconfig, kubeconfig, mode=0o600)
    link_tools(state)


def link_tools(state: State) -> None:
    """Put what has been built on one PATH folder: kubectl, helm, kubeconform, etcd and the rest."""
    toolchain = components.go_version(components.find_go())
    for component in components.COMPONENTS:
        binary = components.binary(component, toolchain)
        for name in component.links or (component.name,):
            link = state.bin / name
            if (binary.parent / name).exists() and not link.is_symlink():
                link.symlink_to(binary.parent / name)


def _start_namespace(settings: config.Settings) -> tuple[ProcessRef, ProcessRef]:
    """Start our first process in namespaces of its own; returns it and the process outside that waits for it."""
    state = settings.state
    cgroups.create(settings.cgroup, teardown.MOUNTINFO.read_text())
    script = Path(__file__).with_name("init.py")
    command = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "--kill-child"]
    # PYTHON* variables of the caller must not reach it, hence -I.
    command += [sys.executable, "-I", str(script), str(state.init_spec)]
    with (state.log / "init.log").open("wb") as log:
        outer = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": os.environ["PATH"], MARK: str(state.root), "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and outer.poll() is None:
        found = children(outer.pid)
        # Once it runs our script it is in its namespaces; before that it may still be on the way.
        if found and str(script).encode() in Path(f"/proc/{found[0]}/cmdline").read_bytes():
            inner, waiting = ProcessRef.of(found[0]), ProcessRef.of(outer.pid)
            if inner and waiting:
                return inner, waiting
        time.sleep(0.01)
    outer.kill()
    outer.wait()
    raise ClusterError(
        "The node's namespaces could not be made.",
        "They need root with CAP_SYS_ADMIN; inside a container, run it privileged.",
        _last_lines(state.log / "init.log"),
    )


def _record(settings: config.Settings, processes: tuple[ProcessRef, ProcessRef]) -> Record:
    addresses = settings.addresses
    return Record(
        id=settings.state.id,
        slot=addresses.slot,
        api=settings.api_url,
        node=pki.NODE_NAME,
        node_address=str(addresses.node),
        host_address=str(addresses.host),
        pods=str(addresses.pods),
        services=str(addresses.services),
        registry=settings.registry,
        s3_url=f"http://{addresses.node}:{addons.S3_NODE_PORT}",
        s3_url_in_cluster=f"http://s3.{addons.S3_NAMESPACE}.svc:{addons.S3_PORT}",
        s3_access_key=secrets.token_hex(10),
        s3_secret_key=secrets.token_hex(20),
        link=addresses.link,
        cgroup=settings.cgroup,
        volumes=str(settings.state.volumes),
        processes=processes,
    )


def _finish(state: State, record: Record, tags: dict[str, str], say: Say) -> None:
    """Everything that needs the running node; each part does nothing where it is done already."""
    wait = Waiter(state, record)
    host, _, port = record.registry.rpartition(":")
    wait("the registry answers", lambda: _answers(host, int(port)))
    if images.pushed(images.FOR_UP, say) != tags:
        with images.building():
            images.Builder(say).push(tags, record.registry)
    _write_image_refs(state, tags)
    with Api(record.api, state.node / "pki") as api:
        wait("the API server is ready", api.ready)
        say("the API server is ready")
        dns_address = network.Addresses(record.slot, record.link).dns_service
        objects = addons.dns(images.reference("coredns", tags["coredns"]), dns_address) + addons.s3(
            images.reference("s3", tags["s3"]),
            str(state.node / "s3"),
            record.s3_access_key,
            record.s3_secret_key,
        )
        for body in objects:
            api.apply(body)
        wait("the node is registered", lambda: api.get("Node", record.node) is not None)
        # The device plugin's place, taken by us: scheduler and kubelet then treat GPUs as real.
        gpu = {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": GPUS}
        api.patch_status("Node", record.node, [gpu])
        wait("the node is Ready", lambda: condition(api.get("Node", record.node), "Ready"))
        say("the node is Ready")
        for name, namespace in (("coredns", "kube-system"), ("s3", addons.S3_NAMESPACE)):
            _wait_available(wait, api, name, namespace)
        account = "the default service account exists"
        wait(account, lambda: api.get("ServiceAccount", "default", "default") is not None)
        wait("the node offers GPUs", lambda: _offers_gpus(api, record.node))
    say("DNS and S3 are available")


def _wait_available(wait: Waiter, api: Api, name: str, namespace: str) -> None:
    wait(
        f"Deployment {namespace}/{name} is Available",
        lambda: condition(api.get("Deployment", name, namespace), "Available"),
    )


def _offers_gpus(api: Api, node: str) -> bool:
    found = api.get("Node", node) or {}
    return bool(found.get("status", {}).get("allocatable", {}).get("nvidia.com/gpu") == GPUS)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _write_image_refs(state: State, tags: dict[str, str]) -> None:
    """Add references to images.json, next to those of images built earlier."""
    try:
        known = json.loads(state.images.read_text())
    except (OSError, ValueError):
        known = {}
    known |= {name: images.reference(name, its_tag) for name, its_tag in tags.items()}
    paths.write_atomically(state.images, json.dumps(known, indent=1, sort_keys=True) + "\n")


def build_images(state: State, names: list[str], say: Say) -> dict[str, str]:
    """Build images, push them to the running cluster's registry, and write images.json."""
    record = Record.load(state)
    if record is None or not settled_health(state).ok:
        raise ClusterError(
            "The cluster is not up, and images are pushed to its registry.", "Run python -m e2e.cluster up first."
        )
    checks.check_disk(paths.cache_dir(), checks.UP_GIB if images.any_in_registry("trainer") else checks.IMAGES_GIB)
    builder = images.Builder(say)
    wanted = names or builder.available()
    with images.building():
        tags = builder.build(wanted)
        builder.push(tags, record.registry)
        builder.prune()
    _write_image_refs(state, tags)
    if dropped := _prune_node(record):
        say(f"dropped {dropped} references to old images from the node")
    return {name: images.reference(name, its_tag) for name, its_tag in tags.items()}


def inside(record: Record, *command: str) -> list[str]:
    """A command line that runs ``command`` in the namespaces of the node."""
    namespaces = ["--mount", "--net", "--pid", "--ipc", "--uts"]
    return ["nsenter", "--target", str(record.processes[0].pid), *namespaces, "--", *command]


def _prune_node(record: Record) -> int:
    """Drop images from the node that the registry no longer has; returns how many references."""
    ctr = inside(record, "ctr", "--address", config.CONTAINERD_SOCKET, "--namespace", "k8s.io", "images")
    listing = subprocess.run([*ctr, "ls"], capture_output=True, text=True, check=True).stdout
    refs = images.unused_refs(listing, images.in_registry)
    if refs:
        subprocess.run([*ctr, "rm", *refs], capture_output=True, check=True)
    return len(refs)


def _last_lines(log: Path, count: int = 12) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""


class Waiter:
    """Polls a condition until it holds, the deadline is over, or a component has died too often."""

    def __init__(self, state: State, record: Record) -> None:
        self._state = state
        self._record = record

    def __call__(self, what: str, holds: Callable[[], bool], seconds: float = READY_S) -> None:
        """Wait until ``holds()``."""
        deadline = time.monotonic() + seconds
        while not holds():
            self._check_alive()
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"After {seconds:.0f} s still not true: {what}.",
                    f"Look at the logs in {self._state.log}; a slow machine may need a second `up`.",
                    _last_lines(self._state.log / "kubelet.log"),
                )
            time.sleep(POLL_S)

    def _check_alive(self) -> None:
        if not self._record.processes[0].alive():
            raise ClusterError(
                "The node's first process has ended.",
                f"Read {self._state.log}/init.log and run `up` again.",
                _last_lines(self._state.log / "init.log"),
            )
        for name, component in component_states(self._state).items():
            if int(component["restarts"]) >= CRASHES:
                raise ClusterError(
                    f"{name} keeps ending ({component['lastExit']}).",
                    f"The lines above are the last of {self._state.log}/{name}.log, which stays.",
                    _last_lines(self._state.log / f"{name}.log"),
                )
