"""Where things are kept: the cache that checkouts share, and the state of one cluster."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """The folder for everything that can be made again and that checkouts share."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "lorikeet"


def default_state_dir() -> Path:
    """``LORIKEET_CLUSTER_DIR``, or ``.cluster`` in the checkout."""
    return Path(os.environ.get("LORIKEET_CLUSTER_DIR") or CHECKOUT / ".cluster").absolute()


def cluster_id(state: Path) -> str:
    """Eight hex digits that name links, cgroups and processes of the cluster that lives in ``state``."""
    return hashlib.sha256(str(state).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class State:
    """The files of one cluster. Only ``containerd`` (the image store) and ``images`` outlive ``down``."""

    root: Path

    @property
    def id(self) -> str:
        """Names links, cgroups and processes; derived from the path, so that two checkouts differ."""
        return cluster_id(self.root)

    @property
    def record(self) -> Path:
        """cluster.json: addresses, processes, credentials."""
        return self.root / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, certificates embedded, context ``lorikeet``."""
        return self.root / "kubeconfig"

    @property
    def images(self) -> Path:
        """images.json: image name to reference."""
        return self.root / "images.json"

    @property
    def log(self) -> Path:
        """One log file a component. Kept at ``down``, so that one can still read why something failed."""
        return self.root / "log"

    @property
    def bin(self) -> Path:
        """kubectl, helm and the others, as links; put it on PATH."""
        return self.root / "bin"

    @property
    def containerd(self) -> Path:
        """containerd's image store, which survives ``down``: gigabytes are not pulled twice."""
        return self.root / "containerd"

    @property
    def node(self) -> Path:
        """Everything of the node that starts empty at each ``up``: etcd, kubelet, certificates, S3's data."""
        return self.root / "node"

    @property
    def volumes(self) -> Path:
        """A folder that the node sees under the same path: for hostPath PersistentVolumes of tests."""
        return self.root / "volumes"

    @property
    def init_spec(self) -> Path:
        """What the namespace's first process is told to do."""
        return self.node / "init.json"

    @property
    def init_state(self) -> Path:
        """What the namespace's first process says about its children."""
        return self.node / "components.json"


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; waits for whoever holds it. The kernel frees it with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace ``path`` in one step: a reader sees the old text or the new, never a half.

    Under sudo it belongs to whoever called sudo: kubectl and the demo run without it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as file:
        if os.geteuid() == 0 and "SUDO_UID" in os.environ:
            os.fchown(handle, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))
        file.write(text)
    temporary.replace(path)
