"""What controllers watch together: a kind is watched in one way by all of them."""

from collections.abc import Iterable
from typing import Final

from lorikeet_api import names
from lorikeet_operator.finetune.evidence import OURS, pod_at_work, without_template
from lorikeet_operator.finetune.start import by_earlier
from lorikeet_operator.finetune.turns import by_run
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT, TUNINGPROFILE
from lorikeet_operator.kube.controller import Watch
from lorikeet_operator.kube.kinds import JOB, POD, Object, key_of, label_of


def owned_by(obj: Object) -> Iterable[tuple[str, str]]:
    """Index children by namespace and owner: `<name>` of a FineTuneJob, `modeldeployment/<name>` of the other."""
    namespace = key_of(obj).namespace
    if (job := label_of(obj, names.LABEL_FINETUNEJOB)) is not None:
        yield namespace, job
    if (deployment := label_of(obj, names.LABEL_MODELDEPLOYMENT)) is not None:
        yield namespace, of_deployment(deployment)


def of_deployment(name: str) -> str:
    """Return under what the children of a ModelDeployment are indexed."""
    return f"modeldeployment/{name}"


def by_job(deployment: Object) -> Iterable[tuple[str, str]]:
    """Index ModelDeployments by the FineTuneJobs whose adapters they serve: a job tells of itself every few seconds."""
    namespace = key_of(deployment).namespace
    for adapter in (deployment.get("spec") or {}).get("adapters") or []:
        if reference := (adapter.get("from") or {}).get("fineTuneJobRef"):
            yield namespace, str(reference.get("name"))


def by_run_and_earlier(job: Object) -> Iterable[tuple[str, str]]:
    """Index FineTuneJobs by the folder that they write, and by the jobs that they are made of."""
    return [*by_run(job), *by_earlier(job)]


FINETUNEJOBS: Final = Watch(FINETUNEJOB, index=by_run_and_earlier)
MODELDEPLOYMENTS: Final = Watch(MODELDEPLOYMENT, index=by_job)
TUNINGPROFILES: Final = Watch(TUNINGPROFILE)
JOBS: Final = Watch(JOB, label_selector=OURS, index=owned_by, slim=without_template)
PODS: Final = Watch(POD, label_selector=OURS, index=owned_by, slim=pod_at_work)
