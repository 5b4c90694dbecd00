from __future__ import annotations

import json

import numpy as np
import pytest
from cloudvolume import CloudVolume, Skeleton

import imageryxr as ix
from imageryxr import open_skeletons
from imageryxr.errors import AuthError, ChunkReadError, ImageryWarning, MissingIdsWarning, NoVolumeError, SourceError
from tests.support.shards import spec
from tests.support.source_suite import serving

LARGE = 2**64 - 3
HASTY = ix.Connection(timeout=10, retries=1, backoff=0.001)
TRANSFORM = [2, 0, 0, 100, 0, 2, 0, -50, 0, 0, 2, 7]


def skeleton(number: int, count: int = 12) -> Skeleton:
    rng = np.random.default_rng(number % 1000)
    vertices = np.round(rng.uniform(-1000, 1000, (count, 3))).astype(np.float32)
    edges = np.array([(i, rng.integers(0, i)) for i in range(1, count)], np.uint32)
    return Skeleton(vertices, edges, radii=rng.uniform(1, 9, count).astype(np.float32), segid=number)


SKELETONS = {number: skeleton(number) for number in (5, 77, LARGE)}


def write(folder, sharded: bool) -> str:
    """Write a segmentation with skeletons with CloudVolume; return its address."""
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", [8, 8, 40], [0, 0, 0], [8, 8, 8], chunk_size=[8, 8, 8], skeletons="skel"
    )
    cv = CloudVolume(f"precomputed://file://{folder}", info=info, progress=False, compress=False)
    cv.commit_info()
    meta = cv.skeleton.meta
    meta.info = meta.default_info() | {"transform": TRANSFORM}
    if sharded:
        meta.info["sharding"] = spec("murmurhash3_x86_128", minishards=1, bits=1)
    del meta.info["spatial_index"]
    meta.commit_info()
    cv = CloudVolume(f"precomputed://file://{folder}", progress=False)
    if sharded:
        from cloudvolume.datasource.precomputed.sharding import synthesize_shard_files

        bodies = {number: s.to_precomputed() for number, s in SKELETONS.items()}
        for name, body in synthesize_shard_files(cv.skeleton.reader.spec, bodies).items():
            (folder / "skel" / name).write_bytes(body)
    else:
        cv.skeleton.upload(list(SKELETONS.values()))
    return f"precomputed://file://{folder}"


@pytest.mark.parametrize("sharded", [False, True])
def test_edges_are_lines_at_the_places_that_cloudvolume_gives(tmp_path, sharded):
    address = write(tmp_path, sharded)
    cv = CloudVolume(address, progress=False)
    found = open_skeletons(address, [LARGE, 5])
    assert found.attrs["annotation_type"] == "line"
    assert found.segment.dtype == np.uint64
    assert set(found.segment.values.tolist()) == {LARGE, 5}
    for number in (LARGE, 5):
        theirs, ours = cv.skeleton.get(number), found.isel(annotation=found.segment.values == number)
        starts = np.stack([ours.x, ours.y, ours.z], axis=1)
        ends = np.stack([ours.x_end, ours.y_end, ours.z_end], axis=1)
        np.testing.assert_allclose(starts, theirs.vertices[theirs.edges[:, 0]], rtol=1e-6)
        np.testing.assert_allclose(ends, theirs.vertices[theirs.edges[:, 1]], rtol=1e-6)
        stored = SKELETONS[number].radius * 2  # the transform doubles lengths
        np.testing.assert_allclose(ours.radius, stored[theirs.edges].mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_web_server_and_a_local_folder_give_equal_results(tmp_path, sharded):
    address = write(tmp_path, sharded)
    with serving(tmp_path) as server:
        web = open_skeletons(f"precomputed://{server.url}/skel", [5, 77], connection=HASTY)
        assert web.drop_attrs().identical(open_skeletons(address, [5, 77]).drop_attrs())
        server.faults |= {"skel/5": 403, ".shard": 403}
        with pytest.raises(AuthError):
            open_skeletons(f"precomputed://{server.url}", [5, LARGE], connection=HASTY)


def test_segments_without_a_skeleton_warn(tmp_path):
    address = write(tmp_path, sharded=False)
    with pytest.warns(MissingIdsWarning, match="no skeleton of the segment 6"):
        found = open_skeletons(address, [6, 5])
    assert set(found.segment.values.tolist()) == {5}


def test_the_background_warns_if_it_is_the_only_segment(tmp_path):
    address = write(tmp_path, False)
    with pytest.warns(MissingIdsWarning, match="no skeleton of the segment 0"):
        assert open_skeletons(address, [0]).sizes["annotation"] == 0
    assert open_skeletons(address, [0, 5]).identical(open_skeletons(address, [5]))


def test_a_skeleton_without_radii_has_nan(tmp_path):
    address = write(tmp_path, sharded=False)
    info = json.loads((tmp_path / "skel/info").read_text())
    (tmp_path / "skel/info").write_text(json.dumps(info | {"vertex_attributes": []}))
    stored = SKELETONS[5].to_precomputed()
    for path in (tmp_path / "skel").glob("5*"):
        path.unlink()
    (tmp_path / "skel/5").write_bytes(stored[: 8 + 12 * 12 + 8 * 11])
    assert np.isnan(open_skeletons(address, [5]).radius).all()


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_skeleton_is_an_error(tmp_path, keep):
    address = write(tmp_path, sharded=False)
    for path in (tmp_path / "skel").glob("5*"):
        path.unlink()
    (tmp_path / "skel/5").write_bytes(SKELETONS[5].to_precomputed()[:keep])
    with pytest.raises(ChunkReadError, match="skeleton of 5"):
        open_skeletons(address, [5])


def test_an_edge_to_an_absent_vertex_is_an_error(tmp_path):
    address = write(tmp_path, sharded=False)
    for path in (tmp_path / "skel").glob("5*"):
        path.unlink()
    body = bytearray(SKELETONS[5].to_precomputed())
    body[8 + 12 * 12 : 12 + 12 * 12] = (12).to_bytes(4, "little")
    (tmp_path / "skel/5").write_bytes(bytes(body))
    with pytest.raises(ChunkReadError, match="names vertex 12 of 12"):
        open_skeletons(address, [5])


def test_sources_without_skeletons_and_invalid_infos_are_errors(tmp_path, sample):
    with pytest.raises(NoVolumeError, match="has no skeletons"):
        open_skeletons(sample.segmentation, [5])
    address = write(tmp_path, sharded=False)
    info = json.loads((tmp_path / "skel/info").read_text())
    for change, message in (({"transform": [1, 2]}, "12 numbers"), ({"vertex_attributes": [{"id": 3}]}, "data_type")):
        (tmp_path / "skel/info").write_text(json.dumps(info | change))
        with pytest.raises(SourceError, match=message):
            open_skeletons(address, [5])


def test_edges_without_a_finite_position_are_omitted_with_a_warning(tmp_path):
    vertices = np.array([[0, 0, 0], [8, 8, 8], [np.nan, 0, 0]], np.float32)
    stored = Skeleton(vertices, np.array([[0, 1], [1, 2]], np.uint32), segid=5)
    (tmp_path / "info").write_text(json.dumps({"@type": "neuroglancer_skeletons", "vertex_attributes": []}))
    stored.extra_attributes = []
    (tmp_path / "5").write_bytes(stored.to_precomputed())
    with pytest.warns(ImageryWarning, match="1 of 2 edges of the skeleton of 5 .* are omitted"):
        found = open_skeletons(f"precomputed://file://{tmp_path}", 5)
    assert found.x_end.values.tolist() == [8]
