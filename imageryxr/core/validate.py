"""Checks of arguments and of members of documents: each returns the checked value, or raises an error of ours.

Numbers may be Python's, NumPy's, a `decimal.Decimal` or a `fractions.Fraction`. Booleans, strings, NaN and infinities
are not numbers. All checks name the argument with `imageryxr.errors.param`, so that the command line names its flag.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np

from imageryxr.errors import ImageryError, OptionError, Part, SourceError, format_value, param

AXES: Final = ("z", "y", "x")
_INF = math.inf
_LARGEST_COUNT = 2**40
_BYTES = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]{1,3})?)\s*(?:([kmgtp])(i?))?b?", re.IGNORECASE)


def to_number(value: Any, *, text: bool = False) -> int | float | None:
    """Return a finite number as an int or float, or None for any other value; with `text` also one in a string."""
    if text and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, np.ndarray | np.generic):  # NumPy calls a timedelta64 an integer
        value = value.item() if not value.ndim and value.dtype.kind in "iuf" and value is not np.ma.masked else None
    if isinstance(value, bool) or not isinstance(value, int | float | Real | Decimal):
        return None
    try:
        found = value if isinstance(value, int) else float(value)
        return found if math.isfinite(found) else None
    except (ValueError, OverflowError):  # a signalling NaN; a number beyond the range of floats
        return None


def name_array(name: Any, kind: str = "the array") -> str:
    """Return the words of a message for an array: ``the array 'em'``, or ``the array`` if it has no name.

    xarray names an array of dask blocks after its dask graph; such a name is omitted.
    """
    is_generated = isinstance(name, str) and re.fullmatch(r".*-[0-9a-f]{32}", name) is not None
    return kind if name is None or is_generated else f"{kind} {name!r}"


def to_whole(value: Any) -> int | None:
    """Return an integer, or None for any other value; floats are not integers, even without a fraction."""
    try:
        return None if isinstance(value, bool | np.bool_ | np.timedelta64) else operator.index(value)
    except (TypeError, np.ma.MaskError):
        return None


def to_id(value: Any) -> int | None:
    """Return a segment id from 0 to 2**64 - 1, given as an integer or its digits, or None for any other value.

    Signed NumPy integers are converted modulo 2**64, as the kernels do.
    """
    if isinstance(value, str):
        value = int(value) if re.fullmatch("[0-9]{1,20}", value) else None
    found = to_whole(value)
    if found is not None and isinstance(value, np.signedinteger):
        found %= 2**64
    return found if found is not None and 0 <= found < 2**64 else None


def to_flag(value: Any) -> bool | None:
    """Return a boolean, or None for any other value."""
    return bool(value) if isinstance(value, bool | np.bool_) else None


def check_number(
    name: str,
    value: Any,
    low: float = -_INF,
    high: float = _INF,
    *,
    above: float | None = None,
    expected: Part | None = None,
    unit: str = "",
) -> float:
    """Return an argument that is a number from `low` to `high`, or greater than `above`.

    Parameters
    ----------
    name : str
        The argument.
    value : object
        Its value.
    low, high : float
        Least and greatest valid value.
    above : float, optional
        A number that the value must exceed.
    expected : str or Message, optional
        What is valid, for the message. Default: the range, in `unit`.
    unit : str
        What the number counts, such as ``"seconds"``.
    """
    found = to_number(value)
    if found is None or not low <= found <= high or (above is not None and not found > above):
        raise OptionError(param(name, value), " must be ", expected or _describe("number", low, high, above, unit))
    return found


def check_whole(
    name: str, value: Any, low: int = 0, high: float = _INF, *, expected: Part | None = None, unit: str = ""
) -> int:
    """Return an argument that is a whole number from `low` to `high`; the parameters are those of `check_number`."""
    found = to_whole(value)
    if found is None or not low <= found <= (2**63 - 1 if high == _INF else high):
        expected = expected or _describe("whole number", low, high, None, unit)
        raise OptionError(param(name, value), " must be ", expected)
    return found


def _describe(kind: str, low: float, high: float, above: float | None, unit: str) -> str:
    what = f"a {kind} of {unit}" if unit else f"a {kind}"
    if above is not None:
        return f"{what} above {_text(above)}" + ("" if high == _INF else f" and at most {_text(high)}")
    if high == _INF:
        return what if low == -_INF else f"{what}{',' if unit else ' of'} at least {_text(low)}"
    return f"{what} from {_text(low)} to {_text(high)}"


def _text(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def check_flag(name: str, value: Any, expected: Part = "True or False") -> bool:
    """Return an argument that is True or False, of Python or NumPy."""
    found = to_flag(value)
    if found is None:
        raise OptionError(param(name, value), " must be ", expected)
    return found


def check_text(name: str, value: Any, expected: Part) -> str:
    """Return an argument that is text."""
    if not isinstance(value, str):
        raise OptionError(param(name, value), " must be ", expected)
    return value


def check_path(name: str, value: Any) -> Path:
    """Return an argument that is the path of a file."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes) or "\0" in os.fspath(value):
        raise OptionError(param(name, value), " must be the path of a file")
    return Path(value)


def check_choice(name: str, value: Any, choices: Iterable[Any], *, expected: Part | None = None) -> Any:
    """Return the one of several choices that an argument equals.

    Parameters
    ----------
    name : str
        The argument.
    value : object
        Its value, of any type.
    choices : iterable
        The valid values; strings and None.
    expected : str or Message, optional
        What is valid, for the message. Default: the choices. The message also suggests the most similar choice.
    """
    known = list(choices)
    for choice in known:
        if value is choice or (isinstance(value, str) and value == choice):
            return choice
    words = [choice for choice in known if isinstance(choice, str)]
    hint = suggest_names(value, words) if isinstance(value, str) and len(words) > 1 else ""
    raise OptionError(param(name, value), " must be ", expected or list_choices(known), hint)


def list_choices(choices: Iterable[Any]) -> str:
    """Return choices for a message: ``'a', 'b' or None``."""
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last


def check_axis(value: Any) -> str:
    """Return the argument ``axis``, the name of an axis of a volume."""
    found: str = check_choice("axis", value, AXES, expected="'z', 'y' or 'x': the axis across the slices")
    return found


def check_pair(
    name: str, value: Any, expected: Part, low: float = -_INF, high: float = _INF, *, ascending: bool = False
) -> tuple[float, float]:
    """Return an argument that is two different numbers from `low` to `high`; if `ascending`, the lower one first."""
    numbers = [to_number(item) for item in to_items(value)]
    match numbers:
        case [int() | float() as first, int() | float() as last] if all(low <= n <= high for n in (first, last)):
            if first < last or (first > last and not ascending):
                return float(first), float(last)
    raise OptionError(param(name, value), " must be ", expected)


def check_counts(
    name: str,
    value: Any,
    expected: Part,
    *,
    length: tuple[int, ...] = (3,),
    high: float = _INF,
    error: type[ImageryError] = OptionError,
) -> tuple[int, ...]:
    """Return an argument that is a sequence of whole numbers from 1 to `high`, of one of the given lengths."""
    counts = [to_whole(item) for item in to_items(value)]
    if len(counts) not in length or not all(n is not None and 1 <= n < min(high + 1, 2**63) for n in counts):
        raise error(param(name, value), " must be ", expected)
    return tuple(n for n in counts if n is not None)


def to_items(value: Any) -> list[Any]:
    """Return the items of a sequence or array; an empty list for other values, such as a string, a set or a number."""
    if isinstance(value, str | bytes | Mapping | set | frozenset):
        return []
    try:
        return list(value)
    except TypeError:
        return []


def check_texts(name: str, value: Any, expected: Part) -> list[str]:
    """Return an argument that is a text, or a list or set of texts."""
    is_listed = isinstance(value, Iterator | Set)
    items = [value] if isinstance(value, str) else list(value) if is_listed else to_items(value)
    if not all(isinstance(item, str) for item in items) or not (items or is_listed or isinstance(value, list | tuple)):
        raise OptionError(param(name, value), " must be ", expected)
    return items


def to_numbers(value: Any) -> list[int | float]:
    """Return the items of a sequence or array of finite numbers; an empty list if any item is not one."""
    items = to_items(value)
    numbers = [number for item in items if (number := to_number(item)) is not None]
    return numbers if len(numbers) == len(items) else []


def check_bytes(name: str, value: Any, expected: Part, low: int = 1) -> int:
    """Return an argument that is a number of bytes, or text such as ``"4 GB"``; at least `low`."""
    found = to_number(value)
    if found is None and isinstance(value, str) and (parts := _BYTES.fullmatch(value.strip())):
        number, prefix, binary = parts.groups()
        found = to_number(float(number) * (1024 if binary else 1000) ** " kmgtp".index((prefix or " ").lower()))
    if found is None or not found >= low:
        raise OptionError(param(name, value), " must be ", expected)
    return int(found)


def suggest_names(name: str, names: Iterable[str]) -> str:
    """Return a hint with the known names most similar to an unknown one, or an empty string."""
    by_fold = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), by_fold, n=3)
    return f" (did you mean {' or '.join(repr(by_fold[match]) for match in close)}?)" if close else ""


# --- members of JSON documents; errors name the member --------------------------------------------


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
        if whole is None or not 1 <= whole <= _LARGEST_COUNT or whole % 1:
            raise SourceError(
                f"{what} holds {format_value(number)}; it must hold whole numbers from 1 to {_LARGEST_COUNT:,}"
            )
    return tuple(int(n) for n in numbers)


def as_number(value: Any, what: str) -> float:
    """Return a finite number up to 1e30, larger than any position or size."""
    number = to_number(value)
    if number is None or not abs(number) <= 1e30:
        raise SourceError(f"{what} is {format_value(value)}; it must be a finite number")
    return number
