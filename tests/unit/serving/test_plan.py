"""What adapters are found to be: from jobs, from URIs, and from what was found earlier."""

from typing import Any

import pytest

from lorikeet_api.serving import Found, Unresolved
from lorikeet_operator.serving.plan import Plan, Target, origin, plan, routes
from tests.resources import deployment

OLD, NEW = "a" * 64, "b" * 64
OF_JOB: dict[str, Any] = {"name": "sql", "from": {"fineTuneJobRef": {"name": "sql-v1"}}}
OF_URI: dict[str, Any] = {"name": "sql", "from": {"uri": "s3://adapters/sql"}}


def job(phase: str, sha256: str | None = None, **status: Any) -> dict[str, object]:
    """Return a FineTuneJob as the API server has it; with a digest it has published."""
    artifacts = {"artifacts": {"uri": f"s3://adapters/{sha256[:4]}", "sha256": sha256}} if sha256 else {}
    return {"status": {"phase": phase, **artifacts, **status}}


def held(origin: str, sha256: str = OLD) -> dict[str, Any]:
    """Return the status that remembers one adapter."""
    known = {"name": "sql", "origin": origin, "revision": sha256[:8], "servedName": f"sql-{sha256[:8]}"}
    return {"adapters": [known | {"uri": "s3://adapters/held", "sha256": sha256}]}


def planned(
    adapter: dict[str, Any],
    status: dict[str, Any] | None = None,
    jobs: dict[str, dict[str, object]] | None = None,
    found: dict[str, Found] | None = None,
) -> Plan:
    return plan(deployment(adapters=[adapter], status=status), jobs or {}, found or {})


def test_what_a_finished_job_has_published_is_served() -> None:
    target = planned(OF_JOB, jobs={"sql-v1": job("Succeeded", NEW)}).targets["sql"]
    assert target == Target("sql", "FineTuneJob sql-v1", "s3://adapters/bbbb", NEW)
    assert target.served == "sql-bbbbbbbb"
    assert (target.revision.served, target.revision.uri, target.revision.sha256) == (
        "sql-bbbbbbbb",
        "s3://adapters/bbbb",
        NEW,
    )


def of(method: dict[str, object], **more: object) -> dict[str, object]:
    """A job that trains by a method."""
    return {**job("Running"), "spec": {"method": method, **more}}


WHOLE_LAYER: dict[str, object] = {"lora": {"modulesToSave": ["lm_head"]}}


def pissa(rank: int) -> dict[str, object]:
    return {"lora": {"init": "pissa", "rank": rank, "dropout": 0}}


@pytest.mark.parametrize(
    ("found", "reason", "fault", "words"),
    [
        pytest.param(None, "JobNotFound", True, "", id="none"),
        pytest.param({}, "JobNotFinished", False, "", id="just made"),
        pytest.param(job("Running"), "JobNotFinished", False, "", id="running"),
        pytest.param(job("Running", NEW), "JobNotFinished", False, "", id="published, not done"),
        pytest.param(job("Suspended"), "JobNotFinished", False, "", id="suspended"),
        pytest.param(job("Failed", message="not JSON"), "JobFailed", True, "not JSON", id="failed"),
        pytest.param(job("Succeeded"), "JobFailed", True, "", id="without artifacts"),
        pytest.param(of({"bottleneck": {}}), "NotServable", True, "bottleneck, whose modules no", id="bottleneck"),
        pytest.param(of({"full": {}}), "NotServable", True, "a whole model, to be served as one", id="full"),
        pytest.param(of({"lora": {"dora": True}}), "NotServable", True, "dora, whose magnitudes no", id="dora"),
        pytest.param(of(WHOLE_LAYER), "NotServable", True, "whole layers (lm_head; modulesToSave)", id="whole layer"),
        pytest.param(of(pissa(257)), "NotServable", True, "it has rank 514, engines take 512 at most", id="rank"),
        pytest.param(of({"lora": {}}, objective={"reward": {}}), "NotServable", True, "a reward model", id="reward"),
        pytest.param(
            job("Running", resolved={"contract": {"method": {"lora": {"dora": True}}}}), "NotServable", True, "dora",
            id="dora of the earlier job that it goes on from",
        ),
        pytest.param(of({"lora": {}}, objective={"dpo": {}}), "JobNotFinished", False, "", id="dpo"),
        pytest.param(of({"lora": {"rsLora": True}}), "JobNotFinished", False, "", id="rsLora"),
        pytest.param(of(pissa(256)), "JobNotFinished", False, "", id="the highest rank, published with twice that"),
    ],
)  # fmt: skip
def test_why_a_job_gives_no_adapter_is_told(
    found: dict[str, object] | None, reason: str, fault: bool, words: str
) -> None:
    made = planned(OF_JOB, jobs={} if found is None else {"sql-v1": found})
    assert not made.targets
    absent = made.absent["sql"]
    assert (absent.reason, absent.holds) == (reason, fault), "it holds where somebody has to do something"
    assert "FineTuneJob sql-v1" in absent.message
    assert words in absent.message


@pytest.mark.parametrize("now", [None, job("Running"), job("Failed")], ids=["deleted", "made anew", "failed anew"])
def test_a_job_that_is_gone_or_made_anew_takes_nothing_away(now: dict[str, object] | None) -> None:
    made = planned(OF_JOB, held("FineTuneJob sql-v1"), {} if now is None else {"sql-v1": now})
    assert made.targets["sql"].sha256 == OLD
    assert not made.absent


def test_a_job_made_anew_under_its_name_gives_its_content_once_it_has_some() -> None:
    made = planned(OF_JOB, held("FineTuneJob sql-v1"), {"sql-v1": job("Succeeded", NEW)})
    assert made.targets["sql"].served == "sql-bbbbbbbb"


def test_a_job_that_was_served_before_comes_back_though_it_is_gone() -> None:
    entry = {"time": "2026-11-23T10:00:00Z", "adapter": "sql", "revision": OLD[:8], "reason": "FineTuneJob sql-v1"}
    status = {"history": [entry | {"uri": "s3://adapters/sql/0f1e", "sha256": OLD}]}
    made = planned(OF_JOB, held("FineTuneJob sql-v2") | status)
    assert made.targets["sql"] == Target("sql", "FineTuneJob sql-v1", "s3://adapters/sql/0f1e", OLD)


def test_another_job_does_not_inherit_what_the_one_before_has_published() -> None:
    made = planned(OF_JOB, held("FineTuneJob sql-v0"), {"sql-v1": job("Running")})
    assert not made.targets
    assert made.absent["sql"].reason == "JobNotFinished"


def test_a_uri_has_to_be_looked_up() -> None:
    made = planned({"name": "sql", "from": {"uri": "s3://adapters/sql", "sha256": NEW}})
    assert made.unresolved == [Unresolved(name="sql", uri="s3://adapters/sql", sha256=NEW)]
    assert (made.absent["sql"].reason, made.absent["sql"].holds) == ("Resolving", False)


@pytest.mark.parametrize(
    ("uri", "run_id", "expected"),
    [
        ("s3://adapters/sql", "0f1e", "s3://adapters/sql/0f1e"),
        ("s3://adapters/sql/", "0f1e", "s3://adapters/sql/0f1e"),
        ("s3://adapters/sql/0f1e/", "", "s3://adapters/sql/0f1e"),
    ],
)
def test_a_found_uri_is_the_folder_of_its_run(uri: str, run_id: str, expected: str) -> None:
    found = {uri: Found(name="sql", run_id=run_id, sha256=NEW)}
    made = planned({"name": "sql", "from": {"uri": uri}}, found=found)
    assert made.targets["sql"] == Target("sql", uri, expected, NEW)
    assert not made.absent
    assert not made.unresolved


def test_what_is_wrong_with_a_uri_is_told_and_not_asked_again() -> None:
    found = {"s3://adapters/sql": Found(name="sql", reason="ManifestMissing", message="nothing is there: publish")}
    made = planned(OF_URI, found=found)
    assert not made.unresolved
    assert (made.absent["sql"].holds, made.absent["sql"].reason) == (True, "ManifestMissing")
    assert made.absent["sql"].message == "nothing is there: publish"


def test_a_uri_is_looked_up_once_for_each_change_of_the_spec() -> None:
    status = held("s3://adapters/sql")
    assert planned(OF_URI, status).targets["sql"].sha256 == OLD
    pinned = {"name": "sql", "from": {"uri": "s3://adapters/sql", "sha256": NEW}}
    assert planned(pinned, status).unresolved == [Unresolved(name="sql", uri="s3://adapters/sql", sha256=NEW)]
    assert planned({"name": "sql", "from": {"uri": "s3://adapters/other"}}, status).unresolved


def test_what_was_found_earlier_goes_before_what_is_there_now() -> None:
    found = {"s3://adapters/sql": Found(name="sql", run_id="0f1e", sha256=NEW)}
    assert planned(OF_URI, held("s3://adapters/sql"), found=found).targets["sql"].sha256 == OLD


@pytest.mark.parametrize(
    ("uri", "sha256", "known"),
    [
        ("s3://adapters/sql", OLD, True),
        ("s3://adapters/sql/", OLD, True),
        ("s3://adapters/sql/0f1e", OLD, True),
        ("s3://adapters/sql/0f1e", NEW, False),
        ("s3://adapters/sq", OLD, False),
        ("s3://adapters/sql", None, False),
    ],
)
def test_a_pinned_uri_that_was_served_before_comes_back_without_being_looked_up(
    uri: str, sha256: str | None, known: bool
) -> None:
    entry = {"time": "2026-11-23T10:00:00Z", "adapter": "sql", "revision": OLD[:8], "reason": "FineTuneJob sql-v1"}
    status = {"history": [entry | {"uri": "s3://adapters/sql/0f1e", "sha256": OLD}]}
    pinned = {"uri": uri} | ({"sha256": sha256} if sha256 else {})
    made = planned({"name": "sql", "from": pinned}, status)
    assert bool(made.unresolved) is not known
    if known:
        assert (made.targets["sql"].uri, made.targets["sql"].sha256) == ("s3://adapters/sql/0f1e", OLD)


def test_one_adapter_does_not_wait_for_another() -> None:
    both = [OF_JOB, {"name": "chat", "from": {"uri": "s3://adapters/chat"}}]
    made = plan(deployment(adapters=both), {"sql-v1": job("Succeeded", NEW)}, {})
    assert (list(made.targets), list(made.absent)) == (["sql"], ["chat"])


def test_two_adapters_of_one_origin_are_served_under_two_names() -> None:
    again = {**OF_JOB, "name": "sql-again"}
    made = plan(deployment(adapters=[OF_JOB, again]), {"sql-v1": job("Succeeded", NEW)}, {})
    assert {target.served for target in made.targets.values()} == {"sql-bbbbbbbb", "sql-again-bbbbbbbb"}


@pytest.mark.parametrize(
    ("of", "text"),
    [
        ({"fineTuneJobRef": {"name": "sql-v1"}}, "FineTuneJob sql-v1"),
        ({"uri": "s3://adapters/sql"}, "s3://adapters/sql"),
        ({"uri": "s3://adapters/sql", "sha256": OLD}, f"s3://adapters/sql@{OLD}"),
    ],
)
def test_an_origin_is_one_line(of: dict[str, Any], text: str) -> None:
    assert origin(deployment(adapters=[{"name": "sql", "from": of}]).spec.adapters[0].from_) == text


def test_without_routes_each_adapter_is_a_model_and_the_base_has_the_resources_name() -> None:
    found = routes(deployment("assistant", adapters=[OF_JOB, {**OF_URI, "name": "chat"}]))
    assert [(route.model, [(each.name, each.adapter) for each in route.variants]) for route in found] == [
        ("assistant", [("base", None)]),
        ("sql", [("sql", "sql")]),
        ("chat", [("chat", "chat")]),
    ]


def test_routes_of_the_spec_are_taken_as_they_are() -> None:
    only = {"model": "support", "variants": [{"name": "a", "adapter": "sql", "weight": 3}]}
    (found,) = routes(deployment(adapters=[OF_JOB], routes=[only]))
    assert (found.model, found.variants[0].adapter, found.variants[0].weight) == ("support", "sql", 3)
