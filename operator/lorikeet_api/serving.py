"""What operator, agent and router agree on where a model is served.

An engine's pod has its contract as a file from its own annotation, so that it never changes while the pod lives, and
the adapters that it is to hold as a file from a ConfigMap, which does. Its agent says over HTTP how it stands; so does
the agent beside each router.
"""

import hashlib
from typing import Annotated, Final, Literal

from pydantic import Field

from lorikeet_api.base import Model, S3Uri, Text
from lorikeet_api.contract import StorageAccess, canonical_json
from lorikeet_api.training import ModelSource

ENGINE_CONTRACT: Final = "/etc/lorikeet/engine.json"
"""Where an engine's pod has its contract."""
RESOLVE_CONTRACT: Final = "/etc/lorikeet/resolve.json"
"""Where the pod that resolves URIs is told which."""
WANTED: Final = "/etc/lorikeet-adapters/adapters.json"
"""Where an engine's pod is told which adapters it is to hold."""
MODEL_DIR: Final = "/var/lib/lorikeet/model"
"""Where an engine's pod has the base model, unless it is in a cache."""
ADAPTERS_DIR: Final = "/var/lib/lorikeet/adapters"
"""Where it has adapters, each in a folder of its served name."""
GUARD_DIR: Final = "/var/lib/lorikeet/guard"
"""Folder of the module GUARD_MODULE, which keeps the engine's admin endpoints for its own pod."""
GUARD_MODULE: Final = "lorikeet_guard"
CACHE_DIR: Final = "/var/lib/lorikeet-cache"
"""Where the profile's model cache is mounted: each model in a folder of its pin."""
AGENT_PORT: Final = 9000
"""Of the agent beside an engine, and of the one beside a router."""
ROUTER_WANTED: Final = "/etc/lorikeet-router/wanted.json"
"""Where a router's pod is told what to lead where: a RouterWanted."""
ROUTER_DIR: Final = "/etc/envoy-lorikeet"
"""Where Envoy reads its files, which the agent beside it writes."""
LOOKED_UP_AT_ONCE: Final = 8
"""Adapters that one pod is asked for: its record has room for the answers to as many."""
DRAIN_HEADER: Final = "x-lorikeet-drain"
"""Header of the kubelet's call before a container is stopped; its value is no secret, but not guessed."""

AdapterReason = Literal[
    "ManifestMissing",
    "ManifestDiffers",
    "ManifestInvalid",
    "FileCorrupt",
    "BaseModelDiffers",
    "RankTooHigh",
    "NotServable",
    "EngineRefused",
    "StorageUnreachable",
    "StorageRefused",
    "OutOfDisk",
    "InternalError",
]
"""Why an adapter is not there."""


class AdapterRevision(Model):
    """One published adapter, by its content's address."""

    served: str
    """The name under which engines serve it: `<adapter>-<first 8 hex digits of sha256>`."""
    uri: S3Uri
    """Folder of the run that published it, with `manifest.json`."""
    sha256: str
    """sha256 of the manifest, which has those of all files."""


class WantedAdapters(Model):
    """The adapters that an engine is to hold, beside which it holds none."""

    adapters: list[AdapterRevision] = []
    """In the order of their served names."""
    led: list[str] = []
    """Served names of those that requests are led to, sorted: a pod without them takes no other one's place."""

    @property
    def fingerprint(self) -> str:
        """By which two parties know that they speak of the same adapters, wherever requests are led."""
        return fingerprint(canonical_json([each.to_wire() for each in self.adapters]))


class EngineContract(Model):
    """What an engine's pod is: nothing in it changes while the pod lives."""

    namespace: str
    """Namespace of the ModelDeployment."""
    name: str
    """Name of the ModelDeployment."""
    engine: Literal["vllm"]
    """Kind of the engine."""
    engine_port: int
    """Where it listens."""
    model: ModelSource
    """Base model."""
    pin: str
    """What the model was when it was resolved: see `RunContract.pins`."""
    base: str
    """The name under which the engine serves the base model."""
    storage: StorageAccess = StorageAccess()
    """How S3 is reached."""
    cached: bool = False
    """Whether the model is kept in CACHE_DIR, for other pods, too."""
    lora: bool
    """Whether the engine takes LoRA adapters."""
    max_lora_rank: int
    """The highest LoRA rank that it takes."""
    hot_loading: bool
    """Whether adapters are loaded while it runs; else it is started with `adapters`."""
    adapters: list[AdapterRevision] = []
    """What it is started with, where they are not loaded while it runs."""
    drain: str
    """Value of DRAIN_HEADER."""
    drain_seconds: int
    """How long requests in flight are waited for before the engine is stopped."""


def model_folder(contract: EngineContract) -> str:
    """Return where an engine's pod has the base model."""
    return f"{CACHE_DIR}/{contract.pin}" if contract.cached else MODEL_DIR


class AdapterState(Model):
    """How an adapter stands in one pod."""

    served: str
    """Its served name."""
    state: Literal["loading", "loaded", "failed"]
    """`failed` is tried again, slowly."""
    reason: AdapterReason | None = None
    """Why it is not loaded."""
    message: str = ""
    """The cause and the next step."""
    size_bytes: int = 0
    """Bytes of its files."""
    seconds: float = 0.0
    """From the first byte fetched until it was loaded and warm."""


class AgentState(Model):
    """How an engine's pod stands (`GET /state` of its agent)."""

    wanted: str
    """Fingerprint of the wanted adapters that it has read; empty: none yet."""
    engine: bool
    """Whether the engine answers."""
    draining: bool
    """Whether the pod is about to stop."""
    adapters: list[AdapterState] = []
    """Those that are wanted, in the order of their served names."""


class Unresolved(Model):
    """An adapter whose content is to be found."""

    name: str
    """Its name in the ModelDeployment."""
    uri: S3Uri
    """Folder of a run, or an output, whose `latest.json` names one."""
    sha256: str | None = None
    """sha256 of the manifest that is wanted; absent: of what is there now."""


class ResolveContract(Model):
    """What is to be found out in the namespace of a ModelDeployment, with its credentials."""

    model: ModelSource | None = None
    """Base model, unless it has been found before."""
    adapters: Annotated[list[Unresolved], Field(max_length=LOOKED_UP_AT_ONCE)] = []
    """Adapters."""
    storage: StorageAccess = StorageAccess()
    """How S3 is reached."""


class Found(Model):
    """What an adapter's URI was found to mean; or why it means nothing."""

    name: str
    """Its name in the ModelDeployment."""
    run_id: str = ""
    """Folder of the run below the URI; empty where the URI is that of the run."""
    sha256: str = ""
    """sha256 of its manifest."""
    reason: Text = ""
    """Why nothing was found."""
    message: Annotated[str, Field(max_length=320)] = ""
    """The cause and the next step."""


class ResolveRecord(Model):
    """What was found: the container's termination message, below TERMINATION_LIMIT bytes."""

    reason: Text
    """`Resolved`, or why the model was not found."""
    message: Annotated[str, Field(max_length=600)] = ""
    """The cause and the next step."""
    retryable: bool = False
    """Whether it may be tried again."""
    pin: str = ""
    """What the model is: see `RunContract.pins`."""
    adapters: list[Found] = []
    """What the adapters are."""


class RouterWanted(Model):
    """What a router is to do, as Envoy's file-based xDS has it."""

    clusters: dict[str, object]
    """`clusters.json`: an answer of CDS."""
    routes: dict[str, object]
    """`routes.json`: an answer of RDS."""


class RouterState(Model):
    """How a router stands (`GET /state` of the agent beside it)."""

    wanted: str
    """`fingerprint` of what it has read; empty: nothing yet."""
    routed: str
    """That of which the routes hold: what is led anywhere is led by it. Behind `wanted` while clusters warm up."""
    served: list[str] = []
    """The served names that requests may still be on their way to, those of older routes included."""
    draining: bool = False
    """Whether the pod is about to stop."""
    refused: bool = False
    """Whether its Envoy has refused the newest configuration, and goes on with the one before."""


def fingerprint(content: bytes) -> str:
    """Return the 16 hex digits by which two parties know that they speak of the same file."""
    return hashlib.sha256(content).hexdigest()[:16]
