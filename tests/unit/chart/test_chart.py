"""The chart, as rendered by `helm template`."""

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator.settings import Settings
from scripts import chart_readme
from tests.golden import check_golden
from tests.unit.chart.helm import (
    CHART,
    KUBE_VERSION,
    NAMESPACE,
    RELEASE,
    ROOT,
    documents,
    objects,
    of_kind,
    render,
    run,
    template,
    tool,
)
from tests.unit.chart.schemas import openapi_folder, write_schema

VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")
DIGEST = "sha256:" + "0123456789abcdef" * 4

Values = dict[str, Any]

ALL: Values = {
    "image": {"repository": "images.example/lorikeet-operator", "digest": DIGEST},
    "imagePullSecrets": [{"name": "pull"}],
    "watchNamespaces": ["team-a", "team-b"],
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "infra", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]
            }
        }
    },
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"example.com/note": "1"},
    "podLabels": {"example.com/team": "ml"},
    "progress": {"certificate": "certManager"},
    "serviceAccount": {"name": "operator", "annotations": {"example.com/role": "none"}},
    "service": {"annotations": {"example.com/note": "2"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboards": {"enabled": True, "labels": {"dashboard": "yes"}},
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "apiServer": {"cidrs": ["10.0.0.1/32"]},
    },
}
"""Every part of the chart at once."""

FOREIGN = ("ServiceMonitor", "PodMonitor", "PrometheusRule", "Issuer", "Certificate")
"""Kinds that are not Kubernetes' own: their definitions are nowhere in this repository."""

SHORT: Values = {"crds": {"install": False}, "prometheusRule": {"enabled": False}, "dashboards": {"enabled": False}}
"""Without what is a file of the chart as it is: other tests hold it against the file, and it would hide all else."""

# Path of a value -> what it is changed to, and the values without which it has nothing to act on.
CHANGES: dict[str, tuple[Any, Values]] = {
    "image.repository": ("images.example/operator", {}),
    "image.tag": ("9.9.9", {}),
    "image.digest": (DIGEST, {}),
    "image.pullPolicy": ("Always", {}),
    "imagePullSecrets": ([{"name": "pull"}], {}),
    "agent.enabled": (False, {}),
    "agent.image.repository": ("images.example/agent", {}),
    "agent.image.tag": ("9.9.9", {}),
    "agent.image.digest": (DIGEST, {}),
    "agent.memory": ("2Gi", {}),
    "engine.image.repository": ("images.example/engine", {}),
    "engine.image.tag": ("9.9.9", {}),
    "engine.image.digest": (DIGEST, {}),
    "engine.networkPolicy": (False, {}),
    "router.image.repository": ("images.example/router", {}),
    "router.image.tag": ("9.9.9", {}),
    "router.image.digest": (DIGEST, {}),
    "trainer.image.repository": ("images.example/trainer", {}),
    "trainer.image.tag": ("9.9.9", {}),
    "trainer.image.digest": (DIGEST, {}),
    "progress.enabled": (False, {}),
    "progress.certificate": ("certManager", {}),
    "progress.secretName": ("tls", {}),
    "progress.certManager.issuerName": ("company", {"progress": {"certificate": "certManager"}}),
    "progress.certManager.issuerKind": (
        "ClusterIssuer",
        {"progress": {"certificate": "certManager", "certManager": {"issuerName": "company"}}},
    ),
    "watchNamespaces": (["team-a"], {}),
    "logLevel": ("DEBUG", {}),
    "workers": (3, {}),
    "qps": (7.5, {}),
    "burst": (9, {}),
    "replicas": (3, {}),
    "leaseDuration": (30, {}),
    "resources": ({"limits": {"memory": "1Gi"}}, {}),
    "nodeSelector": ({"disk": "ssd"}, {}),
    "tolerations": ([{"operator": "Exists"}], {}),
    "affinity": ({"nodeAffinity": {}}, {}),
    "priorityClassName": ("high", {}),
    "podAnnotations": ({"a": "b"}, {}),
    "podLabels": ({"a": "b"}, {}),
    "serviceAccount.create": (False, {"serviceAccount": {"name": "own"}}),
    "serviceAccount.name": ("own", {}),
    "serviceAccount.annotations": ({"a": "b"}, {}),
    "rbac.create": (False, {"progress": {"enabled": False}}),
    "rbac.aggregate": (False, {}),
    "crds.install": (False, {}),
    "crds.keep": (False, {}),
    "service.create": (False, {}),
    "service.port": (9090, {}),
    "service.annotations": ({"a": "b"}, {}),
    "serviceMonitor.enabled": (True, {}),
    "serviceMonitor.labels": ({"a": "b"}, {"serviceMonitor": {"enabled": True}}),
    "serviceMonitor.interval": ("5s", {"serviceMonitor": {"enabled": True}}),
    "podMonitor.enabled": (True, {}),
    "podMonitor.labels": ({"a": "b"}, {"podMonitor": {"enabled": True}}),
    "podMonitor.interval": ("5s", {"podMonitor": {"enabled": True}}),
    "prometheusRule.enabled": (True, {}),
    "prometheusRule.labels": ({"a": "b"}, {"prometheusRule": {"enabled": True}}),
    "dashboards.enabled": (True, {}),
    "dashboards.labels": ({"a": "b"}, {"dashboards": {"enabled": True}}),
    "networkPolicy.enabled": (True, {}),
    "networkPolicy.metricsFrom": ([{"podSelector": {}}], {"networkPolicy": {"enabled": True}}),
    "networkPolicy.apiServer.ports": ([8443], {"networkPolicy": {"enabled": True}}),
    "networkPolicy.apiServer.cidrs": (["10.0.0.1/32"], {"networkPolicy": {"enabled": True}}),
    "nameOverride": ("parrot", {}),
    "fullnameOverride": ("parrot", {}),
}


def merged(base: Values, path: str, value: Any) -> Values:
    """Return `base` with one value more."""
    name, _, rest = path.partition(".")
    return {**base, name: merged(base.get(name, {}), rest, value) if rest else value}


def leaves(value: Any, path: str = "") -> list[str]:
    """Return the paths of all values that are no map, or an empty one."""
    if isinstance(value, dict) and value:
        return list(chain.from_iterable(leaves(each, f"{path}.{name}".lstrip(".")) for name, each in value.items()))
    return [path]


def rules(rendered: list[Values]) -> list[Values]:
    return [rule for role in of_kind(rendered, "Role", "ClusterRole") for rule in role["rules"]]


def is_hook(rendered: Values) -> bool:
    return "helm.sh/hook" in rendered["metadata"].get("annotations", {})


def deployment(values: Values | None = None) -> Values:
    (found,) = of_kind(objects(values), "Deployment")
    return found


def environment(values: Values | None = None) -> dict[str, str]:
    (container,) = deployment(values)["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}


def test_helm_lint_has_nothing_to_say() -> None:
    said = run(tool("helm"), "lint", "--strict", str(CHART)).stdout
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


@pytest.mark.parametrize("values", [{}, ALL], ids=["defaults", "everything"])
def test_two_renders_are_equal_byte_for_byte(values: Values) -> None:
    assert render(values) == render(values)


@pytest.mark.parametrize("word", ["rand", "genCA", "genSigned", "genSelfSigned", "uuidv4", "now", "lookup", "ago"])
def test_no_template_asks_for_what_differs_between_renders(word: str) -> None:
    # Two renders a millisecond apart prove little: `lookup` is empty in `helm template` and not in an upgrade.
    actions = re.compile(r"\{\{-?\s*(?!/\*)(.*?)\}\}", re.DOTALL)
    for path in (CHART / "templates").iterdir():
        for action in actions.findall(path.read_text(encoding="utf-8")):
            assert not re.search(rf"\b{word}", action), f"{path.name}: {action}"


def test_the_defaults_render_the_golden_objects() -> None:
    check_golden("chart/default.yaml", objects(SHORT))


def test_everything_renders_the_golden_objects() -> None:
    check_golden("chart/everything.yaml", objects({**ALL, **SHORT}))


@pytest.mark.parametrize("values", [{}, ALL], ids=["defaults", "everything"])
def test_kubeconform_takes_every_object(values: Values, tmp_path: Path) -> None:
    text = render(values)
    openapi = openapi_folder()
    for each in documents(text):
        if each["kind"] not in FOREIGN:
            write_schema(openapi, tmp_path, each["apiVersion"], each["kind"])
    location = f"{tmp_path}/{{{{ .Group }}}}/{{{{ .ResourceKind }}}}_{{{{ .ResourceAPIVersion }}}}.json"
    command = [tool("kubeconform"), "-strict", "-summary", "-skip", ",".join(FOREIGN), "-schema-location", location]
    said = run(*command, input=text).stdout
    assert "Invalid: 0, Errors: 0" in said
    misspelt = text.replace("terminationGracePeriodSeconds:", "terminationGracePeriod:")
    refused = run(*command, check=False, input=misspelt)
    assert refused.returncode != 0, "kubeconform would not notice a misspelt field"
    assert "terminationGracePeriod" in refused.stdout


@pytest.mark.parametrize("values", [{}, ALL], ids=["defaults", "everything"])
def test_the_pod_is_as_restricted_as_pod_security_asks(values: Values) -> None:
    pod = deployment(values)["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(volume.keys() - {"name"} in ({"emptyDir"}, {"secret"}) for volume in pod["volumes"])
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("values", [{}, ALL], ids=["defaults", "everything"])
def test_no_role_has_a_wildcard_or_sees_a_secret(values: Values) -> None:
    found = rules([each for each in objects(values) if not is_hook(each)])
    assert found
    for rule in found:
        words = [word for names in rule.values() for word in names]
        assert not [word for word in words if "*" in word], rule
        assert "secrets" not in rule["resources"], rule
        assert rule.keys() - {"resourceNames"} == {"apiGroups", "resources", "verbs"}, rule
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), rule


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a"]}], ids=["cluster", "namespace"])
def test_the_operator_deletes_nothing(values: Values) -> None:
    found = rules(objects({**values, "rbac": {"aggregate": False}}))
    assert found
    assert not [rule for rule in found if {"delete", "deletecollection", "update"} & set(rule["verbs"])]


def test_the_rights_are_the_golden_ones() -> None:
    roles = [
        {
            role["metadata"]["name"]: {
                f"{resource}.{group}".rstrip("."): rule["verbs"]
                for rule in role["rules"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
            }
        }
        for role in of_kind(objects(), "ClusterRole", "Role")
    ]
    check_golden("chart/rbac.yaml", roles)


def test_namespaces_take_the_rights_out_of_the_cluster() -> None:
    values: Values = {"rbac": {"aggregate": False}, "progress": {"certificate": "secret", "secretName": "tls"}}
    rendered = objects({**values, "watchNamespaces": ["team-a", "team-b"]})
    assert rules(of_kind(rendered, "ClusterRole")) == [
        {"apiGroups": ["lorikeet.dev"], "resources": ["tuningprofiles"], "verbs": ["list", "watch"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    ]
    everywhere = rules(of_kind(objects(values), "ClusterRole"))
    lease = f"{RELEASE}-lease"
    roles = [role for role in of_kind(rendered, "Role") if role["metadata"]["name"] != lease]
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    for role in roles:
        assert role["rules"] == [
            rule for rule in everywhere if not {"tuningprofiles", "tokenreviews"} & set(rule["resources"])
        ]
    for binding in of_kind(rendered, "RoleBinding"):
        assert binding["roleRef"]["name"] == binding["metadata"]["name"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": RELEASE, "namespace": NAMESPACE}]


@pytest.mark.parametrize(("role", "into"), [("admin", "admin"), ("editor", "edit"), ("viewer", "view")])
def test_people_get_their_rights_by_aggregation(role: str, into: str) -> None:
    (found,) = [each for each in of_kind(objects(), "ClusterRole") if each["metadata"]["name"].endswith(f":{role}")]
    labels = {name: value for name, value in found["metadata"]["labels"].items() if "aggregate" in name}
    assert labels == {f"rbac.authorization.k8s.io/aggregate-to-{into}": "true"}


def test_the_lease_is_the_only_one_that_replicas_may_take() -> None:
    (role,) = [role for role in of_kind(objects(), "Role") if role["metadata"]["name"] == f"{RELEASE}-lease"]
    assert role["metadata"]["namespace"] == NAMESPACE
    by_verb = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    assert by_verb == {"create": None, "get": [RELEASE], "patch": [RELEASE]}


def test_the_hook_sees_one_secret_and_makes_it_before_the_operator_starts() -> None:
    hooks = [each for each in objects() if is_hook(each)]
    weights = {each["kind"]: int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in hooks}
    assert weights["Job"] > weights["RoleBinding"] > weights["Role"]
    (role,) = of_kind(hooks, "Role")
    by_verb = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    secret = f"{RELEASE}-progress"
    assert by_verb == {"create": None, "get": [secret], "patch": [secret]}
    (job,) = of_kind(hooks, "Job")
    pod = job["spec"]["template"]["spec"]
    assert f"--secret={secret}" in pod["containers"][0]["args"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (volume,) = [each for each in deployment()["spec"]["template"]["spec"]["volumes"] if "secret" in each]
    assert volume["secret"]["secretName"] == secret
    assert "ca.key" not in str(volume)


@pytest.mark.parametrize("certificate", ["hook", "certManager"])
def test_the_certificate_is_for_the_name_at_which_pods_reach_the_endpoint(certificate: str) -> None:
    values: Values = {"progress": {"certificate": certificate}}
    host = environment(values)["LORIKEET_PROGRESS_URL"].removeprefix("https://")
    (service,) = [
        each for each in of_kind(objects(values), "Service") if f"{each['metadata']['name']}.{NAMESPACE}.svc" == host
    ]
    assert service["spec"]["ports"][0]["port"] == 443
    makers = [each for each in objects(values) if each["kind"] in ("Certificate", "Job")]
    assert any(host in str(each["spec"]) for each in makers)


@pytest.mark.parametrize(("replicas", "budgets"), [(0, 0), (1, 0), (2, 1)])
def test_a_budget_keeps_a_replica_through_a_drain(replicas: int, budgets: int) -> None:
    assert len(of_kind(objects({"replicas": replicas}), "PodDisruptionBudget")) == budgets


def test_the_schema_knows_each_value_and_no_other() -> None:
    schema = YAML(typ="safe", pure=True).load((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def walk(value: Any, known: Values, path: str) -> None:
        if isinstance(value, dict) and "properties" in known:
            assert known["additionalProperties"] is False, path
            assert path == "resources" or path == "affinity" or set(value) == set(known["properties"]) - {"global"}
            for name, each in value.items():
                walk(each, known["properties"][name], f"{path}.{name}".lstrip("."))

    walk(YAML(typ="safe", pure=True).load(VALUES), schema, "")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"bogus": 1}, "bogus"),
        ({"image": {"repo": "x"}}, "repo"),
        ({"networkPolicy": {"apiServer": {"host": "x"}}}, "host"),
        ({"resources": {"claims": []}}, "claims"),
        ({"image": {"digest": "sha256:abc"}}, "digest"),
        ({"replicas": 9}, "replicas"),
        ({"logLevel": "TRACE"}, "logLevel"),
        ({"watchNamespaces": ["a,b"]}, "watchNamespaces"),
        ({"podAnnotations": {"a": 1}}, "podAnnotations"),
        ({"agent": {"memory": "255Mi"}}, "memory"),
        ({"serviceMonitor": {"interval": "often"}}, "interval"),
        ({"podMonitor": {"interval": "often"}}, "interval"),
        ({"engine": {"networkPolicy": "no"}}, "networkPolicy"),
        ({"dashboards": {"labels": {"a": 1}}}, "labels"),
    ],
)
def test_the_schema_refuses(values: Values, word: str) -> None:
    done = template(values, check=False)
    assert done.returncode != 0
    assert "schema" in done.stderr
    assert word in done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"serviceAccount": {"create": False}}, "serviceAccount.name: name the ServiceAccount that exists"),
        ({"progress": {"certificate": "secret"}}, "progress.secretName: name the Secret"),
        ({"rbac": {"create": False}}, "progress.certificate: the hook that makes it needs rbac.create"),
        ({"service": {"create": False}, "serviceMonitor": {"enabled": True}}, "serviceMonitor.enabled needs service"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values: Values, message: str) -> None:
    done = template(values, check=False)
    assert done.returncode != 0
    assert message in done.stderr


def test_names_that_look_like_numbers_stay_text() -> None:
    command = [tool("helm"), "template", "123", str(CHART), "--kube-version", KUBE_VERSION, "--namespace", "2024"]
    text = run(*command, "--set-json", 'watchNamespaces=["2025"]').stdout
    for each in documents(text):
        metadata = each["metadata"]
        assert all(isinstance(value, str) for value in metadata.get("labels", {}).values()), metadata
        assert isinstance(metadata["name"], str)
        assert isinstance(metadata.get("namespace", ""), str)


def test_an_older_kubernetes_is_refused() -> None:
    command = [tool("helm"), "template", RELEASE, str(CHART), "--kube-version"]
    run(*command, "1.31.0")
    run(*command, f"{KUBE_VERSION}-vendor.1")
    refused = run(*command, "1.30.9", check=False)
    assert refused.returncode != 0
    assert "chart requires kubeVersion: >=1.31.0-0" in refused.stderr


def test_each_value_has_a_change_that_shows_it_is_not_inert() -> None:
    described = [path for path, _, _ in chart_readme.rows(VALUES)]
    assert sorted(CHANGES) == sorted(described)
    for leaf in leaves(YAML(typ="safe", pure=True).load(VALUES)):
        assert any(leaf == path or leaf.startswith(f"{path}.") for path in CHANGES), leaf


@pytest.mark.parametrize("path", CHANGES)
def test_no_value_is_inert(path: str) -> None:
    value, needed = CHANGES[path]
    assert render(needed) != render(merged(needed, path, value))


@pytest.mark.parametrize("values", [{}, ALL], ids=["defaults", "everything"])
def test_the_operator_understands_its_environment(values: Values) -> None:
    variables = environment(values)
    known = {f"LORIKEET_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert variables.keys() <= known, "a variable that the operator does not read"
    Settings.load([], variables)
    # Kubernetes' own variables for Services have the same prefix.
    assert deployment(values)["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_values_are_the_operators_own_defaults() -> None:
    given = Settings.load([], environment())
    own = Settings()
    assert given.trainer_image.startswith("lorikeet-trainer:")
    assert given.agent_image.startswith("lorikeet-agent:")
    for name in ("agent_memory", "network_policies", "namespaces", "workers", "qps", "burst", "log_level"):
        assert getattr(given, name) == getattr(own, name), name


def test_values_reach_the_operator() -> None:
    values: Values = {
        "watchNamespaces": ["team-a", "team-b"],
        "workers": 1000,
        "qps": 2500.5,
        "burst": 100000,
        "leaseDuration": 30,
        "logLevel": "ERROR",
        "agent": {"image": {"repository": "images.example:5000/agent", "tag": "1.2.3"}, "memory": "3Gi"},
        "engine": {"image": {"repository": "images.example:5000/vllm", "tag": "1.2.3"}, "networkPolicy": False},
        "router": {"image": {"repository": "images.example:5000/envoy", "tag": "1.2.3", "digest": DIGEST}},
        "trainer": {"image": {"repository": "images.example:5000/trainer", "tag": "1.2.3", "digest": DIGEST}},
    }
    assert Settings.load([], environment(values)) == Settings(
        agent_image="images.example:5000/agent:1.2.3",
        agent_memory="3Gi",
        vllm_image="images.example:5000/vllm:1.2.3",
        network_policies=False,
        router_image=f"images.example:5000/envoy:1.2.3@{DIGEST}",
        trainer_image=f"images.example:5000/trainer:1.2.3@{DIGEST}",
        namespaces=("team-a", "team-b"),
        workers=1000,
        qps=2500.5,
        burst=100000,
        lease_namespace=NAMESPACE,
        lease_name=RELEASE,
        lease_duration=30.0,
        log_level="ERROR",
        progress_url=f"https://{RELEASE}-progress.{NAMESPACE}.svc",
    )


def test_port_and_grace_are_the_operators() -> None:
    pod = deployment()["spec"]["template"]["spec"]
    ports = {each["name"]: each["containerPort"] for each in pod["containers"][0]["ports"]}
    assert ports == {"http": Settings().http_port, "progress": Settings().progress_port}
    mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts["progress-tls"] == Settings().progress_tls
    # Running reconciles get their grace, and the watches some seconds to close.
    assert pod["terminationGracePeriodSeconds"] >= Settings().shutdown_grace + 10
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert pod["containers"][0][probe]["httpGet"] == {"path": path, "port": "http"}


def test_selectors_meet_the_pod() -> None:
    rendered = objects(ALL)
    labels = deployment(ALL)["spec"]["template"]["metadata"]["labels"].items()
    service, progress = sorted(of_kind(rendered, "Service"), key=lambda each: len(each["metadata"]["name"]))
    (policy,) = of_kind(rendered, "NetworkPolicy")
    (monitor,) = of_kind(rendered, "ServiceMonitor")
    assert service["spec"]["selector"].items() <= labels
    assert progress["spec"]["selector"].items() <= labels
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_labels_of_people_do_not_replace_those_of_the_selector() -> None:
    done = deployment({"podLabels": {"app.kubernetes.io/name": "mine"}})
    wanted = done["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= done["spec"]["template"]["metadata"]["labels"].items()


def test_the_definitions_are_those_of_crds() -> None:
    yaml = YAML(typ="safe", pure=True)
    wanted = {path.name: yaml.load(path.read_text(encoding="utf-8")) for path in (ROOT / "crds").glob("*.yaml")}
    assert wanted
    copies = {path.name: path.read_bytes() for path in (CHART / "files" / "crds").iterdir()}
    assert copies == {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    rendered = of_kind(objects(), "CustomResourceDefinition")
    assert {each["metadata"]["name"]: each["spec"] for each in rendered} == {
        each["metadata"]["name"]: each["spec"] for each in wanted.values()
    }
    for each in rendered:
        assert each["metadata"]["annotations"] == {
            "argocd.argoproj.io/sync-wave": "-1",
            "helm.sh/resource-policy": "keep",
        }


def test_the_definitions_go_with_the_release_only_if_asked() -> None:
    for each in of_kind(objects({"crds": {"keep": False}}), "CustomResourceDefinition"):
        assert "helm.sh/resource-policy" not in each["metadata"]["annotations"]
    assert not of_kind(objects({"crds": {"install": False}}), "CustomResourceDefinition")


def test_two_releases_of_one_name_share_no_name_in_the_cluster() -> None:
    def cluster_names(namespace: str) -> set[tuple[str, str]]:
        command = [tool("helm"), "template", RELEASE, str(CHART), "--kube-version", KUBE_VERSION]
        text = run(*command, "--namespace", namespace, "--set", "crds.install=false").stdout
        return {
            (each["kind"], each["metadata"]["name"]) for each in documents(text) if "namespace" not in each["metadata"]
        }

    assert cluster_names("a")
    assert not cluster_names("a") & cluster_names("b")


def test_the_longest_name_of_a_release_makes_no_name_too_long() -> None:
    """A Service's name is a DNS label, a Job's is a label of its pods: 63 characters. Others may have 253."""
    rendered = objects({"fullnameOverride": "x" * 63})
    short = [each["metadata"]["name"] for each in of_kind(rendered, "Service", "Job", "Deployment")]
    assert len(short) == 4
    assert [name for name in short if len(name) > 63] == []


def test_the_readme_is_in_step_with_the_values() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert chart_readme.undescribed(VALUES) == []
    assert chart_readme.updated(readme, VALUES) == readme, "run scripts/chart_readme.py"


def test_the_readme_would_notice_another_default_and_a_missing_comment() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert chart_readme.updated(readme, VALUES.replace("workers: 16", "workers: 17")) != readme
    assert chart_readme.undescribed(VALUES + "\nextra: 1\n") == ["extra"]


def test_what_the_notes_say_to_apply_can_be_applied() -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    found = [YAML(typ="safe", pure=True).load(text) for text in re.findall(r"<<EOF\n(.*?)\n  EOF", notes, re.DOTALL)]
    filled = [_filled(each) for each in found]
    assert [each["kind"] for each in filled] == ["TuningProfile", "FineTuneJob"]
    TuningProfile.parse(filled[0])
    FineTuneJob.parse(filled[1])


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _filled(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each) for each in value]
    return value.replace("YOUR-BUCKET", "bucket") if isinstance(value, str) else value
