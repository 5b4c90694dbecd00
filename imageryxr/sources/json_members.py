"""Members of JSON metadata, checked one by one: the value that is needed, or a `SourceError` that names the member."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from imageryxr.errors import SourceError


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises
    ------
    ValueError
        If it is not JSON, or lists within lists are so deep that the parser gives up.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested deeper than anything that is read") from None


def format_value(value: Any) -> str:
    """Return a JSON value for a message, cut to a readable length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits; lists within lists within lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:80] + "…"


def as_object(value: Any, what: str) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise SourceError(f"{what} is {format_value(value)}; it must be a JSON object")
    return value


def as_list(value: Any, what: str, most: int = 100) -> list[Any]:
    """Return a JSON list with at most so many entries."""
    if not isinstance(value, list):
        raise SourceError(f"{what} is {format_value(value)}; it must be a list")
    if len(value) > most:
        raise SourceError(f"{what} has {len(value):,} entries; at most {most} are read")
    return value


def as_text(value: Any, what: str, choices: Sequence[str] = ()) -> str:
    """Return a text, one of some where they are given."""
    if not isinstance(value, str) or (choices and value not in choices):
        must = " or ".join(map(repr, choices)) or "a text"
        raise SourceError(f"{what} is {format_value(value)}; it must be {must}")
    return value


def as_counts(value: Any, what: str, *, count: int | None = None, most: int = 2**40) -> tuple[int, ...]:
    """Return whole numbers from 1 to some limit, a number that is written as a float among them."""
    numbers = as_list(value, what, 32)
    if count is not None and len(numbers) != count:
        raise SourceError(
            f"{what} has {len(numbers)} numbers {format_value(value)}; it must have {count}, one for each axis"
        )
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 1 <= number <= most or number % 1:
            raise SourceError(f"{what} holds {format_value(number)}; it must hold whole numbers from 1 to {most:,}")
    return tuple(int(n) for n in numbers)


def as_number(value: Any, what: str) -> float:
    """Return a finite number of a magnitude that a place or a size can have."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30:
        raise SourceError(f"{what} is {format_value(value)}; it must be a finite number")
    return value if isinstance(value, int) else float(value)


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a number, or a text of one, that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False
