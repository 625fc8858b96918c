"""Reads off a pod why it does not serve (pure)."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lorikeet_api import names
from lorikeet_operator.finding import Finding
from lorikeet_operator.finetune.observe import CONFIG_PROBLEMS, IMAGE_PROBLEMS, PULLING

_MORE_MEMORY: Final = {
    names.ENGINE_CONTAINER: "raise spec.compute.resources.limits.memory",
    names.ROUTER_CONTAINER: "raise spec.router.resources.limits.memory",
}
LAST_WORDS: Final = 500
"""Characters of a log tail that a condition quotes."""


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod is ready."""
    conditions = pod.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def is_going(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod is being deleted, or has ended."""
    return bool(pod["metadata"].get("deletionTimestamp")) or pod.get("status", {}).get("phase") in (
        "Succeeded",
        "Failed",
    )


def is_being_prepared(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod has a node on which nothing of it has run yet: only its Events tell what that waits for."""
    states = [state for _, state, _ in _containers(pod.get("status", {}))]
    bound = bool(pod.get("spec", {}).get("nodeName")) and not is_going(pod) and not is_ready(pod)
    return bound and all(not state or (state.get("waiting") or {}).get("reason") in PULLING for state in states)


def unprepared(pod: Mapping[str, Any], said: str) -> Finding:
    """Return that a node cannot prepare a pod, in the words of an Event."""
    name = pod["metadata"]["name"]
    message = f"the node cannot prepare pod {name} ({said}): make what it names; the pod then starts by itself"
    return Finding(True, "PodNotPrepared", message)


def refusal(deployment: Mapping[str, Any]) -> Finding | None:
    """Return why Kubernetes makes no pods for a Deployment, such as a quota that is used up."""
    for condition in deployment.get("status", {}).get("conditions") or []:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            # A pod that is refused has another name each time: without it, the same trouble has the same words.
            said = re.sub(r'pods "[^"]*"', "the pod", str(condition.get("message", "")))
            name = deployment["metadata"]["name"]
            return Finding(True, "PodRefused", f"Kubernetes refuses to make pods of {name}: {said}")
    return None


def trouble(pod: Mapping[str, Any], surge: bool) -> Finding | None:
    """Return what keeps a pod from serving; None if it is ready or simply under way.

    `surge`: whether it is one more than there are to be, while one is replaced.
    """
    name = pod["metadata"]["name"]
    if is_ready(pod):
        return None
    status = pod.get("status", {})
    if not pod.get("spec", {}).get("nodeName"):
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                said = condition.get("message", condition.get("reason", ""))
                if surge:
                    return Finding(
                        True,
                        "WaitsForSurge",
                        f"the new replica waits for a surge GPU or other room ({said}): free some, or set"
                        " spec.strategy to maxSurge 0 and maxUnavailable 1",
                    )
                return Finding(True, "Unschedulable", f"no node takes pod {name}: {said}")
    for container, state, last in _containers(status):
        waiting = state.get("waiting") or {}
        why, text = waiting.get("reason", ""), waiting.get("message", "")
        if why in IMAGE_PROBLEMS:
            message = f"the image of container {container} of pod {name} cannot be pulled ({why}: {text}): correct it"
            return Finding(True, "ImagePullFailed", message)
        if why in CONFIG_PROBLEMS:
            message = f"container {container} of pod {name} cannot start ({why}: {text}): make what it names"
            return Finding(True, "ContainerConfigInvalid", message)
        ended = state.get("terminated") or (last.get("terminated") if why == "CrashLoopBackOff" else None)
        if ended and ended.get("exitCode"):
            reason, words = _last_words(container, ended)
            return Finding(True, reason, f"container {container} of pod {name} ended: {words}")
    return None


def _containers(status: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        for each in status.get(kind) or []:
            yield each["name"], each.get("state") or {}, each.get("lastState") or {}


def _last_words(container: str, ended: Mapping[str, Any]) -> tuple[str, str]:
    message = str(ended.get("message") or "")
    if ended.get("reason") == "OOMKilled":
        return "OutOfMemory", f"it was killed for its memory: {_MORE_MEMORY.get(container, 'report it')}"
    try:
        record = json.loads(message)
        return str(record["reason"]), str(record["message"])
    except (ValueError, KeyError, TypeError):
        tail = " ".join(message.split())[-LAST_WORDS:]
        reason = "EngineFailed" if container == names.ENGINE_CONTAINER else "ContainerFailed"
        return reason, f"code {ended.get('exitCode')}" + (f"; its last words: {tail}" if tail else "")
