"""Language modelling of a text, character by character."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddp_agent.config.fields import NonNegativeInt, PositiveInt
from ddp_agent.config.memory import machine_bytes
from ddp_agent.data.readers.archive import stays_inside
from ddp_agent.data.readers.download import Published, located
from ddp_agent.data.readers.files import read_text
from ddp_agent.data.readers.folders import contents
from ddp_agent.data.source import Source, check_dataset
from ddp_agent.data.task import Data, DataRoot, Objective, Presentation, Task, fingerprint
from ddp_agent.errors import DataError

TESTED = 10  # the last tenth of the characters
NOT_SCORED = -100
TOKEN_BYTES = 20  # of memory per character, while a text becomes numbers
SEED = 0  # of the sample text
SHAKESPEARE = Published(
    "input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
    "/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


@dataclass(kw_only=True)
class CharLM:
    """Any text by its characters (input.txt: tiny Shakespeare); the first 90 % are trained on, the rest is tested."""

    data_root: DataRoot
    file: str
    download: bool
    """Download input.txt, which is tiny Shakespeare, unless it is there."""
    context: PositiveInt
    """Characters per sample."""
    sample: NonNegativeInt
    """Characters of the text that the trained model writes."""

    source: ClassVar = Source(
        content="a text of yours (dataset.file), or tiny Shakespeare",
        size="1.1 MB",
        licence="public domain",
        url=SHAKESPEARE.url,
        layout="input.txt or tinyshakespeare/input.txt below data_root",
    )

    def __post_init__(self) -> None:
        check_dataset(self)

    def load(self) -> Task:
        """Return the task. Raises DataError for a file that is missing, no text, or too short for the context."""
        path = self._path()
        text = _read(path)
        alphabet = "".join(sorted(set(text)))
        number = {character: index for index, character in enumerate(alphabet)}
        tokens = torch.tensor([number[character] for character in text])
        first = len(tokens) - -(-len(tokens) // TESTED)
        if first <= self.context:
            raise DataError(
                f"{path}: found {len(tokens)} characters, of which the first {first} are to train on; expected these "
                f"to be more than dataset.context={self.context}"
            )
        test, scored = scored_windows(tokens, first, self.context)
        return Task(
            data=Data.resident(
                windows(tokens[:first], self.context), test, sha256=fingerprint(tokens, also=f"{self.context}")
            ),
            objective=Objective(
                outputs=len(alphabet),
                loss=cross_entropy,
                metric=functools.partial(nats, scored=scored),
                metric_name="nats",
                higher_is_better=False,
            ),
            presentation=Presentation(
                sample=functools.partial(write, alphabet=alphabet, context=self.context, length=self.sample)
            ),
            model_arguments={"vocabulary": len(alphabet)},
        )

    def _path(self) -> Path:
        if self.file == SHAKESPEARE.name:
            return (
                located(
                    self.data_root,
                    "tinyshakespeare",
                    [SHAKESPEARE],
                    download=self.download,
                    missing=self.source.missing,
                )
                / self.file
            )
        if not stays_inside(self.file):
            raise DataError(f"dataset.file: found {self.file!r}, expected a path below data_root")
        path = self.data_root / self.file
        if not path.exists():
            raise DataError(
                f"{path}: found no such file, expected a text; dataset.file names it, below data_root "
                f"({contents(self.data_root)})"
            )
        return path


def _read(path: Path) -> str:
    text = read_text(path, "a text in UTF-8", machine_bytes() // TOKEN_BYTES)  # line ends are kept
    if not text:
        raise DataError(f"{path}: found an empty file, expected a text")
    if len(set(text)) < 2:
        raise DataError(f"{path}: found nothing but {text[0]!r}, expected a text of two or more different characters")
    return text


def windows(tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Return consecutive pieces [pieces, context] and, for each token, the token that follows. Both are views."""
    return tokens[:-1].unfold(0, context, context), tokens[1:].unfold(0, context, context)


def scored_windows(tokens: Tensor, first: int, context: int) -> tuple[tuple[Tensor, Tensor], float]:
    """Return windows (inputs, targets) [windows, context] and the mean number of scored targets per window.

    Every token from `first` on is scored exactly once, with at least half a context before it: windows overlap by half,
    since predictions at the beginning of a window say little about a model. Targets that are not scored are
    `NOT_SCORED`.
    """
    step = max(1, context // 2)
    starts = torch.arange(first, len(tokens), step)
    ends = (starts + step).clamp(max=len(tokens))
    positions = ends.unsqueeze(1) + torch.arange(-context, 0)
    targets = tokens[positions].masked_fill_(positions < starts.unsqueeze(1), NOT_SCORED)
    return (tokens[positions - 1], targets), (len(tokens) - first) / len(starts)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross entropy over the scored characters, in nats. Output is [n, context, vocabulary]."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=NOT_SCORED)


def nats(output: Tensor, target: Tensor, *, scored: float) -> Tensor:
    """Return one float per window, whose mean over windows is the mean over scored characters.

    `scored` is the mean number of scored characters per window.
    """
    loss = F.cross_entropy(output.transpose(1, 2), target, ignore_index=NOT_SCORED, reduction="none")
    return loss.sum(1) / scored


@torch.no_grad()
def write(model: nn.Module, *, alphabet: str, context: int, length: int) -> str:
    """Return a text of `length` characters that the model writes after a line end. Equal weights write equal texts."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    tokens = [max(0, alphabet.find("\n"))]
    for _ in range(length):
        output = model(torch.tensor([tokens[-context:]], device=device))[0, -1]
        tokens.append(int(torch.multinomial(output.float().softmax(0).cpu(), 1, generator=generator)))
    return "".join(alphabet[token] for token in tokens[1:])
