"""The JSON of a Neuroglancer state: from text, bytes or Python values to plain dicts, lists, strings and numbers.

A state is untrusted: its size and depth are bounded before it is parsed, and its text is passed over once.
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
from dask.utils import parse_bytes

from imageryxr.errors import LinkError, OptionError
from imageryxr.neuroglancer.validate import closing_quote, shown

DEFAULT_SIZE = "4 MB"
MAX_DEPTH = 64

_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_QUOTE = re.compile("['\"]")


def size_limit(value: Any) -> int:
    """Return how many characters a state may have.

    Raises
    ------
    OptionError
        If ``max_state_size`` is no number of bytes above 0.
    """
    try:
        size = 0 if isinstance(value, bool) else parse_bytes(value)
    except (TypeError, ValueError, AttributeError, OverflowError):
        size = 0
    if not size > 0:
        raise OptionError(
            f"max_state_size={shown(value)} is no size; give a number of bytes above 0, or text such as '16 MB'"
        )
    return int(size)


def too_large(what: str, size: int | None, limit: int) -> LinkError:
    """Return the error for a state that is larger than the limit."""
    has = "is larger" if size is None else f"has {size:,} characters"
    wanted = math.ceil((4 * limit if size is None else size) / 1e6)
    return LinkError(
        f"{what} {has}, more than the {limit:,} that are read of a state; if it is one all the same, give "
        f"max_state_size='{wanted} MB'"
    )


def decoded(data: bytes) -> str:
    """Return the text of a file or an answer: UTF-8, or what its byte-order mark says.

    Raises
    ------
    UnicodeDecodeError
        If it is no text.
    """
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


# ---------------------------------------------------------------------------------------------------------
# from text


def parsed(text: str) -> dict[str, Any]:
    """Return the state that JSON, or the form of it that Neuroglancer makes for URLs, holds.

    Raises
    ------
    LinkError
        If it is no JSON object, or nested too deep.
    """
    if _depth(text) > MAX_DEPTH:
        raise _too_deep()
    problems = []
    for candidate in (text, url_safe_to_json(text)):
        try:
            state = json.loads(candidate, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            problems.append(f"{error.msg.removesuffix(' at')} at character {error.pos}")
        except (ValueError, RecursionError) as error:
            problems.append(str(error)[:200])
        else:
            return _as_object(state)
    raise LinkError(f"the state is no JSON: {problems[0]}; copy the whole link again")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _as_object(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise LinkError(f"the state is a {type(state).__name__}, and must be a JSON object {{…}} with layers")
    return state


def _too_deep() -> LinkError:
    return LinkError(f"the state is nested deeper than {MAX_DEPTH} levels, which no state is")


def _depth(text: str) -> int:
    """Return an upper bound of how deep JSON is nested: brackets count even inside of strings."""
    depth = deepest = 0
    for match in re.finditer(r"[\[{]+|[\]}]+", text):
        run = match.group()
        depth += len(run) if run[0] in "[{" else -len(run)
        deepest = max(deepest, depth)
    return deepest


def url_safe_to_json(text: str) -> str:
    """Turn the form of JSON that Neuroglancer makes for URLs, with ``'`` for ``"`` and ``_`` for ``,``, into JSON."""
    out: list[str] = []
    unclosed: set[str] = set()
    position = 0
    while found := _QUOTE.search(text, position):
        quote, start = found.group(), found.end()
        out.append(re.sub("[&_]", ",", text[position : found.start()]))
        # Where one quote has no end, no later one of its kind has: each is looked for once.
        end = -1 if quote in unclosed else closing_quote(text, start, quote)
        if end < 0:
            unclosed.add(quote)
            out.append(quote)
            position = start
            continue
        inner = text[start:end]
        out.append('"' + (_double_quoted(inner) if quote == "'" else inner) + '"')
        position = end + 1
    return "".join([*out, re.sub("[&_]", ",", text[position:])])


def _double_quoted(inner: str) -> str:
    """Return what stands between single quotes as it stands between double ones."""
    changed = {"\\'": "'", '"': '\\"'}
    return re.sub(r"\\.|\"", lambda m: changed.get(m.group(), m.group()), inner, flags=re.DOTALL)


# ---------------------------------------------------------------------------------------------------------
# from Python


def plain_state(state: Mapping[Any, Any], limit: int) -> dict[str, Any]:
    """Return a state that was built in Python as JSON would hold it.

    Arrays, Series, sets, tuples and ranges become lists, NumPy's numbers become Python's, keys become strings.

    Raises
    ------
    LinkError
        If it holds what no state can, or itself, or more than the limit.
    """
    return _as_object(_Reader(limit).plain(state, 0, ""))


class _Reader:
    """Reads values of Python, and counts about how many characters of JSON they are."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0

    def plain(self, value: Any, depth: int, where: str) -> Any:
        if depth > MAX_DEPTH:
            raise _too_deep()
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
            return {key: self.plain(v, depth + 1, f"{where}.{key}") for key, v in self.items(value, where)}
        if hasattr(value, "to_json") and not hasattr(value, "to_numpy"):  # a part of a neuroglancer.ViewerState
            return self.plain(value.to_json(), depth + 1, where)
        self.count(2)
        return [self.plain(v, depth + 1, where) for v in _listed(value, where)]

    def items(self, value: Mapping[Any, Any], where: str) -> Iterator[tuple[str, Any]]:
        self.count(2)
        for key, entry in value.items():
            if isinstance(key, bool) or not isinstance(key, str | int | np.integer):
                raise LinkError(f"{where.lstrip('.') or 'the state'} has the key {shown(key)}; keys are strings")
            name = str(key if isinstance(key, str) else int(key))
            self.count(len(name) + 3)
            is_table = name == "segmentColors" and hasattr(entry, "to_dict") and not isinstance(entry, Mapping)
            yield name, entry.to_dict() if is_table else entry

    def count(self, characters: int) -> None:
        self.size += characters
        if self.size > self.limit:
            raise too_large("the state", None, self.limit)


def _listed(value: Any, where: str) -> list[Any]:
    """Return the entries of what Python has for a list."""
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
        f"{where.lstrip('.') or 'the state'} holds {shown(value)}, a {type(value).__name__}, which JSON does not "
        "have; give numbers, strings, lists, arrays or dicts"
    )
