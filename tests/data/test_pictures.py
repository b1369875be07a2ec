"""One look at a decoded picture: depth, transparency, orientation and colours, each read on purpose or refused."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from ddp_agent.data.readers.images import BACKGROUND, MOST_PIXELS, read_picture, read_rgb, square
from ddp_agent.errors import DataError


def saved(image: Any, kind: str, **more: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **more)
    file.seek(0)
    return file


def pixels(image: Any, kind: str, **more: Any) -> list[Any]:
    """The rows of what is read from `image` saved in the format `kind`; grey of 16 bits as single numbers."""
    rows: list[Any] = numpy.asarray(read_picture(saved(image, kind, **more), "x")).tolist()
    return rows


def refusal(file: Any) -> str:
    with pytest.raises(DataError, match=r"^x\.png: found no readable image \(.*\), expected PNG or JPEG") as caught:
        read_picture(file, "x.png")
    assert "0x" not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# Depth

DEEP = numpy.array([[0, 257, 65535], [256, 300, 32896]], "u2")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_sixteen_bits_keeps_its_depth(kind: str) -> None:
    found = pixels(Image.fromarray(DEEP), kind)
    assert numpy.allclose(found, DEEP / 65535 * 255, atol=1e-4)
    assert found[1][0] != found[0][1]  # 256 and 257: in 8 bits they would be one


def test_big_endian_tiff_is_the_same_picture() -> None:
    head = b"MM\0*\0\0\0\x08\0\x09"
    entries = [(256, 3, 3), (257, 3, 2), (258, 3, 16), (259, 3, 1), (262, 3, 1), (277, 3, 1), (278, 3, 2)]
    tags = b"".join(struct.pack(">HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries)
    offset = len(head) + 9 * 12 + 4
    tags += struct.pack(">HHII", 273, 4, 1, offset) + struct.pack(">HHII", 279, 4, 1, 12)
    tags = b"".join(sorted(tags[start : start + 12] for start in range(0, len(tags), 12)))
    found = read_picture(io.BytesIO(head + tags + bytes(4) + DEEP.astype(">u2").tobytes()), "x")
    assert numpy.allclose(numpy.asarray(found), DEEP / 65535 * 255, atol=1e-4)


def test_a_tiff_whose_zero_is_white_is_not_a_negative() -> None:
    found = pixels(Image.fromarray(DEEP), "TIFF", tiffinfo={262: 0})
    assert numpy.allclose(found, 255 - DEEP / 65535 * 255, atol=1e-4)


def test_colours_of_sixteen_bits_are_read_by_their_upper_eight() -> None:
    row = numpy.array([[[0x0102, 0x8001, 0xFFFF]]], ">u2")
    assert numpy.asarray(read_picture(io.BytesIO(b"P6 1 1 65535\n" + row.tobytes()), "x")).tolist() == [[[1, 128, 255]]]


@pytest.mark.parametrize("grey", [[[0.0, 1.0]], [[0, 1 << 20]]])
def test_samples_whose_white_is_unknown_are_refused(grey: list[Any]) -> None:
    kind = "f4" if isinstance(grey[0][0], float) else "i4"
    assert "of which nobody knows the white" in refusal(saved(Image.fromarray(numpy.array(grey, kind)), "TIFF"))


def test_shades_of_sixteen_bits_reach_the_model() -> None:
    """The case of the field: as Pillow converts it, every pixel above 255 of 65,535 is white."""
    dark, light = (Image.fromarray(numpy.full((9, 7), level, "u2")) for level in (300, 60_000))
    found = [square(read_picture(saved(image, "PNG"), "x"), 4) for image in (dark, light)]
    for level, tensor in zip((300, 60_000), found, strict=True):
        torch.testing.assert_close(tensor, torch.full((3, 4, 4), level / 65535), atol=1e-6, rtol=0)
    assert numpy.asarray(read_rgb(saved(light, "PNG"), "x"))[0, 0].tolist() == [233, 233, 233]


# Transparency


def with_alpha(mode: str, colour: tuple[int, ...]) -> Any:
    image = Image.new(mode, (2, 1), (*colour, 0))
    image.putpixel((1, 0), (*colour, 255))
    return image


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (200, 10, 30)])
def test_colours_below_transparency_do_not_show(kind: str, hidden: tuple[int, ...]) -> None:
    more = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert pixels(with_alpha("RGBA", hidden), kind, **more) == [[[BACKGROUND] * 3, list(hidden)]]


def test_every_way_to_be_transparent_is_seen() -> None:
    assert pixels(with_alpha("LA", (9,)), "PNG") == [[[BACKGROUND] * 3, [9] * 3]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    assert pixels(palette, "PNG") == [[[1, 2, 3], [4, 5, 6]]]
    assert pixels(palette, "PNG", transparency=0) == [[[BACKGROUND] * 3, [4, 5, 6]]]
    assert pixels(palette, "PNG", transparency=bytes([255, 0])) == [[[1, 2, 3], [BACKGROUND] * 3]]
    keyed = Image.new("RGB", (2, 1), (7, 8, 9))
    keyed.putpixel((1, 0), (7, 8, 10))
    assert pixels(keyed, "PNG", transparency=(7, 8, 9)) == [[[BACKGROUND] * 3, [7, 8, 10]]]
    deep = pixels(Image.fromarray(DEEP), "PNG", transparency=257)
    assert deep[0][1] == BACKGROUND and deep[0][2] == 255


# Orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    upright = Image.new("L", (32, 16))
    upright.paste(255, (0, 0, 16, 8))  # a mark in the upper left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the inverse, in Pillow's numbers
    stored = upright if turned is None else upright.transpose(Image.Transpose(turned))
    found = read_picture(saved(stored.convert("RGB"), kind, exif=exif), "x")
    assert found.size == (32, 16)
    assert (numpy.abs(numpy.asarray(found.convert("L"), "i4") - numpy.asarray(upright, "i4")) < 60).all()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1" * 40]
)
def test_damaged_exif_turns_nothing(exif: bytes) -> None:
    assert read_picture(saved(Image.new("RGB", (3, 2)), "JPEG", exif=exif), "x").size == (3, 2)


# Colours


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_paper_is_white_in_cmyk(kind: str) -> None:
    assert pixels(Image.new("CMYK", (1, 1), (0, 0, 0, 0)), kind) == [[[255, 255, 255]]]
    assert pixels(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), kind) == [[[0, 0, 0]]]


def test_cmyk_without_adobes_marker_could_be_a_negative() -> None:
    data = saved(Image.new("CMYK", (8, 8)), "JPEG").getvalue()
    start = data.index(b"\xff\xee")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    assert "CMYK without Adobe's marker" in refusal(io.BytesIO(data[:start] + data[start + 2 + length :]))


def test_black_and_white_palettes_and_other_colours() -> None:
    assert pixels(Image.new("1", (1, 1), 1), "PNG") == pixels(Image.new("1", (1, 1), 1), "TIFF") == [[[255] * 3]]
    assert pixels(Image.new("L", (1, 1), 77), "PNG") == [[[77] * 3]]
    assert pixels(Image.new("YCbCr", (1, 1), (77, 128, 128)), "TIFF") == [[[77] * 3]]
    assert "colours of the kind LAB" in refusal(saved(Image.new("LAB", (2, 2)), "TIFF"))


# Files


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_one_file_is_one_picture(kind: str) -> None:
    frames = [Image.new("RGB", (2, 2), (90 * shade, 0, 0)) for shade in range(3)]
    assert "several pictures or an animation" in refusal(
        saved(frames[0], kind, save_all=True, append_images=frames[1:])
    )
    assert pixels(frames[0], kind) == [[[0, 0, 0]] * 2] * 2  # control


def test_previews_behind_a_photo_are_ignored() -> None:
    photo, preview = Image.new("RGB", (8, 8), (250, 250, 250)), Image.new("RGB", (4, 4))
    assert numpy.asarray(read_picture(saved(photo, "MPO", save_all=True, append_images=[preview]), "x")).min() > 240


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "x.jpg", "PNG")
    assert numpy.asarray(read_picture(tmp_path / "x.jpg", "x.jpg"))[0, 0].tolist() == [1, 2, 3]
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"  # Pillow would start Ghostscript
    for other in (eps, b"", b"II*\0", b"P5 0 5 255\n", b"<svg/>", b"\x89PNG\r\n\x1a\n"):
        refusal(io.BytesIO(other))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP"])
def test_a_picture_that_is_cut_off_is_refused(kind: str) -> None:
    noise = numpy.random.default_rng(0).integers(0, 255, (40, 40, 3), "u1")
    data = saved(Image.fromarray(noise), kind).getvalue()
    refusal(io.BytesIO(data[: len(data) // 2]))


# Sizes


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (1, 1), (3, 5), (640, 480)])
def test_what_is_scaled_is_never_larger_than_what_the_model_gets(size: tuple[int, int]) -> None:
    picture: Any = Image.new("RGB", size, (10, 200, 60))
    asked: list[Any] = []
    resize = picture.resize

    def watched(new: tuple[int, int], *more: Any, **named: Any) -> Any:
        asked.append(new)
        return resize(new, *more, **named)

    picture.resize = watched
    found = square(picture, 32)
    assert asked == [(32, 32)] and found.shape == (3, 32, 32) and found.is_contiguous()
    torch.testing.assert_close(found[:, 5, 5], torch.tensor([10, 200, 60]) / 255)


def test_the_square_is_the_middle() -> None:
    picture = Image.new("RGB", (30, 10))
    picture.paste((255, 255, 255), (10, 0, 20, 10))
    assert square(picture, 5)[:, :, 1:-1].min() == 1 > square(picture, 5).min() > 0.8  # smoothed at the edge
    assert torch.equal(square(picture.transpose(Image.Transpose.ROTATE_90), 5), square(picture, 5).transpose(1, 2))
    assert Image.MAX_IMAGE_PIXELS is not None and MOST_PIXELS < Image.MAX_IMAGE_PIXELS  # else Pillow warns first
