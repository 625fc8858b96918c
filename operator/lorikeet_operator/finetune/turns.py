"""Lets one FineTuneJob at a time make a run: who asks for the very same one waits, and then adopts its result.

The same run has the same `runId`, and so the same folder of the output. Two clusters cannot know of each other: there
the first one to publish wins (`lorikeet_storage.publish`).
"""

from collections.abc import Iterable

from lorikeet_api import names
from lorikeet_api.conditions import FINAL
from lorikeet_operator.finetune.kinds import FINETUNEJOB
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.kinds import JOB, Key, Object, controller_uid, key_of, uid_of


def by_run(body: Object) -> Iterable[tuple[str, str]]:
    """Index FineTuneJobs by the folder that they write, in whichever namespace they are."""
    contract = ((body.get("status") or {}).get("resolved") or {}).get("contract")
    if contract is None:
        return ()
    return (("", f"{contract['storage'].get('endpoint', '')} {contract['outputUri']} {contract['runId']}"),)


class Turns:
    """Knows whose turn it is."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._let_in: dict[str, str] = {}
        """By run, the uid of the job that is making it: its batch Job may not be in the cache yet."""

    def take(self, body: Object) -> Key | None:
        """Take the turn for `body`; return the job that has it, if another one does.

        Nothing else may happen between look and taking, so this awaits nothing.
        """
        for _, run in by_run(body):
            if not self._makes(body, run):
                for other in self._sharing(body, run):
                    if self._makes(other, run):
                        return key_of(other)
            self._let_in[run] = uid_of(body)
        return None

    def changed(self, body: Object) -> list[Key]:
        """Return the jobs that may wait for `body`, which has changed or is gone."""
        waiting = []
        for _, run in by_run(body):
            waiting += [key_of(other) for other in self._sharing(body, run)]
            if self._let_in.get(run) == uid_of(body) and not self._goes_on(body):
                del self._let_in[run]
        return waiting

    def _sharing(self, body: Object, run: str) -> list[Object]:
        """Return the other jobs that want this run and have not ended."""
        others = self._cache.indexed(FINETUNEJOB, "", run)
        return [other for other in others if uid_of(other) != uid_of(body) and self._goes_on(other)]

    def _goes_on(self, body: Object) -> bool:
        held = self._cache.get(FINETUNEJOB, key_of(body))
        return (
            held is not None and uid_of(held) == uid_of(body) and (held.get("status") or {}).get("phase") not in FINAL
        )

    def _makes(self, body: Object, run: str) -> bool:
        if (body.get("status") or {}).get("jobUid") or self._let_in.get(run) == uid_of(body):
            return True
        key = key_of(body)
        child = self._cache.get(JOB, Key(key.namespace, names.training_job(key.name)))
        return child is not None and controller_uid(child) == uid_of(body)
