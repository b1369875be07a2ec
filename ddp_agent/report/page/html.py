"""HTML elements of the page. Every string that comes from a run must go through `text`: it may hold anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ddp_agent.config.untrusted import plain


def text(value: Any) -> str:
    """Return `value` escaped, in one line."""
    return escape(plain(value))


def section(title: str, content: str) -> str:
    """Return a section. `content` is HTML."""
    return f"<section>\n<h2>{text(title)}</h2>\n{content}</section>"


@dataclass(frozen=True)
class Cells:
    """A table column whose cells are HTML. `kind` is a class of the style sheet."""

    head: str
    cells: Sequence[str]
    kind: str = ""

    @property
    def attribute(self) -> str:
        """The class attribute of the cells."""
        return f' class="{self.kind}"' if self.kind else ""


def table(title: str, columns: Sequence[Cells]) -> str:
    """Return a table that scrolls in its own box, which the keyboard reaches. The first column stays in view."""
    heads = "".join(f'<th scope="col"{column.attribute}>{column.head}</th>' for column in columns)
    rows = "\n".join(_row(index, columns) for index in range(len(columns[0].cells)))
    return (
        f'<div class="scroll" role="region" aria-label="{text(title)}" tabindex="0">\n<table>\n'
        f"<caption>{text(title)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
    )


def _row(index: int, columns: Sequence[Cells]) -> str:
    first, *others = columns
    cells = "".join(f"<td{column.attribute}>{column.cells[index]}</td>" for column in others)
    return f'<tr><th scope="row">{first.cells[index]}</th>{cells}</tr>'
