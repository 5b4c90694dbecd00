"""Parse the JSON of a Neuroglancer state from text, bytes or Python values.

A state is untrusted: its size and depth are limited before it is parsed, and parsing takes linear time.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Set, ValuesView
from typing import Any

import numpy as np

from imageryxr.core.validate import check_bytes, to_whole
from imageryxr.errors import LinkError, format_value
from imageryxr.neuroglancer.validate import closing_quote

DEFAULT_SIZE = "4 MB"
MAX_DEPTH = 64

_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # must precede UTF-16, whose mark is a prefix of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_QUOTE = re.compile("['\"]")


def parse_size_limit(value: Any) -> int:
    """Return the maximum number of characters of a state.

    Raises `OptionError` if ``max_state_size`` is not a number of bytes above 0.
    """
    return check_bytes("max_state_size", value, "a number of bytes above 0, or text such as '16 MB'")


def size_error(what: str, size: int | None, limit: int) -> LinkError:
    """Return the error for a state that is larger than the limit."""
    has = "is larger than" if size is None else f"has {size:,} characters, more than"
    suggestion = math.ceil((4 * limit if size is None else size) / 1e6)
    return LinkError(
        f"{what} {has} the limit of {limit:,} characters; to read it anyway, give ",
        "max_state_size=",
        f"'{suggestion} MB'",
    )


def decode_text(data: bytes) -> str:
    """Return the text of a file or an HTTP reply, in UTF-8 or in the encoding of its byte-order mark.

    Raises `UnicodeDecodeError` if the data are not text in this encoding.
    """
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


# ---------------------------------------------------------------------------------------------------------
# states in text


def parse_json(text: str) -> dict[str, Any]:
    """Return the state in a JSON text, or in Neuroglancer's URL-safe form of JSON.

    Raises `LinkError` if the text is not a JSON object, or is nested too deeply.
    """
    if _depth(text) > MAX_DEPTH:
        raise _depth_error()
    problems = []
    for candidate in (text, url_safe_to_json(text)):
        try:
            state = json.loads(candidate, parse_constant=_reject_constant)
        except json.JSONDecodeError as error:
            problems.append(f"{error.msg.removesuffix(' at')} at character {error.pos}")
        except (ValueError, RecursionError) as error:
            problems.append(str(error)[:200])
        else:
            return _check_object(state)
    raise LinkError(f"the state is not valid JSON: {problems[0]}; copy the whole link again")


def _reject_constant(name: str) -> Any:
    raise ValueError(f"it contains {name}, which JSON does not allow")


def _check_object(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise LinkError(f"the state is a {type(state).__name__}; it must be a JSON object {{…}} with layers")
    return state


def _depth_error() -> LinkError:
    return LinkError(f"the state is nested deeper than {MAX_DEPTH} levels")


def _depth(text: str) -> int:
    """Return an upper bound of the nesting depth of JSON; brackets in strings are counted."""
    depth = deepest = 0
    for match in re.finditer(r"[\[{]+|[\]}]+", text):
        run = match.group()
        depth += len(run) if run[0] in "[{" else -len(run)
        deepest = max(deepest, depth)
    return deepest


def url_safe_to_json(text: str) -> str:
    """Convert Neuroglancer's URL-safe JSON, which has ``'`` for ``"`` and ``_`` for ``,``, to standard JSON."""
    out: list[str] = []
    unclosed: set[str] = set()
    position = 0
    while found := _QUOTE.search(text, position):
        quote, start = found.group(), found.end()
        out.append(re.sub("[&_]", ",", text[position : found.start()]))
        # If a quote is not closed, no later quote of the same kind is either, so the text is not searched again.
        end = -1 if quote in unclosed else closing_quote(text, start, quote)
        if end < 0:
            unclosed.add(quote)
            out.append(quote)
            position = start
            continue
        inner = text[start:end]
        out.append('"' + (_convert_escapes(inner) if quote == "'" else inner) + '"')
        position = end + 1
    return "".join([*out, re.sub("[&_]", ",", text[position:])])


def _convert_escapes(inner: str) -> str:
    """Return the contents of a single-quoted string, escaped for double quotes."""
    changed = {"\\'": "'", '"': '\\"'}
    return re.sub(r"\\.|\"", lambda m: changed.get(m.group(), m.group()), inner, flags=re.DOTALL)


# ---------------------------------------------------------------------------------------------------------
# states as Python values


def normalize_state(state: Mapping[Any, Any], limit: int) -> dict[str, Any]:
    """Return a state that was built in Python, converted to JSON types.

    Arrays, Series, sets, tuples and ranges become lists, NumPy numbers become Python numbers, keys become strings.

    Raises `LinkError` if the state contains values that JSON does not support or contains itself, or exceeds the limit.
    """
    return _check_object(_JSONConverter(limit).convert(state, 0, ""))


class _JSONConverter:
    """Convert Python values to JSON types and limit their approximate size in characters of JSON."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0

    def convert(self, value: Any, depth: int, where: str) -> Any:
        if depth > MAX_DEPTH:
            raise _depth_error()
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float):
            self.count(2 + value.bit_length() // 3 if isinstance(value, int) else 8)
            return value
        if isinstance(value, str | os.PathLike):
            text = os.fspath(value)
            if isinstance(text, str):
                self.count(len(text) + 2)
                return str(text)
        if isinstance(value, Mapping):
            return {key: self.convert(v, depth + 1, f"{where}.{key}") for key, v in self.items(value, where)}
        if hasattr(value, "to_json") and not hasattr(value, "to_numpy"):  # a part of a neuroglancer.ViewerState
            return self.convert(value.to_json(), depth + 1, where)
        self.count(2)
        return [self.convert(v, depth + 1, where) for v in _list_entries(value, where)]

    def items(self, value: Mapping[Any, Any], where: str) -> Iterator[tuple[str, Any]]:
        self.count(2)
        for key, entry in value.items():
            number = to_whole(key)
            if not isinstance(key, str) and number is None:
                raise LinkError(f"{where.lstrip('.') or 'the state'} has the key {format_value(key)}; keys are strings")
            name = key if isinstance(key, str) else str(number)
            self.count(len(name) + 3)
            is_table = name == "segmentColors" and hasattr(entry, "to_dict") and not isinstance(entry, Mapping)
            yield name, entry.to_dict() if is_table else entry

    def count(self, characters: int) -> None:
        self.size += characters
        if self.size > self.limit:
            raise size_error("the state", None, self.limit)


def _list_entries(value: Any, where: str) -> list[Any]:
    """Return the entries of a sequence, set or array."""
    if isinstance(value, list | tuple | range | ValuesView):
        return list(value)
    if isinstance(value, Set):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if hasattr(value, "to_numpy"):  # a Series or Index of pandas or polars, a DataArray
        value = value.to_numpy()
    if isinstance(value, np.ndarray) and value.ndim:
        return list(value.tolist())
    raise LinkError(
        f"{where.lstrip('.') or 'the state'} contains {format_value(value)}, a {type(value).__name__}, which JSON does "
        "not support; give numbers, strings, lists, arrays or dicts"
    )
