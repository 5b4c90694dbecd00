"""The transforms that `neuroglancer_link` writes, read by `open_neuroglancer` and by the rules of the viewer.

The rules are those of Neuroglancer's ``coordinate_transform.ts`` and ``render_coordinate_transform.ts``: the matrix acts
on physical lengths, and its last column is in units of the output dimensions.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.core.grid import Grid
from imageryxr.neuroglancer.fetch import load_state
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.precomputed import write_layer

GRIDS = [
    Grid((8, 24, 32), (4.04, 4.04, 40), (-21, 5, 3)),
    Grid((8, 12, 16), (8.08, 8.08, 40), (-11, 2, 3)),
    Grid((4, 6, 8), (16.16, 16.16, 80), (-5, 1, 1)),
]
MOVES = {
    "whole voxels": {"x": (1, 404), "y": (1, -80.8), "z": (1, 40)},
    "parts of a voxel": {"x": (1, 1.7), "z": (1, -13)},
    "far": {"x": (1, 4000), "y": (1, -123456.5), "z": (1, 1e6)},
    "scaled": {"x": (1.02, 0), "y": (0.98, 7), "z": (1, 0)},
}


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(1)
    levels = [rng.integers(0, 255, grid.shape, np.uint8) for grid in GRIDS]
    write_layer(tmp_path / "em", levels, GRIDS)
    return f"precomputed://file://{tmp_path / 'em'}"


def move(array, change):
    return array.assign_coords({axis: array[axis] * f + s for axis, (f, s) in change.items()})


def reopen(obj, name="image", **options):
    """Return the state of a link, and its layer as `open_neuroglancer` opens it; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ix.errors.LinkWarning)
        link = ix.neuroglancer_link(obj, allow_local=True)
        tree = ix.open_neuroglancer(link, allow_local=True)
    return load_state(link), next(v for v in tree[name].to_dataset().data_vars.values())


def check_same_place(opened, array, rtol=1e-9):
    """Check that the voxels of an array are at the same coordinates in a layer that contains it."""
    part = opened.sel({d: array[d] for d in "zyx"}, method="nearest")
    for axis in "xyz":
        np.testing.assert_allclose(part[axis].values, array[axis].values, rtol=rtol, atol=1e-4)
    np.testing.assert_array_equal(part.values, array.values)


def viewer_place(layer, names, sizes, point):
    """Return where the viewer shows a point of a source, given in nm along its axes `names` with voxels of `sizes`."""
    transform = layer["source"]["transform"]
    outputs = transform["outputDimensions"]
    inputs = transform.get("inputDimensions", dict(zip(names, ([s * 1e-9, "m"] for s in sizes), strict=True)))
    stated = [inputs[n][0] / (s * 1e-9) for n, s in zip(names, sizes, strict=True)]
    lengths = dict(zip(names, np.multiply(point, stated), strict=True))
    assert len(transform["matrix"]) == len(outputs) == len(inputs)
    at = {}
    for row, (name, (scale, unit)) in zip(transform["matrix"], outputs.items(), strict=True):
        assert unit == "m"
        at[name] = float(np.dot(row[:-1], [lengths[n] for n in inputs])) + row[-1] * scale * 1e9
    return at


@pytest.mark.parametrize("mip", [0, 1, 2])
@pytest.mark.parametrize("change", MOVES.values(), ids=MOVES)
def test_a_layer_with_changed_coordinates_is_shown_there(stored, mip, change):
    array = ix.open_image(stored, mip=mip)
    moved = move(array, change)
    part = {"x": slice(3, 7), "y": slice(1, 5), "z": slice(1, 4)}
    for shown in (moved.chunk(4), moved.isel(part), moved):
        state, opened = reopen(shown)
        at = viewer_place(state["layers"][0], "xyz", GRIDS[0].resolution, [float(array[a][2]) for a in "xyz"])
        for axis in "xyz":
            assert at[axis] == pytest.approx(float(moved[axis][2]), abs=1e-4, rel=1e-9)
        if mip == 0:
            check_same_place(opened, shown)


def test_values_that_xarray_has_cached_keep_their_place(stored):
    em = ix.open_image(stored)
    assert em.values.any()
    moved = move(em, {"x": (1, 404)})
    for shown in (moved, moved.isel(x=slice(3, 7)), moved.isel(z=2)):
        _, opened = reopen(shown)
        assert ix.grid_of(opened) == ix.grid_of(moved)


def test_a_slice_with_changed_coordinates_is_shown_there(stored):
    em = move(ix.open_image(stored), {"x": (1, 4000), "z": (1, 40)})
    for shown in (em.isel(z=3), em.isel(z=[3], y=2), em.sel(z=em.z[3]).transpose("x", "y")):
        _, opened = reopen(shown)
        assert ix.grid_of(opened) == ix.grid_of(em)


def test_an_array_at_its_own_coordinates_has_no_transform(stored):
    em = ix.open_image(stored, mip=1)
    other = ix.regrid(em, like=ix.Grid((8, 8, 10), (12, 12, 40), (-7, 1, 3)))
    for array in (em, em[1:4, 2:7, 3:9], em.isel(x=slice(None, None, 2)), other, em.compute(), other.compute()):
        state, _ = reopen(array)
        assert isinstance(state["layers"][0]["source"], str)
    state, _ = reopen(move(move(em, MOVES["far"]), {a: (f, -s) for a, (f, s) in MOVES["far"].items()}))
    assert isinstance(state["layers"][0]["source"], str)


def test_each_layer_of_an_aligned_dataset_has_its_own_transform(stored, tmp_path):
    grid = Grid((8, 12, 16), (8.08, 8.08, 40), (-11, 2, 3))
    write_layer(
        tmp_path / "seg", [np.arange(1, 1537, dtype=np.uint64).reshape(grid.shape)], [grid], kind="segmentation"
    )
    em = move(ix.open_image(stored), {"x": (1, 16.16), "z": (1, -40)})
    seg = move(ix.open_segmentation(f"precomputed://file://{tmp_path / 'seg'}"), {"y": (1, 10.1)})
    for ds in (ix.align(em, seg), ix.align(em, seg, to="segmentation"), ix.align(em, seg).chunk()):
        link = ix.neuroglancer_link(ds, allow_local=True)
        tree = ix.open_neuroglancer(link, allow_local=True)
        assert ix.grid_of(tree["image/image"]) == ix.grid_of(em)
        assert ix.grid_of(tree["segmentation/segmentation"]) == ix.grid_of(seg)


TRANSFORMS = {
    "scale and shift": {"outputDimensions": {"x": [4e-9, "m"], "y": [4e-9, "m"], "z": [4e-8, "m"]},
                        "matrix": [[2, 0, 0, 100], [0, 1, 0, -7], [0, 0, 1.5, 0]]},
    "exchanged axes": {"outputDimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
                       "matrix": [[0, 2, 0, 10], [0, 0, 1, 0], [0.5, 0, 0, -3]]},
    "voxel size": {"outputDimensions": {"x": [5e-9, "m"], "y": [5e-9, "m"], "z": [5e-8, "m"]},
                   "inputDimensions": {"x": [5e-9, "m"], "y": [5e-9, "m"], "z": [5e-8, "m"]}},
    "axes by name": {"outputDimensions": {"z": [4e-8, "m"], "x": [4e-9, "m"], "y": [4e-9, "m"]},
                     "inputDimensions": {"z": [4e-8, "m"], "x": [4.04e-9, "m"], "y": [4.04e-9, "m"]},
                     "matrix": [[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, -20]]},
    "names by position": {"outputDimensions": {"y": [4.04e-9, "m"], "x": [4.04e-9, "m"], "z": [4e-8, "m"]}},
    "duplicate names": {"outputDimensions": {"x": [1e-9, "m"], "y": [1e-9, "m"]}, "sourceRank": 1,
                        "matrix": [[1, 0, 9], [0, 1, 9]]},
}  # fmt: skip


@pytest.mark.parametrize("change", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_transform_of_a_link_is_moved(stored, transform, change):
    layer = {
        "type": "image",
        "name": "em",
        "source": {"url": stored, "transform": transform, "subsources": {"bounds": False}},
    }
    tree = ix.open_neuroglancer({"layers": [layer]}, allow_local=True)
    state, _ = reopen(tree, "em")
    assert state["layers"][0]["source"] == layer["source"]
    tree["em"] = tree["em"].to_dataset().pipe(move, change)
    moved = tree["em/image"]
    state, opened = reopen(tree, "em")
    assert state["layers"][0]["source"]["subsources"] == {"bounds": False}
    check_same_place(opened, moved)
    again, _ = reopen(ix.open_neuroglancer(state, allow_local=True), "em")
    assert again["layers"][0]["source"] == state["layers"][0]["source"]


def test_an_older_transform_is_replaced_when_the_layer_is_moved(stored):
    layer = {
        "type": "image",
        "name": "em",
        "source": stored,
        "transform": {"translation": [80, 0, 0], "scale": [2, 1, 1]},
    }
    tree = ix.open_neuroglancer({"layers": [layer]}, allow_local=True)
    tree["em"] = tree["em"].to_dataset().pipe(move, {"x": (1, -40), "z": (1, 80)})
    moved = tree["em/image"]
    state, opened = reopen(tree, "em")
    assert "transform" not in state["layers"][0]
    check_same_place(opened, moved)


def test_meshes_move_with_their_segmentation(tmp_path):
    write_layer(tmp_path / "seg", [np.ones(GRIDS[0].shape, np.uint64)], GRIDS[:1], kind="segmentation")
    own = {"outputDimensions": {a: [1e-9, "m"] for a in "xyz"}, "matrix": [[2, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0]]}
    sources = [
        f"precomputed://file://{tmp_path / 'seg'}",
        "precomputed://gs://bucket/meshes",
        {"url": "precomputed://gs://bucket/skeletons", "transform": own},
        "local://equivalences",
    ]
    layer = {"type": "segmentation", "name": "cells", "source": sources}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ix.open_neuroglancer({"layers": [layer]}, allow_local=True)
    tree["cells"] = tree["cells"].to_dataset().pipe(move, {"x": (1.5, 4000)})
    link = ix.neuroglancer_link(tree, allow_local=True)
    volume, mesh, skeleton, local = load_state(link)["layers"][0]["source"]
    for entry, factor, shift in ((volume, 1.5, 4000), (mesh, 1.5, 4000), (skeleton, 3, 4007.5)):
        scale = entry["transform"]["outputDimensions"]["x"][0] * 1e9
        row = entry["transform"]["matrix"][0]
        assert row[0] == factor
        assert row[-1] * scale == pytest.approx(shift)
    assert local == "local://equivalences"


@pytest.mark.parametrize(
    ("axes", "shape"), [("zyx", (8, 24, 32)), ("tczyx", (2, 3, 8, 24, 32)), ("xyz", (32, 24, 8)), ("yx", (24, 32))]
)
def test_the_axes_of_a_zarr_are_named(tmp_path, axes, shape):
    sizes = {"t": 1, "c": 1, "z": 40, "y": 4.04, "x": 4.04}
    data = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    scale, start = [sizes[a] for a in axes], [{"x": 404, "y": -20.2}.get(a, 0) for a in axes]
    write_ome(tmp_path / "em.zarr", [data], {"axes": axes_of(axes), "datasets": [level("0", scale, start)]})
    picks = {"channel": 1, "time": 1} if "t" in axes else {}
    em = ix.open_image(f"zarr://file://{tmp_path / 'em.zarr'}", **picks)
    moved = move(em, {"x": (1, 1000), "y": (1.01, -7)})
    link = ix.neuroglancer_link(moved, allow_local=True)
    layer = load_state(link)["layers"][0]
    at = viewer_place(
        layer,
        [a for a in "xyz" if a in axes],
        [sizes[a] for a in "xyz" if a in axes],
        [float(em[a][0]) for a in "xyz" if a in axes],
    )
    assert at == pytest.approx({a: float(moved[a][0]) for a in at})
    opened = ix.open_neuroglancer(link, allow_local=True, **picks)["image/image"]
    check_same_place(opened, moved)


def test_a_place_that_cannot_be_written_warns(stored, tmp_path):
    em = ix.open_image(stored)
    shifted = move(em.compute(), {"x": (1, 1.7)})
    with pytest.warns(ix.errors.LinkWarning, match=r"'image' where its source is stored.*along x.*before .compute"):
        link = ix.neuroglancer_link(shifted, allow_local=True)
    assert isinstance(load_state(link)["layers"][0]["source"], str)
    with pytest.warns(ix.errors.LinkWarning, match=r"along z"):
        ix.neuroglancer_link(move(em.compute(), {"z": (1.02, 0)}), allow_local=True)
    tree = ix.open_neuroglancer(
        {"position": [0, 0, 0], "layers": [{"type": "image", "name": "em", "source": stored}]}, allow_local=True
    )
    tree["em"] = tree["em"].to_dataset().isel(z=[0, 3, 4])
    with pytest.warns(ix.errors.LinkWarning, match="not evenly spaced"):
        ix.neuroglancer_link(tree, allow_local=True)
    own = {"outputDimensions": {a: [1e-9, "m"] for a in "xy"}}
    layer = {"type": "image", "name": "em", "source": {"url": stored, "transform": own}}
    tree = ix.open_neuroglancer({"layers": [layer]}, allow_local=True)
    tree["em"] = tree["em"].to_dataset().pipe(move, {"z": (1, 40)})
    with pytest.warns(ix.errors.LinkWarning, match="no output dimension z"):
        link = ix.neuroglancer_link(tree, allow_local=True)
    assert load_state(link)["layers"][0]["source"] == json.loads(json.dumps(layer["source"]))
