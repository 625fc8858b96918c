"""Reads what a pod is told."""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from lorikeet_api.base import Model, first_error
from lorikeet_run.errors import RunError

M = TypeVar("M", bound=Model)


def read(path: Path, model: type[M]) -> M:
    """Return the contract in a file. Raises RunError (InvalidContract)."""
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunError("InvalidContract", f"the contract cannot be read: {error}") from error
    except ValidationError as error:
        raise RunError(
            "InvalidContract",
            f"{path}: {first_error(error)}: the operator and the image of this pod must be of the same release",
        ) from error
