"""The objects that run engines, held against golden files, and what must be true of them whatever is asked for."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from lorikeet_agent.serving.wanted import WantedFile
from lorikeet_api import names
from lorikeet_api.contract import PVC_DIR
from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_api.names import MAX_DEPLOYMENT_NAME
from lorikeet_api.serving import (
    ADAPTERS_DIR,
    AGENT_PORT,
    CACHE_DIR,
    DRAIN_HEADER,
    ENGINE_CONTRACT,
    MODEL_DIR,
    WANTED,
    AdapterRevision,
    EngineContract,
    WantedAdapters,
)
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator.serving.engine_pods import (
    SETTLE_SECONDS,
    contract,
    drain_token,
    engine_objects,
)
from lorikeet_operator.serving.router_pods import router_objects
from lorikeet_operator.serving.setup import settle
from tests.golden import check_golden
from tests.resources import deployment, profile
from tests.unit.serving.test_setup import INSTALLED

PIN = "12345678" + "0" * 56
SQL = AdapterRevision(served="sql-aaaaaaaa", uri="s3://adapters/team-a/sql/0f1e", sha256="a" * 64)
DPO = AdapterRevision(served="sql-dpo-bbbbbbbb", uri="s3://adapters/team-a/sql-dpo/2d3c", sha256="b" * 64)
ADAPTERS = [
    {"name": "sql", "from": {"fineTuneJobRef": {"name": "sql-v1"}}},
    {"name": "sql-dpo", "from": {"uri": "s3://adapters/team-a/sql-dpo"}},
]
EVERYTHING: dict[str, Any] = {
    "model": {"uri": "hf://mistralai/Mistral-7B-v0.1", "revision": "abc123", "secretRef": {"name": "hf-token"}},
    "engine": {
        "vllm": {
            "image": "registry.example/vllm:1",
            "dtype": "bfloat16",
            "maxModelLen": 4096,
            "maxLoras": 2,
            "maxLoraRank": 64,
            "args": ["--gpu-memory-utilization", "0.8"],
        }
    },
    "replicas": 3,
    "adapters": ADAPTERS,
    "routes": [
        {
            "model": "support",
            "variants": [
                {"name": "a", "adapter": "sql", "weight": 90},
                {"name": "b", "adapter": "sql-dpo", "weight": 10},
            ],
            "sticky": {"header": "x-user-id"},
        },
        {"model": "plain", "variants": [{"name": "base"}]},
    ],
    "strategy": {"maxSurge": 0, "maxUnavailable": 1},
    "compute": {
        "gpus": 2,
        "gpuClass": "a100",
        "resources": {"requests": {"cpu": 4, "memory": "32Gi"}, "limits": {"memory": "64Gi"}},
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]
                }
            }
        },
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "serviceAccountName": "engines",
        "imagePullSecrets": [{"name": "pull"}],
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "podLabels": {"team": "a", "app.kubernetes.io/name": "mine"},
        "podAnnotations": {"note": "x"},
        "terminationGracePeriodSeconds": 600,
        "sharedMemory": "8Gi",
        "scratch": "100Gi",
    },
    "router": {
        "replicas": 3,
        "serviceType": "LoadBalancer",
        "maxRequestBytes": 1048576,
        "idleTimeoutSeconds": 60,
        "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "2Gi"}},
    },
}
EVERYTHING_PROFILE: dict[str, Any] = {
    "storage": {
        "endpoint": "https://s3.example",
        "region": "eu-central-1",
        "secretName": "s3-credentials",
        "caConfigMapName": "company-ca",
    },
    "gpuClasses": [
        {"name": "a100", "nodeSelector": {"gpu": "a100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    ],
    "modelCache": {"persistentVolumeClaim": "models"},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[AdapterRevision]]] = {
    "minimal": ({}, {}, []),
    "everything": (EVERYTHING, EVERYTHING_PROFILE, [SQL, DPO]),
    "claim": ({"model": {"uri": "pvc://models/smollm2/main"}, "compute": {"gpus": 0}}, {}, []),
    "adapters-at-start": ({"engine": {"vllm": {"hotLoading": False}}, "adapters": ADAPTERS}, {}, [SQL, DPO]),
}


def objects(
    asks: ModelDeployment, by: TuningProfile | None = None, adapters: list[AdapterRevision] | None = None
) -> list[dict[str, Any]]:
    setup = settle(asks, by or profile(), INSTALLED)
    return engine_objects(asks, setup, PIN, WantedAdapters(adapters=adapters or []))


def case(name: str) -> list[dict[str, Any]]:
    spec, of_profile, adapters = CASES[name]
    return objects(deployment(**spec), profile(**of_profile), adapters)


def one(made: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the object of a kind, of which there is one."""
    (found,) = [each for each in made if each["kind"] == kind]
    return found


def template_of(made: list[dict[str, Any]]) -> dict[str, Any]:
    template: dict[str, Any] = one(made, "Deployment")["spec"]["template"]
    return template


def containers_of(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in [*pod.get("initContainers", []), *pod["containers"]]}


def contract_of(template: dict[str, Any]) -> EngineContract:
    return EngineContract.model_validate_json(template["metadata"]["annotations"][names.ANNOTATION_CONTRACT])


def is_restricted(pod: Mapping[str, Any]) -> None:
    """Require of a pod what Pod Security `restricted` does, and a root file system that nobody writes to.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"].get("runAsUser") != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim"}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("name", CASES)
def test_the_objects_of_engines_are_the_golden_ones(name: str) -> None:
    check_golden(f"serving/engine-{name}.yaml", case(name))


@pytest.mark.parametrize("name", CASES)
def test_engines_may_run_in_a_restricted_namespace(name: str) -> None:
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
    assert one(made, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels


def test_building_twice_gives_equal_objects() -> None:
    assert case("everything") == case("everything")


WEIGHTS = [{"name": "a", "adapter": "sql", "weight": 1}, {"name": "b", "weight": 99}]


def test_who_changes_weights_restarts_no_engine() -> None:
    changed = EVERYTHING | {"routes": [{"model": "support", "variants": WEIGHTS}]}
    by = profile(**EVERYTHING_PROFILE)
    assert objects(deployment(**changed), by, [SQL, DPO]) == case("everything")


def test_where_adapters_are_loaded_while_it_runs_a_new_revision_restarts_no_engine() -> None:
    newer = [SQL.model_copy(update={"served": "sql-cccccccc", "sha256": "c" * 64}), DPO]
    before = case("everything")
    after = objects(deployment(**EVERYTHING), profile(**EVERYTHING_PROFILE), newer)
    assert one(after, "Deployment") == one(before, "Deployment")
    assert one(after, "ConfigMap") != one(before, "ConfigMap")


def test_nor_does_one_adapter_more() -> None:
    third = {"name": "third", "from": {"fineTuneJobRef": {"name": "third-v1"}}}
    by = profile(**EVERYTHING_PROFILE)
    after = objects(deployment(**EVERYTHING | {"adapters": [*ADAPTERS, third]}), by, [SQL, DPO])
    assert one(after, "Deployment") == one(case("everything"), "Deployment")


def test_where_adapters_are_loaded_at_start_a_new_revision_replaces_the_pods_one_after_the_other() -> None:
    asks = deployment(**CASES["adapters-at-start"][0])
    before, after = template_of(objects(asks, None, [SQL])), template_of(objects(asks, None, [SQL, DPO]))
    assert contract_of(after).adapters == [SQL, DPO]
    assert f"sql-dpo-bbbbbbbb={ADAPTERS_DIR}/sql-dpo-bbbbbbbb" in containers_of(after["spec"])["engine"]["args"]
    assert before != after


def test_an_engine_that_loads_adapters_while_it_runs_is_started_with_none() -> None:
    template = template_of(case("everything"))
    assert contract_of(template).adapters == []
    assert SQL.served not in json.dumps(template)


def test_the_agent_is_told_of_adapters_by_a_file_that_may_change(tmp_path: Any) -> None:
    made = case("everything")
    folder, _, file = WANTED.rpartition("/")
    agent = containers_of(template_of(made)["spec"])["agent"]
    (mount,) = [each for each in agent["volumeMounts"] if each["mountPath"] == folder]
    assert "subPath" not in mount, "it would never change"
    (volume,) = [each for each in template_of(made)["spec"]["volumes"] if each["name"] == mount["name"]]
    assert volume["configMap"]["name"] == one(made, "ConfigMap")["metadata"]["name"]
    (tmp_path / file).write_text(one(made, "ConfigMap")["data"][file])
    read = WantedFile(tmp_path / file)
    assert read.changed()
    assert list(read.adapters) == [SQL, DPO]
    assert read.fingerprint == WantedAdapters(adapters=[SQL, DPO]).fingerprint


def test_the_fingerprint_is_that_of_the_adapters_wherever_requests_are_led() -> None:
    wanted = WantedAdapters(adapters=[SQL])
    assert wanted.fingerprint != WantedAdapters().fingerprint
    assert wanted.fingerprint == WantedAdapters(adapters=[SQL], led=[SQL.served]).fingerprint


@pytest.mark.parametrize("name", CASES)
def test_fetcher_and_agent_read_the_contract(name: str) -> None:
    spec, of_profile, adapters = CASES[name]
    asks = deployment(**spec)
    setup = settle(asks, profile(**of_profile), INSTALLED)
    template = template_of(case(name))
    assert contract_of(template) == contract(asks, setup, PIN, WantedAdapters(adapters=adapters))
    folder, _, file = ENGINE_CONTRACT.rpartition("/")
    (volume,) = [each for each in template["spec"]["volumes"] if each["name"] == "contract"]
    (item,) = volume["downwardAPI"]["items"]
    assert item["path"] == file
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{names.ANNOTATION_CONTRACT}']"
    for name_of in ("model", "agent"):
        mounts = containers_of(template["spec"])[name_of]["volumeMounts"]
        assert {"name": "contract", "mountPath": folder, "readOnly": True} in mounts


def test_only_the_kubelet_of_its_own_pods_may_drain_an_engine() -> None:
    template = template_of(case("minimal"))
    token = contract_of(template).drain
    hook = containers_of(template["spec"])["engine"]["lifecycle"]["preStop"]["httpGet"]
    assert (hook["path"], hook["port"]) == ("/drain", AGENT_PORT)
    assert hook["httpHeaders"] == [{"name": DRAIN_HEADER, "value": token}]
    asks = deployment()
    assert token == drain_token(asks)
    made_anew = asks.model_copy(update={"metadata": asks.metadata.model_copy(update={"uid": "another"})})
    assert drain_token(made_anew) != token


@pytest.mark.parametrize("name", CASES)
def test_requests_in_flight_get_their_time_and_the_agent_a_moment_more(name: str) -> None:
    template = template_of(case(name))
    drain = contract_of(template).drain_seconds
    assert drain == (600 if name == "everything" else 300)
    assert template["spec"]["terminationGracePeriodSeconds"] > drain


def test_the_agent_is_there_before_the_engine_and_gone_after_it_and_waits_for_nothing() -> None:
    pod = template_of(case("minimal"))["spec"]
    assert [(each["name"], each.get("restartPolicy")) for each in pod["initContainers"]] == [
        ("model", None),
        ("agent", "Always"),
    ]
    assert containers_of(pod)["agent"]["startupProbe"]["httpGet"]["path"] == "/healthz", "not that of the engine"


def test_no_old_replica_goes_before_routers_have_found_the_new_one() -> None:
    spec = one(case("everything"), "Deployment")["spec"]
    assert spec["minReadySeconds"] == SETTLE_SECONDS
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    usual = one(case("minimal"), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert usual == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_model_may_take_an_hour_to_load_and_a_hung_engine_is_noticed_in_a_minute() -> None:
    engine = containers_of(template_of(case("minimal"))["spec"])["engine"]
    seconds = {
        kind: each["periodSeconds"] * each["failureThreshold"] for kind, each in engine.items() if "Probe" in kind
    }
    assert seconds == {"startupProbe": 3600, "readinessProbe": 6, "livenessProbe": 60}


def test_a_cached_model_is_written_by_the_fetcher_alone() -> None:
    template = template_of(case("everything"))
    assert contract_of(template).cached
    found = containers_of(template["spec"])
    assert found["engine"]["args"][0] == f"{CACHE_DIR}/{PIN}"
    (of_engine,) = [each for each in found["engine"]["volumeMounts"] if each["name"] == "cache"]
    (of_fetcher,) = [each for each in found["model"]["volumeMounts"] if each["name"] == "cache"]
    assert (of_engine["readOnly"], of_fetcher.get("readOnly")) == (True, None)


def test_without_a_cache_the_model_is_the_pods_own() -> None:
    template = template_of(case("minimal"))
    assert not contract_of(template).cached
    assert containers_of(template["spec"])["engine"]["args"][0] == MODEL_DIR


def test_a_model_on_a_claim_is_not_copied_into_the_cache() -> None:
    asks = deployment(model={"uri": "pvc://models/smollm2/main"})
    template = template_of(objects(asks, profile(modelCache={"persistentVolumeClaim": "cache"})))
    assert not contract_of(template).cached
    for name in ("model", "agent", "engine"):
        mounts = containers_of(template["spec"])[name]["volumeMounts"]
        assert {"name": "model-claim", "mountPath": f"{PVC_DIR}/models", "readOnly": True} in mounts


def test_an_engine_gets_no_credentials() -> None:
    found = containers_of(template_of(case("everything"))["spec"])
    assert {each["name"] for each in found["model"]["env"]} >= {"AWS_ACCESS_KEY_ID", "HF_TOKEN"}
    of_engine = {each["name"] for each in found["engine"]["env"]}
    assert not of_engine & {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"}
    assert "HTTPS_PROXY" in of_engine, "it is the user's"


def test_no_credential_value_is_ever_in_an_object() -> None:
    for each in containers_of(template_of(case("everything"))["spec"]).values():
        secret = [variable for variable in each["env"] if "KEY" in variable["name"] or "TOKEN" in variable["name"]]
        assert all("value" not in variable for variable in secret)


def labels_of(made: list[dict[str, Any]]) -> dict[str, str]:
    labels: dict[str, str] = template_of(made)["metadata"]["labels"]
    return labels


def routers(asks: ModelDeployment) -> dict[str, str]:
    """Return the labels of the router pods of a ModelDeployment."""
    return labels_of(router_objects(asks, settle(asks, profile(), INSTALLED), b"{}"))


def ports_for(policy: dict[str, Any], namespace: str, labels: Mapping[str, str]) -> set[int]:
    """Return the ports that a policy opens to a pod with these labels."""
    return {
        port["port"]
        for rule in policy["spec"]["ingress"]
        for port in rule["ports"]
        if "from" not in rule
        or any(
            namespace == policy["metadata"]["namespace"]
            and peer["podSelector"]["matchLabels"].items() <= labels.items()
            for peer in rule["from"]
        )
    }


@pytest.mark.parametrize("name", CASES)
def test_an_engine_is_reached_by_its_own_routers_alone_and_its_agent_by_everybody(name: str) -> None:
    engine = containers_of(template_of(case(name))["spec"])["engine"]["ports"][0]["containerPort"]
    policy = one(case(name), "NetworkPolicy")
    own = deployment()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert ports_for(policy, "team-a", routers(own)) == {engine, AGENT_PORT}
    assert ports_for(policy, "team-b", routers(own)) == {AGENT_PORT}
    for strangers in (routers(deployment("other")), labels_of(objects(own)), {"app": "prometheus"}):
        assert ports_for(policy, "team-a", strangers) == {AGENT_PORT}


def test_a_platform_may_have_no_policy_made() -> None:
    asks = deployment()
    without = engine_objects(
        asks, settle(asks, profile(), replace(INSTALLED, network_policies=False)), PIN, WantedAdapters()
    )
    assert without == [each for each in objects(asks) if each["kind"] != "NetworkPolicy"]


def test_no_policy_limits_who_uses_a_router() -> None:
    made = router_objects(deployment(), settle(deployment(), profile(), INSTALLED), b"{}")
    assert "NetworkPolicy" not in {each["kind"] for each in made}
    policy = one(objects(deployment()), "NetworkPolicy")
    assert not policy["spec"]["podSelector"]["matchLabels"].items() <= labels_of(made).items()


def test_an_engine_without_gpus_asks_for_none() -> None:
    engine = containers_of(template_of(case("claim"))["spec"])["engine"]
    assert engine["resources"] == {"requests": {"cpu": "1", "memory": "2Gi"}}
    assert "--tensor-parallel-size" not in engine["args"]


def test_all_gpus_of_a_replica_share_one_copy_of_the_model() -> None:
    engine = containers_of(template_of(case("everything"))["spec"])["engine"]
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == engine["resources"]["requests"]["nvidia.com/gpu"] == 2
    assert engine["args"][engine["args"].index("--tensor-parallel-size") + 1] == "2"


def test_users_cannot_take_over_our_labels_and_annotations() -> None:
    mine = {
        "podLabels": {"app.kubernetes.io/managed-by": "me", names.LABEL_MODELDEPLOYMENT: "other", "team": "a"},
        "podAnnotations": {names.ANNOTATION_CONTRACT: "{}", "mine": "stays"},
    }
    metadata = template_of(objects(deployment(compute=mine)))["metadata"]
    assert metadata["labels"]["app.kubernetes.io/managed-by"] == "lorikeet"
    assert (metadata["labels"][names.LABEL_MODELDEPLOYMENT], metadata["labels"]["team"]) == ("assistant", "a")
    assert EngineContract.model_validate_json(metadata["annotations"][names.ANNOTATION_CONTRACT]).name == "assistant"
    assert metadata["annotations"]["mine"] == "stays"


def test_the_names_of_the_longest_deployment_fit() -> None:
    for each in objects(deployment("a" * MAX_DEPLOYMENT_NAME)):
        # The Deployment's pods get 10 characters of its hash, and Kubernetes cuts what comes before its own 5.
        assert len(each["metadata"]["name"]) + len("-0123456789") <= 63, each["kind"]
