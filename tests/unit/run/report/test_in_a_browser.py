"""The page as a browser draws it, at the widths of a desk and of a phone."""

from pathlib import Path

import pytest

from lorikeet_run.report import render
from tests.unit.run.report import browser, example
from tests.unit.run.report.hostile import hostile


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")], ids=["desk", "phone"]
)
async def test_every_plot_is_drawn_inside_its_frame(width: int, height: int, scheme: str, tmp_path: Path) -> None:
    found = await browser.drawn(render(example.report()), tmp_path, width, height, scheme)
    plots = {plot["title"]: plot for plot in found["plots"]}
    assert list(plots) == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
        "Memory",
        "Length of the training examples",
    ]
    for title, plot in plots.items():
        assert plot["width"] > 200, title
        assert plot["height"] > 100, title
        assert plot["astray"] == [], title
        assert plot["overlapping"] == 0, title
        assert all(line["points"] >= 2 and line["outside"] == 0 and line["width"] > 0 for line in plot["lines"]), title
    lines = {title: len(plot["lines"]) for title, plot in plots.items() if plot["lines"]}
    assert lines == {"Loss": 2, "Learning rate": 1, "Gradient norm": 2, "Tokens per second": 1, "Memory": 1}
    assert plots["Length of the training examples"]["bars"] == 14


async def test_what_users_wrote_runs_nothing_and_fetches_nothing(tmp_path: Path) -> None:
    await browser.drawn(render(hostile()), tmp_path, 390, 844)


async def test_answers_before_and_after_training_lie_beside_each_other_on_a_desk(tmp_path: Path) -> None:
    found = await browser.drawn(render(example.report()), tmp_path, 1280, 900)
    assert len(found["samples"]) == 2
    for before, after in found["samples"]:
        assert before["top"] == after["top"]
        assert before["left"] < before["right"] <= after["left"] < after["right"]


async def test_answers_before_and_after_training_lie_under_each_other_on_a_phone(tmp_path: Path) -> None:
    found = await browser.drawn(render(example.report()), tmp_path, 390, 844)
    assert len(found["samples"]) == 2
    for before, after in found["samples"]:
        assert before["left"] == after["left"]
        assert before["top"] < before["bottom"] <= after["top"] < after["bottom"]


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_without_chromium_its_tests_are_skipped_and_fail_where_it_is_required(
    required: str, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(browser.REQUIRED_VARIABLE, required)
    with pytest.raises((pytest.skip.Exception, pytest.fail.Exception), match="there is no Chromium here") as ended:
        browser.chromium()
    assert ended.type is outcome
