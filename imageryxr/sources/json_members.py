"""Checks of members of JSON metadata: each returns the value, or raises a `SourceError` that names the member."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from imageryxr.core.validate import to_number
from imageryxr.errors import SourceError, format_value

# Largest number in `as_counts`.
_MOST = 2**40


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        If the text is not JSON, or is nested too deeply for the parser.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def as_object(value: Any, what: str) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise SourceError(f"{what} is {format_value(value)}; it must be a JSON object")
    return value


def as_list(value: Any, what: str, most: int = 100) -> list[Any]:
    """Return a JSON list with at most ``most`` entries."""
    if not isinstance(value, list):
        raise SourceError(f"{what} is {format_value(value)}; it must be a list")
    if len(value) > most:
        raise SourceError(f"{what} has {len(value):,} entries; at most {most} are read")
    return value


def as_text(value: Any, what: str, choices: Sequence[str] = ()) -> str:
    """Return a string, one of ``choices`` if there are any."""
    if not isinstance(value, str) or (choices and value not in choices):
        must = " or ".join(map(repr, choices)) or "a string"
        raise SourceError(f"{what} is {format_value(value)}; it must be {must}")
    return value


def as_counts(value: Any, what: str, *, count: int | None = None) -> tuple[int, ...]:
    """Return integers from 1 to 2**40; floats without a fraction are accepted."""
    numbers = as_list(value, what, 32)
    if count is not None and len(numbers) != count:
        raise SourceError(
            f"{what} has {len(numbers)} numbers {format_value(value)}; it must have {count}, one for each axis"
        )
    for number in numbers:
        whole = to_number(number)
        if whole is None or not 1 <= whole <= _MOST or whole % 1:
            raise SourceError(f"{what} holds {format_value(number)}; it must hold whole numbers from 1 to {_MOST:,}")
    return tuple(int(n) for n in numbers)


def as_number(value: Any, what: str) -> float:
    """Return a finite number up to 1e30, larger than any position or size."""
    number = to_number(value)
    if number is None or not abs(number) <= 1e30:
        raise SourceError(f"{what} is {format_value(value)}; it must be a finite number")
    return number
