"""The resources in YAML files: read, changed by `--set`, and parsed, with errors that name file and field."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from ruamel.yaml.error import YAMLError

from lorikeet_api import yaml
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_api.names import API_VERSION
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_cli.problem import Problem

Known = FineTuneJob | ModelDeployment | TuningProfile
_KINDS: Final[dict[str, type[Known]]] = {each.__name__: each for each in (FineTuneJob, ModelDeployment, TuningProfile)}
_INDEX: Final = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Document:
    """One resource of ours in a file."""

    where: str
    """File, kind and name, for messages."""
    kind: str
    body: dict[str, Any]

    def parse(self) -> Known:
        """Return the resource. Raises Problem with a line for each error: field path and cause."""
        try:
            return _KINDS[self.kind].parse(self.body)
        except ValidationError as error:
            lines = [f"{self.where}: {_line(each['loc'], each['type'], each['msg'])}" for each in error.errors()]
            raise Problem("\n".join(lines)) from error


def read(files: Sequence[Path]) -> list[Document]:
    """Return the resources of ours in the files; others are passed over. Raises Problem."""
    return [document for file in files for document in _read(file)]


def _read(file: Path) -> list[Document]:
    try:
        bodies = yaml.load_all(file)
    except OSError as error:
        raise Problem(f"{file} cannot be read: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    return [document for number, body in enumerate(bodies, 1) if (document := _document(file, number, body))]


def _document(file: Path, number: int, body: Any) -> Document | None:
    if not isinstance(body, dict) or not isinstance(body.get("kind"), str):
        raise Problem(f"{file}: document {number} is no Kubernetes resource: it has no kind")
    kind, version = body["kind"], body.get("apiVersion")
    if kind not in _KINDS:
        if str(version).partition("/")[0] != API_VERSION.partition("/")[0]:
            return None
        raise Problem(f"{file}: document {number}: kind {kind} is unknown; known are {', '.join(_KINDS)}")
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return Document(f"{file}: {kind} {name or f'(document {number})'}", kind, body)


def _line(place: tuple[int | str, ...], what: str, message: str) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    words = {"extra_forbidden": "no such field", "missing": "is missing"}
    told = words.get(what, message.removeprefix("Value error, "))
    return f"{path}: {told}" if path else told


def assign(spec: dict[str, Any], assignment: str) -> None:
    """Set one field of a spec by `path=value`; the value is YAML, an empty one removes the field or the list's item.

    A path goes by dots, into a list by its index: `dataset.train[0].uri` or `dataset.train.0.uri`. What is absent on
    the way is made. Raises Problem.
    """
    path, equals, text = assignment.partition("=")
    parts = _INDEX.sub(r".\1", path).split(".")
    if not equals or not all(parts):
        raise Problem(f"--set {assignment}: write it as path=value, for example training.epochs=1")
    try:
        value = yaml.load(text)
    except YAMLError as error:
        raise Problem(f"--set {assignment}: the value is not YAML: {' '.join(str(error).split())}") from error
    here: Any = spec
    for part in parts[:-1]:
        here = _child(here, part, assignment)
    last = _key(here, parts[-1], assignment)
    if value is None:
        if last in (here if isinstance(here, dict) else range(len(here))):
            del here[last]
    elif isinstance(here, list) and last == len(here):
        here.append(value)
    else:
        here[last] = value


def _child(here: Any, part: str, assignment: str) -> Any:
    """Return what is at `part`, made if it is absent."""
    key = _key(here, part, assignment)
    if isinstance(here, list):
        if key == len(here):
            here.append({})
        return here[key]
    if here.get(key) is None:
        here[key] = {}
    return here[key]


def _key(here: Any, part: str, assignment: str) -> Any:
    """Return `part` as the key of a map, or as an index of a list: of an item, or of the one after the last."""
    if isinstance(here, dict):
        return part
    if not isinstance(here, list):
        raise Problem(f"--set {assignment}: there is nothing below {here!r}")
    if not part.isdigit() or int(part) > len(here):
        raise Problem(f"--set {assignment}: {part} is no index of a list of {len(here)}")
    return int(part)
