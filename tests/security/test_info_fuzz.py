"""Fuzz tests of ``info`` files: they open or raise an `ImageryError`, and no file outside the layer is read."""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.errors import ImageryError, SourceError
from imageryxr.sources.resolve import resolve_source
from tests.support import mutations
from tests.support.source_suite import serving

SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 0, "minishard_bits": 0,
    "shard_bits": 0, "minishard_index_encoding": "raw", "data_encoding": "raw",
}  # fmt: skip
VALUES = np.arange(4 * 6 * 8, dtype="uint8").reshape(4, 6, 8)


def plain_info(**scale: Any) -> dict[str, Any]:
    return {
        "@type": "neuroglancer_multiscale_volume", "type": "image", "data_type": "uint8", "num_channels": 1,
        "scales": [{"key": "a", "size": [8, 6, 4], "resolution": [8, 8, 40], "voxel_offset": [0, 0, 0], "chunk_sizes": [[8, 6, 4]], "encoding": "raw", **scale}],
    }  # fmt: skip


def write(folder: Path, info: Any, *, chunk: str = "a/0-8_0-6_0-4") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "info").write_text(info if isinstance(info, str) else json.dumps(info))
    file = folder / chunk
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(VALUES.tobytes())
    return folder


NUMBERS = [
    0, -1, 1, 1.5, 2**31, 2**31 - 1, 2**27, 2**53, 2**62, 2**63, 2**64, 2**70, 10**400, -(2**70), 1e-300, 5e-324, 1e308, -0.0,
    float("nan"), float("inf"), float("-inf"), True,
]  # fmt: skip
TEXTS = [
    "", "a", "8", "nan", "uint8", "UINT8", "uint7", "float128", "complex64", "object", "O", "M8[ns]", "V10", "<u4", "i4,i4",
    "raw", "jpeg", "png", "jxl", "compressed_segmentation", "compresso", "crackle", "fpzip", "zfpc", "kempressed", "nothing",
    "../../etc", "..", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "gs://a/b", "a/../../b", "a\\..\\b",
    "%2e%2e/%2e%2e", "a?b", "a#b", "a\0b", "~root", "a" * 5000, "\ud800", "é", "segmentation", "SEGMENTATION", "gzip", "identity",
]  # fmt: skip
NESTED: list[Any] = [None, [], {}, [[]], [{}], {"a": {"b": []}}, [1], [1, 2], [1, 2, 3, 4], ["a", "b", "c"], [None] * 3, [[1, 1, 1]] * 3, SHARDING]  # fmt: skip


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document, each a tuple of keys and indexes."""
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()  # fmt: skip
    return [path, *(deeper for key, value in inner for deeper in places(value, (*path, key)))]


def mutated_info(seed: int) -> Any:
    """Return an ``info`` with one to three mutations."""
    rng = random.Random(seed)
    document: Any = plain_info()
    if seed % 3 == 0:
        document["scales"][0]["sharding"] = dict(SHARDING)
    if seed % 5 == 0:
        document["scales"].append({**plain_info()["scales"][0], "key": "b", "resolution": [16, 16, 40]})
    if seed % 7 == 0:
        document["scales"][0] |= {
            "encoding": "compressed_segmentation",
            "compressed_segmentation_block_size": [8, 8, 8],
        }
        document["data_type"] = "uint64"
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = rng.choice(places(document))
        pool = rng.choice((NUMBERS, TEXTS, NESTED))
        value = copy.deepcopy(rng.choice(pool))
        if rng.random() < 0.2:
            value = [copy.deepcopy(rng.choice(NUMBERS)) for _ in range(3)]
        if not path:
            if rng.random() < 0.1:
                return value
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        if rng.random() < 0.15 and isinstance(parent, dict):
            del parent[path[-1]]
        elif rng.random() < 0.1 and isinstance(parent, dict):
            parent[rng.choice(TEXTS)] = value
        else:
            parent[path[-1]] = value
    return document


def try_info(folder: Path, document: Any) -> str:
    """Open an ``info`` and read one voxel; errors other than `ImageryError` propagate."""
    try:
        (folder / "info").write_text(json.dumps(document))
    except UnicodeEncodeError:
        return "no file"
    try:
        assert ix.open_image(folder).isel(x=[-1], y=[0], z=[0]).values.size == 1
    except ImageryError as error:
        found = error
    else:
        return "read"
    assert "Error(" not in str(found)
    assert len(str(found)) < 3000
    return type(found).__name__


def fuzz(folder: Path, seeds: range) -> dict[str, int]:
    write(folder, plain_info())
    counts: dict[str, int] = {}
    for seed in seeds:
        document = mutated_info(seed)
        try:
            found = try_info(folder, document)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {json.dumps(document)[:2000]}") from error
        counts[found] = counts.get(found, 0) + 1
    return counts


@pytest.mark.filterwarnings("ignore::imageryxr.errors.ImageryWarning")
def test_mutated_info_files_open_or_raise_an_imagery_error(tmp_path):
    counts = fuzz(tmp_path / "layer", range(400))
    assert counts["read"] > 10
    assert counts["SourceError"] > 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::imageryxr.errors.ImageryWarning")
@pytest.mark.parametrize("first", mutations.STARTS)
def test_many_mutated_info_files_open_or_raise_an_imagery_error(tmp_path, first):
    assert sum(fuzz(tmp_path / "layer", range(first, first + mutations.PART)).values()) == mutations.PART


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", "NaN", '"a"', "[" * 100_000, '{"a":' * 50_000, "\ufeff{}", "1" * 10_000, '{"scales": ' + "9" * 5000 + "}"])  # fmt: skip
def test_an_info_that_is_not_an_object_is_an_error(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(ImageryError):
        ix.open_image(f"precomputed://{tmp_path}")


ESCAPES = [
    "..", "../other", "../../x", "a/../../b", "a/..", "/etc", "//host/share", "~", "~root/x", "..\\other", "a\\..\\..\\b", "C:\\x", "c:x",
    "file:///etc", "http://127.0.0.1/x", "gs://bucket/x", "precomputed://x", "%2e%2e/other", "a%2f..%2fb", "a?x", "a#x", "a|zip:", "a\nb", "a\0",
]  # fmt: skip


@pytest.mark.parametrize("key", ESCAPES)
def test_a_key_does_not_lead_out_of_the_folder(tmp_path, key):
    write(tmp_path / "other", plain_info(), chunk="0-8_0-6_0-4")
    folder = write(tmp_path / "layer", plain_info(key=key))
    with pytest.raises(SourceError, match="may lead out of the layer's folder"):
        ix.open_image(folder)
    with serving(tmp_path) as server:
        with pytest.raises(SourceError, match="may lead out of the layer's folder"):
            ix.open_image(f"precomputed://{server.url}/layer")
        assert all(path.endswith("/info") for path in server.requested)


@pytest.mark.parametrize("key", ["a", "a/b", "8.0_8.0_40.0", "é è", "..a", "a..", "a+b", "(a)", "a&b=c"])
def test_keys_within_the_folder_are_read(tmp_path, key):
    folder = write(tmp_path, plain_info(key=key), chunk=f"{key}/0-8_0-6_0-4")
    np.testing.assert_array_equal(ix.open_image(folder).values, VALUES)


@pytest.mark.parametrize(
    "change",
    [
        *({"size": [size, 6, 4]} for size in (2**27, 2**31, 2**62, 2**70, 10**400)),
        *({"size": [2**24] * 3, "chunk_sizes": [[size] * 3]} for size in (2**12, 2**27, 2**62)),
        {"voxel_offset": [2**70, 0, 0]}, {"voxel_offset": [-(2**62), 0, 0]},
        *({"resolution": [r, 8, 40]} for r in (0, -8, 5e-324, 1e-12, 1e300, float("nan"), float("inf"), "8", None)),
        {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [0, 8, 8]},
        *({"sharding": {**SHARDING, "minishard_bits": bits}} for bits in (-1, 40, 63, 2**70, 0.5, "1", None)),
        {"sharding": {**SHARDING, "hash": "md5"}}, {"sharding": {}}, {"sharding": []}, {"sharding": "raw"},
    ],
)  # fmt: skip
def test_impossible_sizes_are_errors_and_allocate_nothing(tmp_path, change):
    write(tmp_path, plain_info(**change))
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="scale 0 |is not JSON"):
            ix.open_image(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_chunk_is_not_allocated_before_its_file_has_that_length(tmp_path):
    write(tmp_path, plain_info(size=[2**10, 2**10, 2**10], chunk_sizes=[[2**10, 2**10, 2**10]]), chunk="a/0-1024_0-1024_0-1024")  # fmt: skip
    source = resolve_source(tmp_path, "image")
    tracemalloc.start()
    try:
        with pytest.raises(ImageryError, match="192 bytes instead of 1073741824"):
            source.read(0, source.levels[0].grid.box.clip(source.levels[0].grid.box.__class__((0, 0, 0), (1, 1, 1))))
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_names_of_types_have_any_case_and_null_members_are_ignored(tmp_path):
    info = plain_info(encoding="RAW", sharding=None) | {"data_type": "UINT8", "type": "Image"}
    np.testing.assert_array_equal(ix.open_image(write(tmp_path, info)).values, VALUES)
