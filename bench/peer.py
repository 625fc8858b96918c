"""Measures Kubeflow Trainer as `bench.operator_load` measures Lorikeet's operator (its flag `--peer`).

Of a TrainJob, Trainer's controller manager makes a JobSet; JobSet's controller makes a Service and the batch Job of it
and writes the JobSet's status, which Trainer's brings into TrainJob's. Each is measured on an API server of its own:

- `to_jobset`: Trainer's alone, until each TrainJob has its JobSet. It writes no status then: about one write a job.
- `to_job`: both, until each TrainJob's status tells of its batch Job, which is what Lorikeet's burst waits for.

Both are measured with Trainer's configuration as shipped, and `raised`: with more requests a second allowed to its
client (JobSet's has as many as shipped). `ratio` is Lorikeet's jobs a second by these. Writes are what the API server
counted, also those it refused. Kubeflow's webhooks are not called (what JobSet's would fill in is in the runtime), and
for both sides nobody runs pods: what is measured is the controllers and the API server.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.control_plane import NAMESPACE, api_of, control_plane, free_port, process, usage
from e2e.cluster import components, paths
from lorikeet_api.yaml import load_all

MODULE = Path(__file__).with_name("kubeflow")
TRAINER, JOBSET = "github.com/kubeflow/trainer/v2", "sigs.k8s.io/jobset"
MANAGER = "trainer-controller-manager"
RAISED = 500
API = "/apis/trainer.kubeflow.org/v1alpha1"
TRAINJOBS = f"{API}/namespaces/{NAMESPACE}/trainjobs"
JOBSETS = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets"
RUNTIME = "torch-distributed"
WRITTEN = ("trainjobs", "jobsets", "jobs", "services", "events")


def build() -> Path:
    """Build both programs if they are not there yet, which takes minutes; return their folder."""
    go = components.find_go()
    pinned = components.Component("kubeflow", source=MODULE)
    built = components.binary(pinned, components.go_version(go)).parent
    with paths.lock(paths.cache_dir() / "components.lock"):
        if not built.exists():
            print("building Kubeflow Trainer and JobSet, which takes five minutes on two cores (once)")
            built.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".build-", dir=built.parent) as temporary:
                environment = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": f"{temporary}/cache", "GOFLAGS": ""}
                environment |= {"GOTOOLCHAIN": "local", "GOWORK": "off"}
                command = [str(go), "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
                command += ["-o", f"{temporary}/bin/", f"{TRAINER}/cmd/{MANAGER}", JOBSET]
                subprocess.run(command, cwd=MODULE, env=environment, check=True)
                (Path(temporary) / "bin").rename(built)
    return built


def module(path: str) -> tuple[str, Path]:
    """Return the version of a Go module and the folder of its source, where its manifests are."""
    command = [str(components.find_go()), "mod", "download", "-json", path]
    found = json.loads(subprocess.run(command, cwd=MODULE, check=True, capture_output=True, text=True).stdout)
    return found["Version"], Path(found["Dir"])


def runtime(trainer: Path) -> dict[str, Any]:
    """Return the runtime for torch that Trainer ships, with what JobSet's webhook would fill in."""
    body: dict[str, Any] = load_all(trainer / "manifests" / "base" / "runtimes" / "torch_distributed.yaml")[0]
    spec = body["spec"]["template"]["spec"]
    spec["network"] = {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    spec["successPolicy"] = {"operator": "All"}
    spec["startupPolicy"] = {"startupPolicyOrder": "AnyOrder"}
    for replicated in spec["replicatedJobs"]:
        replicated["template"]["spec"]["completionMode"] = "Indexed"
        replicated["template"]["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    return body


def train_job(name: str) -> dict[str, Any]:
    """Return a short TrainJob."""
    body = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": name}}
    return {**body, "spec": {"runtimeRef": {"name": RUNTIME}}}


def exists(_: dict[str, Any]) -> bool:
    """Return that a JobSet is there."""
    return True


def tells_of_job(body: dict[str, Any]) -> bool:
    """Return whether the status of a TrainJob tells of its batch Job."""
    return bool((body.get("status") or {}).get("jobsStatus"))


@contextmanager
def controller(name: str, folder: Path, shipped: Path, certificates: str, **changed: Any) -> Iterator[int]:
    """Run a controller with the configuration it ships, but for addresses and certificates; yield its process id."""
    configuration = load_all(shipped)[0] | changed
    configuration["leaderElection"]["resourceNamespace"] = NAMESPACE
    configuration["metrics"] = {"bindAddress": "0"}
    configuration["health"] = {"healthProbeBindAddress": "0"}
    configuration["webhook"] = {"port": free_port(), "host": "127.0.0.1"}
    configuration[certificates] = {"enable": False}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(configuration))
    # The webhooks' server, which nobody calls, looks for a certificate below TMPDIR.
    served = folder / "k8s-webhook-server" / "serving-certs"
    served.mkdir(parents=True, exist_ok=True)
    for ending in ("crt", "key"):
        (served / f"tls.{ending}").write_bytes((folder / "tls" / f"apiserver.{ending}").read_bytes())
    command = [str(build() / name), f"--config={file}"]
    with process(name, folder, command, KUBECONFIG=str(folder / "kubeconfig"), TMPDIR=str(folder)) as running:
        yield running.pid


async def burst(jobs: int, whole: bool, raised: bool, folder: Path) -> dict[str, Any]:
    """Create all TrainJobs at once, on a control plane of its own."""
    trainer, jobset = module(TRAINER)[1], module(JOBSET)[1]
    definitions = sorted((trainer / "manifests" / "base" / "crds").glob("trainer.kubeflow.org_*.yaml"))
    definitions += sorted((jobset / "config" / "components" / "crd" / "bases").glob("*.yaml"))
    shipped = trainer / "manifests" / "base" / "manager" / "controller_manager_config.yaml"
    changed = {"clientConnection": {"qps": RAISED, "burst": RAISED}} if raised else {}
    watched, started = (TRAINJOBS, tells_of_job) if whole else (JOBSETS, exists)
    with control_plane(folder) as url, ExitStack() as stack:
        async with api_of(url, folder, definitions) as api:
            await api.when_served("GET", JOBSETS)
            await api.when_served("POST", f"{API}/clustertrainingruntimes", runtime(trainer))
            pids = [stack.enter_context(controller(MANAGER, folder, shipped, "certManagement", **changed))]
            if whole:
                shipped = jobset / "config" / "components" / "manager" / "controller_manager_config.yaml"
                pids.append(stack.enter_context(controller("jobset", folder, shipped, "internalCertManagement")))
            await asyncio.wait_for(api.burst(TRAINJOBS, [train_job("first")], watched, started), 60)
            before = await api.writes(*WRITTEN)
            found = await api.burst(
                TRAINJOBS, [train_job(f"burst-{number}") for number in range(jobs)], watched, started
            )
            found["writes_per_job"] = round((await api.writes(*WRITTEN) - before) / jobs - 1, 2)  # less its creation
            used = [usage(pid) for pid in pids]
            return found | {key: round(sum(each[key] for each in used), 1) for key in used[0]}


async def measure(jobs: int, ours: float, folder: Path) -> dict[str, Any]:
    """Return all figures; `ours` are Lorikeet's jobs a second."""
    found: dict[str, Any] = {"trainer": module(TRAINER)[0], "jobset": module(JOBSET)[0]}
    for until, whole in (("to_jobset", False), ("to_job", True)):
        for how, raised in (("shipped", False), ("raised", True)):
            each = await burst(jobs, whole, raised, folder / f"{until}-{how}")
            found[f"{until}_{how}"] = each | {"ratio": round(ours / each["jobs_per_second"], 2)}
    return found
