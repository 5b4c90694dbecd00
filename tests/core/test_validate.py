"""Options of public functions accept every kind of number, and raise an `ImageryError` for other values."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from uuid import uuid4

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.core import validate
from imageryxr.errors import ImageryError, OptionError, format_value
from imageryxr.neuroglancer.fetch import load_state
from imageryxr.sources.fetch.policy import Access
from tests.conftest import volume

GREY = volume(np.arange(2 * 6 * 8, dtype=np.uint8).reshape(2, 6, 8), (8, 8, 40), layer_type="image")
SEG = volume(np.arange(2 * 6 * 8, dtype=np.uint64).reshape(2, 6, 8) // 8, (8, 8, 40), layer_type="segmentation")
RGBA = ix.overlay(GREY, SEG)
WIDE = volume(np.ones((1, 30, 40), np.uint8), (8, 8, 40), layer_type="segmentation")
POINTS = ix.as_annotations({"x": [20.0], "y": [20.0], "z": [20.0]})


def picture():
    return ix.to_pil(RGBA.isel(z=0), scale=40)


def plan(target, **options):
    return ix.plan_export(RGBA, target, **options)


def box(resolution=(1, 1, 1), lo=(0, 0, 0), size=None):
    return ix.BBox(lo, (64, 48, 80), resolution=resolution) if size is None else ix.BBox.around(lo, size)


# A call with the value of an option, and a valid value. The call computes at most a few voxels.
NUMBERS = {
    "alpha": (lambda v: ix.overlay(GREY, SEG, alpha=v), 1),
    "alpha of a segment": (lambda v: ix.overlay(GREY, SEG, alpha={3: v}), 1),
    "rest_alpha": (lambda v: ix.overlay(GREY, SEG, ids=[3], rest_alpha=v), 1),
    "width": (lambda v: ix.outline(SEG, width=v), 2),
    "width of an Outline": (lambda v: ix.Outline(v), 2),
    "outline alpha": (lambda v: ix.outline(SEG, alpha=v), 1),
    "contrast_limits": (lambda v: ix.to_rgba(GREY, contrast_limits=(0, v)), 40),
    "contrast_limits of an overlay": (lambda v: ix.overlay(GREY, SEG, contrast_limits=(v, 200)), 40),
    "h": (lambda v: ix.palette([1, 2], "husl", h=v), 1),
    "a component of a colour": (lambda v: ix.overlay(GREY, SEG, colors={3: (1.0, v, 0.5)}), 1),
    "nm_per_pixel": (lambda v: ix.plane(GREY, (32, 24, 40), (4, 4), nm_per_pixel=v), 8),
    "center": (lambda v: ix.plane(GREY, (32, v, 40), (4, 4)), 24),
    "normal": (lambda v: ix.plane(GREY, (32, 24, 40), (4, 4), normal=(0, 0, v)), 1),
    "orientation": (lambda v: ix.plane(GREY, (32, 24, 40), (4, 4), orientation=(0, 0, 0, v)), 1),
    "resolution": (lambda v: box((8, v, 40)), 8),
    "lo": (lambda v: box(lo=(0, v, 0)), 2),
    "size of a box": (lambda v: box(size=(4, v)), 2),
    "like": (lambda v: ix.regrid(GREY, (8, v, 40)), 8),
    "resolution of points": (lambda v: ix.as_annotations({"x": [1], "y": [1], "z": [1]}, resolution=(8, v, 40)), 8),
    "size of marks": (lambda v: ix.annotate(RGBA, POINTS, size=v), 3),
    "alpha of marks": (lambda v: ix.annotate(RGBA, POINTS, alpha=v), 1),
    "depth": (lambda v: ix.annotate(RGBA, POINTS, depth=v), 40),
    "width of marks": (lambda v: ix.annotate(RGBA, POINTS, width=v), 1),
    "length of a bar": (lambda v: ix.scale_bar(picture(), length=v), 16),
    "nm_per_pixel of a bar": (lambda v: ix.scale_bar(picture(), nm_per_pixel=v, length=16), 8),
    "label_pt": (lambda v: ix.scale_bar(picture(), length=16, label_pt=v), 7),
    "dpi": (lambda v: ix.save_figure(picture(), "a.png", dpi=v, overwrite=True), 200),
    "percentiles of a measurement": (lambda v: ix.measure(SEG, GREY, percentiles=(v, 100)), 50),
    "percentiles": (lambda v: ix.contrast_limits(GREY, percentiles=(0, v)), 99),
    "fps": (lambda v: plan("o.mp4", fps=v), 12),
    "timeout": (lambda v: ix.Connection(timeout=v), 5),
    "backoff": (lambda v: ix.Connection(backoff=v), 1),
}
WHOLE = {
    "channel": (lambda v: ix.open_image(GREY, channel=v), 0),
    "size of a plane": (lambda v: ix.plane(GREY, (32, 24, 40), (4, v)), 4),
    "size of cutouts": (lambda v: ix.cutouts(GREY, [(32, 24, 40)], (2, v)), 2),
    "seed": (lambda v: ix.palette([1, 2], ("neuroglancer", v)), 3),
    "scale": (lambda v: ix.to_pil(RGBA.isel(z=0), scale=v), 2),
    "size of a thumbnail": (lambda v: ix.thumbnail(GREY, size=v), 16),
    "label_size": (lambda v: ix.annotate(RGBA, POINTS, label_size=v), 12),
    "scale of a montage": (lambda v: ix.montage(RGBA, scale=v), 2),
    "scale of a bar": (lambda v: ix.scale_bar(ix.outline(WIDE), length=16, scale=v), 2),
    "columns": (lambda v: ix.montage([picture(), picture()], columns=v), 2),
    "spacing": (lambda v: ix.montage([picture(), picture()], spacing=v), 2),
    "chunks": (lambda v: plan("o.ome.zarr", chunks=(1, v, 4)), 4),
    "levels": (lambda v: plan("o.ome.zarr", levels=v), 1),
    "quality": (lambda v: ix.plan_export(GREY, "precomputed://o", encoding="jpeg", quality=v), 80),
    "compress_level": (lambda v: plan("{z}.png", compress_level=v), 3),
    "crf": (lambda v: plan("o.mp4", crf=v), 18),
    "workers": (lambda v: plan("o.zarr", workers=v), 1),
    "retries": (lambda v: ix.export(RGBA, "memory://", retries=v, progress=False), 0),
    "retries of a connection": (lambda v: ix.Connection(retries=v), 0),
    "concurrency": (lambda v: ix.Connection(concurrency=v), 2),
}
FLAGS = {
    "merge": lambda v: ix.outline(SEG, merge=v),
    "overwrite": lambda v: plan("o.zarr", overwrite=v),
    "resume": lambda v: ix.export(RGBA, "memory://", resume=v, progress=False),
    "square": lambda v: plan("{z}.png", square=v),
    "gzip": lambda v: ix.plan_export(GREY, "precomputed://o", encoding="raw", gzip=v),
    "bigtiff": lambda v: plan("o.tif", bigtiff=v),
    "progress": lambda v: ix.export(RGBA, "memory://", progress=v),
    "counts": lambda v: ix.unique_ids(SEG, counts=v),
    "background": lambda v: ix.overlaps(SEG, SEG, background=v),
    "distinct": lambda v: ix.palette(SEG.values, distinct=v),
    "fade": lambda v: ix.annotate(RGBA, POINTS, depth=40, fade=v),
    "label": lambda v: ix.scale_bar(picture(), length=16, label=v),
    "scale_bar": lambda v: ix.plot(RGBA.isel(z=0), scale_bar=v),
    "overlap": lambda v: ix.overlay(GREY, {"one": SEG.values == 1, "two": SEG.values > 0}, overlap=v),
    "overwrite of masks": lambda v: ix.save_masks(SEG.isel(z=0) == 1, f"{uuid4()}.png", overwrite=v),
    "agglomerate": lambda v: ix.open_segmentation(SEG, agglomerate=v),
    "allow_local": lambda v: Access.of_link(v, ()),
}
CHOICES = {
    "axis": (lambda v: ix.overlay(GREY, SEG, axis=v, outline=2), "y"),
    "axis of an outline": (lambda v: ix.outline(SEG, axis=v), "y"),
    "side": (lambda v: ix.outline(SEG, side=v), "in"),
    "unit": (lambda v: ix.outline(SEG, unit=v), "nm"),
    "method": (lambda v: ix.regrid(GREY, (16, 16, 40), method=v), "linear"),
    "method of a plane": (lambda v: ix.plane(GREY, (32, 24, 40), (4, 4), method=v), "linear"),
    "marker": (lambda v: ix.annotate(RGBA, POINTS, marker=v), "circle"),
    "unit of marks": (lambda v: ix.annotate(RGBA, POINTS, unit=v), "nm"),
    "axis of marks": (lambda v: ix.annotate(RGBA, POINTS, axis=v), "z"),
    "position": (lambda v: ix.scale_bar(picture(), length=16, position=v), "top right"),
    "on_error": (lambda v: ix.export(RGBA, "memory://", on_error=v, progress=False), "collect"),
    "layer_type": (lambda v: plan("o.ome.zarr", layer_type=v), "image"),
    "version": (lambda v: plan("o.ome.zarr", version=v), "0.4"),
    "compressor": (lambda v: plan("o.ome.zarr", compressor=v), "lz4"),
    "encoding": (lambda v: ix.plan_export(GREY, "precomputed://o", encoding=v), "raw"),
    "compression": (lambda v: plan("o.tif", compression=v), "zlib"),
    "axis of a file": (lambda v: plan("o.tif", axis=v), "y"),
    "client": (lambda v: plan("o.zarr", client=v), "threads"),
    "annotation_type": (lambda v: ix.as_annotations([[1, 2, 3]], annotation_type=v), "point"),
    "dim": (lambda v: ix.montage(RGBA, dim=v), "y"),
}
TEXTS = {
    "layers": lambda v: ix.open_neuroglancer({"layers": [{"name": "a", "source": "nowhere"}]}, layers=v),
    "trusted_hosts": lambda v: Access.of_link(False, v),
}
BYTES = {
    "memory": lambda v: plan("o.zarr", memory=v),
    "memory_cache": lambda v: ix.Connection(memory_cache=v),
    "max_state_size": lambda v: load_state({"layers": []}, max_state_size=v),
}
NOT_NUMBERS = [
    True, np.True_, "", "2", b"2", math.nan, np.float32("nan"), math.inf, -math.inf, Decimal("NaN"), Decimal("sNaN"),
    Decimal("Infinity"), 10**5000, 2j, np.complex64(2), np.array([2, 2]), np.array("2"), np.datetime64(2, "s"),
    np.timedelta64(2, "s"), object(), {2: 2}, {2}, [2], xr.DataArray([2]), type,
]  # fmt: skip
NOT_WHOLE = [2.0, np.float64(2), Decimal(2), Fraction(2), 2.5, -(10**5000)]
NOT_WORDS = ["", "nonsense", "Z", b"z", 0, 2.5, True, np.True_, math.nan, object(), ["z"], np.array(["z", "y"]), type]


def check_refused(call, value):
    with pytest.raises(ImageryError) as caught:
        call(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("option", NUMBERS)
def test_an_option_accepts_every_kind_of_number_and_nothing_else(option):
    call, valid = NUMBERS[option]
    for kind in (int, float, Decimal, Fraction, np.float16, np.float32, np.uint8, np.int64, np.longdouble, np.array):
        call(kind(valid))
    for value in NOT_NUMBERS:
        check_refused(call, value)


@pytest.mark.parametrize("option", WHOLE)
def test_an_option_accepts_every_kind_of_whole_number_and_nothing_else(option):
    call, valid = WHOLE[option]
    for kind in (int, np.uint8, np.int64, np.array):
        call(kind(valid))
    for value in [*NOT_NUMBERS, *NOT_WHOLE, -1]:
        check_refused(call, value)


@pytest.mark.parametrize("option", FLAGS)
def test_a_flag_accepts_true_and_false_only(option):
    call = FLAGS[option]
    for value in (True, False, np.True_, np.False_):
        call(value)
    for value in ("yes", "", 0, 1, 2.5, math.nan, object(), [], np.array([True])):
        check_refused(call, value)


@pytest.mark.filterwarnings("ignore:.*are drawn as squares:imageryxr.errors.ImageryWarning")
@pytest.mark.parametrize("option", CHOICES)
def test_an_option_accepts_its_choices_only(option):
    call, valid = CHOICES[option]
    call(valid)
    call(np.str_(valid))
    for value in NOT_WORDS:
        check_refused(call, value)


def test_an_option_of_texts_accepts_a_string_a_list_or_a_set():
    for value in ("a.org", ["a.org"], ("a.org",), {"a.org"}, iter(["a.org"]), np.array(["a.org"])):
        assert validate.check_texts("hosts", value, "hosts") == ["a.org"]
    assert validate.check_texts("hosts", [], "hosts") == []


@pytest.mark.parametrize("option", TEXTS)
def test_an_option_of_texts_accepts_nothing_else(option):
    for value in (True, 0, math.nan, b"a", [1], ["a", None], {"a": 1}, np.array(1), np.arange(2), object(), type):
        check_refused(TEXTS[option], value)


@pytest.mark.parametrize("option", BYTES)
def test_a_size_in_bytes_needs_a_number_with_or_without_a_unit(option):
    call = BYTES[option]
    for value in (5 * 10**9, np.int64(5 * 10**9), 5e9, Decimal(5 * 10**9), "5 GB", "5GiB", "5e9", "5e6 kB", " 5 gb "):
        call(value)
    for value in (True, "", "GB", "5 XB", "5 GB each", "-5 GB", "nan", b"5 GB", math.nan, math.inf, -1, [5], object()):
        with pytest.raises(OptionError, match=option):
            call(value)


def test_sizes_in_bytes_are_parsed():
    pairs = {"1": 1, "1.5 kB": 1500, "2 KiB": 2048, "3MB": 3 * 10**6, "4M": 4 * 10**6, "1e3": 1000, ".5 GB": 5 * 10**8}
    for text, size in pairs.items():
        assert validate.check_bytes("memory", text, "bytes") == size


def test_a_choice_suggests_the_most_similar_one():
    with pytest.raises(OptionError, match=r"marker='cirle' must be .*\(did you mean 'circle'\?\)"):
        ix.annotate(RGBA, POINTS, marker="cirle")


def test_messages_show_values_in_one_short_line_without_passwords():
    assert format_value(np.zeros((3, 3))) == "array([[0., 0., 0.], [0., 0., 0.], [0., 0., 0.]])"
    assert format_value(SEG) == "<DataArray>"  # its repr has a line for each row and attribute
    assert format_value("https://me:secret@host/a") == "'https://host/a'"
    assert len(format_value("a" * 10**6)) == 101
    assert "too long" in format_value(10**5000)


def test_messages_omit_the_name_that_xarray_takes_from_a_dask_graph():
    mask = xr.DataArray((SEG > 3).chunk().data, SEG.coords, SEG.dims)
    assert mask.name is not None
    with pytest.raises(ImageryError, match="^the array is a mask"):
        ix.measure(mask)
    with pytest.raises(ImageryError, match="^the array 'own' is a mask"):
        ix.measure(mask.rename("own"))
