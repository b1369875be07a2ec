"""Some test samples, with what they are and what the model takes them for."""

from collections.abc import Sequence

from torch import Tensor

from ddp_agent.outputs.images.canvas import ABOUT, GREEN, INK, LINE, MARGIN, RED, Canvas, width_of

NARROWEST_CELL = 88  # room for a name


def sheet(pictures: Tensor, labels: Sequence[str], guesses: Sequence[str]) -> Tensor:
    """uint8 `pictures` [samples, height, width, 3] in rows, under each its label and then the guess, green if right."""
    height, width = pictures.shape[1:3]
    cell = max(width, NARROWEST_CELL)
    columns = min(len(pictures), max(1, ABOUT // (cell + MARGIN)))
    step_x, step_y = cell + MARGIN, height + 2 * LINE + MARGIN
    rows = -(-len(pictures) // columns)
    canvas = Canvas(columns * step_x + MARGIN, rows * step_y + MARGIN)
    for place, (picture, label, guess) in enumerate(zip(pictures, labels, guesses, strict=True)):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * step_x, MARGIN + row * step_y
        canvas.paste(x + (cell - width) // 2, y, picture)
        for line, (text, colour) in enumerate(((label, INK), (guess, GREEN if guess == label else RED))):
            canvas.text(x + cell / 2, y + height + line * LINE, fitted(text, cell), colour=colour, anchor="ma")
    return canvas.pixels()


def fitted(text: str, width: int) -> str:
    """As much of it as `width` pixels hold."""
    if width_of(text) <= width:
        return text
    while text and width_of(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def lines(texts: Sequence[str], labels: Sequence[str], guesses: Sequence[str]) -> str:
    """The same for samples that are texts: a paragraph each."""
    return "\n\n".join(
        f"{text}\n  {label}" + ("" if guess == label else f", taken for {guess}")
        for text, label, guess in zip(texts, labels, guesses, strict=True)
    )
