"""How long the requests of an engine are waited for before it is stopped, by a clock that the engine moves."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from lorikeet_agent.serving.drain import Drain
from lorikeet_agent.serving.engine_http import LOOK_SECONDS, EngineWatch
from lorikeet_api.contract import StorageAccess
from lorikeet_engines import ENGINES, Answer
from tests.unit.agent.serving.engine import metrics
from tests.unit.agent.serving.pod import contract, settings_in

DRAIN_SECONDS = 300
BUSY, IDLE, BROKEN = Answer(200, metrics(1, 0)), Answer(200, metrics(0, 0)), Answer(500, "")
NOTHING = None
HANGS = "the engine has answered nothing for 90 s"


@dataclass
class Told:
    """An engine whose answers are known before; no answer takes as long as the agent is ready to wait for one."""

    answers: Iterator[Answer | None]
    now: float = 1000.0

    async def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        answer = next(self.answers)
        if answer is NOTHING:
            self.now += LOOK_SECONDS
            raise TimeoutError
        self.now += 1.0
        return answer


Drained = Callable[[Iterator[Answer | None]], Any]


@pytest.fixture
def drained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Drained:
    """Return what drains an engine that answers so: it says what has ended the drain, after how many seconds."""
    caplog.set_level(logging.INFO, "lorikeet")

    async def drained(answers: Iterator[Answer | None]) -> tuple[str, float]:
        told = contract(StorageAccess(endpoint="http://s3"), drain_seconds=DRAIN_SECONDS)
        settings = settings_in(tmp_path, told, notice_seconds=0.0, idle_seconds=0.0)
        http, engine = Told(answers), ENGINES[told.engine]
        begun = http.now
        watch = EngineWatch(engine, http, settings.fresh_seconds, now=lambda: http.now)
        await Drain(settings, engine, http, watch, now=lambda: http.now).run()
        fields = caplog.records[-1].__dict__["fields"]
        assert fields["event"] == "drained"
        return fields["message"], http.now - begun

    return drained


async def test_an_engine_that_hangs_is_not_waited_for_to_the_end(drained: Drained) -> None:
    assert await drained(repeat(NOTHING)) == (HANGS, 90.0)


async def test_it_hangs_from_its_last_answer_on(drained: Drained) -> None:
    assert await drained(chain(repeat(BUSY, 100), repeat(NOTHING))) == (HANGS, 190.0)


async def test_an_engine_that_answers_now_and_then_is_waited_for(drained: Drained) -> None:
    slow = [*[NOTHING] * 5, BUSY] * 4
    words, seconds = await drained(chain(slow, [IDLE, IDLE]))
    assert (words, seconds) == ("no request is in flight", 4 * 26.0 + 2)


async def test_an_engine_that_misses_a_question_is_not_idle_yet(drained: Drained) -> None:
    assert await drained(iter([IDLE, NOTHING, IDLE, IDLE])) == ("no request is in flight", LOOK_SECONDS + 3)


@pytest.mark.parametrize("answer", [BUSY, BROKEN], ids=["busy", "without metrics"])
async def test_whatever_an_engine_answers_it_does_not_hang(drained: Drained, answer: Answer) -> None:
    assert await drained(repeat(answer)) == ("the time is over", DRAIN_SECONDS)
