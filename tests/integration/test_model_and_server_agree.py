"""A property: what the models accept the API server accepts, and the other way round."""

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from e2e.target import Target
from lorikeet_api.crdgen import definition
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_api.names import API_VERSION
from lorikeet_api.resource import Resource
from lorikeet_api.tuningprofile import TuningProfile
from tests.resources import deployment_body, job_body, profile_body

pytestmark = pytest.mark.integration

KEYS = ("example.com/a", "plain", "a b", "", "-x")
TEXTS = (
    "", "a", "a" * 254, "s3://models/x", "s3://x", "s3://models/x y", "hf://org/name", "hf://org", "pvc://claim/path",
    "pvc://", "nf4", "cosine", "completion", "chat", "text", "Exists", "Equal", "In", "NoExecute", "16Gi", "1.5",
    "x" * 40, "q_proj", "AWS_ACCESS_KEY_ID", "HTTP_PROXY", "name-1", "UPPER", "a.b", "Größe", "-",
    "s3://models/a\u00a0b", "s3://models/a\u000bb", "s3://models/größe", "base", "--dtype", "-port=1", "0" * 64,
    "--mid=x", "--lora_modul.x", "-dpn", "--config-format", "VLLM_USE_RUST_FRONTEND",
)  # fmt: skip
DEPLOYMENT = deployment_body(
    adapters=[{"name": "a", "from": {"uri": "s3://adapters/a"}}],
    routes=[{"model": "m", "variants": [{"name": "a", "adapter": "a"}]}],
)
SCALARS = st.one_of(
    st.sampled_from(TEXTS),
    st.integers(-3, 12),
    st.sampled_from([10**6, 10**9, 2**31, 10**12]),
    st.sampled_from([0.5, 1e-4, -0.5, 0.999, 1000.5]),
    st.booleans(),
)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values for a schema that are right, nearly right, or of another type."""
    if schema.get("x-kubernetes-int-or-string"):
        return SCALARS
    match schema.get("type"):
        case "object" if "properties" in schema:
            fields = {name: values(each) for name, each in schema["properties"].items()}
            some = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True) if fields else st.just([])
            needed = [name for name in schema.get("required", []) if name in fields]
            return some.flatmap(
                lambda chosen: st.fixed_dictionaries({name: fields[name] for name in {*chosen, *needed}})
            )
        case "object" if "additionalProperties" in schema:
            return st.dictionaries(st.sampled_from(KEYS), values(schema["additionalProperties"]), max_size=2)
        case "object":
            return st.sampled_from([{}, {"unknown": 1}])
        case "array":
            return st.lists(values(schema["items"]), max_size=3)
        case "string" if "enum" in schema:
            return st.one_of(st.sampled_from(schema["enum"]), st.sampled_from(TEXTS))
        case "string":
            return st.one_of(st.sampled_from(TEXTS), SCALARS)
        case "integer":
            return st.one_of(st.integers(-1, 600), SCALARS)
        case "number":
            return st.one_of(st.floats(-1, 10, allow_nan=False).map(lambda x: round(x, 4)), SCALARS)
    return SCALARS


def parts_of(resource: type[Resource]) -> dict[str, Any]:
    """Return the schemas of the fields of a resource's spec."""
    schema = definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    parts: dict[str, Any] = schema["properties"]["spec"]["properties"]
    return parts


def _whole(value: Any) -> Any:
    """Return the value with 3.0 as 3: JSON knows no difference, and the API server takes either as an integer."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return [_whole(each) for each in value] if isinstance(value, list) else value


@st.composite
def requests(draw: st.DrawFn, body: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """Return a resource of which one or two parts were made up."""
    body = {**body, "spec": dict(body["spec"])}
    parts = draw(st.lists(st.sampled_from(sorted(properties)), min_size=1, max_size=2, unique=True))
    for part in parts:
        body["spec"][part] = _whole(draw(values(properties[part])))
    return body


@pytest.fixture(scope="module")
def api(server: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the API server."""
    config = YAML(typ="safe", pure=True).load(Path(server.kubeconfig))
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    folder = tmp_path_factory.mktemp("certificates")
    files = {}
    for name, text in (
        ("ca", cluster["certificate-authority-data"]),
        ("cert", user["client-certificate-data"]),
        ("key", user["client-key-data"]),
    ):
        files[name] = folder / name
        files[name].write_bytes(base64.b64decode(text))
    context = ssl.create_default_context(cafile=str(files["ca"]))
    context.load_cert_chain(files["cert"], files["key"])
    path = f"{cluster['server']}/apis/{API_VERSION}/"
    with httpx.Client(verify=context, base_url=path, trust_env=False) as client:
        yield client


def model_says(resource: type[Resource], body: dict[str, Any]) -> str:
    try:
        resource.parse(body)
    except ValidationError as error:
        return f"refused: {error}"
    return "accepted"


def server_says(api: httpx.Client, path: str, body: dict[str, Any]) -> str:
    body = {**body, "metadata": {"name": body["metadata"]["name"]}}
    answer = api.post(path, params={"dryRun": "All", "fieldValidation": "Strict"}, json=body)
    return "accepted" if answer.status_code == 201 else f"refused: {answer.json().get('message')}"


@pytest.mark.parametrize(
    ("resource", "path", "body"),
    [
        pytest.param(FineTuneJob, "namespaces/default/finetunejobs", job_body(), id="job"),
        pytest.param(TuningProfile, "tuningprofiles", profile_body("made-up"), id="profile"),
        pytest.param(ModelDeployment, "namespaces/default/modeldeployments", DEPLOYMENT, id="deployment"),
    ],
)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_model_and_server_agree(
    api: httpx.Client, resource: type[Resource], path: str, body: dict[str, Any], data: st.DataObject
) -> None:
    body = data.draw(requests(body, parts_of(resource)))
    by_model, by_server = model_says(resource, body), server_says(api, path, body)
    assert by_model.split(":")[0] == by_server.split(":")[0], f"{body['spec']}\nmodel {by_model}\nserver {by_server}"
