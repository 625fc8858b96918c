"""A row's columns by the roles that they play."""

from typing import Final

from lorikeet_api.training import FORMAT_COLUMNS, Dataset
from lorikeet_run.files import Placed, invalid, kind

_WRITE: Final = "write a text there, or leave the row out"


def column(role: str, dataset: Dataset) -> str:
    """Return the name of the column that plays `role`."""
    renamed = getattr(dataset.columns, role) if dataset.columns is not None else None
    return str(renamed) if renamed is not None else role


def add(role: str) -> str:
    """Return what to do where a row lacks the column that plays `role`."""
    return f"add it, give its other name as dataset.columns.{role}, or leave the row out"


def value(placed: Placed, role: str, data_format: str, dataset: Dataset) -> object:
    """Return what stands in a column that there must be. Raises RunError (DataInvalid)."""
    name = column(role, dataset)
    if name not in placed.row:
        wanted = ", ".join(FORMAT_COLUMNS[data_format])
        raise invalid(
            placed.where,
            f"no column {name}; found: {', '.join(placed.row) or 'none'} (format {data_format}: {wanted}): {add(role)}",
        )
    return placed.row[name]


def text(placed: Placed, role: str, data_format: str, dataset: Dataset) -> str:
    """Return the text of a column that there must be. Raises RunError (DataInvalid)."""
    name, found = column(role, dataset), value(placed, role, data_format, dataset)
    if not isinstance(found, str):
        raise invalid(placed.where, f"column {name} is {kind(found)}, not text: {_WRITE}")
    if not found.strip():
        raise invalid(placed.where, f"column {name} is empty: {_WRITE}")
    return found


def optional(placed: Placed, role: str, dataset: Dataset) -> str:
    """Return the text of a column that may be absent or empty, else "". Raises RunError (DataInvalid)."""
    name = column(role, dataset)
    found = placed.row.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise invalid(placed.where, f"column {name} is {kind(found)}, not text: {_WRITE}")
    return found if found.strip() else ""
