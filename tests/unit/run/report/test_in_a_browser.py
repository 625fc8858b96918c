"""The page as a browser draws it, at the widths of a desk and of a phone."""

from pathlib import Path
from typing import Any

import pytest

from lorikeet_run.report import RunReport, render
from tests.unit.run.report import browser, example
from tests.unit.run.report.hostile import hostile

DRAWN = """(() => {
  const inside = (box, outer) => box.left >= outer.left - 0.5 && box.right <= outer.right + 0.5
    && box.top >= outer.top - 0.5 && box.bottom <= outer.bottom + 0.5;
  const box = element => element.getBoundingClientRect();
  return {
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: [...document.querySelectorAll('main *')].filter(element => box(element).right > innerWidth + 0.5
      && !element.closest('.scroll')).map(element => element.outerHTML.slice(0, 80)),
    plots: [...document.querySelectorAll('svg.plot')].map(plot => {
      const drawing = plot.querySelector('svg.drawing'), view = drawing.viewBox.baseVal;
      const card = box(plot.closest('figure'));
      const steps = [...plot.querySelectorAll('text.x:not(.name)')].map(box).sort((a, b) => a.left - b.left);
      return {
        title: plot.querySelector('title').textContent,
        width: box(drawing).width,
        height: box(drawing).height,
        lines: [...drawing.querySelectorAll('polyline')].map(line => ({
          points: line.points.length,
          outside: [...line.points].filter(p => p.x < view.x || p.y < view.y
            || p.x > view.x + view.width || p.y > view.y + view.height).length,
          width: box(line).width,
        })),
        bars: [...drawing.querySelectorAll('rect.bar')].map(box).filter(bar => bar.width > 0 && bar.height > 0).length,
        astray: [...plot.querySelectorAll('text')].filter(text => !inside(box(text), card))
          .map(text => text.textContent),
        overlapping: steps.slice(1).filter((next, index) => next.left < steps[index].right).length,
      };
    }),
  };
})()"""


async def drawn(report: RunReport, folder: Path, width: int, height: int, scheme: str = "light") -> dict[str, Any]:
    """Open the report, require that nothing but itself is asked for, nothing said and nothing too wide."""
    file = folder / "index.html"
    file.write_text(render(report), encoding="utf-8")
    async with browser.page(folder / "profile") as page:
        await page.open(file, width, height, scheme)
        found: dict[str, Any] = await page.evaluate(DRAWN)
        assert page.requests == [file.as_uri()]
        assert page.complaints == []
    assert found["overflow"] <= 0
    assert found["wide"] == []
    return found


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")], ids=["desk", "phone"]
)
async def test_every_plot_is_drawn_inside_its_frame(width: int, height: int, scheme: str, tmp_path: Path) -> None:
    found = await drawn(example.report(), tmp_path, width, height, scheme)
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
    await drawn(hostile(), tmp_path, 390, 844)
