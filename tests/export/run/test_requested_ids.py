"""Requested ids that do not occur in the data are reported, with any kind of workers."""

from __future__ import annotations

import sys
import warnings

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

import imageryxr as ix
from imageryxr.export.commit.manifest import Entry
from tests.support.export_jobs import Computed, array_of, cluster_of

EM = array_of(Computed((12, 48, 64)))
SEG = array_of(Computed((12, 48, 64), layer_type="segmentation"))
PRESENT_IDS = [int(i) for i in ix.unique_ids(SEG)[:2]]
TOP = 2**64 - 1
LINE = Entry.line
REQUESTED_IDS = [*PRESENT_IDS, 12345678901, TOP]
MESSAGE = "2 of the 4 requested ids are not in the data: 12345678901, 18446744073709551615; .*unique_ids"
WORKERS = {"a thread": {"workers": 1}, "threads": {"workers": 2}, "processes": {"client": "processes", "workers": 2}}
ARRAYS = {
    "select": lambda: ix.select_ids(SEG, REQUESTED_IDS),
    "fill": lambda: ix.overlay(EM, SEG, ids=REQUESTED_IDS),
    "line": lambda: ix.overlay(EM, SEG, ids=REQUESTED_IDS, alpha=0, outline=2),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Make regions small, so that small arrays have several."""
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)


@pytest.mark.fast_forms(3)
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    "worker_kind", [pytest.param(c, marks=[pytest.mark.slow] * (c == "processes")) for c in WORKERS]
)
@pytest.mark.parametrize("array", ARRAYS)
def test_absent_ids_warn_once_and_are_reported(tmp_path, array, worker_kind):
    options = {"chunks": (2, 16, 16), "levels": 2, **WORKERS[worker_kind]}
    with pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE) as caught:
        report = ix.export(ARRAYS[array](), tmp_path / "o.ome.zarr", **options)
    assert len(caught) == 1, [str(w) for w in caught]
    assert caught[0].filename == __file__
    assert report.regions > 1
    assert report.absent_ids == (12345678901, TOP)
    assert report.to_dict()["absent_ids"] == [12345678901, TOP]
    assert "2 ids not in the data" in repr(report)


@pytest.mark.slow
def test_absent_ids_are_reported_from_a_cluster(tmp_path):
    with cluster_of(2) as client, pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE):
        report = ix.export(ARRAYS["fill"](), tmp_path / "s" / "{z}.png", client=client, square=False)
    assert report.absent_ids == (12345678901, TOP)


@pytest.mark.parametrize("target", ["memory://", "s/{z}.png", "s/{y}.tif", "one.tif"])
def test_absent_ids_are_reported_for_every_target(tmp_path, target):
    place = target if target == "memory://" else str(tmp_path / target)
    with pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE):
        report = ix.export(ARRAYS["fill"](), place, **({} if target == "memory://" else {"square": False}))
    assert report.absent_ids == (12345678901, TOP)


@pytest.mark.parametrize(
    "array",
    [
        lambda: ix.overlay(EM, SEG, ids=PRESENT_IDS),
        lambda: ix.overlay(EM, SEG, ids=REQUESTED_IDS)[:6],  # the ids may occur in the other half
        lambda: ix.overlay(EM, SEG),
        lambda: EM,
    ],
    ids=["all there", "a part", "all ids", "no ids"],
)
def test_ids_that_occur_or_are_not_requested_do_not_warn(tmp_path, array):
    report = ix.export(array(), tmp_path / "o.ome.zarr")  # warnings are errors here
    assert report.absent_ids == ()


@pytest.mark.parametrize("array", ["select", "fill"])
def test_ids_that_an_interrupted_run_found_count_as_present(tmp_path, monkeypatch, array):
    """The journal lists the ids that its regions contain; the other requested ids do not occur."""
    target, options = tmp_path / "o.ome.zarr", {"chunks": (2, 16, 16), "levels": 1, "workers": 1}
    read = Computed.read

    def read_or_fail(self, mip, box):
        if box.start[0] >= 8:
            raise ix.errors.ChunkReadError("a broken disk")
        return read(self, mip, box)

    with monkeypatch.context() as patched:
        patched.setattr(Computed, "read", read_or_fail)
        with pytest.raises(ix.errors.ChunkReadError, match="a broken disk"):
            ix.export(ARRAYS[array](), target, retries=0, **options)
    log = next(tmp_path.rglob("*.log"))
    journal = log.read_bytes()
    assert b'"ids"' in journal
    with pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE):
        report = ix.export(ARRAYS[array](), target, **options)
    assert report.skipped > 0
    assert report.absent_ids == (12345678901, TOP)
    assert log.read_bytes().startswith(journal)
    # each id is recorded with the first region that contains it
    entries = [msgspec.json.decode(line, type=Entry) for line in log.read_bytes().split(b"\n") if line]
    recorded_ids = [i for entry in entries for found in entry.ids.values() for i in found]
    assert sorted(sorted(REQUESTED_IDS)[i] for i in recorded_ids) == PRESENT_IDS


def test_absent_ids_are_unknown_if_a_region_has_no_record(tmp_path, monkeypatch):
    target, options = tmp_path / "o.ome.zarr", {"chunks": (2, 16, 16), "levels": 1, "workers": 1}
    with monkeypatch.context() as patched:
        patched.setattr(Entry, "line", lambda self, run: LINE(replace(self, ids=None), run))
        with pytest.warns(ix.errors.MissingIdsWarning):
            ix.export(ARRAYS["fill"](), target, **options)
    assert b'"ids"' not in next(tmp_path.rglob("*.log")).read_bytes()
    (target / "0" / "c" / "0" / "5" / "2" / "3").unlink()
    report = ix.export(ARRAYS["fill"](), target, **options)
    assert report.tasks == 1
    assert report.absent_ids == ()


@pytest.mark.parametrize("target", ["o.ome.zarr", "s/{z}.tif", "one.tif"])
@pytest.mark.parametrize(
    "array",
    [
        lambda: ix.regrid(ix.select_ids(SEG, REQUESTED_IDS), (8, 8, 56)),
        lambda: ix.plane(
            ix.select_ids(SEG, REQUESTED_IDS),
            (30, 30, 12),
            (64, 64),
            normal=(1, 1, 0.2),
            nm_per_pixel=2,
            resolution=(8, 8, 40),
        ),
        lambda: ix.regrid(ix.select_ids(SEG.chunk(z=3), REQUESTED_IDS), (8, 8, 56)),
    ],
    ids=["coarser", "a slanted plane", "of blocks"],
)
def test_strided_arrays_do_not_warn_of_absent_ids(tmp_path, array, target):
    options = {"chunks": (1, 16, 16), "levels": 1} if "zarr" in target else {"square": False}
    assert ix.export(array(), str(tmp_path / target), workers=1, **options).absent_ids == ()  # warnings are errors here


def test_ids_are_recorded_at_finer_resolutions(tmp_path):
    with pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE):
        report = ix.export(ix.overlay(EM, SEG, ids=REQUESTED_IDS), tmp_path / "{z}.png", square=True)
    with pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE):
        finer = ix.export(ix.regrid(ix.select_ids(SEG, REQUESTED_IDS), (4, 4, 20)), tmp_path / "o.zarr", levels=1)
    assert report.absent_ids == finer.absent_ids == (12345678901, TOP)


def test_ids_in_a_users_dask_graph_warn_separately(tmp_path):
    with pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE):
        report = ix.export(ix.select_ids(SEG, REQUESTED_IDS) + 0, tmp_path / "o.zarr", levels=1, workers=1)
    assert report.absent_ids == ()


def test_with_warnings_as_errors_the_result_is_complete(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ix.errors.MissingIdsWarning, match=MESSAGE):
            ix.export(ARRAYS["fill"](), tmp_path / "o.zarr", levels=1)
    assert (tmp_path / "o.zarr" / "zarr.json").exists()
    with pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE):  # the ids are read from the journal
        report = ix.export(ARRAYS["fill"](), tmp_path / "o.zarr", levels=1)
    assert (report.tasks, report.absent_ids) == (0, (12345678901, TOP))


def test_absent_ids_warn_when_an_array_is_computed_without_an_export():
    with pytest.warns(ix.errors.MissingIdsWarning, match=MESSAGE):
        found = ARRAYS["select"]().compute()
    np.testing.assert_array_equal(found, np.where(np.isin(SEG.values, PRESENT_IDS), SEG.values, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.select_ids(SEG, PRESENT_IDS).compute()
