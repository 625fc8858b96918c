"""The cluster by the user's own `kubectl`, as a process: kubeconfig, plugins and proxies that get it in get us in.

There is no client library here: it would read the same files, in another way.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorikeet_api.names import GROUP
from lorikeet_cli.problem import Problem

FAILED = 1
"""The exit code where the cluster says no, or the job has failed."""
_JOBS = f"finetunejobs.{GROUP}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command about a job in a cluster takes."""
    parser.add_argument("job", metavar="JOB", help="name of the FineTuneJob")
    parser.add_argument("-n", "--namespace", metavar="NS", help="its namespace; absent: the context's")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig; absent: the current one")


@dataclass(frozen=True)
class Event:
    """A FineTuneJob at a moment."""

    job: dict[str, Any]
    deleted: bool


@dataclass(frozen=True)
class Kubectl:
    """`kubectl` for one job."""

    job: str
    flags: Sequence[str]

    @classmethod
    def of(cls, given: argparse.Namespace) -> "Kubectl":
        """Return it with the context and namespace of the arguments passed through."""
        asked = (("--context", given.context), ("--namespace", given.namespace))
        return cls(given.job, [part for flag, value in asked if value is not None for part in (flag, value)])

    def get(self) -> dict[str, Any]:
        """Return the job. Raises Problem in kubectl's words."""
        with self._start(["get", _JOBS, self.job, "-o", "json"], stdout=subprocess.PIPE) as process:
            out, _ = process.communicate()
        if process.returncode:
            raise Problem(f"kubectl could not get FineTuneJob {self.job}: see above", FAILED)
        body: dict[str, Any] = json.loads(out)
        return body

    def watch(self) -> Iterator[Event]:
        """Yield the job now and whenever it changes, without an end; a watch that the server closes is begun again.

        Raises Problem in kubectl's words.
        """
        while True:
            asked = ["get", _JOBS, self.job, "-o", "json", "--watch", "--output-watch-events"]
            with self._start(asked, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None  # noqa: S101 - for the type checker; PIPE was asked for
                try:
                    for line in process.stdout:  # an event a line
                        body = json.loads(line)
                        yield Event(body["object"], body["type"] == "DELETED")
                except BaseException:
                    process.terminate()  # the reader has seen enough
                    raise
            if process.returncode:
                raise Problem(f"kubectl could not watch FineTuneJob {self.job}: see above", FAILED)

    def call(self, arguments: Sequence[str]) -> int:
        """Run `kubectl` with its output to the user; return its exit code."""
        with self._start(arguments) as process:
            return process.wait()

    def _start(self, arguments: Sequence[str], **popen: Any) -> "subprocess.Popen[str]":
        sys.stdout.flush()  # what it writes comes after what we wrote
        try:
            return subprocess.Popen(["kubectl", *self.flags, *arguments], text=True, **popen)
        except FileNotFoundError as error:
            raise Problem("kubectl is not on the PATH: install it; `lorikeet run` needs no cluster") from error
