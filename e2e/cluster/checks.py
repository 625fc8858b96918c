"""What must hold before a cluster can come up, each with a message that says what to do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.images import INDEX_VARIABLES

GIB = 1 << 30
UP_GIB = 5
IMAGES_GIB = 20
"""To build the trainer's image for the first time: it is in the build store, in the registry, and on the node."""
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

KEPT_BY_SUDO = (
    "LORIKEET_CLUSTER_DIR",
    "SSL_CERT_FILE",
    "DEBIAN_MIRROR",
    "GOPROXY",
    "GOSUMDB",
    "GONOSUMDB",
    "GOPRIVATE",
    *INDEX_VARIABLES,
)
"""Where packages come from, and where the cluster lives: sudo would drop them."""

# Program or file, and the Debian package that has it.
NEEDED = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "docker-registry": "docker-registry",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
}


def become_root(arguments: Sequence[str]) -> None:
    """Start again through sudo if this is not root; returns only as root."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if not sudo:
        raise ClusterError(
            "A cluster needs root (namespaces, mounts, network links), and there is no sudo here.",
            "Run the same command as root.",
        )
    print("cluster: needs root (namespaces, mounts, network links), so starting again through sudo", flush=True)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    keep = [f"XDG_CACHE_HOME={cache}", f"PATH={os.environ['PATH']}"]
    keep += [f"{k}={v}" for k, v in os.environ.items() if k in KEPT_BY_SUDO or k.lower().endswith("_proxy")]
    os.execv(sudo, [sudo, "env", *keep, sys.executable, "-m", "e2e.cluster", *arguments])


def extend_path() -> None:
    """Find programs in sbin, which the PATH of a login shell may lack."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{SBIN}"


def missing(needed: dict[str, str]) -> list[str]:
    """The packages whose program or file is not here."""
    packages = {
        package
        for probe, package in needed.items()
        if not (Path(probe).exists() if probe.startswith("/") else shutil.which(probe))
    }
    return sorted(packages)


def check_packages() -> None:
    """Every program that the cluster starts is here."""
    if packages := missing(NEEDED):
        raise ClusterError(
            f"These Debian packages are missing: {', '.join(packages)}.", "Run scripts/bootstrap.sh cluster."
        )


def check_disk(folder: Path, needed_gib: int) -> None:
    """There are `needed_gib` of free disk below a folder."""
    free = shutil.disk_usage(folder).free
    if free < needed_gib * GIB:
        raise ClusterError(
            f"Only {free / GIB:.0f} GB are free below {folder}; {needed_gib} GB are needed.",
            "Make room, or let LORIKEET_CLUSTER_DIR and XDG_CACHE_HOME name folders on a larger disk.",
        )
