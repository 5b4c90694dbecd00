"""Faults of CAVE servers raise an `ImageryError` in bounded time, and the next read returns the right voxels."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import imageryxr as ix
from tests.support.cave import NOW, utc, voxels
from tests.support.cave_server import DATASTACK, FORBIDDEN, MERGE, SPLIT, TOKEN, VERSIONS
from tests.support.slow import slow_except

# Two retries without a wait. The timeout is longer than any response takes on a busy machine.
HASTY = ix.Connection(timeout=30, retries=2, backoff=0.001)
IMPATIENT = ix.Connection(timeout=0.5, retries=1, backoff=0.001)
ONCE = ix.Connection(timeout=0.5, retries=0)

BOX = voxels((3, 5, 7), (70, 75, 10))
PART = (slice(7, 10), slice(5, 75), slice(3, 70))

FAULTS = {
    "500": {"kind": "status", "status": 500},
    "502": {"kind": "status", "status": 502},
    "503": {"kind": "status", "status": 503},
    "429": {"kind": "status", "status": 429, "headers": {"Retry-After": "0"}},
    "401": {"kind": "status", "status": 401},
    "403": {"kind": "status", "status": 403},
    "410": {"kind": "status", "status": 410},
    "missing": {"kind": "missing"},
    "delay": {"kind": "delay", "seconds": 2.0},
    "drop": {"kind": "drop"},
    "truncate": {"kind": "truncate"},
    "short": {"kind": "short"},
    "corrupt": {"kind": "corrupt"},
    "garbage": {"kind": "garbage"},
    "login": {"kind": "login"},
    "page": {"kind": "page"},
    "lost": {"kind": "status", "status": 302, "headers": {"Location": "/no/login/here"}},
}
PASSING = ["500", "503", "429", "drop", "truncate"]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    """Remove the waits between retries."""
    monkeypatch.setattr("imageryxr.sources.fetch.client.LONGEST_WAIT", 0.01)


def connection_for(fault):
    return IMPATIENT if fault == "delay" else HASTY


def run_with_timeout(function):
    """Run a function in a thread with a timeout, so that a hang fails the test."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=120)


def result_or_error(function):
    """Return the result of a function, or the `ImageryError` that it raises."""
    try:
        return run_with_timeout(function)
    except ix.ImageryError as error:
        return error


def check_error(error, cave):
    assert isinstance(error, ix.ImageryError)
    text, cause = str(error), error
    while cause is not None:
        assert TOKEN not in str(cause)
        cause = cause.__cause__
    assert cave.url.removeprefix("http://") in text or DATASTACK in text
    assert "\x1b" not in text


# ---------------------------------------------------------------------------------------------------------
# reading


def open_layers(cave, fault, connection=None):
    connection = connection or connection_for(fault)
    seg = ix.open_segmentation(cave.table, timestamp=utc(NOW), token=TOKEN, bbox=BOX, connection=connection)
    return ix.open_image(cave.image, bbox=BOX, connection=connection), seg


READS = {
    "values": lambda em, seg, folder: np.concatenate([em.values.astype(np.uint64), seg.values]),
    "one thread": lambda em, seg, folder: [a.compute(scheduler="synchronous").values for a in (em, seg)],
    "overlay": lambda em, seg, folder: ix.overlay(em, seg, outline=2).values,
    "align": lambda em, seg, folder: [a.values for a in ix.align(em, seg, to=(20, 20, 10)).data_vars.values()],
    "ids": lambda em, seg, folder: [ix.unique_ids(seg), em.isel(z=0).values],
    "rgba": lambda em, seg, folder: ix.composite(ix.to_rgba(em), ix.outline(seg)).values,
    "pictures": lambda em, seg, folder: np.asarray(ix.montage(ix.overlay(em, seg, alpha=0.5))),
    "png": lambda em, seg, folder: files_of(ix.overlay(em, seg, alpha=0.5), folder, "z{z}.png"),
    "zarr": lambda em, seg, folder: files_of(ix.overlay(em, seg, alpha=0.5), folder, "a.ome.zarr"),
}
SEGMENTATION_READS = {
    "outline": lambda em, seg, folder: ix.outline(seg, width=3).values,
    "select": lambda em, seg, folder: ix.select_ids(seg, [ids_of(seg)[0]]).values,
    "masks": lambda em, seg, folder: ix.split_masks(seg, ids_of(seg)).values,
    "ids zarr": lambda em, seg, folder: files_of(seg, folder, "ids.ome.zarr"),
    "mode": lambda em, seg, folder: ix.regrid(seg, (20, 20, 20), method="mode").values,
}
_known: list[int] = []


def ids_of(seg):
    return _known


def files_of(array, folder, name):
    """Export, and return the contents of all files."""
    (folder / "out").mkdir(exist_ok=True)
    ix.export(
        array, folder / "out" / name, overwrite=True, retries=0, progress=False
    )  # other tests cover the retries of exports
    return [p.read_bytes() for p in sorted((folder / "out").rglob("*")) if p.is_file() and "manifest" not in p.name]


PLACES = {"image": "/data/em/10_10_10/", "supervoxels": "/data/ws/10_10_10/", "roots": "roots_binary"}


def cases():
    """Yield each fault at each place with each verb.

    The fast run has each fault at each place, and each verb with an error at one place.
    """
    for v, verb in enumerate(READS | SEGMENTATION_READS):
        places = list(PLACES)[verb not in READS :]
        for place in places:
            for fault in FAULTS:
                is_fast = verb == "values" or (fault == "500" and place == places[v % len(places)])
                marks = [] if is_fast else [pytest.mark.slow]
                yield pytest.param(place, fault, verb, id=f"{place}-{fault}-{verb}", marks=marks)


@pytest.fixture(scope="module")
def truths(cave_everywhere, tmp_path_factory):
    """Return the result of each verb without faults; roots are computed with numpy."""
    cave_everywhere.reset()
    em, seg = open_layers(cave_everywhere, "")
    np.testing.assert_array_equal(seg.values, cave_everywhere.truth(NOW, PART))
    np.testing.assert_array_equal(em.values, cave_everywhere.tissue.em[PART])
    _known[:] = [int(i) for i in np.unique(seg.values) if i][:3]
    verbs = READS | SEGMENTATION_READS
    return {name: verb(em, seg, tmp_path_factory.mktemp("truth")) for name, verb in verbs.items()}


def are_equal(found, truth):
    if isinstance(truth, list):
        return len(found) == len(truth) and all(are_equal(a, b) for a, b in zip(found, truth, strict=True))
    return np.array_equal(found, truth)


@pytest.mark.fast_forms(16)
@pytest.mark.parametrize(("place", "fault", "verb"), list(cases()))
def test_a_fault_while_reading_is_an_imagery_error_and_a_later_read_succeeds(
    cave, truths, tmp_path, place, fault, verb
):
    # a fault without an answer lasts until the timeout, so only one verb retries it
    em, seg = open_layers(cave, fault, ONCE if fault == "delay" and verb != "values" else None)
    cave.fault(PLACES[place], **FAULTS[fault])
    error = result_or_error(lambda: (READS | SEGMENTATION_READS)[verb](em, seg, tmp_path))
    check_error(error, cave)
    if isinstance(error, ix.errors.ChunkReadError):
        assert "mip 0 (10 × 10 × 10 nm), box (" in str(error)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
    cave.faults.clear()
    assert are_equal(run_with_timeout(lambda: (READS | SEGMENTATION_READS)[verb](em, seg, tmp_path)), truths[verb])


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", PASSING)
def test_transient_errors_are_retried(cave, truths, place, fault):
    em, seg = open_layers(cave, fault)
    once = cave.fault(PLACES[place], **FAULTS[fault], times=2)
    assert are_equal(run_with_timeout(lambda: READS["values"](em, seg, None)), truths["values"])
    assert once.done == 2


@pytest.mark.parametrize(("fault", "count"), [("500", 3), ("429", 3), ("401", 1), ("403", 1), ("missing", 1)])
def test_retries_are_limited(cave, fault, count):
    _, seg = open_layers(cave, fault)
    cave.fault("roots_binary", **FAULTS[fault])
    cave.log.clear()
    with pytest.raises(ix.ImageryError):
        seg.compute(scheduler="synchronous")
    assert cave.count("roots_binary") == count


@pytest.mark.parametrize(("policy", "error"), [("raise", ix.errors.MissingChunkError), ("fill", None), ("warn", None)])
def test_a_missing_chunk_is_an_error(cave, policy, error):
    seg = ix.open_segmentation(cave.table, timestamp=utc(NOW), token=TOKEN, bbox=BOX, missing=policy, connection=HASTY)
    cave.fault("/data/ws/10_10_10/640-704_512-576", "missing")
    if error:
        with pytest.raises(error, match="graphene://.* \\(supervoxels at precomputed://.*missing='fill'"):
            seg.compute()
        return
    truth = cave.truth(NOW, PART)
    truth[:, : 64 - 5, : 64 - 3] = 0
    if policy == "warn":
        with pytest.warns(ix.errors.MissingChunkWarning, match="1 missing chunk is"):
            found = seg.values
    else:
        found = seg.values
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("status", [404, 403])  # buckets without list permission answer 403
def test_blocks_without_stored_chunks_are_0_and_request_no_roots(cave, status):
    options = {"timestamp": utc(NOW), "token": TOKEN, "bbox": BOX, "connection": HASTY}
    filled, warned = (ix.open_segmentation(cave.table, missing=m, **options) for m in ("fill", "warn"))
    cave.fault("/data/ws/10_10_10/", "status", status=status)
    assert not filled.values.any()
    with pytest.warns(ix.errors.MissingChunkWarning, match="4 missing chunks"):
        assert not warned.values.any()
    assert cave.count("roots_binary") == 0


# ---------------------------------------------------------------------------------------------------------
# opening


def datastack(cave, connection, **options):
    return ix.open_datastack(DATASTACK, server_address=cave.url, token=TOKEN, connection=connection, **options)


OPENING = {
    "info service": ("/info/api/", lambda cave, c: datastack(cave, c)),
    "image": ("/data/em/info", lambda cave, c: datastack(cave, c)),
    "table": ("/segmentation/table/", lambda cave, c: datastack(cave, c)),
    "version": ("/materialize/", lambda cave, c: datastack(cave, c, version=min(VERSIONS))),
    "oldest": ("oldest_timestamp", lambda cave, c: datastack(cave, c, timestamp=utc(SPLIT))),
    "latest": ("is_latest", lambda cave, c: open_stale_id(cave, c)),
    "root timestamps": ("root_timestamps", lambda cave, c: open_stale_id(cave, c)),
    "lineage": ("lineage", lambda cave, c: open_stale_id(cave, c)),
}


def open_stale_id(cave, connection):
    """Open a stale id, whose successor must be requested."""
    options = {"token": TOKEN, "connection": connection, "stale": "update", "timestamp": utc(MERGE + 1)}
    found = ix.open_segmentation(cave.table, ids=[cave.graph.merged_from[0]], **options)
    assert found.attrs["ids"] == [cave.graph.merged]
    return found


@pytest.mark.fast_forms(13)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", slow_except(OPENING, "info service", "image", "table"))
def test_a_fault_while_opening_is_an_imagery_error_and_a_later_opening_succeeds(cave, place, fault):
    pattern, act = OPENING[place]
    cave.fault(pattern, **FAULTS[fault])
    error = result_or_error(lambda: act(cave, connection_for(fault)))
    if (place, fault) == ("oldest", "missing"):  # an older server does not state its oldest timestamp
        assert error.attrs["timestamp"] == utc(SPLIT).isoformat()
        return
    check_error(error, cave)
    cave.faults.clear()
    run_with_timeout(lambda: act(cave, HASTY))


def test_every_combination_of_fault_and_verb_is_tested():
    tested = [case.values for case in cases()]
    assert {case[1:] for case in tested} == {(f, v) for f in FAULTS for v in READS | SEGMENTATION_READS}
    assert {case[:2] for case in tested} == {(p, f) for p in PLACES for f in FAULTS}
    assert len(tested) + len(FAULTS) * len(OPENING) >= 200


# ---------------------------------------------------------------------------------------------------------
# wrong roots


class TestWrongRoots:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda roots, ids: np.zeros_like(roots), "not a root id"),
            (lambda roots, ids: ids, "not a root id"),
            (lambda roots, ids: np.where(np.arange(len(roots)) == 3, 0, roots), "for 1 of"),
            (lambda roots, ids: roots[:-1], "bytes of roots"),
            (lambda roots, ids: np.append(roots, roots[:1]), "bytes of roots"),
            (lambda roots, ids: roots[:0], "0 bytes of roots"),
            (lambda roots, ids: roots ^ np.uint64(1 << 63), "not a root id"),
            (lambda roots, ids: roots.byteswap(), "not a root id"),
        ],
    )
    def test_invalid_roots_are_errors(self, cave, monkeypatch, change, message):
        _, seg = open_layers(cave, "")
        true = cave.graph.roots
        monkeypatch.setattr(cave.graph, "roots", lambda ids, when: change(true(ids, when), ids))
        with pytest.raises(ix.errors.ChunkReadError, match=message) as caught:
            seg.compute()
        assert cave.table in str(caught.value)
        monkeypatch.undo()
        np.testing.assert_array_equal(seg.values, cave.truth(NOW, PART))

    def test_roots_of_another_graph_are_an_error(self, cave, monkeypatch):
        _, seg = open_layers(cave, "")
        monkeypatch.setattr(cave.graph, "ids", cave.graph.ids + np.uint64(1))
        with pytest.raises(ix.errors.ChunkReadError, match="belong to another table"):
            seg.compute()


def test_responses_compressed_by_a_proxy_are_decompressed(cave):
    cave.zips = True
    seg = ix.open_segmentation(cave.table, timestamp=utc(NOW), token=TOKEN, bbox=BOX, connection=HASTY)
    np.testing.assert_array_equal(seg.values, cave.truth(NOW, PART))
    with pytest.raises(ix.errors.ForbiddenError, match="missing permission"):
        ix.open_segmentation(cave.table, timestamp=utc(NOW), token=FORBIDDEN, connection=HASTY)


def test_faults_write_nothing_to_stdout_or_stderr(cave, capfd):
    em, seg = open_layers(cave, "")
    for place in ("image", "supervoxels"):
        for fault in ("short", "corrupt", "garbage", "missing"):
            cave.faults.clear()
            cave.fault(PLACES[place], **FAULTS[fault])
            with pytest.raises(ix.ImageryError):
                (em if place == "image" else seg).compute()
    assert capfd.readouterr() == ("", "")


def test_no_thread_remains_after_a_fault(cave):
    em, _ = open_layers(cave, "")
    cave.fault(PLACES["image"], "status")
    with pytest.raises(ix.errors.ChunkReadError):
        em.compute()
    for thread in threading.enumerate():
        if thread.name == "imageryxr-web":
            thread.join(timeout=60)
            assert not thread.is_alive()
    assert sys.exc_info() == (None, None, None)
