"""`lorikeet COMMAND`: the command line, and the one place where a failure becomes a sentence."""

import argparse
import os
import sys
from collections.abc import Sequence

from lorikeet_cli import logs, preview, report, run, validate, watch
from lorikeet_cli.problem import Problem
from lorikeet_run.errors import RunError, explain
from lorikeet_storage import StorageError

INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C has ended."""
UNREAD = 141
"""What it says of one whose reader, `head` or `less`, has seen enough."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a run's is the trainer's (`lorikeet_api.contract.EXIT_*`)."""
    given = _parser().parse_args(arguments)
    try:
        code: int = given.command(given)
        sys.stdout.flush()  # here, and not when the interpreter ends, which would complain of a reader that is gone
    except Problem as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (RunError, StorageError) as error:
        failure = explain(error)
        print(f"{failure.reason}: {failure.message}", file=sys.stderr)
        return failure.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        return UNREAD
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lorikeet", description="Fine-tuning from a terminal.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (run, validate, preview, watch, logs, report):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
