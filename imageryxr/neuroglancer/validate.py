"""Entries of a Neuroglancer state, read as what they must be, or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imageryxr.errors import LinkError

_QUOTE_OR_ESCAPE = {quote: re.compile(rf"[{quote}\\]") for quote in "'\""}


def closing_quote(text: str, start: int, quote: str) -> int:
    """Return where a string that begins at ``start`` has its closing quote, or -1."""
    while found := _QUOTE_OR_ESCAPE[quote].search(text, start):
        if found.group() == quote:
            return found.start()
        start = found.start() + 2
    return -1


def as_mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return an object of a state, an empty one for none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise LinkError(f"{what}={shown(value)} must be an object {{…}}")
    return value


def as_list(value: Any, what: str, count: int | None) -> list[Any]:
    """Return a list of a state, of so many entries where that is said."""
    if isinstance(value, np.ndarray | tuple):
        value = list(value)
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise LinkError(f"{what}={shown(value)} must be a list{'' if count is None else f' of {count}'}")
    return value


def as_numbers(value: Any, what: str, count: int) -> Any:
    """Return a list of so many numbers."""
    return tuple(as_number(v, what) for v in as_list(value, what, count))


def as_number(value: Any, what: str) -> float:
    """Return a finite number of a sensible size."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not abs(found) < 1e15:
        raise LinkError(f"{what}={shown(value)} is no number of a sensible size")
    return found


def as_positive(value: Any, what: str) -> float:
    """Return a number above 0."""
    found = as_number(value, what)
    if not found > 0:
        raise LinkError(f"{what}={shown(value)} must be more than 0")
    return found


def as_share(value: Any, what: str) -> float:
    """Return a number from 0 to 1, cut off there as viewers do."""
    return min(1.0, max(0.0, as_number(value, what)))


def as_whole(value: Any, what: str, top: int) -> int:
    """Return a whole number up to some, exactly, from a number or from digits."""
    text = value if isinstance(value, str) else ""
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value <= top:
        text = str(value)
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) > top:
        exact = "; a float cannot hold ids above 2**53: give an int or its digits" if isinstance(value, float) else ""
        raise LinkError(f"{what}: {shown(value)} is no whole number from 0 to {top}{exact}")
    return int(text)


def shown(value: Any) -> str:
    """Return what was given, short enough for a message, and without a password."""
    try:
        text = repr(value)[:400]
    except ValueError:  # Python writes no whole numbers of thousands of digits
        text = f"a {type(value).__name__} of too many digits"
    text = re.sub(r"//[^/\s@]+@", "//", text)
    return text if len(text) <= 100 else text[:100] + "…"
