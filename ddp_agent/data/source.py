"""The origin of a dataset's files, which every message about missing ones tells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ddp_agent.config.fields import check_fields
from ddp_agent.data.readers.folders import contents
from ddp_agent.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Source:
    """The origin of a dataset's files: what they are, and how to get them."""

    content: str
    size: str
    licence: str
    url: str
    layout: str
    """The place of the files below `data_root`."""
    downloads: bool = True
    """Whether `dataset.download=true` gets them."""

    def __str__(self) -> str:
        get = "Set dataset.download=true, or take" if self.downloads else "Take"
        facts = f"The data are {self.content}: {self.size}, {self.licence}"
        return f"{facts}. {get} {self.url} and lay it out as {self.layout}"

    def missing(self, data_root: Path, wanted: str) -> DataError:
        """Return the error for a folder that lacks the `wanted` files, with what is there and where to get them."""
        return DataError(f"{data_root}: found no {wanted} ({contents(data_root)}). {self}")


class HasSource(Protocol):
    """A dataset that reads files."""

    data_root: Any

    @property
    def source(self) -> Source: ...


def check_dataset(dataset: HasSource) -> None:
    """Raise ValueError for fields that do not fit, with the source of the files if no folder is given."""
    try:
        check_fields(dataset)
    except ValueError as error:
        if dataset.data_root is None:
            raise ValueError(f"{error}. {dataset.source}") from error
        raise
