"""Memory as a target: the values of an array, computed with all that an export has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imageryxr.core.bbox import IndexBox
from imageryxr.export.targets.base import Target
from imageryxr.graph.expr import Array


@dataclass(frozen=True)
class InMemory(Target):
    """A NumPy array in this process; regions come back from the workers."""

    kind = "memory"
    suffixes = ("memory://",)
    encoding = 1.0

    def describe(self) -> dict[str, Any]:
        """Return that it is memory."""
        return {"format": "memory"}

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return nothing: no file is written."""
        return []

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Return nothing."""
        return iter(())
