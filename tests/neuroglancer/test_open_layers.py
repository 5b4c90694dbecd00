"""Layers of a link are opened independently; those that fail are written back to the link."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.neuroglancer.fetch import load_state
from tests.support.links import NEW, on_sample, open_on_sample

EM = {"type": "image", "name": "em", "source": "IMAGE"}
CELLS = {"type": "segmentation", "name": "cells", "source": "SEGMENTATION"}

BAD = {
    "a datasource that is not read": {"source": "n5://s3://b/a.n5"},
    "no place": {"source": ""},
    "no source": {"source": None},
    "a source that is not an address": {"source": {"url": 7}},
    "an unknown scheme": {"source": "precomputed://gs+ngauth+https://h/bucket/p"},
    "nothing there": {"source": "precomputed:///nowhere/at/all"},
    "a server that is gone": {"source": "precomputed://http://127.0.0.1:9/x"},
    "a token for a stranger": {"source": "graphene://https://evil.example.com/segmentation/table/t"},
    "segments": {"segments": ["x"]},
    "alpha": {"selectedAlpha": None},
    "colours": {"segmentColors": {"1": "rde"}},
    "a transform": {"source": {"url": "SEGMENTATION", "transform": {"outputDimensions": {}, "matrix": [[1]]}}},
    "a turn": {"source": {"url": "SEGMENTATION", "transform": [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]}},
    "a kind": {"type": 7},
    "many sources": {"source": ["SEGMENTATION"] * 1000},
    "an image of ids": {"type": "image"},
}


@pytest.mark.fast_forms(10)
@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("hasty_links")
def test_a_layer_that_fails_to_open_does_not_prevent_the_others(sample, case, visible):
    bad = {**CELLS, "name": "bad", "visible": visible, **BAD[case]}
    state = {**NEW, "layers": [EM, bad, {**CELLS, "segments": ["12"]}]}
    with pytest.warns(ix.errors.LinkWarning, match="the layer 'bad' of the link is left out: ") as caught:
        tree = open_on_sample(state, sample)
    assert len(caught) == 1
    assert list(tree.children) == ["em", "cells"]
    (entry,) = json.loads(tree.attrs["unsupported_layers"])
    assert entry["name"] == "bad"
    assert entry["reason"] in str(caught[0].message)
    assert tree.imagery.view(size=(8, 8)).imagery.overlay().shape == (1, 8, 8, 4)
    # The written link has the layer at its old position, unchanged.
    written = load_state(ix.neuroglancer_link(tree, allow_local=True))["layers"]
    assert [layer["name"] for layer in written] == ["em", "bad", "cells"]
    assert written[1] == on_sample({"layers": [bad]}, sample)["layers"][0]
    # The invalid layer is ignored if it is not requested, and an error if it is.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(open_on_sample(state, sample, layers=["em"]).children) == ["em"]
    with pytest.raises(ix.ImageryError, match="bad"):
        open_on_sample(state, sample, layers=["em", "bad"])


@pytest.mark.parametrize("layer", [3, None, [], "n5://x"])
def test_an_invalid_layer_entry_does_not_prevent_the_others(sample, layer):
    with pytest.warns(ix.errors.LinkWarning, match="left out"):
        assert list(open_on_sample({"layers": [layer, EM]}, sample).children) == ["em"]
    with pytest.warns(ix.errors.LinkWarning, match="left out"):
        assert list(open_on_sample({"layers": {"x": layer, "em": EM}}, sample).children) == ["em"]


def test_a_link_without_any_layer_that_opens_raises(sample):
    gone = {**EM, "source": "precomputed:///nowhere"}
    with pytest.raises(ix.errors.SourceNotFoundError, match="the layer 'em' of the link: .*nowhere"):
        open_on_sample({"layers": [gone]}, sample)
    notes = {"type": "annotation", "name": "notes", "source": "local://annotations"}
    with pytest.raises(ix.errors.SourceNotFoundError):
        open_on_sample({"layers": [notes, gone]}, sample)
    with pytest.warns(ix.errors.LinkWarning):
        assert not open_on_sample({"layers": [notes]}, sample).children


def test_layers_that_were_not_requested_are_written_back(sample):
    state = {**NEW, "layers": [{**NEW["layers"][1], "name": "a"}, EM, NEW["layers"][2], {**CELLS, "name": "z"}]}
    tree = open_on_sample(state, sample, layers=["em"])
    written = load_state(ix.neuroglancer_link(tree, allow_local=True))["layers"]
    assert [layer["name"] for layer in written] == ["a", "em", "notes", "z"]
    assert written[0] == on_sample({"layers": [{**NEW["layers"][1], "name": "a"}]}, sample)["layers"][0]
    json.dumps(dict(tree.attrs))


@pytest.mark.parametrize("kind", [{}, {"type": None}, {"type": "auto"}, {"type": "new"}])
def test_the_data_determine_the_type_of_a_layer_without_one(sample, kind):
    image = {"name": "em", "source": "IMAGE", "shaderControls": {"normalized": {"range": [60, 200]}}, **kind}
    cells = {"name": "cells", "source": "SEGMENTATION", "segments": ["12"], "selectedAlpha": 0.7, **kind}
    tree = open_on_sample({"layers": [{**image, "segments": ["1"]}, cells]}, sample)
    assert tree["em/image"].attrs["contrast_limits"] == (60, 200)
    assert "selected_ids" not in tree["em/image"].attrs
    attrs = tree["cells/segmentation"].attrs
    assert (attrs["selected_ids"], attrs["selected_alpha"]) == ([12], 0.7)
    assert "opacity" not in attrs
    kinds = [layer["type"] for layer in load_state(ix.neuroglancer_link(tree, allow_local=True))["layers"]]
    assert kinds == ["image", "segmentation"]


OTHERS = {
    "skeletons": {"@type": "neuroglancer_skeletons", "vertex_attributes": []},
    "meshes": {"@type": "neuroglancer_multilod_draco", "vertex_quantization_bits": 10},
    "legacy meshes": {"@type": "neuroglancer_legacy_mesh", "mesh": "mesh"},
    "properties": {"@type": "neuroglancer_segment_properties", "inline": {"ids": [], "properties": []}},
    "annotations": {"@type": "neuroglancer_annotations_v1", "dimensions": {}},
}


@pytest.mark.parametrize("form", ["precomputed://{}", "{}|neuroglancer-precomputed:", "{}"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", OTHERS)
def test_meshes_and_properties_are_not_counted_as_volumes(sample, tmp_path, case, first, form):
    (tmp_path / "info").write_text(json.dumps(OTHERS[case]))
    sources = [form.format(f"file://{tmp_path}/"), {"url": "SEGMENTATION", "subsources": {"default": True}}]
    layer = {**CELLS, "source": sources if first else sources[::-1]}
    tree = open_on_sample({"layers": [layer]}, sample)
    seg = ix.open_segmentation(sample.segmentation)
    assert tree["cells/segmentation"].attrs["source"] == seg.attrs["source"]
    written = load_state(ix.neuroglancer_link(tree, allow_local=True))["layers"][0]["source"]
    assert len(written) == 2


def test_a_second_volume_and_an_absent_source_warn(sample):
    with pytest.warns(ix.errors.LinkWarning, match="has 2 volumes; only the first one is opened"):
        open_on_sample({"layers": [{**EM, "source": ["IMAGE", "SEGMENTATION"]}]}, sample)
    with pytest.warns(ix.errors.LinkWarning, match="another source of .* cannot be opened: .*nowhere"):
        tree = open_on_sample({"layers": [{**EM, "source": ["precomputed:///nowhere", "IMAGE"]}]}, sample)
    assert list(tree.children) == ["em"]
    alone = {**EM, "source": [str(_skeletons(sample.path.parent))]}
    with pytest.warns(ix.errors.LinkWarning, match="it holds skeletons"):
        assert not open_on_sample({"layers": [alone]}, sample).children
    with pytest.raises(ix.errors.NoVolumeError, match="'em'"):
        open_on_sample({"layers": [alone]}, sample, layers=["em"])


def _skeletons(folder):
    path = Path(folder) / "skeletons-alone"
    path.mkdir(exist_ok=True)
    (path / "info").write_text(json.dumps(OTHERS["skeletons"]))
    return path


def _sparse(folder, name, ids):
    """Write a segmentation of 32³ voxels in 16³ chunks of raw bytes, without the chunks that are empty."""
    info = {
        "@type": "neuroglancer_multiscale_volume", "type": "segmentation", "data_type": "uint64", "num_channels": 1,
        "scales": [{"key": "s", "size": [32] * 3, "resolution": [8] * 3, "voxel_offset": [0] * 3, "chunk_sizes": [[16] * 3], "encoding": "raw"}],
    }  # fmt: skip
    path = Path(folder) / name
    (path / "s").mkdir(parents=True)
    (path / "info").write_text(json.dumps(info))
    for place in np.ndindex(2, 2, 2):
        part = ids[tuple(slice(16 * i, 16 * i + 16) for i in place)]
        if part.any():
            key = "_".join(f"{16 * i}-{16 * i + 16}" for i in place[::-1])
            (path / "s" / key).write_bytes(np.ascontiguousarray(part).tobytes())
    return f"precomputed://file://{path}"


@pytest.mark.usefixtures("hasty_links")
def test_missing_chunks_are_background_as_in_the_viewer(tmp_path):
    ids = np.zeros((32, 32, 32), np.uint64)
    ids[20:, 20:, 20:] = 7
    layer = {**CELLS, "source": _sparse(tmp_path, "sparse", ids)}
    (tree,) = [ix.open_neuroglancer({"layers": [layer]}, allow_local=True)]
    np.testing.assert_array_equal(tree["cells/segmentation"].values, ids)
    strict = ix.open_neuroglancer({"layers": [layer]}, allow_local=True, missing="raise")
    with pytest.raises(ix.errors.MissingChunkError):
        strict["cells/segmentation"].values  # noqa: B018
    loud = ix.open_neuroglancer({"layers": [layer]}, allow_local=True, missing="warn")
    with pytest.warns(ix.errors.MissingChunkWarning):
        np.testing.assert_array_equal(loud["cells/segmentation"].values, ids)
    with pytest.raises(ix.errors.OptionError, match="missing="):
        ix.open_neuroglancer({"layers": [layer]}, allow_local=True, missing="black")


def test_channels_are_chosen_for_all_layers_or_by_name(sample, tmp_path):
    import tensorstore as ts

    values = np.random.default_rng(0).integers(0, 255, (20, 16, 8, 3), np.uint8)
    spec = {
        "driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": str(tmp_path / "rgb")},
        "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 3},
        "scale_metadata": {"resolution": [8, 8, 40], "size": [20, 16, 8], "encoding": "raw", "chunk_size": [20, 16, 8]},
    }  # fmt: skip
    ts.open(spec, create=True).result()[...] = values
    rgb = {"type": "image", "name": "rgb", "source": f"precomputed://file://{tmp_path}/rgb"}
    state = {"layers": [EM, rgb]}
    for channel, wanted in ((None, 0), (2, 2), ({"rgb": 1}, 1), ({"em": 0, "rgb": 2}, 2), ({}, 0)):
        tree = open_on_sample(state, sample, channel=channel)
        np.testing.assert_array_equal(tree["rgb/image"].values, values[..., wanted].transpose())
    with pytest.raises(ix.errors.ChoiceError, match="channel=3"):
        open_on_sample(state, sample, channel=3)
    with pytest.raises(ix.errors.ChoiceError, match="em|image"):
        open_on_sample(state, sample, channel={"em": 1})
    with pytest.raises(
        ix.errors.OptionError, match="channel names the layer 'blue', but the layers of the link are 'em', 'rgb'"
    ):
        open_on_sample(state, sample, channel={"blue": 1})
    assert list(open_on_sample(state, sample, time=5).children) == ["em", "rgb"]
