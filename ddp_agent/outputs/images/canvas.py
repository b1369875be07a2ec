"""Text and tables of colours, on white."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

INK, PALE, BLUE = (27, 31, 36), (223, 227, 232), (31, 95, 191)
GREEN, RED = (26, 127, 75), (178, 34, 34)
MARGIN = 8
LINE = 16  # height of a line of text
WIDEST, NARROWEST, ROOM = 44, 3, 28  # cells of a table; from ROOM on, a number fits in
ABOUT = 640  # how wide a table of many columns should become


class Canvas:
    """Coordinates are pixels from the left upper corner."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, *, colour: Any = INK, anchor: str = "la") -> None:
        """`anchor` says which point of the text stands at (x, y), in Pillow's two letters."""
        self._draw.text((x, y), text, fill=colour, font=_font(), anchor=anchor)

    def upright(self, x: float, bottom: float, text: str) -> None:
        """Reads upwards, centred at x."""
        from PIL import Image, ImageDraw

        strip = Image.new("RGB", (width_of(text) + 2, LINE), "white")
        ImageDraw.Draw(strip).text((0, LINE / 2), text, fill=INK, font=_font(), anchor="lm")
        turned = strip.rotate(90, expand=True)
        self.image.paste(turned, (round(x - turned.width / 2), round(bottom - turned.height)))

    def box(self, x: float, y: float, width: float, height: float, colour: Any) -> None:
        self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)

    def paste(self, x: int, y: int, pixels: Tensor) -> None:
        """uint8 [height, width, 3]."""
        from PIL import Image

        self.image.paste(Image.fromarray(pixels.cpu().numpy()), (x, y))

    def pixels(self) -> Tensor:
        width, height = self.image.size
        return torch.frombuffer(bytearray(self.image.tobytes()), dtype=torch.uint8).view(height, width, 3)


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=12)


def width_of(text: str) -> int:
    return math.ceil(float(_font().getlength(text)))


def table(
    title: str,
    shares: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    shade: Callable[[float], float] = lambda share: share,
) -> Tensor:
    """A cell for each number of `shares` [rows, columns], the bluer the larger, with the number in per cent where there
    is room for it. `columns` may be empty: a column then goes by its number. `shade` says how blue a share of the
    largest is, both from 0 to 1."""
    largest = max(float(shares.nan_to_num().max()), 1e-9)
    names = list(columns) or [str(column) for column in range(shares.shape[1])]
    cell = max(NARROWEST, min(WIDEST, ABOUT // len(names)))
    every, gap = -(-LINE // cell), int(cell > 8)  # which column's name is written
    title = title if cell >= ROOM else f"{title}; the bluest is {100 * largest:.0f}"
    left = MARGIN + max(map(width_of, rows)) + MARGIN
    top = MARGIN + LINE + MARGIN + max(map(width_of, names)) + 4
    height = LINE + 8 if len(rows) <= 32 else max(cell, NARROWEST)
    width = max(left + cell * len(names), MARGIN + width_of(title)) + MARGIN
    canvas = Canvas(width, top + height * len(rows) + MARGIN)
    canvas.text(MARGIN, MARGIN, title)
    for column in range(0, len(names), every):
        canvas.upright(left + cell * (column + 0.5), top - 4, names[column])
    for row, (name, values) in enumerate(zip(rows, shares.tolist(), strict=True)):
        y = top + row * height
        if height >= LINE or row % -(-LINE // height) == 0:
            canvas.text(left - MARGIN, y + height / 2, name, anchor="rm")
        for column, share in enumerate(values):
            x, depth = left + column * cell, shade(share / largest)
            canvas.box(x, y, cell - gap, height - min(gap, height - 1), blend(depth))
            if cell >= ROOM and height >= LINE and round(100 * share):
                colour = "white" if depth > 0.6 else INK
                canvas.text(x + cell / 2, y + height / 2, f"{100 * share:.0f}", colour=colour, anchor="mm")
    return canvas.pixels()


def blend(share: float) -> tuple[int, int, int]:
    """From almost white to blue."""
    share = min(1.0, max(0.0, share)) if share == share else 0.0
    pale = (243, 245, 248)
    red, green, blue = (round(p + share * (b - p)) for p, b in zip(pale, BLUE, strict=True))
    return red, green, blue
