"""The one writer of a FineTuneJob's status: writes what is new, and tells it as Events."""

from collections.abc import Callable
from datetime import datetime
from typing import Literal

from lorikeet_api.finetunejob import FineTuneJob, FineTuneJobStatus
from lorikeet_operator.finetune import status as story
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.kinds import Object, version_of
from lorikeet_operator.kube.times import timestamp


class Teller:
    """Writes to the API server."""

    def __init__(self, kube: Kube, now: Callable[[], datetime]) -> None:
        self._kube = kube
        self._now = now

    async def write(self, body: Object, status: FineTuneJobStatus) -> Object:
        """Write the status where it differs, then tell what is new in it as Events; return the job as it is then."""
        written = await self.write_raw(body, status.to_wire())
        if written is body:
            return body
        before = FineTuneJob.parse(body).status
        # A job may be suspended twice, in the same words: each write is an occasion of its own.
        occasion = str(version_of(written))
        for kind, reason, message in _news(before, status):
            await self._kube.recorder.event(body, kind, reason, message, occasion)
        return written

    async def write_raw(self, body: Object, status: Object) -> Object:
        """Write a status that holds what this version does not know."""
        return await self._kube.writer.write_status(FINETUNEJOB, body, status, story.ours)

    def time(self) -> str:
        """Return the time, in RFC 3339."""
        return timestamp(self._now())


def _news(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[tuple[Literal["Normal", "Warning"], str, str]]:
    """Return the Events that tell how `after` differs from `before`: each change of a condition's reason, once."""
    known = {condition.type: (condition.status, condition.reason) for condition in before.conditions}
    told: list[tuple[Literal["Normal", "Warning"], str, str]] = []
    for condition in after.conditions:
        if known.get(condition.type) == (condition.status, condition.reason):
            continue
        if condition.reason in ("InProgress", "Waiting", "Checking"):
            continue
        if condition.type in ("Complete", "Failed") and condition.status == "False":
            continue  # the other one of the two tells it
        asked_for = condition.type == "Suspended" or condition.reason in ("PullingImage", "JobNotFinished")
        bad = (condition.status == "True") == (condition.type == "Failed") and not asked_for
        told.append(("Warning" if bad else "Normal", condition.reason, condition.message))
    return told
