"""The documentation site: every page is in the navigation, and every link between pages leads somewhere.

`mkdocs build --strict` builds it (.ci/run); what is tested here needs no mkdocs.
"""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
GENERATED: dict[str, str] = runpy.run_path(str(DOCS / "pages.py"))["pages"]()
PAGES = GENERATED | {str(file.relative_to(DOCS)): file.read_text(encoding="utf-8") for file in DOCS.rglob("*.md")}


def in_navigation(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    else:
        for entry in node.values() if isinstance(node, dict) else node:
            yield from in_navigation(entry)


def test_the_navigation_has_every_page_once_and_no_other() -> None:
    assert sorted(in_navigation(SITE["nav"])) == sorted(PAGES)


def test_every_folder_of_the_package_has_its_page_of_the_reference() -> None:
    folders = [file.parent.name for file in (ROOT / "ddp_agent").glob("*/__init__.py")]
    assert len(folders) >= 14
    for folder in folders:
        assert f"::: ddp_agent.{folder}\n" in GENERATED[f"api/{folder}.md"]
    assert "::: ddp_agent.sync.engine.flat\n" in GENERATED["api/sync.md"]


def links(text: str) -> list[str]:
    """Targets of a page's links and images, code left out."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_leads_somewhere(page: str) -> None:
    for target in links(PAGES[page]):
        file, _, anchor = target.partition("#")
        assert file in PAGES or (DOCS / file).is_file(), target
        headings = re.findall(r"^#+ +(.+)$", PAGES.get(file, ""), re.M)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_links_are_read_and_code_is_not() -> None:
    assert links("[a](b.md) ![c](d.png)\n```\n[e](f.md)\n```\n`[g](h)` [i](https://j)") == ["b.md", "d.png"]
