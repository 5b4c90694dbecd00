"""Planes at any angle: equal slices along the axes, keep labels exact, and read only the chunks that they cross."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import imageryxr as ix
from tests.conftest import no_compute, volume
from tests.support.slow import slow_except
from tests.support.volumes import IDS, as_source

rng = np.random.default_rng(5)
IMAGE = volume(rng.integers(0, 255, (12, 30, 34), dtype=np.uint8), (8, 8, 40), (11, -5, 2), layer_type="image")
SEG = volume(IDS[rng.integers(0, 6, (12, 30, 34))], (8, 8, 40), (11, -5, 2), layer_type="segmentation")
CUBE = volume(rng.integers(0, 2**16, (20, 20, 20), dtype=np.uint16), (10, 10, 10), (-3, 4, 7), layer_type="image")
FLOATS = volume(rng.normal(size=(9, 9, 9)).astype(np.float32), (10, 10, 10), (0, 0, 0), layer_type="image")


def point(da, z, y, x):
    """Return the centre (x, y, z nm) of a voxel."""
    return [float(da.x[x]), float(da.y[y]), float(da.z[z])]


@pytest.mark.parametrize(
    "da", [CUBE, CUBE.astype(np.uint64).assign_attrs(layer_type="segmentation"), FLOATS], ids=["image", "ids", "floats"]
)
@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("origin", [lambda da: da, as_source, lambda da: da.chunk({"z": 4, "y": 5, "x": 3})])
def test_a_plane_along_an_axis_equals_the_slice(da, axis, origin):
    at = 4
    with no_compute():
        cut = ix.plane(origin(da), point(da, at, at, at), (5, 5), normal=axis)
    part = da.isel({axis: [at], **{d: slice(at - 2, at + 3) for d in "zyx" if d != axis}})
    np.testing.assert_array_equal(cut.values[0], np.squeeze(part.values))
    assert cut.dtype == da.dtype


def test_a_plane_of_anisotropic_voxels_equals_regrid():
    cut = ix.plane(SEG, point(SEG, 6, 15, 17), (34, 60), normal="y", nm_per_pixel=8)
    side = ix.regrid(SEG, (8, 8, 8)).isel(y=[15])
    rows = side.z.values.tolist()
    first = cut.y.values[0]
    place = rows.index(first) if first in rows else None
    if place is None:  # The plane starts above the volume.
        place = -cut.y.values.tolist().index(rows[0])
    height = min(60 + min(place, 0), len(rows) - max(place, 0))
    np.testing.assert_array_equal(cut.values[0, max(-place, 0) :][:height], side.values[max(place, 0) :, 0][:height])
    np.testing.assert_array_equal(cut.x.values, SEG.x.values)


@settings(max_examples=40)
@given(
    st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1),
    st.tuples(*[st.floats(-60, 60)] * 3),
    st.sampled_from([3.0, 8.0, 13.7]),
    st.booleans(),
)
def test_any_plane_equals_scipy_and_a_slow_loop(normal, shift, step, labels):
    from scipy.ndimage import map_coordinates

    da = SEG if labels else IMAGE
    center = np.array(point(da, 6, 15, 17)) + shift
    cut = ix.plane(as_source(da), center, (15, 11, 2), normal=normal, nm_per_pixel=step)
    u, v, n = np.reshape(cut.attrs["plane_axes"], (3, 3))
    np.testing.assert_allclose([u @ v, u @ n, v @ n], 0, atol=1e-12)
    np.testing.assert_allclose(np.cross(u, v), n, atol=1e-12)
    grid = ix.grid_of(da)
    k, j, i = np.meshgrid(np.arange(2) - 1, np.arange(11) - 5, np.arange(15) - 7, indexing="ij")
    places = center + step * (i[..., None] * u + j[..., None] * v + k[..., None] * n)
    index = (places / grid.resolution - grid.voxel_offset)[..., ::-1]  # (z, y, x), voxel 0 from 0 to 1
    voxel = np.floor(index).astype(int)
    inside = ((voxel >= 0) & (voxel < da.shape)).all(axis=-1)
    clear = (np.abs(index - np.rint(index)) > 1e-5).all(axis=-1)
    if labels:
        truth = np.zeros(cut.shape, np.uint64)
        truth[inside] = da.values[tuple(voxel[inside].T)]
        np.testing.assert_array_equal(cut.values[clear], truth[clear])
    else:
        truth = map_coordinates(da.values.astype(float), np.moveaxis(index - 0.5, -1, 0), order=1, mode="nearest")
        truth[~inside] = 0
        assert np.abs(cut.values - truth)[clear].max(initial=0) <= 0.5 + 1e-3
    # The coordinates are those of the volume, rotated with the plane.
    np.testing.assert_allclose(cut.x.values, (places @ u)[0, 0], rtol=1e-9, atol=1e-4)
    np.testing.assert_allclose(cut.y.values, (places @ v)[0, :, 0], rtol=1e-9, atol=1e-4)
    np.testing.assert_allclose(cut.z.values, (places @ n)[:, 0, 0], rtol=1e-9, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_plane_has_equal_values_for_any_kind_of_array(seed):
    local = np.random.default_rng(seed)
    normal, up = local.normal(size=3), local.normal(size=3)
    for da in (IMAGE, SEG):
        options = {"center": point(da, 5, 14, 20), "size": (21, 17, 3), "normal": normal, "up": up}
        truth = ix.plane(da, **options)
        for other in (as_source(da), da.chunk({"z": 5, "y": 7, "x": 9}), ix.crop(as_source(da), ix.grid_of(da).bbox)):
            np.testing.assert_array_equal(ix.plane(other, **options).values, truth.values)
        small = ix.plane(as_source(da).chunk({"z": 3, "y": 8, "x": 8}), **options)
        np.testing.assert_array_equal(small.chunk({"y": 5, "x": 6}).values, truth.values)


@pytest.mark.parametrize("normal", ["z", "y", (1, 2, 0.4)])
@pytest.mark.parametrize("da", [IMAGE, SEG], ids=["image", "ids"])
def test_a_plane_of_a_part_has_no_data_beyond_its_border(da, normal):
    part = {"z": slice(2, 9), "y": slice(8, 20), "x": slice(5, 25)}
    options = {"center": point(da, 3, 9, 6), "size": (40, 31, 2), "normal": normal}
    truth = ix.plane(da.isel(part), **options)
    for other in (as_source(da), as_source(da).chunk({"z": 3, "y": 8, "x": 8}), da.chunk({"z": 5, "y": 7, "x": 9})):
        np.testing.assert_array_equal(ix.plane(other.isel(part), **options).values, truth.values)
        np.testing.assert_array_equal(ix.plane(ix.crop(other, ix.grid_of(da.isel(part)).bbox), **options), truth)


def test_tiles_of_a_plane_equal_the_whole_plane(monkeypatch):
    from imageryxr.graph import oblique

    options = {"center": point(IMAGE, 5, 14, 20), "size": (40, 33, 5), "normal": (1, 2, 0.4), "nm_per_pixel": 9}
    truth = {name: ix.plane(as_source(da), **options).values for name, da in (("image", IMAGE), ("ids", SEG))}
    monkeypatch.setattr(oblique, "TILE_PIXELS", 100)
    for name, da in (("image", IMAGE), ("ids", SEG)):
        np.testing.assert_array_equal(ix.plane(as_source(da), **options).values, truth[name])


def test_the_direction_up_points_to_the_top_of_the_picture():
    # A bright voxel above the centre, in z, must appear in the upper half.
    values = np.zeros((9, 9, 9), np.uint8)
    values[1, 4, 4] = 255
    da = volume(values, (10, 10, 10), layer_type="image")
    cut = ix.plane(da, point(da, 4, 4, 4), (9, 9), normal=(0, 1, 0), up=(0, 0, -1)).values[0]
    assert cut[1, 4] == 255
    assert ix.plane(da, point(da, 4, 4, 4), (9, 9), normal=(0, 1, 0), up=(0, 0, 1)).values[0][7, 4] == 255


@pytest.mark.parametrize(
    ("quaternion", "named"), [((0, 0, 0, 1), "z"), ((0.5, 0.5, 0.5, 0.5), None), ((0, 0, 2**-0.5, 2**-0.5), None)]
)
def test_orientations_equal_those_of_neuroglancer(quaternion, named):
    from scipy.spatial.transform import Rotation

    cut = ix.plane(IMAGE, point(IMAGE, 6, 15, 17), (9, 9), orientation=quaternion)
    np.testing.assert_allclose(
        np.reshape(cut.attrs["plane_axes"], (3, 3)), Rotation.from_quat(quaternion).as_matrix().T, atol=1e-12
    )
    if named:
        np.testing.assert_array_equal(cut.values, ix.plane(IMAGE, point(IMAGE, 6, 15, 17), (9, 9), normal=named).values)


def test_a_plane_reads_only_the_chunks_that_it_crosses(tmp_path, monkeypatch):
    from cloudvolume import CloudVolume

    from imageryxr.sources.precomputed import source as precomputed

    values = rng.integers(0, 255, (128, 128, 128), dtype=np.uint8)
    info = CloudVolume.create_new_info(
        1, "image", "uint8", "raw", [8, 8, 8], [3, 5, 7], [128, 128, 128], chunk_size=[16, 16, 16]
    )
    vol = CloudVolume(f"file://{tmp_path}", info=info)
    vol.commit_info()
    vol[:, :, :] = values.T[..., None]
    em = ix.open_image(tmp_path)
    read_boxes = []
    original = precomputed.PrecomputedSource.read
    monkeypatch.setattr(
        precomputed.PrecomputedSource, "read", lambda self, mip, box: read_boxes.append(box) or original(self, mip, box)
    )
    cut = ix.plane(em, point(em, 64, 64, 64), (150, 150), normal=(1, 1, 0))
    with no_compute():
        lazy = ix.plane(em, point(em, 64, 64, 64), (150, 150), normal=(1, 1, 0))
    assert read_boxes == []
    cut.load()
    assert lazy.data.name == ix.plane(em, point(em, 64, 64, 64), (150, 150), normal=(1, 1, 0)).data.name
    # 8 x 8 x 8 chunks, of which a diagonal plane crosses two or three in each of 8 columns and 8 slices.
    assert len(read_boxes) <= 8 * 8 * 3
    boxes = set()
    for box in read_boxes:
        chunk = tuple(a // 16 for a in box.start)
        assert all((b - 1) // 16 == a // 16 for a, b in zip(box.start, box.stop, strict=True)), "one chunk a read"
        assert chunk not in boxes, "no chunk twice"
        boxes.add(chunk)
    assert sum(box.voxels for box in read_boxes) < 0.3 * values.size


def test_an_overlay_of_a_plane_has_the_shape_of_the_plane():
    ds = ix.plane(xr_dataset(), point(IMAGE, 6, 15, 17), (20, 16), normal=(1, 2, 3))
    picture = ix.overlay(ds.image, ds.segmentation, alpha=0.4, outline=1)
    assert picture.shape == (1, 16, 20, 4)
    assert ix.scale_bar(ix.to_pil(picture, scale=8), nm_per_pixel=1).size == (160, 128)


def xr_dataset():
    import xarray as xr

    return xr.Dataset({"image": as_source(IMAGE), "segmentation": as_source(SEG)})


def test_the_plane_of_a_link_follows_its_orientation(sample):
    half = [0.5, 0.5, 0.5, 0.5]
    state = {
        "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        "position": [4600.5, 2560.5, 130.5], "crossSectionScale": 4, "crossSectionOrientation": half,
        "layers": [{"type": "image", "name": "em", "source": sample.image}, {"type": "segmentation", "name": "s", "source": sample.segmentation}],
    }  # fmt: skip
    tree = ix.open_neuroglancer(state, allow_local=True)
    ds = tree.imagery.plane((60, 40))
    assert ix.grid_of(ds).resolution == (32, 32, 32)
    assert ds.em.attrs["mip"] == 2
    assert ds.s.attrs["mip"] == 1
    truth = ix.plane(
        ix.open_segmentation(sample.segmentation, mip=1),
        (4600.5, 2560.5, 130.5),
        (60, 40),
        orientation=half,
        nm_per_pixel=32,
        resolution=(8, 8, 40),
    )
    np.testing.assert_array_equal(ds.s.values, truth.values)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": (5,)}, ix.errors.OptionError, "2 or 3 whole numbers"),
        ({"size": (5, 2.5)}, ix.errors.OptionError, "2 or 3 whole numbers"),
        ({"center": (1, 2)}, ix.errors.BoxError, "3 numbers"),
        ({"center": (1, 2, float("nan"))}, ix.errors.BoxError, "finite"),
        ({"normal": "w"}, ix.errors.OptionError, "'w'"),
        ({"normal": (0, 0, 0)}, ix.errors.OptionError, "has length 0"),
        ({"normal": (0, 0, 1), "up": (0, 0, 1)}, ix.errors.OptionError, "is parallel to"),
        ({"orientation": (0, 0, 0, 0)}, ix.errors.OptionError, "quaternion"),
        ({"nm_per_pixel": 0}, ix.errors.OptionError, "nm_per_pixel"),
        ({"method": "mean"}, ix.errors.OptionError, "'mean'"),
    ],
)
def test_invalid_planes_raise(options, error, message):
    with pytest.raises(error, match=message):
        ix.plane(IMAGE, **{"center": (100, 100, 100), "size": (5, 5), **options})


def test_planes_never_interpolate_labels():
    with pytest.raises(ix.errors.OptionError, match="'linear' must be 'nearest' to cut a segmentation"):
        ix.plane(SEG, (1, 1, 1), (4, 4), method="linear")


def test_a_plane_outside_the_volume_raises():
    """The error suggests another unit or another order of the numbers."""
    far = volume(np.ones((12, 30, 34), np.uint8), (8, 8, 40), (1100, 500, 20), layer_type="image")
    center = point(far, 6, 15, 17)
    for obj in (far, far.to_dataset(name="image")):
        assert obj.imagery.plane(center, (9, 9)).sizes["x"] == 9
        with pytest.raises(ix.errors.OutOfVolumeError, match="fit the other way round"):
            ix.plane(obj, center[::-1], (2, 2), normal=(1, 1, 0.2))
        with pytest.raises(ix.errors.OutOfVolumeError, match="Its numbers fit if they are nanometres"):
            ix.plane(obj, center, (9, 9), resolution=(8, 8, 40))


def test_a_plane_wholly_outside_raises_and_layers_outside_warn(sample):
    em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    options = {"normal": (0.2, 1, 1), "resolution": (8, 8, 40)}
    with pytest.raises(ix.errors.OutOfVolumeError, match="wholly outside the volume"):
        ix.plane(em, (1e7, 2560, 130), (64, 48), **options)
    with pytest.raises(ix.errors.OutOfVolumeError, match="nanometres"):
        ix.plane(em, (4600 * 8, 2560 * 8, 130 * 40), (64, 48), **options)
    ds = ix.align(em, seg)
    with pytest.raises(ix.errors.OutOfVolumeError):
        ix.plane(ds, (1e7, 2560, 130), (64, 48), **options)
    moved = em.assign_coords(x=em.x + 1e6)
    there = xr.Dataset(attrs={"position": (4600.5 + 125000, 2560.5, 130.5)})
    tree = xr.DataTree.from_dict({"/": there, "/a": moved.to_dataset(name="image"), "/b": em.to_dataset(name="image")})
    with pytest.warns(ix.errors.LinkWarning, match="'b' does not overlap the picture"):
        assert list(tree.imagery.plane((64, 48))) == ["a"]
    assert ix.plane(em, (4096, 2560, 130), (64, 48), **options).shape == (1, 48, 64)  # half of the plane lies outside


# --- values that floats cannot represent ------------------------------------------------------------------------


def test_a_mask_does_not_grow_when_cut_or_resampled():
    mask = np.zeros((5, 9, 9), bool)
    mask[2, 4, 4] = True
    da = volume(mask, (8, 8, 8), (0, 0, 0), layer_type="image")
    for center in ((4, 4, 2), (4.5, 4.5, 2.5), (4.25, 4.75, 2)):
        cut = ix.plane(da, center, (9, 9), resolution=(8, 8, 8), method="linear")
        assert cut.dtype == bool
        assert int(cut.sum()) <= 1
    assert int(ix.plane(da, (4, 4, 2), (9, 9), resolution=(8, 8, 8)).sum()) == 1
    assert int(ix.regrid(da, ix.Grid((5, 9, 9), (8, 8, 8), (0.5, 0.5, 0))).sum()) == 1


@pytest.mark.parametrize(
    "dtype", slow_except([np.uint64, np.int64, np.uint32, np.int32, np.uint8, np.int8], np.uint64, np.int8)
)
@pytest.mark.parametrize("end", ["min", "max"])
def test_linear_planes_keep_the_extremes_of_an_integer_type(dtype, end):
    value = getattr(np.iinfo(dtype), end)
    da = volume(np.full((4, 9, 9), value, dtype), (8, 8, 8), (0, 0, 0), layer_type="image")
    for normal in ("z", "y", (1, 1, 0.3)):
        assert (ix.plane(da, (4.3, 4.2, 2.1), (3, 3), resolution=(8, 8, 8), normal=normal).values == value).all()
    for method in ("linear", "mean", "nearest"):
        assert (ix.regrid(da, (12, 12, 12), method=method).values == value).all()


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8), st.tuples(*[st.sampled_from([0, 0.25, 0.5, 0.75])] * 3)
)
@example([2**64 - 1] + [0] * 7, (0, 0, 0.25))
@example([2**64 - 1] * 7 + [0], (0.25, 0.25, 0.25))
@example([0] + [2**64 - 1] * 7, (0.75, 0, 0))
def test_linear_values_of_64_bit_integers_are_within_a_float_of_the_exact_mean(values, shift):
    from fractions import Fraction

    da = volume(np.array(values, np.uint64).reshape(2, 2, 2), (1, 1, 1), (0, 0, 0), layer_type="image")
    x, y, z = shift
    got = int(ix.plane(da, (0.5 + x, 0.5 + y, 0.5 + z), (1, 1)).values[0, 0, 0])
    expected = sum(
        Fraction(int(da.values[k, j, i])) * Fraction(x if i else 1 - x) * Fraction(y if j else 1 - y) * Fraction(z if k else 1 - z)
        for k in (0, 1) for j in (0, 1) for i in (0, 1)
    )  # fmt: skip
    assert abs(got - expected) <= Fraction(1, 2) + Fraction(max(values) - min(values), 2**50)


@pytest.mark.parametrize("offset", [2**31, 2**33 + 1, 2**40, -(2**40)])
@pytest.mark.parametrize("resolution", [(8, 8, 40), (4.04, 4.04, 40), (4.031234567, 3.9, 40)])
def test_positions_far_from_the_origin_are_as_exact_as_near_it(offset, resolution):
    values = np.random.default_rng(3).normal(size=(6, 12, 12))

    def results(o):
        da = volume(values, resolution, (o, o, o), layer_type="image")
        assert ix.grid_of(da).voxel_offset == (o, o, o)
        cut = ix.plane(da, (o + 6.3, o + 6.2, o + 3.1), (5, 5), resolution=resolution, nm_per_pixel=resolution[0])
        return cut.values, ix.regrid(da, ix.Grid((6, 12, 12), resolution, (o + 0.25, o + 0.25, o))).values

    for far, near in zip(results(offset), results(0), strict=True):
        np.testing.assert_allclose(far, near, rtol=0, atol=1e-9)


def test_a_rounded_ratio_of_resolutions_causes_no_drift_along_a_long_axis():
    from imageryxr.core.axis_mapping import AxisMap
    from imageryxr.core.grid import Axis

    target, source = Axis(2**32, 4.031234567890123, 0), Axis(2**33, 3.987654321098765, 0)
    there = AxisMap.from_axes(target, source)
    start = 2**31
    exact = [(start + i + 0.5) * 4.031234567890123 / 3.987654321098765 for i in range(50)]
    np.testing.assert_array_equal(there.nearest(start, start + 50), np.floor(exact).astype(np.int64))
    linear = there.linear(start, start + 50, (0, 2**33))
    np.testing.assert_allclose(linear.lower + linear.weight, np.array(exact) - 0.5, rtol=0, atol=2e-6)
