"""What a run begins with that is made of earlier FineTuneJobs' results, and why it does not begin yet (pure)."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from lorikeet_api.conditions import FINAL
from lorikeet_api.contract import Artifacts, RunContract, Start
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.objectives import Objective
from lorikeet_api.request import USUAL, Beginning, Refused
from lorikeet_api.rlhf import RewardModel, RewardSource
from lorikeet_api.training import HUB, Lora, Method, ModelSource, QLora

_SHAPE: Final = ("rank", "alpha", "rs_lora", "dora", "target_modules", "modules_to_save", "init")
"""What makes an adapter the one that it is: who goes on with it cannot have it otherwise."""


_FROM: Final = "spec.model.from"
_REWARD: Final = "spec.objective.rlhf.rewards[].model"


def by_earlier(body: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Index FineTuneJobs by those that they are made of: namespace and name."""
    spec = body.get("spec") or {}
    rewards = ((spec.get("objective") or {}).get("rlhf") or {}).get("rewards") or []
    origins = [(spec.get("model") or {}).get("from"), *(reward.get("model") for reward in rewards)]
    for origin in origins:
        if reference := (origin or {}).get("fineTuneJobRef"):
            yield str(body["metadata"]["namespace"]), str(reference.get("name"))


def beginning(job: FineTuneJob, earlier: Mapping[str, FineTuneJob], endpoint: str | None) -> Beginning:
    """Return what a run begins with.

    Args:
        job: the request.
        earlier: the FineTuneJobs that it is made of, by name, as far as there are.
        endpoint: the store that the run reads.

    Raises:
        Refused: if an earlier job has not published what is asked of it (yet), or the request does not fit to it.
    """
    objective = _rewarded(job.spec.objective, earlier, endpoint)
    if (source := job.spec.model.source) is not None:
        return Beginning(source, job.spec.method or USUAL, objective)
    name = str(job.spec.model.earlier)
    contract, artifacts = _result(name, earlier.get(name), endpoint, _FROM)
    if contract.objective.reward is not None:
        raise Refused(
            "InvalidSpec",
            f"FineTuneJob {name} has published a reward model, which writes no answers and is not trained further: name"
            f" another job in {_FROM} of a new job",
        )
    if contract.method.full is not None:
        model = ModelSource(uri=f"{artifacts.uri}/model", secret_ref=job.spec.model.secret_ref)
        return Beginning(model, job.spec.method or USUAL, objective)
    if job.spec.objective.reward is not None:
        raise Refused(
            "InvalidSpec",
            f"objective reward begins with an adapter of its own, and FineTuneJob {name} has published one: name a job"
            " of method full in spec.model.from of a new job, or its base model as spec.model.uri",
        )
    method = _continued(name, contract.method, job.spec.method)
    return Beginning(_base(contract, job), method, objective, Start(uri=artifacts.uri, sha256=artifacts.sha256))


def _rewarded(objective: Objective, earlier: Mapping[str, FineTuneJob], endpoint: str | None) -> Objective:
    """Return the objective with each reward model of a job by where it lies, and by its content. Raises Refused."""
    rlhf = objective.rlhf
    if rlhf is None or not rlhf.jobs:
        return objective

    def found(reward: RewardSource) -> RewardSource:
        if reward.model is None or reward.model.fine_tune_job_ref is None:
            return reward
        name = reward.model.fine_tune_job_ref.name
        contract, artifacts = _result(name, earlier.get(name), endpoint, _REWARD)
        if contract.objective.reward is None:
            raise Refused(
                "InvalidSpec",
                f"FineTuneJob {name} has published no reward model, its objective is {contract.objective.name}: name a"
                f" job of objective reward in {_REWARD} of a new job",
            )
        return reward.model_copy(update={"model": RewardModel(uri=artifacts.uri, sha256=artifacts.sha256)})

    rewards = [found(reward) for reward in rlhf.rewards]
    return objective.model_copy(update={"rlhf": rlhf.model_copy(update={"rewards": rewards})})


def _result(name: str, earlier: FineTuneJob | None, endpoint: str | None, field: str) -> tuple[RunContract, Artifacts]:
    """Return what an earlier job was told and has published. Raises Refused; `field` is where it is named."""
    if earlier is None:
        raise Refused(
            "JobNotFound",
            f"there is no FineTuneJob {name} in this namespace: create it, and this job starts by itself once it has"
            f" succeeded; or name another one in {field} of a new job",
        )
    status = earlier.status
    if earlier.metadata.deletion_timestamp is not None and earlier.spec.deletion_policy == "Delete":
        raise Refused(
            "JobNotFound",
            f"FineTuneJob {name} is being deleted, and what it has published with it: create it anew, and this job"
            f" starts by itself once it has succeeded; or name another one in {field} of a new job",
        )
    if status.phase not in FINAL:
        raise Refused(
            "JobNotFinished",
            f"FineTuneJob {name} is {status.phase}: this job, which names it in {field}, begins as soon as it has"
            " succeeded",
        )
    if status.phase == "Failed" or status.artifacts is None or status.resolved is None:
        raise Refused(
            "JobFailed",
            f"FineTuneJob {name} has published nothing ({status.message or status.phase}): create it anew, and this"
            f" job starts by itself once it has succeeded; or name another one in {field} of a new job",
        )
    contract = status.resolved.contract
    if (contract.storage.endpoint or "").rstrip("/") != (endpoint or "").rstrip("/"):
        raise Refused(
            "InvalidSpec",
            f"FineTuneJob {name} has published to {contract.storage.endpoint or 'AWS'}, and this job's TuningProfile"
            f" reads {endpoint or 'AWS'}: name a profile with the same storage.endpoint in spec.profileRef",
        )
    return contract, status.artifacts


def _base(contract: RunContract, job: FineTuneJob) -> ModelSource:
    """Return the base model of an adapter, at the commit that it was trained on."""
    base = contract.model
    pinned = contract.pins[0] if contract.pins and base.uri.startswith(HUB) else base.revision
    secret = job.spec.model.secret_ref or base.secret_ref
    return base.model_copy(update={"revision": pinned, "secret_ref": secret})


def _continued(name: str, before: Method, asked: Method | None) -> Method:
    """Return the method by which an adapter that `before` has made is trained further. Raises Refused."""
    made = _published(name, before)
    if asked is None:
        return made
    known, wanted = made.adapter, asked.adapter
    if known is None or wanted is None:
        raise Refused(
            "InvalidSpec",
            f"FineTuneJob {name} has published a LoRA adapter, which {asked.name} does not train further: leave"
            " spec.method out, or give lora or qlora",
        )
    differing = {field: _setting(known, field) for field in _SHAPE if _setting(known, field) != _setting(wanted, field)}
    if differing:
        right = ", ".join(
            f"{Lora.model_fields[field].alias or field}: {json.dumps(value)}" for field, value in differing.items()
        )
        raise Refused(
            "InvalidSpec",
            f"spec.method.{asked.name} does not fit to the adapter of FineTuneJob {name}: create this job with {right};"
            " or leave spec.method out to go on as that one",
        )
    return asked


def _setting(adapter: Lora | QLora, field: str) -> Any:
    """Return one setting of an adapter in a form that can be compared; init has qlora none but the default."""
    value = getattr(adapter, field, "default")
    return sorted(value) if isinstance(value, list) else value


def _published(name: str, method: Method) -> Method:
    """Return the method that would have made what `method` has published. Raises Refused.

    An adapter that was trained in the place of a part of the base is published as the difference: a plain one of twice
    the rank, scaled as before (peft's `save_pretrained`, `path_initial_model_for_weight_conversion`).
    """
    lora = method.lora
    if method.adapter is None:
        raise Refused(
            "InvalidSpec",
            f"FineTuneJob {name} was trained with {method.name}, whose modules no run goes on with: name a job of full,"
            " lora or qlora in spec.model.from of a new job",
        )
    if lora is None or lora.init == "default":
        return method
    if lora.rs_lora:
        raise Refused(
            "InvalidSpec",
            f"FineTuneJob {name} was trained with init {lora.init} and rsLora, and the alpha of what it has published"
            " is no whole number: train it again without rsLora, or without init, to go on from it",
        )
    try:
        plain = {**lora.to_wire(), "init": "default", "rank": lora.published_rank, "alpha": 2 * lora.alpha}
        return Method(lora=Lora.model_validate(plain))
    except ValidationError as error:
        raise Refused(
            "InvalidSpec",
            f"FineTuneJob {name} has published rank {lora.published_rank} and alpha {2 * lora.alpha}, which is more"
            " than a job can have: train it again with half of them, or without init, to go on from it",
        ) from error
