"""ModelDeployment: a base model with adapters, served under OpenAI's API, its traffic split between them."""

import re
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from lorikeet_api.base import (
    Image,
    Model,
    NameReference,
    S3Uri,
    Sha256,
    cel,
    listed,
    mapped,
    unique,
)
from lorikeet_api.compute import EngineCompute, Resources
from lorikeet_api.conditions import Statement
from lorikeet_api.names import DEFAULT_PROFILE, MAX_DEPLOYMENT_NAME
from lorikeet_api.resource import Resource
from lorikeet_api.training import ModelSource

MAX_ADAPTERS: Final = 32
DeploymentPhase = Literal["Pending", "Progressing", "Available", "Degraded", "Failed"]
DeploymentConditionType = Literal["Ready", "AdaptersReady", "RouterReady", "Degraded"]

ShortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=40)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", min_length=1, max_length=128)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", min_length=1, max_length=64)]

OWNED_FLAGS: Final = (
    "--model", "--served-model-name", "--host", "--port", "--uds", "--config", "--root-path", "--api-key",
    "--middleware", "--dtype", "--max-model-len", "--tensor-parallel-size", "-tp", "--api-server-count", "-asc",
    "--disable-log-stats", "--enable-lora", "--no-enable-lora", "--max-loras", "--max-lora-rank", "--max-cpu-loras",
    "--lora-modules", "--trust-remote-code", "--headless",
)  # fmt: skip
"""Flags of vLLM that Lorikeet sets itself, or that would undo what it promises."""
OWNED_FAMILIES: Final = ("--ssl-", "--grpc", "--data-parallel-", "-dp")
"""Beginnings of more of them."""
_OWNED_MESSAGE: Final = (
    f"args may not set what Lorikeet sets itself, nor shorten it: {', '.join(OWNED_FLAGS)},"
    f" and what begins with {', '.join(OWNED_FAMILIES)}"
)
_MODEL_FIXED: Final = "model cannot change while it is served: create another ModelDeployment"
_ONE_ORIGIN: Final = "give exactly one of fineTuneJobRef and uri"
_PIN_OF_URI: Final = "sha256 pins a uri: remove it, or name the uri"
_NO_WEIGHT: Final = "give at least one variant a weight above 0"
_UNKNOWN_ADAPTER: Final = "a variant names an adapter that is not in adapters: correct it, or leave it out for the base"
_NO_ROOM: Final = "maxSurge and maxUnavailable cannot both be 0: no replica could ever be replaced"
_NO_ROUTE: Final = (
    "without routes the resource's own name means the base model: give routes, or the adapter another name"
)
_RESERVED: Final = "an adapter cannot have the name base: correct it"


def _is_owned(argument: str) -> bool:
    """Return whether vLLM may take an argument for one of our flags: it takes any beginning that fits but one flag.

    Which beginnings do depends on its version, so that all are refused. None is a whole flag of vLLM that is not ours.
    """
    name = re.split("[=.]", argument.replace("_", "-"), maxsplit=1)[0]
    shortened = any(flag.startswith(name) for flag in (*OWNED_FLAGS, *OWNED_FAMILIES))
    return argument.startswith("-") and (shortened or name.startswith(OWNED_FAMILIES))


class VllmEngine(Model):
    """vLLM: https://docs.vllm.ai."""

    image: Image | None = None
    """Image of the engine. Absent: the profile's, else the one that the operator was installed with."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of the weights (vLLM: `--dtype`)."""
    max_model_len: Annotated[int, Field(ge=16, le=16_777_216)] | None = None
    """Longest context, in tokens (vLLM: `--max-model-len`). Absent: the model's own."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = None
    """GPUs that share one copy of the model (vLLM: `--tensor-parallel-size`). Absent: `compute.gpus`."""
    max_loras: Annotated[int, Field(ge=1, le=MAX_ADAPTERS)] | None = None
    """Adapters that one batch may mix (vLLM: `--max-loras`). More are served, too; they wait for a slot. Default: 4.
    Given, the engine takes adapters from the start though none is there yet, and need not be replaced for the first."""
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Highest LoRA rank that is served (vLLM: `--max-lora-rank`)."""
    hot_loading: bool = True
    """Load adapters while the engine runs. False: it is started with them (vLLM: `--lora-modules`), so a new revision
    replaces its pods, one after the other."""
    args: Annotated[list[Annotated[str, StringConstraints(max_length=1024)]], listed(0, 64)] = []
    """More arguments of `vllm serve`, as the image's version knows them."""

    @model_validator(mode="after")
    def _not_ours(self) -> Self:
        if any(_is_owned(argument) for argument in self.args):
            raise ValueError(_OWNED_MESSAGE)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_not_ours` for the API server."""
        shortened = f"{[*OWNED_FLAGS, *OWNED_FAMILIES]}.exists(f, f.startsWith(a.find('^[^=.]*').replace('_', '-')))"
        of_family = f"{list(OWNED_FAMILIES)}.exists(f, a.replace('_', '-').startsWith(f))"
        rule = f"!has(self.args) || self.args.all(a, !a.startsWith('-') || !({shortened} || {of_family}))"
        return [cel(rule, _OWNED_MESSAGE, fieldPath=".args")]


class EngineChoice(Model):
    """What answers requests: exactly one engine."""

    vllm: VllmEngine | None = None
    """vLLM."""

    @model_validator(mode="after")
    def _one_arm(self) -> Self:
        if self.vllm is None:
            raise ValueError("give exactly one engine: vllm")
        return self

    @property
    def name(self) -> Literal["vllm"]:
        """The chosen arm's name."""
        return "vllm"

    @property
    def image(self) -> str | None:
        """The image that the chosen arm names."""
        return None if self.vllm is None else self.vllm.image

    @property
    def takes_lora(self) -> bool:
        """Whether the chosen arm says itself that adapters are to come."""
        return self.vllm is not None and self.vllm.max_loras is not None

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_one_arm` for the API server."""
        return [cel("has(self.vllm)", "give exactly one engine: vllm")]


class AdapterOrigin(Model):
    """Where an adapter comes from: exactly one of the two."""

    fine_tune_job_ref: NameReference | None = None
    """A FineTuneJob of the same namespace; what it has published is served, also after it is deleted."""
    uri: S3Uri | None = None
    """Where a run has published: its output (then what `latest.json` there names), or the run's own folder."""
    sha256: Sha256 | None = None
    """sha256 of the manifest, to serve just that content of `uri`. Absent: what is there when the uri is first named
    here; it is looked up once."""

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if (self.fine_tune_job_ref is None) == (self.uri is None):
            raise ValueError(_ONE_ORIGIN)
        if self.sha256 is not None and self.uri is None:
            raise ValueError(_PIN_OF_URI)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_checks` for the API server."""
        return [
            cel("has(self.fineTuneJobRef) != has(self.uri)", _ONE_ORIGIN),
            cel("!has(self.sha256) || has(self.uri)", _PIN_OF_URI, fieldPath=".sha256"),
        ]


class DeployedAdapter(Model):
    """One adapter that is served on the base model."""

    name: ShortName
    """Its name here. Each revision is served as `<name>-<first 8 hex digits of its manifest's sha256>`."""
    from_: Annotated[AdapterOrigin, Field(alias="from")]
    """Where it comes from."""

    @model_validator(mode="after")
    def _not_reserved(self) -> Self:
        if self.name == "base":
            raise ValueError(_RESERVED)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_not_reserved` for the API server."""
        return [cel("self.name != 'base'", _RESERVED, fieldPath=".name")]


class RouteVariant(Model):
    """Who answers a share of a model's requests."""

    name: ShortName
    """Its name: what the header `x-lorikeet-variant` says, and what metrics are labelled with."""
    adapter: ShortName | None = None
    """An adapter of `adapters`. Absent: the base model."""
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Its share of the requests, relative to those of its siblings. 0: only who names it by the header."""


class Sticky(Model):
    """Who is to keep a variant."""

    header: HeaderName
    """Requests with the same value of this header are answered by the same variant."""


class ModelRoute(Model):
    """One model as clients know it."""

    model: ModelName
    """What they put into `model`."""
    variants: Annotated[list[RouteVariant], mapped("name", 8), unique("name"), Field(min_length=1)]
    """Who answers."""
    sticky: Sticky | None = None
    """Who is to keep a variant. Absent: each request is given one by chance."""

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not any(variant.weight for variant in self.variants):
            raise ValueError(_NO_WEIGHT)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_some_weight` for the API server."""
        return [cel("self.variants.exists(v, !has(v.weight) || v.weight > 0)", _NO_WEIGHT, fieldPath=".variants")]


class RolloutStrategy(Model):
    """How replicas of the engine are replaced."""

    max_surge: Annotated[int, Field(ge=0, le=64)] = 1
    """Replicas above `replicas` meanwhile: each needs GPUs of its own."""
    max_unavailable: Annotated[int, Field(ge=0, le=64)] = 0
    """Replicas below `replicas` meanwhile. 1 with maxSurge 0 where no GPU is spare."""

    @model_validator(mode="after")
    def _some_room(self) -> Self:
        if self.max_surge == 0 and self.max_unavailable == 0:
            raise ValueError(_NO_ROOM)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_some_room` for the API server."""
        surge = "(!has(self.maxSurge) || self.maxSurge > 0)"
        return [cel(f"{surge} || (has(self.maxUnavailable) && self.maxUnavailable > 0)", _NO_ROOM)]


class RouterSettings(Model):
    """The router in front of the engines. It asks nobody who they are: put a gateway in front for that, and for TLS."""

    replicas: Annotated[int, Field(ge=1, le=64)] = 2
    """Replicas of the router."""
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service."""
    load_balancing: Literal["LeastRequest", "PrefixHash"] = "LeastRequest"
    """Which of the replicas that have an adapter answers: one that is less busy, or the one that has answered for the
    same beginning of a prompt before, since its prefix cache has it, unless it is much busier than the others."""
    max_request_bytes: Annotated[int, Field(ge=1024, le=268_435_456)] = 8_388_608
    """Largest request body, in bytes; each is held in memory until it is sent on."""
    idle_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """How long nothing may come in either direction; also until an answer begins that is not streamed."""
    resources: Resources | None = None
    """CPU and memory. Near its limit of memory a router takes no more requests. Default: requests of 100m and 128Mi, a
    limit of 1Gi."""


class ModelDeploymentSpec(Model):
    """What is served, by which engine, and who gets which share of the requests."""

    profile_ref: NameReference = NameReference(name=DEFAULT_PROFILE)
    """TuningProfile with storage, images and defaults. Its changes reach what runs."""
    model: ModelSource
    """Base model. What it is when it is first resolved stays."""
    engine: EngineChoice = EngineChoice(vllm=VllmEngine())
    """What answers requests."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Replicas of the engine."""
    adapters: Annotated[list[DeployedAdapter], mapped("name", MAX_ADAPTERS), unique("name")] = []
    """Adapters that are served on the base model."""
    routes: Annotated[list[ModelRoute], mapped("model", MAX_ADAPTERS), unique("model")] = []
    """Models as clients know them. Absent: one for each adapter, and the resource's name for the base model."""
    strategy: RolloutStrategy = RolloutStrategy()
    """How replicas of the engine are replaced."""
    compute: EngineCompute = EngineCompute()
    """What an engine's pod asks for."""
    router: RouterSettings = RouterSettings()
    """The router."""
    revision_history_limit: Annotated[int, Field(ge=0, le=50)] = 5
    """Earlier revisions of each adapter that `status.history` remembers."""

    @model_validator(mode="after")
    def _adapters_exist(self) -> Self:
        known = {adapter.name for adapter in self.adapters} | {None}
        if any(variant.adapter not in known for route in self.routes for variant in route.variants):
            raise ValueError(_UNKNOWN_ADAPTER)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_adapters_exist`, and that the model stays."""
        exists = "(has(self.adapters) && self.adapters.exists(a, a.name == v.adapter))"
        return [
            cel(
                f"!has(self.routes) || self.routes.all(r, r.variants.all(v, !has(v.adapter) || {exists}))",
                _UNKNOWN_ADAPTER,
                fieldPath=".routes",
            ),
            cel(
                "self.model.uri == oldSelf.model.uri && has(self.model.revision) == has(oldSelf.model.revision)"
                " && (!has(self.model.revision) || self.model.revision == oldSelf.model.revision)",
                _MODEL_FIXED,
                fieldPath=".model",
            ),
        ]


class DeploymentCondition(Statement):
    """One statement about a ModelDeployment."""

    type: DeploymentConditionType
    """What it is about."""


class AdapterStatus(Model):
    """What an adapter is, and where."""

    name: str
    """Its name."""
    origin: str
    """What of the spec this is the content of."""
    revision: str
    """First 8 hex digits of `sha256`."""
    served_name: str
    """The name under which engines serve it."""
    uri: str
    """Folder of the run."""
    sha256: str
    """sha256 of its manifest."""
    ready_replicas: int = 0
    """Replicas that have it loaded."""


class VariantStatus(Model):
    """Who answers a share of a model's requests now."""

    name: str
    """Its name."""
    adapter: str | None = None
    """The adapter; absent: the base model."""
    served_name: str
    """The name under which engines serve it."""
    weight: int
    """Its weight."""


class RouteStatus(Model):
    """One model as it is led now."""

    model: str
    """Its name."""
    variants: list[VariantStatus] = []
    """Those that can answer; one whose adapter has not been loaded yet is left out."""


class HistoryEntry(Model):
    """A revision that requests have been led to."""

    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """Since when."""
    adapter: str
    """The adapter."""
    revision: str
    """First 8 hex digits of `sha256`."""
    uri: str
    """Folder of the run."""
    sha256: str
    """sha256 of its manifest: `from: {uri, sha256}` of these two brings it back."""
    reason: str
    """Where it came from."""


class ModelDeploymentStatus(Model):
    """How it stands; written by the operator alone."""

    phase: DeploymentPhase = "Pending"
    """In one word."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """What there is to know of it in one sentence."""
    conditions: Annotated[list[DeploymentCondition], mapped("type", 16)] = []
    """Ready, AdaptersReady, RouterReady, Degraded: each with its reason and a message."""
    observed_generation: int = 0
    """Generation of the spec that this status speaks of."""
    url: str | None = None
    """Where clients inside the cluster reach it."""
    ready: str = ""
    """Replicas that answer, of those wanted."""
    adapters_ready: str = ""
    """Adapters that every replica has, of those wanted."""
    replicas: int = 0
    """Replicas of the engine that there are."""
    selector: str = ""
    """Selects their pods."""
    model_pin: str | None = None
    """What the base model is."""
    adapters: Annotated[list[AdapterStatus], mapped("name", MAX_ADAPTERS)] = []
    """Content of the adapters that the spec names."""
    routes: Annotated[list[RouteStatus], mapped("model", MAX_ADAPTERS + 1)] = []
    """Where requests are led: without routes in the spec, one model for each adapter and one for the base."""
    history: Annotated[list[HistoryEntry], listed(0, 2048)] = []
    """Revisions that requests have been led to, the newest last."""


class ModelDeployment(Resource):
    """A base model with adapters, served under OpenAI's API, its traffic split between them."""

    crd: ClassVar[dict[str, Any]] = {
        "plural": "modeldeployments",
        "singular": "modeldeployment",
        "shortNames": ["mdep"],
        "categories": ["lorikeet"],
        "scope": "Namespaced",
        "columns": [
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
            {"name": "Ready", "type": "string", "jsonPath": ".status.ready"},
            {"name": "Adapters", "type": "string", "jsonPath": ".status.adaptersReady"},
            {"name": "URL", "type": "string", "jsonPath": ".status.url"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            {"name": "Model", "type": "string", "jsonPath": ".spec.model.uri", "priority": 1},
            {"name": "Message", "type": "string", "jsonPath": ".status.message", "priority": 1},
        ],
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
        "rules": [
            cel(
                f"self.metadata.name.size() <= {MAX_DEPLOYMENT_NAME}",
                f"the name may have at most {MAX_DEPLOYMENT_NAME} characters, so that the names of its pods fit",
            ),
            cel(
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "the name must begin with a letter and have no dots: it becomes the host name of a Service",
            ),
            cel(
                "(has(self.spec.routes) && self.spec.routes.size() > 0) || !has(self.spec.adapters)"
                " || self.spec.adapters.all(a, a.name != self.metadata.name)",
                _NO_ROUTE,
            ),
        ],
    }

    api_version: Literal["lorikeet.dev/v1alpha1"]
    """Version of this schema."""
    kind: Literal["ModelDeployment"]
    """ModelDeployment."""
    spec: ModelDeploymentSpec
    """What is served, by which engine, and who gets which share of the requests."""
    status: ModelDeploymentStatus = ModelDeploymentStatus()
    """How it stands."""

    @model_validator(mode="after")
    def _name_fits(self) -> Self:
        if len(self.metadata.name) > MAX_DEPLOYMENT_NAME:
            raise ValueError(f"the name may have at most {MAX_DEPLOYMENT_NAME} characters")
        if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", self.metadata.name):
            raise ValueError("the name must begin with a letter and have no dots")
        if not self.spec.routes and any(adapter.name == self.metadata.name for adapter in self.spec.adapters):
            raise ValueError(_NO_ROUTE)
        return self
