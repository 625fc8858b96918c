"""The chart on a real API server: taken, installed, upgraded, uninstalled, and enough for the operator."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from e2e.cluster.paths import State, default_state_dir
from lorikeet_api.crdgen import RESOURCES
from lorikeet_api.names import GROUP, child_labels
from lorikeet_api.progress import AUDIENCE, path
from lorikeet_operator.certificates import renew
from tests.resources import job_body, profile_body
from tests.s3 import free_port
from tests.unit.chart.helm import CHART, KUBE_VERSION, ROOT, documents, of_kind, run, tool

pytestmark = [
    pytest.mark.integration,
    pytest.mark.xdist_group("chart"),
]

CRDS = tuple(f"{resource.crd['plural']}.{GROUP}" for resource in RESOURCES)
OWNERSHIP = ("meta.helm.sh/release-name", "meta.helm.sh/release-namespace", "helm.sh/resource-policy")


@dataclass(frozen=True)
class Cluster:
    """A namespace of the development cluster, which enforces Pod Security, and a release of its name."""

    namespace: str
    kubeconfig: Path

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        command = [str(State(default_state_dir()).bin / "kubectl"), "--kubeconfig", str(self.kubeconfig)]
        done = run(*command, "--namespace", self.namespace, *arguments, check=check, input=stdin)
        return done.stdout if check else done.stdout + done.stderr

    def helm(self, *arguments: str) -> str:
        command = [tool("helm"), "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace]
        return run(*command, *arguments).stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def create(self, body: dict[str, Any], *arguments: str) -> Any:
        said = self.kubectl("create", "--filename", "-", "--output", "json", *arguments, stdin=json.dumps(body))
        return json.loads(said)

    def render(self, *arguments: str) -> list[dict[str, Any]]:
        # Helm does not ask the server for its version here.
        common = ("--set", "replicas=0", "--kube-version", KUBE_VERSION)
        return documents(self.helm("template", self.namespace, str(CHART), *common, *arguments))

    def exists(self, *arguments: str) -> bool:
        return bool(self.kubectl("get", *arguments, "--ignore-not-found", "--output", "name").strip())

    def await_(self, what: str, done: Callable[[], Any], seconds: float = 30.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := done():
                return found
            time.sleep(0.2)
        pytest.fail(f"{what}: not within {seconds:.0f} s")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    state = State(default_state_dir())
    if not state.kubeconfig.exists():
        pytest.skip("the development cluster is not up")
    here = Cluster(f"chart-{token_hex(3)}", state.kubeconfig)
    here.kubectl("create", "namespace", here.namespace)
    here.kubectl("label", "namespace", here.namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        yield here
    finally:
        here.kubectl("delete", "namespace", here.namespace, "--wait=false")


@pytest.fixture(scope="module")
def borrowed_definitions(cluster: Cluster) -> Iterator[None]:
    """Give the CustomResourceDefinitions back to whom they belonged: a cluster has them only once."""
    before = {
        each["metadata"]["name"]: each["metadata"]
        for each in cluster.get("customresourcedefinitions")["items"]
        if each["metadata"]["name"] in CRDS
    }
    yield
    for name in CRDS:
        if not cluster.exists("customresourcedefinition", name):
            continue
        own = before.get(name, {})
        annotations = {key: (own.get("annotations") or {}).get(key) for key in OWNERSHIP}
        labels = {"app.kubernetes.io/managed-by": (own.get("labels") or {}).get("app.kubernetes.io/managed-by")}
        patch = json.dumps({"metadata": {"annotations": annotations, "labels": labels}})
        cluster.kubectl("patch", "customresourcedefinition", name, "--type=merge", "--patch", patch)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier chart: its version, and a definition that lacks a printer column."""
    chart = tmp_path_factory.mktemp("earlier") / "lorikeet"
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text(encoding="utf-8")
    assert "\nversion: 0.1.0\n" in text
    (chart / "Chart.yaml").write_text(text.replace("\nversion: 0.1.0\n", "\nversion: 0.0.9\n"), encoding="utf-8")
    path = chart / "files" / "crds" / "lorikeet.dev_tuningprofiles.yaml"
    crd = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    crd["spec"]["versions"][0]["additionalPrinterColumns"].pop()
    path.write_text(json.dumps(crd), encoding="utf-8")
    return chart


@pytest.fixture(scope="module")
def profile(cluster: Cluster) -> str:
    """The name of a TuningProfile of this test alone."""
    return cluster.namespace


@pytest.fixture(scope="module")
def release(cluster: Cluster, borrowed_definitions: None, earlier: Path, profile: str) -> Iterator[Cluster]:
    """The release after an upgrade from an earlier chart. Without a pod, also of a hook: no image is needed here."""
    common = ("--set", "replicas=0", "--wait", "--timeout", "60s", "--take-ownership", "--no-hooks")
    try:
        cluster.helm("install", cluster.namespace, str(earlier), *common)
        assert _columns(cluster) < _wanted_columns(), "the earlier chart has the whole definition: nothing to upgrade"
        cluster.await_("the definition is served", lambda: _made(cluster, profile_body(profile)))
        cluster.helm("upgrade", cluster.namespace, str(CHART), *common)
        yield cluster
    finally:
        cluster.kubectl("delete", "tuningprofile", profile, "--ignore-not-found", check=False)
        cluster.helm("uninstall", cluster.namespace, "--ignore-not-found")


def _made(cluster: Cluster, body: dict[str, Any]) -> bool:
    return "created" in cluster.kubectl("create", "--filename", "-", check=False, stdin=json.dumps(body))


def _columns(cluster: Cluster) -> set[str]:
    crd = cluster.get("customresourcedefinition", "tuningprofiles.lorikeet.dev")
    return {each["name"] for each in crd["spec"]["versions"][0]["additionalPrinterColumns"]}


def _wanted_columns() -> set[str]:
    text = (ROOT / "crds" / "lorikeet.dev_tuningprofiles.yaml").read_text(encoding="utf-8")
    crd = YAML(typ="safe", pure=True).load(text)
    return {each["name"] for each in crd["spec"]["versions"][0]["additionalPrinterColumns"]}


def _account(cluster: Cluster) -> str:
    (deployment,) = cluster.get("deployments", "--selector", "app.kubernetes.io/part-of=lorikeet")["items"]
    return str(deployment["spec"]["template"]["spec"]["serviceAccountName"])


def _rights(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_server_takes_all_that_is_rendered(cluster: Cluster) -> None:
    rendered = cluster.render(
        "--set", "networkPolicy.enabled=true", "--set", f"watchNamespaces={{{cluster.namespace}}}"
    )
    assert of_kind(rendered, "Role")
    assert of_kind(rendered, "NetworkPolicy")
    arguments = ("apply", "--dry-run=server", "--validate=strict", "--filename", "-")
    items = {"apiVersion": "v1", "kind": "List", "items": rendered}
    said = cluster.kubectl(*arguments, "--server-side", "--force-conflicts", stdin=json.dumps(items))
    assert said.count("(server dry run)") == len(rendered)


def test_an_upgrade_brings_the_definitions_and_keeps_what_was_made(release: Cluster, profile: str) -> None:
    (found,) = json.loads(release.helm("list", "--output", "json"))
    assert (found["revision"], found["chart"], found["status"]) == ("2", "lorikeet-0.1.0", "deployed")
    assert _columns(release) == _wanted_columns()
    assert release.exists("tuningprofile", profile)


def test_an_upgrade_to_the_same_changes_nothing(release: Cluster) -> None:
    def versions() -> dict[str, str]:
        kinds = "deployment,service,serviceaccount,clusterrole,clusterrolebinding,customresourcedefinition"
        selector = f"app.kubernetes.io/instance={release.namespace}"
        return {
            f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"]
            for each in release.get(kinds, "--selector", selector)["items"]
        }

    before = versions()
    assert len(before) == 9 + len(CRDS)
    release.helm("upgrade", release.namespace, str(CHART), "--set", "replicas=0", "--wait", "--no-hooks")
    assert versions() == before


def test_the_account_has_the_rights_of_the_chart_and_no_more(release: Cluster) -> None:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": release.namespace},
    }

    def rights(account: str) -> set[tuple[str, str, str]]:
        user = f"--as=system:serviceaccount:{release.namespace}:{account}"
        return _rights(release.create(review, user, "--validate=false")["status"]["resourceRules"])

    fullname = f"{release.namespace}-lorikeet"
    names = {("ClusterRole", f"{release.namespace}:{fullname}"), ("Role", f"{fullname}-lease")}
    roles = [each for each in release.render() if (each["kind"], each["metadata"]["name"]) in names]
    assert len(roles) == len(names)
    given = rights(_account(release)) - rights("default")
    assert given == set().union(*(_rights(role["rules"]) for role in roles))
    assert not [right for right in given if right[1] == "secrets" or right[2] == "delete"]


@pytest.mark.parametrize(
    ("role", "right"),
    [
        ("admin", ("lorikeet.dev", "tuningprofiles", "delete")),
        ("edit", ("lorikeet.dev", "finetunejobs", "create")),
        ("edit", ("lorikeet.dev", "modeldeployments", "create")),
        ("view", ("lorikeet.dev", "finetunejobs", "watch")),
    ],
)
def test_people_have_their_rights_by_aggregation(release: Cluster, role: str, right: tuple[str, str, str]) -> None:
    release.await_(
        f"{right} is in {role}", lambda: right in _rights(release.get("clusterrole", role)["rules"]), seconds=15
    )
    view = _rights(release.get("clusterrole", "view")["rules"])
    assert not [each for each in view if each[0] == "lorikeet.dev" and each[2] not in ("get", "list", "watch")]


def test_pod_security_takes_the_pod(release: Cluster) -> None:
    template = release.get("deployments", "--selector", "app.kubernetes.io/part-of=lorikeet")["items"][0]["spec"][
        "template"
    ]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": template["spec"]}
    release.create(pod, "--dry-run=server")
    del pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
    refused = release.kubectl("create", "--dry-run=server", "--filename", "-", check=False, stdin=json.dumps(pod))
    assert "violates PodSecurity" in refused, "the namespace would take any pod"


def test_the_operator_can_do_its_work_with_these_rights(release: Cluster, profile: str, tmp_path: Path) -> None:
    """The operator as a process here, with the account's token and the chart's environment.

    It serves this namespace alone. The trainer's image does not exist, so that
    nothing trains, and nothing is checked beforehand.
    """
    arguments = (
        f"watchNamespaces={{{release.namespace}}}",
        "agent.enabled=false",
        "trainer.image.repository=registry.invalid/trainer",
    )
    common = ("--no-hooks", "--set", "replicas=0")
    release.helm("upgrade", release.namespace, str(CHART), *common, "--set", ",".join(arguments))
    (deployment,) = release.get("deployments", "--selector", "app.kubernetes.io/part-of=lorikeet")["items"]
    environment = {
        each["name"]: each["value"] for each in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert environment["LORIKEET_NAMESPACES"] == release.namespace
    variables = {**os.environ, **environment, "KUBECONFIG": str(_kubeconfig(release, tmp_path))}
    log = tmp_path / "operator.log"
    port = free_port()
    program = str(Path(sys.executable).with_name("lorikeet-operator"))
    with log.open("w") as out:
        operator = subprocess.Popen(
            [program, "--http-host", "127.0.0.1", "--http-port", "0", *_progress(tmp_path, port)],
            env=variables,
            stdout=out,
            stderr=subprocess.STDOUT,
        )

    def wait_for(what: str, done: Callable[[], Any]) -> None:
        def look() -> Any:
            assert operator.poll() is None, f"the operator has ended:\n{log.read_text()[-5000:]}"
            return done()

        try:
            release.await_(what, look)
        except pytest.fail.Exception as late:
            status = release.get("finetunejob", "chart").get("status")
            pytest.fail(f"{late}\n{json.dumps(status)}\n{log.read_text()[-5000:]}")

    try:
        release.create(job_body("chart", release.namespace, profileRef={"name": profile}))
        wait_for("the batch Job is made", lambda: release.exists("job", "chart-train"))
        release.kubectl("patch", "finetunejob", "chart", "--type=merge", "--patch", '{"spec": {"maxRetries": 7}}')
        wait_for("maxRetries reaches the Job", lambda: _spec(release, "job", "chart-train")["backoffLimit"] == 7)
        events = ("events", "--field-selector", "involvedObject.kind=FineTuneJob")
        wait_for("an Event tells it", lambda: release.get(*events)["items"])
        status = release.get("finetunejob", "chart")["status"]
        assert status["jobUid"] == release.get("job", "chart-train")["metadata"]["uid"]
        _takes_posts_of_the_jobs_pod_alone(release, tmp_path, port)
    finally:
        operator.terminate()
        operator.wait(timeout=40)
    assert operator.returncode == 0, log.read_text()[-5000:]
    assert "orbidden" not in log.read_text()


def _progress(folder: Path, port: int) -> list[str]:
    """Return the flags of an endpoint at `port`, with a certificate in `folder`."""
    data = renew({}, ["localhost"], datetime.now(UTC))
    assert data is not None
    for name, value in data.items():
        (folder / name).write_bytes(value)
    return ["--progress-url", f"https://localhost:{port}", "--progress-port", str(port), "--progress-tls", str(folder)]


def _takes_posts_of_the_jobs_pod_alone(release: Cluster, folder: Path, port: int) -> None:
    """Post with real tokens of real pods, of which the API server says whose they are."""
    release.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "stranger", "labels": child_labels("chart")},
            "spec": {
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [
                    {
                        "name": "c",
                        "image": "registry.invalid/none",
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    }
                ],
            },
        }
    )
    selector = ("pods", "--selector", "batch.kubernetes.io/job-name=chart-train", "--output", "name")
    own = release.await_("the job's pod is there", lambda: release.kubectl("get", *selector).strip())
    own = own.removeprefix("pod/")

    def token(pod: str, audience: str = AUDIENCE) -> str:
        bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}")
        return release.kubectl("create", "token", "default", *bound, f"--audience={audience}").strip()

    def post(bearer: str) -> httpx.Response:
        url = f"https://localhost:{port}{path(release.namespace, 'chart')}"
        body = {"trainerStatus": {"progressPercentage": 7}}
        trust = ssl.create_default_context(cafile=folder / "ca.crt")
        return httpx.post(url, json=body, headers={"Authorization": f"Bearer {bearer}"}, verify=trust, trust_env=False)

    assert post("nonsense").status_code == 401
    assert post(token(own, "https://kubernetes.default.svc")).status_code == 401
    # With the labels of the job's pods, and yet not its Job's.
    release.await_("the stranger is known", lambda: post(token("stranger")).status_code == 403)
    release.await_("the job's pod is heard", lambda: post(token(own)).status_code == 200)

    def percent() -> Any:
        return release.get("finetunejob", "chart")["status"].get("progress", {}).get("percent") == 7

    release.await_("its word is in the status", percent)
    fields = release.get("finetunejob", "chart", "--show-managed-fields")["metadata"]["managedFields"]
    owners = {each["manager"] for each in fields if "f:progress" in each["fieldsV1"].get("f:status", {})}
    assert owners == {"lorikeet-progress"}


def _spec(cluster: Cluster, *arguments: str) -> Any:
    return cluster.get(*arguments)["spec"]


def _kubeconfig(cluster: Cluster, folder: Path) -> Path:
    """Return a kubeconfig of the operator's account."""
    config = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "--output", "json"))
    token = cluster.kubectl("create", "token", _account(cluster)).strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def test_an_uninstall_keeps_the_definitions_and_takes_the_rest(release: Cluster, profile: str) -> None:
    release.helm("uninstall", release.namespace, "--wait")
    assert release.exists("tuningprofile", profile)
    selector = f"app.kubernetes.io/instance={release.namespace}"
    kinds = "deployment,service,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding"
    assert not release.get(kinds, "--selector", selector)["items"]
