"""Where a run is followed beside its own report: MLflow, Weights & Biases, TensorBoard.

No tracker has a part in what a run becomes, nor in its id: one that cannot be reached costs a warning.
"""

from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import ConfigDict, StringConstraints, model_validator

from lorikeet_api.base import Model, NameReference, cel

TRACKER_URL: Final = r"^https?://[^@/?#\x00-\x20]+(/[^@?#\x00-\x20]*)?$"
"""Without a user's name or password: what is written here is read by everybody who may read the job."""
TrackerUrl = Annotated[str, StringConstraints(pattern=TRACKER_URL, min_length=8, max_length=1024)]
TrackerName = Literal["mlflow", "wandb", "tensorboard"]
Title = Annotated[str, StringConstraints(min_length=1, max_length=128)]

MLFLOW_KEYS: Final = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Keys of a Secret that opens an MLflow server, and the variables by which MLflow's client knows them."""
WANDB_KEY: Final = "WANDB_API_KEY"
"""The same for Weights & Biases."""

_NO_KEY: Final = f"mode online needs secretRef, a Secret whose key {WANDB_KEY} opens the project: set it"
_NOBODY_ASKED: Final = "mode offline asks no server: remove secretRef and baseUrl"
_NEPTUNE: Final = "Neptune's service ended in March 2026: use mlflow, wandb or tensorboard"


class Mlflow(Model):
    """An MLflow tracking server."""

    uri: TrackerUrl
    """URL of the server, `http://` or `https://`."""
    experiment: Title | None = None
    """Experiment that the run is of; it is created if there is none. Absent: the job's namespace."""
    secret_ref: NameReference | None = None
    """Secret in the job's namespace with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD."""


class Wandb(Model):
    """Weights & Biases."""

    project: Title
    """Project that the run is of."""
    entity: Title | None = None
    """User or team that owns the project. Absent: the default one of the key."""
    base_url: TrackerUrl | None = None
    """URL of a server of one's own. Absent: https://api.wandb.ai."""
    secret_ref: NameReference | None = None
    """Secret in the job's namespace whose key `WANDB_API_KEY` opens the project."""
    mode: Literal["online", "offline"] = "online"
    """`online` sends while the run trains; `offline` publishes files in `wandb/` of the run's folder, which
    `wandb sync` sends later."""

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.mode == "online" and self.secret_ref is None:
            raise ValueError(_NO_KEY)
        if self.mode == "offline" and (self.secret_ref is not None or self.base_url is not None):
            raise ValueError(_NOBODY_ASKED)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_mode_fits` for the API server."""
        offline = "has(self.mode) && self.mode == 'offline'"
        return [
            cel(f"({offline}) || has(self.secretRef)", _NO_KEY),
            cel(f"!({offline}) || (!has(self.secretRef) && !has(self.baseUrl))", _NOBODY_ASKED),
        ]


class TensorBoard(Model):
    """Event files in `tensorboard/` of the run's folder, also while it trains."""


class Neptune(Model):
    """A service that is no more. It is known so that who asks for it is told so, whatever is set of it."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})


class Tracking(Model):
    """Where the run is followed: any of the trackers, each on its own. One that cannot be reached costs a warning, in
    the job's message and the run's report; training goes on without it."""

    mlflow: Mlflow | None = None
    """An MLflow tracking server."""
    wandb: Wandb | None = None
    """Weights & Biases."""
    tensorboard: TensorBoard | None = None
    """TensorBoard's event files."""
    neptune: Neptune | None = None
    """Refused: Neptune's service ended in March 2026."""

    @model_validator(mode="before")
    @classmethod
    def _neptune_is_gone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("neptune") is not None:
            raise ValueError(_NEPTUNE)
        return value

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_neptune_is_gone` for the API server."""
        return [cel("!has(self.neptune)", _NEPTUNE)]

    @property
    def names(self) -> list[TrackerName]:
        """The trackers that follow the run."""
        return [name for name in get_args(TrackerName) if getattr(self, name) is not None]
