"""What models for images share."""


def image_shape(input_shape: tuple[int, ...], model: str) -> tuple[int, int, int]:
    """`input_shape` as (channels, height, width). Raises ValueError for data that are no images."""
    if len(input_shape) != 3:
        raise ValueError(f"{model}: found data of shape {input_shape}, expected images (channels, height, width)")
    channels, height, width = input_shape
    return channels, height, width
