"""Large tables on small pictures: all marks that extend into a picture are drawn, and few others are processed."""

from __future__ import annotations

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.errors import ImageryWarning
from imageryxr.render import annotate as module
from tests.conftest import volume

RNG = np.random.default_rng(21)


@pytest.fixture
def rgba():
    return ix.to_rgba(volume(np.zeros((9, 48, 56), np.uint8), (4.04, 8, 40), (-30, -11, -4)))


def table_of(kind: str):
    places = RNG.uniform([-150, -120, -200], [120, 330, 240], (300, 3))
    if kind == "ellipsoid":
        return ix.as_annotations(places, radius=RNG.uniform(0, 60, (300, 3)))
    if kind == "point":
        return ix.as_annotations(places)
    return ix.as_annotations(places, end=places + RNG.normal(0, 60, (300, 3)), annotation_type=kind)


@pytest.mark.parametrize("depth", [None, 60.0])
@pytest.mark.parametrize("kind", ["point", "line", "box", "ellipsoid"])
def test_drawing_on_a_crop_equals_a_crop_of_the_drawing(rgba, kind, depth):
    table = table_of(kind)
    look = {"depth": depth, "size": 14, "marker": "triangle", "edgecolor": "red", "edgewidth": 2, "axis": "z"}
    whole = ix.annotate(rgba, table, **look)
    for part in [{"z": [4]}, {"z": slice(2, 5), "y": slice(10, 30), "x": slice(20, 30)}, {"x": [0], "y": slice(3)}]:
        drawn = ix.annotate(rgba.isel(part), table, **look)
        np.testing.assert_array_equal(drawn.values, whole.isel(part).values)
    assert (whole.values != rgba.values).any()


@pytest.mark.parametrize("kind", ["point", "line", "box", "ellipsoid"])
def test_drawing_on_a_small_plane_equals_the_middle_of_a_large_one(kind):
    em = volume(np.zeros((9, 48, 56), np.uint8), (8, 8, 40), (-30, -11, -4))
    table = table_of(kind)
    center, look = (-24.0, 100.0, 20.0), {"depth": 30.0, "size": 10, "edgecolor": "red"}
    large, small = (
        ix.annotate(ix.to_rgba(ix.plane(em, center, (n, n), normal=(1, 2, 0.5))), table, **look) for n in (40, 12)
    )
    np.testing.assert_array_equal(small.values, large.isel(y=slice(14, 26), x=slice(14, 26)).values)
    assert (small.values[..., :3] != 0).any()


def test_only_annotations_near_the_picture_are_placed(rgba, monkeypatch):
    placed = []
    place = module._place_marks
    monkeypatch.setattr(
        module, "_place_marks", lambda table, rows, *rest: placed.append(rows) or place(table, rows, *rest)
    )
    table = ix.as_annotations(RNG.uniform(-1e5, 1e5, (100_000, 3)))
    ix.annotate(rgba.isel(z=[3]), table)
    assert len(placed[0]) < 10


@pytest.mark.parametrize("color", ["kind", "score", "pt_root_id", "flag", {7: "red", 8: "lime"}])
def test_colours_on_a_crop_are_those_of_the_whole_table(rgba, color):
    table = table_of("point")
    table["kind"] = ("annotation", RNG.choice(np.array(["a", "b", "", None, "c"], dtype=object), 300))
    table["score"] = ("annotation", np.where(np.arange(300) % 7, RNG.normal(size=300), np.nan))
    table["pt_root_id"] = ("annotation", RNG.integers(0, 2**63, 300).astype(np.uint64))
    table["flag"] = ("annotation", RNG.choice(np.array([True, False, None], dtype=object), 300))
    whole = ix.annotate(rgba, table, color=color, axis="z")
    for part in [{"z": [4]}, {"z": [2], "y": slice(10, 20), "x": slice(20, 24)}]:
        drawn = ix.annotate(rgba.isel(part), table, color=color, axis="z")
        np.testing.assert_array_equal(drawn.values, whole.isel(part).values)
        assert drawn.attrs.get("drawn_colors") == whole.attrs.get("drawn_colors")
    far = table.assign(z=table.z + 1e6)
    np.testing.assert_array_equal(ix.annotate(rgba, far, color=color).values, rgba.values)


VOXELS = np.array([[4110, 510, 104], [4140, 530, 103]])
NM = VOXELS * (8, 8, 40)
MISTAKES = {
    "voxels": (VOXELS, (1, 1, 1), r"resolution=\(8, 8, 40\)"),
    "voxels of half the size": (VOXELS * (2, 2, 1), (1, 1, 1), r"resolution=\(4, 4, 40\)"),
    "multiplied twice": (NM, (8, 8, 40), "leave it out"),
    "reversed resolution": (VOXELS, (40, 8, 8), r"resolution=\(8, 8, 40\)"),
    "reversed positions": (VOXELS[:, ::-1], (8, 8, 40), r"\(z, y, x\)"),
    "reversed nm": (NM[:, ::-1], (1, 1, 1), r"\(z, y, x\)"),
    "reversed voxels": (VOXELS[:, ::-1], (1, 1, 1), r"\(z, y, x\)"),
    "micrometres": (NM / 1000, (1, 1, 1), "1000, 1000, 1000"),
}


@pytest.fixture
def stack():
    return ix.to_rgba(volume(np.zeros((9, 48, 56), np.uint8), (8, 8, 40), (4100, 500, 100)))


@pytest.mark.parametrize("axis", ["z", "y"])
@pytest.mark.parametrize("name", MISTAKES)
def test_annotations_in_another_unit_cause_a_warning(stack, name, axis):
    places, resolution, words = MISTAKES[name]
    picture = stack.isel(z=[3]) if axis == "z" else stack.isel(y=[12])
    with pytest.warns(ImageryWarning, match=words):
        ix.annotate(picture, ix.as_annotations(places, resolution=resolution))


@pytest.mark.parametrize("shift", [(0, 0, 0), (0, 0, 4000), (0, 0, -4000), (500, 0, 0), (9000, 9000, 0), (-3e4, 0, 0)])
def test_annotations_elsewhere_cause_no_warning(stack, shift):
    table = ix.as_annotations(NM + shift)
    for picture in (stack, stack.isel(z=[0]), stack.isel(y=[0]), stack.isel(z=[1], y=slice(3), x=slice(4))):
        ix.annotate(picture, table)


@pytest.mark.parametrize("part", [{"z": [80]}, {"z": slice(60, 90)}, {"y": [90]}])
def test_voxels_of_a_volume_at_the_origin_cause_a_warning(part):
    """The numbers of voxels are positions in nm near the corner of such a volume, within its rows and columns."""
    picture = ix.to_rgba(volume(np.zeros((100, 200, 200), np.uint8), (10, 10, 10), (0, 0, 0))).isel(part)
    voxels = np.array([[100, 90, 80], [50, 60, 80], [150, 90, 20]])
    with pytest.warns(ImageryWarning, match=r"none of 3 annotations.*resolution=\(10, 10, 10\)"):
        ix.annotate(picture, ix.as_annotations(voxels))
    drawn = ix.annotate(picture, ix.as_annotations(voxels, resolution=(10, 10, 10)))
    assert (drawn != picture).any()
    nm = RNG.uniform(0, 1000, (300, 3)) * (2, 2, 1)
    for index in range(100):  # some slices have no annotation of the volume
        ix.annotate(picture.isel(x=[index]), ix.as_annotations(nm), axis="x", size=1)
