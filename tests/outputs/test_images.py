"""Pictures of a model's inputs, of its predictions and of tables."""

import pytest
import torch
from torch import Tensor

from ddp_agent.outputs.images.drawing import GREEN, RED, blend, table, text_width
from ddp_agent.outputs.images.pixels import HEAT, LARGE, SMALL, pixels, visible
from ddp_agent.outputs.images.predictions import sheet, shortened, text_list


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((1, 28, 28), True),
        ((3, 32, 32), True),
        ((40, 101), True),  # a spectrogram without a channel
        ((1, 40, 101), True),
        ((2, 32, 32), False),
        ((64,), False),  # a text, a row of features
        ((1, 1, 784), False),
        ((3, 8, 32, 32), False),
    ],
)
def test_what_can_be_drawn(shape: tuple[int, ...], drawn: bool) -> None:
    assert visible(shape) == drawn
    if drawn:
        assert pixels(torch.randn(5, *shape), "image").shape[::3] == (5, 3)
        assert pixels(torch.randn(5, *shape), "spectrogram").shape[::3] == (5, 3)


def test_each_sample_has_the_whole_range_and_a_flat_one_has_none() -> None:
    inputs = torch.stack([torch.linspace(-1, 1, 64), torch.linspace(0, 100, 64), torch.full((64,), 7.0)])
    first, second, flat = pixels(inputs.view(3, 1, 8, 8), "image")
    assert torch.equal(first, second)
    assert (first.min(), first.max(), flat.max()) == (0, 255, 0)


def test_channels_share_a_range() -> None:
    inputs = torch.zeros(1, 3, 8, 8)
    inputs[0, 0], inputs[0, 1] = 2.0, 1.0
    assert set(map(tuple, pixels(inputs, "image").view(-1, 3).tolist())) == {(255, 128, 0)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_do_not_keep_it_from_being_drawn(bad: float) -> None:
    inputs = torch.rand(2, 1, 8, 8)
    inputs[0, 0, 0, 0] = bad
    assert pixels(inputs, "image").shape == (2, 96, 96, 3)


@pytest.mark.parametrize(("side", "drawn"), [(8, 96), (28, 84), (90, 90), (SMALL, SMALL), (LARGE, LARGE), (224, LARGE)])
def test_small_ones_are_enlarged_by_whole_factors_and_large_ones_reduced(side: int, drawn: int) -> None:
    assert pixels(torch.rand(1, 1, side, side), "image").shape == (1, drawn, drawn, 3)


def test_a_spectrogram_has_its_low_frequencies_at_the_bottom_and_colours() -> None:
    loud_and_low = torch.zeros(1, 1, 40, 100)
    loud_and_low[0, 0, 0] = 1.0
    (drawn,) = pixels(loud_and_low, "spectrogram")
    assert torch.equal(drawn[-1, 0], HEAT[-1].to(torch.uint8))
    assert torch.equal(drawn[0, 0], HEAT[0].to(torch.uint8))
    assert pixels(loud_and_low, "image")[0, 0].min() == 255  # control: an image stands as it is stored


def present(drawn: Tensor, colour: tuple[int, ...]) -> int:
    return int((drawn == torch.tensor(colour, dtype=torch.uint8)).all(-1).sum())


@pytest.mark.parametrize("count", [1, 5, 24])
def test_a_sheet_holds_every_picture_whole(count: int) -> None:
    colours = [(10, 200, shade) for shade in range(count)]
    pictures = torch.tensor(colours, dtype=torch.uint8).view(count, 1, 1, 3).expand(count, 32, 48, 3).contiguous()
    drawn = sheet(pictures, ["a"] * count, ["a"] * count)
    assert all(present(drawn, colour) == 32 * 48 for colour in colours)


def test_a_guess_is_green_where_it_is_right_and_red_where_it_is_wrong() -> None:
    grey = torch.full((2, 96, 96, 3), 128, dtype=torch.uint8)
    right, wrong, both = (
        sheet(grey, ["cat", "dog"], guesses) for guesses in (["cat", "dog"], ["dog", "cat"], ["cat"] * 2)
    )
    assert [present(right, GREEN) > 0, present(right, RED) > 0] == [True, False]
    assert [present(wrong, GREEN) > 0, present(wrong, RED) > 0] == [False, True]
    assert [present(both, GREEN) > 0, present(both, RED) > 0] == [True, True]


def test_a_long_name_is_cut_to_its_room() -> None:
    assert shortened("cat", 88) == "cat"
    cut = shortened("replacement_card_duration", 88)
    assert text_width(cut) <= 88 and cut.endswith("…") and cut.startswith("repl")
    assert shortened("x", 0) == "…"


def test_texts_have_their_label_and_a_wrong_guess() -> None:
    assert text_list(["hi", "bye"], ["greeting", "goodbye"], ["greeting", "yes"]) == (
        "hi\n  greeting\n\nbye\n  goodbye, taken for yes"
    )


def test_every_share_has_its_colour_and_nan_is_the_palest() -> None:
    shares = torch.tensor([[0.0, 0.25], [0.5, float("nan")]])
    drawn = table("title", shares, ["a", "b"], ["x", "y"])
    assert all(present(drawn, tuple(blend(torch.tensor(depth)).tolist())) > 100 for depth in (0.0, 0.5, 1.0))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (64, 10), (10, 64), (33, 300)])
def test_tables_of_any_size_stay_readable_and_small(rows: int, columns: int) -> None:
    height, width, _ = table("title", torch.rand(rows, columns), [f"rank {row}" for row in range(rows)], []).shape
    assert height < 27 * rows + 100 and width < 1100
