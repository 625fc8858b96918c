"""A report whose every text, as far as users choose it, tries to be more than text."""

from lorikeet_api.contract import StorageAccess, Template
from lorikeet_api.training import Dataset
from lorikeet_run.report import Answer, DataProfile, RunReport, Sample, SourceProfile
from tests import runs
from tests.unit.run.report import example

ATTACK = (
    "</pre></title></style></svg><script>alert(1)</script><img src=http://attacker.invalid/x onerror=alert(2)>\"'"
    "{{7*7}}{% raw %}" + "W" * 400
)
"""Long, too, and without a place to break a line at."""


def hostile() -> RunReport:
    """Return the report."""
    uri = 's3://datasets/"><script>alert(1)<' + "W" * 400
    dataset = Dataset.model_validate(
        {"train": [{"uri": uri}], "columns": {"prompt": ATTACK[:128]}, "format": "completion"}
    )
    said = Answer(text=ATTACK, ended=False)
    return example.report(
        contract=runs.contract("s3://adapters/team-a", StorageAccess(endpoint=ATTACK), dataset=dataset, name=ATTACK),
        metrics=example.report().metrics.model_copy(update={"device": ATTACK}),
        charts=[example.chart(ATTACK, [(1, 1.0), (2, 2.0)])],
        samples=[Sample(prompt=ATTACK, expected=ATTACK, before=said, after=said)],
        profile=DataProfile(
            sources=[SourceProfile(uri=uri, rows=1, format=ATTACK, use="training")],
            train_examples=1,
            held_out_examples=0,
            dropped=0,
            trained_tokens=1,
            lengths=[],
        ),
        template=Template(source="none"),
        data=[example.source(ATTACK, 1, revision=ATTACK)],
        libraries={ATTACK: ATTACK},
    )
