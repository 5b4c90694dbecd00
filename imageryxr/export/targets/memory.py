"""Memory as a target: a NumPy array, computed by the workers of an export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imageryxr.core.bbox import IndexBox
from imageryxr.export.targets.base import Target
from imageryxr.graph.expr import Array


@dataclass(frozen=True)
class InMemory(Target):
    """A NumPy array in this process, to which the workers return their regions."""

    kind = "memory"
    suffixes = ("memory://",)
    encoding = 1.0

    def describe(self) -> dict[str, Any]:
        """Return the format."""
        return {"format": "memory"}

    def keys(self, stage: int, box: IndexBox) -> list[str]:
        """Return an empty list: no file is written."""
        return []

    def encode(self, stage: int, box: IndexBox, values: Array) -> Iterator[tuple[str, bytes]]:
        """Return an empty iterator: no file is written."""
        return iter(())
