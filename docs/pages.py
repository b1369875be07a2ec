"""Pages of the site that are not files below docs/: the documents of other folders, and the API reference.

mkdocs calls `on_files` (see mkdocs.yml). The API reference is made of the docstrings in the source; no module of the
package is imported for it.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ddp_agent"
DOCUMENTS = {
    "index.md": "README.md",
    "launch.md": "launch/README.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add one page per document and one per folder of the package."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def pages() -> dict[str, str]:
    """Return the Markdown of each page by its path in the site."""
    rooms = sorted(file.parent for file in PACKAGE.glob("*/__init__.py"))
    return {
        **{name: _relinked((ROOT / path).read_text(encoding="utf-8")) for name, path in DOCUMENTS.items()},
        "api/ddp_agent.md": _reference("ddp_agent", PACKAGE.glob("*.py")),
        **{f"api/{room.name}.md": _reference(room.name, room.rglob("*.py")) for room in rooms},
    }


def _relinked(text: str) -> str:
    """Return a document of another folder with its links as they are in the site."""
    for name, path in DOCUMENTS.items():
        text = re.sub(rf"\]\((\.\./)?{path}\b", f"]({name}", text)
    return re.sub(r"\]\((\.\./)?docs/", "](", text)


def _reference(title: str, files: Iterable[Path]) -> str:
    parts = sorted(file.relative_to(ROOT).with_suffix("").parts for file in files if file.stem != "__main__")
    return "\n\n".join([f"# {title}", *map(_module, parts)]) + "\n"


def _module(parts: tuple[str, ...]) -> str:
    """Return what makes mkdocstrings describe a module; of a package only its docstring, since it defines nothing."""
    if parts[-1] != "__init__":
        return f"::: {'.'.join(parts)}"
    return f"::: {'.'.join(parts[:-1])}\n    options: {{members: false}}"
