"""Random annotations, written as precomputed ones by neuroglancer's `AnnotationWriter`."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from neuroglancer import AnnotationPropertySpec, CoordinateSpace
from neuroglancer.write_annotations import AnnotationWriter

UNIT = (4.04, 8, 40)
TYPES = {"point": "point", "line": "line", "box": "axis_aligned_bounding_box", "ellipsoid": "ellipsoid"}
LARGE = 2**64 - 1

# Each type of property except uint32: the writer's padding before it violates the specification.
SPECS = [
    {"id": "score", "type": "float32"},
    {"id": "delta", "type": "int32"},
    {"id": "count", "type": "uint16"},
    {"id": "shift", "type": "int16"},
    {"id": "kind", "type": "uint8", "enum_values": [0, 1, 5], "enum_labels": ["axon", "dendrite", "soma"]},
    {"id": "sign", "type": "int8"},
    {"id": "color", "type": "rgb"},
    {"id": "shade", "type": "rgba"},
]


def random_annotations(kind: str, count: int = 60, seed: int = 1, extent: float = 100.0) -> list[dict]:
    """Return random annotations as dicts. Ids reach 2^64 - 1. Positions (x, y, z) are in multiples of `UNIT`."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        place = (
            np.round(rng.uniform(-extent / 2, extent / 2, 3) * 4) / 4
        )  # exact as float32; some lie on borders of cells
        second = place + np.round(rng.uniform(-extent / 8, extent / 8, 3) * 4) / 4
        if kind == "box":
            place, second = np.minimum(place, second), np.maximum(place, second)
        if kind == "ellipsoid":
            second = np.round(rng.uniform(0.5, extent / 16, 3) * 4) / 4
        found.append(
            {
                "id": LARGE - number if number % 2 else number,
                "place": place,
                "second": second,
                "score": float(np.float32(rng.normal())),
                "delta": int(rng.integers(-(2**31), 2**31)),
                "count": int(rng.integers(0, 2**16)),
                "shift": int(rng.integers(-(2**15), 2**15)),
                "kind": int(rng.choice([0, 1, 5, 7])),
                "sign": int(rng.integers(-128, 128)),
                "color": tuple(map(int, rng.integers(0, 256, 3))),
                "shade": tuple(map(int, rng.integers(0, 256, 4))),
                "pre": [LARGE - 7] if number % 3 == 0 else [],
                "post": sorted({int(n) for n in rng.integers(1, 6, number % 4)}),
            }
        )
    return found


def writer_of(kind: str, annotations: list[dict], specs: list[dict] = SPECS) -> AnnotationWriter:
    """Return an `AnnotationWriter` to which the annotations were added."""
    space = CoordinateSpace(names=["x", "y", "z"], units=["nm"] * 3, scales=UNIT)
    writer = AnnotationWriter(space, TYPES[kind], ["pre", "post"], [AnnotationPropertySpec(**s) for s in specs])
    for entry in annotations:
        more = {k: entry[k] for k in ("id", "pre", "post", *(s["id"] for s in specs))}
        if kind == "point":
            writer.add_point(entry["place"], **more)
        elif kind == "line":
            writer.add_line(entry["place"], entry["second"], **more)
        elif kind == "box":
            writer.add_axis_aligned_bounding_box(entry["place"], entry["second"], **more)
        else:
            writer.add_ellipsoid(entry["place"], entry["second"], **more)
    return writer


def bounds_of(kind: str, entry: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of the smallest box around an annotation, in multiples of `UNIT`."""
    place, second = entry["place"], entry["second"]
    if kind == "point":
        return place, place
    if kind == "ellipsoid":
        return place - second, place + second
    return np.minimum(place, second), np.maximum(place, second)


def write_levels(folder: Path, kind: str, annotations: list[dict], sharding: dict | None = None) -> None:
    """Write annotations with a spatial index of 1 × 1 × 1, 2 × 3 × 1 and 4 × 3 × 2 cells, optionally sharded."""
    writer = writer_of(kind, annotations)
    writer.write(folder)
    info = json.loads((folder / "info").read_text())
    lower, extent = np.full(3, -52.0), np.full(3, 104.0)
    info |= {"lower_bound": lower.tolist(), "upper_bound": (lower + extent).tolist(), "spatial": []}
    (folder / "spatial0/0_0_0").unlink()
    for number, shape in enumerate([(1, 1, 1), (2, 3, 1), (4, 3, 2)]):
        size, cells = extent / shape, {}
        for encoded, entry in list(zip(writer.annotations, annotations, strict=True))[number::3]:
            lo, hi = ((corner - lower) / size for corner in bounds_of(kind, entry))
            spans = [
                range(max(0, int(np.floor(a))), min(n - 1, int(np.floor(b))) + 1)
                for a, b, n in zip(lo, hi, shape, strict=True)
            ]
            for cell in ((x, y, z) for x in spans[0] for y in spans[1] for z in spans[2]):
                cells.setdefault(cell, []).append(encoded)
        level = {"key": f"spatial{number}", "grid_shape": list(shape), "chunk_size": size.tolist(), "limit": 50}
        (folder / level["key"]).mkdir(exist_ok=True)
        for cell, members in cells.items():
            (folder / level["key"] / "_".join(map(str, cell))).write_bytes(encode_list(members))
        info["spatial"].append(level)
    if sharding is not None:
        for entry in (info["by_id"], *info["relationships"], *info["spatial"]):
            entry["sharding"] = sharding
            _shard(folder / entry["key"], sharding, entry.get("grid_shape"))
    (folder / "info").write_text(json.dumps(info))


def encode_list(members: list) -> bytes:
    """Return the contents of a file that holds several annotations."""
    ids = b"".join(struct.pack("<Q", m.id) for m in members)
    return struct.pack("<Q", len(members)) + b"".join(m.encoded for m in members) + ids


def _shard(folder: Path, sharding: dict, shape: list[int] | None) -> None:
    """Replace the files of a folder by shards, which CloudVolume writes."""
    from cloudvolume.datasource.precomputed.common import compressed_morton_code
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, synthesize_shard_files

    bodies = {}
    for path in sorted(folder.iterdir()):
        cell = [int(part) for part in path.name.split("_")]
        number = int(compressed_morton_code(np.array(cell, np.uint32), shape)) if shape else cell[0]
        bodies[number] = path.read_bytes()
        path.unlink()
    for name, body in synthesize_shard_files(ShardingSpecification.from_dict(sharding), bodies).items():
        (folder / name).write_bytes(body)


def meets(kind: str, entry: dict, lo, hi) -> bool:
    """Return whether an annotation and a box, both in multiples of `UNIT`, have a common point; lines are sampled."""
    place, second = entry["place"], entry["second"]
    if kind == "line":
        t = np.linspace(0, 1, 40_001)[:, None]
        at = place + t * (second - place)
        return bool(((at >= lo) & (at < hi)).all(axis=1).any())
    if kind == "ellipsoid":
        near = np.clip(place, lo, hi)
        return bool((((near - place) / second) ** 2).sum() <= 1)
    low, high = bounds_of(kind, entry)
    return bool(((high >= lo) & (low < hi)).all())
