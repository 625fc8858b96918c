"""Subsets and splits of the hub's data sets: as the card says, else as the files' names tell.

How cards and names tell splits is the hub's own: https://huggingface.co/docs/hub/datasets-data-files-configuration.
That folders tell subsets is Lorikeet's. A file whose name tells two splits is in neither, so that nobody trains on a
test set by accident.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml.error import YAMLError

from lorikeet_api.training import DataSource
from lorikeet_api.yaml import load_all
from lorikeet_storage.sources import Entry, Source

CARD: Final = "README.md"
_DEFAULT: Final = "default"
_KEYWORDS: Final = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_BETWEEN_WORDS: Final = re.compile(r"[-._ 0-9]+")
_SHARD: Final = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*")
_FRONT_MATTER: Final = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)

Splits = dict[str, list[str]]
"""The files of each split."""


@dataclass(frozen=True)
class Layout:
    """What a data set consists of."""

    subsets: dict[str, Splits]
    default: str | None
    """The subset of those who name none."""

    def __str__(self) -> str:
        told = [f"{subset} ({', '.join(sorted(splits))})" for subset, splits in sorted(self.subsets.items())]
        return ", ".join(told[:8]) + (f" and {len(told) - 8} more" if len(told) > 8 else "")


class _FilesOfSplit(BaseModel):
    split: str
    path: str | list[str]


class _Config(BaseModel):
    """One entry of `configs` in a card: a subset."""

    config_name: str = _DEFAULT
    data_files: str | list[str | _FilesOfSplit] | dict[str, str | list[str]] | None = None
    data_dir: str = ""
    default: bool = False

    def splits(self, names: list[str]) -> Splits:
        """Return the files that the entry names, of all that there are."""
        prefix = f"{self.data_dir.strip('/').removeprefix('./')}/" if self.data_dir.strip("./") else ""
        below = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        if self.data_files is None:
            return {split: [below[name] for name in some] for split, some in _by_split(below).items()}
        found = {}
        for split, patterns in self._patterns().items():
            parts = [pattern.removeprefix("./").split("/") for pattern in patterns]
            found[split] = [
                name for short, name in below.items() if any(_matches(short.split("/"), one) for one in parts)
            ]
        return found

    def _patterns(self) -> dict[str, list[str]]:
        named: dict[str, list[str]] = {}
        files = self.data_files
        if isinstance(files, dict):
            files = [_FilesOfSplit(split=split, path=path) for split, path in files.items()]
        for item in [files] if isinstance(files, str) else files or []:
            of = item if isinstance(item, _FilesOfSplit) else _FilesOfSplit(split="train", path=item)
            named.setdefault(of.split, []).extend([of.path] if isinstance(of.path, str) else of.path)
        return named


_CONFIGS: Final = TypeAdapter(list[_Config])


def whole(source: DataSource, origin: Source, data: list[Entry], found: list[Entry]) -> list[Entry]:
    """Return the files of the subset and split that `source` names, of the `data` files of a whole repository.

    One of which there is only one need not be named. Raises StorageError (DataInvalid) with what there is.
    """
    place = origin.place
    layout = _layout(origin, [entry.name for entry in data], found)
    subset = source.subset or layout.default
    if subset is None or subset not in layout.subsets:
        fault = f"has no subset {subset}" if subset else "has several subsets"
        raise place.invalid(f"{place.uri} {fault}: name one as subset; there are (with their splits) {layout}")
    splits = layout.subsets[subset]
    split = source.split or (next(iter(splits)) if len(splits) == 1 else None)
    if split is None or split not in splits:
        fault = f"has no split {split}" if split else "has several splits, which would mix"
        raise place.invalid(
            f"{place.uri}, subset {subset}, {fault}: name one as split; there are {', '.join(sorted(splits))}"
        )
    if not splits[split]:
        raise place.invalid(
            f"{place.uri}: the card names no file of a known kind for split {split} of subset {subset}: name the path"
            " of the data in the uri"
        )
    return [entry for entry in data if entry.name in set(splits[split])]


def folder(origin: Source, path: str, data: list[Entry]) -> list[Entry]:
    """Return the `data` files at a path in a repository. Raises StorageError (DataInvalid) if they are of splits."""
    told = sorted({split for entry in data if (split := _split(f"{path}/{entry.name}"))})
    if len(told) > 1:
        raise origin.place.invalid(
            f"{origin.place.uri} has files of several splits ({', '.join(told)}), which would mix: name the data set"
            " alone as uri, and subset and split beside it, or the path of each file"
        )
    return data


def _layout(origin: Source, names: list[str], found: Iterable[Entry]) -> Layout:
    for entry in found:
        if entry.name == CARD and (configs := _configs(origin, entry)):
            subsets = {config.config_name: config.splits(names) for config in configs}
            chosen = [name for name in subsets if len(subsets) == 1 or name == _DEFAULT]
            defaults = [config.config_name for config in configs if config.default] or chosen
            return Layout(subsets, defaults[0] if defaults else None)
    subsets = _by_names(names)
    return Layout(subsets, next(iter(subsets)) if len(subsets) == 1 else None)


def _configs(origin: Source, card: Entry) -> list[_Config]:
    with TemporaryDirectory() as into:
        origin.fetch([card], Path(into))
        text = (Path(into) / CARD).read_text(encoding="utf-8-sig", errors="replace")
    matter = _FRONT_MATTER.match(text)
    try:
        told: Any = load_all(matter[1]) if matter else []
        configs = told[0].get("configs") if told and isinstance(told[0], dict) else None
        return _CONFIGS.validate_python(configs or [])
    except (YAMLError, ValidationError) as error:
        raise origin.place.invalid(
            f"the configs in the card ({CARD}) of {origin.place.uri} cannot be read"
            f" ({' '.join(str(error).split())[:200]}): name the path of the data in the uri"
        ) from error


def _by_names(names: list[str]) -> dict[str, Splits]:
    """Return subsets, named by the folders before a split's, and the splits of each."""
    if not any(map(_split, names)):
        return {_DEFAULT: _by_split(names)}
    subsets: dict[str, Splits] = {}
    for split, some in _by_split(names).items():
        for name in some:
            folders = list(takewhile(lambda part: not _words(part), name.split("/")[:-1]))
            subset = "/".join(folders[folders[:1] == ["data"] :]) or _DEFAULT
            subsets.setdefault(subset, {}).setdefault(split, []).append(name)
    return subsets


def _by_split(names: Iterable[str]) -> Splits:
    """Return the files of each split: shards alone where there are any, else those whose names tell one.

    Where no name does, all are `train`.
    """
    names = list(names)
    splits: dict[str | None, list[str]] = {}
    for name in list(filter(_shard, names)) or names:
        splits.setdefault(_split(name), []).append(name)
    told = {split: some for split, some in splits.items() if split is not None}
    return told or {"train": splits.get(None, [])}


def _split(name: str) -> str | None:
    """Return the split that a file's name and folders tell; two are joined, to one of their own."""
    *folders, file = name.split("/")
    return _shard(name) or "+".join(sorted(set[str]().union(*map(_words, [*folders, file])))) or None


def _shard(name: str) -> str | None:
    """Return the split of which a file is a shard, as `data/train-00000-of-00002.parquet` is."""
    shard = _SHARD.fullmatch(name.removeprefix("data/")) if name.startswith("data/") else None
    return shard[1] if shard is not None else None


def _words(part: str) -> set[str]:
    words = set(_BETWEEN_WORDS.split(part.lower()))
    return {split for split, keywords in _KEYWORDS.items() if words & keywords}


def _matches(path: list[str], pattern: list[str]) -> bool:
    """Return whether a path matches a glob, both in their parts: `**` stands for any number of folders."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        rest = pattern[1:] or ["*"]
        return any(_matches(path[skipped:], rest) for skipped in range(len(path)))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])
