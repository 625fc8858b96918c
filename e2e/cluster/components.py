"""The programs that are built from Go modules, each built once and kept under what it was built from."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import paths
from e2e.cluster.errors import ClusterError

GO_NEEDED = (1, 26)
KUBERNETES_VERSION = "v1.35.4"
_KUBE = paths.CHECKOUT / "e2e" / "cluster" / "kube"
_PAUSE = paths.CHECKOUT / "e2e" / "images" / "pause"
# Changes whenever the way of building does, so that what was built the old way is not used.
_RECIPE = "1"


@dataclass(frozen=True)
class Component:
    """One binary: from a module in this checkout (``source``) or by its path and version (``package``)."""

    name: str
    package: str = ""
    source: Path | None = None
    links: tuple[str, ...] = ()
    ldflags: str = ""


def _kubernetes_ldflags() -> str:
    """What Kubernetes' own build stamps: without it the node calls itself v0.0.0-master."""
    major, minor = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {p}.{key}={value}" for p in packages for key, value in values.items())


def _helm_ldflags() -> str:
    """What Helm's own build stamps: without it `helm template` takes Kubernetes 1.20 for granted."""
    major, minor = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]
    packages = ("helm.sh/helm/v3/pkg/chartutil", "helm.sh/helm/v3/pkg/lint/rules")
    return " ".join(f"-X {p}.k8sVersionMajor={major} -X {p}.k8sVersionMinor={minor}" for p in packages)


_KUBE_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "etcd",
    "kubectl",
)

COMPONENTS = (
    Component("kube", source=_KUBE, links=_KUBE_PROGRAMS, ldflags=_kubernetes_ldflags()),
    Component("pause", source=_PAUSE),
    Component("versitygw", "github.com/versity/versitygw/cmd/versitygw@v1.8.0"),
    Component("coredns", "github.com/coredns/coredns@v1.15.0"),
    Component("helm", "helm.sh/helm/v3/cmd/helm@v3.22.0", ldflags=_helm_ldflags()),
    Component("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"),
)
BY_NAME = {component.name: component for component in COMPONENTS}
FOR_UP = ("kube", "pause", "versitygw", "coredns")
"""What a cluster cannot do without. The others are tools for people and for CI."""


def find_go() -> Path:
    """Go of at least the needed version: the machine's, or the one that bootstrap.sh put into the cache."""
    candidates = [Path(found)] if (found := shutil.which("go")) else []
    candidates += [Path("/usr/local/go/bin/go")]
    candidates += sorted((paths.cache_dir() / "tools").glob("go-*/bin/go"), reverse=True)
    for go in candidates:
        version = go_version(go)
        match = re.match(r"go(\d+)\.(\d+)", version)
        if match and (int(match[1]), int(match[2])) >= GO_NEEDED:
            return go
    raise ClusterError(
        f"No Go of version {GO_NEEDED[0]}.{GO_NEEDED[1]} or newer here.",
        "Run scripts/bootstrap.sh cluster, which installs one.",
    )


def go_version(go: Path) -> str:
    """What ``go env GOVERSION`` says, empty where it cannot run."""
    try:
        result = subprocess.run(
            [go, "env", "GOVERSION"], capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"}
        )
    except OSError:
        return ""
    return result.stdout.strip()


def key(component: Component, toolchain: str) -> str:
    """A hash of all that decides what the binary holds."""
    digest = hashlib.sha256()
    parts = [_RECIPE, component.name, component.package, component.ldflags, toolchain]
    digest.update("\0".join(parts).encode())
    if component.source:
        for file in sorted(component.source.iterdir()):
            if file.suffix in (".go", ".mod", ".sum"):
                digest.update(f"\0{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def binary(component: Component, toolchain: str) -> Path:
    """Where the built binary is, or will be."""
    return paths.cache_dir() / "components" / f"{component.name}-{key(component, toolchain)}" / component.name


def command(component: Component, go: Path, output: Path) -> tuple[list[str], Path]:
    """The command that builds it into the folder ``output``, and the folder to run it in."""
    flags = ["-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {component.ldflags}".strip()]
    if component.source:
        return [str(go), "build", "-mod=readonly", *flags, "-o", f"{output}/{component.name}", "."], component.source
    return [str(go), "install", *flags, component.package], output


def build(names: Iterable[str], say: Callable[[str], None]) -> dict[str, Path]:
    """Build what is not there yet; returns each binary's path by name."""
    wanted = [BY_NAME[name] for name in names]
    go = find_go()
    toolchain = go_version(go)
    found = {component.name: binary(component, toolchain) for component in wanted}
    if all(path.exists() for path in found.values()):
        return found
    # One lock for all: two checkouts that need the same build it once, and a machine builds one at a time.
    with paths.lock(paths.cache_dir() / "components.lock"):
        for component in wanted:
            if not found[component.name].exists():
                _build_one(component, go, found[component.name], say)
        # Compiled packages of these six modules take gigabytes and are worth nothing once the binaries exist.
        if all(binary(component, toolchain).exists() for component in COMPONENTS):
            shutil.rmtree(_build_cache(), ignore_errors=True)
            _drop_old_versions(toolchain)
    return found


def _build_cache() -> Path:
    """A build cache of our own: the user's neither grows nor is cleaned."""
    return paths.cache_dir() / "go-build"


def _build_one(component: Component, go: Path, target: Path, say: Callable[[str], None]) -> None:
    minutes = ", which takes five to ten minutes on two cores" if component.name == "kube" else ""
    say(f"building {component.name}{minutes} (once; kept in {target.parents[1]})")
    began = time.monotonic()
    target.parents[1].mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parents[1]) as temporary:
        arguments, folder = command(component, go, Path(temporary))
        environment = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOBIN": temporary,
            "GOCACHE": str(_build_cache()),
            "GOFLAGS": "",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
        }
        result = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            raise ClusterError(
                f"Building {component.name} failed.",
                "If a module could not be downloaded, check that the Go module proxy is within reach "
                "(`go env GOPROXY`); then run the same command again: it goes on where it stopped.",
                "\n".join(result.stderr.splitlines()[-15:]),
            )
        final = Path(temporary) / "final"
        final.mkdir()
        (Path(temporary) / component.name).rename(final / component.name)
        for link in component.links:
            (final / link).symlink_to(component.name)
        final.chmod(0o755)
        shutil.rmtree(target.parent, ignore_errors=True)
        final.rename(target.parent)
    say(f"built {component.name} in {time.monotonic() - began:.0f} s")


def _drop_old_versions(toolchain: str) -> None:
    """Keep the two newest builds of each component: a branch and the one it came from."""
    folder = paths.cache_dir() / "components"
    current = {binary(component, toolchain).parent for component in COMPONENTS}
    for component in COMPONENTS:
        others = [p for p in folder.glob(f"{component.name}-*") if p not in current]
        for path in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)[1:]:
            shutil.rmtree(path, ignore_errors=True)
