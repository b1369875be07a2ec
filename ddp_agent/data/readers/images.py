"""Image files: one look at a decoded picture, which becomes the pixels that a model gets or is refused by name.

Pillow's own conversions clip 16-bit pictures to white, drop transparency to the colours hidden below it, and ignore the
orientation that cameras write. Two things are left out on purpose: colour profiles and gamma. Pixels keep the values in
the file, as they do in torchvision.
"""

from pathlib import Path
from typing import IO, Any

import numpy
import torch
from torch import Tensor

from ddp_agent.data.readers.files import opened
from ddp_agent.errors import DataError

MOST_PIXELS = 1 << 26  # 200 MB as RGB
MOST_BYTES = 1 << 30
# Pillow would recognise many more formats by their content, such as EPS, for which it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
BACKGROUND = 128  # Behind transparent pixels. On mid-grey, black drawings and white ones both stay visible.
EXPECTED = "expected PNG or JPEG (or PPM, BMP, TIFF, WebP) of 8 bits per channel, or grey of 16 bits"

_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339  # tags of TIFF, which EXIF shares
_WHITE_IS_ZERO, _UNSIGNED = 0, (1,)
_EIGHT_BIT_MODES = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "CMYK", "LA", "La", "PA", "RGBA", "RGBa")
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")


def read_picture(file: Path | IO[bytes], name: str) -> Any:
    """Return the PIL image in `file`, upright and without transparency: "RGB", or "F" in which 255 is white.

    The latter holds grey of 16 bits. Colours of 16 bits are read by their upper 8 bits. Raises DataError, which calls
    the file `name`, for content that Pillow cannot read or whose black and white are unknown, for several pictures in
    one file, and for more than `MOST_PIXELS` pixels: a file of a few kilobytes can claim gigabytes.
    """
    from PIL import Image

    if isinstance(file, Path):
        with opened(file, "a picture", MOST_BYTES) as opened_file:
            return read_picture(opened_file, name)
    try:
        with _opened(file) as image:
            if not image.width or not image.height:
                raise ValueError("no pixels")
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
            if image.format != "MPO" and getattr(image, "is_animated", False):  # in an MPO, previews follow the picture
                raise ValueError("several pictures or an animation; save the one that counts in a file of its own")
            image.load()
            return _upright(_sixteen_bits(image) if _is_deep(image) else _eight_bits(image), _orientation(image))
    except (*_RAISED_BY_PILLOW, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: found no readable image ({error}), {EXPECTED}") from error


def _opened(file: IO[bytes]) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("content of another kind") from None  # Pillow's text shows an address in memory


# Whatever a damaged file makes Pillow raise: its plugins are written as if files were whole.
_RAISED_BY_PILLOW = (
    OSError,
    ValueError,
    SyntaxError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
)


def read_rgb(file: Path | IO[bytes], name: str) -> Any:
    """Return the PIL image in `file` as `read_picture` does, in "RGB" always: grey of 16 bits is rounded to 8."""
    from PIL import Image

    picture = read_picture(file, name)
    if picture.mode == "F":
        picture = Image.fromarray(numpy.asarray(picture).round().astype("u1")).convert("RGB")
    return picture


def square(picture: Any, size: int) -> Tensor:
    """Return the middle square of a picture of `read_picture`, scaled to float32 [3, size, size] in 0..1.

    The square is cut out before it is scaled: resized by its shorter side, a picture of 1 x 100,000 pixels would become
    one of 224 x 22,400,000.
    """
    from PIL import Image

    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    scaled = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = torch.from_numpy(numpy.array(scaled, dtype="f4")).div_(255).clamp_(0, 1)
    return pixels.expand(3, size, size) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def normalise(pixels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Return bytes as floats of mean 0 and variance 1; `mean` and `std` are of pixels scaled to 0..1."""
    return pixels.to(torch.float32).div_(255 * std).sub_(mean / std)


def _is_deep(image: Any) -> bool:
    """Return True for grey of up to 16 bits. Raise ValueError for samples whose black and white are unknown."""
    tags = getattr(image, "tag_v2", {})
    if set(tags.get(_SAMPLE_FORMAT, _UNSIGNED)) != set(_UNSIGNED):
        raise ValueError("signed or floating-point samples, of which nobody knows the white")
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        raise ValueError("CMYK without Adobe's marker, so that ink and paper could be exchanged; save it as RGB")
    # PNG and PPM have no more than 16 bits. Pillow reads them as 32-bit integers, depending on its version.
    if image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return True
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"colours of the kind {image.mode}, which have no agreed way to RGB; save it as RGB")
    return False


def _sixteen_bits(image: Any) -> Any:
    """Return grey of more than 8 bits as floats in which 255 is white. Pillow's own conversion clips at 255."""
    from PIL import Image

    tags = getattr(image, "tag_v2", {})
    most = (1 << tags.get(_BITS, (16,))[0]) - 1  # TIFF has 12 bits, too
    stored = numpy.asarray(image)
    grey = stored.astype("f4") * (255 / most)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[stored == key] = BACKGROUND
    return Image.fromarray(grey)


def _eight_bits(image: Any) -> Any:
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    behind = Image.new("RGBA", image.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def _orientation(image: Any) -> Any:
    """Return the orientation that the file asks for, from 1 to 8. Damaged EXIF asks for none, as in every viewer."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow parses EXIF and XMP without checks, and a picture does not depend on them
        return 1


def _upright(picture: Any, orientation: Any) -> Any:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)
