"""What ends a command with a sentence instead of a traceback."""

from lorikeet_api.contract import EXIT_BAD_REQUEST


class Problem(Exception):
    """The command cannot go on; the message names the cause and the next step."""

    def __init__(self, message: str, exit_code: int = EXIT_BAD_REQUEST) -> None:
        super().__init__(message)
        self.exit_code = exit_code
