"""PID 1 of the trainer's pod: listens for signals first, loads the rest second.

PID 1 has no default action for SIGTERM, so a stop that arrives before the handlers stand would be lost and
the pod would die by SIGKILL at the end of its grace, which reads as out-of-memory. This module and
`processes` therefore import nothing but the standard library.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lorikeet_trainer.processes import Children


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contract and return the exit code (`lorikeet_api.contract.EXIT_*`)."""
    children = Children()
    children.listen()
    # Only now: pydantic and the contract's models take a few tenths of a second.
    from lorikeet_api.contract import CONTRACT_PATH, TERMINATION_PATH, WORK_DIR
    from lorikeet_trainer.lifecycle import Options, run

    parser = argparse.ArgumentParser(prog="lorikeet-train", description="Run one fine-tuning contract.")
    parser.add_argument("--contract", type=Path, default=Path(CONTRACT_PATH), help="the contract (JSON)")
    parser.add_argument("--work", type=Path, default=Path(WORK_DIR), help="folder for model, data and outputs")
    parser.add_argument(
        "--termination-log", type=Path, default=Path(TERMINATION_PATH), help="where the final record is written"
    )
    given = parser.parse_args(arguments)
    return run(Options(given.contract, given.work, given.termination_log), children)


if __name__ == "__main__":
    raise SystemExit(main())
