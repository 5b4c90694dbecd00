"""Compare the colours that `colors_of`, `palette` and legends give with the pixels of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from tests.conftest import volume

IDS = [1, 5, 2**53 + 1, 2**63 + 7, 2**64 - 1]
SEG = volume(np.array([[[0, *IDS]]], np.uint64), (8, 8, 40), (0, 0, 0), layer_type="segmentation")
EM = volume(np.full((1, 1, 6), 90, np.uint8), (8, 8, 40), (0, 0, 0), layer_type="image")

FORMS = [
    None,
    "stable",
    "husl",
    "tab10",
    "neuroglancer",
    ("neuroglancer", 0),
    ("neuroglancer", 7),
    ("neuroglancer", 2**32 - 1),
    dict(zip(IDS, ["red", "#00ff00", (0, 0, 255), (0.5, 0.5, 0.5), "gold"], strict=True)),
]


def pixels(picture: xr.DataArray) -> dict[int, tuple[int, ...]]:
    """Return the colour of each id in the pixels of a picture."""
    return {i: tuple(rgba[:3]) for i, rgba in zip(IDS, picture.values[0, 0, 1:].tolist(), strict=True) if rgba[3]}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("ids", [None, IDS, IDS[1:3], IDS[::-1]], ids=["all", "listed", "some", "reversed"])
def test_the_colours_of_a_picture_are_those_of_its_pixels(form, ids):
    picture = ix.overlay(None, SEG, ids=ids, colors=form, alpha=1)
    expected = pixels(picture)
    assert ix.colors_of(picture, IDS) == expected
    assert ix.colors_of(picture.copy(), ix.unique_ids(SEG)) == expected
    if ids is not None:
        assert ix.colors_of(picture) == expected
        assert ix.palette(ids, form) == expected
    by_id_alone = form in (None, "stable", "neuroglancer") or isinstance(form, tuple | dict)
    if ids is None and by_id_alone:
        assert ix.palette(IDS, form) == expected


def test_the_colours_of_a_layer_of_a_link_are_those_of_its_pixels():
    look = {
        "selected_ids": [5, 2**64 - 1],
        "colors": {"5": "#112233"},
        "color_seed": 3,
        "saturation": 0.5,
        "selected_alpha": 1.0,
    }
    picture = ix.overlay(None, SEG.assign_attrs(look))
    assert ix.colors_of(picture) == ix.colors_of(picture, IDS) == pixels(picture)
    assert set(pixels(picture)) == {5, 2**64 - 1}
    everything = ix.overlay(None, SEG.assign_attrs({**look, "rest_alpha": 1.0}))
    assert ix.colors_of(everything, IDS) == pixels(everything)


def test_the_colours_of_unselected_segments_are_those_of_their_pixels():
    """Also those with a colour of their own, as the viewer draws segmentColors of segments that are not selected."""
    colors = {5: "#102030", 2**63 + 7: "#405060"}
    for form in (colors, {"colors": {str(i): c for i, c in colors.items()}, "selected_ids": [1, 5], "rest_alpha": 0.4}):
        if "colors" in form:
            picture = ix.overlay(None, SEG.assign_attrs(form))
        else:
            picture = ix.overlay(None, SEG, ids=[5], colors=form, rest_alpha=0.4)
        assert {tuple(c) for c in pixels(picture).values()} >= {(16, 32, 48), (64, 80, 96)}
        assert ix.colors_of(picture, IDS) == pixels(picture)


def test_a_picture_of_more_ids_than_its_attributes_record_raises():
    colors = {i: f"#{i:06x}" for i in range(1, 6002)}
    selected = SEG.assign_attrs(selected_ids=list(colors))
    pictures = [ix.overlay(None, SEG, colors=colors), ix.overlay(None, selected)]
    pictures += [ix.overlay(None, SEG, colors=colors, ids=[1], rest_alpha=0.5)]
    for picture in pictures:
        with pytest.raises(ix.errors.ColorError, match="6,001 segments of listed ids, more than the 5,000"):
            ix.colors_of(picture, [1, 5])


def test_the_colour_of_the_top_layer_takes_precedence():
    layers = [
        ix.Layer(SEG, colors=dict.fromkeys(IDS, "red"), alpha=1),
        ix.Layer(SEG, ids=[5], colors={5: "blue"}, alpha=1),
    ]
    picture = ix.overlay(EM, layers)
    assert ix.colors_of(picture, [1, 5]) == {1: (255, 0, 0), 5: (0, 0, 255)} == {k: pixels(picture)[k] for k in (1, 5)}
    over = ix.composite(ix.to_rgba(EM), ix.outline(SEG, ids=[1], colors={1: "lime"}))
    assert ix.colors_of(over) == {1: (0, 255, 0)}


def test_colours_of_masks_are_keyed_by_name():
    picture = ix.overlay(EM, {"axon": SEG == 1, "soma": SEG == 5}, colors={"axon": "red", "soma": "blue"})
    assert ix.colors_of(picture) == {"axon": (255, 0, 0), "soma": (0, 0, 255)}
    assert ix.colors_of(picture, ["soma"]) == {"soma": (0, 0, 255)}


def test_the_colours_survive_crops_slices_and_files(tmp_path):
    picture = ix.overlay(EM, SEG, ids=IDS, colors=("neuroglancer", 5), alpha=1)
    expected = ix.colors_of(picture)
    picture.to_dataset().to_zarr(tmp_path / "p.zarr")
    for other in (picture.isel(z=0), picture.compute(), xr.open_zarr(tmp_path / "p.zarr").overlay):
        assert ix.colors_of(other) == expected


def test_a_legend_lists_the_drawn_segments():
    picture = ix.overlay(EM, SEG, ids=[5, 1], colors="husl")
    wide = picture.isel(z=0, y=np.zeros(300, int), x=np.repeat(np.arange(6), 50)).drop_vars(["z", "y", "x"])
    expected = ix.legend(ix.to_pil(wide), ix.palette([5, 1], "husl"))
    assert ix.legend(wide).tobytes() == ix.legend(wide, [5, 1]).tobytes() == expected.tobytes()
    with pytest.raises(ix.errors.OptionError, match=r"the second argument, for example imageryxr\.unique_ids"):
        ix.legend(ix.overlay(EM, SEG))
    with pytest.raises(ix.errors.OptionError, match="none of the ids in colors is drawn"):
        ix.legend(wide, [999])
    with pytest.raises(ix.errors.ColorError, match="does not record"):
        ix.legend(ix.to_pil(wide))


def test_palette_accepts_every_form_of_colors():
    assert ix.palette(IDS, None) == ix.palette(IDS, "stable")
    assert ix.palette(IDS) == ix.palette(IDS, "husl")
    with pytest.raises(ix.errors.ColorError, match="no colour for 4"):
        ix.palette(IDS, {1: "red"})
    for bad in (("tab10", 3), ("neuroglancer", -1), ["red", "blue"], 5):
        with pytest.raises(ix.errors.ColorError):
            ix.palette(IDS, bad)


def test_a_dataset_instead_of_an_array_raises_with_its_variables():
    with pytest.raises(ix.errors.LayerError, match=r"variables \['image', 'segmentation'\].*ds\['segmentation'\]"):
        ix.unique_ids(xr.Dataset({"image": EM, "segmentation": SEG}))
