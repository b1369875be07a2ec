"""The tables in a terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table

from ddp_agent.report.sheets import Sheet


def table(sheet: Sheet) -> Table:
    """Names are shown as they are, whatever they look like."""
    drawn = Table(title=escape(sheet.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.title_style = "bold"
    for column in sheet.columns:
        drawn.add_column(escape(column.name), justify="right" if column.numeric else "left")
    for cells in sheet.rows:
        drawn.add_row(*map(escape, cells))
    return drawn
