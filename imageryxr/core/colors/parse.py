"""Parse colours: names, hex strings and sequences of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from imageryxr.core.lazy_import import import_package
from imageryxr.core.validate import suggest_names, to_items, to_number
from imageryxr.errors import ColorError, format_value

RGB: TypeAlias = tuple[int, int, int]
RGBA: TypeAlias = tuple[int, int, int, int]

FORMS = "a name ('red', 'tab:blue'), a hex string ('#1f77b4'), 3 or 4 floats 0–1, or 3 or 4 ints 0–255"


def parse_color(value: Any) -> RGBA:
    """Parse a colour and return its red, green, blue and alpha.

    Parameters
    ----------
    value : str or sequence of 3 or 4 numbers
        - a CSS or Matplotlib name: ``"red"``, ``"tab:blue"``, ``"xkcd:sky blue"``; ``"none"`` is transparent;
        - a hex string: ``"#rgb"``, ``"#rgba"``, ``"#rrggbb"`` or ``"#rrggbbaa"``;
        - floats from 0 to 1, if any of the numbers is a float: ``(1.0, 0, 0)`` is red;
        - ints from 0 to 255, if every number is an int: ``(1, 0, 0)`` is nearly black.

        Numbers may be in a tuple, a list or a NumPy array.

    Returns
    -------
    tuple of int
        ``(r, g, b, a)``, each 0–255, straight alpha. The default of ``a`` is 255.

    Raises
    ------
    ColorError
        If ``value`` is not a colour, or a number is out of range.

    Examples
    --------
    >>> parse_color("tab:blue")
    (31, 119, 180, 255)
    >>> parse_color((1.0, 0.5, 0))
    (255, 128, 0, 255)
    >>> parse_color("#ff000080")
    (255, 0, 0, 128)
    """
    if isinstance(value, str):
        return _named_color(value)
    parts = _components(value)
    floats = any(isinstance(part, float) for part in parts)
    top = 1 if floats else 255
    if not all(0 <= part <= top for part in parts):
        raise ColorError(_range_message(value, floats))
    scaled = [round(255 * part) if floats else int(part) for part in parts]
    r, g, b, a = scaled if len(scaled) == 4 else [*scaled, 255]
    return r, g, b, a


def _components(value: Any) -> list[int | float]:
    """Return the numbers of a colour as Python ints and floats."""
    if isinstance(value, (bytes, Mapping, set, frozenset)) or not isinstance(value, Iterable):
        raise ColorError(f"{format_value(value)} is not a colour. Write {FORMS}.")
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise ColorError(f"an array of shape {value.shape} is not a colour; a colour has shape (3,) or (4,).")
    items = to_items(value)
    if len(items) not in (3, 4):
        raise ColorError(
            f"a colour has 3 numbers (r, g, b) or 4 (r, g, b, a); {format_value(value)} has {len(items)}. Write "
            f"{FORMS}."
        )
    parts: list[int | float] = []
    for part in items:
        number = to_number(part)
        if number is None:
            what = f"{format_value(part)} ({type(part).__name__})"
            raise ColorError(f"{format_value(value)} is not a colour: {what} is not a finite number. Write {FORMS}.")
        parts.append(number)
    return parts


def _range_message(value: Any, floats: bool) -> str:
    if floats:
        return (
            f"the colour {format_value(value)} has a float, so all its numbers must be from 0 to 1, but not all of "
            "them are. Write ints for 0–255, such as (255, 0, 0), or floats for 0–1, such as (1.0, 0.0, 0.0)."
        )
    return f"the colour {format_value(value)} has ints, which must be from 0 to 255, but not all are. Write {FORMS}."


def _named_color(value: str) -> RGBA:
    name = value.strip().lower()
    if name.startswith("#"):
        digits = name[1:]
        if not re.fullmatch(r"([0-9a-f]{3,4}|[0-9a-f]{6}|[0-9a-f]{8})", digits):
            forms = "'#rgb', '#rgba', '#rrggbb' or '#rrggbbaa', hex digits only"
            raise ColorError(f"{format_value(value)} is not a hex colour. Write {forms}.")
        if len(digits) < 6:
            digits = "".join(2 * digit for digit in digits)
        r, g, b, *a = bytes.fromhex(digits)
        return r, g, b, a[0] if a else 255
    if name == "none":
        return 0, 0, 0, 0
    import_package("matplotlib")
    from matplotlib.colors import get_named_colors_mapping, to_rgb

    # to_rgba would also accept "C0", which depends on the current style, and "0.5", which is grey in Matplotlib only.
    names = get_named_colors_mapping()
    if name in names:
        r, g, b = (round(255 * part) for part in to_rgb(names[name]))
        return r, g, b, 255
    if re.fullmatch(r"[0-9a-f]{6}([0-9a-f]{2})?", name):
        raise ColorError(f"{value!r} is not a colour name. If it is a hex colour, write '#{name}'.")
    raise ColorError(f"{format_value(value)} is not a colour name{suggest_names(name, names)}. Write {FORMS}.")


def hex_color(color: RGBA) -> str:
    """Return a colour as "#rrggbb", or as "#rrggbbaa" if it is not opaque."""
    return "#" + bytes(color if color[3] < 255 else color[:3]).hex()
