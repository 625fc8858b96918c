"""How numbers are written on the page."""

import math
from typing import Final

_BYTES: Final = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_MINUS: Final = "\N{MINUS SIGN}"


def number(value: float) -> str:
    """Return a number to four significant digits: `12,345`, `0.4123`, `2e-4`."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", _MINUS)
    if abs(value) < 1e-3:
        return _short_exponent(f"{value:.3g}")
    return f"{value:.4g}".replace("-", _MINUS)


def percent(value: float) -> str:
    """Return a share in percent to three significant digits."""
    return f"{value:.3g} %".replace("-", _MINUS)


def duration(seconds: float) -> str:
    """Return a time as a person says it: `0.4 s`, `42 s`, `3 min 20 s`, `5 h 10 min`, `2 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def size(count: float) -> str:
    """Return bytes in the unit that fits: `1.5 GiB`."""
    unit, per = byte_unit(count)
    return f"{number(count / per)} {unit}"


def byte_unit(count: float) -> tuple[str, int]:
    """Return the unit in which so many bytes are best told, and its size."""
    return next(((unit, per) for unit, per in _BYTES if count >= per), ("B", 1))


def tick(value: float, step: float) -> str:
    """Return a number at an axis whose ticks are `step` apart, with just the digits that tell them apart."""
    if value == 0:
        return "0"
    largest = max(abs(value), step)
    for unit, per in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if largest >= 10 * per or (largest >= per and step >= per / 10):
            return _fixed(value / per, step / per) + unit
    if largest < 1e-2:
        return _short_exponent(f"{value:.{max(0, _power(abs(value)) - _power(step))}e}")
    return _fixed(value, step)


def _fixed(value: float, step: float) -> str:
    return f"{value:.{max(0, -_power(step))}f}".replace("-", _MINUS)


def _power(value: float) -> int:
    """Return the power of ten in which a positive number's first digit stands."""
    return math.floor(math.log10(value) + 1e-9)


def _short_exponent(text: str) -> str:
    """Return `2e-05` as it is written in a request, `2e-5`."""
    mantissa, found, exponent = text.partition("e")
    return (f"{mantissa}e{int(exponent)}" if found else mantissa).removeprefix("+")
