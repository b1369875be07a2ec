"""The pieces that the page is made of. Whatever comes from a run goes through `text`: it may hold anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ddp_agent.report.files import plain


def text(value: Any) -> str:
    return escape(plain(value))


def section(title: str, content: str) -> str:
    return f"<section>\n<h2>{text(title)}</h2>\n{content}</section>"


@dataclass(frozen=True)
class Cells:
    """A column as HTML."""

    head: str
    cells: Sequence[str]
    kind: str = ""

    @property
    def attribute(self) -> str:
        return f' class="{self.kind}"' if self.kind else ""


def table(title: str, columns: Sequence[Cells]) -> str:
    """It scrolls in its box, which the keyboard reaches; the first column stays in view."""
    heads = "".join(f'<th scope="col"{column.attribute}>{column.head}</th>' for column in columns)
    rows = "\n".join(_row(place, columns) for place in range(len(columns[0].cells)))
    return (
        f'<div class="scroll" role="region" aria-label="{text(title)}" tabindex="0">\n<table>\n'
        f"<caption>{text(title)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
    )


def _row(place: int, columns: Sequence[Cells]) -> str:
    first, *others = columns
    cells = "".join(f"<td{column.attribute}>{column.cells[place]}</td>" for column in others)
    return f'<tr><th scope="row">{first.cells[place]}</th>{cells}</tr>'
