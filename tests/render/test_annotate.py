"""Annotations on pictures equal a slow reference drawing, and do not depend on the blocks of the picture."""

from __future__ import annotations

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.core.display import legend_colors
from imageryxr.errors import ColorError, ImageryWarning, LayerError, OptionError
from imageryxr.render.figure.legends import _scale_colors
from tests.conftest import no_compute, volume
from tests.support.annotation_oracle import assert_close_to_sampled, draw_by_sampling, picture, random_points
from tests.support.slow import slow_except

RNG = np.random.default_rng(20)
MARKERS = ["circle", "ring", "cross", "x", "square", "triangle"]


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize(("unit", "size"), [("px", 9.0), ("nm", 100.0)])
@pytest.mark.parametrize("axis", slow_except("zyx", "z"))
def test_markers_cover_the_pixels_of_a_slow_drawing(marker, unit, size, axis):
    shape = {"z": (2, 30, 34), "y": (30, 2, 34), "x": (30, 34, 2)}[axis]
    rgba = picture(shape, (8, 10, 12))
    points = ix.as_annotations(random_points(rgba, 5))
    drawn = ix.annotate(rgba, points, marker=marker, size=size, unit=unit, axis=axis, width=2.5)
    oracle = draw_by_sampling(rgba, points, axis="zyx".index(axis), marker=marker, size=size, unit=unit, width=2.5)
    assert (drawn.values != rgba.values).any()
    assert_close_to_sampled(drawn, oracle)


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("axis", slow_except("zyx", "z"))
@pytest.mark.parametrize("depth", [None, 90.0])
@pytest.mark.parametrize("kind", ["line", "box", "ellipsoid"])
def test_sections_cover_the_pixels_of_a_slow_drawing(kind, depth, axis):
    rgba = picture((3, 26, 28), (8, 8, 40), (-20, 7, -3))
    places = random_points(rgba, 4)
    extra = (
        {"radius": np.random.default_rng(4).uniform(70, 110, (4, 3))}
        if kind == "ellipsoid"
        else {"end": random_points(rgba, 4, 9)}
    )
    table = ix.as_annotations(places, annotation_type=kind, **extra)
    drawn = ix.annotate(rgba, table, depth=depth, axis=axis, width=3)
    assert_close_to_sampled(drawn, draw_by_sampling(rgba, table, axis="zyx".index(axis), depth=depth, width=3.0))


@pytest.mark.fast_forms(2)
@pytest.mark.parametrize("kind", ["point", "line", "box", "ellipsoid"])
@pytest.mark.parametrize("depth", slow_except([None, 60.0], 60.0))
def test_on_an_oblique_plane_distances_are_those_to_the_plane(kind, depth):
    image = volume(RNG.integers(0, 255, (20, 60, 60), np.uint8), (8, 8, 40), (5, -9, 2))
    cut = ix.plane(image, (35, 20, 12), (28, 26, 3), normal=(1, -0.4, 0.7), resolution=(8, 8, 40), nm_per_pixel=9)
    rgba = ix.to_rgba(cut)
    axes = np.array(rgba.attrs["plane_axes"]).reshape(3, 3)
    grid = ix.grid_of(rgba)
    low = np.array(grid.voxel_offset) * grid.resolution
    local = low + RNG.uniform(0.2, 0.8, (6, 3)) * np.array(grid.shape[::-1]) * grid.resolution
    places = local @ axes
    extra = {"point": {}, "ellipsoid": {"radius": RNG.uniform(30, 90, (6, 3))}}.get(kind)
    extra = {"end": places + RNG.uniform(-120, 120, (6, 3)), "annotation_type": kind} if extra is None else extra
    table = ix.as_annotations(places, **extra)
    drawn = ix.annotate(rgba, table, depth=depth, width=3, size=9, axis="z")
    oracle = draw_by_sampling(rgba.compute(), table, depth=depth, width=3.0, size=9)
    assert (drawn.values != rgba.values).any()
    assert_close_to_sampled(drawn, oracle)


def test_marks_fade_with_their_distance_and_blend_over_transparent_pixels():
    rgba = picture((4, 30, 30), transparent=True)
    points = ix.as_annotations(random_points(rgba, 8))
    drawn = ix.annotate(rgba, points, size=9, depth=70, fade=True, alpha=0.7)
    # the opacity of a mark has 256 steps
    assert_close_to_sampled(drawn, draw_by_sampling(rgba, points, size=9, depth=70, fade=True, alpha=0.7))


def test_a_point_at_a_voxel_position_lies_at_the_lower_corner_of_the_voxel_as_in_neuroglancer():
    rgba = picture((3, 20, 20), (4.04, 4.04, 40), (100, 200, 5))
    corner = ix.annotate(rgba, ix.as_annotations([[110, 210, 6]], resolution=(4.04, 4.04, 40)), size=2, marker="square")
    changed = (corner.values != rgba.values).any(axis=-1)
    assert np.argwhere(changed).tolist() == [[1, 9, 9], [1, 9, 10], [1, 10, 9], [1, 10, 10]]
    center = ix.annotate(
        rgba, ix.as_annotations([[110.5, 210.5, 6.5]], resolution=(4.04, 4.04, 40)), size=1, marker="square"
    )
    assert np.argwhere((center.values != rgba.values).any(axis=-1)).tolist() == [[1, 10, 10]]


@pytest.mark.parametrize("offset", [0, -7, 123_456, 2**31])
@pytest.mark.parametrize("resolution", slow_except([4.04, 8, 40, 1e-3], 4.04))
def test_a_point_on_a_border_of_slices_or_blocks_is_drawn_once(offset, resolution):
    rgba = picture((6, 12, 12), (resolution, resolution, resolution), (0, 0, offset), chunks=(2, 4, 4))
    places = [[6, 6, offset + z] for z in range(6)]
    points = ix.as_annotations(places, resolution=(resolution,) * 3)
    for k in range(6):
        drawn = ix.annotate(rgba, points.isel(annotation=[k]), size=6)
        shown = (drawn.values != rgba.values).any(axis=(1, 2, 3))
        assert np.flatnonzero(shown).tolist() == [k]


TABLES = {
    "point": lambda p: {},
    "line": lambda p: {"end": p[::-1]},
    "box": lambda p: {"end": p[::-1], "annotation_type": "box"},
    "ellipsoid": lambda p: {"radius": 45},
}


@pytest.mark.filterwarnings("ignore:.*labels of slice")
@pytest.mark.parametrize("kind", slow_except(TABLES, "point"))
@pytest.mark.parametrize(
    "options", [{}, {"depth": 70, "fade": True}, {"edgecolor": "black", "alpha": 0.5, "fill": 0.3}]
)
def test_annotations_do_not_depend_on_the_blocks_in_any_bit(kind, options):
    rgba = picture((5, 40, 48))
    places = random_points(rgba, 400)
    table = ix.as_annotations(places, **TABLES[kind](places))
    table["name"] = ("annotation", [f"s{i}" if i % 80 == 0 else None for i in range(400)])
    whole = ix.annotate(rgba, table, labels="name", label_size=9, axis="z", **options)
    assert (whole.values != rgba.values).any()
    for chunks in [(1, 7, 48), (2, 40, 5), (5, 13, 11)]:
        for source in (rgba.chunk(dict(zip("zyx", chunks, strict=True))), rgba):
            lazy = ix.annotate(source, table, labels="name", label_size=9, axis="z", **options)
            xr.testing.assert_identical(lazy.compute(), whole)
    lazy = ix.annotate(picture((5, 40, 48), chunks=(2, 9, 48)), table, labels="name", label_size=9, axis="z", **options)
    part = {"z": slice(1, 4), "y": slice(3, 37), "x": slice(5, 44)}
    np.testing.assert_array_equal(lazy.isel(part).values, whole.isel(part).values)


def test_drawing_from_a_source_is_lazy_and_equals_drawing_in_memory(sample):
    em = ix.open_image(sample.image, mip=1)
    rgba = ix.to_rgba(em)
    table = ix.as_annotations(random_points(rgba, 5000))
    with no_compute():
        lazy = ix.annotate(rgba, table, color="red").isel(z=slice(3, 9))
    np.testing.assert_array_equal(
        lazy.values, ix.annotate(rgba.compute(), table, color="red").isel(z=slice(3, 9)).values
    )


def test_no_task_contains_the_table():
    rgba = picture((8, 64, 64), chunks=(1, 32, 32))
    table = ix.as_annotations(random_points(rgba, 20_000))
    drawn = ix.annotate(rgba, table)
    import cloudpickle

    tasks = {key: task for key, task in drawn.__dask_graph__().items() if key[0] == drawn.data.name}
    assert len(tasks) == 32
    assert (
        max(len(cloudpickle.dumps(task)) for task in tasks.values()) < 200_000
    )  # a task with all 20,000 rows would take 800 kB


def test_equal_calls_have_equal_names_and_others_do_not():
    rgba = picture(chunks=(1, 40, 48))
    points = ix.as_annotations(random_points(rgba))
    name = ix.annotate(rgba, points).data.name
    assert ix.annotate(rgba, points.copy()).data.name == name
    for other in ({"size": 9}, {"color": "red"}, {"depth": 5}, {"marker": "x"}):
        assert ix.annotate(rgba, points, **other).data.name != name


@pytest.mark.parametrize("client", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_an_exported_stack_has_the_annotations(tmp_path, client):
    rgba = picture((6, 40, 48), chunks=(2, 20, 48))
    table = ix.as_annotations(random_points(rgba, 60))
    table["name"] = ("annotation", [f"n{i}" if i % 6 == 0 else "" for i in range(60)])
    drawn = ix.annotate(rgba, table, labels="name", label_size=9)
    ix.export(drawn, str(tmp_path / "z{z:02d}.png"), client=client, workers=2)
    from PIL import Image

    with dask.config.set(scheduler="synchronous"):
        values = drawn.values
    for z in range(6):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"z{z:02d}.png").convert("RGBA")), values[z])


# ---------------------------------------------------------------------------------------------------------
# colours


def center_colors(rgba, table, **options):
    """Return the colour at the centre of each point, of points that do not overlap."""
    drawn = ix.annotate(rgba, table, size=5, **options)
    grid = ix.grid_of(rgba)
    found = []
    for k in range(table.sizes["annotation"]):
        at = [
            int(float(table[d][k]) / r - o) for d, r, o in zip("xyz", grid.resolution, grid.voxel_offset, strict=True)
        ]
        found.append(tuple(drawn.values[at[2], at[1], at[0], :3].tolist()))
    return found, drawn


@pytest.fixture
def row():
    """Return a picture and five points in a row, with properties."""
    rgba = picture((1, 20, 80))
    frame = pd.DataFrame(
        {
            "x": [8.5, 24.5, 40.5, 56.5, 72.5],
            "y": 10.5,
            "z": 0.5,
            "kind": ["b", "a", "b", None, "c"],
            "score": [0.0, 1.0, 2.0, np.nan, 4.0],
            "pre_pt_root_id": np.array([2**64 - 2, 7, 2**64 - 2, 0, 9], np.uint64),
        }
    )
    return rgba, ix.as_annotations(frame, resolution=(8, 8, 40))


def test_colours_may_be_a_single_colour_a_dict_or_a_column_of_categories(row):
    rgba, table = row
    assert set(center_colors(rgba, table, color="#102030")[0]) == {(16, 32, 48)}
    by_id = center_colors(rgba, table, color={0: "red", 4: "blue"})[0]
    assert by_id == [(255, 0, 0), (160, 160, 160), (160, 160, 160), (160, 160, 160), (0, 0, 255)]
    kinds, drawn = center_colors(rgba, table, color="kind", colors={"a": "red", "b": "lime", "c": "blue"})
    assert kinds == [(0, 255, 0), (255, 0, 0), (0, 255, 0), (160, 160, 160), (0, 0, 255)]
    assert ix.colors_of(drawn) == {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}
    default = center_colors(rgba, table, color="kind")[0]
    assert default[0] == default[2]
    assert len(set(default)) == 4


def test_numbers_follow_the_colour_map_within_the_limits(row):
    from matplotlib import colormaps

    rgba, table = row
    found = center_colors(rgba, table, color="score", cmap="magma", limits=(1, 2))[0]
    low, high = (tuple(round(255 * c) for c in colormaps["magma"](v)[:3]) for v in (0, 255))
    assert found == [low, low, high, (160, 160, 160), high]


def test_a_column_of_ids_has_the_colours_of_its_segments_in_the_picture(row):
    rgba, table = row
    found = center_colors(rgba, table, color="pre_pt_root_id")[0]
    stable = ix.palette([2**64 - 2, 7, 9], None)
    assert found == [stable[2**64 - 2], stable[7], stable[2**64 - 2], (160, 160, 160), stable[9]]
    labels = volume(np.full((1, 20, 80), 7, np.uint64))
    drawn = ix.overlay(None, labels, ids=[7], colors={7: "#123456"})
    assert center_colors(drawn, table, color="pre_pt_root_id")[0][1] == (0x12, 0x34, 0x56)
    chosen = center_colors(rgba, table, color="pre_pt_root_id", colors={2**64 - 2: "red"})[0]
    assert chosen[:2] == [(255, 0, 0), (160, 160, 160)]


def test_a_legend_lists_the_categories(row):
    rgba, table = row
    drawn = ix.annotate(rgba, table, color="kind")
    tall = ix.to_pil(drawn, scale=8)
    assert ix.legend(tall, ix.colors_of(drawn)).width > tall.width


def test_a_legend_of_numbers_shows_the_colour_map(row):
    rgba, table = row
    tall = rgba.isel(y=np.zeros(200, int)).assign_coords(y=4 + 8.0 * np.arange(200))
    drawn = ix.annotate(tall, table, color="score", cmap="magma")
    listed = np.asarray(ix.legend(drawn))
    assert listed.shape[1] > 80
    for color in [(252, 253, 191), (0, 0, 4)]:
        assert (listed[:, 80:] == color).all(axis=-1).any()


@pytest.mark.parametrize(
    ("low", "high", "is_whole", "expected"),
    [
        (0, 97, False, ["80", "60", "40", "20", "0"]),
        (0.1, 0.3, False, ["0.3", "0.25", "0.2", "0.15", "0.1"]),
        (1, 3, True, ["3", "2", "1"]),
        (3, 1, True, ["1", "2", "3"]),
        (1_000_001, 1_000_003, False, ["1,000,003", "1,000,002.5", "1,000,002", "1,000,001.5", "1,000,001"]),
        (-1e308, 1e308, False, ["1e+308", "-1e+308"]),
    ],
)
def test_a_legend_of_numbers_lists_round_numbers(low, high, is_whole, expected):
    scale = {"title": "score", "low": low, "high": high, "colors": ["#000000", "#888888", "#ffffff"]}
    shown, title = _scale_colors({**scale, "is_whole": is_whole}, "")
    assert title == "score"
    assert list(shown) == expected
    assert shown[expected[0]] != "#000000"


def test_a_palette_by_type_colours_ids_and_its_legend_lists_the_types():
    frame = pd.DataFrame({"pt_root_id": [2**64 - 2, 7, 9, 0], "cell_type": ["exc", "inh", "exc", "exc"]}, dtype=object)
    colors = ix.palette(frame, by="cell_type", id="pt_root_id")
    assert list(colors) == [2**64 - 2, 7, 9]
    assert colors[9] == colors[2**64 - 2] != colors[7]
    assert colors.types == {"exc": colors[9], "inh": colors[7]}
    tall = ix.to_pil(picture((1, 200, 60)))
    listed = np.asarray(ix.legend(tall, colors))[:, 60:]
    assert (listed == colors[7]).all(axis=-1).any()
    indexed = frame.set_index("pt_root_id")
    assert ix.palette(indexed, by="cell_type", id="pt_root_id") == colors
    assert ix.palette(indexed.to_xarray(), by="cell_type", id="pt_root_id") == colors
    assert ix.palette(frame.set_index(["cell_type", "pt_root_id"]), by="cell_type", id="pt_root_id") == colors
    with pytest.raises(OptionError, match="did you mean 'cell_type'"):
        ix.palette(frame, by="celltype", id="pt_root_id")
    with pytest.raises(OptionError, match="did you mean 'pt_root_id'"):
        ix.palette(indexed, by="cell_type", id="root_id")
    with pytest.raises(ColorError, match="remove one"):
        ix.palette({"id": [1, 1], "type": ["a", "b"]}, by="type", id="id")


def test_the_legend_of_a_picture_lists_the_types_that_it_was_drawn_with():
    table = {"id": [5, 7, 9, 11], "type": ["exc", "inh", "exc", "glia"]}
    types = ix.palette(table, by="type", id="id")
    seg = volume(np.resize(np.array([3, 5, 7, 9, 11], np.uint64), (1, 200, 60)))
    chosen = ix.overlay(None, seg, colors=types, ids=[5, 7])
    assert legend_colors(chosen) == {name: types.types[name] for name in ("exc", "inh")}
    assert ix.colors_of(chosen) == {5: types[5], 7: types[7]}
    layers = [ix.Layer(seg, colors=types), ix.Layer(seg, colors={3: "red"}, alpha=1)]
    both = ix.overlay(None, layers)
    assert legend_colors(both) == {**types.types, 3: (255, 0, 0)}
    lines = ix.outline(seg, colors=types)
    assert legend_colors(ix.composite(ix.overlay(None, seg, colors={3: "red"}), lines)) == legend_colors(both)
    for drawn in (chosen, ix.to_pil(chosen, scale=2)):
        expected = ix.legend(drawn, {name: types.types[name] for name in ("exc", "inh")})
        assert np.array_equal(np.asarray(ix.legend(drawn)), np.asarray(expected))
    many = ix.palette({"id": range(1, 6001), "type": ["exc", "inh"] * 3000}, by="type", id="id")
    assert legend_colors(ix.overlay(None, seg, colors=many)) == many.types


# ---------------------------------------------------------------------------------------------------------
# labels


def test_no_two_labels_overlap_and_each_lies_in_the_picture():
    rgba = picture((1, 120, 160))
    places = random_points(rgba, 18)
    table = ix.as_annotations(places).assign(name=("annotation", [f"cell {i}" for i in range(18)]))
    from imageryxr.render.figure.text import text_extent
    from imageryxr.render.overlay import rgba_volume

    lazy = ix.annotate(rgba.chunk(x=80), table, labels="name", label_size=9, size=5)
    expr = rgba_volume(lazy, "it").expr
    labels = expr.marks.labels_in((0, 0, 0), (1, 120, 160))
    boxes = [(label.column, label.row, *text_extent(label.text, label.size)) for label in labels]
    assert len(boxes) == 18
    for i, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= 160 - w
        assert 0 <= y <= 120 - h
        for x2, y2, w2, h2 in boxes[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_labels_without_room_are_omitted_with_one_warning():
    rgba = picture((3, 24, 60), chunks=(1, 24, 30))
    places = random_points(rgba, 60)
    table = ix.as_annotations(places).assign(name=("annotation", ["a long name"] * 60))
    with pytest.warns(ImageryWarning, match="omitted") as caught:
        ix.annotate(rgba, table, labels="name").compute(scheduler="synchronous")
    assert len(caught) == 1


ERRORS = {
    "a part of a PIL image": (
        lambda r, t: ix.annotate(ix.to_pil(r.isel(z=0)).crop((0, 0, 9, 9)), t),
        LayerError,
        "annotate the array",
    ),
    "a path": (lambda r, t: ix.annotate("a.png", t), LayerError, "overlay"),
    "grey values": (lambda r, t: ix.annotate(volume(np.zeros((1, 4, 4), np.uint8)), t), LayerError, "to_rgba"),
    "a column that is absent": (lambda r, t: ix.annotate(r, t, color="knid"), ColorError, "did you mean 'kind'"),
    "a label that is absent": (lambda r, t: ix.annotate(r, t, labels="knid"), OptionError, "did you mean 'kind'"),
    "a marker": (lambda r, t: ix.annotate(r, t, marker="star"), OptionError, "'triangle'"),
    "a unit": (lambda r, t: ix.annotate(r, t, unit="um"), OptionError, "'nm'"),
    "a negative size": (lambda r, t: ix.annotate(r, t, size=-1), OptionError, "size=-1"),
    "alpha": (lambda r, t: ix.annotate(r, t, alpha=2), OptionError, "from 0 to 1"),
    "fade without depth": (lambda r, t: ix.annotate(r, t, fade=True), OptionError, "depth="),
    "limits of categories": (lambda r, t: ix.annotate(r, t, color="kind", limits=(0, 1)), OptionError, "categories"),
    "limits": (lambda r, t: ix.annotate(r, t, color="score", limits=(1, 1)), OptionError, "limits=(1, 1)"),
    "a text as size": (lambda r, t: ix.annotate(r, t, size="kind"), OptionError, "numbers"),
    "a negative size in a column": (
        lambda r, t: ix.annotate(r, t.assign(s=t.x - 200), size="s"),
        OptionError,
        "-132 in row 0",
    ),
    "a missing size": (lambda r, t: ix.annotate(r, t, size="score"), OptionError, "nan in row 3"),
    "a colour map of categories": (lambda r, t: ix.annotate(r, t, color="kind", cmap="magma"), OptionError, "cmap="),
    "a list of labels": (lambda r, t: ix.annotate(r, t, labels=["a"] * 5), OptionError, "assign(labels="),
    "positions as labels": (
        lambda r, t: ix.annotate(r, t.assign(p=(("annotation", "axis"), np.zeros((5, 3)))), labels="p"),
        OptionError,
        "'p' has dims ('annotation', 'axis')",
    ),
    "a list of colours": (
        lambda r, t: ix.annotate(r, t, color="kind", colors=["red", "blue"]),
        ColorError,
        "colors={value: colour}",
    ),
    "no annotations": (lambda r, t: ix.annotate(r, t.drop_vars("z")), LayerError, "lacks 'z'"),
    "a size of text": (lambda r, t: ix.annotate(r, t, labels="kind", label_size=4), OptionError, "label_size=4"),
    "colors without a column": (lambda r, t: ix.annotate(r, t, colors={"a": "red"}), OptionError, "color="),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_value_and_the_remedy(row, name):
    import re

    call, error, words = ERRORS[name]
    with pytest.raises(error, match=re.escape(words)):
        call(*row)


def test_an_empty_table_leaves_the_picture_unchanged(row):
    rgba, table = row
    xr.testing.assert_equal(ix.annotate(rgba, table.isel(annotation=[])), rgba)
    xr.testing.assert_equal(rgba.imagery.annotate(np.empty((0, 3))), rgba)


def test_a_slice_that_was_selected_keeps_its_dims(row):
    rgba = picture((4, 20, 30))
    points = ix.as_annotations([[100, 80, 60]])
    flat = ix.annotate(rgba.isel(z=1), points)
    assert flat.dims == ("y", "x", "rgba")
    np.testing.assert_array_equal(flat.values, ix.annotate(rgba, points).values[1])


# ---------------------------------------------------------------------------------------------------------
# annotations as thick as a slice are drawn in one slice


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("kind", ["line", "box", "ellipsoid"])
@pytest.mark.parametrize("offset", [0, 3, 100_003])
def test_a_mark_as_thick_as_a_slice_is_drawn_in_one_slice(axis, kind, offset):
    k = "xyz".index(axis)
    rgba = picture((5, 6, 7), (4.04, 8.08, 40.4), (offset,) * 3)
    center = (np.array([offset + 2.5] * 3)) * (4.04, 8.08, 40.4)
    half = np.zeros(3)
    half[k] = (4.04, 8.08, 40.4)[k] / 2
    flat = half + np.where(np.arange(3) == k, 0, 3)
    options = {
        "line": {"end": [center + half]},
        "box": {"end": [center + flat], "annotation_type": "box"},
        "ellipsoid": {"radius": [flat]},
    }[kind]
    start = center if kind == "ellipsoid" else center - (half if kind == "line" else flat)
    drawn = ix.annotate(rgba, ix.as_annotations([start], **options), axis=axis, width=1)
    others = tuple(i for i in range(4) if i != "zyx".index(axis))
    assert np.flatnonzero((drawn.values != rgba.values).any(axis=others)).tolist() == [2]


@pytest.mark.parametrize("kind", ["line", "box", "ellipsoid"])
def test_a_mark_without_thickness_is_drawn_once_even_on_a_border(kind):
    rgba = picture((4, 12, 12), (8, 8, 40))
    for z in (40.0, 40 + 1e-7, 40 - 1e-7, 60.0):
        options = {
            "line": {"end": [[60, 60, z]]},
            "box": {"end": [[60, 60, z]], "annotation_type": "box"},
            "ellipsoid": {"radius": [[16, 16, 0]]},
        }[kind]
        drawn = ix.annotate(rgba, ix.as_annotations([[40, 40, z]], **options))
        assert np.flatnonzero((drawn.values != rgba.values).any(axis=(1, 2, 3))).tolist() == [1]


def test_a_box_without_area_has_no_fill():
    rgba = picture((1, 20, 20), (8, 8, 40))
    for end in ([80, 80, 40], [120, 80, 40], [80, 120, 40]):
        table = ix.as_annotations([[80, 80, 0]], end=[end], annotation_type="box")
        np.testing.assert_array_equal(
            ix.annotate(rgba, table, fill=1, width=1).values, ix.annotate(rgba, table, width=1).values
        )


# ---------------------------------------------------------------------------------------------------------
# faded labels, stable colours


@pytest.mark.parametrize("kind", ["point", "line", "box", "ellipsoid"])
def test_labels_fade_with_their_marks(kind):
    rgba = ix.to_rgba(volume(np.zeros((1, 40, 60), np.uint8), (8, 8, 40)))
    levels = []
    for z in (20, 70, 120, 170):  # distances 0, 50, 100, 150 nm
        options = {
            "point": {},
            "line": {"end": [[100, 160, z]]},
            "box": {"end": [[100, 160, z]], "annotation_type": "box"},
            "ellipsoid": {"radius": [[20, 20, 0]]},
        }[kind]
        table = ix.as_annotations([[80, 160, z]], **options).assign(name=("annotation", ["H"]))
        drawn = ix.annotate(rgba, table, color="#000000", depth=150, fade=True, labels="name", axis="z")
        levels.append(int(drawn.values[..., :3].max()))
    assert levels[0] == 255
    np.testing.assert_allclose(levels[1:], [255 * 2 / 3, 255 / 3, 0], atol=2)


def test_a_category_keeps_its_colour_in_a_part_of_the_table(row):
    rgba, _ = row
    frame = pd.DataFrame({"x": [100.0, 300, 500], "y": 84, "z": 20, "kind": ["exc", "inh", None]})
    frame["sort"] = pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"])
    frame["flag"] = [False, True, True]
    table = ix.as_annotations(frame)
    for column in ("kind", "sort", "flag"):
        whole = ix.colors_of(ix.annotate(rgba, table, color=column))
        one = ix.colors_of(ix.annotate(rgba, table.isel(annotation=[1]), color=column))
        assert one.items() <= whole.items()
        assert len(one) == 1
    from imageryxr.core.colors.palettes import category_colors

    declared = category_colors(["c", "b", "a"])
    assert ix.colors_of(ix.annotate(rgba, table, color="sort")) == {k: declared[k] for k in "ba"}


# ---------------------------------------------------------------------------------------------------------
# large numbers and ids


@pytest.mark.parametrize(
    "values",
    [
        np.full(2, 2**53, np.int64),
        np.full(2, 1e17),
        np.array([864691135617152361, 864691135617152362], np.int64),
        np.array([np.inf, 1.0]),
        np.array([-1.7e308, 1.7e308]),
        np.array([-(2**63), 2**63 - 1], np.int64),
        np.array([-128, 127], np.int8),
        np.full(2, -np.inf),
    ],
)
def test_large_and_constant_numbers_have_the_colours_of_a_colour_map(values):
    rgba = picture((1, 20, 40), (8, 8, 40))
    table = ix.as_annotations([[84.0, 84, 20], [244, 84, 20]]).assign(k=("annotation", values))
    found, drawn = center_colors(rgba, table, color="k")
    low, high, missing = (68, 1, 84), (253, 231, 37), (160, 160, 160)
    expected = [missing if not np.isfinite(v) else low for v in values.tolist()]
    if np.isfinite(values).all() and values[0] != values[1]:
        expected[1] = high
    assert found == expected
    assert ix.legend(ix.to_pil(drawn, scale=12)).width > 480


def test_columns_of_uint64_are_segment_ids_unless_a_colour_map_is_given():
    rgba = picture((1, 20, 40), (8, 8, 40))
    ids = np.array([2**64 - 2, 7], np.uint64)
    table = ix.as_annotations([[84.0, 84, 20], [244, 84, 20]]).assign(pre=("annotation", ids))
    stable = ix.palette(ids, None)
    assert center_colors(rgba, table, color="pre")[0] == [stable[2**64 - 2], stable[7]]
    assert center_colors(rgba, table, color="pre", cmap="viridis")[0] == [(253, 231, 37), (68, 1, 84)]


def test_a_long_list_of_colours_is_cut_in_the_message(row):
    with pytest.raises(ColorError) as caught:
        ix.annotate(*row, color=["red"] * 600)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("form", ["array", "Pillow"])
def test_a_legend_lists_the_segments_that_colour_annotations(row, form):
    rgba, table = row
    rgba = rgba.isel(y=np.zeros(200, int)).assign_coords(y=4 + 8.0 * np.arange(200))
    base = rgba if form == "array" else ix.to_pil(rgba)
    drawn = ix.annotate(base, table.isel(annotation=[0, 3, 4]), color="pre_pt_root_id")
    drawn = ix.annotate(drawn, table.isel(annotation=[1]), color="pre_pt_root_id", colors={7: "#010203"})
    stable = ix.palette([2**64 - 2, 9], None)
    listed = ix.legend(ix.to_pil(drawn) if form == "array" else drawn)
    expected = ix.legend(ix.to_pil(drawn) if form == "array" else drawn, {**stable, 7: "#010203"})
    assert sorted(map(tuple, np.unique(np.asarray(listed)[:, 80:].reshape(-1, 3), axis=0).tolist())) == sorted(
        map(tuple, np.unique(np.asarray(expected)[:, 80:].reshape(-1, 3), axis=0).tolist())
    )


def test_negative_integers_are_numbers_whatever_their_name(row):
    rgba, table = row
    table = table.assign(cluster_id=("annotation", np.array([-1, 0, 1, 2, 3])))
    assert center_colors(rgba, table, color="cluster_id")[0][::4] == [(68, 1, 84), (253, 231, 37)]
