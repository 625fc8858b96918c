"""A namespace to run jobs in: S3 credentials, a profile, and what jobs read, put there as a user would."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from e2e.target import Target, TargetError
from lorikeet_api.names import API_VERSION

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SECRET = "s3-credentials"
PROFILE = "default"
PROFILES = "tuningprofiles.lorikeet.dev"
FINAL = ("Succeeded", "Failed")
LABELS = {"app.kubernetes.io/part-of": "lorikeet-demo"}
"""Labels of the profile and the namespaces that the demo and the scenarios make."""
_APIS = {"finetunejob": f"/apis/{API_VERSION}", "modeldeployment": f"/apis/{API_VERSION}", "pod": "/api/v1"}
"""What is looked at again and again, and where the API server has it."""


def clear(target: Target) -> None:
    """Remove what a demo, or tests that were interrupted, have left on the development cluster: it takes a core.

    Lorikeet is installed there, so that its finalizers are heeded.
    """
    if target.is_development:
        which = ",".join(f"{name}={value}" for name, value in LABELS.items())
        target.kubectl("delete", "namespaces", "--selector", which, "--timeout=300s")


@dataclass(frozen=True)
class Workspace:
    """One namespace of a cluster, with its S3."""

    target: Target
    namespace: str

    @cached_property
    def s3(self) -> S3Client:
        """A client of the S3 store, from this machine."""
        return boto3.client(
            "s3",
            endpoint_url=self.target.s3.endpoint,
            aws_access_key_id=self.target.s3.access_key,
            aws_secret_access_key=self.target.s3.secret_key,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 5, "mode": "standard"},
                proxies={} if self.target.direct else None,
            ),
        )

    def create(self) -> None:
        """Make the namespace, with Pod Security at its strictest, and the Secret that the profile names."""
        restricted = {"pod-security.kubernetes.io/enforce": "restricted", **LABELS}
        keys = {"AWS_ACCESS_KEY_ID": self.target.s3.access_key, "AWS_SECRET_ACCESS_KEY": self.target.s3.secret_key}
        self.target.apply(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": restricted}},
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": SECRET, "namespace": self.namespace},
                    "stringData": keys,
                },
            ]
        )

    def delete(self) -> None:
        """Delete the namespace without waiting for its end."""
        self.target.kubectl("delete", "namespace", self.namespace, "--wait=false", "--ignore-not-found")

    def bucket(self, name: str) -> None:
        """Make a bucket unless it is there."""
        if name not in [bucket["Name"] for bucket in self.s3.list_buckets()["Buckets"]]:
            self.s3.create_bucket(Bucket=name)

    def upload_folder(self, folder: Path, bucket: str, prefix: str) -> int:
        """Upload a folder's files that are not there in their size; return how many were sent."""
        self.bucket(bucket)
        there = {
            item["Key"]: item["Size"]
            for item in self.s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
        }
        sent = 0
        for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
            key = f"{prefix}/{path.name}"
            if there.get(key) != path.stat().st_size:
                self.s3.upload_file(str(path), bucket, key)
                sent += 1
        return sent

    def published(self, prefix: str) -> list[str]:
        """Return the keys of what lies in the bucket of adapters below the namespace's `prefix`."""
        listed = self.s3.list_objects_v2(Bucket="adapters", Prefix=f"{self.namespace}/{prefix}/")
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl in the namespace."""
        return self.target.kubectl("--namespace", self.namespace, *arguments, stdin=stdin, check=check)

    def apply(self, body: dict[str, Any]) -> None:
        """Apply an object in the namespace, as a user does."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(body))

    def get(self, resource: str, name: str) -> dict[str, Any]:
        """Return an object of the namespace as it is now."""
        found: dict[str, Any]
        if api := _APIS.get(resource):
            found = self._read(f"{resource}s/{name}", api)
        else:
            found = json.loads(self.kubectl("get", resource, name, "-o", "json"))
        return found

    def pods(self, *labels: str) -> list[dict[str, Any]]:
        """Return the pods that have all `labels` and are not being deleted."""
        found: list[dict[str, Any]] = self._read("pods", labelSelector=",".join(labels))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def log(self, pod: str) -> str:
        """Return what the one container of a pod has said so far, nothing while it has not begun."""
        try:
            return self.target.read(f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log").decode()
        except TargetError:
            return ""

    def _read(self, path: str, api: str = "/api/v1", **query: str) -> Any:
        return json.loads(self.target.read(f"{api}/namespaces/{self.namespace}/{path}", **query))

    def job(self, name: str) -> dict[str, Any]:
        """Return a FineTuneJob as it is now."""
        return self.get("finetunejob", name)

    def wait(
        self,
        name: str,
        until: Callable[[dict[str, Any]], bool],
        what: str,
        seconds: float,
        *,
        quiet: bool = True,
        resource: str = "finetunejob",
    ) -> dict[str, Any]:
        """Wait until the status of a FineTuneJob, or of another resource, is as wanted, and return the whole.

        Its phases are told unless `quiet`.

        Raises:
            TargetError: if it is not so in time, with what the cluster says.
        """
        began, phase = time.monotonic(), ""
        while True:
            body = self.get(resource, name)
            status = body.get("status", {})
            if not quiet and status.get("phase", "") != phase:
                phase = status.get("phase", "")
                print(f"    {time.monotonic() - began:5.0f} s  {phase}", flush=True)
            if until(status):
                return body
            if time.monotonic() - began > seconds:
                raise TargetError(f"{name}: no {what} within {seconds:.0f} s\n{self.story()}")
            time.sleep(0.5)

    def wait_final(self, name: str, seconds: float = 600, *, quiet: bool = True) -> dict[str, Any]:
        """Wait until a FineTuneJob has ended, well or badly, and return it."""
        return self.wait(name, lambda status: status.get("phase") in FINAL, "end", seconds, quiet=quiet)

    def story(self) -> str:
        """Return what one wants to read when something failed: resources, events, logs."""
        describe = self.kubectl("describe", "finetunejobs,modeldeployments", check=False)
        pods = self.kubectl("get", "pods", "-o", "wide", check=False)
        selector = "app.kubernetes.io/managed-by=lorikeet"
        logs = self.kubectl("logs", "--selector", selector, "--tail", "40", "--prefix", check=False)
        of_operator = ("--selector", "app.kubernetes.io/component=operator", "--prefix", "--tail", "20")
        operator = self.target.kubectl("-n", "lorikeet-system", "logs", *of_operator, check=False)
        return "\n".join([describe, pods, logs, operator])


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of a status, an empty one where it is not there yet."""
    found: list[dict[str, Any]] = [each for each in status.get("conditions", []) if each["type"] == kind]
    return found[0] if found else {"status": "", "reason": "", "message": ""}


def profile(target: Target, name: str = PROFILE, storage: str = "s3://adapters") -> dict[str, Any]:
    """Return the development cluster's TuningProfile: S3 in the cluster, training on the CPU allowed."""
    return {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "TuningProfile",
        "metadata": {"name": name, "labels": LABELS},
        "spec": {
            "storage": {"uri": storage, "endpoint": target.s3.endpoint_in_cluster, "secretName": SECRET},
            "defaults": {
                "compute": {"resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "6Gi"}}},
                # The development node has two cores for all that there is.
                "engineCompute": {
                    "resources": {"requests": {"cpu": "100m", "memory": "2Gi"}, "limits": {"memory": "6Gi"}},
                    "env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"}],
                    "terminationGracePeriodSeconds": 60,
                },
            },
            "allowCpuFallback": True,
        },
    }


def refuse_others_profile(target: Target) -> None:
    """Raise TargetError if the cluster has a profile for jobs without one that neither demo nor scenarios have made."""
    if not target.kubectl("get", "customresourcedefinition", PROFILES, "--ignore-not-found"):
        return
    held = target.kubectl("get", PROFILES, PROFILE, "--ignore-not-found", "-o", "json")
    if held and not LABELS.items() <= (json.loads(held)["metadata"].get("labels") or {}).items():
        raise TargetError(
            f"the cluster has a TuningProfile {PROFILE!r} that is not ours, and what jobs do by default hangs on it:"
            " use another cluster, or delete it"
        )
