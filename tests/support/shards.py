"""Sharded precomputed layers."""

from __future__ import annotations

import json

import numpy as np

from imageryxr.core.grid import Grid
from tests.support.precomputed import scale

GRID = Grid((19, 70, 67), (8, 8, 40), (-21, 5, 3))


CHUNK = (16, 16, 8)  # (x, y, z), as in the ``info``


def spec(hashing="identity", data="gzip", index="gzip", preshift=1, minishards=2, bits=1):
    return {
        "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": preshift, "hash": hashing,
        "minishard_bits": minishards, "shard_bits": bits, "minishard_index_encoding": index, "data_encoding": data,
    }  # fmt: skip


def write(folder, values, sharding, encoding="raw", skip=()):
    """Write a level with CloudVolume's shard writer; return the contents of the files by name."""
    from cloudvolume import chunks
    from cloudvolume.datasource.precomputed.common import compressed_morton_code
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, synthesize_shard_files

    info = {
        "type": "segmentation",
        "data_type": str(values.dtype),
        "num_channels": 1,
        "scales": [scale(GRID, encoding)],
    }
    info["scales"][0]["sharding"] = sharding
    counts = [-(-n // c) for n, c in zip(values.shape[::-1], CHUNK, strict=True)]
    bodies = {}
    for point in np.ndindex(*counts):
        cut = tuple(slice(p * c, (p + 1) * c) for p, c in zip(point, CHUNK, strict=True))
        part = np.asfortranarray(values.T[cut][..., None])
        if point not in skip:
            bodies[int(compressed_morton_code(point, counts))] = chunks.encode(part, encoding, (8, 8, 8))
    files = synthesize_shard_files(ShardingSpecification.from_dict(sharding), bodies)
    (folder / info["scales"][0]["key"]).mkdir(parents=True)
    (folder / "info").write_text(json.dumps(info))
    for name, body in files.items():
        (folder / info["scales"][0]["key"] / name).write_bytes(body)
    return files
