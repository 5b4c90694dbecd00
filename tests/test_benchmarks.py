"""Run each benchmark once on small data, and check that both sides do the same work."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest

from benchmarks import (
    crossings,
    figures,
    first_use,
    graphs,
    isolated,
    kernels,
    overlays,
    pictures,
    reading,
    report,
    stacks,
    work,
)

KINDS = [kind for kind, _, _ in report.rows([], quick=True)] + [figures.Figure]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(work.Work, "small", True)
    monkeypatch.setattr(work.Work, "rounds", 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_each_benchmark_runs(kind):
    if issubclass(kind, reading.TensorStoreCutout):
        pytest.importorskip("tensorstore", reason="TensorStore is in the extra `benchmarks`")
    one = kind()
    one.setup(*[values[0] for values in getattr(kind, "params", [])])
    one.ours()
    one.peer()
    if kind is graphs.Petavoxel:
        assert "1 tasks" in one.remark()  # a box that fits into one block is one task at any position
        one.teardown()


def test_every_row_is_an_asv_benchmark():
    modules = (kernels, overlays, reading, figures, stacks, graphs, first_use)
    for module, kind in itertools.product(modules, KINDS):
        if kind.__module__ == module.__name__:
            assert inspect.getattr_static(kind, "time_ours")
            assert kind.title
            assert kind.peer_name


@pytest.mark.slow
def test_both_sides_of_a_row_give_the_same_result():
    cut = reading.SegmentationCutout()
    cut.setup()
    np.testing.assert_array_equal(cut.ours(), cut.peer()[..., 0].T)
    for kind in (reading.TensorStoreCutout, reading.RawTensorStoreCutout):
        pytest.importorskip("tensorstore", reason="TensorStore is in the extra `benchmarks`")
        raw = kind()
        raw.setup()
        np.testing.assert_array_equal(raw.ours(), np.asarray(raw.peer())[..., 0].T)
    drawn = overlays.FillImageryClient()
    drawn.setup()
    mine = drawn.ours()[0, ..., :3].astype(int)
    theirs = np.asarray(drawn.peer())[..., :3].astype(int)
    assert (
        np.abs(mine - theirs).max() <= 255 * 0.2 + 2
    )  # the pictures differ only in colours, which have an alpha of 0.2
    unseen = drawn.labels[0] == 0
    np.testing.assert_array_equal(mine[unseen], theirs[unseen])
    twice = overlays.NearestReindex()
    twice.setup()
    np.testing.assert_array_equal(twice.ours(), twice.peer().values)


def test_generated_cells_have_the_requested_number():
    cells = pictures.cells((2, 128, 128), 10)
    assert len(np.unique(cells)) == 11
    assert cells.max() > 2**53
    assert (cells == 0).any()


def test_isolated_calls_report_time_and_lack_of_memory():
    assert isolated.run_isolated("time:sleep", [0.01]).seconds >= 0.01
    assert "out of memory" in isolated.run_isolated("numpy:zeros", [1 << 45]).reason


@pytest.mark.slow
def test_a_row_of_the_benchmark_report_has_all_columns(monkeypatch):
    text = report.table_line(kernels.Select, ())
    assert text.startswith("| select 30 of 300 ids | ")
    assert text.count("|") == 7
    assert report.format_seconds(0.0312) == "31.2 ms"


@pytest.mark.slow
def test_a_process_loads_the_kernels_that_another_compiled():
    code = first_use.KERNELS.format(call="\n".join(first_use.CALLS.values()))
    first_use.run(code)
    compiled = first_use.run(
        code + "from imageryxr.kernels import outline_inner, outline_merged, outline_outer, run_length\n"
        "modules = (color_table, fill, outline_inner, outline_merged, outline_outer, run_length)\n"
        "stats = [f.stats for module in modules for f in vars(module).values() if hasattr(f, 'stats')]\n"
        "print(sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats))"
    )
    loaded, missing = map(int, compiled.splitlines()[-1].split())
    assert loaded > 5
    assert missing == 0


def test_figures_and_exports_use_few_modules(sample):
    calls = crossings.count(crossings.figure, sample)
    assert 20 < len(calls.modules) <= 37
    assert calls.crossings["ops.align", "core.grid.Grid.select"] > 0
    assert calls.crossings.total() <= 495
    calls = crossings.count(crossings.export, sample)
    assert 20 < len(calls.modules) <= 46
