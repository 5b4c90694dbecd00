"""Exports that are killed, damaged or run twice continue to the result of an undisturbed run, or raise an error."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import zarr

import imageryxr as ix
from imageryxr.export.commit.manifest import Entry, Header
from imageryxr.export.commit.session import Workspace
from imageryxr.export.store.local import FileRecord
from imageryxr.sources.resolve import resolve_source
from tests.conftest import volume
from tests.support.export_jobs import TARGETS, Computed, array_of, digest, picture, place, run
from tests.support.processes import _wait_for, python, run_python
from tests.support.slow import slow_except
from tests.support.volumes import IMAGE

MANIFEST = ("o.ome.zarr.manifest.json", "o.ome.zarr.manifest.log")


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)


def run_checked(code):
    done = run_python("-c", code, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


# ---------------------------------------------------------------------------------------------------------
# killed exports


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["omezarr", "sharded", "precomputed", "png", "tiffs", "tiff", "mp4"])
def test_an_export_killed_at_random_is_continued(tmp_path, kind):
    code = f"from tests.support.export_jobs import kill_at_random; kill_at_random({kind!r}, {str(tmp_path)!r}, 20, 1)"
    run_checked(code)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), [("omezarr", 61), ("png", 7), ("ometiff", 7)])
def test_an_export_killed_before_each_system_call_is_continued(tmp_path, kind, step):
    # the export is killed at every `step`-th of the system calls that replace a previous result
    code = "from tests.support.export_jobs import kill_at_every_call"
    run_checked(f"{code}; kill_at_every_call({kind!r}, {str(tmp_path)!r}, {step})")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["omezarr", "png"])
def test_an_export_killed_after_its_first_region_is_continued(tmp_path, kind):
    code = f"from tests.support.export_jobs import run; run({kind!r}, {str(tmp_path / 'a')!r}, seconds=0.2)"
    process = python("-c", code)
    log = next(iter(_wait_for(tmp_path / "a", "*.manifest.log", lines=1)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = digest(tmp_path / "a")
    assert before == {}, "the target does not exist before the export is complete"
    done = len(log.read_bytes().splitlines())
    report = run(kind, tmp_path / "a")
    assert report.skipped >= done
    assert report.tasks > 0
    run(kind, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert not list((tmp_path / "a").rglob("*-work-*"))


# ---------------------------------------------------------------------------------------------------------
# repeated calls and other calls


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("kind", TARGETS)
def test_repeating_a_complete_export_writes_nothing(tmp_path, kind):
    first = run(kind, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and "manifest" not in p.name}
    again = run(kind, tmp_path)
    assert (again.tasks, again.skipped, again.bytes_written) == (0, first.tasks, 0)
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("kind", slow_except(["omezarr", "sharded", "precomputed", "png", "tiffs"], "png"))
@pytest.mark.parametrize("harm", ["cut", "gone", "empty", "longer", "changed"])
def test_a_truncated_region_is_written_again(tmp_path, kind, harm):
    first = run(kind, tmp_path)
    truth = digest(tmp_path)
    files = [n for n in truth if not n.endswith((".json", "info"))]
    victim = tmp_path / files[len(files) // 3]
    if harm == "gone":
        victim.unlink()
    else:
        data = victim.read_bytes()
        victim.write_bytes(
            {"cut": data[: len(data) // 2], "empty": b"", "longer": data + b"x", "changed": data[::-1]}[harm]
        )
    assert digest(tmp_path) != truth
    report = run(kind, tmp_path)
    assert digest(tmp_path) == truth
    assert report.tasks == 1
    assert report.skipped == first.tasks - 1


@pytest.mark.parametrize("kind", ["tiff", "mp4"])
def test_a_truncated_file_is_written_again(tmp_path, kind):
    run(kind, tmp_path)
    truth = digest(tmp_path)
    victim = tmp_path / next(iter(truth))
    victim.write_bytes(victim.read_bytes()[:-10])
    assert run(kind, tmp_path).skipped == 0
    assert digest(tmp_path) == truth


def test_files_that_did_not_change_are_not_read_again(tmp_path, monkeypatch):
    run("png", tmp_path)
    monkeypatch.setattr(sys.modules["imageryxr.export.store.local"].Folder, "_record", None)
    assert run("png", tmp_path).tasks == 0


def test_lost_metadata_are_written_again(tmp_path):
    run("omezarr", tmp_path)
    truth = digest(tmp_path)
    for name in ("zarr.json", "1/zarr.json"):
        (tmp_path / "o.ome.zarr" / name).unlink()
    run("omezarr", tmp_path)
    assert digest(tmp_path) == truth


def test_a_removed_target_is_written_again(tmp_path):
    import shutil

    first = run("omezarr", tmp_path)
    truth = digest(tmp_path)
    shutil.rmtree(tmp_path / "o.ome.zarr")
    assert run("omezarr", tmp_path).tasks == first.tasks
    assert digest(tmp_path) == truth


@pytest.mark.parametrize("kind", ["omezarr", "png", "tiff"])
def test_another_call_is_refused_without_overwrite(tmp_path, kind):
    run(kind, tmp_path)
    before = digest(tmp_path)
    with pytest.raises(ix.errors.TargetExistsError, match=r"of another export .*overwrite=True"):
        run(kind, tmp_path, seed=1)
    assert digest(tmp_path) == before
    run(kind, tmp_path, seed=1, overwrite=True)
    assert digest(tmp_path) != before
    run(kind, tmp_path / "b", seed=1)
    assert digest(tmp_path / "b") == {k: v for k, v in digest(tmp_path).items() if not k.startswith("b/")}


def test_the_error_names_the_differences_between_calls(tmp_path):
    run("omezarr", tmp_path)
    with pytest.raises(ix.errors.TargetExistsError, match="compressor: zstd:1 there, lz4:5 here"):
        run("omezarr", tmp_path, compressor="lz4")


def test_an_unfinished_export_is_not_continued_by_another_call(tmp_path):
    broken = picture(fail_above=7)
    target = tmp_path / "z{z}.png"
    with pytest.raises(ix.errors.ChunkReadError, match="broken disk"):
        ix.export(broken, target, workers=1, retries=0)
    with pytest.raises(ix.errors.TargetExistsError, match="unfinished work of another export"):
        ix.export(picture(seed=2), target)
    ix.export(picture(seed=2), target, overwrite=True)
    assert len(list(tmp_path.glob("*.png"))) == 12


def test_resume_false_writes_everything_again(tmp_path):
    with pytest.raises(ix.errors.ChunkReadError) as caught:
        ix.export(picture(fail_above=7), tmp_path / "z{z}.png", workers=1, retries=0)
    assert "are done and kept: run the same call again" in "".join(caught.value.__notes__)
    report = ix.export(picture(), tmp_path / "z{z}.png", resume=False)
    assert report.skipped == 0


def test_a_folder_of_another_program_is_an_error_and_is_kept(tmp_path):
    (tmp_path / "o.ome.zarr").mkdir()
    (tmp_path / "o.ome.zarr" / "mine").write_text("x")
    with pytest.raises(ix.errors.TargetExistsError):
        run("omezarr", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["o.ome.zarr"]


# ---------------------------------------------------------------------------------------------------------
# failures


def test_failed_regions_are_listed_and_written_by_the_next_call(tmp_path):
    report = ix.export(picture(fail_above=7), tmp_path / "o.zarr", chunks=(2, 16, 16), on_error="collect", retries=1)
    assert not report.complete
    assert {f.error for f in report.failed} == {"could not read computed://ramp: z=8 is on a broken disk"}
    assert report.retries == len(report.failed)
    assert "NOT COMPLETE" in repr(report)
    assert "broken disk" in repr(report)
    assert not (tmp_path / "o.zarr").exists()
    rest = ix.export(picture(), tmp_path / "o.zarr", chunks=(2, 16, 16))
    assert rest.skipped == report.tasks
    assert rest.complete
    ix.export(picture(), tmp_path / "b.zarr", chunks=(2, 16, 16))
    assert (
        digest(tmp_path / "o.zarr").items()
        >= {k: v for k, v in digest(tmp_path / "b.zarr").items() if k != "zarr.json"}.items()
    )


def test_an_export_without_results_leaves_no_files(tmp_path):
    report = ix.export(picture(fail_above=0), tmp_path / "o.zarr", on_error="collect", retries=0)
    assert report.failed
    assert list(tmp_path.iterdir()) == []


class SourceWithNetworkErrors(Computed):
    """A source whose calls 2 to 8 fail with a network error."""

    calls: list = []  # noqa: RUF012

    def read(self, mip, box):
        self.calls.append(box)
        if 2 <= len(self.calls) < 9:
            raise ix.errors.ChunkReadError("could not read it") from requests.ConnectionError("no route to host")
        return super().read(mip, box)


def test_an_export_survives_a_lost_connection(tmp_path, monkeypatch):
    SourceWithNetworkErrors.calls.clear()
    monkeypatch.setattr(sys.modules["imageryxr.export.run.scheduler"], "RETRY_DELAYS", (0.05, 0.3, 1.0))
    report = ix.export(array_of(SourceWithNetworkErrors()), tmp_path / "o.zarr", chunks=(2, 16, 16), workers=2)
    assert report.retries == 7
    assert report.complete
    ix.export(array_of(Computed()), tmp_path / "p.zarr", chunks=(2, 16, 16))
    assert digest(tmp_path / "o.zarr") == digest(tmp_path / "p.zarr") | {
        "zarr.json": digest(tmp_path / "o.zarr")["zarr.json"]
    }


class SourceWithKilledWorkers(Computed):
    """A source that fails the first three reads of its last slices as if their worker had died."""

    calls: list = []  # noqa: RUF012

    def read(self, mip, box):
        from distributed.scheduler import KilledWorker

        if box.stop[0] >= 12 and len(self.calls) < 3:
            self.calls.append(box)
            raise KilledWorker("a task", None, 1)
        return super().read(mip, box)


def test_a_region_whose_worker_died_does_not_wait_while_nothing_else_runs(tmp_path, monkeypatch):
    """The delays are for outages of a network; a worker that died leaves only its memory to wait for."""
    SourceWithKilledWorkers.calls.clear()
    monkeypatch.setattr(sys.modules["imageryxr.export.run.scheduler"], "RETRY_DELAYS", (100.0,))
    began = time.monotonic()
    report = ix.export(array_of(SourceWithKilledWorkers()), tmp_path / "o.zarr", chunks=(12, 48, 64), workers=2)
    assert report.retries == 3
    assert time.monotonic() - began < 30


def test_a_missing_chunk_is_an_error_or_is_counted(tmp_path, sample):
    import shutil

    shutil.copytree(sample.path / "image", tmp_path / "em")
    scale = next(p for p in (tmp_path / "em").iterdir() if p.name.startswith("8_8"))
    for name in sorted(os.listdir(scale))[:3]:
        (scale / name).unlink()
    with pytest.raises(ix.errors.MissingChunkError):
        ix.export(ix.open_image(tmp_path / "em"), tmp_path / "b.zarr")
    report = ix.export(ix.open_image(tmp_path / "em", missing="fill"), tmp_path / "a.zarr", levels=1)
    assert len(report.holes) == 3
    assert all("mip 0, box" in hole for hole in report.holes)
    assert "3 missing chunks filled" in repr(report)
    again = ix.export(ix.open_image(tmp_path / "em", missing="fill"), tmp_path / "a.zarr", levels=1)
    assert again.holes == report.holes


@pytest.mark.parametrize("kind", ["omezarr", "zarr2", "precomputed", "png", "tiffs"])
@pytest.mark.parametrize("number", [0, -1])
def test_a_file_that_another_program_removes_during_an_export_is_an_error(tmp_path, monkeypatch, kind, number):
    """Some clusters remove old files from their scratch disks, also those of exports that run for weeks."""
    publish = Workspace.publish

    def remove_and_publish(space):
        sorted(path for path in (tmp_path / "a").rglob("*-work-*/data/**/*") if path.is_file())[number].unlink()
        return publish(space)

    run(kind, tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "publish", remove_and_publish)
        with pytest.raises(ix.errors.TargetError, match="was removed by another program.*same call restores"):
            run(kind, tmp_path / "a")
    assert digest(tmp_path / "a").keys() & digest(tmp_path / "b").keys() == set()
    run(kind, tmp_path / "a")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


@pytest.mark.parametrize(("kind", "files"), [("omezarr", 50), ("png", 9), ("tiff", 9)])
def test_an_export_continues_after_disk_full_errors(tmp_path, kind, files, monkeypatch):
    """Writing fails after some files of the first call, and succeeds again during the second call."""
    fsync, left = os.fsync, [files]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ix.errors.TargetError, match="disk is full"):
            run(kind, tmp_path / "a", on_error="collect", workers=1)
    assert digest(tmp_path / "a") == {}
    report = run(kind, tmp_path / "a")
    assert report.skipped > 0
    run(kind, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


@contextmanager
def small_disk(folder, options):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("kind", "size"), [("omezarr", "240k"), ("png", "40k")])
def test_an_export_continues_after_its_file_system_was_full(tmp_path, kind, size):
    with small_disk(tmp_path / "a", f"size={size}"):
        with pytest.raises(ix.errors.TargetError, match="disk is full"):
            run(kind, tmp_path / "a", workers=1)  # two workers could fill the disk before either finishes a region
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path / "a")], check=True)
        assert run(kind, tmp_path / "a").skipped > 0
        run(kind, tmp_path / "b")
        assert digest(tmp_path / "a") == digest(tmp_path / "b")


@pytest.mark.parametrize(("kind", "files"), [("omezarr", 4), ("omezarr", 60), ("png", 2), ("png", 12), ("tiff", 8)])
def test_an_export_continues_after_its_file_system_had_no_free_inodes(tmp_path, kind, files):
    run(kind, tmp_path / "b")
    with small_disk(tmp_path / "a", f"size=8m,nr_inodes={files}"):
        for _ in range(2):  # an error leaves nothing that makes the next one another one
            with pytest.raises(ix.errors.TargetError, match="no free inodes.*remove files") as caught:
                run(kind, tmp_path / "a")
            assert caught.value.full
        subprocess.run(["mount", "-o", "remount,nr_inodes=9999", str(tmp_path / "a")], check=True)
        run(kind, tmp_path / "a")
        assert digest(tmp_path / "a") == digest(tmp_path / "b")


@contextmanager
def fault_at_read(monkeypatch, number, fault):
    """Call a function before one of the reads of an export."""
    read, lock, left = Computed.read, threading.Lock(), [number]

    def failing(self, *args):
        with lock:
            left[0] -= 1
            if not left[0]:
                fault()
        return read(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Computed, "read", failing)
        yield
    assert left[0] <= 0


@pytest.mark.parametrize("kind", ["omezarr", "png"])
@pytest.mark.parametrize("number", [1, 5])
def test_an_export_continues_after_its_file_system_became_read_only(tmp_path, kind, number, monkeypatch):
    folder = str(tmp_path / "a")

    def make_read_only():
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    run(kind, tmp_path / "b")
    with small_disk(tmp_path / "a", "size=8m"):
        try:
            with (
                fault_at_read(monkeypatch, number, make_read_only),
                pytest.raises(ix.errors.TargetError, match="the file system is read-only; make it writable, or choose"),
            ):
                run(kind, tmp_path / "a", workers=1)
        finally:
            subprocess.run(["umount", folder], check=True)
        run(kind, tmp_path / "a")
        assert digest(tmp_path / "a") == digest(tmp_path / "b")


@pytest.mark.parametrize("kind", ["omezarr", "png", "tiff"])
def test_a_target_that_is_removed_during_the_export_is_named(tmp_path, kind, monkeypatch):
    def remove():
        for work in (tmp_path / "a").rglob("*-work-*"):
            shutil.rmtree(work)

    run(kind, tmp_path / "b")
    with (
        fault_at_read(monkeypatch, 2, remove),
        pytest.raises(
            ix.errors.TargetError,
            match=r"-work-[^ ]* does not exist on .*run the same call again",
        ),
    ):
        run(kind, tmp_path / "a", workers=1)
    run(kind, tmp_path / "a")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


# ---------------------------------------------------------------------------------------------------------
# two exports at once


@pytest.mark.parametrize("kind", ["omezarr", "png"])
def test_one_of_two_exports_to_one_target_is_refused(tmp_path, kind):
    outcomes = []

    def one():
        try:
            outcomes.append(run(kind, tmp_path / "a", seconds=0.05))
        except ix.errors.TargetError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [o for o in outcomes if isinstance(o, ix.errors.TargetError)]
    assert len(refused) == 1
    assert "another process is exporting to this target" in str(refused[0])
    run(kind, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_a_folder_that_another_process_creates_during_the_check_is_accepted(tmp_path, monkeypatch):
    plan = ix.plan_export(picture(), tmp_path / "new" / "o.zarr")
    isdir, requested = os.path.isdir, []

    def isdir_during_creation(path):
        requested.append(path)
        if len(requested) == 1:
            os.makedirs(tmp_path / "new")  # as another process does just after the check
            return False
        return isdir(path)

    monkeypatch.setattr(os.path, "isdir", isdir_during_creation)
    plan.validate()
    assert requested[0] == str(tmp_path / "new")


def test_a_worker_of_a_dead_export_cannot_write_into_the_next(tmp_path):
    from imageryxr.export.store.local import Folder

    for name in ("data", "new"):
        (tmp_path / name).mkdir()
    place = Folder(str(tmp_path / "data"), str(tmp_path / "new"))
    place.put([("a/b", b"1")])
    assert (tmp_path / "data" / "a" / "b").read_bytes() == b"1"
    (tmp_path / "new").rmdir()
    with pytest.raises(FileNotFoundError):
        place.put([("a/b", b"2")])
    assert (tmp_path / "data" / "a" / "b").read_bytes() == b"1"


# ---------------------------------------------------------------------------------------------------------
# the manifest


def test_a_truncated_line_of_the_journal_is_skipped():
    files = {"z003.png": FileRecord(1000, 0xABC)}
    line = Entry(7, files, ("a hole, and more",)).line("0123456789ab").rstrip(b"\n")
    assert Entry.parse(line, "0123456789ab") == Entry(7, files, ("a hole, and more",), run="0123456789ab")
    assert Entry.parse(line, "ba9876543210") is None
    for end in range(len(line)):
        assert Entry.parse(line[:end], "0123456789ab") is None
    assert Entry.parse(b"", "0123456789ab") is None


def test_an_invalid_manifest_is_an_error(tmp_path):
    run("omezarr", tmp_path)
    (tmp_path / MANIFEST[0]).write_text('{"token": 3')
    with pytest.raises(ix.errors.TargetError, match="is not a manifest that this version can read"):
        run("omezarr", tmp_path)
    with pytest.raises(ix.errors.TargetError):
        Header.parse(b'{"step": [1, 2, 3], "first": [1, 2, 3], "from_the_future": 1}', "x")


@pytest.mark.slow
def test_manifest_and_journal_are_beside_the_target(tmp_path):
    for kind in TARGETS:
        run(kind, tmp_path / kind)
        apart = {str(p.relative_to(tmp_path / kind)) for p in (tmp_path / kind).rglob("*manifest*")}
        assert len(apart) == 2
        assert all("manifest" in Path(name).name for name in apart)
        target, _ = place(kind, tmp_path / kind)
        if target.endswith(".zarr"):
            assert not [p for p in Path(target).rglob("*") if "manifest" in p.name]


def test_no_token_is_written_to_disk(tmp_path):
    ix.export(IMAGE, tmp_path / "em.ome.zarr")
    source = replace(resolve_source(tmp_path / "em.ome.zarr", None), token="5ec7e75ec7e7")
    report = ix.export(array_of(source), tmp_path / "out" / "o.zarr")
    plan = ix.plan_export(array_of(source), tmp_path / "out" / "o.zarr")
    assert "5ec7e7" not in repr(report) + repr(plan) + plan._repr_html_() + repr(plan.to_dict())
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        assert b"5ec7e7" not in path.read_bytes()


def test_two_stacks_in_one_folder_are_independent(tmp_path):
    ix.export(picture(), tmp_path / "a{z:02d}.png")
    ix.export(picture(seed=3), tmp_path / "b{z:02d}.png")
    assert len(list(tmp_path.glob("a*.png"))) == len(list(tmp_path.glob("b*.png"))) == 12
    assert ix.export(picture(), tmp_path / "a{z:02d}.png").regions == 0


def test_arrays_in_memory_are_identified_by_their_values(tmp_path):
    values = IMAGE.values.copy()
    ix.export(volume(values, layer_type="image"), tmp_path / "o.zarr")
    assert ix.export(volume(values.copy(), layer_type="image"), tmp_path / "o.zarr").regions == 0
    values[0, 0, 0] ^= 1
    with pytest.raises(ix.errors.TargetExistsError, match="of other voxels"):
        ix.export(volume(values, layer_type="image"), tmp_path / "o.zarr")
    assert zarr.open_group(tmp_path / "o.zarr", mode="r")["0"][0, 0, 0] == values[0, 0, 0] ^ 1


# ---------------------------------------------------------------------------------------------------------
# messages during the export


def test_the_progress_bar_appears_only_in_terminals(tmp_path, capsys):
    run("png", tmp_path / "a")
    assert capsys.readouterr().err == ""
    report = run("png", tmp_path / "b", progress=True, seconds=0.01)
    shown = capsys.readouterr().err
    assert f"{report.tasks}/{report.tasks}" in shown
    assert "task/s" in shown or "s/task" in shown
    assert "z{z:03d}.png" in shown


def test_an_error_of_a_source_is_raised_unchanged(tmp_path):
    class Broken(Computed):
        def read(self, mip, box):
            raise PermissionError("not for you")

    with pytest.raises(PermissionError, match="not for you"):
        ix.export(array_of(Broken()), tmp_path / "o.zarr", retries=0)
