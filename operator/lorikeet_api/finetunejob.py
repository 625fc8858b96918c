"""FineTuneJob: one fine-tuning run, from a base model and data to a published adapter or model."""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from lorikeet_api.base import (
    WHOLE,
    Image,
    LabelKey,
    Model,
    NameReference,
    ObjectName,
    S3Uri,
    SourceUri,
    Text,
    cel,
    listed,
    mapped,
)
from lorikeet_api.compute import Compute
from lorikeet_api.conditions import Condition, Phase
from lorikeet_api.contract import Artifacts, Metrics, RunContract
from lorikeet_api.names import DEFAULT_PROFILE, MAX_JOB_NAME
from lorikeet_api.objectives import Objective, Sft, misfit_rules, misfits, unseen, unseen_rules, unshared, unshared_rule
from lorikeet_api.progress import Progress
from lorikeet_api.resource import Resource
from lorikeet_api.signs import BY_EVALUATION, fails_on
from lorikeet_api.tracking import Tracking
from lorikeet_api.training import (
    HUB,
    NO_REVISION,
    Dataset,
    Full,
    Lora,
    Method,
    ModelSource,
    QLora,
    Revision,
    Training,
)

__all__ = [
    "FineTuneJob",
    "FineTuneJobSpec",
    "FineTuneJobStatus",
    "Full",
    "Lora",
    "Output",
    "QLora",
    "Resolved",
]


_ONE_MODEL: Final = "give exactly one of uri and from"
_OF_ITSELF: Final = "the job names itself as one that it waits for: name an earlier one"


class ModelOrigin(Model):
    """Which run's result a model is."""

    fine_tune_job_ref: NameReference
    """A FineTuneJob of the same namespace. This one waits until it has succeeded."""


class JobModel(Model):
    """What is trained: exactly one of a base model (`uri`) and what an earlier FineTuneJob has published (`from`)."""

    uri: SourceUri | None = None
    """Where the base model lies: `s3://bucket/prefix`, `hf://org/name` or `pvc://claim/path`."""
    revision: Revision | None = None
    """Commit, tag or branch of an `hf://` model. Name a commit to pin it; absent: the main branch."""
    from_: Annotated[ModelOrigin | None, Field(alias="from")] = None
    """An earlier run to go on from. Its LoRA adapter is trained further, on the base model that it was made for; a
    model that it has trained whole is the base model of this one."""
    secret_ref: NameReference | None = None
    """Secret in the job's namespace whose key `HF_TOKEN` opens gated `hf://` sources. Absent: with `from`, the earlier
    job's."""

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if (self.uri is None) == (self.from_ is None):
            raise ValueError(_ONE_MODEL)
        if self.revision is not None and not (self.uri or "").startswith(HUB):
            raise ValueError(NO_REVISION)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_checks` for the API server."""
        of_hub = f"has(self.uri) && self.uri.startsWith('{HUB}')"
        return [
            cel("has(self.uri) != has(self.from)", _ONE_MODEL),
            cel(f"!has(self.revision) || ({of_hub})", NO_REVISION, fieldPath=".revision"),
        ]

    @property
    def source(self) -> ModelSource | None:
        """The base model that is named; None if an earlier run decides."""
        if self.uri is None:
            return None
        return ModelSource(uri=self.uri, revision=self.revision, secret_ref=self.secret_ref)

    @property
    def earlier(self) -> str | None:
        """Name of the FineTuneJob that this one goes on from."""
        return None if self.from_ is None else self.from_.fine_tune_job_ref.name


class Output(Model):
    """Where the run publishes."""

    uri: S3Uri
    """The run publishes below `<uri>/<runId>/` and points to it with `<uri>/latest.json`."""


_BY_EVALUATION: Final = {
    "evalSteps": "has(self.training.evalSteps)",
    "earlyStopping": "has(self.training.earlyStopping)"
    " && (!has(self.training.earlyStopping.patience) || self.training.earlyStopping.patience > 0)",
    "publish best": "has(self.training.publish) && self.training.publish == 'best'",
    "checkpoints.afterSuccess keepBest": "has(self.training.checkpoints)"
    " && has(self.training.checkpoints.afterSuccess) && self.training.checkpoints.afterSuccess == 'keepBest'",
    **{f"signs.failOn {name}": fails_on(name) for name in BY_EVALUATION},
}
"""What of `training` asks for a loss on held-out examples, and how the API server knows that it does."""
_ON_GPUS: Final = {"precision": "fp16", "attention": "flash", "kernels": "liger"}
"""Fields of `training`, each with the value that only a GPU has."""
_NEEDS_GPU: Final = (
    "training.precision fp16, attention flash and kernels liger need a GPU, and compute.gpus is 0: leave them out"
)
_NOTHING_TO_OPEN: Final = "model.secretRef opens hf:// sources, and there is none: remove it"


STEERED: Final = (
    "maxRetries",
    "maxPreemptions",
    "suspend",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
    "deletionPolicy",
)
"""Fields of the spec that say how the run is kept, not what it is: they may change at any time."""


class FineTuneJobSpec(Model):
    """What to train, how, and on which pod. What defines the run is immutable; its life may be steered: `suspend`,
    `maxRetries`, `maxPreemptions`, `activeDeadlineSeconds`, `ttlSecondsAfterFinished` and `deletionPolicy`."""

    profile_ref: NameReference = NameReference(name=DEFAULT_PROFILE)
    """TuningProfile with storage, images and defaults."""
    model: JobModel
    """Base model, or what an earlier job has published."""
    dataset: Dataset
    """Training and evaluation data."""
    method: Method | None = None
    """How the weights are changed: exactly one of full, lora, qlora and bottleneck. Absent: that of the adapter which
    `model.from` goes on with, else `qlora` with its defaults."""
    objective: Objective = Objective(sft=Sft())
    """What the run optimises."""
    training: Training = Training()
    """Hyperparameters."""
    tracking: Tracking | None = None
    """Trackers that follow the run. Absent: the profile's; `{}`: none."""
    compute: Compute = Compute()
    """What the trainer's pod asks for."""
    output: Output | None = None
    """Where the run publishes. Absent: below the profile's storage, by namespace and name."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a failed attempt is made again. A wrong request, bad data, a run that does not fit into memory, a loss
    that is no number (`LossNotFinite`) and a sign that `training.signs.failOn` names are never retried."""
    max_preemptions: Annotated[int, Field(ge=0, le=10_000)] = 20
    """How often the run may be interrupted from outside (a drained or reclaimed node, a pod of higher priority) and
    is made again. These do not count as retries."""
    suspend: bool = False
    """Stops the run and gives its GPUs back; false starts it again. A job that is created suspended starts nothing."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """Seconds that the trainer may run, over all attempts together; waiting and suspension do not count."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """Seconds after the end of the run when its batch Job and pods, with their logs, are removed. The FineTuneJob
    stays as the record and trains no second time. Absent: they stay as long as the FineTuneJob."""

    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What deleting the FineTuneJob does to what the run has written to S3: `Retain`, or `Delete` it, the published
    result too. A result that another job's run has made is left alone."""

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        dataset = self.dataset
        if dataset.eval is None and dataset.eval_fraction is None:
            for what in self.training.by_evaluation:
                raise ValueError(_needs_evaluation(what))
        if self.compute.gpus == 0 and any(getattr(self.training, name) == value for name, value in _ON_GPUS.items()):
            raise ValueError(_NEEDS_GPU)
        sets = (dataset.eval, dataset.test, dataset.general)
        uris = [source.uri for source in (*dataset.train, *(one for one in sets if one is not None))]
        # Where an earlier job's base model lies is not known here.
        opens = self.model.uri is None or any(uri.startswith(HUB) for uri in (self.model.uri, *uris))
        if self.model.secret_ref is not None and not opens:
            raise ValueError(_NOTHING_TO_OPEN)
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (why := misfits(self.method, self.dataset, self.objective)) is not None:
            raise ValueError(why)
        if (why := unseen(self.objective, self.training)) is not None:
            raise ValueError(why)
        if (why := unshared(self.objective, self.training.batch_size)) is not None:
            raise ValueError(why)
        return self

    @property
    def earlier(self) -> list[str]:
        """Names of the FineTuneJobs whose results this one is made of."""
        rewards = self.objective.rlhf.jobs if self.objective.rlhf is not None else []
        return [*([self.model.earlier] if self.model.earlier is not None else []), *rewards]

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of the checks above, and that what defines the run is fixed from creation."""
        from_hub = f"uri.startsWith('{HUB}')"
        spared = [
            f"(!has(self.training.{name}) || self.training.{name} != '{value}')" for name, value in _ON_GPUS.items()
        ]
        return [
            *(
                cel(
                    f"!has(self.training) || !({asks}) || has(self.dataset.eval) || has(self.dataset.evalFraction)",
                    _needs_evaluation(what),
                )
                for what, asks in _BY_EVALUATION.items()
            ),
            cel(
                "!has(self.compute) || !has(self.compute.gpus) || self.compute.gpus > 0 || !has(self.training)"
                f" || ({' && '.join(spared)})",
                _NEEDS_GPU,
            ),
            cel(
                f"!has(self.model.secretRef) || !has(self.model.uri) || self.model.{from_hub}"
                f" || self.dataset.train.exists(s, s.{from_hub})"
                f" || (has(self.dataset.eval) && self.dataset.eval.{from_hub})"
                f" || (has(self.dataset.test) && self.dataset.test.{from_hub})"
                f" || (has(self.dataset.general) && self.dataset.general.{from_hub})",
                _NOTHING_TO_OPEN,
            ),
            *misfit_rules(),
            *unseen_rules(),
            unshared_rule(),
        ] + [
            cel(
                f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
                f"{field} cannot change once the job exists: create a new FineTuneJob",
                fieldPath=f".{field}",
            )
            for field in (info.alias or name for name, info in FineTuneJobSpec.model_fields.items())
            if field not in STEERED
        ]


def _needs_evaluation(what: str) -> str:
    return f"training.{what} needs dataset.eval or dataset.evalFraction: set one, or remove {what}"


class Resolved(Model):
    """The request with profile and defaults filled in, fixed before the first pod: later edits of the
    profile do not touch a started job."""

    profile: ObjectName
    """The profile that was used."""
    profile_generation: int
    """Its generation then."""
    contract: RunContract
    """What the trainer was told."""
    compute: Compute
    """Pod settings, merged."""
    image: Image
    """Trainer image."""
    gpu_resource: LabelKey
    """Extended resource of the GPUs."""
    secret_name: ObjectName | None = None
    """Secret with the S3 credentials."""
    ca_config_map_name: ObjectName | None = None
    """ConfigMap with the CAs to trust."""
    checked: Annotated[str, Field(max_length=4096)] | None = None
    """What the check before the run found; absent before it, and where no pod checks."""
    warnings: Annotated[list[str], listed(0, 32)] = []
    """Values outside the range in which such runs usually work."""


class Counted(Model):
    """The newest pods that are counted, by creation time; a run has one pod at a time."""

    started_until: Text = ""
    """The newest one that has run."""
    began: Text = ""
    """When its trainer began."""
    ended_until: Text = ""
    """The newest one that has ended."""
    stopped_until: Text = ""
    """The newest one that was told to stop by a suspension: its end is no preemption."""


class FineTuneJobStatus(Model):
    """What became of the job; written by the operator alone."""

    phase: Phase = "Pending"
    """The job's state in one word."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """What there is to know of it in one sentence: the message of the condition that counts most now."""
    conditions: Annotated[list[Condition], mapped("type", 16)] = []
    """Validated, Suspended, Scheduled, Started, Complete, Failed: each with its reason and a message."""
    observed_generation: int = 0
    """Generation of the spec that this status speaks of."""
    attempts: int = 0
    """Pods that have run so far."""
    preemptions: int = 0
    """How many of them were interrupted from outside."""
    active_seconds: int = 0
    """Seconds that the trainer ran, in all attempts that have ended."""
    counted: Counted = Counted()
    """How far the three numbers above go."""
    job_uid: str | None = None
    """The batch Job of this run. Once set, no other Job is made: a lost Job is reported, not trained again."""
    start_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When the batch Job was made."""
    completion_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When the run ended."""
    progress: Progress | None = None
    """How far the run is."""
    metrics: Metrics | None = None
    """The run's figures."""
    artifacts: Artifacts | None = None
    """What was published."""
    resolved: Annotated[Resolved | None, WHOLE] = None
    """The request with profile and defaults filled in."""


class FineTuneJob(Resource):
    """One fine-tuning run: a base model, data, a method; its adapter or model is published to S3."""

    crd: ClassVar[dict[str, Any]] = {
        "plural": "finetunejobs",
        "singular": "finetunejob",
        "shortNames": ["ftj"],
        "categories": ["lorikeet"],
        "scope": "Namespaced",
        "columns": [
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
            {"name": "Percent", "type": "integer", "jsonPath": ".status.progress.percent"},
            {"name": "Loss", "type": "number", "jsonPath": ".status.progress.loss"},
            {"name": "Eval-Loss", "type": "number", "jsonPath": ".status.metrics.evalLoss"},
            {"name": "Train-Loss", "type": "number", "jsonPath": ".status.metrics.trainLoss", "priority": 1},
            {"name": "Eval-Reward", "type": "number", "jsonPath": ".status.metrics.evalReward", "priority": 1},
            {"name": "Attempts", "type": "integer", "jsonPath": ".status.attempts", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            {"name": "Model", "type": "string", "jsonPath": ".spec.model.uri", "priority": 1},
            {"name": "From", "type": "string", "jsonPath": ".spec.model.from.fineTuneJobRef.name", "priority": 1},
            {"name": "Revision", "type": "string", "jsonPath": ".status.artifacts.revision", "priority": 1},
            {"name": "Message", "type": "string", "jsonPath": ".status.message", "priority": 1},
        ],
        "rules": [
            cel(
                f"self.metadata.name.size() <= {MAX_JOB_NAME}",
                f"the name may have at most {MAX_JOB_NAME} characters, so that the names of its pods fit",
            ),
            cel(
                "!self.metadata.name.contains('.')",
                "the name may not contain dots: it becomes the host name of its pods",
            ),
            cel(
                "!has(self.spec.model.from) || self.spec.model.from.fineTuneJobRef.name != self.metadata.name",
                _OF_ITSELF,
            ),
            cel(
                "!has(self.spec.objective) || !has(self.spec.objective.rlhf) || !has(self.spec.objective.rlhf.rewards)"
                " || !self.spec.objective.rlhf.rewards.exists(r, has(r.model) && has(r.model.fineTuneJobRef)"
                " && r.model.fineTuneJobRef.name == self.metadata.name)",
                _OF_ITSELF,
            ),
        ],
    }

    api_version: Literal["lorikeet.dev/v1alpha1"]
    """Version of this schema."""
    kind: Literal["FineTuneJob"]
    """FineTuneJob."""
    spec: FineTuneJobSpec
    """What to train, how, and on which pod."""
    status: FineTuneJobStatus = FineTuneJobStatus()
    """What became of the job."""

    @model_validator(mode="after")
    def _name_fits(self) -> Self:
        if len(self.metadata.name) > MAX_JOB_NAME:
            raise ValueError(f"the name may have at most {MAX_JOB_NAME} characters, so that the names of its pods fit")
        if "." in self.metadata.name:
            raise ValueError("the name may not contain dots: it becomes the host name of its pods")
        if self.metadata.name in self.spec.earlier:
            raise ValueError(_OF_ITSELF)
        return self
