"""The operator's gauges that are read off its cache."""

from datetime import UTC, datetime
from typing import Any

import pytest

from lorikeet_operator import watched
from lorikeet_operator.finetune.reconcile import FineTuneController
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.serving.reconcile import ModelDeploymentController
from lorikeet_operator.serving.setup import Installation
from tests.resources import deployment_body, job_body

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOBODY: Any = None


@pytest.fixture
def cache() -> Cache:
    made = Cache()
    made.register(FINETUNEJOB, watched.FINETUNEJOBS.index)
    made.register(MODELDEPLOYMENT)
    return made


def put_job(cache: Cache, name: str, flipped: str, told: str | None = None, /, **status: Any) -> None:
    """Put a job of seven o'clock with a condition that has `flipped`, and progress that was `told`."""
    body = job_body(name)
    body["metadata"] |= {"uid": f"uid-{name}", "resourceVersion": "1", "creationTimestamp": "2026-11-23T07:00:00Z"}
    status["conditions"] = [{"type": "Started", "lastTransitionTime": f"2026-11-23T{flipped}:00Z"}]
    if told is not None:
        status["progress"] = {"pod": "p", "updatedTime": f"2026-11-23T{told}:00Z"}
    cache.put(FINETUNEJOB, body | {"status": status})


def quiet(cache: Cache) -> Any:
    return FineTuneController(Kube(cache, NOBODY, NOBODY, NOBODY), "trainer:1", lambda: NOW).quiet()


def test_a_phase_is_as_quiet_as_the_job_in_it_that_has_told_nothing_for_longest(cache: Cache) -> None:
    put_job(cache, "lively", "08:00", "11:59", phase="Running")
    put_job(cache, "still", "08:00", "11:30", phase="Running")
    put_job(cache, "waiting", "11:00", phase="Starting")
    assert quiet(cache) == {"Running": 1800, "Starting": 3600}


def test_a_new_attempt_ends_the_quiet_before_it_has_told_how_far_it_is(cache: Cache) -> None:
    put_job(cache, "again", "11:50", "09:00", phase="Running")
    assert quiet(cache) == {"Running": 600}


def test_a_job_that_runs_and_never_tells_how_far_it_is_counts_as_quiet_in_no_phase(cache: Cache) -> None:
    put_job(cache, "mute", "08:00", phase="Running")
    assert quiet(cache) == {}


def test_a_job_that_has_ended_is_not_quiet(cache: Cache) -> None:
    put_job(cache, "done", "08:00", "09:00", phase="Succeeded")
    put_job(cache, "failed", "08:00", "09:00", phase="Failed")
    assert quiet(cache) == {}


def test_a_job_without_a_status_is_pending_since_it_was_created(cache: Cache) -> None:
    body = job_body("new")
    body["metadata"] |= {"uid": "uid-new", "resourceVersion": "1", "creationTimestamp": "2026-11-23T11:59:00Z"}
    cache.put(FINETUNEJOB, body)
    assert quiet(cache) == {"Pending": 60}


def test_each_modeldeployment_stands_in_its_phase(cache: Cache) -> None:
    for namespace, status in (("a", {"status": {"phase": "Degraded"}}), ("b", {})):
        body = deployment_body("chat", namespace)
        body["metadata"] |= {"uid": f"uid-{namespace}", "resourceVersion": "1"}
        cache.put(MODELDEPLOYMENT, body | status)
    controller = ModelDeploymentController(Kube(cache, NOBODY, NOBODY, NOBODY), Installation("", "", ""), "1Gi")
    assert controller.standing() == {("a", "chat", "Degraded"): 1, ("b", "chat", "Pending"): 1}
