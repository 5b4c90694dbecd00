"""Marks of slow tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest


def slow_except(values: Iterable[object], *fast: object) -> Collection[object]:
    """Return the values of a parameter; the tests of all but some of them are slow."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
