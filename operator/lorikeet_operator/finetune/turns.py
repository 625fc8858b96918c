"""Lets one FineTuneJob at a time make a run: who asks for the very same one waits, and then adopts its result.

The same run has the same `runId`, and so the same folder of the output. Two clusters cannot know of each other: there
the first one to publish wins (`lorikeet_storage.publish`).
"""

from collections.abc import Iterable

from lorikeet_api import names
from lorikeet_api.conditions import FINAL
from lorikeet_operator.finetune.observe import live
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.kinds import JOB, POD, Key, Object, controller_uid, key_of, label_of, uid_of


def by_run(body: Object) -> Iterable[tuple[str, str]]:
    """Index FineTuneJobs by the folder that they write, in whichever namespace they are."""
    contract = (_status(body).get("resolved") or {}).get("contract") or {}
    if not contract.get("runId"):
        return ()
    store = str((contract.get("storage") or {}).get("endpoint") or "").rstrip("/")
    return (("", f"{store} {contract.get('outputUri')} {contract['runId']}"),)


class Turns:
    """Knows whose turn it is."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._let_in: dict[str, str] = {}
        """By run, the uid of the job that is about to make it: its batch Job may not be in the cache yet."""

    def take(self, body: Object) -> Key | None:
        """Take the turn for `body`; return the job that has it, if another one does.

        Nothing else may happen between look and taking, so this awaits nothing.
        """
        for _, run in by_run(body):
            if not self._makes(body, run):
                for other in self._others(body, run):
                    if self._makes(other, run):
                        return key_of(other)
            self._let_in[run] = uid_of(body)
        return None

    def leave(self, body: Object) -> None:
        """Let another job go first: something keeps `body` from its run. No effect once its batch Job is made."""
        for _, run in by_run(body):
            if self._let_in.get(run) == uid_of(body):
                del self._let_in[run]

    def changed(self, body: Object) -> list[Key]:
        """Return the jobs that may wait for `body`, which has changed or is gone."""
        held = self._cache.get(FINETUNEJOB, key_of(body))
        if held is None or uid_of(held) != uid_of(body) or _has_ended(held):
            self.leave(body)
        return [key_of(other) for _, run in by_run(body) for other in self._others(body, run) if not _has_ended(other)]

    def _others(self, body: Object, run: str) -> list[Object]:
        return [each for each in self._cache.indexed(FINETUNEJOB, "", run) if uid_of(each) != uid_of(body)]

    def _makes(self, body: Object, run: str) -> bool:
        if _has_ended(body):
            return self._still_writes(body)
        if _status(body).get("jobUid") or self._let_in.get(run) == uid_of(body):
            return True
        key = key_of(body)
        child = self._cache.get(JOB, Key(key.namespace, names.training_job(key.name)))
        return child is not None and controller_uid(child) == uid_of(body)

    def _still_writes(self, body: Object) -> bool:
        """Return whether the pod of a run that we have ended is in its grace period: it may save a checkpoint."""
        pods = self._cache.indexed(POD, *key_of(body))
        trainers = [pod for pod in pods if label_of(pod, names.LABEL_COMPONENT) == names.TRAINER]
        return bool(live([pod for pod in trainers if controller_uid(pod) == _status(body).get("jobUid")]))


def _status(body: Object) -> Object:
    return body.get("status") or {}


def _has_ended(body: Object) -> bool:
    return _status(body).get("phase") in FINAL
