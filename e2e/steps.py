"""What the parts of the demo share: steps that are told, examples that are applied and followed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from e2e.cluster.paths import CHECKOUT
from e2e.target import TargetError
from e2e.workspace import Workspace

EXAMPLES = CHECKOUT / "examples"


@contextmanager
def step(title: str) -> Iterator[None]:
    """Tell a step and the seconds that it took."""
    print(f"--> {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"    done in {time.monotonic() - began:.0f} s", flush=True)


def apply(workspace: Workspace, name: str) -> None:
    """Print and apply a file of the examples."""
    print("\n" + (EXAMPLES / name).read_text(encoding="utf-8"))
    workspace.kubectl("apply", "-f", str(EXAMPLES / name))


def finish(workspace: Workspace, name: str) -> dict[str, Any]:
    """Follow a FineTuneJob to its good end, and return it. Raises TargetError."""
    job = workspace.wait_final(name, 900, quiet=False)
    if job["status"]["phase"] != "Succeeded":
        raise TargetError(f"the job failed\n{workspace.story()}")
    return job
