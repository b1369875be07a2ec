"""The page and its figures: whole, safe to open, and drawn by a real browser in light, dark and on a phone."""

import json
import re
import shutil
import subprocess
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_cases import cells, make_run, result_of
from report_sweep import HOSTILE, sweep

from ddp_agent.report.__main__ import contents


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
    verdicts: [...document.querySelectorAll(".verdict")].map(pill => pill.getBoundingClientRect().right),
    named_cells: [...document.querySelectorAll("td")].map(cell => getComputedStyle(cell, "::before").content),
    hints: [...document.querySelectorAll(".hint")].filter(hint => box(hint)[1] > 0).length,
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
    assert (light["wide_tables"], dark["wide_tables"]) == (0, 0)
    assert all(right <= 390 for right in light["verdicts"]) and len(light["verdicts"]) == 4, "rows are folded"
    assert '"MB sent"' in light["named_cells"] and set(dark["named_cells"]) == {"none"}
    assert (light["hints"], dark["hints"]) == (0, 0)


def test_between_phone_and_desk_a_table_scrolls_and_says_so(chromium: str, html: str, tmp_path: Path) -> None:
    found = probed(chromium, html, tmp_path, width=760, scheme=1)
    assert found["content"] <= 760
    assert found["hints"] >= found["wide_tables"] > 0
