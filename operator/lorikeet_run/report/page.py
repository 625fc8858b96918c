"""The page itself: what a report shows, put into the template, which escapes all of it."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lorikeet_api.contract import FileDigest, SourceDigest
from lorikeet_api.objectives import ObjectiveName
from lorikeet_api.signs import ADVICE, Sign, SignName
from lorikeet_run.report import reproduce, text
from lorikeet_run.report.figures import figures, tiles
from lorikeet_run.report.model import RunReport, Span
from lorikeet_run.report.plot import SIDE, histogram, plot
from lorikeet_run.templates import TEMPLATES

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The page's Content-Security-Policy: no script and no request, whatever the data say."""
MOST_FILES: Final = 40
"""Files that are listed of one source."""

_TITLES: Final = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning", "bottleneck": "bottleneck adapter"}
_OBJECTIVES: Final[dict[ObjectiveName, str]] = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimisation",
    "kto": "Kahneman-Tversky optimisation",
    "orpo": "odds-ratio preference optimisation",
    "reward": "a reward model",
    "rlhf": "reinforcement learning from rewards",
}


@dataclass(frozen=True)
class Row:
    """One part of the run's time."""

    name: str
    seconds: str
    share: float
    """Percent of the whole."""
    is_steps: bool


@dataclass(frozen=True)
class Seen:
    """A sign that the run went wrong."""

    sign: Sign
    advice: str


@dataclass(frozen=True)
class Unmeasured:
    """A sign that could not be looked for."""

    name: SignName
    needs: str


@dataclass(frozen=True)
class Source:
    """The files of one source."""

    uri: str
    revision: str | None
    files: list[FileDigest]
    more: int
    """Files that are not listed."""


def render(report: RunReport) -> str:
    """Return the report as one HTML document. Pure: an equal report gives equal bytes."""
    return _template().render(_content(report))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lorikeet_run.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": text.percent, "size": text.size}
    return environment.get_template("report.html.j2")


def _content(report: RunReport) -> dict[str, Any]:
    contract, metrics = report.contract, report.metrics
    drawn = [plot(chart, metrics.resumed_from_step) for chart in report.charts]
    total = sum(span.seconds for span in report.spans)
    return {
        "policy": POLICY,
        "side": SIDE,
        "report": report,
        "contract": contract,
        "base_name": contract.model.uri.rstrip("/").rpartition("/")[2],
        "method": _TITLES.get(contract.method.name, contract.method.name),
        "objective": _OBJECTIVES[contract.objective.name],
        "template": TEMPLATES[report.template.source],
        "tiles": tiles(metrics),
        "figures": figures(metrics),
        "signs": [Seen(sign, ADVICE[sign.name]) for sign in metrics.signs or []],
        "unmeasured": _unmeasured(report),
        "plots": [one for one in drawn if one is not None],
        "histogram": histogram(report.profile.lengths),
        "times": _times(report.spans, total),
        "total": text.duration(total),
        "steps_percent": _share(sum(span.seconds for span in report.spans if span.is_steps), total),
        "sources": [_source(one) for one in (report.base_model, *report.starts, *report.data)],
        "configuration": reproduce.configuration(contract),
        "manifest": reproduce.manifest(contract),
    }


def _unmeasured(report: RunReport) -> list[Unmeasured]:
    """Return the signs that could not be looked for, each with what that takes."""
    found = []
    if report.metrics.eval_loss is None:
        found.append(Unmeasured("Overfitting", "dataset.eval or dataset.evalFraction"))
    if not report.samples:
        found.append(Unmeasured("Repetition", "held-out examples with a prompt"))
    if report.metrics.general_loss is None:
        writes = report.contract.objective.reward is None
        found.append(Unmeasured("Forgetting", "dataset.general" if writes else "a model that writes"))
    return found


def _times(spans: list[Span], total: float) -> list[Row]:
    return [
        Row(span.name, text.duration(span.seconds), _share(span.seconds, total), span.is_steps)
        for span in spans
        if span.seconds > 0
    ]


def _share(seconds: float, total: float) -> float:
    return round(100 * seconds / total, 1) if total > 0 else 0.0


def _source(digest: SourceDigest) -> Source:
    files = digest.files
    return Source(digest.uri, digest.revision, files[:MOST_FILES], max(0, len(files) - MOST_FILES))
