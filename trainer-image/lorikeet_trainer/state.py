"""What the stages of a run hand to each other, as JSON files in the work folder."""

import hashlib
import math
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import ConfigDict

from lorikeet_api.base import Model
from lorikeet_api.contract import Metrics, RunRecord, SourceDigest, Template, canonical_json
from lorikeet_run.report import Answer, DataProfile, Sample, TrackerState


class _File(Model):
    """A model that lies in a file of its own."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the file's content. Raises OSError or pydantic's ValidationError."""
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        fresh.write_text(self.model_dump_json(exclude_none=True, indent=1), encoding="utf-8")
        fresh.replace(path)


class StageResult(_File):
    """How a stage (or one rank of it) ended."""

    exit_code: int
    """The process's exit code."""
    record: RunRecord | None = None
    """The run's end; None if the next stage goes on."""


class Prepared(_File):
    """What `prepare` fetched."""

    model: SourceDigest
    """The base model as it was read."""
    data: list[SourceDigest]
    """As `data_sources` has them."""
    start: SourceDigest | None = None
    """The adapter that the run begins with, if it goes on from an earlier one's."""
    rewards: list[SourceDigest] = []
    """The reward models, in the contract's order."""
    is_tokenised: bool = False
    """Whether the data lies in `Layout.tokens` as tokens."""
    checkpoint: int | None = None
    """Step of the checkpoint that was fetched to go on from."""
    fitting: int | None = None
    """The largest micro batch that is known to fit: that of the checkpoint, or what `probe` has found."""
    seconds: float = 0.0
    """How long it took to fetch and check all of it."""
    probe_seconds: float | None = None
    """How long `probe` took; absent where it did not run."""

    def basis(self, date: str) -> str:
        """Return the sha256 over all that is trained on; `date` is the day that templates print."""
        sources = [self.model, *self.data, *([self.start] if self.start is not None else []), *self.rewards]
        files = [[file.sha256 for file in source.files] for source in sources]
        return hashlib.sha256(canonical_json([date, files])).hexdigest()


class Measured(_File):
    """What training steps take of a rank's memory, as `probe` has measured it."""

    limit: int
    """Bytes that there are."""
    peaks: dict[int, int] = {}
    """The most bytes that were taken, by micro batch."""


class StoredCheckpoint(_File):
    """The newest checkpoint of the run that is in the store."""

    step: int
    """Optimiser steps made."""


class Evaluation(Model):
    """How a model does on held-out rows."""

    # A model that diverges has no numbers; who asks ends the run with that reason.
    model_config = ConfigDict(allow_inf_nan=True)

    loss: float
    """The objective's loss."""
    accuracy: float | None = None
    """Share of the rows told apart as they should be; absent where there is nothing to tell apart."""
    margin: float | None = None
    """By how much the rewards of better answers exceed those of worse ones, in the mean."""
    reward: float | None = None
    """Reward of the answers that the model writes itself, mean; the two below are of those, too."""
    kl: float | None = None
    """How far it is from what it was before training, in nats a token; absent where that is not kept."""
    length: float | None = None
    """Tokens of an answer, mean."""

    @property
    def is_finite(self) -> bool:
        """Whether the loss is a number."""
        return math.isfinite(self.loss)


class Standing(Model):
    """How a model does, before training or after it."""

    held_out: Evaluation | None = None
    """On the held-out examples."""
    test: Evaluation | None = None
    """On the test set."""
    general: Evaluation | None = None
    """On the general set, as sft judges."""
    answers: list[Answer] = []
    """What it says to the report's questions."""

    @property
    def is_finite(self) -> bool:
        """Whether every loss is a number."""
        return all(judged is None or judged.is_finite for judged in (self.held_out, self.test, self.general))


class LossPoint(Model):
    """One point of the loss curve."""

    step: int
    """Optimiser steps made."""
    loss: float | None = None
    """Training loss, mean since the point before."""
    eval_loss: float | None = None
    """Loss on the held-out examples."""
    repeated: list[float] | None = None
    """Of each answer sampled then, the share of it that repeats what stands before; absent where none is sampled."""
    learning_rate: float | None = None
    """Learning rate of the step."""
    grad_norm: float | None = None
    """Norm of the step's gradient before it was clipped; absent where it is no finite number."""
    figures: dict[str, float] = {}
    """What else the objective tells, such as the margin of preferences: mean since the point before."""


class PacePoint(Model):
    """How fast and how large the run was at one logged step: unlike the losses, no two runs have the same."""

    step: int
    """Optimiser steps made."""
    tokens_per_second: float
    """Tokens per second of training since the point before, padding not counted."""
    memory_bytes: int
    """Memory held: of the first rank's GPU where there is one, else of its process."""
    time: float
    """When it was, in seconds since 1970."""


COURSE: Final = "course.json"
"""Name of the file below in a checkpoint."""


class Course(_File):
    """How a run went up to a checkpoint: what Lorikeet keeps in it beside what transformers does."""

    base: Standing
    """How the model did before training."""
    curve: list[LossPoint]
    """The loss so far."""
    pace: list[PacePoint]
    """The pace so far."""
    seconds: float
    """Seconds of training so far."""
    checkpoint_seconds: float
    """Those of them in which checkpoints were saved."""
    eval_seconds: float
    """Seconds of evaluations on the way so far, which are none of training's."""
    loss_sum: float
    """Sum of the losses of the steps up to `logged_step`."""
    loss_since: float
    """Sum of those after it."""
    logged_step: int
    """The last step that was logged."""
    micro_batch_size: int
    """Examples of a forward pass: an attempt that goes on keeps it, whatever its GPU has room for."""
    best_step: int | None = None
    """The evaluation whose weights lie in the checkpoint as the best so far; absent where none are kept."""


class MetricsFile(_File):
    """`metrics.json` beside the manifest: the figures and how they came about."""

    metrics: Metrics
    """The run's figures."""
    curve: list[LossPoint]
    """The loss over the steps."""
    pace: list[PacePoint]
    """The pace over the steps."""
    seconds: dict[str, float]
    """How long each part of the last attempt took; `steps`, `checkpoints` and `evals`, the parts of `train`, over all
    attempts."""


Ending = Literal["published", "stopped", "failed"]
"""How an attempt has ended, in trackers' words."""


class Tracked(_File):
    """How the run's trackers stand."""

    trackers: list[TrackerState]
    """In the order of the request's schema."""


class Trained(_File):
    """What `train` made."""

    metrics: Metrics
    """The run's figures."""
    template: Template
    """The chat template of training."""
    libraries: dict[str, str]
    """Versions of the libraries that decide the result."""
    profile: DataProfile
    """What the data looked like."""
    samples: list[Sample]
    """Answers before and after training."""


class Layout:
    """Where everything lies in the work folder."""

    def __init__(self, work: Path) -> None:
        self.contract = work / "run.json"
        """The contract as it was when the run began."""
        self.model = work / "model"
        self.start = work / "start"
        """The adapter that the run begins with, if it goes on from an earlier one's."""
        self.rewards = work / "rewards"
        """A folder for each reward model, by its number."""
        self.data = work / "data"
        self.tokens = work / "tokens"
        """The data as tokens, where somebody has made them before."""
        self.output = work / "output"
        """Holds exactly what is published: `adapter/` or `model/`, `metrics.json`, `report/`, and trackers' files."""
        self.best = work / "best"
        """The weights with the lowest loss on the held-out examples so far, as checkpoints have them."""
        self.scratch = work / "trainer"
        """What trl writes on the way; nothing of it is published."""
        self.checkpoints = work / "checkpoints"
        """A folder for each step that the ranks have saved and nobody has uploaded yet."""
        self.uploading = work / "uploading"
        """The one that is being uploaded."""
        self.resume = work / "resume"
        """The checkpoint that the run goes on from."""
        self.points = work / "points.jsonl"
        """What the first rank leaves for trackers: see `points`."""
        self.tracking = work / "tracking"
        """What trackers write on the way; nothing of it is published."""
        self.followed = work / "followed"
        """Folders that trackers have made whole, to be moved to `output` before it is published."""
        self.tracked = work / "tracked.json"
        """How the trackers stand."""
        self.stored = work / "stored.json"
        self.prepared = work / "prepared.json"
        self.probe = work / "probe"
        """What `probe` writes on the way, in the place of `scratch`."""
        self.trained = work / "trained.json"
        self.results = work / "results"

    def source(self, index: int) -> Path:
        """Return the folder of the data source `index`, as `data_sources` has them."""
        return self.data / str(index)

    def packed(self, rank: int) -> Path:
        """Return the file in which a rank has the sequences that it has packed."""
        return self.scratch / f"packed-{rank}.arrow"

    def measured(self, rank: int) -> Path:
        """Return the file in which a rank of `probe` has what it has measured."""
        return self.probe / f"measured-{rank}.json"

    def result(self, stage: str, rank: int) -> Path:
        """Return the file in which a rank of a stage says how it ended."""
        return self.results / f"{stage}-{rank}.json"
