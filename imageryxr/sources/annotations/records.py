"""Decoding of encoded annotations.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/annotations.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.errors import ChunkReadError
from imageryxr.sources.annotations.info import AnnotationInfo

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Records:
    """Decoded annotations."""

    ids: Ids
    values: npt.NDArray[Any]
    """Structured array of `AnnotationInfo.record`."""

    def select(self, chosen: npt.NDArray[Any]) -> Records:
        """Return the annotations at indexes, or where a mask is true."""
        return Records(self.ids[chosen], self.values[chosen])

    def unique(self) -> Records:
        """Return the annotations in ascending order of their ids, each once."""
        return self.select(np.unique(self.ids, return_index=True)[1])


def join_records(info: AnnotationInfo, parts: Sequence[Records]) -> Records:
    """Return several sets of annotations as one."""
    return Records(
        np.concatenate([np.empty(0, np.uint64), *(part.ids for part in parts)]),
        np.concatenate([np.empty(0, info.record), *(part.values for part in parts)]),
    )


def decode_list(info: AnnotationInfo, body: bytes, name: str) -> Records:
    """Decode the annotations of a cell or of a segment.

    Raises
    ------
    ChunkReadError
        If the length of the file contradicts the number of annotations in it.
    """
    record = info.record
    count = int.from_bytes(body[:8], "little")
    expected = 8 + count * (record.itemsize + 8)
    if len(body) < 8 or len(body) != expected:
        stated = (
            f"its {count:,} annotations take {expected:,}" if len(body) >= 8 else "its number of annotations takes 8"
        )
        raise ChunkReadError(
            f"{name} is damaged or has another layout than its info states: it has {len(body):,} bytes, but {stated}"
        )
    values = np.frombuffer(body, record, count, 8)
    return Records(np.frombuffer(body, "<u8", count, 8 + count * record.itemsize).astype(np.uint64), values)


def decode_single(info: AnnotationInfo, number: int, body: bytes, name: str) -> tuple[Records, list[Ids]]:
    """Decode one annotation of the index of ids, with the ids of the related segments of each relationship.

    Raises
    ------
    ChunkReadError
        If the file is too short or too long.
    """
    record = info.record
    problem = f"{name} is damaged or has another layout than its info states: "
    if len(body) < record.itemsize:
        raise ChunkReadError(f"{problem}it has {len(body):,} bytes, but an annotation takes {record.itemsize:,}")
    offset, related = record.itemsize, []
    for relationship in info.relationships:
        count = int.from_bytes(body[offset : offset + 4], "little")
        if offset + 4 + 8 * count > len(body):
            raise ChunkReadError(f"{problem}it ends within the segments of {relationship.name!r}")
        related.append(np.frombuffer(body, "<u8", count, offset + 4).astype(np.uint64))
        offset += 4 + 8 * count
    if offset != len(body):
        raise ChunkReadError(f"{problem}it has {len(body):,} bytes, but its content takes {offset:,}")
    return Records(np.array([number], np.uint64), np.frombuffer(body, record, 1)), related
