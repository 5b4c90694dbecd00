"""CAVE datastacks and graphene segmentations, compared with numpy, on a local CAVE deployment."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import quote

import dask
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.cave import chunkedgraph, root_cache
from imageryxr.sources.resolve import resolve_source
from tests.conftest import no_compute
from tests.support.cave import BOX, HASTY, NOW, PART, utc, voxels
from tests.support.cave_server import (
    BEGIN,
    DATASTACK,
    EM_SIZE,
    MERGE,
    OFFSET,
    SPLIT,
    TABLE,
    TOKEN,
    VERSIONS,
    VIEWER,
    tiles,
)
from tests.support.slow import slow_except
from tests.support.source_suite import SourceSuite, read_padded


def segmentation(cave, when: float = NOW, **options):
    options = {"token": TOKEN, "connection": HASTY, **options}
    return ix.open_segmentation(cave.table, timestamp=when, **options)


# ---------------------------------------------------------------------------------------------------------
# datastacks


class TestDatastack:
    def open(self, cave, **options):
        options = {"server_address": cave.url, "token": TOKEN, "connection": HASTY, **options}
        return ix.open_datastack(DATASTACK, **options)

    @pytest.mark.slow
    def test_a_figure_of_a_datastack_equals_a_figure_of_numpy_arrays(self, cave):
        with no_compute():
            tree = self.open(cave)
            assert [str(line) for line in cave.log] == [
                f"GET /info/api/v2/datastack/full/{DATASTACK}",
                "GET /data/em/info",
                f"GET /segmentation/table/{TABLE}/info",
            ]
            box = tree.imagery.around([2 * OFFSET[0] + 101, 2 * OFFSET[1] + 81, OFFSET[2] + 11], (160, 120, 6))
            ds = tree.imagery.align(bbox=box)
            picture = ds.imagery.overlay(alpha=0.4, outline=2)
        part = (slice(8, 14), slice(10, 70), slice(10, 90))
        np.testing.assert_array_equal(ds.image.values, cave.tissue.em[part])
        roots = cave.truth(NOW, part)
        np.testing.assert_array_equal(ds.segmentation.values, roots)
        grid = ix.grid_of(ds.segmentation)
        plain = xr.DataArray(roots, dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution})
        # away from the edge, where outlines do not depend on voxels outside the box
        middle = {"z": slice(2, 4), "y": slice(10, 40), "x": slice(10, 60)}
        truth = ix.overlay(ds.image.compute(), plain, alpha=0.4, outline=2).isel(middle)
        np.testing.assert_array_equal(picture.isel(middle).values, truth.values)

    def test_a_datastack_opens_as_a_tree(self, cave):
        tree = self.open(cave)
        assert list(tree.children) == ["image", "segmentation"]
        assert tree["image/image"].dims == tree["segmentation/segmentation"].dims == ("z", "y", "x")
        assert tree["segmentation/segmentation"].dtype == np.uint64
        attrs = {**tree.attrs}
        now = datetime.now(UTC).timestamp()
        assert 0 <= now - datetime.fromisoformat(attrs.pop("timestamp")).timestamp() < 60
        assert attrs == {
            "datastack": DATASTACK,
            "server_address": cave.url,
            "image_source": cave.image,
            "segmentation_source": cave.table,
            "viewer_resolution": VIEWER,
        }
        assert tree["segmentation/segmentation"].attrs["timestamp"] == tree.attrs["timestamp"]

    def test_boxes_use_the_resolution_of_the_viewer(self, cave):
        tree = self.open(cave, image_mip=0, segmentation_mip=1)
        lo, hi = (1300, 1100, 330), (1400, 1180, 340)
        assert tree.imagery.bbox(lo, hi, resolution="viewer") == tree.imagery.bbox(lo, hi)
        assert tree.imagery.bbox(lo, hi) == ix.BBox(lo, hi, resolution=VIEWER)
        assert tree.imagery.bbox(lo, hi, resolution="image").resolution == (10, 10, 10)
        assert tree.imagery.bbox(lo, hi, resolution="segmentation").resolution == (20, 20, 20)
        assert tree.imagery.around(lo, (9, 9), resolution=(4, 4, 40)) == ix.BBox.around(
            lo, (9, 9), resolution=(4, 4, 40)
        )
        pixels = tree.imagery.around(lo, (64, 64), size_resolution="image")
        assert ix.crop(tree["image/image"], pixels).shape == (1, 64, 64)
        with pytest.raises(
            ix.errors.OptionError, match=r"'voxel' is not defined in this tree.*'viewer', 'image', 'segmentation'"
        ):
            tree.imagery.bbox(lo, hi, resolution="voxel")

    def test_a_datastack_opens_a_box_of_supervoxels(self, cave):
        tree = self.open(cave, bbox=BOX, agglomerate=False)
        assert dask.is_dask_collection(tree["image/image"].data)
        np.testing.assert_array_equal(tree["segmentation/segmentation"].values, cave.tissue.supervoxels[PART])
        assert "timestamp" not in tree.attrs
        assert cave.count("roots_binary") == 0

    @pytest.mark.parametrize("version", sorted(VERSIONS))
    def test_a_version_selects_the_state_at_its_instant(self, cave, version):
        tree = self.open(cave, version=version, bbox=BOX)
        assert tree.attrs["version"] == version
        assert tree.attrs["timestamp"] == utc(VERSIONS[version]).isoformat(timespec="microseconds")
        np.testing.assert_array_equal(tree["segmentation/segmentation"].values, cave.truth(VERSIONS[version], PART))

    def test_a_numpy_integer_is_a_version(self, cave):
        assert self.open(cave, version=np.int64(7)).attrs["version"] == 7

    def test_an_unknown_version_lists_the_existing_ones(self, cave):
        with pytest.raises(
            ix.errors.SourceNotFoundError, match=r"no materialization 8 of 'fib25_public': the versions are 7, 9"
        ):
            self.open(cave, version=8)
        with pytest.raises(ix.errors.OptionError, match="both define the instant"):
            self.open(cave, version=7, timestamp=utc(MERGE))

    def test_unknown_datastacks_and_tables_are_errors(self, cave):
        with pytest.raises(ix.errors.SourceNotFoundError, match=f"no datastack 'fib52' on {cave.url}.*server_address="):
            ix.open_datastack("fib52", server_address=cave.url, token=TOKEN)
        with pytest.raises(ix.errors.SourceNotFoundError, match="no table 'other' on .*open_datastack"):
            ix.open_segmentation(cave.table.replace(TABLE, "other"), token=TOKEN, connection=HASTY)
        with pytest.raises(
            ix.errors.SourceError, match="not the address of a table.*graphene://https://HOST/segmentation/table/TABLE"
        ):
            ix.open_segmentation(f"graphene://{cave.url}/tables/{TABLE}", token=TOKEN)

    @pytest.mark.parametrize("name", ["../x", "a/b", "a?b#c", "ä b"])
    def test_a_datastack_name_is_quoted_in_the_url(self, cave, name):
        with pytest.raises(ix.errors.SourceNotFoundError, match="there is no datastack"):
            ix.open_datastack(name, server_address=cave.url, token=TOKEN, connection=HASTY)
        assert [line.path for line in cave.log] == [f"/info/api/v2/datastack/full/{quote(name, safe='')}"]

    def test_the_server_that_caveclient_stored_is_used(self, cave):
        folder = os.path.expanduser("~/.cloudvolume/secrets")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "cave_datastack_to_server_map.json")
        try:
            with open(path, "w") as file:
                json.dump({DATASTACK: cave.url}, file)
            assert ix.open_datastack(DATASTACK, token=TOKEN).attrs["server_address"] == cave.url
        finally:
            os.remove(path)

    def test_a_flat_segmentation_has_no_timestamp(self, cave, monkeypatch):
        monkeypatch.setattr(type(cave), "table", f"precomputed://{cave.url}/data/ws")
        tree = self.open(cave, bbox=BOX)
        np.testing.assert_array_equal(tree["segmentation/segmentation"].values, cave.tissue.supervoxels[PART])
        with pytest.raises(ix.errors.OptionError, match="does not change in time"):
            self.open(cave, timestamp=utc(MERGE))
        with pytest.raises(ix.errors.OptionError, match="is static and has no versions"):
            self.open(cave, version=7)

    def test_a_datastack_opens_selected_ids(self, cave):
        a, b = cave.graph.merged_from
        tree = self.open(cave, ids=[a, b], stale="update", timestamp=utc(MERGE + 1))
        truth = cave.truth(MERGE + 1)
        found = tree["segmentation/segmentation"]
        assert found.attrs["ids"] == [cave.graph.merged]
        np.testing.assert_array_equal(found.values, np.where(truth == cave.graph.merged, truth, 0))
        with pytest.raises(ix.errors.StaleRootError):
            self.open(cave, ids=[a], timestamp=utc(MERGE + 1))
        assert tree["image"].imagery.bbox((0, 0, 0), (1, 1, 1)).resolution == VIEWER

    def test_a_client_without_a_datastack_is_an_error(self, cave):
        from caveclient import CAVEclient

        client = CAVEclient(server_address=cave.url, auth_token=TOKEN, write_server_cache=False)
        with pytest.raises(ix.errors.OptionError, match="has no datastack"):
            ix.open_datastack(client)


class TestClient:
    @pytest.fixture
    def client(self, cave):
        from caveclient import CAVEclient

        def make(**options):
            return CAVEclient(DATASTACK, server_address=cave.url, auth_token=TOKEN, write_server_cache=False, **options)

        return make

    def test_a_client_supplies_server_and_token_without_a_request(self, cave, client):
        cave_client = client()
        cave.log.clear()
        tree = ix.open_datastack(cave_client)
        assert cave.count("/info/api/") == 0
        assert tree.attrs["server_address"] == cave.url
        box = (slice(0, 4), slice(0, 40), slice(0, 40))
        found = tree["segmentation/segmentation"].isel(dict(zip("zyx", box, strict=True))).values
        np.testing.assert_array_equal(found, cave.truth(NOW, box))

    def test_the_version_of_a_client_selects_the_instant(self, cave, client):
        tree = ix.open_datastack(client(version=7), bbox=BOX)
        assert tree.attrs["version"] == 7
        np.testing.assert_array_equal(tree["segmentation/segmentation"].values, cave.truth(VERSIONS[7], PART))
        later = ix.open_datastack(client(version=7), timestamp=utc(SPLIT + 1))
        assert later.attrs["timestamp"] == utc(SPLIT + 1).isoformat()
        assert "version" not in later.attrs

    def test_the_materialization_version_of_a_client_selects_the_instant(self, cave, client):
        cave_client = client()
        cave_client.materialize.version = 7
        tree = ix.open_datastack(cave_client, bbox=BOX)
        assert tree.attrs["version"] == 7
        np.testing.assert_array_equal(tree["segmentation/segmentation"].values, cave.truth(VERSIONS[7], PART))

    def test_roots_equal_those_of_caveclient(self, cave, client):
        cave_client = client()
        ids = cave.graph.ids[::50]
        for when in (MERGE - 0.1, MERGE + 0.1, SPLIT):
            source = resolve_source(cave.table, None, token=TOKEN, timestamp=utc(when))
            ours = source.graph.roots(ids, source.instant, source.root_layer, 56)
            np.testing.assert_array_equal(ours, cave_client.chunkedgraph.get_roots(ids, timestamp=utc(when)))

    def test_other_objects_are_rejected_as_clients(self):
        with pytest.raises(ix.errors.OptionError, match="int is neither the name of a datastack nor a CAVEclient"):
            ix.open_datastack(7)
        with pytest.raises(ix.errors.OptionError, match="NoneType is neither"):
            ix.open_datastack(None)


# ---------------------------------------------------------------------------------------------------------
# one instant


class TestInstant:
    @pytest.mark.parametrize("edit", [MERGE, SPLIT])
    def test_segmentations_before_and_after_an_edit_equal_the_states_of_the_graph(self, cave, edit):
        before, after = (segmentation(cave, edit + d, bbox=BOX) for d in (-0.1, 0.1))
        both = [before.values, after.values]
        np.testing.assert_array_equal(both[0], cave.truth(edit - 0.1, PART))
        np.testing.assert_array_equal(both[1], cave.truth(edit + 0.1, PART))
        whole = [cave.truth(edit + d) for d in (-0.1, 0.1)]
        assert (whole[0] != whole[1]).any()
        assert before.data.name != after.data.name
        assert tokenize(before) != tokenize(after)

    def test_a_timestamp_without_a_time_zone_warns_once(self, cave):
        naive = utc(NOW).replace(tzinfo=None)
        with pytest.warns(ix.errors.NaiveTimestampWarning) as caught:
            ix.open_segmentation(cave.table, token=TOKEN, timestamp=naive)
        assert len(caught) == 1
        with pytest.warns(ix.errors.NaiveTimestampWarning) as caught:
            ix.open_datastack(DATASTACK, server_address=cave.url, token=TOKEN, timestamp=naive)
        assert len(caught) == 1

    def test_an_edit_applies_from_its_own_instant_on(self, cave):
        assert (segmentation(cave, MERGE).values == cave.truth(MERGE)).all()
        assert (segmentation(cave, MERGE - 1e-6).values == cave.truth(BEGIN)).all()

    def test_an_edit_during_a_computation_does_not_change_the_result(self, cave):
        seg = ix.open_segmentation(cave.table, token=TOKEN, bbox=voxels((0, 0, 0), (128, 128, 64)), chunks=(16, 64, 64))
        assert seg.data.npartitions == 16
        now = datetime.fromisoformat(seg.attrs["timestamp"]).timestamp()
        truth, part = None, (slice(0, 64), slice(0, 128), slice(0, 128))
        truth = cave.truth(now, part)
        roots, sizes = np.unique(truth[truth > 0], return_counts=True)
        big = [int(r) for r in roots[np.argsort(sizes)[-2:]]]
        requests = []

        def edit():
            requests.append(1)
            if len(requests) == 5:
                cave.graph.merge(*big)

        cave.before_roots = edit
        found = seg.compute(scheduler="synchronous").values
        assert len(requests) > 5
        np.testing.assert_array_equal(found, truth)
        assert (cave.truth(now + 1e6, part) != truth).any()
        again = ix.open_segmentation(cave.table, token=TOKEN, bbox=voxels((0, 0, 0), (128, 128, 64)))
        np.testing.assert_array_equal(again.values, cave.truth(now + 1e6, part))

    def test_an_open_source_keeps_its_instant(self, cave):
        source = resolve_source(cave.table, None, token=TOKEN, timestamp=utc(MERGE))
        np.testing.assert_array_equal(ix.open_segmentation(source, bbox=BOX).values, cave.truth(MERGE, PART))
        with pytest.raises(ix.errors.OptionError, match="already open at 2023-11-16T02:00:00.250"):
            ix.open_segmentation(source, timestamp=utc(SPLIT))

    def test_an_open_source_opens_as_supervoxels(self, cave):
        source = resolve_source(cave.table, None, token=TOKEN, timestamp=utc(MERGE))
        found = ix.open_segmentation(source, agglomerate=False, bbox=BOX)
        np.testing.assert_array_equal(found.values, cave.tissue.supervoxels[PART])
        assert "timestamp" not in found.attrs

    def test_supervoxels_reject_an_invalid_timestamp(self, cave):
        assert "timestamp" not in segmentation(cave, MERGE, agglomerate=False).attrs
        for when in ("yesterday", float("nan")):
            with pytest.raises(ix.errors.TimestampError):
                segmentation(cave, when, agglomerate=False)

    def test_timestamps_before_the_first_state_or_in_the_future_are_errors(self, cave):
        with pytest.raises(
            ix.errors.TimestampError, match="before the first state of graphene://.*2023-11-14T22:13:20.125"
        ):
            segmentation(cave, BEGIN - 0.001)
        assert segmentation(cave, BEGIN).attrs["timestamp"] == "2023-11-14T22:13:20.125000+00:00"
        with pytest.raises(ix.errors.TimestampError, match="lies in the future"):
            segmentation(cave, datetime.now(UTC).timestamp() + 3600)

    def test_reading_before_the_first_state_is_an_error_if_the_server_states_no_oldest_timestamp(self, cave):
        cave.without.add("oldest_timestamp")
        early = segmentation(cave, BEGIN - 100, bbox=BOX)
        with pytest.raises(ix.errors.ChunkReadError, match="not a root id.*before the graph's first"):
            early.compute()

    @pytest.mark.parametrize("when", [None, "now"])
    @pytest.mark.parametrize(("shift", "word"), [(-3600.0, "ahead of"), (3600.0, "behind")])
    def test_now_is_the_time_of_the_servers_clock(self, cave, when, shift, word):
        cave.date_shift = shift
        with pytest.warns(ix.errors.ClockWarning, match=rf"{word} that of .* by 3\d\d\d s"):
            seg = ix.open_segmentation(cave.table, token=TOKEN, timestamp=when)
        apart = datetime.fromisoformat(seg.attrs["timestamp"]).timestamp() - datetime.now(UTC).timestamp()
        assert abs(apart - shift) < 100

    def test_now_is_never_in_the_future_of_the_server(self, cave):
        cave.date_shift = -1.2  # the clock of this machine is ahead by less than the threshold of the warning
        seg = ix.open_segmentation(cave.table, token=TOKEN)
        assert datetime.fromisoformat(seg.attrs["timestamp"]).timestamp() <= datetime.now(UTC).timestamp() - 0.2

    def test_all_levels_have_the_same_instant(self, cave):
        tree = ix.open_multiscale(cave.table, timestamp=utc(MERGE), token=TOKEN)
        assert tree.attrs["timestamp"] == utc(MERGE).isoformat()
        coarse = tree["1/segmentation"]
        truth = cave.truth(MERGE)[1::2, 1::2, 1::2]
        np.testing.assert_array_equal(coarse.values, truth)

    def test_the_timestamp_attribute_survives_every_verb(self, cave):
        seg = segmentation(cave, MERGE, bbox=BOX)
        for made in (ix.crop(seg, BOX), ix.regrid(seg, (20, 20, 20)), ix.overlay(None, seg), ix.outline(seg, width=2)):
            assert made.attrs["timestamp"] == utc(MERGE).isoformat()

    def test_xarray_open_dataset_passes_the_timestamp(self, cave):
        ds = xr.open_dataset(cave.table, engine="imageryxr", token=TOKEN, timestamp=utc(MERGE), bbox=BOX)
        np.testing.assert_array_equal(ds.segmentation.values, cave.truth(MERGE, PART))

    @pytest.mark.parametrize("form", ["segmentation/table", "segmentation/api/v1", "segmentation/1.0"])
    @pytest.mark.parametrize("scheme", ["graphene://", "graphene://middleauth+"])
    def test_every_form_of_a_table_address_opens(self, cave, form, scheme):
        seg = ix.open_segmentation(f"{scheme}{cave.url}/{form}/{TABLE}/", token=TOKEN, timestamp=utc(MERGE))
        assert seg.attrs["source"] == cave.table
        assert seg[0, :3, :3].values.tolist() == cave.truth(MERGE, (0, slice(3), slice(3))).tolist()


# ---------------------------------------------------------------------------------------------------------
# ids


class TestIds:
    def test_only_selected_ids_are_returned(self, cave):
        roots = np.unique(cave.truth(NOW, PART))
        wanted = roots[roots > 0][[0, -1]]
        found = segmentation(cave, ids=wanted, bbox=BOX)
        truth = cave.truth(NOW, PART)
        np.testing.assert_array_equal(found.values, np.where(np.isin(truth, wanted), truth, 0))
        assert found.attrs["ids"] == wanted.tolist()

    def test_a_stale_root_names_its_successors(self, cave):
        a, b = cave.graph.merged_from
        with pytest.raises(ix.errors.StaleRootError, match=f"{a} is {cave.graph.merged} at that instant") as caught:
            segmentation(cave, MERGE + 1, ids=[a])
        assert caught.value.successors == {a: [cave.graph.merged]}
        for word in ("stale='update'", "stale='keep'", utc(MERGE + 1).isoformat()):
            assert word in str(caught.value)
        with pytest.raises(ix.errors.StaleRootError) as caught:
            segmentation(cave, NOW, ids=[a, b])
        assert caught.value.successors == dict.fromkeys((a, b), sorted(cave.graph.split_into))

    def test_a_newer_root_names_its_predecessors(self, cave):
        with pytest.raises(ix.errors.StaleRootError) as caught:
            segmentation(cave, MERGE - 1, ids=[cave.graph.merged])
        assert caught.value.successors == {cave.graph.merged: sorted(cave.graph.merged_from)}

    def test_several_stale_roots_are_resolved_together(self, cave):
        a, b = cave.graph.merged_from
        stale = [a, b, cave.graph.merged]
        with pytest.raises(ix.errors.StaleRootError) as caught:
            segmentation(cave, NOW, ids=[*stale, int(cave.graph.state(NOW)[0])])
        assert caught.value.successors == dict.fromkeys(sorted(stale), sorted(cave.graph.split_into))
        assert cave.count("is_latest") == 2
        assert cave.count("root_timestamps") == 1
        unknown = [(4 << 56) + 999_998, (4 << 56) + 999_999]
        with pytest.raises(ix.errors.SegmentError, match=f"{unknown[0]}, {unknown[1]} are no roots of"):
            segmentation(cave, NOW, ids=[*stale, *unknown])

    @pytest.mark.slow
    def test_stale_update_selects_the_successors(self, cave):
        a, b = cave.graph.merged_from
        found = segmentation(cave, NOW, ids=[a, b], stale="update")
        assert found.attrs["ids"] == sorted(cave.graph.split_into)
        truth = cave.truth(NOW)
        np.testing.assert_array_equal(found.values, np.where(np.isin(truth, cave.graph.split_into), truth, 0))

    def expected_labels(self, cave, when, ids):
        """Return the expected label of each supervoxel: current ids come first, then old ids by distance in time."""
        now = cave.graph.state(when)
        out = np.where(np.isin(now, np.array(ids, np.uint64)), now, np.uint64(0))  # one value per supervoxel
        made = {root: max(cave.graph.made[root], cave.graph.oldest) for root in ids}
        for root in sorted(set(ids) - set(out.tolist()), key=lambda root: abs(made[root] - when)):
            out[(cave.graph.state(made[root]) == root) & (out == 0)] = root
        return out

    @pytest.mark.fast_forms(1)
    @pytest.mark.parametrize("when", [MERGE - 1, MERGE + 1, NOW])
    @pytest.mark.parametrize(
        "which",
        slow_except(
            ["merged", "one", "both", "all", "with a successor", "with one of its parts"], "with one of its parts"
        ),
    )
    def test_stale_keep_draws_old_roots_as_they_were(self, cave, which, when):
        graph = cave.graph
        (a, b), (c, d), other = graph.merged_from, graph.split_into, int(graph.state(NOW)[0])
        ids = {
            "merged": [graph.merged, other],
            "one": [a],
            "both": [a, b],
            "all": [a, b, graph.merged, c, d, other],
            "with a successor": [a, c],
            "with one of its parts": [graph.merged, c],
        }[which]
        found = segmentation(cave, when, ids=ids, stale="keep", chunks=(125, 125, 125))
        truth = self.expected_labels(cave, when, ids)
        whole = sorted(set(truth.tolist()) - {0})
        if which in ("merged", "one", "both"):
            assert whole == sorted(ids)
        with warnings.catch_warnings():
            # an old root that other roots cover completely does not occur, which causes a warning
            warnings.simplefilter("error" if whole == sorted(ids) else "ignore", ix.errors.MissingIdsWarning)
            assert np.array_equal(found.values, cave.tissue.spread(truth))
        current = np.unique(graph.state(when)).tolist()
        assert found.attrs.get("stale_ids", []) == sorted(i for i in ids if i not in current)
        assert found.attrs["ids"] == sorted(ids)

    @pytest.mark.slow
    def test_stale_keep_requests_old_roots_only_for_blocks_with_candidate_supervoxels(self, cave):
        old = cave.graph.merged
        found = segmentation(cave, ids=[old], stale="keep", chunks=(50, 50, 50))
        assert tokenize(found) != tokenize(
            segmentation(cave, ids=[old], stale="keep", chunks=(50, 50, 50), when=NOW - 1)
        )
        cave.log.clear()
        truth = cave.tissue.spread(self.expected_labels(cave, NOW, [old]))
        successors = cave.tissue.spread(np.isin(cave.graph.state(NOW), cave.graph.split_into))
        assert np.array_equal(pickle.loads(pickle.dumps(found)).values, truth)
        requests = [line for line in cave.log if "roots_binary" in line.path]
        now, then = (sum(float(line.query["timestamp"]) == t for line in requests) for t in (NOW, MERGE))
        blocks = [slice(i, i + 50) for i in range(0, 250, 50)]
        candidate_blocks = sum(successors[z, y, x].any() for z in blocks for y in blocks for x in blocks)
        assert now + then == len(requests)
        assert 0 < then <= candidate_blocks < 125
        assert now <= 125

    def test_a_root_older_than_the_first_state_is_drawn_at_that_state(self, cave):
        # some roots of real graphs are older than the oldest timestamp that the server states
        cave.graph.oldest = BEGIN + 5
        a = cave.graph.merged_from[0]
        assert cave.graph.made[a] < cave.graph.oldest
        found = segmentation(cave, ids=[a], stale="keep")
        assert np.array_equal(found.values, cave.tissue.spread(self.expected_labels(cave, NOW, [a])))
        requests = [float(line.query["timestamp"]) for line in cave.log if "roots_binary" in line.path]
        assert set(requests) == {NOW, BEGIN + 5}
        assert requests.count(BEGIN + 5) <= requests.count(NOW)  # each block requests old roots at most once

    def test_stale_keep_works_on_a_server_without_lineages(self, cave):
        cave.without.add("lineage_graph_multiple")
        a, c = cave.graph.merged_from[0], cave.graph.split_into[0]
        found = segmentation(cave, ids=[a, c], stale="keep")
        assert np.array_equal(found.values, cave.tissue.spread(self.expected_labels(cave, NOW, [a, c])))

    @pytest.mark.parametrize("options", [{}, {"ids": []}, {"ids": [2**60]}])
    def test_an_unknown_stale_policy_is_an_error(self, cave, sample, options):
        with pytest.raises(ix.errors.OptionError, match="stale='ubdate' must be 'raise' .*did you mean 'update'"):
            segmentation(cave, stale="ubdate", **options)
        with pytest.raises(ix.errors.OptionError, match="stale='ubdate' must be 'raise' .*did you mean 'update'"):
            ix.open_segmentation(sample.segmentation, stale="ubdate", **options)
        with pytest.raises(ix.errors.OptionError, match="stale='ubdate' must be 'raise' .*did you mean 'update'"):
            ix.open_datastack(DATASTACK, server_address=cave.url, token=TOKEN, stale="ubdate", **options)

    def test_ids_that_are_not_roots_are_errors(self, cave):
        unknown, supervoxel = (4 << 56) + 999_999, int(cave.graph.ids[5])
        with pytest.raises(ix.errors.SegmentError, match=f"{unknown} is no root of .* at any time") as caught:
            segmentation(cave, NOW, ids=[unknown])
        assert not isinstance(caught.value, ix.errors.StaleRootError)
        with pytest.raises(ix.errors.SegmentError, match=f"{supervoxel} is a supervoxel.*agglomerate=False"):
            segmentation(cave, NOW, ids=[supervoxel])
        with pytest.raises(ix.errors.SegmentError, match="17 is not an id of graphene"):
            segmentation(cave, NOW, ids=[17])
        with pytest.raises(ix.errors.OptionError, match="stale='drop'"):
            segmentation(cave, NOW, ids=[cave.graph.merged], stale="drop")

    def test_a_root_among_requested_supervoxels_is_an_error(self, cave):
        root, supervoxel = int(cave.graph.state(NOW)[0]), int(cave.graph.ids[5])
        with pytest.raises(
            ix.errors.SegmentError, match=f"{root} is a root of .*agglomerate=False opens supervoxels.*leave"
        ):
            ix.open_segmentation(cave.table, token=TOKEN, agglomerate=False, ids=[root])
        with pytest.raises(ix.errors.SegmentError, match=f"{root} is a root of .*give supervoxels only"):
            ix.open_segmentation(cave.table, token=TOKEN, agglomerate=False, ids=[supervoxel, root])

    def test_any_supervoxel_ids_can_be_selected(self, cave):
        wanted = np.unique(cave.tissue.supervoxels[PART])[-2:]
        found = ix.open_segmentation(cave.table, token=TOKEN, agglomerate=False, ids=wanted, bbox=BOX)
        stored = cave.tissue.supervoxels[PART]
        np.testing.assert_array_equal(found.values, np.where(np.isin(stored, wanted), stored, 0))


# ---------------------------------------------------------------------------------------------------------
# counts of requests


class TestRequests:
    @pytest.mark.slow
    def test_a_figure_of_1024_pixels_requests_each_chunk_once_and_all_roots_together(self, cave):
        seg = ix.open_segmentation(cave.table.replace(TABLE, f"wide_{TABLE}"), token=TOKEN, timestamp=utc(NOW))
        em = ix.open_image(f"precomputed://{cave.url}/data/wide-em")
        assert len(cave.log) == 3  # two info files, and the oldest timestamp of the graph
        x, y, z = OFFSET
        box = ix.BBox((x, y, z + 5), (x + 1024, y + 1024, z + 6), resolution=EM_SIZE)
        ds = ix.align(em, seg, bbox=box)
        cave.log.clear()
        picture = ds.imagery.overlay(alpha=0.5).values
        assert picture.shape == (1, 1024, 1024, 4)
        assert cave.count("roots_binary") == 1
        assert cave.count("/data/wide-em/") == cave.count("/data/wide-ws/") == 256
        assert len(cave.log) == 513
        n = 64 * tiles(cave.tissue)
        one = cave.truth(NOW, (slice(5, 6), slice(n), slice(n)))
        truth = np.tile(one, (1, 1024 // n + 1, 1024 // n + 1))[:, :1024, :1024]
        cave.log.clear()
        np.testing.assert_array_equal(ds.segmentation.values, truth)
        assert cave.count("roots_binary") == 0  # all roots are cached

    def test_a_stack_of_64_slices_requests_each_chunk_once(self, cave):
        depth = min(64, cave.tissue.em.shape[0] // 32 * 32)
        side = 64 * tiles(cave.tissue)
        seg = segmentation(cave, NOW, bbox=voxels((0, 0, 0), (side, side, depth)))
        em = ix.open_image(cave.image, bbox=voxels((0, 0, 0), (side, side, depth)))
        cave.log.clear()
        stack = ix.overlay(em, seg).compute()
        chunks = (side // 64) ** 2 * depth // 32
        assert stack.shape[:3] == (depth, side, side)
        assert cave.count("/data/em/") == cave.count("/data/ws/") == chunks
        assert cave.count("roots_binary") <= seg.data.npartitions
        assert len(cave.log) == 2 * chunks + cave.count("roots_binary")

    def test_a_block_requests_the_roots_of_its_distinct_ids_once(self, cave):
        seg = segmentation(cave, NOW)
        cave.log.clear()
        block = seg[:40, :200, :200].values if cave.tissue.em.shape[1] > 200 else seg[:40].values
        (request,) = [line for line in cave.log if "roots_binary" in str(line)]
        sent = np.frombuffer(request.body, "<u8")
        assert len(sent) == len(np.unique(sent))
        part = tuple(slice(n) for n in block.shape)
        assert set(sent.tolist()) == set(np.unique(cave.tissue.supervoxels[part]).tolist()) - {0}
        assert request.query == {"timestamp": f"{NOW:.6f}"}

    def test_neighbouring_blocks_request_only_new_ids(self, cave):
        seg = segmentation(cave, NOW)
        for start in (0, 20):
            seg[start : start + 30, :60, :60].compute()
        first, second = (set(np.frombuffer(a.body, "<u8").tolist()) for a in cave.log if "roots_binary" in str(a))
        assert first
        assert second
        assert not first & second

    def test_roots_of_different_instants_are_cached_separately(self, cave):
        for when in (MERGE, MERGE + 1, MERGE):
            segmentation(cave, when, bbox=BOX).compute()
        assert cave.count("roots_binary") == 2

    def test_background_makes_no_request_for_roots(self, cave, monkeypatch):
        seg = segmentation(cave, NOW)
        cave.log.clear()
        source = resolve_source(cave.table, None, token=TOKEN)
        cave.log.clear()
        assert not source.read(0, IndexBox((-9, -9, -9), (-1, -1, -1))).any()
        assert cave.log == []
        empty = np.argwhere(cave.tissue.supervoxels == 0)
        z, y, x = (int(i) for i in empty[0])
        assert seg[z, y, x].values == 0
        assert cave.count("roots_binary") == 0

    def test_the_root_cache_is_bounded(self, cave, monkeypatch):
        monkeypatch.setattr(root_cache, "REMEMBERED", 1000)
        memory = root_cache.RootMemory()
        for start in range(1, 50_000, 100):
            ids = np.arange(start, start + 100, dtype=np.uint64)
            memory.remember(ids, ids * np.uint64(3))
            assert len(memory) <= 1100
        known, roots = memory.look_up(np.array([1, 49_990, 49_999], np.uint64))
        assert known.tolist() == [False, True, True]
        assert roots.tolist() == [0, 3 * 49_990, 3 * 49_999]
        for when in range(1, 20):
            segmentation(cave, NOW + when, bbox=voxels((0, 0, 0), (9, 9, 9))).compute()
        assert root_cache.memory_of.cache_info().currsize == root_cache.STATES

    def test_the_root_cache_behaves_like_a_dict(self):
        rng = np.random.default_rng(3)
        memory, table = root_cache.RootMemory(), {}
        for _ in range(60):
            ids = np.unique(rng.integers(1, 500, int(rng.integers(1, 40)), dtype=np.uint64))
            known, roots = memory.look_up(ids)
            assert known.tolist() == [int(i) in table for i in ids]
            assert roots.tolist() == [table.get(int(i), 0) for i in ids]
            memory.remember(ids, ids + np.uint64(7))
            table.update({int(i): int(i) + 7 for i in ids})
        assert len(memory) == len(table)

    def test_large_blocks_request_roots_in_batches(self, cave, monkeypatch):
        monkeypatch.setattr(chunkedgraph, "BATCH", 50)
        seg = segmentation(cave, NOW, bbox=BOX)
        np.testing.assert_array_equal(seg.values, cave.truth(NOW, PART))
        supervoxel_count = len(np.unique(cave.tissue.supervoxels[PART])) - 1
        assert cave.count("roots_binary") == -(-supervoxel_count // 50)

    @pytest.mark.slow
    @pytest.mark.parametrize("limit", [8, 2])
    def test_concurrent_requests_are_limited(self, cave, limit):
        connection = {"connection": ix.Connection(concurrency=limit, memory_cache=0)}
        seg = ix.open_segmentation(cave.table, token=TOKEN, timestamp=utc(NOW), **connection)
        em = ix.open_image(cave.image, **connection)
        cave.fault("/data/|roots", "delay", seconds=0.02)
        part = {"z": slice(0, 40), "y": slice(0, 130), "x": slice(0, 130)}
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda a: a.isel(part).values, [seg, em] * 3))
        assert cave.peak == limit
        where = tuple(part[d] for d in "zyx")
        for i in range(6):
            np.testing.assert_array_equal(found[i], cave.tissue.em[where] if i % 2 else cave.truth(NOW, where))


# ---------------------------------------------------------------------------------------------------------
# the contract of every source


class TestSource(SourceSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, cave_everywhere):
        cave_everywhere.reset()
        root_cache.clear_roots()
        cls.SERVER = cave_everywhere
        return cave_everywhere.folder

    def open(self, folder):
        return resolve_source(self.SERVER.table, None, token=TOKEN, timestamp=utc(MERGE), connection=HASTY)

    def grids(self):
        sizes = [self.SERVER.tissue.em.shape, self.SERVER.tissue.supervoxels[1::2, 1::2, 1::2].shape]
        return [ix.Grid(sizes[0], (10, 10, 10), OFFSET), ix.Grid(sizes[1], (20, 20, 20), tuple(o // 2 for o in OFFSET))]

    def truth(self):
        roots = self.SERVER.truth(MERGE)
        return [roots, roots[1::2, 1::2, 1::2]]

    def open_without_voxels(self, folder, empty):
        self.SERVER.fault("/data/ws/10", "status")
        return self.open(folder)

    def others(self, folder):
        def other(**options):
            options = {"timestamp": utc(MERGE), "token": TOKEN, **options}
            return resolve_source(options.pop("source", self.SERVER.table), None, **options)

        wide = self.SERVER.table.replace(TABLE, f"wide_{TABLE}")
        return [
            other(timestamp=utc(MERGE + 1e-6)),
            other(agglomerate=False),
            other(missing="fill"),
            other(source=wide),
        ]

    def test_opening_reads_no_voxel(self, folder, tmp_path):
        super().test_opening_reads_no_voxel(folder, tmp_path)
        self.SERVER.faults.clear()

    def test_a_reader_needs_no_metadata(self, folder):
        import pickle

        source = pickle.loads(pickle.dumps(self.open(folder)))
        self.SERVER.log.clear()
        box = IndexBox((1, 2, 3), (20, 30, 40))
        np.testing.assert_array_equal(source.read(0, box), read_padded(self.truth()[0], box))
        assert self.SERVER.count("info|provenance|oldest") == 0
        assert self.SERVER.count("/data/ws/10_10_10") == len(self.SERVER.log) - self.SERVER.count("roots_binary")
