"""Test samples with their labels and the model's guesses."""

from collections.abc import Sequence

from torch import Tensor

from ddp_agent.outputs.images.drawing import GREEN, INK, LINE, MARGIN, RED, WIDTH, Canvas, text_width

MIN_CELL = 88  # pixels; room for a name


def sheet(pictures: Tensor, labels: Sequence[str], guesses: Sequence[str]) -> Tensor:
    """Draw uint8 `pictures` [samples, height, width, 3] in rows.

    Below each stands its label, and then the guess: green if right, else red.
    """
    height, width = pictures.shape[1:3]
    cell = max(width, MIN_CELL)
    columns = min(len(pictures), max(1, WIDTH // (cell + MARGIN)))
    step_x, step_y = cell + MARGIN, height + 2 * LINE + MARGIN
    canvas = Canvas(columns * step_x + MARGIN, -(-len(pictures) // columns) * step_y + MARGIN)
    for index, (picture, label, guess) in enumerate(zip(pictures, labels, guesses, strict=True)):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * step_x, MARGIN + row * step_y
        canvas.paste(x + (cell - width) // 2, y, picture)
        for line, (text, colour) in enumerate(((label, INK), (guess, GREEN if guess == label else RED))):
            canvas.text(x + cell / 2, y + height + line * LINE, shortened(text, cell), colour=colour, anchor="ma")
    return canvas.pixels()


def shortened(text: str, width: int) -> str:
    """Return as much of `text` as fits into `width` pixels, with an ellipsis where it was cut."""
    if text_width(text) <= width:
        return text
    while text and text_width(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def text_list(texts: Sequence[str], labels: Sequence[str], guesses: Sequence[str]) -> str:
    """Return a paragraph per text, with its label and a wrong guess."""
    return "\n\n".join(
        f"{text}\n  {label}" + ("" if guess == label else f", taken for {guess}")
        for text, label, guess in zip(texts, labels, guesses, strict=True)
    )
