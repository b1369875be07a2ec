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
    """Return a table. On a narrow screen each row folds into a card, in which every cell has its column's name.

    On a screen in between, the table scrolls in its own box, which the keyboard reaches, and a line says so. The roles
    are those that a browser takes from elements which the style sheet displays as blocks.
    """
    heads = "".join(f'<th scope="col" role="columnheader"{column.attribute}>{column.head}</th>' for column in columns)
    rows = "\n".join(_row(index, columns) for index in range(len(columns[0].cells)))
    wide = '<p class="hint" aria-hidden="true">The table is wider than the screen: it scrolls sideways. →</p>\n'
    hint = wide if len(columns) > 2 else ""
    return (
        f'{hint}<div class="scroll" role="region" aria-label="{text(title)}" tabindex="0">\n'
        f'<table role="table">\n<caption>{text(title)}</caption>\n'
        f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{rows}\n</tbody>\n</table>\n</div>\n'
    )


def _row(index: int, columns: Sequence[Cells]) -> str:
    first, *others = columns
    cells = "".join(
        f'<td role="cell"{column.attribute} data-label="{column.head}">{column.cells[index]}</td>' for column in others
    )
    return f'<tr role="row"><th scope="row" role="rowheader">{first.cells[index]}</th>{cells}</tr>'
