"""Validate entries of a Neuroglancer state; errors name the invalid entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imageryxr.core.validate import to_id, to_number, to_whole
from imageryxr.errors import LinkError, format_value

_QUOTE_OR_ESCAPE = {quote: re.compile(rf"[{quote}\\]") for quote in "'\""}


def closing_quote(text: str, start: int, quote: str) -> int:
    """Return the index of the closing quote of a string whose contents begin at ``start``, or -1."""
    while found := _QUOTE_OR_ESCAPE[quote].search(text, start):
        if found.group() == quote:
            return found.start()
        start = found.start() + 2
    return -1


def as_mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return an object of a state; an empty one for None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise LinkError(f"{what}={format_value(value)} must be an object {{…}}")
    return value


def as_list(value: Any, what: str, count: int | None) -> list[Any]:
    """Return a list of a state; if ``count`` is given, it must have that many entries."""
    if isinstance(value, np.ndarray | tuple):
        value = list(value)
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise LinkError(f"{what}={format_value(value)} must be a list{'' if count is None else f' of {count}'}")
    return value


def as_numbers(value: Any, what: str, count: int) -> Any:
    """Return a tuple of ``count`` numbers."""
    return tuple(as_number(v, what) for v in as_list(value, what, count))


def as_number(value: Any, what: str) -> float:
    """Return a finite number whose magnitude is below 1e15."""
    found = to_number(value, text=True)  # like the viewer
    if found is None or not abs(found) < 1e15:
        raise LinkError(f"{what}={format_value(value)} is not a number below 1e15")
    return float(found)


def as_positive(value: Any, what: str) -> float:
    """Return a number above 0."""
    found = as_number(value, what)
    if not found > 0:
        raise LinkError(f"{what}={format_value(value)} must be above 0")
    return found


def as_share(value: Any, what: str) -> float:
    """Return a number clipped to the range 0 to 1, as in the viewer."""
    return min(1.0, max(0.0, as_number(value, what)))


def as_whole(value: Any, what: str, top: int) -> int:
    """Return a whole number from 0 to ``top``, given as an int or as digits."""
    found = to_id(value) if isinstance(value, str) else to_whole(value)
    if found is None or not 0 <= found <= top:
        exact = "; a float cannot represent all ids above 2**53: give an int or its digits"
        exact = exact if isinstance(value, float) else ""
        raise LinkError(f"{what}: {format_value(value)} is not a whole number from 0 to {top}{exact}")
    return found
