"""Argument types, which refuse a wrong value before any rank starts."""

import argparse
from collections.abc import Callable
from pathlib import Path


def at_least(low: int) -> Callable[[str], int]:
    """Return a parser of integers >= `low`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer >= {low}")
        return value

    return parse


def multiple_of(unit: int) -> Callable[[str], int]:
    """Return a parser of positive multiples of `unit`."""

    def parse(text: str) -> int:
        value = int(text) if text.isdecimal() else 0
        if value < unit or value % unit:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a multiple of {unit}")
        return value

    return parse


def new_file(text: str) -> Path:
    """Return the absolute path of a file whose directory exists."""
    path = Path(text).absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a file in a directory that exists")
    return path


def existing_directory(text: str) -> Path:
    """Return the absolute path of a directory that exists."""
    path = Path(text).absolute()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a directory that exists")
    return path
