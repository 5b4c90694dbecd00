from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import GridError, LayerError, OptionError, SourceError
from imageryxr.sources.memory import MemorySource, memory_source
from imageryxr.sources.resolve import resolve_source
from tests.support.source_suite import SourceSuite, noise

GRID = Grid((23, 31, 29), (4.04, 4.04, 40), (-7, 5, 3))


def labelled_array(values, grid=GRID, **attrs):
    return xr.DataArray(values, dims=("z", "y", "x"), coords=grid.coords(), attrs=attrs)


class TestNumpy(SourceSuite):
    small = False

    def write(self, folder):
        pass

    def open(self, folder):
        return memory_source(labelled_array(noise(GRID.shape)), "image")

    def truth(self):
        return [noise(GRID.shape)]

    def grids(self):
        return [GRID]

    def open_without_voxels(self, folder, empty):
        def refuse(block):
            raise AssertionError("a block was computed")

        lazy = da.from_array(noise(GRID.shape), chunks=8).map_blocks(refuse, meta=np.empty((0, 0, 0), "uint8"))
        return memory_source(labelled_array(lazy), "image")

    def others(self, folder):
        values = noise(GRID.shape)
        close = Grid(GRID.shape, (4.0400001, 4.04, 40), GRID.voxel_offset)
        changed = values.copy()
        changed[3, 4, 5] += 1
        return [
            memory_source(labelled_array(values), "segmentation"),
            memory_source(labelled_array(changed), "image"),
            MemorySource(values, close, "image"),
            MemorySource(values, Grid(GRID.shape, GRID.resolution, (-7, 5, 4)), "image"),
        ]


class TestDask(TestNumpy):
    def open(self, folder):
        return memory_source(labelled_array(da.from_array(noise(GRID.shape), chunks=(8, 16, 16))), "image")

    def test_chunks_of_a_dask_array_are_its_blocks(self, source):
        assert source.levels[0].chunks == (8, 16, 16)


class TestUint64(TestNumpy):
    def open(self, folder):
        return memory_source(labelled_array(noise(GRID.shape, "uint64")), "segmentation")

    def truth(self):
        return [noise(GRID.shape, "uint64")]

    def open_without_voxels(self, folder, empty):
        return self.open(folder)

    def others(self, folder):
        return []


def test_big_endian_arrays_are_read_in_native_order():
    values = noise(GRID.shape, "uint16")
    source = memory_source(labelled_array(values.astype(">u2")), "image")
    found = source.read(0, GRID.box)
    assert found.dtype == source.dtype == np.dtype("uint16")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values)


def test_dims_may_be_in_any_order():
    values = noise(GRID.shape)
    source = memory_source(labelled_array(values).transpose("x", "z", "y"), "image")
    np.testing.assert_array_equal(source.read(0, GRID.box), values)


def test_the_resolution_attribute_gives_the_grid_of_an_array_without_coordinates():
    array = xr.DataArray(noise((2, 3, 4)), dims=("z", "y", "x"), attrs={"resolution": (8, 8, 40)})
    assert memory_source(array, "image").levels[0].grid == Grid((2, 3, 4), (8, 8, 40), (0, 0, 0))


def test_attributes_other_than_those_of_the_grid_are_kept():
    array = labelled_array(
        noise(GRID.shape), contrast_limits=(3, 200), mip=4, resolution=GRID.resolution, source="gs://em"
    )
    source = memory_source(array, "image")
    assert source.attrs == {"contrast_limits": (3, 200), "source": "gs://em"}


@pytest.mark.parametrize("bare", [np.zeros((2, 3, 4), "uint8"), da.zeros((2, 3, 4), dtype="uint8")])
def test_a_bare_array_is_an_error(bare):
    with pytest.raises(GridError, match=r"coords=imageryxr\.Grid\("):
        resolve_source(bare, "image")


def test_dims_other_than_z_y_x_are_an_error():
    with pytest.raises(LayerError, match="'c'"):
        memory_source(xr.DataArray(np.zeros((2, 2, 2, 2)), dims=("c", "z", "y", "x")), "image")


def test_a_dataset_in_place_of_a_layer_is_an_error():
    with pytest.raises(LayerError, match=r"obj\['image'\]"):
        resolve_source(labelled_array(noise(GRID.shape)).to_dataset(name="image"), "image")


@pytest.mark.parametrize("thing", [7, None, object(), ["a", "b"]])
def test_objects_that_are_not_addresses_are_errors(thing):
    with pytest.raises(SourceError, match="is not an address; give a URL or a path"):
        resolve_source(thing, "image")


class TestResolve:
    def test_the_layer_type_is_guessed_from_the_dtype(self):
        small, wide, real = (labelled_array(noise(GRID.shape, t)) for t in ("uint8", "uint64", "float32"))
        assert resolve_source(small, None).layer_type == "image"
        assert resolve_source(wide, None).layer_type == "segmentation"
        assert resolve_source(small, "segmentation").layer_type == "segmentation"
        assert resolve_source(real, None).layer_type == "image"
        labels = labelled_array(noise(GRID.shape), layer_type="segmentation")
        assert resolve_source(labels, None).layer_type == "segmentation"

    @pytest.mark.parametrize("kind", ["int8", "int32", "int64"])
    def test_signed_ids_keep_their_dtype(self, kind):
        source = resolve_source(labelled_array(noise(GRID.shape).astype(kind)), "segmentation")
        assert source.read(0, IndexBox((0, 0, 0), (1, 2, 3))).dtype == kind

    def test_floats_do_not_open_as_ids(self):
        with pytest.raises(LayerError, match="ids are integers.*open_image"):
            resolve_source(labelled_array(noise(GRID.shape, "float32")), "segmentation")

    def test_a_boolean_mask_as_a_segmentation_is_an_error(self):
        with pytest.raises(LayerError, match=r"array\.astype\('uint8'\)"):
            resolve_source(labelled_array(noise(GRID.shape) > 3), "segmentation")

    def test_a_segmentation_does_not_open_as_an_image(self):
        labels = labelled_array(noise(GRID.shape, "uint64"), layer_type="segmentation")
        with pytest.raises(LayerError, match="open_segmentation"):
            resolve_source(labels, "image")

    def test_a_source_is_returned_unchanged(self):
        source = memory_source(labelled_array(noise(GRID.shape)), "image")
        assert resolve_source(source, "image") is source
        assert resolve_source(source, None) is source
        assert resolve_source(source, "segmentation").layer_type == "segmentation"

    def test_unknown_option_values_are_errors(self):
        array = labelled_array(noise(GRID.shape))
        with pytest.raises(OptionError, match="missing='ignore'"):
            resolve_source(array, "image", missing="ignore")
        with pytest.raises(OptionError, match="assume='edge'"):
            resolve_source(array, "image", assume="edge")
        with pytest.raises(SourceError, match="it has one channel; give channel=0, or nothing"):
            resolve_source(array, "image", channel=1)
        assert resolve_source(array, "image", channel=0, time=0).layer_type == "image"
