"""Which files are a subset's and a split's: by the card, by folders and names, and what is said of others."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from lorikeet_api.contract import FileDigest
from lorikeet_api.training import DataSource
from lorikeet_storage import StorageError
from lorikeet_storage.errors import Place
from lorikeet_storage.sources import Entry
from lorikeet_storage.splits import whole


class Repository:
    """A data set of the hub: empty files, and a card."""

    place = Place("hf://org/name", "data")
    revision: str | None = "0123"

    def __init__(self, names: Sequence[str], card: str | None) -> None:
        self._names, self._card = names, card

    def entries(self, *, recursive: bool) -> list[Entry]:
        names = [*self._names, *(["README.md"] if self._card is not None else [])]
        return [Entry(name, 1) for name in sorted(names)]

    def fetch(self, entries: Sequence[Entry], into: Path) -> list[FileDigest]:
        (entry,) = entries
        (into / entry.name).write_text(self._card or "")
        return []

    def head(self, entry: Entry, size: int) -> bytes | None:
        return None


def chosen(names: Sequence[str], card: str | None = None, **parts: str) -> list[str]:
    """Return the files that are read of a repository."""
    repository = Repository(names, card)
    data = [Entry(name, 1) for name in sorted(names)]
    source = DataSource(uri="hf://org/name", **parts)
    return [entry.name for entry in whole(source, repository, data, repository.entries(recursive=True))]


def refusal(names: Sequence[str], card: str | None = None, **parts: str) -> str:
    with pytest.raises(StorageError) as caught:
        chosen(names, card, **parts)
    assert caught.value.reason == "DataInvalid"
    return caught.value.message


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("data/train/0.parquet", "data/test/0.parquet"),
        ("train/a.csv", "evaluation/a.csv"),
        ("my_train_file.csv", "my-test.file.csv"),
        ("train2.csv", "test2.csv"),
        ("Train.csv", "TEST.csv"),
        ("train-clean/x.csv", "test-other/x.csv"),
    ],
)
def test_names_and_folders_tell_the_split(train: str, test: str) -> None:
    assert chosen([train, test], split="train") == [train]
    assert chosen([train, test], split="test") == [test]
    assert "has several splits, which would mix: name one as split; there are test, train" in refusal([train, test])


def test_other_splits_than_the_usual_are_told_by_shards() -> None:
    names = ["data/gen-00000-of-00002.parquet", "data/gen-00001-of-00002.parquet", "data/sft.v1-00000-of-00001.parquet"]
    assert chosen(names, split="gen") == names[:2]
    assert chosen(names, split="sft.v1") == names[2:]


def test_where_there_are_shards_they_alone_count() -> None:
    names = ["data/gen-00000-of-00001.parquet", "train.jsonl", "data/test.jsonl"]
    assert chosen(names) == names[:1]
    assert "there are gen" in refusal(names, split="train")


def test_folders_tell_the_subset() -> None:
    names = [f"{subset}/{split}-00000-of-00001.parquet" for subset in ("de", "en") for split in ("train", "test")]
    assert chosen(names, subset="en", split="train") == ["en/train-00000-of-00001.parquet"]
    inside = [f"data/{subset}/train/0000.parquet" for subset in ("de", "en")]
    assert chosen(inside, subset="de") == inside[:1]
    listing = "there are (with their splits) de (test, train), en (test, train)"
    assert refusal(names, split="train") == f"hf://org/name has several subsets: name one as subset; {listing}"
    assert refusal(names, subset="fr") == f"hf://org/name has no subset fr: name one as subset; {listing}"
    assert "has no split dev: name one as split; there are test, train" in refusal(names, subset="en", split="dev")


def test_many_subsets_are_listed_in_part() -> None:
    assert refusal([f"s{n}/train.jsonl" for n in range(20)]).endswith("s14 (train), s15 (train) and 12 more")


def test_what_need_not_be_named() -> None:
    names = ["a.jsonl", "b/c.jsonl"]
    assert chosen(names) == chosen(names, subset="default", split="train") == names
    assert chosen(["en/train.jsonl"]) == ["en/train.jsonl"]


def test_files_of_no_split_are_in_none_where_others_are_in_one() -> None:
    assert chosen(["train.jsonl", "extra.jsonl"]) == ["train.jsonl"]


def test_a_name_that_tells_two_splits_is_in_neither() -> None:
    names = ["train.jsonl", "train/test.jsonl", "train_vs_test.jsonl"]
    assert chosen(names, split="train") == ["train.jsonl"]
    assert "there are test+train, train" in refusal(names, split="test")


CARD = """---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: data/en/*.jsonl
  - split: test
    path: [held/en.jsonl, "more/**/en-*"]
- config_name: de
  data_dir: ./german
- config_name: all
  default: true
  data_files: "**/*.jsonl"
---
# A data set
configs: none of these
"""
NAMES = [
    "data/en/a.jsonl",
    "data/en/old/b.jsonl",
    "held/en.jsonl",
    "more/a/b/en-1.csv",
    "german/train.csv",
    "german/test.csv",
]


def test_the_card_tells_subsets_and_splits() -> None:
    assert chosen(NAMES, CARD, subset="en", split="train") == ["data/en/a.jsonl"]
    assert chosen(NAMES, CARD, subset="en", split="test") == ["held/en.jsonl", "more/a/b/en-1.csv"]
    assert chosen(NAMES, CARD, subset="de", split="train") == ["german/train.csv"]
    assert chosen(NAMES, CARD) == ["data/en/a.jsonl", "data/en/old/b.jsonl", "held/en.jsonl"]
    assert "there are (with their splits) all (train), de (test, train), en (test, train)" in refusal(
        NAMES, CARD, subset="fr"
    )


@pytest.mark.parametrize("card", [None, "", "# No front matter", "---\nlicense: mit\n---\n", "---\nconfigs: []\n---\n"])
def test_without_a_card_that_tells_them_the_names_do(card: str | None) -> None:
    assert chosen(["en/train.jsonl", "en/test.jsonl"], card, split="train") == ["en/train.jsonl"]


def test_the_default_of_a_card_is_the_only_one_or_the_one_of_that_name() -> None:
    only = "---\nconfigs: [{config_name: x, data_files: a.csv}]\n---\n"
    named = "---\nconfigs: [{config_name: x, data_files: a.csv}, {config_name: default, data_files: [b.csv]}]\n---\n"
    assert chosen(["a.csv", "b.csv"], only) == ["a.csv"]
    assert chosen(["a.csv", "b.csv"], named) == ["b.csv"]
    assert "has several subsets" in refusal(["a.csv", "b.csv"], named.replace("default", "y"))


@pytest.mark.parametrize(
    "configs", ["configs: {", "configs: x", "configs: [{data_files: 3}]", "configs: [{data_files: [{split: a}]}]"]
)
def test_a_card_that_cannot_be_read_is_told(configs: str) -> None:
    message = refusal(["train.jsonl"], f"---\n{configs}\n---\n")
    assert "the configs in the card (README.md) of hf://org/name cannot be read" in message
    assert message.endswith("name the path of the data in the uri")


def test_a_split_without_a_file_that_can_be_read_is_told() -> None:
    message = refusal(["a.csv"], "---\nconfigs: [{data_files: b.tar}]\n---\n")
    assert "the card names no file of a known kind for split train of subset default" in message
