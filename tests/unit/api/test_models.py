"""The models' own refusals, the YAML loader, and the trainer's record."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lorikeet_api.contract import TERMINATION_LIMIT, RunRecord
from lorikeet_api.crdgen import RESOURCES
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.yaml import load_all
from tests.resources import job_body

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_request_that_the_models_take(path: Path) -> None:
    kinds = {resource.__name__: resource for resource in RESOURCES}
    for document in load_all(path):
        kinds[document["kind"]].parse(document)


def test_the_example_has_ten_lines() -> None:
    assert len((ROOT / "examples" / "finetune.yaml").read_text().splitlines()) == 10
    assert (ROOT / "examples" / "finetune.yaml").read_text() in (ROOT / "README.md").read_text()


def test_numbers_are_read_as_kubectl_reads_them() -> None:
    assert load_all("a: 2e-4\nb: 1.0e-3\nc: on\nd: 010")[0] == {"a": 2e-4, "b": 1e-3, "c": "on", "d": 10}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": {"lora": {}, "full": {}}}, "exactly one method"),
        ({"modle": {}}, "Extra inputs"),
        ({"training": {"learning_rate": 1e-4}}, "Extra inputs"),
        ({"compute": {"env": [{"name": "A"}, {"name": "A"}]}}, "two items have the same name"),
    ],
)
def test_wrong_requests_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FineTuneJob.parse(job_body(**spec))


@pytest.mark.parametrize("text", ["x" * 9000, "ü" * 9000, '"\n' * 9000, "🦜" * 5000])
def test_a_record_fits_into_a_termination_message(text: str) -> None:
    message = RunRecord(reason="DataInvalid", message=text).to_message()
    assert len(message.encode()) <= TERMINATION_LIMIT
    again = RunRecord.model_validate(json.loads(message))
    assert again.reason == "DataInvalid"
    assert again.message[:100] == text[:100]


def test_a_short_record_is_left_as_it_is() -> None:
    record = RunRecord(reason="Published", message="done")
    assert RunRecord.model_validate_json(record.to_message()) == record
