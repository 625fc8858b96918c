"""The HTTPS endpoint: who posts, whether it may, and what it says."""

import json
from collections.abc import Callable
from datetime import datetime

from aiohttp import web
from pydantic import ValidationError

from lorikeet_api import names
from lorikeet_api.progress import AUDIENCE, ProgressReport, path
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.errors import ApiError, NotFound
from lorikeet_operator.kube.identity import Caller, Callers
from lorikeet_operator.kube.kinds import POD, Key, controller_uid, label_of, uid_of
from lorikeet_operator.kube.times import timestamp
from lorikeet_operator.metrics import PROGRESS_REPORTS
from lorikeet_operator.progress.board import Board, Job, has_ended
from lorikeet_operator.progress.report import progress_of

_BODY_BYTES = 64 * 1024


class Endpoint:
    """Takes a pod's posts for the job that it belongs to, and for no other."""

    def __init__(self, cache: Cache, callers: Callers, board: Board, now: Callable[[], datetime]) -> None:
        self._cache = cache
        self._callers = callers
        self._board = board
        self._now = now

    def app(self) -> web.Application:
        """Return what is to be served."""
        app = web.Application(client_max_size=_BODY_BYTES)
        app.router.add_post(path("{namespace}", "{name}"), self._on_post)
        return app

    async def _on_post(self, request: web.Request) -> web.Response:
        key = Key(request.match_info["namespace"], request.match_info["name"])
        try:
            await self._take(key, request)
            answer = web.json_response({})
        except _Refusal as refusal:
            answer = _answer(refusal.status, str(refusal))
        except ApiError as error:
            answer = _answer(503, f"the API server does not take it: {error}")
        PROGRESS_REPORTS.labels(str(answer.status)).inc()
        return answer

    async def _take(self, key: Key, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        caller = await self._callers.who(token) if scheme.lower() == "bearer" and token else None
        if caller is None:
            raise _Refusal(401, f"send the token of a pod, made for the audience {AUDIENCE}")
        job = self._job_of(caller, key)
        try:
            told = ProgressReport.model_validate_json(await request.read()).trainer_status
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise _Refusal(400, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
        progress = progress_of(told, caller.pod.name, timestamp(self._now()))
        if progress.record is None:
            self._board.put(job, progress)
            return
        try:
            await self._board.write(job, progress)
        except NotFound:
            raise _Refusal(409, f"FineTuneJob {key} has ended") from None

    def _job_of(self, caller: Caller, key: Key) -> Job:
        """Return the job on which a pod may report, since it is of the job's run. Raises _Refusal."""
        pod, body = self._cache.get(POD, caller.pod), self._cache.get(FINETUNEJOB, key)
        if pod is None or uid_of(pod) != caller.uid:
            raise _Refusal(503, f"pod {caller.pod} is not known here (yet)")
        stranger = _Refusal(403, f"pod {caller.pod} is none of the run of FineTuneJob {key}")
        owner = controller_uid(pod)
        if owner is None or label_of(pod, names.LABEL_FINETUNEJOB) != key.name or caller.pod.namespace != key.namespace:
            raise stranger
        ours = ((body or {}).get("status") or {}).get("jobUid")
        if body is None or not ours:
            raise _Refusal(503, f"the run of FineTuneJob {key} is not known here (yet)")
        if owner != ours:
            raise stranger
        if has_ended(body):
            raise _Refusal(409, f"FineTuneJob {key} has ended")
        return Job(key, uid_of(body))


class _Refusal(Exception):
    """An answer that is not what the caller hoped for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _answer(status: int, message: str) -> web.Response:
    headers = {"Retry-After": "5"} if status == 503 else {}
    return web.Response(
        status=status, text=json.dumps({"message": message}), content_type="application/json", headers=headers
    )
