"""Rates and durations as text."""

_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3), ("u", 1e-6), ("n", 1e-9))


def rate(bits_per_s: float | None) -> str:
    """Return a rate such as "100 Mbit/s". None is an unknown one."""
    return "unknown rate" if bits_per_s is None else _with_prefix(bits_per_s, "bit/s", _PREFIXES[:5])


def duration(seconds: float) -> str:
    """Return a duration such as "20 ms"."""
    return _with_prefix(seconds, "s", _PREFIXES[4:]) if seconds else "0"


def _with_prefix(value: float, unit: str, prefixes: tuple[tuple[str, float], ...]) -> str:
    prefix, size = next((pair for pair in prefixes if value >= 0.9995 * pair[1]), prefixes[-1])
    return f"{value / size:,.3g} {prefix}{unit}"
