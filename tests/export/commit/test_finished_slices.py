"""Stacks that are killed within a region: finished slices are kept, incomplete files are written again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import imageryxr as ix
from imageryxr.export.store.local import WAITING
from tests.support.export_jobs import Computed, array_of, digest
from tests.support.processes import python
from tests.support.slices import THICK, count_pages, draw_stack, export

TARGETS = {"png": "s/z{z:03d}.png", "tiffs": "s/z{z:03d}.tif", "along y": "s/y{y}.png", "tiff": "one.tif"}

DYING = """
import os, signal, sys
from tests.support.slices import export
storage = sys.modules["imageryxr.export.store.local"]  # of which the function hides the module
settle, count = storage._publish_file, 0
storage.SETTLED_SECONDS = float("inf")  # a slow machine keeps as many slices back as a fast one

def dying(*names):
    global count
    count += 1
    if count > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return settle(*names)

storage._publish_file = dying
sys.modules["imageryxr.export.plan.slab_regions"].BRICK_VOXELS = 1
export(sys.argv[1])
"""


def export_and_kill(target, slices):
    """Run an export in a process that kills itself when the given number of slices is complete."""
    assert python("-c", DYING, target, slices).wait() == -signal.SIGKILL


def work_files(folder, part):
    """Return the files in the work folder and their inode numbers."""
    (work,) = Path(folder).rglob("*-work-*")
    return {p.name: p.stat().st_ino for p in (work / part).rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", TARGETS)
def test_finished_slices_are_not_drawn_again(tmp_path, monkeypatch, kind, threads):
    # small bricks limit the number of slices that are drawn at a time
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.slab_regions"], "BRICK_VOXELS", 1)
    place, other = (str(tmp_path / name / TARGETS[kind]) for name in "ab")
    plan = ix.plan_export(draw_stack(), place, square=False)
    count = len(plan.target.keys(0, plan.regions[0]))
    assert len(plan.regions) == 1
    assert plan.slab_settings.slices <= 2
    export_and_kill(place, 6)
    first = work_files(tmp_path, "data")
    export_and_kill(place, 4)
    kept = work_files(tmp_path, "data")
    assert len(first) == 6
    assert first.items() < kept.items()
    assert len(kept) == 10
    assert len(work_files(tmp_path, "new")) == min(WAITING + 1, count - 10), (
        "incomplete files of the first run are removed"
    )
    pages = []
    target = type(plan.target)
    monkeypatch.setattr(target, "page", count_pages(target.page, pages))
    report = export(place, workers=threads)
    assert report.complete
    assert len(pages) == count - len(kept)
    assert report.kept_slices == 10
    assert "; 10 finished slices of an interrupted run kept" in repr(report)
    written = sum(p.stat().st_size for p in (tmp_path / "a").rglob("*") if p.is_file() and "manifest" not in p.name)
    old = sum(p.stat().st_size for p in (tmp_path / "a").rglob("*") if p.name in kept)
    assert report.bytes_written == written - old
    # the killed run may have filled missing chunks without reporting them
    assert report.holes == export(other).holes == ("computed://ramp, mip 0, box 0-64",)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    if kind != "tiff":
        assert {p.name: p.stat().st_ino for p in (tmp_path / "a" / "s").iterdir()}.items() > kept.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "worker_options"),
    [
        *((kind, {"workers": workers}) for kind in TARGETS for workers in (1, 2)),
        *((kind, {"workers": 2, "client": "processes"}) for kind in ("png", "tiff")),
    ],
)
def test_an_interrupt_keeps_finished_slices(tmp_path, monkeypatch, kind, worker_options):
    """The only region is unfinished, but some of its slices are complete."""
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.slab_regions"], "BRICK_VOXELS", 1)
    place = str(tmp_path / TARGETS[kind])
    code = (
        "import os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from tests.support.slices import draw_stack, export\n"
        "sys.modules['imageryxr.export.plan.slab_regions'].BRICK_VOXELS = 1\n"
        "storage = sys.modules['imageryxr.export.store.local']\n"
        "storage.SETTLED_SECONDS, write = 0.1, storage._write\n"
        "storage._write = lambda *file: (time.sleep(0.05), write(*file))\n"
        "def stop(folder):\n"
        "    while sum(p.is_file() for p in Path(folder).rglob('*-work-*/data/**/*')) < 5: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=stop, args=(sys.argv[2],), daemon=True).start()\n"
        "    try:\n"
        f"        export(sys.argv[1], **{worker_options!r})\n"
        "    except KeyboardInterrupt as error:\n"
        "        print(*error.__notes__)\n"
    )
    (tmp_path / "job.py").write_text(code)
    process = python(tmp_path / "job.py", place, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate()
    assert "slices that were finished are kept: run the same call again to continue" in output, errors
    kept = work_files(tmp_path, "data")
    assert 5 <= len(kept) < 70
    if "client" not in worker_options:  # killed worker processes leave incomplete files
        assert work_files(tmp_path, "new") == {}
    assert export(place).complete
    assert export(str(tmp_path / "other" / TARGETS[kind])).complete
    if kind != "tiff":
        assert {p.name: p.stat().st_ino for p in (tmp_path / "s").iterdir()}.items() > kept.items()
        assert digest(tmp_path / "s") == digest(tmp_path / "other" / "s")


@pytest.mark.parametrize("harm", [b"", None])
def test_damaged_slices_of_an_unfinished_export_are_written_again(tmp_path, harm):
    """A finished region with a truncated or lost file is written again with all of its files."""
    place = str(tmp_path / "a" / TARGETS["png"])
    parts = {**THICK, "chunks": (32, 64, 64)}
    with pytest.raises(ix.errors.ChunkReadError):
        ix.export(array_of(Computed(**parts, fail_above=32)), place, workers=1, retries=0)
    (work,) = (tmp_path / "a").rglob("*-work-*")
    assert len(list((work / "data").iterdir())) == 32
    if harm is None:
        (work / "data" / "z003.png").unlink()
    else:
        (work / "data" / "z003.png").write_bytes(harm)
    report = ix.export(array_of(Computed(**parts)), place)
    assert (report.skipped, report.tasks) == (0, 3)
    ix.export(array_of(Computed(**parts)), str(tmp_path / "b" / TARGETS["png"]))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_damaged_slices_of_a_finished_export_are_written_again(tmp_path):
    """Only the region with the truncated file is written again."""
    place = str(tmp_path / "a" / TARGETS["png"])
    export(place)
    expected = digest(tmp_path / "a")
    (tmp_path / "a" / "s" / "z003.png").write_bytes(b"")
    assert export(place).tasks == 1
    assert digest(tmp_path / "a") == expected
