"""A run's report: one HTML page that needs nothing else, neither network nor script."""

from lorikeet_run.report.model import (
    Answer,
    Chart,
    DataProfile,
    LengthBin,
    RunReport,
    Sample,
    Series,
    SourceProfile,
    Span,
    TrackerState,
    Unit,
)
from lorikeet_run.report.page import render

__all__ = [
    "Answer",
    "Chart",
    "DataProfile",
    "LengthBin",
    "RunReport",
    "Sample",
    "Series",
    "SourceProfile",
    "Span",
    "TrackerState",
    "Unit",
    "render",
]
