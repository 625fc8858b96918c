"""Has pods of the agent do what a run needs besides its training: in its namespace, with its credentials."""

from collections.abc import Callable
from datetime import datetime

from lorikeet_api import names
from lorikeet_api.finetunejob import FineTuneJob, Resolved
from lorikeet_operator.finetune.agent import agent_job
from lorikeet_operator.finetune.evidence import Asked, Evidence, unexplained
from lorikeet_operator.finetune.observe import observe
from lorikeet_operator.finetune.patience import look_again
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.errors import Forbidden, HeldByOther, Invalid
from lorikeet_operator.kube.kinds import JOB
from lorikeet_operator.kube.queue import Requeue

UNMADE = (HeldByOther, Invalid, Forbidden)
"""What keeps an object from being made until somebody changes something."""


class Tasks:
    """Makes the agent's Jobs, where an image for them is known."""

    def __init__(self, kube: Kube, evidence: Evidence, image: str, memory: str, now: Callable[[], datetime]) -> None:
        self._kube = kube
        self._evidence = evidence
        self._image = image
        self._memory = memory
        self._now = now

    @property
    def enabled(self) -> bool:
        """Whether this installation has an agent."""
        return bool(self._image)

    async def ask(self, job: FineTuneJob, resolved: Resolved, task: names.Task) -> Asked:
        """Have a pod do `task`, unless one has or does, and return how that stands. Raises what is in UNMADE."""
        child = await self._kube.writer.create(JOB, agent_job(job, resolved, task, self._image, self._memory))
        pods = await self._evidence.pods(child)
        ask = unexplained(child, pods)
        trouble = await self._evidence.told(ask, child)
        return Asked(child, observe(child, pods, trouble), ask is not None)

    def later(self, task: Asked) -> Requeue | None:
        """Return when a task is looked at again; None where a change of its Job or pod will tell."""
        return Requeue(look_again(task.began, self._now())) if task.unexplained else None
