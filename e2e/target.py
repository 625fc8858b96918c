"""Which cluster `deploy`, `demo` and the scenarios work on: the development cluster, or an existing one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, Configuration
from kubernetes.config import new_client_from_config

from e2e.cluster.config import CONTEXT
from e2e.cluster.paths import State, default_state_dir


class TargetError(Exception):
    """The cluster cannot be used as asked; the message says what to set."""


@dataclass(frozen=True)
class S3:
    """The S3 store, as this machine and as pods reach it."""

    endpoint: str
    endpoint_in_cluster: str
    access_key: str
    secret_key: str


@dataclass(frozen=True)
class Target:
    """A cluster with its S3 and the images to run on it."""

    kubeconfig: str
    """Value of KUBECONFIG; empty: kubectl's own default."""
    context: str
    s3: S3
    operator_image: str
    agent_image: str
    trainer_image: str
    engine_image: str
    router_image: str
    direct: str = ""
    """Host that no proxy stands before."""
    is_development: bool = False
    """Whether it is the development cluster of this checkout, whose two cores are for one thing at a time."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment of kubectl and helm: our tools first on the PATH, the kubeconfig named."""
        ours = (State(default_state_dir()).bin, Path(sys.executable).parent)
        env = {**os.environ, "PATH": ":".join([*map(str, ours), os.environ["PATH"]])}
        if self.kubeconfig:
            env["KUBECONFIG"] = self.kubeconfig
        if self.direct:
            env["no_proxy"] = env["NO_PROXY"] = ",".join(filter(None, [env.get("no_proxy"), self.direct]))
        return env

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl and return what it printed; with `check`, raise TargetError with its words if it fails."""
        return self._run(["kubectl", "--context", self.context, *arguments], stdin, check)

    def lorikeet(self, *arguments: str) -> str:
        """Run Lorikeet's plugin of kubectl and return what it printed; raise TargetError with its words if it fails."""
        keys = {"AWS_ACCESS_KEY_ID": self.s3.access_key, "AWS_SECRET_ACCESS_KEY": self.s3.secret_key}
        return self._run(["kubectl", "lorikeet", *arguments, "--context", self.context], None, True, **keys)

    def helm(self, *arguments: str) -> str:
        """Run helm and return what it printed."""
        return self._run(["helm", "--kube-context", self.context, *arguments], None, True)

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get … -o json` says."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    @cached_property
    def _client(self) -> ApiClient:
        settings = Configuration()
        if self.direct:
            settings.proxy = None
        kubeconfig = self.kubeconfig or None
        client: ApiClient = new_client_from_config(  # type: ignore[no-untyped-call]
            kubeconfig, self.context, client_configuration=settings
        )
        return client

    def read(self, path: str, **query: str) -> bytes:
        """Return what the API server has at a path: for what is looked at again and again.

        A kubectl would take a tenth of a second of a core for it. Raises TargetError.
        """
        accept = {"Accept": "application/json, */*"}
        asked = self._client.param_serialize(
            "GET", path, query_params=[*query.items()], header_params=accept, auth_settings=["BearerToken"]
        )
        answer = self._client.call_api(*asked, _request_timeout=30)
        content: bytes = answer.read()  # type: ignore[no-untyped-call]
        if answer.status != 200:
            raise TargetError(f"{path}: {answer.status} {content.decode()}")
        return content

    def apply(self, documents: Sequence[dict[str, Any]]) -> None:
        """Apply objects, as kubectl does it for a user."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def _run(self, command: list[str], stdin: str | None, check: bool, **variables: str) -> str:
        env = self.environment | variables
        try:
            done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise TargetError(f"{command[0]} is not on the PATH: install it") from error
        if check and done.returncode:
            raise TargetError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout if check else done.stdout + done.stderr


def target() -> Target:
    """Return the cluster that the environment asks for.

    Raises:
        TargetError: if `CLUSTER=existing` and something that it needs is not named.
    """
    if os.environ.get("CLUSTER", "") == "existing":
        return _existing()
    return development()


def development() -> Target:
    """Return the development cluster of this checkout."""
    state = State(default_state_dir())
    if not state.record.exists():
        raise TargetError("the development cluster is not up: run `make cluster`")
    record = json.loads(state.record.read_text())
    images = json.loads(state.images.read_text()) if state.images.exists() else {}
    return Target(
        kubeconfig=str(state.kubeconfig),
        context=CONTEXT,
        s3=S3(*(record[name] for name in ("s3_url", "s3_url_in_cluster", "s3_access_key", "s3_secret_key"))),
        operator_image=images.get("operator", ""),
        agent_image=images.get("agent", ""),
        trainer_image=images.get("trainer", ""),
        engine_image=images.get("engine-cpu", ""),
        router_image=images.get("router", ""),
        direct=record["node_address"],
        is_development=True,
    )


NEEDED = {
    "KUBE_CONTEXT": "the context of your kubeconfig to use; it is never guessed",
    "OPERATOR_IMAGE": "the operator's image, where the cluster can pull it",
    "AGENT_IMAGE": "the agent's image, where the cluster can pull it",
    "TRAINER_IMAGE": "the trainer's image, where the cluster can pull it",
    "ENGINE_IMAGE": "an image with vLLM, where the cluster can pull it",
    "ROUTER_IMAGE": "an image with Envoy, where the cluster can pull it",
    "S3_ENDPOINT": "URL of an S3 store as this machine reaches it",
    "S3_ENDPOINT_IN_CLUSTER": "URL of the same store as pods reach it",
    "AWS_ACCESS_KEY_ID": "its access key",
    "AWS_SECRET_ACCESS_KEY": "its secret key",
}


def _existing() -> Target:
    missing = [f"  {name}: {text}" for name, text in NEEDED.items() if not os.environ.get(name)]
    if missing:
        raise TargetError("CLUSTER=existing needs in the environment:\n" + "\n".join(missing))
    env = os.environ
    return Target(
        kubeconfig=env.get("KUBECONFIG", ""),
        context=env["KUBE_CONTEXT"],
        s3=S3(
            env["S3_ENDPOINT"],
            env["S3_ENDPOINT_IN_CLUSTER"],
            env["AWS_ACCESS_KEY_ID"],
            env["AWS_SECRET_ACCESS_KEY"],
        ),
        operator_image=env["OPERATOR_IMAGE"],
        agent_image=env["AGENT_IMAGE"],
        trainer_image=env["TRAINER_IMAGE"],
        engine_image=env["ENGINE_IMAGE"],
        router_image=env["ROUTER_IMAGE"],
    )


def as_existing(found: Target) -> dict[str, str]:
    """Return the environment with which `CLUSTER=existing` means the cluster `found`."""
    values = (
        found.context,
        found.operator_image,
        found.agent_image,
        found.trainer_image,
        found.engine_image,
        found.router_image,
        found.s3.endpoint,
        found.s3.endpoint_in_cluster,
        found.s3.access_key,
        found.s3.secret_key,
    )
    return {
        "CLUSTER": "existing",
        "KUBECONFIG": found.kubeconfig,
        **dict(zip(NEEDED, values, strict=True)),
    }


def main() -> int:
    """Print the environment with which `CLUSTER=existing` means the development cluster, as shell exports."""
    for name, value in as_existing(development()).items():
        sys.stdout.write(f"export {name}={value}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
