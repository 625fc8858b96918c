"""A ModelDeployment on the whole cluster: two adapters on two real vLLMs behind two real Envoys, used all the while."""

import json
import time
from typing import Any

import pytest

from e2e import colours
from e2e.colours import MODEL, NAME
from e2e.load import load
from e2e.pods import run_python
from e2e.serving import agent_state, deployment, pods, reached, served, steer, wait_for, weights
from e2e.small import until
from e2e.workspace import Workspace, condition

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"


def body(model: str = MODEL, **more: Any) -> dict[str, Any]:
    question = [{"role": "user", "content": "What colour is sky?"}]
    return {"model": model, "messages": question, "max_tokens": 32, "temperature": 0, **more}


def shift(workspace: Workspace, a: int, b: int) -> None:
    """Change the weights, and wait until both routers lead by them."""
    steer(workspace, NAME, routes=[colours.route(a, b)])
    wait_for(workspace, NAME, "Ready", 60)


def test_each_variant_answers_with_its_own_adapter_and_says_which(served_colours: Workspace) -> None:
    with reached(served_colours, NAME) as client:
        for variant, colour in (("a", "red"), ("b", "blue")):
            answer = client.post(CHAT, json=body(), headers={"x-lorikeet-variant": variant})
            assert answer.status_code == 200, answer.text
            said = answer.json()
            assert set(said["choices"][0]["message"]["content"].split()) == {colour}
            assert answer.headers["x-lorikeet-variant"] == variant
            assert answer.headers["x-lorikeet-revision"] == said["model"]
        status = deployment(served_colours, NAME)["status"]
        assert said["model"] == served(status, "cold")
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [MODEL]


@pytest.mark.parametrize(
    ("path", "sent", "status", "code"),
    [
        (CHAT, body("nobody"), 404, "model_not_found"),
        (CHAT, body("warm"), 404, "model_not_found"),
        (CHAT, ["model"], 400, "invalid_body"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/tmp"}, 404, "unknown_path"),
        ("/metrics", {}, 404, "unknown_path"),
    ],
)
def test_what_is_not_led_is_refused_in_openais_shape(
    served_colours: Workspace, path: str, sent: Any, status: int, code: str
) -> None:
    with reached(served_colours, NAME) as client:
        answer = client.post(path, json=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_client_cannot_name_a_revision(served_colours: Workspace) -> None:
    revision = served(deployment(served_colours, NAME)["status"], "cold")
    with reached(served_colours, NAME) as client:
        assert client.post(CHAT, json=body(revision)).status_code == 404


FROM_A_POD = """
import json, urllib.error, urllib.request
found = {}
for method, path in (("GET", "/health"), ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"),
                     ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/v1/models"), ("POST", "/tokenize")):
    request = urllib.request.Request("http://%s:8000" + path, method=method, data=b"{}" if method == "POST" else None)
    try:
        found[path] = urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        found[path] = error.code
print(json.dumps(found))
"""


def test_an_engine_opens_its_admin_endpoints_to_no_other_pod(served_colours: Workspace) -> None:
    address = pods(served_colours, NAME, "engine")[0]["status"]["podIP"]
    found = run_python(served_colours, "stranger", FROM_A_POD % address)
    assert found.pop("/health") == 200
    assert set(found.values()) == {403}, found


def test_a_policy_keeps_engines_for_their_own_routers(served_colours: Workspace) -> None:
    """The network here enforces none, so that all there is to see is whom it means."""

    def meant(selector: dict[str, Any]) -> set[str]:
        labels = ",".join(f"{name}={value}" for name, value in selector["matchLabels"].items())
        found = json.loads(served_colours.kubectl("get", "pods", "-l", labels, "-o", "json"))["items"]
        return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def names(component: str) -> set[str]:
        return {pod["metadata"]["name"] for pod in pods(served_colours, NAME, component)}

    policy = served_colours.get("networkpolicy", f"{NAME}-engine")["spec"]
    of_routers, of_all = policy["ingress"]
    assert meant(policy["podSelector"]) == names("engine")
    assert [meant(peer["podSelector"]) for peer in of_routers["from"]] == [names("router")]
    assert [port["port"] for port in of_routers["ports"]] == [8000]
    assert ("from" in of_all, [port["port"] for port in of_all["ports"]]) == (False, [9000])


def test_traffic_is_split_by_weight_and_a_user_keeps_the_variant(served_colours: Workspace) -> None:
    with load(served_colours, colours.plan(served_colours, concurrency=16)) as client:
        report = client.until_answered(1000, 300)
    assert (report["failures"], report["wrong"], report["moved"]) == ([], [], 0)
    shares = report["variants"]
    # 500 users: 90 % of them by chance, give or take three times 1.3 points.
    assert abs(100 * shares["a"] / (shares["a"] + shares["b"]) - 90) < 4, shares


@pytest.mark.alone
def test_an_edit_moves_the_traffic_within_two_seconds_and_fails_nothing(served_colours: Workspace) -> None:
    shift(served_colours, 1, 0)
    with load(served_colours, colours.plan(served_colours, concurrency=4)) as client:
        client.until_answered(20)
        assert set(client.report()["variants"]) == {"a"}
        edited = time.time()
        steer(served_colours, NAME, routes=[colours.route(0, 1)])
        wait_for(served_colours, NAME, "Ready", 60)
        client.until_answered(40)
        report = client.report()
    assert (report["failures"], report["wrong"]) == ([], [])
    last = max(asked for asked, variant, _ in report["timeline"] if variant == "a")
    assert last - edited < 2, f"variant a was still chosen {last - edited:.1f} s after the edit"
    shift(served_colours, 90, 10)


def test_three_edits_in_two_seconds_end_with_the_last_one(served_colours: Workspace) -> None:
    with load(served_colours, colours.plan(served_colours, concurrency=4)) as client:
        for a, b in ((10, 90), (70, 30), (50, 50)):
            steer(served_colours, NAME, routes=[colours.route(a, b)])
        wait_for(served_colours, NAME, "Ready", 60)
        assert weights(deployment(served_colours, NAME)["status"], MODEL) == {"a": 50, "b": 50}
        report = client.until_answered(20)
    assert (report["failures"], report["wrong"]) == ([], [])
    shift(served_colours, 90, 10)


@pytest.mark.alone
def test_a_new_revision_is_live_seconds_after_its_job_and_the_old_one_comes_back_as_fast(
    served_colours: Workspace, colours_base: str
) -> None:
    workspace = served_colours
    before = deployment(workspace, NAME)["status"]
    old = served(before, "cold")
    shift(workspace, 50, 50)
    with load(workspace, colours.plan(workspace, concurrency=4, pause=0.2, cold="blue|green")) as client:
        workspace.apply(colours.job(workspace, "cold-v2", colours_base, "green"))
        steer(workspace, NAME, adapters=[colours.adapter("warm", job="warm"), colours.adapter("cold", job="cold-v2")])
        waits = wait_for(workspace, NAME, "AdaptersReady", 60, reason="JobNotFinished")
        assert "FineTuneJob cold-v2 is" in condition(waits["status"], "AdaptersReady")["message"]
        assert client.report()["revisions"].get(old), "the old revision answers meanwhile"
        workspace.wait_final("cold-v2", 240)
        done = time.time()
        status = wait_for(workspace, NAME, "Ready", 60)["status"]
        live = time.time() - done
        new = served(status, "cold")
        assert new != old
        assert {each["name"]: each["readyReplicas"] for each in status["adapters"]} == {"warm": 2, "cold": 2}
        until(lambda: client.report()["revisions"].get(new, 0) > 0, "answer of the new revision", 20, client.story)
        assert live < 10, f"{live:.1f} s after the job"

        until(lambda: old not in held(workspace), "unloading of the old revision", 120, workspace.story)
        steer(
            workspace, NAME, adapters=[colours.adapter("warm", job="warm"), colours.adapter("cold", **pinned(before))]
        )
        back = time.time()
        assert served(wait_for(workspace, NAME, "Ready", 60)["status"], "cold") == old
        assert time.time() - back < 15
        client.until_answered(20)
        report = client.report()
    assert (report["failures"], report["wrong"]) == ([], [])
    history = [
        entry["revision"] for entry in deployment(workspace, NAME)["status"]["history"] if entry["adapter"] == "cold"
    ]
    assert history == [old.rpartition("-")[2], new.rpartition("-")[2], old.rpartition("-")[2]]
    assert all(pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in pods(workspace, NAME, "engine"))
    steer(workspace, NAME, adapters=[colours.adapter("warm", job="warm"), colours.adapter("cold", job="cold")])
    shift(workspace, 90, 10)


def held(workspace: Workspace) -> set[str]:
    """Return the served names that any engine still holds."""
    states = [agent_state(workspace, pod) for pod in pods(workspace, NAME, "engine")]
    return {each["served"] for state in states for each in state["adapters"]}


def pinned(status: dict[str, Any]) -> dict[str, str]:
    """Return where the adapter `cold` of a status comes from, by its content."""
    found = next(each for each in status["adapters"] if each["name"] == "cold")
    return {"uri": found["uri"], "sha256": found["sha256"]}


def test_an_adapter_stays_served_when_its_job_is_deleted(served_colours: Workspace) -> None:
    workspace = served_colours
    before = deployment(workspace, NAME)["status"]["adapters"]
    with load(workspace, colours.plan(workspace, concurrency=4)) as client:
        workspace.kubectl("delete", "finetunejob", "warm", "--wait=true")
        client.until_answered(50)
        report = client.report()
    assert (report["failures"], report["wrong"]) == ([], [])
    status = deployment(workspace, NAME)["status"]
    assert status["adapters"] == before
    assert condition(status, "Ready")["status"] == "True"


def test_kubectl_scale_works(served_colours: Workspace) -> None:
    scale = json.loads(served_colours.kubectl("get", "modeldeployment", NAME, "--subresource=scale", "-o", "json"))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    assert "lorikeet.dev/modeldeployment=colours" in scale["status"]["selector"]
