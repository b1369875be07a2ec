"""report/index.html: one file that needs no network, no script and no other file."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.resources import files

from ddp_agent.report.comparison.result import Line, Result
from ddp_agent.report.comparison.sentences import answer, notes
from ddp_agent.report.figures.charts import Chart, parts_in
from ddp_agent.report.figures.palette import DARK, PARTS
from ddp_agent.report.figures.render import inline_svgs
from ddp_agent.report.formatting import counted
from ddp_agent.report.page.appendix import computed_section, differences_section, environment_section, failed_section
from ddp_agent.report.page.html import Cells, section, table, text
from ddp_agent.report.page.inline_svg import difference, difference_scale, swatch
from ddp_agent.report.runs.facts import NOT_RECORDED, shared
from ddp_agent.report.tables import Table, tables

_FORBID_ALL = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(result: Result, charts: Sequence[Chart], names: Iterable[str]) -> str:
    """Return the page's HTML. `names` are those of the files beside it."""
    title = _title(result)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="ddp_agent.report">
<meta http-equiv="Content-Security-Policy" content="{_FORBID_ALL}">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>
{style()}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
<p class="facts">{_facts(result)}</p>
</header>
<main>
{_answer(result)}
{_tables(result)}
{"".join(_chart(chart, result) for chart in charts)}
{differences_section(result)}
{environment_section(result)}
{failed_section(result)}
{computed_section(result)}
</main>
<footer>
<p>Beside this page: {", ".join(f'<a href="{text(name)}">{text(name)}</a>' for name in sorted(names))}.
Made by <code>python -m ddp_agent.report</code>.</p>
</footer>
</body>
</html>
"""


def style() -> str:
    """Return the style sheet with the figures' colours, for light and dark screens."""
    light = "".join(f"  --c-{colour[1:]}: {colour};\n" for colour in DARK)
    dark = "".join(f"  --c-{colour[1:]}: {other};\n" for colour, other in DARK.items())
    sheet = files("ddp_agent.report.page").joinpath("page.css").read_text(encoding="utf-8")
    return f":root {{\n{light}}}\n@media screen and (prefers-color-scheme: dark) {{\n:root {{\n{dark}}}\n}}\n{sheet}"


def _title(result: Result) -> str:
    facts = shared(result.runs)
    known = [facts[key] for key in ("model", "dataset") if facts.get(key, NOT_RECORDED) != NOT_RECORDED]
    return f"Which way to synchronise {' on '.join(known)}?" if known else "Which way to synchronise?"


def _facts(result: Result) -> str:
    nouns = {"params": "parameter", "world_size": "rank", "nodes": "node", "samples": "sample", "steps": "step"}
    facts = shared(result.runs)
    counts = [counted(int(facts[key]), noun) for key, noun in nouns.items() if facts.get(key, "").isdecimal()]
    seeds = sorted({run.seed for run in result.runs})
    seed_text = f"seeds {', '.join(map(str, seeds))}"
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        seed_text = f"seeds {seeds[0]}–{seeds[-1]}"
    return text(" · ".join([*counts, seed_text if len(seeds) > 1 else f"seed {seeds[0]}"]))


def _answer(result: Result) -> str:
    paragraphs = "\n".join(f"<p>{text(paragraph)}</p>" for paragraph in answer(result))
    return f'<section class="answer" aria-labelledby="answer">\n<h2 id="answer">Answer</h2>\n{paragraphs}\n</section>'


def _tables(result: Result) -> str:
    quality, *others = tables(result)
    items = "".join(f"<li>{text(note)}</li>\n" for note in notes(result))
    below = f'<ul class="notes">\n{items}</ul>\n' if items else ""
    sections = [section(quality.title, table(quality.title, _quality_columns(result, quality)) + below)]
    sections += [section(other.title, table(other.title, _columns(other))) for other in others]
    return "\n".join(sections)


def _columns(source: Table) -> list[Cells]:
    first, *others = (
        Cells(text(column.name), list(map(text, column.cells)), "number" if column.numeric else "")
        for column in source.columns
    )
    labels = [
        f'<span class="mode">{swatch(index)}<span>{cell.replace("_", "_<wbr>")}</span></span>'
        for index, cell in enumerate(first.cells)
    ]
    return [replace(first, cells=labels), *others]


def _quality_columns(result: Result, quality: Table) -> list[Cells]:
    """Add the intervals, drawn to a common scale, before the verdicts that follow from them."""
    *columns, verdicts = _columns(quality)
    pills = [_pill(line) for line in result.lines]
    if scale := difference_scale(result):
        drawn = [difference(line, scale, higher_is_better=result.higher_is_better) for line in result.lines]
        columns.append(Cells("← worse · better →", drawn))
    return [*columns, replace(verdicts, cells=pills, kind="judged")]


def _pill(line: Line) -> str:
    kind = f" {line.verdict}" if line.verdict in ("better", "worse") else ""
    return f'<span class="verdict{kind}">{text(line.verdict_with_reason)}</span>'


def _chart(chart: Chart, result: Result) -> str:
    if chart.name == "time_split":
        entries = [f'<i style="background:var(--c-{PARTS[part][1:]})"></i>{text(part)}' for part in parts_in(result)]
    else:
        lines = enumerate(result.lines)
        entries = [f"{swatch(index)}{text(line.label)}" for index, line in lines if chart.shows(line)]
    legend = "".join(f"<li>{entry}</li>" for entry in entries)
    panels = "\n".join(inline_svgs(chart))
    return section(
        chart.title,
        f'<ul class="legend">{legend}</ul>\n<figure>\n<div class="panels">\n{panels}\n</div>\n'
        f"<figcaption>{text(chart.caption)}</figcaption>\n</figure>\n",
    )
