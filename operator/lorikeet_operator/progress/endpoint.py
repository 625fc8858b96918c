"""The HTTPS endpoint: who posts, whether it may, and what it says."""

import json
from collections.abc import Callable
from datetime import datetime

from aiohttp import web
from pydantic import ValidationError

from lorikeet_api import names
from lorikeet_api.progress import AUDIENCE, ProgressReport, path
from lorikeet_operator.finetune.reconcile import FINETUNEJOB
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.errors import ApiError, NotFound
from lorikeet_operator.kube.identity import Caller, Callers
from lorikeet_operator.kube.kinds import POD, Key, controller_uid, label_of, uid_of
from lorikeet_operator.kube.times import timestamp
from lorikeet_operator.metrics import PROGRESS_REPORTS
from lorikeet_operator.progress.board import Board, has_ended
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
            answer = await self._take(key, request)
        except ApiError as error:
            answer = _refuse(503, f"the API server does not take it: {error}")
        PROGRESS_REPORTS.labels(str(answer.status)).inc()
        return answer

    async def _take(self, key: Key, request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        caller = await self._callers.who(token) if scheme.lower() == "bearer" and token else None
        if caller is None:
            return _refuse(401, f"send the token of a pod, made for the audience {AUDIENCE}")
        if (refusal := self._refusal(key, caller)) is not None:
            return refusal
        try:
            told = ProgressReport.model_validate_json(await request.read()).trainer_status
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            return _refuse(400, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
        progress = progress_of(told, caller.pod.name, timestamp(self._now()))
        if progress.record is None:
            self._board.put(key, progress)
        else:
            try:
                await self._board.write(key, progress)
            except NotFound:
                return _refuse(409, f"FineTuneJob {key} has ended")
        return web.json_response({})

    def _refusal(self, key: Key, caller: Caller) -> web.Response | None:
        """Return why the pod may not report on the job; None if it may: its Job is the job's."""
        pod, body = self._cache.get(POD, caller.pod), self._cache.get(FINETUNEJOB, key)
        if pod is None or uid_of(pod) != caller.uid:
            return _refuse(503, f"pod {caller.pod} is not known here (yet)")
        status = (body or {}).get("status") or {}
        belongs = label_of(pod, names.LABEL_FINETUNEJOB) == key.name and caller.pod.namespace == key.namespace
        if not belongs or body is None or controller_uid(pod) != status.get("jobUid"):
            return _refuse(403, f"pod {caller.pod} is none of the run of FineTuneJob {key}")
        return _refuse(409, f"FineTuneJob {key} has ended") if has_ended(body) else None


def _refuse(status: int, message: str) -> web.Response:
    headers = {"Retry-After": "5"} if status == 503 else {}
    return web.Response(
        status=status, text=json.dumps({"message": message}), content_type="application/json", headers=headers
    )
