"""Fuzz tests of links: each opens or raises an error of `imageryxr.errors` in bounded time."""

from __future__ import annotations

import copy
import json
import random
import time
import urllib.parse
import warnings

import dask
import pytest

import imageryxr as ix
from tests.support.links import NEW, OLD, on_sample

SECONDS = 60  # limit for one link, which usually takes milliseconds

ODD = [
    None, True, False, -1, 0, 1, 2, 2**31, 2**62, 2**64, 2**70, -(2**70), 10**400, 1e308, -1e308, 5e-324, 1e-30, 1e-300, 1.5,
    float("nan"), float("inf"), -float("inf"), "", "!", "x" * 5000, "\\" * 100, "\ud800", "٣", "NaN", "1e999", "0x12", "-0", "²",
    [], {}, [[]], [None], [1, 2, 3, 4], [2**70] * 3, [0, 0, 0], [1e-300] * 3, [1e300] * 3, {"x": 1}, {"": {}}, {"url": None},
    {"url": "x" * 9000}, {"type": "row", "children": [{}]}, [["1", "2"]] * 3, [2e-40, "m"], [1e-300, "m"], [1e40, "m"], [4, "s"],
    "precomputed://", "://", "|", "|zarr:", "precomputed:///dev/null", "zarr:///dev", "file:///" + "a/" * 3000, "/" + "a" * 300,
    "precomputed:///proc/self/root", "https://[::1", "http://127.0.0.1:0/x", "http://127.0.0.1:9/\x00", "mem://x", "zarr:///LOOP",
    "precomputed:///LOOP/x", "~nobody/x", "graphene:///x", "precomputed://gs+ngauth+https://h/b", "local://annotations", "zip:", "#",
]  # fmt: skip
KEYS = [
    *(
        "type",
        "source",
        "transform",
        "segments",
        "dimensions",
        "navigation",
        "position",
        "layout",
        "visible",
        "archived",
    ),
    *(
        "outputDimensions",
        "inputDimensions",
        "matrix",
        "crossSectionScale",
        "crossSectionOrientation",
        "displayDimensions",
    ),
    *(
        "localPosition",
        "localDimensions",
        "subsources",
        "timestamp",
        "linkedSegmentationGroup",
        "equivalences",
        "shader",
    ),
    *(
        "shaderControls",
        "segmentColors",
        "colorSeed",
        "selectedAlpha",
        "opacity",
        "blend",
        "url",
        "name",
        "layers",
        "title",
    ),
    *("relativeDisplayScales", "hideSegmentZero", "segmentDefaultColor", "saturation", "channelDimensions", "children"),
]
PIECES = [
    "",
    "}",
    "{",
    "[",
    "]",
    '"',
    "'",
    "\\",
    ",",
    "%",
    "%00",
    "%ff",
    "%7B",
    "#!",
    "9" * 400,
    "\x00",
    "_",
    "e",
    "&",
    "\ufeff",
    "-",
]


def states(sample):
    dims = NEW["dimensions"]
    placed = {"outputDimensions": dims, "inputDimensions": dims, "matrix": [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]]}
    layer = {"type": "image", "name": "em", "source": {"url": "IMAGE", "transform": placed}}
    groups = {
        "type": "row",
        "children": [{"type": "viewer", "layers": ["em"], "layout": "xy", "position": [4600, 2560, 130]}],
    }
    linked = {**NEW["layers"][1], "name": "more", "linkedSegmentationGroup": "cells", "equivalences": [["7", "12"]]}
    newer = {
        **NEW,
        "layers": [layer, *NEW["layers"][1:], linked],
        "layout": groups,
        "displayDimensions": ["x", "z", "y"],
    }
    turned = {**NEW, "crossSectionOrientation": [0, 0, 0.7, 0.7], "layout": "xz-3d"}
    return [on_sample(state, sample) for state in (NEW, OLD, newer, turned)]


def mutate(state, rng, odd_values):
    """Return a state of which some values are changed, removed or moved."""
    state = copy.deepcopy(state)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        node = state
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.7:
                node = node[key]
                continue
            change = rng.random()
            if change < 0.65:
                node[key] = copy.deepcopy(rng.choice(odd_values))
            elif change < 0.72:
                del node[key]
            elif change < 0.8 and isinstance(node, dict):
                node[rng.choice(KEYS)] = copy.deepcopy(node[key])
            elif isinstance(node, dict):
                node[rng.choice(KEYS)] = copy.deepcopy(rng.choice(odd_values))
            else:
                node.insert(0, copy.deepcopy(rng.choice(odd_values)))
            break
    return state


def garble(text, rng):
    """Return text of which some pieces are replaced."""
    for _ in range(rng.choice([1, 2, 10])):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(PIECES) + text[place + rng.choice([0, 1, 30]) :]
    return text


def links(sample, rng, odd_values, count):
    bases = states(sample)
    for _ in range(count):
        state, form = mutate(rng.choice(bases), rng, odd_values), rng.random()
        if form < 0.45:
            yield state
            continue
        try:
            text = json.dumps(state)
        except ValueError:
            continue
        quoted = urllib.parse.quote(text) if form < 0.8 else text
        link = text if form < 0.6 else f"https://host.example/{rng.choice(['#!', '#%21', '?json_url='])}{quoted}"
        yield garble(link, rng) if rng.random() < 0.5 else link


def follow(link, uses):
    """Open a link and call functions with its tree; return whether the link could be opened."""
    try:
        tree = ix.open_neuroglancer(link, allow_local=True)
    except ix.ImageryError:
        return False
    for use in uses:
        try:
            use(tree)
        except ix.ImageryError:
            continue
    return True


def _view(tree):
    tree.imagery.view(size=(4, 3)).imagery.overlay().values  # noqa: B018


def _plane(tree):
    tree.imagery.plane((4, 3))


def _link(tree):
    ix.neuroglancer_link(tree, allow_local=True)


USES = (_view, _plane, _link)


@pytest.fixture
def odd_values(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    return [o.replace("/LOOP", str(loop)) if isinstance(o, str) else o for o in ODD]


# Seed, number of links, and number of functions called per link, for each part. Parts can run on several cores.
PARTS = [(250, 250, 3), *(pytest.param(seed, 1250, 1, marks=pytest.mark.slow) for seed in range(10_000, 10_008))]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count", "ways"), PARTS)
def test_mutated_links_open_or_raise_an_imagery_error(sample, odd_values, seed, count, ways, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", _no_names)
    rng = random.Random(seed)
    opened = 0
    for number, link in enumerate(links(sample, rng, odd_values, count)):
        uses = [USES[(number + way) % len(USES)] for way in range(ways)]
        start = time.monotonic()
        with warnings.catch_warnings(), dask.config.set(scheduler="synchronous"):
            warnings.simplefilter("ignore", ix.ImageryWarning)
            try:
                opened += follow(link, uses)
            except BaseException as error:  # PanicException, which Rust code raises, is not a subclass of Exception
                raise AssertionError(f"link {number}: {link!r}") from error
        assert time.monotonic() - start < SECONDS, f"link {number}: {link!r}"
    assert opened > count / 10  # enough links are parsed to test the later steps


def _no_names(*args, **kwargs):
    raise OSError("no network in tests")
