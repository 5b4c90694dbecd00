"""Precomputed skeletons; CloudVolume's class decodes them.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/skeletons.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imageryxr.core.validate import as_list, as_number, as_object, as_text
from imageryxr.errors import ChunkReadError, NoVolumeError, SourceError, format_value
from imageryxr.sources.annotations.folder import AnnotationFolder, read_info
from imageryxr.sources.annotations.info import parse_index
from imageryxr.sources.base import clean_message

_KIND = "neuroglancer_skeletons"
_TYPES = ("float32", "int8", "uint8", "int16", "uint16", "int32", "uint32")


class Skeleton(NamedTuple):
    """Vertices (x, y, z) in nm, edges as pairs of indexes of vertices, and the radius of each vertex in nm."""

    vertices: npt.NDArray[np.float64]
    edges: npt.NDArray[np.int64]
    radii: npt.NDArray[np.float64]


def find_skeletons(folder: AnnotationFolder, info: dict[str, Any]) -> tuple[AnnotationFolder, dict[str, Any]]:
    """Return the folder of skeletons and its ``info``, given that folder or the segmentation that refers to it.

    Raises
    ------
    NoVolumeError
        If there are none.
    """
    if info.get("@type") == _KIND:
        return folder, info
    if not isinstance(info.get("skeletons"), str):
        kind = format_value(info.get("@type", "neuroglancer_multiscale_volume"))
        raise NoVolumeError(
            f"{folder.name} has no skeletons: its info has the @type {kind} and names no folder of skeletons; give "
            "the address of that folder"
        )
    index = parse_index({"key": info["skeletons"]}, "skeletons")
    child, found = read_info(folder.child(index.key))
    if found.get("@type") != _KIND:
        raise NoVolumeError(
            f"{child.name} holds no skeletons: the @type of its info is {format_value(found.get('@type'))} instead of "
            f"{_KIND!r}"
        )
    return child, found


def read_skeletons(folder: AnnotationFolder, info: dict[str, Any], ids: Sequence[int]) -> dict[int, Skeleton]:
    """Return the skeletons of segments; segments without one are omitted.

    Raises
    ------
    SourceError
        If the ``info`` is invalid.
    ChunkReadError
        If a skeleton cannot be read or is damaged.
    """
    try:
        transform, attributes = _transform(info), _vertex_attributes(info)
        sharding = parse_index({"key": ".", "sharding": info.get("sharding")}, "the layer").sharding
    except SourceError as error:
        raise SourceError(f"the info file of {folder.name} does not describe skeletons: {error}") from None

    def parse(number: int, body: bytes) -> Skeleton:
        return _decode(number, body, attributes, transform, folder.name)

    return folder.read_ids(sharding, ids, parse)


def _decode(
    number: int, body: bytes, attributes: list[dict[str, Any]], transform: npt.NDArray[np.float64], name: str
) -> Skeleton:
    from cloudvolume import Skeleton as StoredSkeleton

    what = f"the skeleton of {number} in {name}"
    count, edge_count = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    per_vertex = 12 + sum(np.dtype(a["data_type"]).itemsize * a["num_components"] for a in attributes)
    expected = 8 + count * per_vertex + edge_count * 8
    if len(body) != expected:  # CloudVolume reads a truncated file without an error
        raise ChunkReadError(
            f"{what} is damaged: it has {len(body):,} bytes, but its {count:,} vertices and {edge_count:,} edges take "
            f"{expected:,}"
        )
    try:
        stored = StoredSkeleton.from_precomputed(body, segid=number, vertex_attributes=attributes)
        vertices = np.asarray(stored.vertices, np.float64).reshape(-1, 3)
        edges = np.asarray(stored.edges, np.int64).reshape(-1, 2)
        has_radii = any(a["id"] == "radius" for a in attributes)
        radii = np.asarray(stored.radius, np.float64).ravel() if has_radii else np.full(len(vertices), np.nan)
    except Exception as error:  # the decoder raises its own exceptions, and those of numpy
        raise ChunkReadError(f"{what} could not be decoded: {type(error).__name__}: {clean_message(error)}") from error
    if edges.size and edges.max() >= len(vertices):
        raise ChunkReadError(f"{what} is damaged: an edge names vertex {edges.max():,} of {len(vertices):,}")
    # The format requires a uniform scale if there are radii, so the scale is the cube root of the determinant.
    scale = abs(np.linalg.det(transform[:, :3])) ** (1 / 3)
    return Skeleton(vertices @ transform[:, :3].T + transform[:, 3], edges, radii * scale)


def _transform(info: dict[str, Any]) -> npt.NDArray[np.float64]:
    value = info.get("transform")
    if value is None:
        return np.eye(3, 4)
    numbers = [float(as_number(n, "transform")) for n in as_list(value, "transform")]
    if len(numbers) != 12:
        raise SourceError(f"transform is {format_value(value)}; it must hold 12 numbers")
    return np.array(numbers).reshape(3, 4)


def _vertex_attributes(info: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for i, entry in enumerate(as_list(info.get("vertex_attributes") or [], "vertex_attributes")):
        what = f"vertex_attributes[{i}]"
        attribute = as_object(entry, what)
        count = as_number(attribute.get("num_components", 1), f"{what}.num_components")
        if count % 1 or not 1 <= count <= 1000:
            raise SourceError(f"{what}.num_components is {format_value(count)}; it must be a whole number above 0")
        kind = as_text(attribute.get("data_type"), f"{what}.data_type", _TYPES)
        name = as_text(attribute.get("id"), f"{what}.id")
        if name == "radius" and (kind, count) != ("float32", 1):
            raise SourceError(f"{what}, the radius, must be one float32, not {count} {kind}")
        found.append({"id": name, "data_type": kind, "num_components": int(count)})
    return found
