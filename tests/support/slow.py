"""Marks of slow tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import pytest


def slow_except(values: Iterable[object], *fast: object) -> Collection[object]:
    """Return the values of a parameter; the tests of all but some of them are slow."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def slow_unless(is_fast: Callable[..., bool], cases: Iterable[tuple[object, ...]]) -> Collection[object]:
    """Return the values of several parameters; the tests of cases that are not fast are slow."""
    return [pytest.param(*case, marks=[] if is_fast(*case) else [pytest.mark.slow]) for case in cases]
