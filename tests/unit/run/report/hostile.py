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
MARKS = ("<script", "<img", "onerror=alert(2)>\"'", "{{49}}")
"""What must not stand in the page: each is escaped, or in an attribute of ours."""


def hostile() -> RunReport:
    """Return the report."""
    blank_free = ATTACK.replace(" ", "\N{NO-BREAK SPACE}"[:0])
    uri = f"s3://datasets/{blank_free.replace('/', '').replace('?', '').replace('#', '')}"
    dataset = Dataset.model_validate(
        {"train": [{"uri": uri}], "columns": {"prompt": ATTACK[:128]}, "format": "completion"}
    )
    contract = runs.contract(
        "s3://adapters/team-a",
        StorageAccess(endpoint=f"https://user:hunter2@minio/{ATTACK}"),
        dataset=dataset,
    )
    said = Answer(text=ATTACK, ended=False)
    return example.report(
        contract=contract,
        metrics=example.report().metrics.model_copy(update={"device": ATTACK}),
        charts=[example.chart(ATTACK, [(1, 1.0), (2, 2.0)])],
        samples=[Sample(prompt=ATTACK, expected=ATTACK, before=said, after=said)],
        profile=DataProfile(
            sources=[SourceProfile(uri=uri, rows=1, format=ATTACK, held_out=False)],
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
