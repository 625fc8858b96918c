"""`lorikeet watch JOB`: how far a job of the cluster is, to its end."""

import argparse
from typing import Any

from lorikeet_api.conditions import FINAL
from lorikeet_cli.kubectl import FAILED, Kubectl, add_arguments
from lorikeet_cli.terminal import Line, progress


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    does = "Follow a FineTuneJob of the cluster to its end; the exit code is 0 if it succeeds."
    parser = commands.add_parser("watch", help=does, description=does)
    add_arguments(parser)
    parser.set_defaults(command=watch)


def watch(given: argparse.Namespace) -> int:
    """Show the job's state until it ends; return 0 if it succeeded. Raises Problem."""
    line = Line()
    try:
        for event in Kubectl.of(given).watch():
            if event.deleted:
                line.say(f"FineTuneJob {given.job} was deleted")
                return FAILED
            status = event.job.get("status") or {}
            line.show(told(status))
            if status.get("phase") in FINAL:
                line.say(status.get("message", ""))
                return 0 if status["phase"] == "Succeeded" else FAILED
    finally:
        line.close()
    return FAILED


def told(status: dict[str, Any]) -> str:
    """Return a status in one line: phase, percent, step, loss, what is left."""
    now = status.get("progress") or {}
    percent = f"{now['percent']} %" if "percent" in now else ""
    left = now.get("etaSeconds") if status.get("phase") == "Running" else None
    far = progress(now.get("step"), now.get("totalSteps"), now.get("loss"), left)
    return "  ".join(part for part in (status.get("phase", "Pending"), percent, far) if part)
