"""Links with graphene layers and trees of datastacks, with a CAVE deployment on this machine."""

from __future__ import annotations

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.neuroglancer.fetch import load_state

cave_server = pytest.importorskip("tests.support.cave_server", reason="the CAVE server of the tests cannot be imported")


@pytest.fixture
def state(cave, monkeypatch):
    """Return a state of the deployment at a timestamp before a merge, and save its token."""
    monkeypatch.setenv("CAVE_TOKEN", cave_server.TOKEN)
    size = [s * 1e-9 for s in cave_server.VIEWER]
    middle = [
        (o + 48) * e / v + 0.5
        for o, e, v in zip(cave_server.OFFSET, cave_server.EM_SIZE, cave_server.VIEWER, strict=True)
    ]
    return {
        "dimensions": {a: [s, "m"] for a, s in zip("xyz", size, strict=True)},
        "position": middle,
        "layers": [
            {"type": "image", "name": "em", "source": cave.image},
            {"type": "segmentation", "name": "cells", "source": cave.table, "timestamp": str(int(cave_server.MERGE * 1000) - 1), "notSelectedAlpha": 0.2},
        ],
    }  # fmt: skip


def test_a_link_with_a_graphene_layer_opens_at_its_timestamp(cave, state):
    tree = ix.open_neuroglancer(state, allow_local=True)
    ds = tree.imagery.view(size=(288, 192))
    seg = ix.open_segmentation(cave.table, timestamp=cave_server.MERGE - 0.001, bbox=ix.grid_of(ds).bbox)
    np.testing.assert_array_equal(ds.cells.values, ix.regrid(seg, ds.cells).values)
    assert len(np.unique(ds.cells.values)) > 2
    assert ds.imagery.overlay().shape == (1, 192, 288, 4)
    back = ix.neuroglancer_link(tree, allow_local=True)
    assert cave_server.TOKEN not in back + str(tree.attrs) + str(ds.cells.attrs)
    assert load_state(back)["layers"][1]["timestamp"] == state["layers"][1]["timestamp"]
    assert load_state(back)["layers"][1]["source"] == cave.table


def test_no_token_is_sent_to_a_host_that_a_link_names(cave, state):
    with pytest.raises(ix.errors.LinkError, match="allow_local"):
        ix.open_neuroglancer(state)
    state["layers"] = [
        {"type": "segmentation", "name": "s", "source": "graphene://https://evil.example.com/segmentation/table/t"}
    ]
    with pytest.raises(ix.errors.AuthError, match="evil.example.com"):
        ix.open_neuroglancer(state)
    assert cave.log == []


def test_the_tree_of_a_datastack_has_a_link(cave, state):
    tree = ix.open_datastack(cave_server.DATASTACK, server_address=cave.url, timestamp=cave_server.MERGE - 1)
    ds = tree.imagery.view(size=(64, 48), center=state["position"])
    assert ix.grid_of(ds).resolution == cave_server.VIEWER
    link = ix.neuroglancer_link(tree, allow_local=True)
    layers = load_state(link)["layers"]
    assert [layer["name"] for layer in layers] == ["image", "segmentation"]
    assert layers[1]["source"] == cave.table.replace("graphene://", "graphene://middleauth+")
    assert int(layers[1]["timestamp"]) == int((cave_server.MERGE - 1) * 1000)
    again = ix.open_neuroglancer(link, allow_local=True)
    np.testing.assert_array_equal(
        again.imagery.view(size=(64, 48), center=state["position"]).segmentation.values, ds.segmentation.values
    )
    assert max(tree.imagery.thumbnail(64).size) == 64


class TestStaleRoots:
    """A selected root that is no longer current has no voxels to colour."""

    def link(self, state, when, *roots):
        layer = {**state["layers"][1], "segments": [str(root) for root in roots]}
        layer |= {"timestamp": str(int(when * 1000))}
        return {**state, "layers": [state["layers"][0], layer]}

    def test_a_stale_root_causes_a_warning_that_names_its_successor(self, cave, state):
        old = _before_the_merge(cave)
        with pytest.warns(ix.errors.LinkWarning) as caught:
            ix.open_neuroglancer(self.link(state, cave_server.MERGE + 1, old), allow_local=True)
        (message,) = [str(w.message) for w in caught]
        assert "the layer 'cells' of the link selects a root that is not current at" in message
        assert f"{old} became {cave.graph.merged}" in message
        assert "the latest roots" in message
        assert "stale='keep'" in message
        assert cave_server.TOKEN not in message

    def test_current_roots_do_not_warn(self, cave, state):
        ix.open_neuroglancer(self.link(state, cave_server.MERGE + 1, cave.graph.merged), allow_local=True)
        ix.open_neuroglancer(self.link(state, cave_server.MERGE - 1, _before_the_merge(cave)), allow_local=True)
        request_count = cave.count("is_latest_roots")
        assert request_count == 2
        ix.open_neuroglancer(state, allow_local=True)  # no segment is selected, so no roots are requested
        assert cave.count("is_latest_roots") == request_count

    def test_an_id_that_is_not_a_root_warns(self, cave, state):
        with pytest.warns(ix.errors.LinkWarning, match=r"selects ids that have no voxels: 7 is not an id of graphene"):
            ix.open_neuroglancer(self.link(state, cave_server.MERGE + 1, 7), allow_local=True)


def _before_the_merge(cave):
    """Return a root that was replaced by the merge."""
    before, after = (set(cave.graph.state(cave_server.MERGE + d).tolist()) for d in (-1, 1))
    return sorted(before - after)[0]
