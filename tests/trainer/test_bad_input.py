"""What users get wrong in their rows is told with cause and fix, in the same words by all that look at them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorikeet_agent import main as agent
from lorikeet_api.contract import EXIT_BAD_DATA, RunContract, RunRecord
from lorikeet_cli import main as cli
from lorikeet_operator.finetune.resolve import resolve
from lorikeet_storage.folders import FOLDERS_VARIABLE, use_folders
from lorikeet_trainer.lifecycle import STAGES
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.state import Layout
from tests import resources
from tests.bad_input import BAD_ROWS, BadRows
from tests.trainer import tiny

pytestmark = pytest.mark.trainer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the sources of a run, and one for what it publishes, in the place of buckets."""
    monkeypatch.setenv(FOLDERS_VARIABLE, "")
    for bucket in ("models", "datasets", "adapters"):
        (tmp_path / bucket).mkdir()
    use_folders(
        {f"s3://{bucket}": tmp_path / bucket for bucket in ("models", "datasets")},
        {"s3://adapters": tmp_path / "adapters"},
    )
    return tmp_path


def spec_of(bad: BadRows) -> dict[str, Any]:
    train = [{"uri": "s3://datasets/rows.jsonl"}]
    dataset = {"train": train, **bad.spec.get("dataset", {})}
    return {"model": {"uri": "s3://models/tiny"}, "compute": {"gpus": 0}, **bad.spec, "dataset": dataset}


def by_agent(contract: Path, folder: Path) -> RunRecord:
    told = folder / "termination"
    assert agent.run("preflight", contract, told) == EXIT_BAD_DATA
    return RunRecord.model_validate_json(told.read_text())


def by_trainer(contract: Path, folder: Path) -> RunRecord:
    for stage in STAGES:
        result = run_stage(stage, contract, Layout(folder / "work"))
        if result.record is not None:
            assert result.exit_code == EXIT_BAD_DATA
            return result.record
    raise AssertionError("the run has published")


@pytest.mark.parametrize("what", BAD_ROWS)
def test_agent_trainer_and_command_say_the_same(folder: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad = BAD_ROWS[what]
    tiny.write_model(folder / "models" / "tiny", bad.template)
    (folder / "datasets" / "rows.jsonl").write_bytes(tiny.jsonl(bad.rows))
    request: RunContract = resolve(resources.job(**spec_of(bad)), resources.profile(), "trainer:test").contract
    contract = folder / "run.json"
    contract.write_text(json.dumps(request.to_wire()))
    record = by_agent(contract, folder)
    assert (record.reason, record.retryable) == ("DataInvalid", False)
    assert re.fullmatch(rf"(rows\.jsonl)?{bad.message}", record.message), record.message
    trained = by_trainer(contract, folder)
    assert (trained.reason, trained.message) == (record.reason, record.message)
    if bad.as_tokens:
        return
    file = folder / "finetune.yaml"
    file.write_text(json.dumps(resources.job_body(**spec_of(bad))))
    maps = [f"--map=s3://{bucket}={folder / bucket}" for bucket in ("models", "datasets")]
    assert cli.main(["validate", "-f", str(file), *maps]) == EXIT_BAD_DATA
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: FineTuneJob sql-v1: {record.reason}: {record.message}",
    ]
