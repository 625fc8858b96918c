"""vLLM: LoRA adapters loaded while it runs, chosen by the `model` of a request.

Its contract as of 0.32: https://docs.vllm.ai/en/stable/features/lora.html. Loading under a name that it knows is
answered 400, unloading one that it does not know 404 (500 in older versions); `/v1/models` is what tells.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from lorikeet_api.modeldeployment import MAX_ADAPTERS, EngineChoice, VllmEngine
from lorikeet_engines.base import Answer, EngineError, Http, Launch

MAX_LORAS: Final = 4
MAX_CPU_LORAS: Final = 2 * MAX_ADAPTERS + 1
"""Adapters in main memory: old and new revisions of all while they are exchanged. Room is taken as they come."""
_WAITING: Final = frozenset({"vllm:num_requests_running", "vllm:num_requests_waiting"})


class Vllm:
    """The engine."""

    name = "vllm"
    port = 8000
    health_path = "/health"
    metrics_path = "/metrics"

    def max_lora_rank(self, settings: EngineChoice) -> int:
        """Return `maxLoraRank`."""
        return _settings(settings).max_lora_rank

    def hot_loading(self, settings: EngineChoice) -> bool:
        """Return `hotLoading`."""
        return _settings(settings).hot_loading

    def container(self, launch: Launch) -> dict[str, Any]:
        """Return how `vllm serve` is started."""
        vllm = _settings(launch.settings)
        arguments = [launch.model, "--served-model-name", launch.base, "--port", str(launch.port)]
        arguments += ["--dtype", vllm.dtype]
        if vllm.max_model_len is not None:
            arguments += ["--max-model-len", str(vllm.max_model_len)]
        if (parallel := vllm.tensor_parallel_size or launch.gpus) > 1:
            arguments += ["--tensor-parallel-size", str(parallel)]
        if launch.guard:
            arguments += ["--middleware", launch.guard]
        environment = dict(launch.environment)
        if launch.lora:
            arguments += ["--enable-lora", "--max-loras", str(vllm.max_loras or MAX_LORAS)]
            arguments += ["--max-lora-rank", str(vllm.max_lora_rank), "--max-cpu-loras", str(MAX_CPU_LORAS)]
            if vllm.hot_loading:
                environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
            elif launch.adapters:
                arguments += ["--lora-modules", *(f"{served}={folder}" for served, folder in launch.adapters)]
        # The other frontend knows no middleware, so no guard.
        environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_USE_RUST_FRONTEND": "0"}
        return {
            "command": ["vllm", "serve"],
            "args": [*arguments, *vllm.args],
            "env": [{"name": name, "value": value} for name, value in environment.items()],
        }

    def in_flight(self, metrics: str) -> int:
        """Return the running and waiting requests, of all of its engine cores. Raises ValueError if none are told."""
        families = text_string_to_metric_families(metrics)
        counts = [int(sample.value) for each in families for sample in each.samples if sample.name in _WAITING]
        if not counts:
            raise ValueError("vLLM's metrics do not say how many requests it has")
        return sum(counts)

    async def served(self, http: Http) -> frozenset[str]:
        """Return the models of `/v1/models`."""
        answer = await http("GET", "/v1/models")
        if answer.status != 200:
            raise _refused(answer)
        return frozenset(str(each["id"]) for each in json.loads(answer.text)["data"])

    async def load(self, http: Http, served: str, folder: str) -> None:
        """Load an adapter under a name of its own."""
        await self._change(http, "/v1/load_lora_adapter", {"lora_name": served, "lora_path": folder}, present=True)

    async def unload(self, http: Http, served: str) -> None:
        """Unload an adapter."""
        await self._change(http, "/v1/unload_lora_adapter", {"lora_name": served}, present=False)

    async def _change(self, http: Http, path: str, body: Mapping[str, Any], *, present: bool) -> None:
        answer = await http("POST", path, body)
        # It also refuses what is done already.
        if answer.status != 200 and (body["lora_name"] in await self.served(http)) is not present:
            raise _refused(answer)

    async def warm(self, http: Http, served: str) -> None:
        """Ask for one token. A model that completes nothing, such as one for embeddings, says so and is warm enough."""
        answer = await http("POST", "/v1/completions", {"model": served, "prompt": "Hello", "max_tokens": 1})
        if answer.status >= 500:
            raise _refused(answer)


def _settings(choice: EngineChoice) -> VllmEngine:
    if choice.vllm is None:
        raise ValueError("engine.vllm is not set")
    return choice.vllm


def _refused(answer: Answer) -> EngineError:
    try:
        said = json.loads(answer.text)
        said = said.get("error", said)
        message = str(said.get("message", said))
    except (ValueError, AttributeError):
        message = answer.text
    return EngineError(f"vLLM answers {answer.status}: {message[:300]}")
