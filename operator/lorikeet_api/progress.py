"""What a run tells while it is at work, and what of it stands in the status.

The wire protocol is Kubeflow Trainer's (its proposal 2779): a pod POSTs `{"trainerStatus": …}` with its projected
token. transformers speaks it by itself from 5.4 on where the three variables below are set, so that an image of the
user's own reports too. What Lorikeet's trainer adds to it is optional.
"""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from lorikeet_api import names
from lorikeet_api.base import Model, Text
from lorikeet_api.contract import Figure, RunRecord
from lorikeet_api.signs import SignList

URL_VARIABLE: Final = "KUBEFLOW_TRAINER_SERVER_URL"
"""Where to post; absent or empty: nowhere."""
CA_VARIABLE: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
"""File with the certificate authorities by which the endpoint is known."""
TOKEN_VARIABLE: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - a variable's name
"""File with the token to send; it is renewed in place."""

AUDIENCE: Final = f"progress.{names.GROUP}"
"""The tokens' audience: they are good for nothing else."""
TOKEN_SECONDS: Final = 3600
"""How long a token is good; the kubelet renews it before."""
CA_FILE: Final = "progress-ca.crt"
TOKEN_DIR: Final = "/var/run/secrets/lorikeet"  # noqa: S105 - a folder
TOKEN_FILE: Final = "token"  # noqa: S105 - a file's name

Stage = Literal["prepare", "train", "evaluate", "publish"]


def path(namespace: str, name: str) -> str:
    """Return the path of the endpoint to which the pods of a FineTuneJob post."""
    return f"/apis/{names.API_VERSION}/namespaces/{namespace}/finetunejobs/{name}/progress"


class _Wire(Model):
    """A model of what others send: fields of a later version of the protocol are passed over."""

    model_config = ConfigDict(extra="ignore")


class NamedValue(_Wire):
    """One metric, by transformers' name for it."""

    name: Annotated[str, Field(max_length=256)]
    """Its name, such as `loss`."""
    value: Annotated[str, Field(max_length=256)]
    """Its value as text."""


class TrainerStatus(_Wire):
    """How far a run is. Absent fields leave what was told before."""

    last_updated_time: Text | None = None
    """When it was made, by the pod's clock."""
    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    """Percent of the training that is done."""
    estimated_remaining_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds of training that are left."""
    metrics: Annotated[list[NamedValue], Field(max_length=256)] | None = None
    """Figures by name."""
    stage: Stage | None = None
    """What the run is doing (Lorikeet's trainer)."""
    signs: SignList | None = None
    """Signs that the run goes wrong, all so far (Lorikeet's trainer)."""
    record: RunRecord | None = None
    """How the run ended (Lorikeet's trainer)."""


class ProgressReport(_Wire):
    """The body of a post."""

    trainer_status: TrainerStatus
    """How far the run is."""


class Progress(Model):
    """How far the run is, as its newest pod has told. Written by the progress endpoint alone."""

    pod: Text
    """The pod that told it; that of a new attempt begins anew."""
    updated_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When it told it."""
    stage: Stage | None = None
    """prepare, train, evaluate or publish."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Percent of the optimiser steps that are made."""
    step: int | None = None
    """Optimiser steps made."""
    total_steps: int | None = None
    """Optimiser steps of the whole run."""
    epoch: Figure | None = None
    """Epochs made."""
    loss: Figure | None = None
    """Training loss, mean over the steps since it was told before."""
    eval_loss: Figure | None = None
    """Loss on the held-out examples, the newest on the way."""
    learning_rate: Figure | None = None
    """Learning rate of the newest step."""
    grad_norm: Figure | None = None
    """Norm of the newest step's gradients."""
    eta_seconds: int | None = None
    """Seconds of training that are left."""
    signs: SignList | None = None
    """Signs so far that the run goes wrong; `status.metrics` has them at its end."""
    record: RunRecord | None = None
    """How the pod's run ended: what its termination message says, for the case that this one is lost."""
