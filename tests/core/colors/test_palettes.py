"""Compare colours with those of seaborn, ImageryClient, Matplotlib, colorcet, Neuroglancer and the kernels."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys

import colorcet
import matplotlib
import numpy as np
import pandas as pd
import pytest
from dask.base import tokenize
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import CSS4_COLORS, to_rgba

from imageryxr.core.colors import Colors, palette, parse_color, resolve_colors, stable_table
from imageryxr.core.colors.ids import neuroglancer_colors
from imageryxr.core.colors.ids import splitmix64 as splitmix64_array
from imageryxr.errors import ColorError, ImageryWarning, LayerError, OptionError, TargetError
from tests.support.color_rows import find_rows
from tests.support.slow import slow_except

BIG = 864691135617152361
TOP = 2**64 - 1
ids64 = st.integers(1, TOP)
COUNTS = (1, 2, 3, 7, 10, 11, 23, 64)


def rgb(colors):
    return np.array(list(colors), dtype=float).reshape(-1, 3)


# --- parse_color ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("red", (255, 0, 0, 255)),
        (" Tab:Blue ", (31, 119, 180, 255)),
        ("xkcd:sky blue", (117, 187, 253, 255)),
        ("k", (0, 0, 0, 255)),
        ("none", (0, 0, 0, 0)),
        ("#abc", (170, 187, 204, 255)),
        ("#abc8", (170, 187, 204, 136)),
        ("#1F77b4", (31, 119, 180, 255)),
        ("#1f77b480", (31, 119, 180, 128)),
        ((1.0, 0, 0), (255, 0, 0, 255)),
        ((0, 1.0, 1, 0.5), (0, 255, 255, 128)),
        ((1, 0, 0), (1, 0, 0, 255)),
        ([255, 128, 0], (255, 128, 0, 255)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        (np.array([1, 0, 0.5]), (255, 0, 128, 255)),
        (np.array([1, 0, 255], np.uint8), (1, 0, 255, 255)),
        ((np.float32(1), np.int8(0), 0), (255, 0, 0, 255)),
    ],
)
def test_parse_color_accepts_names_hex_strings_and_numbers(value, expected):
    result = parse_color(value)
    assert result == expected
    assert all(type(part) is int for part in result)


@pytest.mark.parametrize("name", list(CSS4_COLORS))
def test_colour_names_and_hex_strings_equal_those_of_matplotlib(name):
    expected = tuple(round(255 * part) for part in to_rgba(name))
    assert parse_color(name) == parse_color(CSS4_COLORS[name]) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rde", "did you mean 'red'"),
        ("1f77b4", "'#1f77b4'"),
        ("#12345", "'#rrggbb'"),
        ("#ggg", "hex digits"),
        ("C0", "not a colour name"),
        ("0.5", "not a colour name"),
        ("", "not a colour name"),
        ((255, 0, 0.0), "0 to 1"),
        ((1.5, 0, 0), r"\(1.5, 0, 0\)"),
        ((float("nan"), 0, 0), "nan"),
        ((256, 0, 0), "256"),
        ((-1, 0, 0), "-1"),
        ((True, False, False), "True"),
        (np.array([True, False, True]), "True"),
        ((1, 2), "has 2"),
        ((1, 2, 3, 4, 5), "has 5"),
        (("1", "0", "0"), "'1'"),
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (5, "5 is not a colour"),
        (None, "None"),
        ({"r": 1}, "'r'"),
        (b"red", "b'red'"),
    ],
)
def test_an_invalid_colour_raises_with_a_reason(value, message):
    with pytest.raises(ColorError, match=message):
        parse_color(value)


# --- palette ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["husl", "hls"])
def test_hues_equal_those_of_imageryclient(name, count):
    composite = pytest.importorskip("imageryclient.composite")
    utils = pytest.importorskip("imageryclient.utils")
    ids = [BIG + i for i in range(count)]
    ours = palette(ids, name)
    theirs = composite.discrete_colors(dict.fromkeys(ids), palette=name)
    assert list(ours) == list(theirs)
    assert np.abs(rgb(ours.values()) - utils.colors_to_uint8(theirs.values())).max() <= 1


def test_hue_palettes_use_h_s_and_l():
    seaborn = pytest.importorskip("seaborn")
    expected = 255 * rgb(seaborn.husl_palette(5, h=0.3, s=0.5, l=0.8))
    assert np.abs(rgb(palette(range(1, 6), h=0.3, s=0.5, l=0.8).values()) - expected).max() <= 1
    expected = 255 * rgb(seaborn.hls_palette(5, h=0.0, s=0.5, l=0.4))
    assert np.abs(rgb(palette(range(1, 6), "hls", h=0, s=0.5, l=0.4).values()) - expected).max() <= 1


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "name",
    [
        *("tab10", "tab20", "Set1", "Set3", "Paired", "Pastel2", "Dark2", "Accent", "viridis", "magma_r"),
        *("twilight", "Spectral", "rainbow", "coolwarm", "gray", "hsv", "cubehelix"),
    ],
)
def test_colormaps_are_sampled_like_seaborn_does(name, count):
    seaborn = pytest.importorskip("seaborn")
    expected = 255 * rgb(seaborn.color_palette(name, count))
    assert np.abs(rgb(palette(range(1, count + 1), name).values()) - expected).max() <= 1


@pytest.mark.parametrize("name", ["tab10", "Set1"])
def test_qualitative_colormaps_give_their_exact_colours(name):
    colors = matplotlib.colormaps[name].colors
    assert list(palette(range(1, len(colors) + 1), name).values()) == [parse_color(color)[:3] for color in colors]


@pytest.mark.parametrize("name", ["glasbey", "glasbey_light", "glasbey_bw_minc_20", "cet_glasbey_dark"])
def test_glasbey_gives_its_colours_in_order_and_repeats(name):
    expected = [parse_color(color)[:3] for color in colorcet.palette[name.removeprefix("cet_")]]
    got = list(palette(range(1, 301), name).values())
    assert got == [*expected, *expected[:44]]


def test_colorcet_ramps_are_sampled_evenly():
    table = [parse_color(color)[:3] for color in colorcet.fire]
    got = [table.index(color) for color in palette(range(1, 5), "fire").values()]
    assert got == [51, 102, 153, 204]
    assert list(palette(range(1, 5), "fire_r").values()) == [table[255 - place] for place in got]
    assert palette([1, 2, 3], "cet_rainbow") != palette([1, 2, 3], "rainbow") == palette([1, 2, 3], "rainbow")


def test_every_name_of_colorcet_and_matplotlib_works():
    for name in [*colorcet.palette, *matplotlib.colormaps]:
        colors = resolve_colors(name, [1, 2, 3])
        assert colors.rgb.shape == (3, 3), name
        assert 1 <= len(resolve_colors(name).fallback) <= 256, name


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5, 0, 5, 3], [5, 3]),
        ((TOP, 2**63), [TOP, 2**63]),
        ([5, np.uint64(TOP)], [5, TOP]),
        (np.array([[7, 0], [2, 7]], np.uint32), [7, 2]),
        (np.array([TOP, 1, TOP], np.uint64), [TOP, 1]),
        (np.array([9, 8], object), [9, 8]),
        ({3: "a", 1: "b"}, [3, 1]),
        (dict.fromkeys([4, 2]).keys(), [4, 2]),
        (np.array([]), []),
        ([0], []),
        ([], []),
    ],
)
@pytest.mark.parametrize("name", ["husl", "hls", "stable", "neuroglancer", "tab10", "viridis", "glasbey"])
def test_ids_are_kept_exactly_and_in_order(ids, expected, name):
    colors = palette(ids, name)
    assert list(colors) == expected
    assert all(type(key) is int for key in colors)
    assert all(type(part) is int and 0 <= part <= 255 for color in colors.values() for part in color)


@pytest.mark.parametrize("ids", ["56", 56, np.uint64(56), ["56"], np.array(["56"]), np.array("56", object)])
def test_ids_may_be_a_single_id_or_strings_of_digits(ids):
    assert palette(ids) == palette([56])


def test_ids_may_be_iterators():
    assert list(palette(iter([4, 4, 2]))) == list(palette(segment for segment in (4, 2))) == [4, 2]


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([1.0], LayerError),
        (np.array([1.0]), LayerError),
        (np.array([True]), LayerError),
        (["5x"], LayerError),
        ("x", LayerError),
        ([True], LayerError),
        (True, LayerError),
        (5.0, LayerError),
        ([-1], OptionError),
        (np.array([-1.0]), LayerError),
        ([2**64], OptionError),
    ],
)
def test_invalid_ids_raise(ids, error):
    with pytest.raises(error, match=r"\bids?\b"):
        palette(ids)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("viridsi", "did you mean 'viridis'"),
        ("Glasbey", "did you mean 'glasbey'"),
        ("stabel", "did you mean 'stable'"),
        ("red", "dict.fromkeys"),
        ("nonsuch", "colorcet name .* Matplotlib colormap"),
        (5, "5"),
        (["tab10"], "tab10"),
    ],
)
def test_an_unknown_palette_raises_with_suggestions(name, message):
    for ids in ([1, 2], []):
        with pytest.raises(ColorError, match=message):
            palette(ids, name)


def test_hue_options_are_checked():
    with pytest.raises(OptionError, match=r"s=0\.5: only the palettes 'husl' and 'hls' have h, s and l"):
        palette([1], "tab10", s=0.5)
    with pytest.raises(OptionError, match=r"l=65"):
        palette([1], l=65)
    with pytest.raises(OptionError, match=r"s=nan"):
        palette([1], s=float("nan"))


# --- stable -----------------------------------------------------------------------------------------------


def test_the_stable_table_never_changes():
    table = stable_table()
    assert table.shape == (1018, 3)
    assert table.dtype == np.uint8
    # Figures from different years must match, so a different table needs a different name.
    assert hashlib.sha256(table.tobytes()).hexdigest() == (
        "7217e3fc65c9e97444e299981ebb0dc8ee6f6c98e76494af05b840b37e8dd914"
    )
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


def test_stable_colours_are_distinct_and_not_grey():
    color = pytest.importorskip("skimage.color")
    lab = color.rgb2lab(stable_table()[None] / 255)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e9 * np.eye(len(lab))
    assert distances.min() > 6.9
    assert np.hypot(lab[:, 1], lab[:, 2]).min() > 39
    assert lab[:, 0].min() > 34
    assert lab[:, 0].max() < 89


@given(st.lists(ids64, max_size=20, unique=True))
def test_a_stable_colour_depends_on_the_id_alone(ids):
    together = palette(ids, "stable")
    assert all(palette([segment], "stable")[segment] == color for segment, color in together.items())
    assert list(together.values()) == list(map(tuple, resolve_colors(None).colors_for(np.array(ids, np.uint64))))


def splitmix64(value):
    """Return the hash of Vigna's splitmix64.c, computed with Python ints."""
    z = (value + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@given(st.lists(st.integers(0, TOP), min_size=1))
def test_the_hash_equals_splitmix64(ids):
    assert splitmix64_array(np.array(ids, np.uint64)).tolist() == [splitmix64(value) for value in ids]
    assert splitmix64_array(np.zeros(1, np.uint64)).tolist() == [0xE220A8397B1DCDAF]


def test_consecutive_ids_have_different_colours():
    colors = resolve_colors(None).colors_for(np.arange(1, 2001, dtype=np.uint64)).astype(int)
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).mean() > 150
    assert len(np.unique(colors, axis=0)) > 800


# --- Neuroglancer -----------------------------------------------------------------------------------------


@given(ids=st.lists(st.integers(0, TOP), min_size=1), seed=st.integers(0, 2**32 - 1))
def test_neuroglancer_colours_equal_those_of_the_neuroglancer_package(ids, seed):
    reference = pytest.importorskip("neuroglancer.segment_colors").hex_string_from_segment_id
    expected = [parse_color(reference(seed, segment))[:3] for segment in ids]
    assert list(map(tuple, neuroglancer_colors(np.array(ids, np.uint64), seed).tolist())) == expected


def test_neuroglancer_colours_equal_recorded_values():
    # From neuroglancer 2.41.2, for environments without it.
    ids = np.array([1, 2, 3, BIG, TOP], np.uint64)
    hexes = ["#{:02x}{:02x}{:02x}".format(*color) for color in neuroglancer_colors(ids, 0).tolist()]
    assert hexes == ["#5e80ff", "#ff3578", "#9bff0c", "#a5ff25", "#d3ff03"]


def test_neuroglancer_colours_with_and_without_ids_are_equal():
    everything, some = resolve_colors(("neuroglancer", 7)), resolve_colors(["neuroglancer", 7], [BIG, 5])
    assert (everything.mode, everything.seed) == ("neuroglancer", 7)
    assert len(everything.ids) == len(everything.fallback) == 0
    assert some.mode == "table"
    np.testing.assert_array_equal(some.rgb, everything.colors_for(some.ids))
    assert resolve_colors("neuroglancer") == resolve_colors(("neuroglancer", 0)) != everything
    assert list(palette([5, BIG], "neuroglancer").values()) == list(
        map(tuple, resolve_colors("neuroglancer").colors_for([5, BIG]).tolist())
    )


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "1", None])
def test_an_invalid_seed_raises(seed):
    with pytest.raises(ColorError, match="seed"):
        resolve_colors(("neuroglancer", seed))


def test_a_seed_with_another_palette_raises():
    with pytest.raises(ColorError, match="only 'neuroglancer' takes a seed"):
        resolve_colors(("husl", 3))


# --- resolve_colors ---------------------------------------------------------------------------------------


def test_colors_none_draws_every_id_in_its_stable_colour():
    colors = resolve_colors(None)
    assert (len(colors.ids), colors.rgb.shape, colors.alpha, colors.mode) == (0, (0, 3), None, "table")
    np.testing.assert_array_equal(colors.fallback, stable_table())
    assert colors == resolve_colors("stable")
    assert colors.is_shown([0, 1, TOP]).tolist() == [False, True, True]


def test_given_ids_are_drawn_in_their_stable_colours_and_no_others():
    colors = resolve_colors(None, [BIG, 0, 5, BIG])
    assert colors.ids.tolist() == [BIG, 5]
    assert colors.ids.dtype == np.uint64
    assert len(colors.fallback) == 0
    np.testing.assert_array_equal(colors.rgb, resolve_colors(None).colors_for([BIG, 5]))
    assert colors.is_shown([5, 6, BIG, 0]).tolist() == [True, False, True, False]
    assert colors.colors_for([6, 0]).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_dict_draws_only_its_ids():
    colors = resolve_colors({BIG: "red", "18446744073709551615": (0, 0, 1.0), np.uint64(7): "#00ff0080"})
    assert colors.ids.tolist() == [BIG, TOP, 7]
    assert colors.rgb.tolist() == [[255, 0, 0], [0, 0, 255], [0, 255, 0]]
    assert colors.alpha.tolist() == [255, 255, 128]
    assert len(colors.fallback) == 0
    assert colors.colors_for(np.array([7, BIG, BIG + 1, TOP, 0], np.uint64)).tolist() == [
        [0, 255, 0],
        [255, 0, 0],
        [0, 0, 0],
        [0, 0, 255],
        [0, 0, 0],
    ]
    assert colors.alphas_for([7, BIG, 1, 0]).tolist() == [128, 255, 0, 0]


def test_a_dict_with_ids_draws_those_in_their_order():
    colors = resolve_colors({1: "red", 2: "lime", 3: "blue"}, [3, 1])
    assert colors.ids.tolist() == [3, 1]
    assert colors.rgb.tolist() == [[0, 0, 255], [255, 0, 0]]
    assert colors.alpha is None


def test_the_error_lists_ids_without_a_colour():
    with pytest.raises(ColorError, match=r"no colour for 15 of the 16 ids: 2, 3, .*, 11, …\. Add them"):
        resolve_colors({1: "red"}, range(1, 17))
    with pytest.raises(ColorError, match=rf"1 of the 2 ids: {BIG}\."):
        resolve_colors({1: "red"}, [1, BIG])


def test_empty_colours_draw_nothing():
    for colors in (resolve_colors({}), resolve_colors(None, []), resolve_colors("tab10", []), Colors()):
        assert not colors.shows_all
        assert colors.colors_for([1, 2]).tolist() == [[0, 0, 0], [0, 0, 0]]
        assert colors.rgb.shape == (0, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({0: "red"}, "background"),
        ({"0": "red"}, "background"),
        ({1.0: "red"}, "float"),
        ({True: "red"}, "True"),
        ({-1: "red"}, "-1"),
        ({2**64: "red"}, "18446744073709551616"),
        ({"x5": "red"}, "'x5'"),
        ({"²": "red"}, "not an id"),
        ({5: "red", "5": "blue"}, "twice"),
        ({5: "rde"}, r"colors\[5\].*did you mean 'red'"),
        ({5: (255, 0, 0.5)}, r"colors\[5\].*0 to 1"),
        ("viridsi", "did you mean 'viridis'"),
        ("red", "dict.fromkeys"),
        (5, "palette name"),
        (["red", "blue"], "dict\\(zip\\(ids, colors\\)\\)"),
        (["red", "blue", "lime"], "dict\\(zip\\(ids, colors\\)\\)"),
        (np.zeros((3, 3)), "dict\\(zip\\(ids, colors\\)\\)"),
    ],
)
def test_invalid_values_of_colors_raise(spec, message):
    for ids in (None, [5]):
        with pytest.raises(ColorError, match=message):
            resolve_colors(spec, ids)


def test_palette_names_without_ids_select_colours_by_hash():
    tab10 = resolve_colors("tab10")
    assert tab10.fallback.tolist() == [list(color) for color in palette(range(1, 11), "tab10").values()]
    assert tab10.colors_for([BIG]).tolist() == [tab10.fallback[splitmix64(BIG) % 10].tolist()]
    assert len(resolve_colors("husl").fallback) == len(resolve_colors("viridis").fallback) == 256
    assert tab10.shows_all


def test_palette_names_with_ids_select_colours_by_rank():
    colors = resolve_colors("husl", [9, 4])
    assert dict(zip(colors.ids.tolist(), map(tuple, colors.rgb.tolist()), strict=True)) == palette([9, 4], "husl")


@pytest.mark.parametrize("value", [(0, 1, 1), [1, 0, 0], np.array([0, 1, 1]), (0, 1, 1, 1)])
def test_ints_of_0_and_1_are_nearly_black_and_warn(value):
    with pytest.warns(ImageryWarning, match=r"nearly black\. Write floats, such as \([01]\.0, ") as caught:
        colors = resolve_colors({5: value, 6: "red"})
    assert colors.rgb[0].tolist() == list(value)[:3]
    assert len(caught) == 1


@pytest.mark.parametrize(
    "spec",
    [{5: (0, 0, 0)}, {5: (0.0, 1.0, 1.0)}, {5: (0, 1, 1), 6: (0, 200, 0)}, {5: (1, 0, 0, 255)}, {5: "black"}, {}],
)
def test_other_colours_do_not_warn(spec, recwarn):
    resolve_colors(spec)
    assert not recwarn.list


# --- the value --------------------------------------------------------------------------------------------


SPECS = [
    (None, None),
    (None, [1, 2]),
    (None, [2, 1]),
    ("tab10", None),
    ("tab10", [1, 2]),
    ("husl", [1, 2]),
    ({1: "red", 2: "blue"}, None),
    ({1: "red", 2: "#0000ff80"}, None),
    ({1: "red", 2: "#0000ff40"}, None),
    ("neuroglancer", None),
    (("neuroglancer", 1), None),
    (("neuroglancer", 1), [1, 2]),
]


def test_equal_colours_have_equal_tokens_and_different_ones_do_not():
    made = [resolve_colors(*spec) for spec in SPECS]
    again = [pickle.loads(pickle.dumps(resolve_colors(*spec))) for spec in SPECS]
    assert made == again
    assert [hash(value) for value in made] == [hash(value) for value in again]
    assert [tokenize(value) for value in made] == [tokenize(value) for value in again]
    assert len({tokenize(value) for value in made}) == len(set(made)) == len(SPECS)
    assert made[0] != "stable"


def test_colours_are_immutable():
    mine = np.array([[1, 2, 3]], np.uint8)
    colors = Colors(np.array([5]), mine)
    mine[:] = 9
    assert colors.rgb.tolist() == [[1, 2, 3]]
    with pytest.raises(ValueError, match="read-only"):
        colors.rgb[0] = 0
    with pytest.raises(AttributeError):
        colors.seed = 3
    assert repr(colors) == "<Colors of 1 ids; others: not shown>"


@given(
    explicit=st.dictionaries(ids64, st.tuples(*[st.integers(2, 255)] * 4), max_size=8),
    others=st.lists(st.integers(0, TOP), max_size=8),
    mode=st.sampled_from(["none", "table", "neuroglancer"]),
)
def test_colors_for_and_alphas_for_agree_with_a_dict(explicit, others, mode):
    given_ids = np.array(list(explicit), np.uint64)
    rgba = np.array(list(explicit.values()), np.uint8).reshape(-1, 4)
    rest = {"fallback": stable_table()} if mode == "table" else {"mode": mode, "seed": 3} if mode != "none" else {}
    colors = Colors(given_ids, rgba[:, :3], rgba[:, 3], **rest)
    wanted = [*explicit, *others]
    got = colors.colors_for(wanted)
    for segment, color, alpha, shown in zip(
        wanted, got.tolist(), colors.alphas_for(wanted).tolist(), colors.is_shown(wanted).tolist(), strict=True
    ):
        if segment in explicit:
            assert (tuple(color), alpha, shown) == (explicit[segment][:3], explicit[segment][3], True)
        elif segment == 0 or mode == "none":
            assert (color, alpha, shown) == ([0, 0, 0], 0, False)
        else:
            name = "stable" if mode == "table" else ("neuroglancer", 3)
            assert (color, alpha, shown) == (resolve_colors(name, [segment]).rgb[0].tolist(), 255, True)


def test_the_kernel_table_gives_the_same_colours():
    from imageryxr.kernels import color_table

    labels = np.random.default_rng(3).integers(0, 2**64, (4, 5, 6), dtype=np.uint64)
    labels[0, 0, :3] = 0, BIG, 7
    for spec in (None, "tab10", {BIG: "red", 7: "blue"}):
        colors = resolve_colors(spec)
        explicit, rest = (np.pad(rgb, ((0, 0), (0, 1)), constant_values=255) for rgb in (colors.rgb, colors.fallback))
        table = color_table.build_color_table(colors.ids, explicit, rest)
        rows = find_rows(labels, table)
        painted = np.where(rows[..., None] >= 0, table.rgba[rows], 0)
        expected = np.concatenate([colors.colors_for(labels), colors.alphas_for(labels)[:, None]], axis=1)
        np.testing.assert_array_equal(painted.reshape(-1, 4), expected)


def test_importing_colors_does_not_import_heavy_packages():
    heavy = ["matplotlib", "colorcet", "hsluv", "PIL", "dask", "xarray", "numba"]
    code = (
        "import importlib.util, json, sys, types\n"
        "package = types.ModuleType('imageryxr')\n"
        f"package.__path__ = {list(sys.modules['imageryxr'].__path__)!r}\n"
        "sys.modules['imageryxr'] = package\n"
        "import imageryxr.core.colors\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert not set(heavy) & set(loaded)


# --- distinct colours of neighbours -------------------------------------------------------------------------


def delta_e(a, b):
    """Return the CIELAB distance of two colours according to scikit-image."""
    from skimage.color import rgb2lab

    return float(np.linalg.norm(rgb2lab(np.array([[a]], np.uint8)) - rgb2lab(np.array([[b]], np.uint8))))


def test_lab_agrees_with_scikit_image():
    from skimage.color import rgb2lab

    from imageryxr.core.colors.distinct import rgb_to_lab

    rgb = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
    np.testing.assert_allclose(rgb_to_lab(rgb), rgb2lab(rgb[None])[0], atol=0.02)


@pytest.mark.parametrize(
    "name", slow_except(["stable", "neuroglancer", "glasbey", "husl", "tab20", "colorblind"], "stable")
)
def test_distinct_palettes_give_touching_ids_different_colours(name, sample):
    import imageryxr as ix
    from imageryxr.core.colors.distinct import find_contacts

    seg = ix.open_segmentation(sample.segmentation).isel(z=[30]).load()
    contacts = find_contacts(seg.values)
    colors = palette(seg, name, distinct=True)
    assert colors == palette(seg, name, distinct=True)
    worst = min(delta_e(colors[a], colors[b]) for a, near in contacts.items() for b in near)
    before = palette(seg, name)
    near_before = min(delta_e(before[a], before[b]) for a, near in contacts.items() for b in near)
    assert worst > near_before
    assert worst >= {"colorblind": 10, "tab20": 15}.get(name, 30)
    changed = [i for i in colors if colors[i] != before[i]]
    assert len(changed) < len(colors) * (0.9 if name in ("colorblind", "husl", "tab20") else 0.6)
    # Only colours that were too similar to that of a neighbour may change.
    for i in changed:
        assert any(delta_e(before[i], c) < 30 for j in contacts[i] for c in (before[j], colors[j]))


def test_find_contacts_equals_a_loop_over_voxels():
    from imageryxr.core.colors.distinct import MAX_GAP, find_contacts

    labels = np.random.default_rng(3).integers(0, 9, (2, 7, 8)).astype(np.uint64)
    truth = {}
    for z, y, x in np.ndindex(labels.shape):
        steps = [(0, k, 0) for k in range(1, MAX_GAP + 1)] + [(0, 0, k) for k in range(1, MAX_GAP + 1)] + [(1, 0, 0)]
        for dz, dy, dx in steps:
            if z + dz < 2 and y + dy < 7 and x + dx < 8:
                a, b = int(labels[z, y, x]), int(labels[z + dz, y + dy, x + dx])
                if a != b and a and b:
                    truth.setdefault(a, set()).add(b)
                    truth.setdefault(b, set()).add(a)
    assert find_contacts(labels) == truth


def test_distinct_without_an_array_raises():
    with pytest.raises(LayerError, match="needs a segmentation"):
        palette([1, 2, 3], distinct=True)


def test_many_ids_use_glasbey_by_default():
    assert palette(range(1, 13)) == palette(range(1, 13), "husl")
    assert palette(range(1, 40)) == palette(range(1, 40), "glasbey")
    assert palette(range(1, 40), h=0.5) == palette(range(1, 40), "husl", h=0.5)


# Simulations of colour blindness in linear sRGB (Vienot, Brettel and Mollon 1999; tritan by Machado 2009).
BLIND = {
    "protan": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deutan": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_the_colourblind_palette_is_distinguishable_with_each_colour_blindness(kind):
    from imageryxr.core.colors.distinct import rgb_to_lab

    rgb = np.array(list(palette(range(1, 8), "colorblind").values())) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.array(BLIND[kind]).T
    seen = np.clip(
        np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.clip(linear, 0, 1) ** (1 / 2.4) - 0.055), 0, 1
    )
    lab = rgb_to_lab(seen * 255)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(7, 1)]
    assert apart.min() > 8
    lab10 = rgb_to_lab(np.array(list(palette(range(1, 8), "tab10").values())))
    assert len(lab10) == 7


# --- palettes on disk --------------------------------------------------------------------------------------


@given(colors=st.dictionaries(ids64, st.tuples(*[st.integers(0, 255)] * 4), max_size=5))
@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_saved_palette_loads_unchanged(colors, kind, tmp_path_factory):
    from imageryxr.core.colors import load_palette, save_palette

    path = tmp_path_factory.getbasetemp() / f"palette.{kind}"
    save_palette(colors, path)
    back = load_palette(path)
    assert back == {i: c if c[3] < 255 else c[:3] for i, c in colors.items()}
    assert list(back) == list(colors)


def test_a_palette_is_saved_into_a_new_folder_and_a_failed_save_is_a_target_error(tmp_path):
    from imageryxr.core.colors import load_palette, save_palette

    path = tmp_path / "new" / "p.json"
    assert load_palette(save_palette({5: "red"}, path)) == {5: (255, 0, 0)}
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"file/p\.json cannot be written: .*/file failed \(.*\); choose another"):
        save_palette({5: "red"}, tmp_path / "file" / "p.json")
    path.with_suffix(".csv").mkdir()
    with pytest.raises(TargetError, match="cannot be written"):
        save_palette({5: "red"}, path.with_suffix(".csv"))
    assert sorted(p.name for p in path.parent.iterdir()) == ["p.csv", "p.json"]


@pytest.mark.parametrize("name", ["husl", "colorblind", "stable"])
def test_a_saved_named_palette_loads_unchanged(name, tmp_path):
    from imageryxr.core.colors import load_palette, save_palette

    saved = palette([5, 7, 2**64 - 1], name)
    assert load_palette(save_palette(saved, tmp_path / "p.json")) == saved
    mixed = {5: (255, 0, 0), 6: (255, 0, 0, 128)}
    assert load_palette(save_palette(mixed, tmp_path / "p.csv")) == mixed


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("a.csv", "id,color\n8.64691E+17,#ff0000\n", ColorError, "spreadsheet"),
        ("a.csv", "5,#ff0000,x\n", ColorError, "3 columns"),
        ("a.csv", "5,rde\n", ColorError, "entry 1"),
        ("a.json", "[1]", ColorError, "contains a list"),
        ("a.json", "{", ColorError, "not JSON"),
        ("a.json", '{"-1": "red"}', ColorError, "'-1'"),
        ("a.txt", "", OptionError, r"\.json or \.csv"),
    ],
)
def test_invalid_palette_files_raise(name, text, error, message, tmp_path):
    from imageryxr.core.colors import load_palette

    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        load_palette(tmp_path / name)
    with pytest.raises(OptionError, match="cannot be read"):
        load_palette(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("twice.json", '{"5": "#fff", "5": "#000"}', "the id 5 the colour #000000, but an earlier entry"),
        ("twice.csv", "5,#fff\n5,#000\n", "the id 5 the colour #000000, but an earlier entry"),
        ("empty.csv", "\n", "is empty"),
    ],
)
def test_contradictory_and_empty_palette_files_raise(tmp_path, name, text, message):
    from imageryxr.core.colors import load_palette

    (tmp_path / name).write_text(text)
    with pytest.raises(ColorError, match=message):
        load_palette(tmp_path / name)


def test_a_table_as_colours_is_refused_with_lines_that_work():
    table = pd.DataFrame({"id": [5, 7], "color": ["red", "blue"], "cell_type": ["a", "b"]})
    for call in (lambda: palette([5, 7], table), lambda: resolve_colors(table)):
        with pytest.raises(ColorError, match=r"dict\(zip") as caught:
            call()
    first, second = str(caught.value).partition(" Write ")[2].split(", or ")
    given = {"table": table, "palette": palette}
    assert eval(first.partition(" with ")[0], given) == {5: "red", 7: "blue"}
    assert list(eval(second.partition(" to give ")[0], given)) == [5, 7]
    with pytest.raises(ColorError, match=r"Write colors.to_dict\(\)"):
        palette([5, 7], table.set_index("id").color)


def test_errors_of_palettes_by_type_state_what_is_missing():
    table = {"r": [1, 2], "c": ["a", "b"]}
    with pytest.raises(OptionError, match="by='c' needs id="):
        palette(table, by="c")
    with pytest.raises(OptionError, match="id='r' needs by="):
        palette(table, id="r")
    with pytest.raises(LayerError, match="'r'"):
        palette({"r": [864691135617152361.0, np.nan], "c": ["a", "b"]}, by="c", id="r")
    with pytest.raises(LayerError, match="'r' is a column of ids, but holds 1.5"):
        palette({"r": [1.5, 2.0], "c": ["a", "b"]}, by="c", id="r")
    assert palette({"r": [], "c": []}, by="c", id="r") == {}
