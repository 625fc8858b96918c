"""What preflight leaves of a run's data as tokens: the trainer reads it, and nothing of the run is otherwise."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet_agent import preflight, tokenise
from lorikeet_api.contract import RunContract
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.tokenizer import load_tokenizer
from lorikeet_trainer import device
from lorikeet_trainer import examples as trainers
from lorikeet_trainer.session import Session
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.state import Layout, MetricsFile, Prepared
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab
from tests.trainer.probe import run_and_probe
from tests.trainer.test_objectives import judged
from tests.trainer.test_preflight import check
from tests.unit.run.test_rows import plain

pytestmark = pytest.mark.trainer

MODEL, BARE, TRAIN = "s3://models/small", "s3://models/bare", "s3://datasets/train.jsonl"
EVAL = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}
PAIRS = {"eval": {"uri": "s3://datasets/held-out-pairs.jsonl"}}
KINDS: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "sft": (MODEL, {"sft": {}}, TRAIN, {**EVAL, "test": EVAL["eval"], "general": EVAL["eval"]}),
    "a base without a template": (BARE, {"sft": {}}, TRAIN, {**EVAL, "packing": True}),
    "a split": (MODEL, {"sft": {}}, TRAIN, {"evalFraction": 0.25}),
    "a mixture": (
        MODEL,
        {"sft": {}},
        [{"uri": TRAIN, "weight": 1}, {"uri": EVAL["eval"]["uri"], "weight": 3}],
        {"maxLength": 24, "overlong": "truncate"},
    ),
    "dpo": (MODEL, {"dpo": {}}, "s3://datasets/pairs.jsonl", {**PAIRS, "general": EVAL["eval"]}),
    "kto": (MODEL, {"kto": {}}, "s3://datasets/judged.jsonl", {"evalFraction": 0.1}),
    "rlhf": (
        MODEL,
        {"rlhf": {"numGenerations": 4, "maxCompletionLength": 6, "rewards": [{"match": {"column": "completion"}}]}},
        TRAIN,
        EVAL,
    ),
}
"""Base model, objective, training data, and the rest of the dataset."""


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two models, one without a chat template, and rows of all kinds."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small"), "small")
        made.put_folder(tiny.write_model(made.root / "bare", None), "bare")
        pairs, held_out = tiny.preferences()
        made.put_rows("pairs.jsonl", pairs)
        made.put_rows("held-out-pairs.jsonl", held_out)
        made.put_rows("judged.jsonl", judged(pairs))
        yield made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a batch each, so that there are several."""
    monkeypatch.setattr("lorikeet_run.render._BATCH", 16)
    monkeypatch.setattr(tokenise, "PART_ROWS", 16)


def contracts(lab: Lab, kind: str) -> tuple[RunContract, RunContract]:
    """Return the same run twice, with an output each."""
    model, objective, data, dataset = KINDS[kind]
    training = {"maxSteps": 2, "microBatchSize": 8}
    first = lab.contract("lora", model, data, dataset=dataset, objective=objective, training=training)
    return first, first.model_copy(update={"output_uri": first.output_uri + "-again"})


def checked(contract: RunContract, tmp_path: Path) -> RunContract:
    """Have preflight look at a run; return it with its sources pinned."""
    code, record = check(contract, tmp_path)
    assert code == 0, record.message
    return contract.model_copy(update={"pins": record.pins})


def sets(lab: Lab, contract: RunContract) -> list[str]:
    return [name for name in lab.published(contract) if name.startswith("tokens/")]


def examples(contract: RunContract, layout: Layout) -> list[object]:
    """Return all that the trainer makes of a run's data."""
    session = Session(
        contract, layout, Prepared.read(layout.prepared), Hyperparameters.of(contract), device.choose(contract)
    )
    tokenizer = load_tokenizer(layout.model)
    made = trainers.render(session, tokenizer)
    rows = [[plain(row) for row in some] for some in (made.train, made.held_out, made.test, made.general)]
    counts = made.train.trained, made.dropped, made.stop_percent
    return [*rows, *counts, made.template, made.profile, tokenizer.chat_template]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_what_preflight_has_tokenised_is_the_same_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    contract, plainly = contracts(lab, kind)
    pinned = checked(contract, tmp_path)
    assert len(sets(lab, pinned)) > 2, "several parts, and their index"
    rendered = run_and_probe(lab, plainly)
    monkeypatch.setattr(trainers, "render_data", None)
    found = run_and_probe(lab, pinned)
    assert Prepared.read(lab.layout(pinned).prepared).is_tokenised
    assert not Prepared.read(lab.layout(plainly).prepared).is_tokenised
    assert torch.equal(found.logits, rendered.logits)
    curves = [MetricsFile.model_validate_json(lab.fetch(one, "metrics.json")).curve for one in (pinned, plainly)]
    assert curves[0] == curves[1]
    ours = examples(pinned, lab.layout(pinned))
    monkeypatch.undo()
    assert ours == examples(plainly, lab.layout(plainly))
    assert sets(lab, pinned) == [], "published, and swept"


def test_a_second_look_finds_the_set_and_writes_none(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract, _ = contracts(lab, "sft")
    checked(contract, tmp_path)
    before = sets(lab, contract)
    with monkeypatch.context() as patch:
        patch.setattr(tokenise, "_render", None)
        code, record = check(contract, tmp_path)
    assert (code, sets(lab, contract)) == (0, before)
    assert "96 rows of data (every row)" in record.message
    lab.server.put("out", f"{contract.output_uri.removeprefix('s3://out/')}/{contract.run_id}/{before[-1]}", b"{")
    assert prepare(lab, checked(contract, tmp_path)).is_tokenised, "an index that cannot be read is written anew"


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def prepare(lab: Lab, contract: RunContract) -> Prepared:
    assert run_stage("prepare", lab.write(contract), lab.layout(contract)).exit_code == 0
    return Prepared.read(lab.layout(contract).prepared)


@pytest.mark.parametrize("damage", ["a part", "a part gone", "the index"])
def test_a_damaged_set_is_rendered_anew(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    contract, _ = contracts(lab, "sft")
    pinned = checked(contract, tmp_path)
    *parts, index = [f"{contract.output_uri}/{contract.run_id}/{name}" for name in sets(lab, contract)]
    key = (index if damage == "the index" else parts[0]).removeprefix("s3://out/")
    data = lab.server.client().get_object(Bucket="out", Key=key)["Body"].read()
    if damage == "a part gone":
        lab.server.client().delete_object(Bucket="out", Key=key)
    else:
        lab.server.put("out", key, data[:-1] + b"?")
    with caplog.at_level(logging.INFO, "lorikeet"):
        prepared = prepare(lab, pinned)
    assert "tokens_damaged" in events(caplog)
    assert not prepared.is_tokenised
    assert [source.rows for source in prepared.data] == [60, 12, 12, 12]
    assert len(examples(pinned, lab.layout(pinned))[0]) == 60  # type: ignore[arg-type]


def test_a_set_of_other_data_is_not_taken_and_goes_with_the_next(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, _ = tiny.rows()
    contract = lab.contract("lora", MODEL, lab.put_rows("moving.jsonl", rows))
    checked(contract, tmp_path)
    before = sets(lab, contract)
    lab.put_rows("moving.jsonl", rows[:-1])
    with caplog.at_level(logging.INFO, "lorikeet"):
        prepared = prepare(lab, contract)
    assert "tokens_absent" in events(caplog)
    assert (prepared.is_tokenised, prepared.data[0].rows) == (False, 59)
    checked(contract, tmp_path)
    assert len(sets(lab, contract)) == len(before)
    assert not set(sets(lab, contract)) & set(before)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("last", "dataset", "words"),
    [
        ({"prompt": "coal " * 99, "completion": "black"}, {"overlong": "fail"}, "many.jsonl, line 301"),
        ({"prompt": "coal", "completion": ""}, {}, "many.jsonl, line 301: column completion is empty"),
    ],
    ids=["the template", "the row"],
)
def test_what_is_wrong_behind_the_sample_is_found_before_a_gpu_is_asked_for(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: tiny.Row, dataset: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(preflight, "WHOLE", 2000)
    monkeypatch.setattr(preflight, "HEAD", 1000)
    rows = [{"prompt": f"What colour is {number}?", "completion": "black"} for number in range(300)]
    uri = lab.put_rows("many.jsonl", [*rows, last])
    contract = lab.contract("lora", MODEL, uri, dataset=dataset)
    code, record = check(contract, tmp_path)
    assert (code, record.reason) == (65, "DataInvalid")
    assert words in record.message
    assert lab.published(contract) == ["run.json"], "parts that are of no set do not stay"


def test_prompts_that_leave_no_room_for_answers_are_found_there(lab: Lab, tmp_path: Path) -> None:
    rlhf = {"numGenerations": 4, "maxCompletionLength": 500, "rewards": [{"regex": {"pattern": "a"}}]}
    code, record = check(lab.contract("lora", MODEL, TRAIN, objective={"rlhf": rlhf}), tmp_path)
    assert (code, record.reason) == (64, "MethodNotApplicable")
    assert "its answers up to 500, and the base model 512 positions" in record.message


def test_data_that_is_too_large_is_left_to_the_trainer(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "DATA", 2000)
    contract, _ = contracts(lab, "sft")
    pinned = checked(contract, tmp_path)
    assert sets(lab, contract) == []
    assert not prepare(lab, pinned).is_tokenised
    _, record = check(contract, tmp_path)
    assert record.message.endswith("; the trainer makes all tokens, since the data has 0 MiB, more than 0")


MEMORY = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # the agent's image has none
from lorikeet_agent import main

for name in sys.argv[2:]:
    assert main.run("preflight", Path(name), Path(sys.argv[1])) == 0, Path(sys.argv[1]).read_text()
    (peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    print(int(peak) // 1024)
"""


def test_many_rows_take_no_more_memory_than_few(lab: Lab, tmp_path: Path) -> None:
    """Held at once, the tokens alone of the second run would take 49 MB."""
    line = b'{"text": "' + b"zxqj" * 15 + b'"}\n'  # a token each
    few = lab.contract("lora", MODEL, lab.put_rows("few.jsonl", line * 10_000))
    many = lab.contract("lora", MODEL, lab.put_rows("many.jsonl", line * 100_000))
    said = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "termination", lab.write(few), lab.write(many)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    before, after = map(int, said.stdout.split())
    assert len(sets(lab, many)) > 10
    assert after - before < 40, f"{before} MiB after 10,000 rows, {after} MiB after 100,000"
