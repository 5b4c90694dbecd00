"""Ids that were asked for and are nowhere are told of, whoever makes the regions."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from distributed import Client, LocalCluster

import imageryxr as ix
from tests.export_jobs import Computed, array_of

EM = array_of(Computed((12, 48, 64)))
SEG = array_of(Computed((12, 48, 64), layer_type="segmentation"))
THERE = [int(i) for i in ix.unique_ids(SEG)[:2]]
TOP = 2**64 - 1
ASKED = [*THERE, 12345678901, TOP]
SAID = "2 of the 4 ids that were asked for are not in the data: 12345678901, 18446744073709551615; .*unique_ids"
CREWS = {"a thread": {"workers": 1}, "threads": {"workers": 2}, "processes": {"client": "processes", "workers": 2}}
ARRAYS = {
    "select": lambda: ix.select_ids(SEG, ASKED),
    "fill": lambda: ix.overlay(EM, SEG, ids=ASKED),
    "line": lambda: ix.overlay(EM, SEG, ids=ASKED, alpha=0, outline=2),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Have several regions."""
    monkeypatch.setattr(sys.modules["imageryxr.export.regions"], "START_VOXELS", 1 << 11)


@pytest.mark.parametrize("crew", [pytest.param(c, marks=[pytest.mark.slow] * (c == "processes")) for c in CREWS])
@pytest.mark.parametrize("array", ARRAYS)
def test_told_once_and_reported(tmp_path, array, crew):
    options = {"chunks": (2, 16, 16), "levels": 2, **CREWS[crew]}
    with pytest.warns(ix.MissingIdsWarning, match=SAID) as told:
        report = ix.export(ARRAYS[array](), tmp_path / "o.ome.zarr", **options)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert report.regions > 1
    assert report.absent_ids == (12345678901, TOP)
    assert report.to_dict()["absent_ids"] == [12345678901, TOP]
    assert "2 ids not in the data" in repr(report)


@pytest.mark.slow
def test_told_of_a_cluster(tmp_path):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        pytest.warns(ix.MissingIdsWarning, match=SAID),
    ):
        report = ix.export(ARRAYS["fill"](), tmp_path / "s" / "{z}.png", client=client, square=False)
    assert report.absent_ids == (12345678901, TOP)


@pytest.mark.parametrize("target", ["memory://", "s/{z}.png", "s/{y}.tif", "one.tif"])
def test_told_whatever_is_written(tmp_path, target):
    place = target if target == "memory://" else str(tmp_path / target)
    with pytest.warns(ix.MissingIdsWarning, match=SAID):
        report = ix.export(ARRAYS["fill"](), place, **({} if target == "memory://" else {"square": False}))
    assert report.absent_ids == (12345678901, TOP)


@pytest.mark.parametrize(
    "array",
    [
        lambda: ix.overlay(EM, SEG, ids=THERE),
        lambda: ix.overlay(EM, SEG, ids=ASKED)[:6],  # they may be in the other half
        lambda: ix.overlay(EM, SEG),
        lambda: EM,
    ],
    ids=["all there", "a part", "all ids", "no ids"],
)
def test_nothing_to_tell(tmp_path, array):
    report = ix.export(array(), tmp_path / "o.ome.zarr")  # warnings are errors here
    assert report.absent_ids == ()


def test_of_what_a_part_was_there_before_nothing_is_known(tmp_path, monkeypatch):
    target, options = tmp_path / "o.ome.zarr", {"chunks": (2, 16, 16), "levels": 1, "workers": 1}
    with pytest.warns(ix.MissingIdsWarning):
        ix.export(ARRAYS["fill"](), target, **options)
    (target / "0" / "c" / "0" / "5" / "2" / "3").unlink()
    report = ix.export(ARRAYS["fill"](), target, **options)
    assert report.tasks == 1
    assert report.absent_ids == ()


def test_outside_of_exports_it_is_as_it_was():
    with pytest.warns(ix.MissingIdsWarning, match=SAID):
        found = ARRAYS["select"]().compute()
    np.testing.assert_array_equal(found, np.where(np.isin(SEG.values, THERE), SEG.values, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.select_ids(SEG, THERE).compute()
