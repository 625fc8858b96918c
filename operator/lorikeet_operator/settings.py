"""Everything that can be set on the operator, each by an environment variable or a flag."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

_PREFIX = "LORIKEET_"


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """The operator's settings. `trainer_image` is `--trainer-image` or `LORIKEET_TRAINER_IMAGE`; flags win."""

    trainer_image: str = _setting("", "image of the trainer, unless a TuningProfile names one")
    agent_image: str = _setting("", "image of the agent; empty: no run is checked before it begins, nothing is served")
    vllm_image: str = _setting("", "image of the vLLM engine, unless a TuningProfile or a ModelDeployment names one")
    router_image: str = _setting("", "image of the router (Envoy), unless a TuningProfile names one")
    agent_memory: str = _setting("1Gi", "memory that such a pod may use, at least 256Mi")
    network_policies: bool = _setting(True, "whether NetworkPolicies keep engines for their routers, true or false")
    namespaces: tuple[str, ...] = _setting((), "namespaces to serve, with commas between; empty: all")
    workers: int = _setting(16, "reconciles at a time, for each controller")
    qps: float = _setting(300.0, "requests a second to the API server, in the long run")
    burst: int = _setting(600, "requests to the API server at once")
    request_timeout: float = _setting(30.0, "seconds after which a request to the API server is given up")
    reconcile_timeout: float = _setting(120.0, "seconds after which a reconcile is cancelled and tried again")
    relist_interval: float = _setting(600.0, "seconds between full lists, which find what a watch has missed")
    shutdown_grace: float = _setting(10.0, "seconds that running reconciles get to end at SIGTERM")
    lease_namespace: str = _setting("", "namespace of the Lease by which replicas elect a leader; empty: no election")
    lease_name: str = _setting("lorikeet", "name of that Lease")
    lease_duration: float = _setting(12.0, "seconds for which a leader that does not answer is respected")
    identity: str = _setting("", "name of this replica in the Lease; empty: the host's name")
    http_host: str = _setting("", "address for /healthz, /readyz and /metrics; empty: all")
    http_port: int = _setting(8080, "port for /healthz, /readyz and /metrics")
    progress_url: str = _setting("", "URL at which pods reach the progress endpoint; empty: there is none")
    progress_port: int = _setting(8443, "port of the progress endpoint")
    progress_tls: str = _setting("/etc/lorikeet-tls", "folder with its tls.crt and tls.key, and the ca.crt for pods")
    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR")

    def __post_init__(self) -> None:
        positive = (
            "workers",
            "qps",
            "burst",
            "request_timeout",
            "reconcile_timeout",
            "relist_interval",
            "lease_duration",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        memory = re.fullmatch(r"(\d+)(Mi|Gi)", self.agent_memory)
        if memory is None or int(memory[1]) * (1024 if memory[2] == "Gi" else 1) < 256:
            raise ValueError(f"agent_memory must be 256Mi or more, in Mi or Gi, not {self.agent_memory}")
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError(f"log_level must be DEBUG, INFO, WARNING or ERROR, not {self.log_level}")

    @classmethod
    def load(cls, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Self:
        """Return the settings from flags, then environment, then defaults; exit with a message if one is wrong."""
        parser = argparse.ArgumentParser("lorikeet-operator", description="Runs Lorikeet's controllers.")
        for each in fields(cls):
            variable = _PREFIX + each.name.upper()
            parser.add_argument(
                "--" + each.name.replace("_", "-"),
                default=environment.get(variable, each.default),
                type=_parser_of(each.default),
                help=f"{each.metadata['help']} ({variable}, default: {each.default!r})",
            )
        try:
            return cls(**vars(parser.parse_args(list(arguments))))
        except ValueError as error:
            parser.error(str(error))


def _parser_of(default: Any) -> Any:
    if isinstance(default, tuple):
        return _names
    if isinstance(default, bool):
        return _truth
    return type(default)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {text}")
    return text.lower() == "true"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
