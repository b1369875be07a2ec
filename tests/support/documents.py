"""The documents that promise something: their commands, and the rows of their tables and lists."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "SECURITY.md", "docs/reliability.md", "docs/elastic.md", "launch/README.md")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def commands(document: str) -> list[str]:
    """Return each command of the shell blocks, without its comment."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text_of(document), re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [command for line in lines if (command := re.sub(r"\s+#\s.*$", "", f" {line}").strip())]


def rows(document: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each row of each table: the head of its first column, and its cells."""
    head = None
    for line in text_of(document).splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if head is None:
            head = cells[0]
        elif not set(line) <= set("|-: "):
            yield head, cells


def points(document: str, heading: str = "") -> list[str]:
    """Return the words in bold with which points and paragraphs begin, below `heading` or in the whole document."""
    text = text_of(document)
    if heading:
        (text,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    return re.findall(r"^(?:- )?\*\*(.+?)\*\*", text, re.M | re.S)
