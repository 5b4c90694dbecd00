"""Marks of slow tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import pytest


def slow_except(values: Iterable[object], *fast: object) -> Collection[object]:
    """Return the values of a parameter, and mark the tests of all values except `fast` as slow."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def slow_unless(is_fast: Callable[..., bool], cases: Iterable[tuple[object, ...]]) -> Collection[object]:
    """Return cases of several parameters, and mark the tests of cases for which `is_fast` is false as slow."""
    return [pytest.param(*case, marks=[] if is_fast(*case) else [pytest.mark.slow]) for case in cases]
