"""Each parameter of each public function raises an `ImageryError` for values of a wrong type when it is called."""

from __future__ import annotations

import inspect
import math
import socket
from itertools import product
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.accessor import ImageryTree
from imageryxr.errors import GridError, ImageryError
from imageryxr.sources.cave import datastack
from tests.conftest import volume
from tests.support.annotations import random_annotations, write_levels
from tests.support.cave_server import DATASTACK, TOKEN

matplotlib.use("agg")

GREY = volume(np.arange(2 * 6 * 40, dtype=np.uint16).reshape(2, 6, 40).astype(np.uint8), (8, 8, 40), layer_type="image")
SEG = volume(np.arange(2 * 6 * 40, dtype=np.uint64).reshape(2, 6, 40) // 20, (8, 8, 40), layer_type="segmentation")
BOTH = xr.Dataset({"image": GREY, "segmentation": SEG})
RGBA = ix.overlay(GREY, SEG)
SLICE = RGBA.isel(z=0)
BOX = ix.grid_of(GREY).bbox
TABLE = pd.DataFrame({"x": [20.0, 90.0], "y": [20.0, 30.0], "z": [20.0, 50.0], "id": [1, 2], "kind": ["a", "b"]})
CUTOUTS = ix.cutouts(BOTH, TABLE, (8, 4, 1))
TREE = xr.DataTree.from_dict({"/image": BOTH[["image"]], "/segmentation": BOTH[["segmentation"]]})
LINKED = xr.DataTree.from_dict(
    {"/image": xr.Dataset({"image": GREY.assign_attrs(source="precomputed://gs://bucket/em")})}
)
MEASURED = ix.measure(SEG)

# A valid call: its function, and its arguments by position and by name.
CALLS = {
    "BBox": (ix.BBox, ((0, 0, 0), (9, 9, 9)), {}),
    "BBox.around": (ix.BBox.around, ((9, 9, 9), (4, 4)), {}),
    "BBox.intersection": (BOX.intersection, (BOX,), {}),
    "Connection": (lambda **options: ix.Connection(**options), (), {}),
    "Grid": (ix.Grid, ((1, 2, 3), (8, 8, 40), (0, 0, 0)), {}),
    "Grid.from_axes": (ix.Grid.from_axes, (ix.grid_of(GREY).axes,), {}),
    "Grid.select": (ix.grid_of(GREY).select, (BOX,), {}),
    "Grid.crop": (ix.grid_of(GREY).crop, (ix.grid_of(GREY).box,), {}),
    "Grid.shift_to": (ix.grid_of(GREY).shift_to, (ix.grid_of(GREY),), {}),
    "Layer": (ix.Layer, (SEG,), {}),
    "Level": (ix.Level, (0, ix.grid_of(GREY), (2, 6, 40)), {}),
    "Outline": (ix.Outline, (), {}),
    "Sample": (ix.Sample, ("folder",), {}),
    "align": (ix.align, (GREY, SEG), {}),
    "annotate": (ix.annotate, (RGBA, TABLE), {}),
    "as_annotations": (ix.as_annotations, (TABLE,), {}),
    "composite": (lambda layer, other: ix.composite(layer, other), (RGBA, RGBA), {}),
    "colors_of": (ix.colors_of, (RGBA, [1]), {}),
    "contacts": (ix.contacts, (SEG,), {}),
    "contrast_limits": (ix.contrast_limits, (GREY,), {}),
    "crop": (ix.crop, (GREY, BOX), {}),
    "cutouts": (ix.cutouts, (BOTH, TABLE, (8, 4, 1)), {}),
    "export": (ix.export, (GREY, "out.zarr"), {}),
    "grid_of": (ix.grid_of, (GREY,), {}),
    "inset": (ix.inset, (ix.to_rgba(volume(np.ones((1, 80, 80), np.uint8), (8, 8, 40))), BOX), {"zoom": 1}),
    "legend": (ix.legend, (ix.to_pil(SLICE, scale=20), [1, 2]), {}),
    "load_palette": (ix.load_palette, ("palette.json",), {}),
    "measure": (ix.measure, (SEG, GREY), {}),
    "montage": (ix.montage, (RGBA,), {}),
    "montage of pictures": (ix.montage, ([SLICE, SLICE],), {}),
    "montage of cutouts": (ix.montage, (ix.to_rgba(CUTOUTS.image),), {}),
    "neuroglancer_link": (ix.neuroglancer_link, (GREY.assign_attrs(source="precomputed://gs://bucket/em"),), {}),
    "open_image": (ix.open_image, (GREY,), {}),
    "open_multiscale": (ix.open_multiscale, (GREY,), {}),
    "open_neuroglancer": (ix.open_neuroglancer, ({"layers": []},), {}),
    "open_segmentation": (ix.open_segmentation, (SEG,), {}),
    "outline": (ix.outline, (SEG,), {}),
    "overlaps": (ix.overlaps, (SEG, SEG), {}),
    "overlay": (ix.overlay, (GREY, SEG), {}),
    "overlay of cutouts": (ix.overlay, (CUTOUTS.image, CUTOUTS.segmentation), {}),
    "palette": (ix.palette, ([1, 2],), {}),
    "palette by type": (ix.palette, (TABLE,), {"by": "kind", "id": "id"}),
    "plan_export": (ix.plan_export, (GREY, "out.zarr"), {}),
    "plan_export of cutouts": (ix.plan_export, (CUTOUTS, "out.zarr"), {}),
    "plane": (ix.plane, (GREY, (90, 20, 40), (4, 4)), {}),
    "plot": (ix.plot, (SLICE,), {}),
    "regrid": (ix.regrid, (GREY, (16, 16, 40)), {}),
    "sample_points": (ix.sample_points, (BOTH, TABLE), {}),
    "save_figure": (ix.save_figure, (SLICE, "a.png"), {"overwrite": True}),
    "save_masks": (ix.save_masks, (SEG.isel(z=0) == 1, "mask.png"), {"overwrite": True}),
    "save_palette": (ix.save_palette, ({1: "red"}, "palette.json"), {}),
    "scale_bar": (ix.scale_bar, (SLICE,), {}),
    "select_ids": (ix.select_ids, (SEG, [1]), {}),
    "split_masks": (ix.split_masks, (SEG, [1]), {}),
    "thumbnail": (ix.thumbnail, (GREY,), {}),
    "to_pil": (ix.to_pil, (SLICE,), {}),
    "to_rgba": (ix.to_rgba, (GREY,), {}),
    "unique_ids": (ix.unique_ids, (SEG,), {}),
    "around": (BOTH.imagery.around, ((20, 20, 20), (4, 4)), {}),
    "to_dataframe": (MEASURED.imagery.to_dataframe, (), {}),
    "tree.bbox": (TREE.imagery.bbox, ((0, 0, 0), (9, 9, 9)), {"resolution": (1, 1, 1)}),
    "tree.around": (TREE.imagery.around, ((9, 9, 9), (4, 4)), {"resolution": (1, 1, 1)}),
    "tree.align": (TREE.imagery.align, (), {}),
    "tree.view": (TREE.imagery.view, ((8, 4),), {}),
    "tree.plane": (LINKED.imagery.plane, ((4, 4),), {}),
    "tree.thumbnail": (TREE.imagery.thumbnail, (), {}),
    "tree.neuroglancer_link": (LINKED.imagery.neuroglancer_link, (), {}),
    "tree.cutouts": (TREE.imagery.cutouts, (TABLE, (8, 4, 1)), {}),
}
ONCE = ix.Connection(timeout=5, retries=0)
# Valid calls of functions that read a CAVE server or a folder; `tree` is the datastack of the server.
CALLS_THAT_READ = {
    "open_annotations": lambda url, tree, folder: (ix.open_annotations, (f"precomputed://{folder}/points",), {}),
    "open_datastack": lambda url, tree, folder: (
        ix.open_datastack,
        (DATASTACK,),
        {"server_address": url, "token": TOKEN, "connection": ONCE},
    ),
    "open_skeletons": lambda url, tree, folder: (ix.open_skeletons, (f"precomputed://{folder}/skeletons", [5]), {}),
    "tree.table": lambda url, tree, folder: (
        tree.imagery.table,
        ("synapses",),
        {"position": "ctr_pt", "token": TOKEN, "connection": ONCE},
    ),
}
# Names that users do not call (classes of results, errors and types), `progress`, which takes no arguments, and
# `sample`, which would write a volume for each value.
NOT_CALLED = {"ExportPlan", "ExportReport", "ImageryError", "ImageryWarning", "Source", "progress", "sample"}
VALUES = [
    None, True, -1, 0, 2**64, 10**400, math.nan, "x", "", "a\0b", b"x", [], {}, [None], object(), int, lambda: 1,
    Path("x"), np.datetime64("2020-01-01"), {1}, np.uint64(2**63), np.arange(3), np.array(3), np.array(["a", "b"]),
    np.array([None, 1]), xr.DataArray(3), xr.DataArray(np.ones((2, 3))), GREY, SEG, GREY.isel(x=0), GREY > 3, GREY * 1j,
    RGBA, xr.Dataset(), BOTH, TREE, pd.DataFrame(), TABLE, pd.Series([1]), CUTOUTS.image, ..., "x" * 10_000,
]  # fmt: skip


def fault_of(function, args, options):
    """Return a description of what is wrong with the outcome of a call, or None."""
    try:
        function(*args, **options)
    except ImageryError as error:
        return f"a message of {len(str(error)):,} letters" if len(str(error)) > 2000 else None
    except Exception as error:
        return repr(error)
    return None


def check_wrong_arguments(function, args, options):
    """Give each parameter of a call each of the wrong values."""
    function(*args, **options)
    faults = []
    parameters = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for number, parameter in enumerate(parameters):
        for value in VALUES:
            given, named = list(args), dict(options)
            if number < len(args):
                given[number] = value
            else:
                named[parameter] = value
            fault = fault_of(function, given, named)
            if fault:
                faults.append(f"{parameter}={str(value)[:80]}: {fault}")
            plt.close("all")
    assert not faults, "\n".join(faults)


@pytest.mark.fast_forms(20)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_is_an_imagery_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ix.save_palette({1: "red"}, "palette.json")
    check_wrong_arguments(*CALLS[name])


WRITERS = {
    "export": lambda path: ix.export(GREY, f"{path}.ome.zarr"),
    "sample": lambda path: ix.sample(path, shape=(4, 64, 64)),
    "save_figure": lambda path: ix.save_figure(SLICE, f"{path}.png"),
    "save_masks": lambda path: ix.save_masks(ix.split_masks(SEG, [1]), f"{path}_{{z}}.png"),
    "save_palette": lambda path: ix.save_palette({1: "red"}, f"{path}.json"),
}


@pytest.mark.parametrize("path", ["file/name", "n" * 300, "a\0b"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_path_that_the_file_system_rejects_is_an_imagery_error(name, path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ix.ImageryError):
        WRITERS[name](f"{tmp_path}/{path}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# Values of one item of a list of numbers, such as a point, a size or a resolution.
ITEMS = [
    None, True, np.True_, math.nan, math.inf, 1e300, 2**64, 10**400, "1", "", np.array([3]), [1], (1, 2), {}, b"x", 1j,
    np.datetime64("NaT", "ns"), np.ma.masked, pd.NA, pd.Timestamp("2020"), object(),
]  # fmt: skip
LISTS = {
    "lo": (0, 0, 0), "hi": (9, 9, 9), "resolution": (8, 8, 40), "center": (90, 20, 40), "size": (4, 4, 1),
    "shape": (1, 2, 3), "voxel_offset": (0, 0, 0), "to": (8, 8, 40), "like": (16, 16, 40), "normal": (0, 0, 1),
    "up": (0, 1, 0), "contrast_limits": (1, 200), "percentiles": (1, 99), "limits": (0, 1),
}  # fmt: skip
TABLES = {"points", "centers", "annotations", "table"}


def list_items(function, args, options):
    """Return the calls with one wrong item in a list of numbers, or in the row of a table of points."""
    for number, parameter in enumerate(inspect.signature(function).parameters):
        base = LISTS.get(parameter, (90, 20, 40) if parameter in TABLES else ())
        for position, item in product(range(len(base)), ITEMS):
            row = [*base[:position], item, *base[position + 1 :]]
            value = [row] if parameter in TABLES else row
            given, named = list(args), dict(options)
            if number < len(args):
                given[number] = value
            else:
                named[parameter] = value
            yield f"{parameter}={str(value)[:80]}", (function, given, named)


@pytest.mark.fast_forms(20)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_item_of_a_list_is_an_error_of_ours(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faults = [f"{text}: {fault}" for text, call in list_items(*CALLS[name]) if (fault := fault_of(*call))]
    plt.close("all")
    assert not faults, "\n".join(faults)


IMPOSSIBLE = {
    "a masked coordinate": lambda: ix.BBox((0, 0, np.ma.masked), (9, 9, 9)),
    "a masked array as a point": lambda: ix.BBox(np.ma.array([0, 0, 0], mask=[1, 0, 0]), (9, 9, 9)),
    "a masked id": lambda: ix.select_ids(SEG, np.ma.array([1, 2], mask=[0, 1])),
    "masked points": lambda: ix.sample_points(GREY, np.ma.array([[20, 20, 20], [90, 30, 50]], mask=[[0] * 3, [1] * 3])),
    "a bool as a count": lambda: ix.Grid((True, 2, 3), (8, 8, 40), (0, 0, 0)),
    "a text as an offset": lambda: ix.Grid((1, 2, 3), (8, 8, 40), ("1", 0, 0)),
    "an offset beyond floats": lambda: ix.Grid((1, 2, 3), (8, 8, 40), (10**400, 0, 0)),
    "an infinite sample": lambda: ix.sample("folder", shape=(math.inf, 64, 64)),
    "a set of chunks": lambda: ix.open_image(GREY, chunks={1, 6, 40}),
    "a bool as a chunk": lambda: ix.open_image(GREY, chunks=(True, 6, 40)),
    "a grid of terabytes": lambda: ix.regrid(GREY.assign_coords(x=GREY.x * 1e9).drop_attrs(), (4, 8, 40)),
    "text of 2**40 pixels": lambda: ix.scale_bar(SLICE, label_size=2**40),
    "text of 1e18 points": lambda: ix.scale_bar(SLICE, label_pt=1e18),
    "a spacing of 2**40": lambda: ix.montage(RGBA, spacing=2**40),
    "a print of a picometre": lambda: ix.save_figure(SLICE, "a.png", width_mm=1e-9),
    "a print of 1000 km": lambda: ix.save_figure(SLICE, "a.png", width_mm=1e9, dpi=300),
    "a thumbnail of objects": lambda: ix.thumbnail(GREY.astype(object)),
    "a thumbnail of texts": lambda: ix.thumbnail(GREY.astype(str)),
    "a thumbnail of stacked dims": lambda: ix.thumbnail(GREY.stack(p=("y", "x"))),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_value_is_an_error_of_ours(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageryError):
        IMPOSSIBLE[name]()
    assert not [*tmp_path.iterdir()]


IDS = {
    "select_ids": lambda i: ix.select_ids(SEG, [i]),
    "split_masks": lambda i: ix.split_masks(SEG, [i]),
    "overlay": lambda i: ix.overlay(GREY, SEG, ids=[i]),
    "colours": lambda i: ix.overlay(GREY, SEG, colors={i: "red"}),
    "opacities": lambda i: ix.overlay(GREY, SEG, alpha={i: 0.5}),
    "outline": lambda i: ix.outline(SEG, ids=[i]),
    "Layer": lambda i: ix.overlay(GREY, ix.Layer(SEG, ids=[i])),
    "measure": lambda i: ix.measure(SEG, ids=[i]),
    "contacts": lambda i: ix.contacts(SEG, ids=[i]),
    "colors_of": lambda i: ix.colors_of(RGBA, [i]),
    "legend": lambda i: ix.legend(ix.to_pil(SLICE, scale=20), [i]),
    "legend of colours": lambda i: ix.legend(ix.to_pil(SLICE, scale=20), {i: "red"}),
    "palette": lambda i: ix.palette([i]),
    "save_palette": lambda i: ix.save_palette({i: "red"}, "palette.json"),
    "save_masks": lambda i: ix.save_masks({i: SEG.isel(z=0) == 1}, "{id}.png"),
    "colours of masks": lambda i: ix.save_masks({1: SEG.isel(z=0) == 1}, "{id}.png", colors={i: "red"}),
    "open_segmentation": lambda i: ix.open_segmentation(SEG, ids=[i]),
    "open_skeletons": lambda i: ix.open_skeletons("skeletons", [i]),
}


@pytest.mark.parametrize("name", IDS)
def test_a_float_as_an_id_is_one_error_everywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (1.5, 1.0, np.float64(1), math.nan):
        with pytest.raises(ix.errors.IdError, match=r"contains .*, which is not an id: .* above 2\*\*53"):
            IDS[name](given)
    with pytest.raises(ix.errors.IdError, match="which is not an id: ids are integers"):
        IDS[name](-1 if "masks" not in name else None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"mip": -1}, {"mip": 1.0}, {"grid": (1, 2, 3)}, {"chunks": (0, 6, 40)}, {"chunks": 64}, {"chunks": (6, 40)},
        {"encoding": None}, {"placeholder": "yes"}, {"dtype": np.uint8},
    ],
)  # fmt: skip
def test_each_field_of_a_level_is_checked(fields):
    (name,) = fields
    with pytest.raises(ix.errors.OptionError, match=rf"^{name}=.* must be "):
        ix.Level(**{"mip": 0, "grid": ix.grid_of(GREY), "chunks": (2, 6, 40), **fields})
    level = ix.Level(np.int64(1), ix.grid_of(GREY), [2, np.int64(6), 40])
    assert level == ix.Level(1, ix.grid_of(GREY), (2, 6, 40))
    assert hash(level)


@pytest.mark.parametrize("values", [[str(i) for i in range(40)], pd.date_range("2020", periods=40)])
def test_texts_and_dates_are_not_positions_in_nm(values):
    with pytest.raises(GridError, match="a grid needs numbers in nm"):
        ix.grid_of(GREY.assign_coords(x=values))


def test_a_number_out_of_range_is_not_called_infinite():
    with pytest.raises(
        ix.errors.BoxError, match=r"contains 2000000000000000000, which is not between -1e\+18 and 1e\+18"
    ):
        ix.BBox((0, 0, 0), (2 * 10**18, 9, 9))


def test_flags_of_numpy_are_flags(tmp_path):
    target = tmp_path / "a.zarr"
    for overwrite in (np.False_, np.True_):
        assert ix.export(GREY, target, overwrite=overwrite, resume=np.True_, progress=np.False_).regions
    np.testing.assert_array_equal(ix.open_image(target), GREY)


def test_a_line_break_in_a_name_of_a_legend_is_a_space():
    picture = ix.to_pil(SLICE, scale=20)
    broken = ix.legend(picture, {1: "red"}, names={1: "a\nb"}, title="c\nd")
    assert broken == ix.legend(picture, {1: "red"}, names={1: "a b"}, title="c d")


@pytest.fixture
def readable(cave, tmp_path, monkeypatch):
    """Return a CAVE server, its datastack, and a folder of annotations and skeletons; no other server is reachable."""

    def refuse_other_hosts(host, *args, **kwargs):
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return resolve(host, *args, **kwargs)

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", refuse_other_hosts)
    monkeypatch.setattr(datastack, "DEFAULT_SERVER", cave.url)
    monkeypatch.chdir(tmp_path)
    write_levels(tmp_path / "points", "point", random_annotations("point"))
    (tmp_path / "skeletons").mkdir()
    (tmp_path / "skeletons" / "info").write_text('{"@type": "neuroglancer_skeletons"}')
    tree = ix.open_datastack(DATASTACK, server_address=cave.url, token=TOKEN, connection=ONCE)
    return cave.url, tree, tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS_THAT_READ)
def test_a_wrong_argument_of_a_function_that_reads_is_an_imagery_error(name, readable):
    check_wrong_arguments(*CALLS_THAT_READ[name](*readable))


def test_each_public_function_is_called_with_wrong_arguments():
    called = {name.partition(" ")[0] for name in (*CALLS, *CALLS_THAT_READ)}
    methods = {f"tree.{name}" for name in vars(ImageryTree) if not name.startswith("_")}
    public = {name for name in ix.__all__ if callable(getattr(ix, name))}
    assert (public | methods) - called == NOT_CALLED
