"""A clock that moves when the test says so."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class FakeTimer:
    due: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeClock:
    time: float = 1000.0
    timers: list[FakeTimer] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def call_later(self, seconds: float, callback: Callable[[], object]) -> FakeTimer:
        timer = FakeTimer(self.time + seconds, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.time += seconds
        due = [timer for timer in self.timers if timer.due <= self.time]
        self.timers = [timer for timer in self.timers if timer.due > self.time]
        for timer in sorted(due, key=lambda each: each.due):
            if not timer.cancelled:
                timer.callback()
