"""`lorikeet logs JOB`: what the trainer of a job has logged."""

import argparse

from lorikeet_api.names import TRAINER_CONTAINER, training_job
from lorikeet_cli.kubectl import Kubectl, add_arguments


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    does = "Print the log of a FineTuneJob's trainer."
    parser = commands.add_parser("logs", help=does, description=does)
    add_arguments(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on as more comes")
    parser.set_defaults(command=logs)


def logs(given: argparse.Namespace) -> int:
    """Print the log of the job's newest pod that runs; return kubectl's exit code. Raises Problem."""
    asked = ["logs", f"job/{training_job(given.job)}", "--container", TRAINER_CONTAINER]
    return Kubectl.of(given).call([*asked, "--follow"] if given.follow else asked)
