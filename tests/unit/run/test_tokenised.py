"""A tokenised set: what decides where it lies, and rows that come out of its files as they went in."""

from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.contract import FileDigest, RunContract, SourceDigest, StorageAccess
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Columns, Dataset, DataSource, Training, WeightedDataSource
from lorikeet_run import tokenised
from lorikeet_run.rows import Rows
from lorikeet_run.tokens import Prompted, TokenRow
from tests import runs
from tests.unit.run.test_rows import KINDS, collected, plain

TRAIN = WeightedDataSource(uri="s3://datasets/train.jsonl")
OTHER = DataSource(uri="s3://datasets/other.jsonl")
TOKENIZER, WEIGHTS = FileDigest(path="tokenizer.json", sha256="1" * 64, size=1), "model.safetensors"
RLHF = {"numGenerations": 4, "maxCompletionLength": 8, "rewards": [{"match": {"column": "answer"}}]}


def contract(**changes: Any) -> RunContract:
    fields = {"train": [TRAIN], **changes.pop("dataset", {})}
    return runs.contract("s3://out/x", StorageAccess(), dataset=Dataset(**fields), **changes)


def source(sha256: str = "a" * 64, path: str = "train.jsonl", **more: Any) -> SourceDigest:
    return SourceDigest(uri="s3://datasets/x", files=[FileDigest(path=path, sha256=sha256, size=9)], **more)


def address(of: RunContract, data: list[SourceDigest] | None = None, model: list[FileDigest] | None = None) -> str:
    return tokenised.address(of, data or [source()], model or [TOKENIZER])


DECIDING: dict[str, dict[str, Any]] = {
    "a data file": {"data": [source("b" * 64)]},
    "its name, by which it is read": {"data": [source(path="train.csv")]},
    "another source": {"of": {"dataset": {"train": [TRAIN, TRAIN]}}, "data": [source(), source()]},
    "a test set": {"of": {"dataset": {"test": OTHER}}, "data": [source(), source()]},
    "a general set": {"of": {"dataset": {"general": OTHER}}, "data": [source(), source()]},
    "the tokenizer": {"model": [TOKENIZER.model_copy(update={"sha256": "2" * 64})]},
    "a chat template": {"model": [TOKENIZER, FileDigest(path="chat_template.jinja", sha256="3" * 64, size=1)]},
    "format": {"of": {"dataset": {"format": "chat"}}},
    "trainOn": {"of": {"dataset": {"train_on": "all"}}},
    "overlong": {"of": {"dataset": {"overlong": "truncate"}}},
    "columns": {"of": {"dataset": {"columns": Columns(prompt="question")}}},
    "maxLength": {"of": {"dataset": {"max_length": 64}}},
    "evalFraction": {"of": {"dataset": {"eval_fraction": 0.1}}},
    "the seed of a split": {"of": {"dataset": {"eval_fraction": 0.1}, "seed": 2}},
    "objective": {"of": {"objective": Objective.model_validate({"dpo": {}})}},
    "columns of rewards": {"of": {"objective": Objective.model_validate({"rlhf": RLHF})}},
    "other columns of rewards": {
        "of": {
            "objective": Objective.model_validate(
                {"rlhf": {**RLHF, "rewards": [*RLHF["rewards"], {"match": {"column": "b"}}]}}  # type: ignore[misc]
            )
        }
    },
    "the date": {"of": {"date": "2026-11-24"}},
}
FREE: dict[str, dict[str, Any]] = {
    "where the data lies": {"of": {"dataset": {"train": [WeightedDataSource(uri="s3://other/train.jsonl")]}}},
    "what was counted": {"data": [source(rows=7, revision="main")]},
    "its weight": {"of": {"dataset": {"train": [TRAIN.model_copy(update={"weight": 2.0})]}}},
    "packing": {"of": {"dataset": {"packing": True}}},
    "weights of the model": {"model": [TOKENIZER, FileDigest(path=WEIGHTS, sha256="4" * 64, size=1)]},
    "the seed without a split": {"of": {"seed": 2}},
    "hyperparameters": {"of": {"training": Training(learning_rate=1e-5, batch_size=4)}},
    "GPUs": {"of": {"gpus": 2}},
    "who asks": {"of": {"name": "other", "job_uid": "x", "pins": ["a", "b"]}},
}


def placed(changes: dict[str, Any]) -> str:
    return address(contract(**changes.get("of", {})), changes.get("data"), changes.get("model"))


def test_all_that_decides_a_set_has_a_part_in_its_address() -> None:
    found = {what: placed(changes) for what, changes in DECIDING.items()} | {"none": placed({})}
    assert len(set(found.values())) == len(found), found


@pytest.mark.parametrize("what", FREE)
def test_nothing_else_has(what: str) -> None:
    assert placed(FREE[what]) == placed({})


def test_a_set_of_other_libraries_or_other_code_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    before = placed({})
    monkeypatch.setattr(tokenised, "version", lambda name: f"{name} of tomorrow")
    other = placed({})
    monkeypatch.undo()
    monkeypatch.setattr(tokenised, "_code", lambda: "of tomorrow")
    assert len({before, other, placed({})}) == 3


def test_the_order_of_a_models_files_says_nothing() -> None:
    files = [TOKENIZER, FileDigest(path="config.json", sha256="5" * 64, size=1)]
    assert placed({"model": files}) == placed({"model": files[::-1]})


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_out_of_their_parts_as_they_went_in(tmp_path: Path, kind: str) -> None:
    some = [KINDS[kind](number) for number in range(20)]
    rows = Rows[TokenRow]()
    for number, part in enumerate((some[:7], some[7:8], some[8:])):
        path = tmp_path / f"{number}.safetensors"
        tokenised.write_part(path, collected(part))
        tokenised.read_part(path, rows)
    assert [plain(row) for row in rows] == [plain(row) for row in some]
    whole = collected(some)
    for name in ("input_ids", "labels", "ends", "trained", "lengths"):
        assert getattr(rows, name).tolist() == getattr(whole, name).tolist()


def test_columns_of_any_length_and_script_are_kept(tmp_path: Path) -> None:
    """The head of a file of tensors takes 100 MB at most."""
    columns = {"tests": "проверка " * 1_000_000}
    some: list[TokenRow] = [Prompted(KINDS["sft"](number).parts[0], columns) for number in range(8)]
    rows = Rows[TokenRow]()
    tokenised.write_part(tmp_path / "part", collected(some))
    tokenised.read_part(tmp_path / "part", rows)
    assert [row.columns for row in rows if isinstance(row, Prompted)] == [columns] * 8


def test_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tokenised.write_part(tmp_path / name, collected([KINDS["rlhf"](number) for number in range(20)]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
