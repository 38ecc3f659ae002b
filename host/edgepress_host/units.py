"""Numbers with their units, as people read them. What was not measured is blank."""

from __future__ import annotations

BLANK = "—"


def ms(value: float | None) -> str:
    """Milliseconds, three digits.

    >>> ms(0.09312), ms(12.345), ms(None)
    ('0.0931 ms', '12.3 ms', '—')
    """
    return BLANK if value is None else f"{_three(value)} ms"


def mj(value: float | None) -> str:
    """Millijoules, three digits."""
    return BLANK if value is None else f"{_three(value)} mJ"


def size(value: float | None) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point.

    >>> size(318_144), size(900), size(None)
    ('318 kB', '900 B', '—')
    """
    if value is None:
        return BLANK
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= 0.9995 * factor:
            return f"{_three(value / factor)} {unit}"
    return f"{value:.0f} B"


def percent(value: float | None, *, signed: bool = False) -> str:
    """Share as a percentage with two decimals.

    >>> percent(0.9203), percent(-0.004, signed=True)
    ('92.03 %', '-0.40 %')
    """
    if value is None:
        return BLANK
    return f"{100 * value:+.2f} %" if signed else f"{100 * value:.2f} %"


def score(value: float | None) -> str:
    """Value of a metric: a share as a percentage, anything else (a negative error, say) as it is.

    >>> score(0.9203), score(-0.031)
    ('92.03 %', '-0.031')
    """
    return percent(value) if value is None or 0 <= value <= 1 else f"{value:.4g}"


def celsius(value: float | None) -> str:
    """Temperature in degrees Celsius."""
    return BLANK if value is None else f"{value:.0f} °C"


def count(value: float | None) -> str:
    """Whole number with thousands apart."""
    return BLANK if value is None else f"{value:,.0f}"


def _three(value: float) -> str:
    """Three significant digits, without an exponent.

    >>> _three(99.95), _three(1234.0), _three(0.0)
    ('100', '1234', '0')
    """
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 100:
        return f"{value:.0f}"
    decimals = 2
    while abs(rounded) < 10 ** (2 - decimals) and decimals < 9:
        decimals += 1
    return f"{value:.{decimals}f}" if abs(rounded) < 10 else f"{value:.1f}"
