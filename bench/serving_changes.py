"""How soon changes of a ModelDeployment are in its answers, on the development cluster (`make bench-serving`).

Two vLLM replicas behind two routers, small enough for two cores (`e2e.colours`), used all the while by a client that
never asks twice. What is measured: the split of 500 answers; seconds from an edit of the weights until none is led
by the old ones; and seconds from the end of a job until its adapter is led to on every replica.
"""

from __future__ import annotations

import argparse
import secrets
import tempfile
import time
from pathlib import Path

from e2e import colours
from e2e.colours import MODEL, NAME
from e2e.deploy import install
from e2e.load import Load, load
from e2e.serving import served, steer, wait_for
from e2e.target import target
from e2e.workspace import Workspace, clear

ANSWERS = 500
COLOURS = ("red", "blue", "green")
"""What adapters say: all of them are right answers here."""


def split(workspace: Workspace) -> str:
    """Return the shares of 500 answers to 500 users, of a split of 90/10."""
    with load(workspace, colours.plan(workspace, concurrency=16)) as client:
        report = client.until_answered(ANSWERS, 300)
    shares = report["variants"]
    _expect_none_failed(report)
    total = sum(shares.values())
    return f"{100 * shares['a'] / total:.1f}/{100 * shares.get('b', 0) / total:.1f} of {total}"


def shift(workspace: Workspace, client: Load, a: int, b: int) -> float:
    """Move all traffic, and return for how many seconds after the edit a request was led as before."""
    old = "a" if a == 0 else "b"
    edited = time.time()
    steer(workspace, NAME, routes=[colours.route(a, b)])
    wait_for(workspace, NAME, "Ready", 60)
    client.until_answered(40)
    timeline = client.report()["timeline"]
    return max((asked - edited for asked, variant, _ in timeline if variant == old), default=0.0)


def publish(workspace: Workspace, base: str, number: int) -> float:
    """Train another adapter for the variant `b`; return the seconds from its end until all replicas serve it."""
    name = f"cold-{number}"
    workspace.apply(colours.job(workspace, name, base, COLOURS[number % 3]))
    steer(workspace, NAME, adapters=[colours.adapter("warm", job="warm"), colours.adapter("cold", job=name)])
    job = workspace.wait_final(name, 300)
    ended = time.time()
    status = wait_for(workspace, NAME, "Ready", 60)["status"]
    live = time.time() - ended
    if not served(status, "cold").endswith(job["status"]["artifacts"]["revision"]):
        raise RuntimeError(f"{name} is not what is served\n{workspace.story()}")
    return live


def _expect_none_failed(report: dict[str, list[object]]) -> None:
    if report["failures"] or report["wrong"]:
        raise RuntimeError(f"failed: {report['failures'][:3]}, wrong: {report['wrong'][:3]}")


def measure(workspace: Workspace, base: str, rounds: int) -> None:
    """Print all figures."""
    wait_for(workspace, NAME, "Ready", 900)
    print(f"split of 90/10 (percent): {split(workspace)}", flush=True)
    plan = colours.plan(workspace, concurrency=4, cold="|".join(COLOURS))
    with load(workspace, plan, name="mover") as client:
        for number in range(rounds):
            forth, back = shift(workspace, client, 0, 1), shift(workspace, client, 1, 0)
            print(f"edit {number}: led by it after {forth:.2f} s, and back after {back:.2f} s", flush=True)
        steer(workspace, NAME, routes=[colours.route(50, 50)])
        for number in range(rounds):
            print(f"revision {number}: live {publish(workspace, base, number):.1f} s after its job", flush=True)
        report = client.report()
    _expect_none_failed(report)
    print(f"{report['sent']} requests for {MODEL} meanwhile, {len(report['failures'])} failed", flush=True)


def main() -> None:
    """Measure in a namespace of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="edits, and revisions, that are measured")
    rounds = parser.parse_args().rounds
    found = target()
    install(found)
    clear(found)
    workspace = Workspace(found, f"bench-{secrets.token_hex(3)}")
    workspace.create()
    try:
        workspace.bucket("adapters")
        with tempfile.TemporaryDirectory() as folder:
            base = colours.upload_base(found, Path(folder) / "model")
        for name, colour in (("warm", "red"), ("cold", "blue")):
            workspace.apply(colours.job(workspace, name, base, colour))
        workspace.apply(colours.deployment(base))
        measure(workspace, base, rounds)
    finally:
        workspace.delete()


if __name__ == "__main__":
    main()
