"""Manifests: the files that they list, invalid manifests, and exports that are running."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import imageryxr as ix
from imageryxr.export.commit.conflicts import manifest_name
from tests.support.export_jobs import digest, picture, place, run
from tests.support.exports import A, B
from tests.support.processes import _wait_for, python

Z, Y = "s{z:03d}.tif", "s{y:03d}.tif"


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)


def slices(folder, count=12):
    return np.stack([tifffile.imread(folder / f"s{i:03d}.tif") for i in range(count)])


def export(array, target, **kwargs):
    return ix.export(array, target, workers=1, square=False, compression=None, **kwargs)


def leave_unfinished(target, seed=0, **kwargs):
    """Run an export that fails, which leaves finished regions and a manifest."""
    with pytest.raises(ix.errors.ChunkReadError):
        ix.export(picture(fail_above=7, seed=seed), target, workers=1, retries=0, **kwargs)


# ---------------------------------------------------------------------------------------------------------
# two patterns that give the same files


@pytest.mark.parametrize(("other", "array"), [(Y, B), ("s{z:03}.tif", A + np.uint8(1))])
def test_slices_replaced_by_another_pattern_are_written_again(tmp_path, other, array):
    theirs = array.values if array is not B else np.moveaxis(B.values, 1, 0)
    export(A, tmp_path / Z)
    export(array, tmp_path / other, overwrite=True)
    with pytest.raises(ix.errors.TargetExistsError, match=r"export to s\{.*replaced files of this call; .*overwrite"):
        export(A, tmp_path / Z)
    np.testing.assert_array_equal(slices(tmp_path), theirs)
    assert export(array, tmp_path / other).tasks == 0
    assert export(A, tmp_path / Z, overwrite=True).complete
    np.testing.assert_array_equal(slices(tmp_path), A.values)
    with pytest.raises(ix.errors.TargetExistsError, match="replaced files of this call"):
        export(array, tmp_path / other)


def test_a_file_that_a_stack_replaced_is_not_complete_and_vice_versa(tmp_path):
    export(A[:1], tmp_path / "s003.tif")
    export(A, tmp_path / Z, overwrite=True)
    with pytest.raises(ix.errors.TargetExistsError, match="replaced files of this call"):
        export(A[:1], tmp_path / "s003.tif")
    export(A[:1], tmp_path / "s003.tif", overwrite=True)
    with pytest.raises(ix.errors.TargetExistsError, match="replaced files of this call"):
        export(A, tmp_path / Z)


def test_exports_without_common_files_remain_complete(tmp_path):
    export(A, tmp_path / Z)
    export(B, tmp_path / "t{y:03d}.tif")
    export(A[:1], tmp_path / "one.tif")
    assert export(A, tmp_path / Z).tasks == 0


def test_replacing_files_of_another_export_needs_overwrite(tmp_path):
    # the unfinished export's overwrite=True permits replacing the earlier files, not those of the other export
    ix.export(A, tmp_path / "z{z}.png")
    leave_unfinished(tmp_path / "z{z}.png", overwrite=True)
    work = list(tmp_path.rglob("*-work-*/data/*"))
    ix.export(B, tmp_path / "z{y}.png", overwrite=True, square=False)
    assert work
    assert list(tmp_path.rglob("*-work-*/data/*")) == work, "the finished regions of the unfinished export are kept"
    with pytest.raises(ix.errors.TargetExistsError, match="replaced files of this call"):
        ix.export(picture(), tmp_path / "z{z}.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "z3.png")), B.values[:, 3])
    assert ix.export(picture(), tmp_path / "z{z}.png", overwrite=True).skipped > 0


def test_files_of_a_replaced_stack_that_another_export_wrote_are_kept(tmp_path):
    export(A, tmp_path / Z)
    export(B, tmp_path / Y, overwrite=True)
    with pytest.warns(ix.ImageryWarning, match="7 files beside the 5"):
        export(A[:5], tmp_path / Z, overwrite=True)
    np.testing.assert_array_equal(slices(tmp_path)[5:], np.moveaxis(B.values, 1, 0)[5:])


@pytest.mark.slow
def test_an_export_is_refused_while_another_writes_files_of_the_same_names(tmp_path):
    process = start_slow_export(tmp_path, "png")
    with pytest.raises(
        ix.errors.TargetError, match=rf"same names as another export.*\(process {process.pid}, which holds"
    ):
        ix.export(picture(), tmp_path / "stack" / "z{z:03}.png", overwrite=True)
    process.kill()
    process.wait()
    assert ix.export(picture(), tmp_path / "stack" / "z{z:03}.png", overwrite=True).complete


# ---------------------------------------------------------------------------------------------------------
# names of manifests


def name_of(folder, pattern):
    return manifest_name(ix.plan_export(A, folder / pattern, square=False).target)[1]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("z{z}.png", "z_z_.png"),
        ("z{z:03d}.png", "z_z_03d_.png"),
        ("em_{y:05}.tif", "em__y_05_.tif"),
        ("a-b_c.{x_nm:06.0f}nm.png", "a-b_c._x_nm_06.0f_nm.png"),
        ("z_z_{z:02d}.png", "z_z__z_02d_.png"),
    ],
)
def test_usual_patterns_give_readable_manifest_names(tmp_path, pattern, name):
    assert re.fullmatch(re.escape(name) + r"-[0-9a-f]{8}\.manifest", name_of(tmp_path, pattern))


@pytest.mark.slow
def test_different_patterns_have_different_manifest_names(tmp_path):
    patterns = [
        f"{a}{{{field}}}{b}.png"
        for field in ("z", "z:d", "z:03d", "z:03", "z:>3", "z_nm", "z_nm:.0f", "y", "y:03d")
        for a in ("a", "a_", "a b", "a+b", "a_b", "a_z_", "a z ", "a_z_03d_")
        for b in ("", "_", " ", "_z_", "03d_", "d_", "nm_", "_03d_", "_nm_", "+")
    ]
    names = [name_of(tmp_path, p) for p in patterns]
    assert len(set(names)) == len(set(patterns)) == len(patterns)


def test_patterns_that_differ_in_punctuation_have_different_manifest_names(tmp_path):
    leave_unfinished(tmp_path / "a b{z}.png")
    assert ix.export(picture(seed=3), tmp_path / "a+b{z}.png").complete
    assert ix.export(picture(), tmp_path / "a b{z}.png").skipped > 0
    for pattern, seed in (("a b{z}.png", 0), ("a+b{z}.png", 3)):
        assert ix.export(picture(seed=seed), tmp_path / pattern).tasks == 0


# ---------------------------------------------------------------------------------------------------------
# targets of a single file


@pytest.mark.parametrize("harm", ["gone", "empty", "half"])
@pytest.mark.parametrize("kind", ["tiff", "mp4"])
def test_a_single_file_is_complete_without_its_journal(tmp_path, kind, harm):
    first = run(kind, tmp_path)
    truth = digest(tmp_path)
    log = next(tmp_path.rglob("*.log"))
    journal = log.read_bytes()
    log.write_bytes(b"" if harm == "empty" else journal[: len(journal) // 2])
    if harm == "gone":
        log.unlink()
    report = run(kind, tmp_path)
    assert (report.tasks, report.skipped) == (0, first.tasks)
    assert digest(tmp_path) == truth


def test_a_file_replaced_by_a_dangling_symlink_is_written_again(tmp_path):
    run("tiff", tmp_path)
    truth = digest(tmp_path)
    (tmp_path / "one.tif").unlink()
    (tmp_path / "one.tif").symlink_to(tmp_path / "nowhere" / "x.tif")
    assert run("tiff", tmp_path).skipped == 0
    assert digest(tmp_path) == truth


@pytest.mark.parametrize("kind", ["tiff", "png"])
def test_a_folder_in_place_of_a_file_is_kept(tmp_path, kind):
    run(kind, tmp_path)
    file = tmp_path / sorted(digest(tmp_path))[0]
    file.unlink()
    (file / "mine").mkdir(parents=True)
    with pytest.raises(ix.errors.TargetExistsError, match="is a folder, but the export writes a file of this name"):
        run(kind, tmp_path)
    assert (file / "mine").is_dir()


# ---------------------------------------------------------------------------------------------------------
# invalid manifests


def manifest(folder):
    return next(folder.rglob("*.manifest.json"))


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


VALUES = [
    {"step": [0, 0, 0]},
    {"step": [4]},
    {"step": "abc"},
    {"step": [True, 16, 16]},
    {"first": [1.5, 16, 16]},
    {"first": [2, 16, -16]},
    {"step": [3, 5, 7], "first": [3, 5, 7]},
    {"run": None},
    {"run": "../../../abc"},
    {"coarse": "x"},
    {"coarse": 0},
    {"what": None},
    {"what": None, "token": "x"},
    {"outdated": ["x"]},
    {"outdated": [{"pattern": "z{z:03d}.png", "axis": "z", "count": "3", "resolution": 1, "offset": 0}]},
    {"names": 3},
    {"phase": "xyz"},
    {"kind": "weird", "phase": "publishing"},
    {"result": "x"},
    {"replaces": "yes"},
    {"format": 99},
    {"direct": True},
    {"names": {"pattern": "z{z:03d}.png", "axis": "z", "count": 3, "resolution": 1, "offset": 10**400}},
    {"names": {"pattern": "z{z:03d}.png", "axis": "z", "count": 10**9, "resolution": 1, "offset": 0}},
    {"from_the_future": 1},
]


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Return a function that copies a complete export into a folder. Each kind is exported once per module."""

    @cache
    def export_once(kind):
        folder = tmp_path_factory.mktemp(kind)
        run(kind, folder)
        return folder

    return lambda kind, folder: shutil.copytree(export_once(kind), folder, dirs_exist_ok=True)


# One function reads the manifests of all targets, so each invalid content is tried with one target only.
KINDS = ("omezarr", "png", "precomputed", "tiff")


@pytest.mark.fast_forms(7)
@pytest.mark.parametrize(("values", "kind"), list(zip(VALUES, itertools.cycle(KINDS), strict=False)), ids=str)
def test_wrong_values_in_a_manifest_are_errors_and_overwrite_starts_again(tmp_path, complete, kind, values):
    complete(kind, tmp_path)
    truth = digest(tmp_path)
    edit(manifest(tmp_path), **values)
    with pytest.raises(ix.errors.ManifestError, match="is not a manifest that this version can read") as caught:
        run(kind, tmp_path)
    message = str(caught.value)
    assert message.startswith(str(manifest(tmp_path)))
    assert "give overwrite=True to start over" in message
    assert any(name in message for name in values)
    assert digest(tmp_path) == truth
    run(kind, tmp_path, overwrite=True)
    assert digest(tmp_path) == truth
    assert run(kind, tmp_path).tasks == 0


TEXTS = [b"", b'{"token": 3', b"\x93\x00\xff", b"null", b"[]", b'"x"', b"{}"]


@pytest.mark.parametrize(("text", "kind"), list(zip(TEXTS, itertools.cycle(KINDS), strict=False)))
def test_a_truncated_manifest_is_an_error_and_overwrite_starts_again(tmp_path, complete, kind, text):
    complete(kind, tmp_path)
    truth = digest(tmp_path)
    manifest(tmp_path).write_bytes(text)
    with pytest.raises(ix.errors.ManifestError, match="give overwrite=True to start over"):
        run(kind, tmp_path)
    run(kind, tmp_path, overwrite=True)
    assert digest(tmp_path) == truth


@pytest.mark.parametrize("pattern", ["{z[0]}", "{z:9999999999d}", "{0}", "{z", "{z.real.imag.x}", ""])
def test_invalid_patterns_do_not_damage_other_exports(tmp_path, pattern):
    export(A, tmp_path / Z)
    edit(manifest(tmp_path), names={"pattern": pattern, "axis": "z", "count": 3, "resolution": 1, "offset": 0})
    assert export(B, tmp_path / "t{y:03d}.tif").complete
    assert export(A, tmp_path / Z, overwrite=True).complete
    np.testing.assert_array_equal(slices(tmp_path), A.values)


@pytest.mark.parametrize("end", [".json", ".log"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_place_of_a_manifest_is_an_error(tmp_path, end, overwrite):
    run("tiff", tmp_path)
    path = tmp_path / f"one.tif.manifest{end}"
    path.unlink()
    path.mkdir()
    with pytest.raises(
        ix.errors.TargetError, match=r"is a folder, but the export needs this name for a file of its manifest"
    ):
        run("tiff", tmp_path, overwrite=overwrite)
    assert path.is_dir()


@pytest.mark.parametrize("kind", ["omezarr", "png", "tiff"])
def test_a_manifest_that_cannot_be_read_is_an_error_of_the_target(tmp_path, kind):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ix.errors.TargetError, match=r"manifest.json cannot be read \(.*\); check its permissions"):
        run(kind, tmp_path / "loop")


# ---------------------------------------------------------------------------------------------------------
# a running export


def start_slow_export(folder, kind):
    """Start a slow export in another process; return the process when its manifest exists."""
    code = f"from tests.support.export_jobs import run; run({kind!r}, {str(folder)!r}, seconds=1.0)"
    process = python("-c", code, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(folder, "*.manifest.json", lines=1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [{}, {"resume": False}, {"overwrite": True}], ids=str)
def test_a_running_export_is_reported_before_other_problems(tmp_path, kwargs):
    process = start_slow_export(tmp_path, "omezarr")
    try:
        with pytest.raises(ix.errors.TargetError) as caught:
            run("omezarr", tmp_path, seed=1, **kwargs)
        assert f"process {process.pid}" in str(caught.value)
        assert "wait for it to end, or stop it" in str(caught.value)
        assert "overwrite" not in str(caught.value)
        assert process.poll() is None
        manifest(tmp_path).write_text("")
        with pytest.raises(ix.errors.TargetError, match=f"process {process.pid}"):
            run("omezarr", tmp_path, seed=1, **kwargs)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_export_does_not_count_as_running(tmp_path):
    process = start_slow_export(tmp_path, "omezarr")
    process.kill()
    process.wait()
    with pytest.raises(ix.errors.TargetExistsError, match=r"unfinished work of another export .*overwrite=True"):
        run("omezarr", tmp_path, seed=1)


# ---------------------------------------------------------------------------------------------------------
# patterns with a folder per slice


@pytest.mark.parametrize("compression", ["zlib", None])
def test_files_written_under_another_root_are_written_again(tmp_path, compression):
    """Uncompressed files have equal sizes, so that the size does not identify a file."""
    options = {"square": False, "compression": compression, "workers": 1}
    above, below = tmp_path / "a" / "{z}" / "{z}.tif", tmp_path / "a" / "3" / "{z}.tif"
    other = A + np.uint8(1)
    ix.export(A, above, **options)
    ix.export(other, below, overwrite=True, **options)
    with pytest.raises(
        ix.errors.TargetExistsError, match=r"export to \{z\}\.tif has since replaced files of this call"
    ):
        ix.export(A, above, **options)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a" / "3" / "3.tif"), other.values[3])
    with pytest.warns(ix.ImageryWarning, match="11 files beside the 12"):
        ix.export(A, above, overwrite=True, **options)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a" / "3" / "3.tif"), A.values[3])
    with pytest.raises(ix.errors.TargetExistsError, match=r"export to \{z\}/\{z\}\.tif has since replaced"):
        ix.export(other, below, **options)


def test_empty_folders_of_removed_slices_are_removed(tmp_path):
    pattern = tmp_path / "a" / "{z}" / "{z}.tif"
    export(A, pattern)
    (tmp_path / "a" / "7" / "mine").write_text("")
    export(A[:5], pattern, overwrite=True)
    names = sorted(p.name for p in (tmp_path / "a").iterdir() if p.is_dir())
    assert names == [".imageryxr", "0", "1", "2", "3", "4", "7"]


# ---------------------------------------------------------------------------------------------------------
# exports that are killed while they publish


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["omezarr", "precomputed", "png", "tiff"])
def test_a_file_that_appears_during_publishing_is_not_replaced(tmp_path, kind):
    """The process is killed at the start of publishing; then another program creates the target."""
    code = (
        "import os, sys; from tests.support.export_jobs import run\n"
        "sys.modules['imageryxr.export.commit.publish'].move_into_place = lambda *a: os.kill(os.getpid(), 9)\n"
        f"run({kind!r}, {str(tmp_path / 'a')!r})"
    )
    assert python("-c", code).wait() == -9
    run(kind, tmp_path / "b")
    truth = digest(tmp_path / "b")
    mine = tmp_path / "a" / sorted(truth)[-1]
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(b"mine")
    with pytest.raises(ix.errors.TargetExistsError, match="appeared during this export and is not replaced"):
        run(kind, tmp_path / "a")
    assert mine.read_bytes() == b"mine"
    mine.unlink()
    while mine.parent != tmp_path / "a" and not any(mine.parent.iterdir()):
        mine.parent.rmdir()
        mine = mine.parent
    assert run(kind, tmp_path / "a").tasks == 0
    assert digest(tmp_path / "a") == truth


@pytest.mark.parametrize("kind", ["omezarr", "png"])
def test_incomplete_manifests_of_a_killed_process_are_removed(tmp_path, kind):
    target, options = place(kind, tmp_path)
    with pytest.raises(ix.errors.ChunkReadError):
        ix.export(picture(fail_above=7), target, workers=1, retries=0, **options)
    base = str(next(tmp_path.rglob("*.manifest.json"))).removesuffix(".json")
    for end in ("-0123abcd.json", "-probe-0123abcd"):
        Path(base + end).write_text("half")
    Path(base + "-mine.json").write_text("no such name")
    ix.export(picture(), target, **options)
    assert {p.name for p in Path(base).parent.rglob("*.manifest*")} == {
        Path(base + end).name for end in (".json", ".log", "-mine.json")
    }
