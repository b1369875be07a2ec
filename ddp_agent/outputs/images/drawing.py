"""Text and tables of colours, on white."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

INK, GREEN, RED = (27, 31, 36), (26, 127, 75), (178, 34, 34)
PALE, BLUE = torch.tensor([243, 245, 248]), torch.tensor([31, 95, 191])
MARGIN = 8
LINE = 16  # height of a line of text
MAX_CELL, MIN_CELL, NUMBERED = 44, 3, 28  # widths of a table's cells; from NUMBERED on, a number fits in
WIDTH = 640  # approximate width of a table of many columns


class Canvas:
    """A white picture. Coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self._image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, text: str, *, colour: Any = INK, anchor: str = "la") -> None:
        """Write `text`. `anchor` says which point of it stands at (x, y), in Pillow's two letters."""
        self._draw.text((x, y), text, fill=colour, font=_font(), anchor=anchor)

    def upright(self, x: float, bottom: float, text: str) -> None:
        """Write `text` upwards, centred at x."""
        strip = Canvas(text_width(text) + 2, LINE)
        strip.text(0, LINE / 2, text, anchor="lm")
        self.paste(round(x - LINE / 2), round(bottom - text_width(text) - 2), strip.pixels().rot90())

    def paste(self, x: int, y: int, pixels: Tensor) -> None:
        """Copy `pixels`, uint8 [height, width, 3]."""
        from PIL import Image

        self._image.paste(Image.fromarray(pixels.cpu().numpy()), (x, y))

    def pixels(self) -> Tensor:
        """Return the picture, uint8 [height, width, 3]."""
        width, height = self._image.size
        return torch.frombuffer(bytearray(self._image.tobytes()), dtype=torch.uint8).view(height, width, 3)


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=12)


def text_width(text: str) -> int:
    """Return the width of `text` in pixels."""
    return math.ceil(float(_font().getlength(text)))


def table(
    title: str, shares: Tensor, rows: Sequence[str], columns: Sequence[str], *, shades: Tensor | None = None
) -> Tensor:
    """Draw `shares` [rows, columns] as cells, the bluer the larger, with per cent where a number fits in.

    `columns` are names, or empty for numbers. `shades` replaces the shares as what colours show.
    """
    names = list(columns) or [str(column) for column in range(shares.shape[1])]
    cell = max(MIN_CELL, min(MAX_CELL, WIDTH // len(names)))
    height = LINE + 8 if len(rows) <= 32 else min(LINE + 8, cell)
    numbered = cell >= NUMBERED and height >= LINE
    if not numbered:
        title = f"{title}; the bluest is {100 * float(shares.nan_to_num().max()):.0f}"
    left = MARGIN + max(map(text_width, rows)) + MARGIN
    top = MARGIN + LINE + MARGIN + max(map(text_width, names)) + 4
    width = max(left + cell * len(names), MARGIN + text_width(title)) + MARGIN
    canvas = Canvas(width, top + height * len(rows) + MARGIN)
    canvas.text(MARGIN, MARGIN, title)
    for column in range(0, len(names), -(-LINE // cell)):
        canvas.upright(left + cell * (column + 0.5), top - 4, names[column])
    for row in range(0, len(rows), -(-LINE // height)):
        canvas.text(left - MARGIN, top + height * (row + 0.5), rows[row], anchor="rm")
    depths = (shares if shades is None else shades).nan_to_num()
    depths = depths / depths.max().clamp(min=1e-9)
    canvas.paste(left, top, _cells(depths, height, cell))
    for row, column in (shares.mul(100).round() > 0).nonzero().tolist() if numbered else ():
        x, y = left + cell * (column + 0.5), top + height * (row + 0.5)
        colour = "white" if depths[row, column] > 0.6 else INK
        canvas.text(x, y, f"{100 * shares[row, column]:.0f}", colour=colour, anchor="mm")
    return canvas.pixels()


def _cells(depths: Tensor, height: int, width: int) -> Tensor:
    """Return the pixels of cells of this size, with a white line between large ones."""
    pixels = blend(depths).repeat_interleave(height, 0).repeat_interleave(width, 1)
    if width > 8:
        pixels[height - 1 :: height] = 255
        pixels[:, width - 1 :: width] = 255
    return pixels


def blend(depths: Tensor) -> Tensor:
    """Return colours, uint8 [..., 3], from almost white (0) to blue (1)."""
    return (PALE + depths.unsqueeze(-1) * (BLUE - PALE)).round().to(torch.uint8)
