"""What operator and trainer agree on: the run's contract, its final record, its manifest.

The contract lies in the pod as `/etc/lorikeet/run.json`; the record is the container's termination
message; the manifest lies in S3 beside the adapter and is written last.
"""

import hashlib
import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field

from lorikeet_api.base import Model, S3Uri, Sha256, Text
from lorikeet_api.objectives import Objective, Sft
from lorikeet_api.signs import SignList
from lorikeet_api.tracking import Tracking
from lorikeet_api.training import Dataset, DataSource, Method, ModelSource, Training

CONTRACT_PATH: Final = "/etc/lorikeet/run.json"
"""Where the pods of a run have the contract."""
TERMINATION_PATH: Final = "/dev/termination-log"
TERMINATION_LIMIT: Final = 4000
"""Bytes that a termination message may have: the kubelet cuts it at 4,096."""
WORK_DIR: Final = "/var/lib/lorikeet"
"""The pod's scratch volume: model, data, caches and outputs."""
PVC_DIR: Final = "/var/lib/lorikeet-pvc"
"""Where `pvc://<claim>/…` sources are mounted, each claim in a folder of its name, read-only."""
CA_DIR: Final = "/etc/lorikeet-ca"
"""Where the profile's CA bundle is mounted, as `ca.crt`."""

EXIT_DONE: Final = 0
EXIT_BAD_REQUEST: Final = 64
"""The user's request is wrong; the same request fails again."""
EXIT_BAD_DATA: Final = 65
"""The data is bad."""
EXIT_DOES_NOT_FIT: Final = 66
"""Out of GPU or container memory."""
EXIT_INTERNAL: Final = 70
"""A defect or a fault inside; retried within maxRetries."""
EXIT_PREEMPTED: Final = 75
"""Asked to stop before the end. Made again without counting where Kubernetes says that it disrupted the pod."""
FINAL_EXIT_CODES: Final = (EXIT_BAD_REQUEST, EXIT_BAD_DATA, EXIT_DOES_NOT_FIT)
"""Codes that end the job at once."""


class StorageAccess(Model):
    """How S3 is reached; credentials come by the environment."""

    endpoint: Text | None = None
    """URL of an S3-compatible store. Absent: AWS."""
    region: Text | None = None
    """Region. Absent: us-east-1."""


class Start(Model):
    """A LoRA adapter that an earlier run has published, for a run that trains it further."""

    uri: S3Uri
    """Folder of that run."""
    sha256: Sha256
    """sha256 of its manifest."""


class RunContract(Model):
    """Everything that a run needs to know; nothing in it depends on the pod that runs it."""

    version: Literal["v1"] = "v1"
    """Version of this contract."""
    namespace: str
    """Namespace of the FineTuneJob."""
    name: str
    """Name of the FineTuneJob."""
    run_id: str
    """Address of the run below `outputUri`: see `run_id`."""
    model: ModelSource
    """Base model."""
    start: Start | None = None
    """The adapter that the run begins with. Absent: a new one, or none at all."""
    dataset: Dataset
    """Training and evaluation data."""
    method: Method
    """How the weights are changed."""
    objective: Objective
    """What is optimised."""
    training: Training
    """Hyperparameters; every one that has a default is set. Without a micro batch the run finds its own."""
    output_uri: S3Uri
    """The run publishes below `<outputUri>/<runId>/`."""
    storage: StorageAccess = StorageAccess()
    """How S3 is reached."""
    gpus: Annotated[int, Field(ge=0)]
    """GPUs that the pod asked for; 0 trains on the CPU."""
    allow_cpu: bool = False
    """Train on the CPU if the pod asked for GPUs and has none (development clusters)."""
    grace_period_seconds: Annotated[int, Field(ge=1)] = 120
    """Seconds between SIGTERM and SIGKILL."""
    pins: Annotated[list[Text], Field(max_length=64)] | None = None
    """What the sources were when the run was checked: the model's, the training sources' in order, the evaluation
    set's, the test set's, the general set's, the reward models'. A commit of the hub, or the sha256 over names, sizes
    and versions (ETags, times of change) of the files; of a reward model that of its manifest."""
    job_uid: Text | None = None
    """uid of the FineTuneJob; absent outside a cluster."""
    tracking: Tracking | None = None
    """Trackers that follow the run; they have no part in its id."""
    date: str
    """Day of the FineTuneJob's creation (YYYY-MM-DD): what a chat template that prints today's date prints."""

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return ranks_of(self.gpus)


def ranks_of(gpus: int) -> int:
    """Return how many processes train together: one on each GPU, or one on the CPU."""
    return max(1, gpus)


Use = Literal["training", "evaluation", "test", "general"]
"""What a data source is for."""


def data_sources(contract: RunContract) -> list[DataSource]:
    """Return the training sources in the contract's order, then evaluation, test and general set if there are."""
    return [source for _, source in _by_use(contract.dataset)]


def data_uses(contract: RunContract) -> list[Use]:
    """Return what each of `data_sources` is for."""
    return [use for use, _ in _by_use(contract.dataset)]


def _by_use(dataset: Dataset) -> list[tuple[Use, DataSource]]:
    others: list[tuple[Use, DataSource | None]] = [
        ("evaluation", dataset.eval),
        ("test", dataset.test),
        ("general", dataset.general),
    ]
    trained: list[tuple[Use, DataSource]] = [("training", source) for source in dataset.train]
    return [*trained, *((use, source) for use, source in others if source is not None)]


def read_as(contract: RunContract, use: Use) -> RunContract:
    """Return the contract by which sources of a use are read.

    It is the run's own but for a general set, which has rows of sft with the usual names, cut at `maxLength`, whatever
    the run trains on and how.
    """
    if use != "general":
        return contract
    dataset = contract.dataset
    usual = Dataset(train=dataset.train, max_length=dataset.max_length, overlong="truncate")
    return contract.model_copy(update={"dataset": usual, "objective": Objective(sft=Sft())})


def canonical_json(value: Any) -> bytes:
    """Return the bytes of `value` as JSON with sorted keys and no blanks: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def run_id(
    model: ModelSource,
    dataset: Dataset,
    method: Method,
    objective: Objective,
    training: Training,
    start: Start | None = None,
) -> str:
    """Return the run's address: 16 hex digits of the sha256 of all that decides its result.

    The same request gives the same id wherever and whenever it is made, so a finished run is found again
    by a recreated job instead of being trained again. So what the machine decides has no part in it, as the number of
    GPUs and the micro batch that goes with it: accumulation makes one step of one batch. Two objectives depend on them
    all the same: kto compares within a micro batch, which has a part in its id therefore; the answers of rlhf are drawn
    on each GPU by a seed of its own, so that more GPUs draw others. Their number has no part in the id there either.
    Nor has the general set, which is only looked at.
    """
    without = dict.fromkeys(("checkpoints", "signs", "stall_timeout_seconds"))
    if objective.kto is None:
        without["micro_batch_size"] = None
    decisive = training.model_copy(update=without)
    learnt = dataset.model_copy(update={"general": None})
    parts: list[Any] = [part.to_wire() for part in (model, learnt, method, objective, decisive)]
    if start is not None:
        parts.append(start.sha256)  # its content, wherever it lies
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:16]


Figure = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}"))]
"""A measured number, to six significant digits: `kubectl get` shows it, and more would be noise."""


class Metrics(Model):
    """The run's figures. Losses of sft are means over trained tokens, in nats; those of other objectives are theirs."""

    train_loss: Figure | None = None
    """Training loss, mean over the whole run."""
    eval_loss: Figure | None = None
    """Loss on the held-out examples after training. Of sft: sum of the tokens' negative log-likelihoods / tokens. Of
    dpo and reward: mean negative log-likelihood of a pair's order, as margins tell it. Of kto and orpo: their own. Of
    rlhf: minus evalReward."""
    base_eval_loss: Figure | None = None
    """The same before training."""
    perplexity: Figure | None = None
    """exp(evalLoss), of sft."""
    eval_accuracy: Figure | None = None
    """Share of the held-out pairs whose chosen answer gets the higher reward, after training; of kto: of the held-out
    answers whose reward says what their label does. Equal rewards count half."""
    base_eval_accuracy: Figure | None = None
    """The same before training."""
    eval_margin: Figure | None = None
    """By how much chosen answers' rewards exceed rejected ones', mean over the held-out pairs after training; of kto:
    good answers' mean over bad answers' mean."""
    eval_reward: Figure | None = None
    """Weighted sum of the rewards of an answer to a held-out prompt, mean after training; of rlhf, as the two below.
    One answer to each prompt, drawn at the run's temperature by its seed."""
    base_eval_reward: Figure | None = None
    """The same before training."""
    eval_kl: Figure | None = None
    """How far the model has gone from what it was before training: log-likelihood of a token of those answers after
    training, less that before, mean (nats)."""
    eval_length: Figure | None = None
    """Length of those answers in tokens, mean after training."""
    base_eval_length: Figure | None = None
    """The same before training."""
    test_loss: Figure | None = None
    """Loss on the test set after training, computed as evalLoss."""
    base_test_loss: Figure | None = None
    """The same before training."""
    test_perplexity: Figure | None = None
    """exp(testLoss), of sft."""
    test_accuracy: Figure | None = None
    """As evalAccuracy, on the test set."""
    test_reward: Figure | None = None
    """As evalReward, on the test set."""
    general_loss: Figure | None = None
    """Loss on the general set after training, whatever the objective: mean over its answers' tokens, in nats."""
    base_general_loss: Figure | None = None
    """The same before training."""
    steps: int | None = None
    """Optimiser steps made."""
    planned_steps: int | None = None
    """Optimiser steps that it was to make; absent where it made them all, and `earlyStopping` did not end it."""
    best_step: int | None = None
    """Step after which the loss on the held-out examples was the lowest; absent where the best weights are not kept."""
    best_eval_loss: Figure | None = None
    """That loss."""
    resumed_from_step: int | None = None
    """Step of the checkpoint that the last attempt went on from; absent if it began at the beginning."""
    train_examples: int | None = None
    """Examples trained on (an epoch's)."""
    packed_sequences: int | None = None
    """Sequences that they were packed into, which batchSize counts then; absent without packing."""
    eval_examples: int | None = None
    """Held-out examples."""
    test_examples: int | None = None
    """Examples of the test set; absent without one."""
    dropped_examples: int | None = None
    """Examples left out because they were longer than maxLength."""
    trained_tokens: int | None = None
    """Tokens that the training examples' loss counts, one epoch."""
    trainable_parameters: int | None = None
    """Parameters that were trained."""
    trainable_percent: Figure | None = None
    """Their share of all parameters, in percent."""
    quantized_layers: int | None = None
    """Linear layers held in 4 bits."""
    quantized_percent: Figure | None = None
    """Share of the base model's parameters held in 4 bits, in percent."""
    stop_token_percent: Figure | None = None
    """Share of the examples whose last trained token is a stop token, in percent."""
    tokens_per_second: Figure | None = None
    """Tokens per second of training, padding not counted."""
    train_seconds: Figure | None = None
    """Seconds of training."""
    fetch_seconds: Figure | None = None
    """Seconds of fetching model and data and checking them, in the last attempt, as the next two."""
    tokenize_seconds: Figure | None = None
    """Seconds of making tokens of the examples."""
    load_seconds: Figure | None = None
    """Seconds of loading libraries and model, of finding the micro batch, and of setting training up."""
    step_seconds: Figure | None = None
    """Seconds of optimiser steps, over all attempts, as the next two."""
    checkpoint_seconds: Figure | None = None
    """Seconds in which training waited for a checkpoint or the result to be written; they are uploaded beside it."""
    evaluate_seconds: Figure | None = None
    """Seconds of evaluation and sampled answers, before training, on the way and after."""
    publish_seconds: Figure | None = None
    """Seconds of uploading the result."""
    steps_percent: Figure | None = None
    """Share of these seven in optimiser steps, in percent: in the rest of its time a GPU waited."""
    peak_memory_bytes: int | None = None
    """Peak memory: of the GPU where there is one, else of the process."""
    checkpoint_bytes: int | None = None
    """Size of the newest checkpoint that an interruption would have been gone on from; absent without one."""
    device: Text | None = None
    """What it trained on: the GPU's name, or cpu."""
    precision: Text | None = None
    """Type in which it computed: `training.precision`, or what was chosen."""
    optimizer: Text | None = None
    """What made the steps: `training.optimizer`, or what was chosen. A CPU pages nothing: it makes adamw8bit of
    pagedAdamw8bit."""
    attention: Text | None = None
    """What computed attention: `training.attention`, or what was chosen."""
    micro_batch_size: int | None = None
    """Examples of a forward pass on one GPU: `training.microBatchSize`, or what was chosen."""
    kernels: Text | None = None
    """What computed norms, rotary positions and gated feed-forward parts: `training.kernels`, or what was chosen."""
    signs: SignList | None = None
    """Signs that the run went wrong; absent: none was seen."""

    def published_in(self, seconds: float) -> Self:
        """Return the same of a run whose result took so many seconds to upload."""
        return self.model_copy(update={"publish_seconds": seconds}).with_steps_percent()

    def with_steps_percent(self) -> Self:
        """Return the same with the share of optimiser steps, if it is known how long any took."""
        if not self.step_seconds:
            return self
        others = (
            *(self.fetch_seconds, self.tokenize_seconds, self.load_seconds),
            *(self.checkpoint_seconds, self.evaluate_seconds, self.publish_seconds),
        )
        total = self.step_seconds + sum(other or 0.0 for other in others)
        return self.model_copy(update={"steps_percent": 100.0 * self.step_seconds / total})


REPORT: Final = "report/index.html"
"""Where a run's report lies in its folder."""


class Artifacts(Model):
    """What the run published."""

    uri: str
    """Where it lies: `<output>/<runId>`."""
    run_id: str
    """Hash of the resolved request: equal requests have equal ids."""
    revision: str
    """First 8 hex digits of `sha256`."""
    sha256: str
    """sha256 of the manifest, which holds those of all files."""
    size_bytes: int
    """Size of all files together."""
    report: str | None = None
    """The run's report, a page for a browser: `<output>/<runId>/report/index.html`. Absent where the run has none."""


class RunRecord(Model):
    """How a run ended: the container's termination message, at most TERMINATION_LIMIT bytes of JSON."""

    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """A `conditions.Reason`; an image of the user's own may give others."""
    message: str
    """The cause and the next step."""
    retryable: bool = False
    """Whether the same run may be tried again."""
    metrics: Metrics | None = None
    """The run's figures, if it got so far."""
    artifacts: Artifacts | None = None
    """What was published, if anything."""
    pins: list[str] | None = None
    """What the sources are, where the run was checked: see `RunContract.pins`."""

    def to_message(self) -> str:
        """Return the termination message; the message text is shortened where the limit demands it."""
        text = json.dumps(self.to_wire(), ensure_ascii=False)
        excess = len(text.encode()) - TERMINATION_LIMIT
        if excess <= 0:
            return text
        # Escapes make a character up to 6 bytes long in JSON, so cut by trial from the largest that may fit.
        keep = len(self.message)
        while len(text.encode()) > TERMINATION_LIMIT and keep > 0:
            keep -= max(1, (len(text.encode()) - TERMINATION_LIMIT) // 6)
            shorter = self.model_copy(update={"message": self.message[: max(keep, 0)] + " …"})
            text = json.dumps(shorter.to_wire(), ensure_ascii=False)
        return text


class FileDigest(Model):
    """One file with its content's address."""

    path: str
    """Path below the manifest's folder, or below the source."""
    sha256: str
    """sha256 of the content, hex."""
    size: int
    """Bytes."""


class SourceDigest(Model):
    """One source as it was read."""

    uri: str
    """Where it was read from."""
    revision: str | None = None
    """Resolved commit of an `hf://` source."""
    files: list[FileDigest]
    """The files read."""
    rows: int | None = None
    """Examples in it (data sets)."""


class Servable(Model):
    """Whether an engine can load what was published."""

    lora: bool
    """Whether it can be served as a LoRA adapter on the original base model."""
    reason: str | None = None
    """Why not."""


MAX_SERVED_RANK: Final = 512
"""The highest LoRA rank that any engine serves (vLLM's `--max-lora-rank`)."""


def servable(method: Method, objective: Objective) -> Servable:
    """Return whether engines take what a run makes as a LoRA adapter on the original base, and why not."""
    adapter = method.adapter
    if objective.reward is not None:
        return Servable(lora=False, reason="it is a reward model, which gives answers a number and writes none")
    if method.full is not None:
        return Servable(lora=False, reason="it is a whole model, to be served as one")
    if adapter is None:
        return Servable(lora=False, reason=f"it was trained with {method.name}, whose modules no engine loads")
    if adapter.dora:
        return Servable(lora=False, reason="it was trained with dora, whose magnitudes no engine loads")
    if adapter.published_rank > MAX_SERVED_RANK:
        return Servable(
            lora=False, reason=f"it has rank {adapter.published_rank}, engines take {MAX_SERVED_RANK} at most"
        )
    if adapter.modules_to_save:
        whole = ", ".join(adapter.modules_to_save)
        return Servable(lora=False, reason=f"it has whole layers ({whole}; modulesToSave), which no engine loads")
    return Servable(lora=True)


class Template(Model):
    """The chat template that the examples were rendered with."""

    source: Literal["base", "lorikeet", "none"]
    """The base model's own, Lorikeet's (the base has none), or none (plain text)."""
    sha256: str | None = None
    """sha256 of the template's text."""


class Manifest(Model):
    """What a run published and all that is needed to make it again. `manifest.json`, written last."""

    version: Literal["v1"] = "v1"
    """Version of this layout."""
    kind: Literal["adapter", "model", "reward"]
    """adapter (LoRA, QLoRA, bottleneck), model (full), or a reward model in the form of one of the two."""
    run_id: str
    """The run's address."""
    base_model: SourceDigest
    """The base model as it was read."""
    data: list[SourceDigest]
    """Training sources in the spec's order, then the evaluation set, the test set and the general set."""
    rewards: list[SourceDigest] | None = None
    """The reward models of rlhf as they were read, in the spec's order; absent where it has none."""
    contract: RunContract
    """The whole request, resolved."""
    files: list[FileDigest]
    """Every published file."""
    template: Template
    """The chat template of training, to be used at inference."""
    rank: int | None = None
    """LoRA rank of the adapter."""
    servable: Servable
    """What an engine can do with it."""
    metrics: Metrics
    """The run's figures."""
    libraries: dict[str, str]
    """Versions of the libraries that decide the result."""

    def to_bytes(self) -> bytes:
        """Return the file's bytes; their sha256 is the revision."""
        return json.dumps(self.to_wire(), indent=1, sort_keys=True, ensure_ascii=False).encode()


class Checkpoint(Model):
    """A checkpoint in S3: `checkpoints/<step>-<attempt>/checkpoint.json`, written after the files that it names."""

    version: Literal["v1"] = "v1"
    """Version of this layout."""
    run_id: str
    """The run that it is of."""
    basis: str
    """What it was trained on: see `lorikeet_trainer.state.Prepared`. One of other data is none of this run."""
    step: int
    """Optimiser steps made."""
    files: list[FileDigest]
    """Every file."""


class LatestPointer(Model):
    """`<output>/latest.json`: the newest run below an output."""

    run_id: str
    """The run."""
    sha256: str
    """sha256 of its manifest."""
