from datetime import UTC, datetime

from aiohttp import web

from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.events import Recorder
from lorikeet_operator.kube.kinds import EVENT
from lorikeet_operator.metrics import EVENTS_FAILED
from tests.unit.kube.api import Api
from tests.unit.kube.objects import config_map

NOW = datetime(2026, 11, 23, 10, 0, 0, 999, tzinfo=UTC)
ABOUT = config_map(version=7)


def recorder(client: Client) -> Recorder:
    return Recorder(client, "operator", lambda: NOW)


async def test_the_same_is_said_once(client: Client, api: Api) -> None:
    events = recorder(client)
    await events.event(ABOUT, "Normal", "Started", "it runs")
    await events.event(ABOUT, "Normal", "Started", "it runs")
    assert len(api.writes) == 1
    await events.event(ABOUT, "Normal", "Started", "it runs again")
    await events.event(ABOUT, "Normal", "Restarted", "it runs")
    await events.event(config_map(version=8, uid="another"), "Normal", "Started", "it runs")
    assert len({path for path in api.objects if "/events/" in path}) == 4


async def test_on_another_occasion_it_is_said_again(client: Client, api: Api) -> None:
    events = recorder(client)
    for occasion in ("7", "7", "9"):
        await events.event(ABOUT, "Normal", "Suspended", "it rests", occasion)
    assert len(api.objects) == 2


async def test_also_after_a_restart(client: Client, api: Api) -> None:
    await recorder(client).event(ABOUT, "Normal", "Started", "it runs")
    later = recorder(client)
    await later.event(ABOUT, "Normal", "Started", "it runs")
    await later.event(ABOUT, "Normal", "Started", "it runs")
    assert len(api.objects) == 1
    assert len(api.writes) == 2, "asked once, and remembered from then on"


async def test_kubectl_describe_finds_it(client: Client, api: Api) -> None:
    await recorder(client).event(ABOUT, "Warning", "Failed", "x" * 2000)
    (event,) = api.objects.values()
    assert event["apiVersion"] == "v1"
    assert event["metadata"]["namespace"] == "ns"
    assert event["involvedObject"]["uid"] == "uid-a"
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2026-11-23T10:00:00Z"
    assert event["source"] == {"component": "operator"}
    assert len(event["message"]) == 1024
    assert len(event["metadata"]["name"]) <= 253


async def test_events_of_the_cluster_s_own_objects_go_to_default(client: Client, api: Api) -> None:
    await recorder(client).event(config_map(version=7, namespace=""), "Normal", "Started", "it runs")
    assert api.writes[0].path == EVENT.path("default")


async def test_a_failure_is_counted_and_not_raised_and_the_event_is_said_later(client: Client, api: Api) -> None:
    events = recorder(client)
    before = EVENTS_FAILED._value.get()
    api.answers.append(web.json_response({"reason": "Forbidden", "message": "terminating"}, status=403))
    await events.event(ABOUT, "Normal", "Started", "it runs")
    assert EVENTS_FAILED._value.get() == before + 1
    await events.event(ABOUT, "Normal", "Started", "it runs")
    assert len(api.objects) == 1
