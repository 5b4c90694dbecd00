"""Convert units of length to nanometres, from any of their names and symbols; format bytes and counts."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from imageryxr.errors import UnitError

# Nanometres per unit. The names are those of OME-NGFF, which uses the names of UDUNITS.
_NAMES: dict[str, float] = {
    "yoctometer": 1e-15, "zeptometer": 1e-12, "attometer": 1e-9, "femtometer": 1e-6, "picometer": 1e-3,
    "nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6, "centimeter": 1e7, "decimeter": 1e8, "meter": 1e9,
    "hectometer": 1e11, "kilometer": 1e12, "megameter": 1e15, "gigameter": 1e18, "terameter": 1e21,
    "petameter": 1e24, "exameter": 1e27, "zettameter": 1e30, "yottameter": 1e33, "parsec": 3.0856775814913674e25,
    "angstrom": 0.1, "micron": 1e3, "inch": 2.54e7, "foot": 3.048e8, "yard": 9.144e8, "mile": 1.609344e12,
}  # fmt: skip
_PLURALS = {"inches": "inch", "feet": "foot"}
# Case matters in symbols: pm and Pm, mm and Mm differ.
_SYMBOLS: dict[str, float] = {
    "fm": 1e-6, "pm": 1e-3, "nm": 1.0, "um": 1e3, "μm": 1e3, "μ": 1e3, "mm": 1e6, "cm": 1e7, "dm": 1e8, "m": 1e9,
    "km": 1e12, "Å": 0.1, "in": 2.54e7, "ft": 3.048e8, "yd": 9.144e8, "mi": 1.609344e12,
}  # fmt: skip


def length_in_nm(unit: Any) -> float:
    """Return the number of nanometres in a unit of length, or raise `UnitError`.

    `unit` is a text, or an object such as `pint.Unit` that converts to one. Names are accepted in any case, singular or
    plural, with ``meter`` or ``metre`` ("nanometer", "Micrometres", "microns", "angstrom"); symbols only in their exact
    case ("nm", "um", "µm", "mm", "Å").

    >>> length_in_nm("nm"), length_in_nm("micrometres"), length_in_nm("Å")
    (1.0, 1000.0, 0.1)
    """
    try:
        raw = str(unit)
    except Exception:  # an object may fail in its own __str__
        raw = f"a {type(unit).__name__}"
    # NFKC unifies characters that look alike: U+00B5 and U+03BC (µ), U+00C5 and U+212B (Å).
    text = unicodedata.normalize("NFKC", raw[:100]).strip()
    if text in _SYMBOLS:
        return _SYMBOLS[text]
    name = re.sub("metre(s?)$", r"meter\1", text.casefold().replace("å", "a").replace("ö", "o"))
    name = _PLURALS.get(name, name)
    found = _NAMES.get(name) or _NAMES.get(name.removesuffix("s"))
    if found is not None:
        return found
    quoted = repr(raw if len(raw) <= 60 else raw[:60] + "…")
    hint = f" (did you mean {text.lower()!r}?)" if text.lower() in _SYMBOLS else ""
    raise UnitError(
        f"the unit {quoted} is not a known unit of length{hint}; known units include nm, nanometer, µm, um, "
        "micrometer, micron, mm, millimeter, m, meter, Å, angstrom"
    )


def has_unit(unit: Any) -> bool:
    """Return whether a unit is given: neither None nor blank."""
    return unit is not None and not (isinstance(unit, str) and not unit.strip())


def show_count(number: int, noun: str) -> str:
    """Return a number with a noun, such as "1 task" or "2,000 tasks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def show_bytes(count: float) -> str:
    """Return a number of bytes with a unit, such as 3.2 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
