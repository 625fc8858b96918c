"""The demo's second half: two adapters on one vLLM, one model name, and its traffic moved between them."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from e2e.client import Plan
from e2e.load import Load, load
from e2e.serving import deployment, edit, wait_for, weights
from e2e.small import until
from e2e.steps import apply, finish, step
from e2e.workspace import Workspace

OTHER = "text-to-sql-lowercase"
NAME = "assistant"
MODEL = "text-to-sql"
STYLES = {"sql": ["(?s)(?!select ).*"], "lowercase": ["(?s)(?!SELECT ).*"]}
"""How answers of the two adapters never look: as those of the other one."""
ANSWERS = 200
"""So many answers are counted for each split."""
USERS = 200


def questions(heldout: Path) -> list[str]:
    """Return the questions that no adapter has seen."""
    return [json.loads(line)["prompt"] for line in heldout.read_text(encoding="utf-8").splitlines()]


def plan(workspace: Workspace, asked: list[str], concurrency: int) -> Plan:
    """Return what the demo's client asks."""
    url = f"http://{NAME}.{workspace.namespace}.svc/v1"
    return Plan(url, MODEL, asked, STYLES, concurrency=concurrency, users=USERS, max_tokens=24)


def serve(workspace: Workspace, heldout: Path) -> bool:
    """Train a second adapter, serve both, move the traffic twice; return whether no request has failed."""
    with step(
        f"kubectl apply -n {workspace.namespace} -f examples/finetune-lowercase.yaml -f examples/deployment.yaml"
    ):
        apply(workspace, "finetune-lowercase.yaml")
        apply(workspace, "deployment.yaml")
        finish(workspace, OTHER)
    with step("waiting until both adapters are loaded and requests are led to them"):
        wait_for(workspace, NAME, "Ready", 600)
        print(workspace.kubectl("get", "modeldeployments"))
    asked = plan(workspace, questions(heldout), concurrency=8)
    with (
        step("asking it, eight requests at a time, while `kubectl edit` changes the weights"),
        load(workspace, asked) as client,
    ):
        _split(client, "as applied, 90/10")
        for a, b in ((50, 50), (90, 10)):
            _shift(workspace, client, a, b)
            _split(client, f"after `kubectl edit` to {a}/{b}")
        report = client.report()
    return _tell(report)


def _split(client: Load, title: str) -> None:
    """Count answers that are asked for from now on, by variant, and tell their shares."""
    began = time.time()
    until(lambda: len(_asked_since(client, began)) >= ANSWERS, f"{ANSWERS} answers", 300, client.story, every=2)
    variants = Counter(variant for _, variant, _ in _asked_since(client, began))
    shares = (f"{name} {100 * count / variants.total():.0f} %" for name, count in sorted(variants.items()))
    print(f"    {title}: {', '.join(shares)}", flush=True)


def _asked_since(client: Load, began: float) -> list[tuple[float, str, str]]:
    return [(asked, variant, revision) for asked, variant, revision in client.report()["timeline"] if asked > began]


def _shift(workspace: Workspace, client: Load, a: int, b: int) -> None:
    """Edit the weights, and wait until requests are led by them."""
    script = "; ".join(f"/name: {name}$/,/weight:/ s/weight: .*/weight: {to}/" for name, to in (("a", a), ("b", b)))
    edit(workspace, NAME, script)
    began = time.monotonic()

    def is_led() -> bool:
        return weights(deployment(workspace, NAME)["status"], MODEL) == {"a": a, "b": b}

    until(is_led, f"split of {a}/{b}", 60, client.story)
    wait_for(workspace, NAME, "RouterReady", 60)
    print(f"    routers lead by {a}/{b} {time.monotonic() - began:.1f} s after the edit", flush=True)


def _tell(report: dict[str, Any]) -> bool:
    print(
        f"\n{report['sent']} requests sent, {report['answered']} answered ({report['streams']} of them streams),"
        f" {len(report['failures'])} failed, {len(report['wrong'])} in the style of the other adapter"
    )
    for example in report["examples"]:
        print(f"Question  {example['question']}")
        print(f"  {example['user']} is answered by variant {example['variant']}, revision {example['revision']}:")
        print(f"  {example['text']}")
    return not report["failures"] and not report["wrong"]
