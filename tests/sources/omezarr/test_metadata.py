"""Fuzz tests of OME-Zarr metadata: they open, or raise an error that names the invalid member."""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest

import imageryxr as ix
from imageryxr.errors import ImageryError, SourceError
from tests.support import mutations
from tests.support.zarr_metadata import AXES, BYTES, SHAPE, STEPS, files_v2, files_v3, image, write

JUNK = [
    None, True, False, 0, 1, -1, 2, 3, 1.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), 2**31, 2**62, 2**70, -(2**70),
    10**400, "", "0", "NaN", "../../etc", "x" * 300, "\x00", "\ud800", "nanometer", [], [1], [[]], [0, 0, 0], [2**62] * 3, [True] * 3,
    {}, {"name": "x"}, {"id": "pickle"}, {"name": "numcodecs.pickle"}, {"a": {"b": []}}, list(range(5000)), ["z", "y", "x"],
]  # fmt: skip
SYSTEMS = [{"name": "physical", "axes": AXES}]
SHARD = {
    "name": "sharding_indexed",
    "configuration": {
        "chunk_shape": [2, 4, 4], "codecs": [BYTES, {"name": "gzip", "configuration": {"level": 1}}],
        "index_codecs": [BYTES, {"name": "crc32c"}], "index_location": "end",
    },
}  # fmt: skip


def image_06(steps=None) -> dict:
    steps = steps or [
        {"type": "sequence", "input": {"path": "0"}, "output": {"name": "physical"}, "transformations": STEPS}
    ]
    return {"coordinateSystems": SYSTEMS, "datasets": [{"path": "0", "coordinateTransformations": steps}]}


STARTS = [
    files_v2(), files_v2(compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}, order="F", dtype="<f4"),
    files_v3(), files_v3(codecs=[SHARD]), files_v3({"version": "0.6", "multiscales": [image_06()]}),
]  # fmt: skip


def slots(node, found=None) -> list:
    """Return every (container, key) of a JSON document."""
    found = [] if found is None else found
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        found.append((node, key))
        if isinstance(node[key], dict | list):
            slots(node[key], found)
    return found


def mutate(files: dict[str, dict], rng: random.Random) -> dict[str, dict]:
    files = copy.deepcopy(files)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = slots(files[rng.choice(list(files))])
        if not places:
            break
        node, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.15 and isinstance(node, dict):
            del node[key]
        elif kind < 0.25 and isinstance(node, list):
            node.insert(0, copy.deepcopy(node[key]))
        elif kind < 0.35:
            other, there = rng.choice(places)
            node[key] = copy.deepcopy(other[there])
        else:
            node[key] = copy.deepcopy(rng.choice(JUNK))
    return files


def outcome(place: str) -> str:
    """Open an image and read a corner; return "array", or the name of the `ImageryError`."""
    with warnings.catch_warnings(), dask.config.set(scheduler="synchronous"):
        warnings.simplefilter("ignore")
        try:
            tree = ix.open_multiscale(place, channel=0, time=0)
            array = next(iter(next(iter(tree.children.values())).data_vars.values()))
            array[:1, :2, :2].load()
        except ImageryError as error:
            return type(error).__name__ if str(error) else "an error without a message"
    return "array"


def check_mutations(folder: Path, seeds: range) -> None:
    outcomes: set[str] = set()
    for seed in seeds:
        rng = random.Random(seed)
        files = mutate(rng.choice(STARTS), rng)
        place = write(folder / str(seed % 50), files)
        try:
            outcomes.add(outcome(place))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{json.dumps(files)[:3000]}") from error
        for name in files:
            (Path(place) / name).unlink()
    assert {"array", "SourceError"} <= outcomes
    assert "an error without a message" not in outcomes


@pytest.mark.slow
def test_mutated_metadata_open_or_raise_an_imagery_error(tmp_path):
    check_mutations(tmp_path, range(400))


@pytest.mark.slow
@pytest.mark.parametrize("first", mutations.STARTS)
def test_many_mutated_metadata_open_or_raise_an_imagery_error(tmp_path, first):
    check_mutations(tmp_path, range(first, first + mutations.PART))


@pytest.mark.parametrize("start", STARTS)
def test_metadata_without_mutations_open(tmp_path, start):
    array = ix.open_image(write(tmp_path, start))
    assert array.attrs["resolution"] == (8, 8, 40)
    np.testing.assert_array_equal(array.values, np.full(SHAPE, 7, array.dtype))  # absent chunks hold the fill value


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (files_v2(shape=[2**62, 8, 8]), "shape holds 4611686018427387904"),
        (files_v2(shape=[4, 8, 2**31]), "voxels along x; the limit"),
        (files_v2(chunks=[0, 8, 8]), "chunks holds 0"),
        (files_v2(chunks=[-4, 8, 8]), "chunks holds -4"),
        (files_v2(chunks=[2**31, 2**31, 8]), "the limit is 1 TiB"),
        (files_v2(chunks=[True, 8, 8]), "chunks holds True"),
        (files_v2(chunks=[8, 8]), "chunks has 2 numbers"),
        (files_v2(compressor={"id": "pickle"}), "'pickle', which would run code"),
        (files_v2(filters=[{"id": "pickle"}]), "'pickle', which would run code"),
        (files_v2(fill_value="x"), "fill_value 'x', which is not a valid uint8"),
        (files_v2(fill_value=256), "fill_value 256, which is not a valid uint8"),
        (files_v2(fill_value=float("nan")), "fill_value nan, which is not a valid uint8"),
        (files_v3(chunk_grid={"name": "rectilinear"}), "'rectilinear'; it must be 'regular'"),
        (files_v3(new_member={"a": 1}), "the member 'new_member', which Zarr 3 does not define"),
        (files_v3(data_type="bfloat16"), "'bfloat16'; supported are"),
        (files_v2({"multiscales": [image([{"type": "scale", "scale": [40, 8, -8]}])]}), "scale of -8 along x"),
        (files_v2({"multiscales": [image([{"type": "scale", "scale": [40, 8, "8"]}])]}), "along x is '8'"),
        (files_v2({"multiscales": [image([{"type": "scale", "scale": [40, 8, float("nan")]}])]}), "along x is nan"),
        (files_v2({"multiscales": [image([{"type": "scale", "scale": [40, 8, 1e-9]}])]}), "voxels of 1e-09 nm"),
        (files_v2({"multiscales": [image([STEPS[0], {"type": "translation", "translation": [0, 0, 2**70]}])]}), "is out of range"),
        (files_v2({"multiscales": [image([{"type": "affine", "affine": []}])]}), "type 'affine'"),
        (files_v3({"version": "0.7", "multiscales": [image()]}), "version '0.7'; supported are versions 0.4 to 0.6"),
        (files_v2({"multiscales": [{"version": "0.1", "datasets": [{"path": "0"}]}]}), "of version '0.1', without axes"),
        (files_v2({"multiscales": [{"version": "0.3", "axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}]}), "version '0.3'"),
        (files_v2({"multiscales": [image(version="0.4", datasets=[{"path": "../0"}])]}), "leads out of the group"),
    ],
)  # fmt: skip
def test_an_invalid_member_is_named_in_the_error(tmp_path, files, message):
    place = write(tmp_path, files)
    tracemalloc.start()
    try:
        with pytest.raises(ImageryError, match=message) as caught:
            ix.open_image(place)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1500


def test_deeply_nested_metadata_are_a_source_error(tmp_path):
    place = write(tmp_path, files_v2())
    (tmp_path / ".zattrs").write_text('{"multiscales": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(SourceError, match="is not JSON"):
        ix.open_image(place)


@pytest.mark.parametrize(
    ("dtype", "given", "stored"),
    [
        ("|u1", 0.0, 0), ("|u1", "3", 3), ("|u1", False, 0), ("|u1", None, 0), ("|u1", 9.0, 9), ("<i2", -5, -5), ("<u8", 2**64 - 1, 2**64 - 1),
        ("<f4", "NaN", np.nan), ("<f4", float("nan"), np.nan), ("<f4", "-Infinity", -np.inf), ("<f4", "0.5", 0.5), (">f8", 1, 1), ("|b1", 1, 1),
    ],
)  # fmt: skip
def test_a_fill_value_of_any_json_type_is_read(tmp_path, dtype, given, stored):
    array = ix.open_image(write(tmp_path, files_v2(dtype=dtype, fill_value=given)))
    np.testing.assert_array_equal(array.values, np.full(SHAPE, stored, array.dtype))


def test_a_backslash_in_the_path_of_a_level_is_a_slash(tmp_path):
    """Programs on Windows write backslashes, and zarr-python reads them as slashes."""
    levels = {"datasets": [{"path": "scale0\\image", "coordinateTransformations": STEPS}], "axes": AXES}
    files = files_v2({"multiscales": [{**levels, "version": "0.4"}]}, fill_value=3)
    files["scale0/image/.zarray"] = files.pop("0/.zarray")
    assert (ix.open_image(write(tmp_path, files)).values == 3).all()
    levels["datasets"][0]["path"] = "..\\image"
    with pytest.raises(SourceError, match="leads out of the group"):
        ix.open_image(write(tmp_path, files_v2({"multiscales": [{**levels, "version": "0.4"}]})))


def test_version_06_places_levels_in_their_intrinsic_coordinate_system(tmp_path):
    array = ix.open_image(write(tmp_path, files_v3({"version": "0.6", "multiscales": [image_06()]})))
    assert array.attrs["resolution"] == (8, 8, 40)
    assert array.attrs["voxel_offset"] == (0, 0, 0)
    ome = {"version": "0.6", "multiscales": [image_06([{**STEPS[0], "input": "0", "output": "physical"}])]}
    moved = {"type": "translation", "translation": [1, 1, 1], "input": {"name": "physical"}, "output": {"name": "w"}}
    ome["multiscales"][0]["coordinateTransformations"] = [moved]
    with pytest.warns(ix.ImageryWarning, match="in its coordinate system 'physical'; transformations"):
        array = ix.open_image(write(tmp_path, files_v3(ome)))
    assert array.attrs["voxel_offset"] == (-0.5, -0.5, -0.5)
