"""Beside training, in a process of its own: tells trackers how the run goes.

Started by the supervisor, whose half is `tracking`. It reads what the first rank leaves, never the rank itself, and may
hang or be killed at any moment: that costs the trackers, not the run.
"""

import argparse
import math
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final, get_args

from lorikeet_run import log
from lorikeet_run.record import read_contract
from lorikeet_trainer.points import Reader, points_of
from lorikeet_trainer.state import Ending, Layout, MetricsFile, Prepared, Tracked
from lorikeet_trainer.teller import Teller
from lorikeet_trainer.trackers import Subject, make_tracker
from lorikeet_trainer.trackers.keys import trim_keys

_POLL_SECONDS: Final = 0.2
_NICENESS: Final = 10
"""Training goes first where both want the processor."""


def commands() -> Iterator[list[str] | None]:
    """Yield the words of each line from stdin, and None where none came for a while; end with stdin."""
    text = ""
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if not readable:
            yield None
            continue
        if not (read := os.read(sys.stdin.fileno(), 4096)):
            return
        *lines, text = (text + read.decode()).split("\n")
        yield from (line.split() for line in lines)


def follow(layout: Layout, tellers: Sequence[Teller], said: Iterator[list[str] | None]) -> None:
    """Tell the run until the supervisor has said its end: `finish SECONDS` once it is trained, `end ENDING SECONDS`."""
    reader, count = Reader(layout.points), 0
    deadline, is_last = math.inf, False
    for words in said:
        points = reader.fresh()
        if words is not None and words[0] == "finish":
            file = MetricsFile.read(layout.output / "metrics.json")
            points = points_of(file.curve, file.pace)[count:]  # the last one is of after training
        count += len(points)
        for teller in tellers:
            teller.add(points)
        match words:
            case ["finish", seconds]:
                for teller in tellers:
                    teller.finish(file.metrics)
                deadline = monotonic() + float(seconds)
            case ["end", ending, seconds]:
                for teller in tellers:
                    teller.end(next(one for one in get_args(Ending) if one == ending))
                deadline, is_last = monotonic() + float(seconds), True
        if deadline < math.inf and _are_settled(tellers, deadline):
            Tracked(trackers=[teller.state for teller in tellers]).write(layout.tracked)
            if is_last:
                return
            deadline = math.inf


def _are_settled(tellers: Sequence[Teller], deadline: float) -> bool:
    """Wait a little for trackers; return whether they know everything, or have had their time."""
    soon = min(deadline, monotonic() + _POLL_SECONDS)
    return all(teller.settle(soon) for teller in tellers) or monotonic() >= deadline


def main() -> None:
    """Tell trackers until the supervisor ends it."""
    parser = argparse.ArgumentParser(prog="lorikeet_trainer.track")
    parser.add_argument("--contract", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    log.set_up()
    trim_keys()
    os.nice(_NICENESS)
    # The supervisor says when to stop: what was made until then is still told.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # tensorboardX imports it where it finds it, for seconds, and needs it for nothing here.
    sys.modules["torch"] = None  # type: ignore[assignment]
    contract, layout = read_contract(given.contract), Layout(given.work)
    subject = Subject(contract, Prepared.read(layout.prepared), layout)
    names = contract.tracking.names if contract.tracking is not None else []
    follow(layout, [Teller(name, partial(make_tracker, name, subject)) for name in names], commands())
    sys.stdout.flush()
    os._exit(0)  # threads of libraries that still wait for their servers would hold it up


if __name__ == "__main__":
    main()
