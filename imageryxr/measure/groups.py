"""Merge the rows of tables that have the same ids."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Groups(NamedTuple):
    """The rows of a table, sorted by their ids."""

    order: npt.NDArray[np.intp]
    """The rows in ascending order of their ids."""
    first: npt.NDArray[np.intp]
    """The position in `order` of the first row of each group."""

    def add(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the sum of the values of each group."""
        return np.add.reduceat(values[self.order], self.first, axis=0)

    def minimum(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the smallest value of each group."""
        found: npt.NDArray[Any] = np.minimum.reduceat(values[self.order], self.first, axis=0)
        return found

    def maximum(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the largest value of each group."""
        found: npt.NDArray[Any] = np.maximum.reduceat(values[self.order], self.first, axis=0)
        return found

    def one(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the value of the first row of each group."""
        found: npt.NDArray[Any] = values[self.order[self.first]]
        return found

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the value of its group for each row, in the order of the rows."""
        sizes = np.diff(np.append(self.first, len(self.order)))
        out = np.empty((len(self.order), *values.shape[1:]), values.dtype)
        out[self.order] = np.repeat(values, sizes, axis=0)
        return out


def group_rows(ids: npt.NDArray[np.uint64]) -> Groups:
    """Group the rows of a table by their ids, uint64[n] or uint64[n, 2]; there is at least one row."""
    columns = ids if ids.ndim == 2 else ids[:, np.newaxis]
    order = np.lexsort(columns.T[::-1])
    ordered = columns[order]
    is_first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    return Groups(order, np.flatnonzero(is_first))


class PairSums(NamedTuple):
    """A table of pairs of ids and their sums, in ascending order of the pairs."""

    pairs: npt.NDArray[np.uint64]
    """uint64[n, 2]."""
    sums: npt.NDArray[np.int64]
    """int64[n, columns]."""


def merge_pairs(parts: list[PairSums]) -> PairSums:
    """Return a table with one row per pair, which has the sums of all rows of that pair."""
    pairs = np.concatenate([part.pairs for part in parts])
    sums = np.concatenate([part.sums for part in parts])
    if not len(pairs):
        return PairSums(pairs, sums)
    groups = group_rows(pairs)
    return PairSums(groups.one(pairs), groups.add(sums))
