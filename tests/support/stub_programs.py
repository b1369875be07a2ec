"""Programs that stand in for real ones."""

from pathlib import Path


def program(folder: Path, name: str, text: str) -> Path:
    """Write an executable and return its path."""
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder / name
