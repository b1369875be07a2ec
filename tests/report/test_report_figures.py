"""The figures of a report."""

import re
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from report_cases import make_run, make_sweep, result_of
from report_sweep import MODES, sweep

from ddp_agent.report.__main__ import contents
from ddp_agent.report.figures.charts import charts
from ddp_agent.report.figures.palette import DARK, INK, MARKERS, Style
from ddp_agent.report.figures.render import files_of, for_page, inline_svgs
from ddp_agent.report.page.inline_svg import difference, swatch


def test_curves_hold_every_evaluation_on_three_axes_with_bands(tmp_path: Path) -> None:
    result = sweep(tmp_path)
    chart = charts(result)[0]
    xs = [[10, 20, 30], [1, 2, 3], [1, 2, 3]]
    for panel, x in zip(chart.panels, xs, strict=True):
        axes = Figure().subplots()
        panel.draw(axes)
        lines = {str(line.get_label()): line for line in axes.get_lines()}
        assert lines.keys() == MODES.keys()
        for line in result.lines:
            drawn = lines[line.label]
            assert np.asarray(drawn.get_xdata()).tolist() == pytest.approx(x)
            means = [point.metric.mean for point in line.points if point.metric]
            assert np.asarray(drawn.get_ydata()).tolist() == pytest.approx(means)
        assert len(axes.collections) == len(MODES)  # a band each
    assert "Out of view at the end: parameter_update (0.209)" in chart.caption


def test_two_seeds_are_shaded_from_one_to_the_other_and_one_is_not(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", seed=seed, curve=(0.5, 0.6 + seed / 10, 0.9), test_metric=0.9)
    make_run(tmp_path / "b", sync="diloco")
    result = result_of(tmp_path)
    chart, axes = charts(result)[0], Figure().subplots()
    chart.panels[0].draw(axes)
    (band,) = axes.collections
    corners = {
        tuple(round(float(number), 6) for number in corner) for corner in np.asarray(band.get_paths()[0].vertices)
    }
    assert corners == {(10, 0.5), (20, 0.6), (20, 0.7), (30, 0.9)}
    assert "where there are two seeds, both of them" in chart.caption
    assert "95 %" not in chart.caption


def test_the_time_split_adds_up(tmp_path: Path) -> None:
    (chart,) = [chart for chart in charts(sweep(tmp_path)) if chart.name == "time_split"]
    axes = Figure().subplots()
    chart.panels[0].draw(axes)
    ends: dict[float, float] = {}
    for bar in axes.patches:
        assert isinstance(bar, Rectangle)
        row = round(bar.get_y(), 3)
        assert bar.get_x() == pytest.approx(ends.get(row, 0.0))
        ends[row] = bar.get_x() + bar.get_width()
    assert sorted(ends.values()) == pytest.approx([3.5, 4.5, 5.5, 6.5])


@pytest.mark.parametrize(("modes", "seeds"), [(1, 1), (1, 2), (12, 1)])
def test_drawing_warns_of_nothing(tmp_path: Path, modes: int, seeds: int) -> None:
    """One run, two runs of a mode, and many modes: a legend of any length leaves the panels their height."""
    parts = {"data_s": 0.1, "compute_s": 2.0, "exposed_comm_s": 0.9, "straggler_wait_s": 0.3, "eval_s": 0.4}
    metrics = {f"mode{index}": [0.9 + index / 1000] * seeds for index in range(modes)}
    result = result_of(make_sweep(tmp_path, metrics, checkpoint_s=0.1, **parts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for chart in charts(result):
            files_of(chart)
            inline_svgs(chart)


def test_the_period_is_drawn_where_it_changes_only(tmp_path: Path) -> None:
    (chart,) = [chart for chart in charts(sweep(tmp_path)) if chart.name == "period"]
    axes = Figure().subplots()
    chart.panels[0].draw(axes)
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()] == [[8, 16]] * 3


def test_each_figure_is_a_png_and_an_svg_that_are_the_same_each_time(tmp_path: Path) -> None:
    result = sweep(tmp_path)
    files, again = contents(result), contents(result)
    names = {"curves", "pareto", "period", "time_split"}
    assert {name for name in files if not name.endswith(("html", "json"))} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    for name, content in files.items():
        assert content == again[name]
        assert not name.endswith("png") or content.startswith(b"\x89PNG")
        assert not name.endswith("svg") or ElementTree.fromstring(content).tag.endswith("svg")


def test_two_figures_of_one_page_share_no_ids_and_take_their_colours_from_it() -> None:
    svg = (
        '<?xml version="1.0"?><svg width="9pt" viewBox="0 0 9 9"><metadata>x</metadata><defs><style>* {}</style></defs>'
        '<defs><path id="m1"/></defs>'
        f'<use xlink:href="#m1" clip-path="url(#m1)" style="fill: {INK}; stroke: {Style(0).colour}"/></svg>'
    )
    assert for_page(svg, prefix="a-", description='"it"') == (
        '<svg role="img" aria-label="&quot;it&quot;" viewBox="0 0 9 9"><title>&quot;it&quot;</title>'
        '<defs></defs><defs><path id="a-m1"/></defs><use xlink:href="#a-m1" clip-path="url(#a-m1)" '
        f'style="fill: currentColor; stroke: var(--c-{Style(0).colour[1:]})"/></svg>'
    )


def luminance(colour: str) -> float:
    """Relative, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("index", range(8))
def test_each_series_stands_out_from_light_and_dark_paper(index: int) -> None:
    colour = Style(index).colour
    assert contrast(colour, "#ffffff") >= 4.5  # what WCAG asks of text: names are written in them
    assert contrast(DARK[colour], "#13161a") >= 4.5


def test_no_two_lines_look_alike() -> None:
    styles = [Style(index) for index in range(32)]
    assert len({(style.colour, style.dashes) for style in styles}) == 32
    assert len({(style.colour, style.marker) for style in styles}) == 32
    assert all(swatch(index).count("<polygon") == 1 for index in range(len(MARKERS)))


def test_intervals_are_drawn_to_one_scale_with_better_on_the_right(tmp_path: Path) -> None:
    result = sweep(tmp_path)
    line = next(line for line in result.lines if line.label == "diloco")
    assert line.difference is not None and line.difference.low is not None and line.difference.high is not None
    scale = 2 * -line.difference.low

    def ends(**options: Any) -> list[float]:
        (found,) = re.findall(r"M([\d.]+) 10H([\d.]+)M", difference(line, scale, **options))
        return [float(x) for x in found]

    left, right = ends(higher_is_better=True)
    assert (left, right) == pytest.approx((36, 72 + 72 * line.difference.high / scale), abs=0.06)
    assert 'class="worse"' in difference(line, scale, higher_is_better=True)
    left, right = ends(higher_is_better=False)
    assert right == pytest.approx(108, abs=0.06)
    assert difference(result.baseline, scale, higher_is_better=True) == ""
