"""How the processes of a test run share the machine: whose scenarios are whose, which run alone, what is done once."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Literal, cast

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from e2e.cluster.paths import lock

_OWN_CLUSTERS = "test_cluster"
_SERVING = ("test_engines", "test_existing_cluster", "test_observability", "test_serving")
"""How files' names begin; all others are about training."""

Group = Literal["clusters of their own", "serving", "training"]


def group_of(nodeid: str) -> Group:
    """Return the group that a scenario belongs to."""
    file = PurePath(nodeid.partition("::")[0]).stem
    if file.startswith(_OWN_CLUSTERS):
        return "clusters of their own"
    return "serving" if file.startswith(_SERVING) else "training"


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each process a group of scenarios after another: what is used by a whole group is made by one process."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def shared_folder(config: pytest.Config) -> Path:
    """Return a folder of this test run that all of its processes know."""
    # Hooks have no other way to it.
    folder: Path = cast(Any, config)._tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(config, "workerinput") else folder


@contextmanager
def among_others(folder: Path, *, alone: bool) -> Iterator[None]:
    """Wait until a test may run: beside those of other processes, or with none of them. For `folder`, all agree."""
    with (folder / "gate").open("a") as gate, (folder / "running").open("a") as running:
        # Who waits to be alone holds the gate, so that no other test begins meanwhile.
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@contextmanager
def once(folder: Path, what: str) -> Iterator[bool]:
    """Yield True to the first process that comes, and False to the others, who wait until it has done `what`."""
    done = folder / what
    with lock(folder / f"{what}.lock"):
        yield not done.exists()
        done.touch()
