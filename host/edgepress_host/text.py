"""Words for people: errors of other libraries on one line."""

from __future__ import annotations


def one_line(error: BaseException, *, limit: int = 200) -> str:
    r"""Type and first telling line of an exception.

    >>> one_line(ValueError("first\nsecond"))
    'ValueError: first'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
