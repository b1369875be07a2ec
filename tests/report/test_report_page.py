"""The page and its figures: whole, safe to open, and drawn by a real browser in light, dark and on a phone."""

import json
import re
import shutil
import subprocess
import warnings
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from report_cases import cells, make_run, make_sweep, result_of

from ddp_agent.report.__main__ import contents
from ddp_agent.report.comparison.result import Result
from ddp_agent.report.figures.charts import charts
from ddp_agent.report.figures.palette import DARK, INK, MARKERS, Style
from ddp_agent.report.figures.render import files_of, for_page, inline_svgs
from ddp_agent.report.page.inline_svg import difference, swatch

HOSTILE = """<script>alert("1")</script><img src=x onerror='alert(2)'>&amp;$\\frac{1}$"""
MODES = {"allreduce": 0.90, "local_sgd": 0.903, "diloco": 0.86, "parameter_update": 0.2}


def sweep(path: Path) -> Result:
    """Three seeds of four modes, one of which went astray, one run that failed, and a changing period."""
    for place, (mode, value) in enumerate(MODES.items()):
        for seed in range(3):
            metric = value + seed / 100 - place * seed / 2000
            make_run(
                path / f"{mode}{seed}", sync=mode, seed=seed, curve=(metric - 0.02, metric - 0.01, metric),
                test_metric=metric,
                wire_bytes=int(9e7 / (1 + 40 * place)), train_s=3.0 + place, data_s=0.1, compute_s=2.0 + place,
                exposed_comm_s=0.9, straggler_wait_s=0.3, eval_s=0.4, checkpoint_s=0.1, target=0.85, params=26122,
                config={"sync": {"period": 8 * place or None}}, periods=(8, 16) if mode == "diloco" else (),
            )  # fmt: skip
    make_run(path / "failed", status={"status": "failed", "reason": HOSTILE}, sync="gossip")
    return result_of(path)


@cache
def report_in(directory: Path) -> Path:
    """Drawn once for all tests."""
    files = contents(sweep(directory / "sweep"))
    output = directory / "report"
    output.mkdir()
    for name, content in files.items():
        (output / name).write_bytes(content)
    return output


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_in(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def html(report: Path) -> str:
    return (report / "index.html").read_text()


class Elements(HTMLParser):
    """Every element with its attributes, and the text in between; raises on tags that do not match."""

    VOID = frozenset(["meta", "link", "br", "wbr", "img", "input", "hr"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


# What the page says


def test_the_page_holds_every_cell_of_every_table(html: str, tmp_path: Path) -> None:
    texts, result = " ".join("".join(Elements(html).texts).split()), sweep(tmp_path)
    for title in ("Quality", "Until", "Cost"):
        for row in cells(result, title).values():
            for cell in row.values():
                assert cell in texts


def test_the_answer_stands_before_the_tables_and_those_before_the_figures(html: str) -> None:
    order = ["Answer", "Quality", "Until test accuracy 0.85", "Cost", "Test accuracy against what it cost", "Pareto",
             "How the period changed", "Where the time went", "What was set differently", "1 run left out",
             "How it was computed"]  # fmt: skip
    headings = [re.sub("<.*?>", "", heading) for heading in re.findall("<h2.*?</h2>", html)]
    assert [heading.startswith(start) for heading, start in zip(headings, order, strict=True)] == [True] * len(order)


def test_the_page_is_accessible(html: str) -> None:
    page = Elements(html)
    assert page.of("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")
    assert len(page.of("title")) == 1 + sum(svg.get("role") == "img" for svg in page.of("svg"))
    assert all(header.get("scope") in ("col", "row") for header in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table")) >= 4
    for svg in page.of("svg"):
        assert svg.get("aria-label") if svg.get("role") == "img" else svg.get("aria-hidden") == "true"
    assert sum(svg.get("role") == "img" for svg in page.of("svg")) == 7
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {reference for _, attributes in page.found for key in ("xlink:href", "href", "aria-labelledby")
             if (reference := (attributes.get(key) or "").removeprefix("#")) and key != "href"}  # fmt: skip
    assert named <= set(ids)


def test_the_page_asks_for_nothing_but_its_own_files(html: str, report: Path) -> None:
    page = Elements(html)
    assert not page.of("script")
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    outward = [attributes.get(key) for _, attributes in page.found for key in ("src", "srcset", "href")]
    links = {value for value in outward if value and not value.startswith(("#", "data:"))}
    assert links == {path.name for path in report.iterdir()} - {"index.html"}
    assert "url(http" not in html and "@import" not in html


def test_whatever_a_run_holds_is_text(tmp_path: Path) -> None:
    """The text stands in names, reasons, settings, metric and environment, in the page and in the figures."""
    for seed in (0, 1):
        make_run(
            tmp_path / f"{HOSTILE.replace('/', '')}{seed}", sync=HOSTILE, reducer=HOSTILE, seed=seed, dataset=HOSTILE,
            model=HOSTILE, metric_name=HOSTILE, device=f"{HOSTILE}{seed}", compute_s=1.0, periods=(1, 2),
            config={"optimizer": {HOSTILE: seed}, HOSTILE: HOSTILE},
        )  # fmt: skip
    make_run(tmp_path / "bad", status={"status": HOSTILE, "reason": HOSTILE}, sync=HOSTILE)
    files = contents(result_of(tmp_path))
    page = Elements(files["index.html"].decode())
    assert not page.of("script") and not page.of("img")
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert "".join(page.texts).count('<script>alert("1")') > 10
    for name, content in files.items():
        if name.endswith(".svg"):
            tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(content).iter()}
            assert not tags & {"script", "img", "foreignObject"}


# Figures


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


@pytest.mark.parametrize("place", range(8))
def test_each_series_stands_out_from_light_and_dark_paper(place: int) -> None:
    colour = Style(place).colour
    assert contrast(colour, "#ffffff") >= 4.5  # what WCAG asks of text: names are written in them
    assert contrast(DARK[colour], "#13161a") >= 4.5


def test_no_two_lines_look_alike() -> None:
    styles = [Style(place) for place in range(32)]
    assert len({(style.colour, style.dashes) for style in styles}) == 32
    assert len({(style.colour, style.marker) for style in styles}) == 32
    assert all(swatch(place).count("<polygon") == 1 for place in range(len(MARKERS)))


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


# In a browser

PROBE = """
<script>
addEventListener("load", () => {
  const box = element => { const {width, height} = element.getBoundingClientRect(); return [width, height]; };
  const style = getComputedStyle(document.body);
  const ink = [...document.querySelectorAll("figure svg text")].map(text => getComputedStyle(text).fill);
  const line = document.querySelector("figure svg path[style*='--c-']");
  const found = {
    width: innerWidth,
    content: document.documentElement.scrollWidth,
    paper: style.backgroundColor,
    ink: style.color,
    figure_ink: [...new Set(ink)],
    series: getComputedStyle(line).stroke,
    figures: [...document.querySelectorAll("figure svg")].map(box),
    drawn: [...document.querySelectorAll("figure svg")].map(svg => svg.querySelectorAll("path, use, text").length),
    intervals: [...document.querySelectorAll("svg.interval")].map(box),
    text_px: Math.min(...[...document.querySelectorAll("figure svg text")].map(text => box(text)[1])),
    wide_tables: [...document.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth).length,
  };
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(found);
  parent.document.body.append(out);
});
</script>
</head>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: apt-get install chromium")
    return found


def browse(chromium: str, page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    profile = page.parent / f"profile-{page.stem}"
    return subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
            "--virtual-time-budget=8000", "--enable-logging=stderr", "--v=0", *flags, "--dump-dom", page.as_uri(),
        ],
        check=True, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def probed(chromium: str, html: str, directory: Path, width: int, scheme: int) -> dict[str, Any]:
    """Return what a script finds in the page, which itself forbids scripts. `scheme`: 0 dark, 1 light.

    In a frame, since the browser's own window is never narrower than 500 pixels.
    """
    allowed = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", html)
    frame = escape(allowed.replace("</head>", PROBE, 1))
    page = directory / f"probed{width}.html"
    page.write_text(f'<!doctype html><iframe style="border:0;width:{width}px;height:844px" srcdoc="{frame}"></iframe>')
    flags = ("--window-size=1500,1000", f"--blink-settings=preferredColorScheme={scheme}")
    (found,) = re.findall('<pre id="probe">(.*?)</pre>', browse(chromium, page, *flags).stdout)
    return dict(json.loads(found))


def test_the_page_opens_without_an_error(chromium: str, html: str, tmp_path: Path) -> None:
    page, broken = tmp_path / "page.html", tmp_path / "broken.html"
    page.write_text(html)
    broken.write_text(html.replace("</main>", '<img src="https://example.org/x.png"><script>1</script></main>'))
    assert "CONSOLE" not in browse(chromium, page).stderr
    assert "Content Security Policy" in browse(chromium, broken).stderr  # an error would be seen


def test_light_and_dark_and_a_phone(chromium: str, html: str, tmp_path: Path) -> None:
    light = probed(chromium, html, tmp_path, width=390, scheme=1)
    dark = probed(chromium, html, tmp_path, width=1280, scheme=0)
    assert (light["width"], dark["width"]) == (390, 1280)
    assert (light["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(19, 22, 26)")
    for found in (light, dark):
        assert found["content"] <= found["width"]  # tables scroll in their boxes, the page does not
        assert found["ink"] in found["figure_ink"]
        assert len(found["figures"]) == 7
        assert all(width > 250 and height > 150 for width, height in found["figures"])
        assert all(count > 20 for count in found["drawn"])
        assert [width > 100 for width, _ in found["intervals"]] == [True] * 3
        assert found["text_px"] >= 9
    assert light["ink"] != dark["ink"]
    assert light["series"] != dark["series"]
    assert not set(light["figure_ink"]) & set(dark["figure_ink"])
    assert light["wide_tables"] > dark["wide_tables"] == 0
