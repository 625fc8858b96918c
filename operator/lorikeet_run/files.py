"""Rows out of files: JSON lines, JSON, CSV and Parquet, each row with the place that an error names."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lorikeet_run.errors import RunError

Row = dict[str, Any]


@dataclass(frozen=True)
class Placed:
    """A row and where it stands."""

    row: Row
    where: str
    """`file, line 37` (JSON lines, CSV) or `file, row 37` (JSON, Parquet); counted from 1."""


def invalid(where: str, cause: str) -> RunError:
    """Return the error for bad data at `where`; `cause` says what to do, too."""
    return RunError("DataInvalid", f"{where}: {cause}")


def read_rows(path: Path, name: str) -> Iterator[Placed]:
    """Yield the rows of a file; its name (as the user knows it) stands in the errors.

    Raises RunError (DataInvalid) with file, line or row and cause, also for a file without rows.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise invalid(name, f"a {path.suffix or 'nameless'} file; give one of {', '.join(_READERS)}")
    empty = True
    for placed in reader(path, name):
        empty = False
        yield placed
    if empty:
        raise invalid(name, "the file has no rows; correct it or leave it out")


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(
            where, f"not UTF-8 (byte {data[error.start]:#04x} at position {error.start}); convert the file to UTF-8"
        ) from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise invalid(where, f"a row is an object with named columns, this is {kind(value)}")
    return value


def kind(value: object) -> str:
    """Return what a value of JSON is called."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"


def _jsonl(path: Path, name: str) -> Iterator[Placed]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            where = f"{name}, line {number}"
            text = _decode(line, where)
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except ValueError as error:
                raise invalid(where, f"not JSON ({error}); each line is one JSON object") from error
            yield Placed(_object(value, where), where)


def _json(path: Path, name: str) -> Iterator[Placed]:
    text = _decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), name)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise invalid(name, f"not JSON ({error}); a file with one object a line is named .jsonl") from error
    if not isinstance(value, list):
        raise invalid(name, f"a .json file holds a list of objects, this is {kind(value)}")
    for number, item in enumerate(value, start=1):
        where = f"{name}, row {number}"
        yield Placed(_object(item, where), where)


def _csv(path: Path, name: str) -> Iterator[Placed]:
    # A cell may be as long as an example: the default of 128 KiB is too short for documents.
    csv.field_size_limit(2**31 - 1)
    text = _decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), name)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        line = reader.line_num + 1
        if len(set(header)) != len(header):
            raise invalid(f"{name}, line 1", f"a column is named twice: {', '.join(header)}")
        for cells in reader:
            where, line = f"{name}, line {line}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                raise invalid(
                    where, f"{len(cells)} cells, but the header names {len(header)} columns: correct the line"
                )
            yield Placed(dict(zip(header, cells, strict=True)), where)
    except csv.Error as error:
        raise invalid(f"{name}, line {reader.line_num}", f"not CSV ({error})") from error


def _parquet(path: Path, name: str) -> Iterator[Placed]:
    # Here, since it takes half a second and few runs read Parquet; it carries no types.
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Placed({name: _without_nulls(value) for name, value in row.items()}, f"{name}, row {number}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise invalid(name, f"not Parquet ({error})") from error


def _without_nulls(value: Any) -> Any:
    """Return a cell without the keys that Parquet adds: there every object has the keys of all, most of them null."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


_READERS: Final[dict[str, Callable[[Path, str], Iterator[Placed]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
