from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from dask.base import tokenize

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import (
    AuthError,
    ChoiceError,
    ChunkReadError,
    CodecError,
    ImageryWarning,
    LayerError,
    MissingChunkError,
    MissingChunkWarning,
    OptionError,
    SourceError,
    SourceNotFoundError,
)
from imageryxr.sources.address import parse_address
from imageryxr.sources.fetch import buckets
from imageryxr.sources.fetch import client as web
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.omezarr.open import open_omezarr
from imageryxr.sources.resolve import resolve_source
from tests.support.omezarr import SHAPE, axes_of, level, one_level, open_ome, write_ome
from tests.support.slow import slow_except
from tests.support.source_suite import SourceSuite, boxes_of, dead_url, noise, read_padded, serving


class Images(SourceSuite):
    """The suite for a pyramid of two levels whose offsets differ by half a fine voxel."""

    GRIDS = (
        Grid((19, 35, 37), (4.04, 4.04, 40), (-21, 5.25, 3)),
        Grid((19, 18, 19), (8.08, 8.08, 40), (-10.5, 2.625, 3)),
    )
    VERSION, DTYPE, KWARGS = "0.5", "uint8", {}

    def write(self, folder):
        levels = [
            level(str(mip), g.resolution[::-1], [(o + 0.5) * r for o, r in zip(g.voxel_offset, g.resolution, strict=True)][::-1])
            for mip, g in enumerate(self.GRIDS)
        ]  # fmt: skip
        multiscale = {"axes": axes_of("zyx"), "datasets": levels}
        write_ome(folder, self.truth(), multiscale, version=self.VERSION, **self.KWARGS)

    def open(self, folder):
        return open_ome(folder)

    def grids(self):
        return list(self.GRIDS)

    def truth(self):
        return [noise(g.shape, self.DTYPE, mip) for mip, g in enumerate(self.GRIDS)]

    def open_without_voxels(self, folder, empty):
        for file in [p for p in folder.rglob("*") if p.name in ("zarr.json", ".zgroup", ".zattrs", ".zarray")]:
            (empty / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, empty / file.relative_to(folder))
        return self.open(empty)

    def others(self, folder):
        copy = folder.parent / f"{folder.name}-copy"
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        return [
            open_ome(folder, missing="fill"),
            open_ome(folder, missing="warn"),
            open_ome(folder, assume="corner"),
            open_ome(copy),
        ]


class TestV05(Images):
    def others(self, folder):
        return [*super().others(folder), resolve_source(self.open(folder), "segmentation")]

    def test_chunks_have_the_stored_shape(self, source):
        assert [lv.chunks for lv in source.levels] == [(8, 16, 16), (8, 16, 16)]
        assert source.levels[0].encoding == "zstd"


class TestV04(Images):
    VERSION, KWARGS = "0.4", {"chunk_key_encoding": {"name": "v2", "separator": "/"}}


class TestV04Dots(Images):
    VERSION, DTYPE = "0.4", "uint16"


class TestSharded(Images):
    DTYPE, KWARGS = "uint64", {"chunks": (4, 8, 8), "shards": (8, 16, 16)}

    def test_chunks_are_the_inner_chunks_of_shards(self, source):
        assert source.levels[0].chunks == (4, 8, 8)
        assert source.arrays[0].objects == (8, 16, 16)


class TestOverHttp(Images):
    KWARGS = {"chunks": (4, 8, 8), "shards": (8, 16, 16)}  # noqa: RUF012

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        path = tmp_path_factory.mktemp("layer")
        cls().write(path)
        with serving(path) as server:
            cls.SERVER = server
            yield path

    def open(self, folder):
        return open_ome(self.SERVER.url) if folder == self.SERVER.folder else open_ome(folder)

    def test_reading_an_open_source_requests_chunks_only(self, folder):
        # With so few concurrent requests, opening requests no arrays that the group does not list.
        source = open_ome(self.SERVER.url, connection=Connection(concurrency=2))
        self.SERVER.requested.clear()
        source.read(0, IndexBox((0, 0, 0), (8, 16, 17)))
        assert set(self.SERVER.requested) == {"/0/c/0/0/0", "/0/c/0/0/1"}


# ---------------------------------------------------------------------------------------------------------
# positions and units


@pytest.mark.parametrize(
    ("assume", "first", "offset"), [("center", (801.0, 2004.0, 400.0), (99.625, 250, 9.5)), ("corner", (805.0, 2008.0, 420.0), (100.125, 250.5, 10))]
)  # fmt: skip
def test_assume_selects_the_point_of_a_voxel_that_a_translation_states(tmp_path, assume, first, offset):
    one_level(tmp_path, (40, 8, 8), (400, 2004, 801))
    grid = open_ome(tmp_path, assume=assume).levels[0].grid
    assert grid.voxel_offset == offset
    assert tuple(a.centers()[0] for a in grid.axes[::-1]) == first


def test_a_missing_translation_is_0(tmp_path):
    one_level(tmp_path)
    assert open_ome(tmp_path).levels[0].grid.voxel_offset == (-0.5, -0.5, -0.5)
    assert open_ome(tmp_path, assume="corner").levels[0].grid.voxel_offset == (0, 0, 0)


def test_an_unknown_assume_is_an_error(tmp_path):
    with pytest.raises(OptionError, match="assume='edge' must be 'center' or 'corner'"):
        open_ome(tmp_path, assume="edge")


def test_multiscale_transformations_apply_after_those_of_datasets(tmp_path):
    whole = [{"type": "scale", "scale": [1, 2, 2]}, {"type": "translation", "translation": [0, 8, 16]}]
    one_level(tmp_path, (40, 4, 4), (20, 2, 2), whole=whole)
    grid = open_ome(tmp_path, assume="corner").levels[0].grid
    assert grid.resolution == (8, 8, 40)
    assert grid.voxel_offset == (2.5, 1.5, 0.5)  # (2·2 + 16) / 8, (2·2 + 8) / 8, 20 / 40


@pytest.mark.parametrize(
    ("unit", "scale", "resolution"),
    [
        ("nanometer", (40, 4.04, 4.04), (4.04, 4.04, 40.0)),
        ("micrometer", (0.04, 0.00404, 0.00404), (4.04, 4.04, 40.0)),
        ("micrometer", (0.04, 0.0113, 0.0113), (11.3, 11.3, 40.0)),
        ("millimeter", (4e-5, 4.04e-6, 4.04e-6), (4.04, 4.04, 40.0)),
        ("meter", (4e-8, 4e-9, 4e-9), (4.0, 4.0, 40.0)),
        ("angstrom", (400, 40.4, 40.4), (4.04, 4.04, 40.0)),
        ("centimeter", (4e-6, 4e-7, 4e-7), (4.0, 4.0, 40.0)),
        ("um", (0.04, 0.008, 0.008), (8.0, 8.0, 40.0)),
    ],
)
def test_units_are_converted_to_nm(tmp_path, unit, scale, resolution):
    one_level(tmp_path, scale, [s * 5.5 for s in scale], unit)
    grid = open_ome(tmp_path).levels[0].grid
    assert grid.resolution == resolution
    assert grid.voxel_offset == (5, 5, 5)


def test_an_unknown_unit_is_an_error(tmp_path):
    one_level(tmp_path, unit="parsecond")
    with pytest.raises(SourceError, match="'parsecond' along z: .*not a known unit of length.*nanometer"):
        open_ome(tmp_path)


def test_missing_units_are_nm_with_a_warning(tmp_path):
    one_level(tmp_path, unit=None)
    with pytest.warns(ImageryWarning, match="states no unit for z, y, x; nanometres are assumed"):
        assert open_ome(tmp_path).levels[0].grid.resolution == (8, 8, 40)


# ---------------------------------------------------------------------------------------------------------
# axes


@pytest.mark.fast_forms(6)
@pytest.mark.parametrize("order", ["zyx", "czyx", "tczyx", "tzyx", "xyz", "yxz", "cxyz", "tcyx", "cyx", "yx", "xy"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_may_be_in_any_order(tmp_path, order, version):
    sizes = {"t": 2, "c": 3, "z": 5, "y": 20, "x": 18}
    spacing = {"t": 1, "c": 1, "z": 40, "y": 10, "x": 8}
    values = np.random.default_rng(3).integers(1, 255, [sizes[a] for a in order], dtype="uint8")
    multiscale = {"axes": axes_of(order), "datasets": [level("0", [spacing[a] for a in order])]}
    write_ome(tmp_path, [values], multiscale, version=version, chunks=tuple(min(n, 7) for n in values.shape))
    for time in range(2 if "t" in order else 1):
        for channel in range(3 if "c" in order else 1):
            source = open_ome(tmp_path, channel=channel, time=time)
            assert source.levels[0].grid.resolution == (8, 10, 40 if "z" in order else 8)
            plane = values[tuple({"t": time, "c": channel}.get(a, slice(None)) for a in order)]
            left = [a for a in order if a in "zyx"]
            truth = plane.transpose([left.index(a) for a in "zyx" if a in left]).reshape(-1, 20, 18)
            assert source.levels[0].grid.shape == truth.shape
            assert source.levels[0].chunks == (5 if "z" in order else 1, 7, 7)
            for box in boxes_of(truth.shape):
                found = source.read(0, box)
                assert found.flags.c_contiguous
                np.testing.assert_array_equal(found, read_padded(truth, box))


def test_an_image_of_several_channels_or_times_needs_a_choice(tmp_path):
    values = np.zeros((2, 3, 4, 8, 8), "uint8")
    write_ome(tmp_path, [values], {"axes": axes_of("tczyx"), "datasets": [level("0", (1, 1, 40, 8, 8))]})
    with pytest.raises(ChoiceError, match="3 channels; choose one with channel=0 to channel=2") as caught:
        open_ome(tmp_path, time=0)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.what, error.count, str(error)) == ("channel", 3, str(caught.value))
    with pytest.raises(ChoiceError, match="2 times; choose one with time=0 to time=1") as caught:
        open_ome(tmp_path, channel=0)
    assert (caught.value.what, caught.value.count) == ("time", 2)
    with pytest.raises(SourceError, match="no channel=3: its channels are 0 to 2"):
        open_ome(tmp_path, channel=3, time=0)
    assert open_ome(tmp_path, channel=0, time=0) != open_ome(tmp_path, channel=0, time=1)


def test_spatial_axes_with_other_names_are_z_y_x_in_order(tmp_path):
    axes = [{"name": n, "type": "space", "unit": "nanometer"} for n in ("depth", "row", "column")]
    one_level(tmp_path, (40, 9, 8), axes=axes)
    assert open_ome(tmp_path).levels[0].grid.resolution == (8, 9, 40)


@pytest.mark.parametrize(
    "axes",
    [
        [{"name": "z", "type": "space"}, {"name": "y", "type": "space"}, {"name": "q", "type": "phase"}],
        axes_of("zyy"),
    ],
)
def test_unsupported_axes_are_an_error(tmp_path, axes):
    one_level(tmp_path, axes=axes_of("zyx"))
    document = json.loads((tmp_path / "zarr.json").read_text())
    document["attributes"]["ome"]["multiscales"][0]["axes"] = axes
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match="has the axes .*supported are y and x"):
        open_ome(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# attributes, labels and data types


def test_contrast_limits_are_those_of_the_selected_channel(tmp_path):
    windows = [
        {"window": {"start": 3, "end": 200, "min": 0, "max": 255}},
        {"window": {"start": 7, "end": 90}},
        {"label": "c"},
    ]
    values = np.zeros((3, 4, 8, 8), "uint8")
    multiscale = {"axes": axes_of("czyx"), "datasets": [level("0", (1, 40, 8, 8))]}
    write_ome(tmp_path, [values], multiscale, more={"omero": {"channels": windows}})
    assert open_ome(tmp_path, channel=0).attrs == {"contrast_limits": (3.0, 200.0)}
    assert open_ome(tmp_path, channel=1).attrs == {"contrast_limits": (7.0, 90.0)}
    assert open_ome(tmp_path, channel=2).attrs == {}


def write_image_with_labels(folder: Path, version: str, ids: np.ndarray) -> None:
    one_level(folder, version=version)
    more = {"image-label": {"source": {"image": "../../"}}}
    multiscale = {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]}
    write_ome(folder / "labels" / "cells", [ids], multiscale, version=version, more=more)
    write_ome(folder / "labels" / "plain", [ids], multiscale, version=version)
    group = zarr.open_group(str(folder / "labels"), mode="a", zarr_format=3 if version == "0.5" else 2)
    names = {"labels": ["cells", "plain"]}
    group.attrs.update({"ome": {"version": "0.5", **names}} if version == "0.5" else names)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_open_as_a_segmentation(tmp_path, version):
    ids = noise(SHAPE, "uint64")
    write_image_with_labels(tmp_path, version, ids)
    assert resolve_source(tmp_path, None).layer_type == "image"
    for name in ("cells", "plain"):
        source = resolve_source(tmp_path / "labels" / name, None)
        assert source.layer_type == "segmentation"
        np.testing.assert_array_equal(source.read(0, source.levels[0].grid.box), ids)
        with pytest.raises(LayerError, match="open_segmentation"):
            resolve_source(tmp_path / "labels" / name, "image")
    with pytest.raises(
        SourceError, match="lists the labels of an image; give one of them: .*labels/cells, .*labels/plain"
    ):
        resolve_source(tmp_path / "labels", "segmentation")


def test_the_first_of_several_multiscales_is_opened(tmp_path):
    one_level(tmp_path)
    document = json.loads((tmp_path / "zarr.json").read_text())
    document["attributes"]["ome"]["multiscales"].append({"axes": [], "datasets": []})
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    assert len(open_ome(tmp_path).levels) == 1


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_every_dtype_is_read(tmp_path, version):
    multiscale = {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]}
    for dtype in ("bool", ">u2", "<i4", "float32", "int64"):
        values = (noise(SHAPE, "uint16") % 2).astype(dtype)
        write_ome(tmp_path / dtype, [values], dict(multiscale), version=version)
        found = open_ome(tmp_path / dtype).read(0, IndexBox.of_shape(SHAPE))
        assert found.dtype == (np.uint8 if dtype == "bool" else values.dtype.newbyteorder("="))
        assert open_ome(tmp_path / dtype).dtype == found.dtype
        np.testing.assert_array_equal(found, values)
    with pytest.raises(LayerError, match="float32, but ids are integers"):
        resolve_source(tmp_path / "float32", "segmentation")
    write_ome(tmp_path / "complex", [np.zeros(SHAPE, "complex64")], dict(multiscale), version=version)
    with pytest.raises(SourceError, match="supported are integers, floats and booleans"):
        open_ome(tmp_path / "complex")


def test_levels_of_different_dtypes_keep_their_dtypes(tmp_path):
    values = [noise((4, 8, 8)), noise((4, 4, 4), "uint16").astype("float32")]
    datasets = [level("0", (40, 8, 8)), level("1", (40, 16, 16))]
    write_ome(tmp_path, values, {"axes": axes_of("zyx"), "datasets": datasets})
    source = open_ome(tmp_path)
    assert (source.dtype, [lv.dtype for lv in source.levels]) == (np.dtype("uint8"), [None, "float32"])
    for mip, stored in enumerate(values):
        for box in boxes_of(stored.shape):
            found = source.read(mip, box)
            assert found.dtype == stored.dtype
            np.testing.assert_array_equal(found, read_padded(stored, box))


# ---------------------------------------------------------------------------------------------------------
# missing and damaged chunks


def write_holed(folder: Path, version: str = "0.5", fill: int = 0, **kwargs) -> np.ndarray:
    """Write 2 × 3 × 3 chunks without the one at (0, 1, 1); return the voxels."""
    values = noise((16, 48, 48))
    values[:8, 16:32, 16:32] = fill
    multiscale = {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8), (20, 4, 4))]}
    write_ome(folder, [values], multiscale, version=version, fill_value=fill, **kwargs)
    return values


class TestMissing:
    @pytest.mark.fast_forms(3)
    @pytest.mark.parametrize("options", [
        {}, {"version": "0.4"}, {"fill": 9}, {"version": "0.4", "chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"chunks": (4, 8, 8), "shards": (8, 16, 16)}, {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    ])  # fmt: skip
    def test_each_policy_for_missing_chunks(self, tmp_path, options):
        values = write_holed(tmp_path, **options)
        box = IndexBox.of_shape(values.shape)
        with pytest.raises(MissingChunkError) as caught:
            open_ome(tmp_path, missing="raise").read(0, box)
        message = str(caught.value)
        assert f"{tmp_path}, mip 0 (8 × 8 × 40 nm), box (0, 0, 0) to (48, 48, 16)" in message
        assert "does not have 1 of the chunks it needs: (16, 16, 0) to (32, 32, 8) in voxels" in message
        assert "may leave out chunks that hold only the fill value: missing='fill'" in message
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for part in boxes_of(values.shape, 4):
                np.testing.assert_array_equal(
                    open_ome(tmp_path, missing="fill").read(0, part), read_padded(values, part)
                )
                np.testing.assert_array_equal(open_ome(tmp_path).read(0, part), read_padded(values, part))
            beside = IndexBox((8, 0, 0), (16, 48, 48))
            np.testing.assert_array_equal(open_ome(tmp_path, missing="raise").read(0, beside), values[beside.slices()])
        with pytest.warns(MissingChunkWarning, match=r"mip 0: 1 missing chunk is .*: \(16, 16, 0\) to \(32, 32, 8\)"):
            np.testing.assert_array_equal(open_ome(tmp_path, missing="warn").read(0, box), values)

    def test_stored_background_is_not_a_missing_chunk(self, tmp_path):
        values = write_holed(tmp_path, config={"write_empty_chunks": True})
        source = open_ome(tmp_path, missing="raise")
        np.testing.assert_array_equal(source.read(0, IndexBox.of_shape(values.shape)), values)

    def test_a_chunk_left_out_of_a_shard_is_not_a_missing_chunk(self, tmp_path):
        values = write_holed(tmp_path, chunks=(4, 8, 8), shards=(8, 32, 32))
        np.testing.assert_array_equal(
            open_ome(tmp_path, missing="raise").read(0, IndexBox.of_shape(values.shape)), values
        )

    def test_missing_chunks_of_other_channels_are_ignored(self, tmp_path):
        values = np.stack([np.zeros((4, 16, 16), "uint8"), noise((4, 16, 16))])
        write_ome(
            tmp_path, [values], {"axes": axes_of("czyx"), "datasets": [level("0", (1, 40, 8, 8))]}, chunks=(1, 4, 8, 8)
        )
        box = IndexBox((0, 0, 0), (4, 16, 16))
        np.testing.assert_array_equal(open_ome(tmp_path, channel=1).read(0, box), values[1])
        with pytest.raises(
            MissingChunkError, match=r"4 of the chunks it needs: .*\(0, 8, 0\) to \(8, 16, 4\).*and 1 more"
        ):
            open_ome(tmp_path, channel=0, assume="corner", missing="raise").read(0, box)

    @pytest.mark.parametrize("missing", [None, "raise", "fill"])
    @pytest.mark.parametrize("size", [0, 40])
    @pytest.mark.parametrize("compressors", ["auto", None])
    def test_a_truncated_chunk_is_not_a_missing_chunk(self, tmp_path, missing, size, compressors):
        values = write_holed(tmp_path, compressors=compressors)
        file = tmp_path / "0" / "c" / "1" / "2" / "2"
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(ChunkReadError, match="mip 0 .*box") as caught:
            open_ome(tmp_path, missing=missing).read(0, IndexBox((8, 32, 32), (16, 48, 48)))
        assert not isinstance(caught.value, MissingChunkError)
        assert str(tmp_path) in str(caught.value)
        np.testing.assert_array_equal(open_ome(tmp_path).read(0, IndexBox((0, 0, 0), (8, 16, 48))), values[:8, :16])


class TestNoImage:
    def test_a_missing_volume_is_an_error(self, tmp_path):
        with pytest.raises(SourceNotFoundError, match="there is no folder"):
            open_ome(tmp_path / "absent")
        with pytest.raises(SourceNotFoundError, match=r"neither .*/zarr.json \(Zarr v3\) nor .*/.zattrs \(Zarr v2\)"):
            open_ome(tmp_path)

    @pytest.mark.parametrize("form", [2, 3])
    def test_a_bare_array_is_an_error_with_advice(self, tmp_path, form):
        one_level(tmp_path, version="0.5" if form == 3 else "0.4")
        with pytest.raises(SourceError, match="bare Zarr array.*its parent group") as caught:
            open_ome(tmp_path / "s0")
        assert f"zarr://file://{tmp_path})" in str(caught.value)
        assert "imageryxr.Grid" in str(caught.value)

    @pytest.mark.parametrize("form", [2, 3])
    def test_a_group_without_metadata_is_an_error_with_advice(self, tmp_path, form):
        zarr.open_group(str(tmp_path), mode="w", zarr_format=form)
        with pytest.raises(SourceError, match=r"no 'multiscales'.*dask\.array\.from_zarr"):
            open_ome(tmp_path)

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"plate": {"wells": [{"path": "B/3"}]}}, "plate of many images.*/B/3/0"),
            ({"bioformats2raw.layout": 3}, "images of a bioformats2raw folder.*/0"),
        ],
    )
    def test_a_group_of_images_lists_them(self, tmp_path, attributes, message):
        zarr.open_group(str(tmp_path), mode="w", zarr_format=2).attrs.update(attributes)
        with pytest.raises(SourceError, match=message):
            open_ome(tmp_path)

    @pytest.mark.parametrize("text", ["<html>", "[1]"])
    def test_invalid_json_is_an_error(self, tmp_path, text):
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(SourceError, match=r"zarr\.json (is not JSON|contains a list)"):
            open_ome(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"datasets": [{"path": "s0"}]}, "has no scale among its coordinateTransformations"),
            ({"datasets": [level("s0", (40, 8))]}, r"a scale of 2 numbers \[40, 8\] for its 3 axes z, y, x"),
            ({"datasets": [level("s0", (40, 8, "8"))]}, "the scale along x is '8'; it must be a finite number"),
            ({"datasets": [level("s0", (40, 8, 0))]}, "scale of 0 along x; it must be positive"),
            ({"datasets": [level("s1", (40, 8, 8))]}, "lists the level 's1', but there is no"),
            ({"datasets": []}, "datasets is empty"),
            ({"axes": axes_of("yx")}, "has 3 axes, but the metadata list 2"),
            ({"axes": 3}, "axes is 3; it must be a list"),
            ({"axes": []}, "states no axes, which version '0.5' of OME-Zarr requires"),
            (
                {"coordinateTransformations": [{"type": "rotation", "rotation": []}]},
                "of the type 'rotation'; supported are scale, translation",
            ),
        ],
    )
    def test_invalid_metadata_are_errors(self, tmp_path, change, message):
        one_level(tmp_path)
        document = json.loads((tmp_path / "zarr.json").read_text())
        document["attributes"]["ome"]["multiscales"][0].update(change)
        (tmp_path / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(SourceError, match=message):
            open_ome(tmp_path)

    def test_unsupported_protocols_are_errors(self):
        with pytest.raises(SourceError, match="read from file, http, https, s3, gs, not from mem://"):
            open_omezarr(parse_address("zarr://mem://a/b"))

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_an_unregistered_codec_is_an_error(self, tmp_path, version):
        one_level(tmp_path, version=version)
        file = tmp_path / "s0" / ("zarr.json" if version == "0.5" else ".zarray")
        document = json.loads(file.read_text())
        if version == "0.5":
            document["codecs"][-1] = {"name": "jetzt", "configuration": {}}
        else:
            document["compressor"] = {"id": "jetzt"}
        file.write_text(json.dumps(document))
        source = open_ome(tmp_path)
        assert source.levels[0].encoding == "jetzt"
        for use in (lambda: source.check(0), lambda: source.read(0, IndexBox((0, 0, 0), (1, 1, 1)))):
            with pytest.raises(CodecError, match="codec 'jetzt', which is not registered here; import the package"):
                use()


# ---------------------------------------------------------------------------------------------------------
# over HTTP and from buckets


@pytest.fixture
def no_waits(monkeypatch):
    """Remove the waits between retries."""
    monkeypatch.setattr(web, "LONGEST_WAIT", 0.0)


@pytest.fixture
def served(tmp_path, no_waits):
    values = noise((16, 48, 48))
    multiscale = {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]}
    write_ome(tmp_path, [values], multiscale)
    with serving(tmp_path) as server:
        yield server, values


BOX = IndexBox((0, 0, 0), (16, 48, 48))


class TestHttp:
    def test_an_address_without_a_format_opens(self, served):
        server, values = served
        source = resolve_source(server.url, "image")
        assert source.name == f"zarr://{server.url}"
        np.testing.assert_array_equal(source.read(0, BOX), values)

    def test_failing_metadata_requests_are_errors(self, served):
        server, _ = served
        for status, error in (
            (404, SourceNotFoundError),
            (403, SourceNotFoundError),
            (401, AuthError),
            (500, ChunkReadError),
        ):
            server.faults = {"/": status}
            with pytest.raises(error, match=server.url) as caught:
                open_ome(server.url)
            assert "Debug source" not in str(caught.value)

    def test_failing_chunk_requests_are_errors(self, served):
        server, _ = served
        source = open_ome(server.url, missing="raise")
        for status, error in (
            (404, MissingChunkError),
            (403, MissingChunkError),
            (401, AuthError),
            (500, ChunkReadError),
        ):
            server.faults = {"/0/c/0/1/1": status}
            with pytest.raises(error, match=server.url) as caught:
                source.read(0, BOX)
            assert (status == 403) == ("(HTTP 403)" in str(caught.value))
            assert "Debug source" not in str(caught.value)

    @pytest.mark.parametrize(("status", "missing"), [(404, "fill"), (403, "fill"), (404, None)])
    def test_chunks_answered_with_http_404_or_403_are_filled(self, served, status, missing):
        server, values = served
        server.faults = {"/0/c/0/1/1": status}
        values[:8, 16:32, 16:32] = 0
        np.testing.assert_array_equal(open_ome(server.url, missing=missing).read(0, BOX), values)

    @pytest.mark.parametrize(("status", "error"), [(403, MissingChunkError), (401, AuthError), (500, ChunkReadError)])
    def test_a_denied_or_failed_chunk_request_is_an_error_by_default(self, served, status, error):
        server, _ = served
        server.faults = {"/0/c/0/1/1": status}
        with pytest.raises(error, match=server.url):
            open_ome(server.url).read(0, BOX)

    @pytest.mark.parametrize("missing", ["fill", None])
    def test_lost_permissions_are_an_error_and_not_filled(self, served, missing):
        server, _ = served
        source = open_ome(server.url, missing=missing)
        server.faults = {"/": 403}
        with pytest.raises(AuthError, match="access to .* was denied"):
            source.read(0, BOX)

    def test_transient_errors_are_retried(self, served):
        server, values = served
        server.faults = {"/0/c/0/1/1": [503, 500]}
        np.testing.assert_array_equal(open_ome(server.url).read(0, BOX), values)
        assert server.requested.count("/0/c/0/1/1") == 3

    @pytest.mark.slow
    def test_an_interrupted_transfer_is_retried_and_then_an_error(self, served):
        server, values = served
        server.faults = {"/0/c/0/1/1": 0}
        with pytest.raises(ChunkReadError, match="mip 0"):
            open_ome(server.url, missing="fill").read(0, BOX)
        server.faults = {"/0/c/0/1/1": [0]}
        np.testing.assert_array_equal(open_ome(server.url).read(0, BOX), values)

    def test_a_refused_connection_is_an_error(self, no_waits):
        url = dead_url()
        with pytest.raises(ChunkReadError, match=f"could not read the metadata of zarr://{url}"):
            open_ome(url)

    def test_a_token_is_sent_but_never_shown(self, served):
        server, values = served
        server.needs = "Bearer verysecret"
        with pytest.raises(AuthError, match="check the token"):
            open_ome(server.url)
        options = {"token": "verysecret", "connection": Connection(memory_cache=0)}
        source = resolve_source(f"zarr://{server.url}", "image", **options)
        np.testing.assert_array_equal(source.read(0, BOX), values)
        other = resolve_source(f"zarr://{server.url}", "image", **options)
        assert source == other
        for shown in (repr(source), source.name, str(source.attrs), str(source.__dask_tokenize__()), tokenize(source)):
            assert "verysecret" not in shown
        server.needs = "Bearer another"
        with pytest.raises(AuthError) as caught:
            source.read(0, BOX)
        assert "verysecret" not in str(caught.value)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_reads(self, served):
        server, _ = served
        code = f"""
import os, sys
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.resolve import resolve_source
source = resolve_source({server.url!r}, "image")
box = IndexBox((0, 0, 0), (1, 2, 3))
truth = source.read(0, box)
child = os.fork()
if child == 0:
    os._exit(0 if (source.read(0, box) == truth).all() else 4)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        root = str(Path(__file__).resolve().parents[3])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=root, timeout=60, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_local_files(tmp_path):
    one_level(tmp_path)
    source = open_ome(tmp_path)
    box = IndexBox.of_shape(SHAPE)
    source.read(0, box)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if np.array_equal(source.read(0, box), noise(SHAPE)) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_s3_bucket_is_read(tmp_path, monkeypatch):
    server_module = pytest.importorskip("moto.server", reason="moto, which provides the S3 server, is not installed")
    boto3 = pytest.importorskip("boto3")
    one_level(tmp_path)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="bucket")
        for file in (p for p in tmp_path.rglob("*") if p.is_file()):
            client.upload_file(str(file), "bucket", f"em.ome.zarr/{file.relative_to(tmp_path)}")
        source = open_ome("s3://bucket/em.ome.zarr")
        np.testing.assert_array_equal(source.read(0, IndexBox.of_shape(SHAPE)), noise(SHAPE))
        with pytest.raises(SourceNotFoundError):
            open_ome("s3://bucket/absent")
    finally:
        server.stop()


def test_public_buckets_are_found_in_any_region(monkeypatch):
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    assert buckets.bucket_options("s3://janelia/em", "janelia") == {
        "skip_signature": True,
        "virtual_hosted_style_request": True,
        "endpoint": "https://janelia.s3.amazonaws.com",
    }
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert buckets.bucket_options("s3://janelia/em", "janelia") == {"skip_signature": True}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    assert buckets.bucket_options("s3://janelia/em", "janelia") == {}


# ---------------------------------------------------------------------------------------------------------
# damaged stored objects

PAGE = b"<!DOCTYPE html>\n<html><body>Please sign in</body></html>"


def write_packed(folder: Path, version: str, codec: str, shards: bool) -> tuple[np.ndarray, Path]:
    """Write an array of one chunk or one shard with a codec; return the voxels and the file of the chunk or shard."""
    import numcodecs
    from zarr import codecs

    new = {"blosc": codecs.BloscCodec(cname="lz4"), "zstd": codecs.ZstdCodec(), "gzip": codecs.GzipCodec(), "raw": None}
    old = {"blosc": numcodecs.Blosc("lz4"), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip(), "raw": None}
    values = np.kron(noise((2, 8, 8)), np.ones((4, 4, 4), "uint8"))
    layout = {"chunks": (4, 16, 16), "shards": values.shape} if shards else {"chunks": values.shape}
    multiscale = {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8), (20, 4, 4))]}
    packed = (new if version == "0.5" else old)[codec]
    write_ome(folder, [values], multiscale, version=version, compressors=packed, **layout)
    (file,) = [
        p for p in (folder / "0").rglob("*") if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs")
    ]
    return values, file


FORMS = [("0.4", False), ("0.5", False), ("0.5", True)]


@pytest.mark.parametrize(("version", "shards"), FORMS)
@pytest.mark.parametrize("codec", slow_except(["blosc", "zstd", "gzip", "raw"], "zstd"))
class TestDamage:
    @pytest.mark.fast_forms(12)
    @pytest.mark.parametrize("missing", ["raise", "fill"])
    @pytest.mark.parametrize("left", [0, 1, 15, 20, -1, -40])
    def test_a_truncated_object_is_damaged(self, tmp_path, version, shards, codec, missing, left, capfd):
        values, file = write_packed(tmp_path, version, codec, shards)
        whole, half = IndexBox.of_shape(values.shape), IndexBox((0, 0, 0), (3, 5, 6))
        for box in (whole, half):
            np.testing.assert_array_equal(open_ome(tmp_path).read(0, box), values[box.slices()])
        file.write_bytes(file.read_bytes()[:left])
        capfd.readouterr()
        for box in (whole, half):
            with pytest.raises(ChunkReadError, match="mip 0 .*box") as caught:
                open_ome(tmp_path, missing=missing).read(0, box)
            assert not isinstance(caught.value, MissingChunkError)
        assert capfd.readouterr().out == ""

    def test_a_login_page_is_damage(self, tmp_path, version, shards, codec):
        values, file = write_packed(tmp_path, version, codec, shards)
        file.write_bytes(PAGE)
        with pytest.raises(ChunkReadError, match="mip 0 .*box") as caught:
            open_ome(tmp_path, missing="fill").read(0, IndexBox.of_shape(values.shape))
        assert not isinstance(caught.value, MissingChunkError)


def test_html_of_the_length_of_a_raw_chunk_is_an_error(tmp_path):
    values, file = write_packed(tmp_path, "0.5", "raw", False)
    file.write_bytes(PAGE.ljust(values.size))
    with pytest.raises(ChunkReadError, match="it is HTML, such as a login page"):
        open_ome(tmp_path).read(0, IndexBox.of_shape(values.shape))


@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan"), 1e400])
@pytest.mark.parametrize("assume", ["center", "corner"])
def test_an_invalid_translation_is_an_error(tmp_path, wrong, assume):
    one_level(tmp_path, (40, 8, 8), (20, 4, 4))
    document = json.loads((tmp_path / "zarr.json").read_text())
    steps = document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    steps[1]["translation"][2] = wrong
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match="are not valid|translation"):
        open_ome(tmp_path, assume=assume)
