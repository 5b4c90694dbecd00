"""A stack that replaces a longer one removes the remaining slices of the longer one, and no other files."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

import imageryxr as ix
from imageryxr.export.commit.session import Workspace
from tests.conftest import volume
from tests.support.export_jobs import Computed, array_of

LONG = array_of(Computed((9, 16, 16)))


def files_in(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".imageryxr")


def slice_names(*numbers):
    return [f"z{n:02d}.png" for n in numbers]


@pytest.fixture
def longer(tmp_path):
    ix.export(LONG, tmp_path / "z{z:02d}.png")
    return tmp_path


def shorter(folder, count=3, **kwargs):
    return ix.export(LONG[-count:], folder / "z{z:02d}.png", overwrite=True, workers=1, **kwargs)


def test_slices_of_a_longer_replaced_stack_are_removed(longer):
    assert shorter(longer).complete
    assert files_in(longer) == slice_names(0, 1, 2)
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(longer / f"z{i:02d}.png")), LONG[-3 + i])
    assert json.loads(next(longer.rglob("*.manifest.json")).read_text())["outdated"] == []


def test_files_that_the_export_did_not_write_are_kept(longer):
    own = [*slice_names(9, 10), "z1.png", "notes.png", "z03.tif"]
    for name in own:
        (longer / name).write_bytes(b"mine")
    with pytest.warns(ix.ImageryWarning, match="3 files beside the 3 of this stack.*z09.png") as caught:
        shorter(longer)
    assert caught[0].filename == __file__
    assert files_in(longer) == sorted([*slice_names(0, 1, 2), *own])
    assert all((longer / name).read_bytes() == b"mine" for name in own)


def test_slices_of_the_longer_stack_that_were_changed_are_kept(longer):
    (longer / "z05.png").write_bytes(b"mine")
    data = (longer / "z06.png").read_bytes()
    (longer / "z06.png").write_bytes(data[::-1])
    with pytest.warns(ix.ImageryWarning, match=r"2 files beside the 3 .* not written by this export: z05.png, z06.png"):
        shorter(longer)
    assert files_in(longer) == slice_names(0, 1, 2, 5, 6)
    assert (longer / "z05.png").read_bytes() == b"mine"


def rewrite_as_other_version(folder, **values):
    """Rewrite the manifest in the format of another version."""
    path = next(folder.rglob("*.manifest.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1, **values}))


@pytest.mark.parametrize("phase", ["writing", "finished"])
def test_an_export_of_another_version_is_an_error_without_overwrite(longer, phase):
    rewrite_as_other_version(longer, phase=phase)
    with pytest.raises(ix.errors.ManifestError, match="this version can read .*give overwrite=True to start over"):
        ix.export(LONG, longer / "z{z:02d}.png")
    assert ix.export(LONG, longer / "z{z:02d}.png", overwrite=True).skipped == 0
    assert ix.export(LONG, longer / "z{z:02d}.png").tasks == 0


def test_a_manifest_without_file_names_removes_no_files(longer):
    manifest = next(longer.rglob("*.manifest.json"))
    document = json.loads(manifest.read_text())
    assert document.pop("names")["count"] == 9  # manifests of earlier versions have no names
    assert document.pop("outdated") == []
    manifest.write_text(json.dumps(document))
    with pytest.warns(ix.ImageryWarning, match="6 files beside the 3"):
        shorter(longer)
    assert files_in(longer) == slice_names(*range(9))


def test_old_files_are_removed_after_the_new_ones_are_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)
    ix.export(array_of(Computed((12, 48, 64))), tmp_path / "z{z:02d}.png")
    broken = array_of(Computed((12, 48, 64), fail_above=4))[:8]
    report = ix.export(broken, tmp_path / "z{z:02d}.png", overwrite=True, on_error="collect", retries=0)
    assert report.failed
    assert report.regions, "without a finished region, the first export's manifest would be restored"
    assert files_in(tmp_path) == slice_names(*range(12))
    # an export that replaces both exports removes the slices of both
    shorter(tmp_path, 2)
    assert files_in(tmp_path) == slice_names(0, 1)


def test_an_export_stopped_before_the_removal_is_continued(longer, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "_remove_outdated", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shorter(longer)
    assert files_in(longer) == slice_names(*range(9))
    ix.export(LONG[-3:], longer / "z{z:02d}.png")
    assert files_in(longer) == slice_names(0, 1, 2)


def test_slices_named_by_other_positions_are_kept(tmp_path):
    target = tmp_path / "{z_nm:06.0f}.png"
    ix.export(LONG[:4], target)
    with pytest.warns(ix.ImageryWarning, match="4 files beside the 3"):
        ix.export(LONG[4:7], target, overwrite=True)
    assert len(files_in(tmp_path)) == 7


def test_stacks_named_by_nm_are_replaced(tmp_path):
    target = tmp_path / "{z_nm:06.0f}.png"
    ix.export(LONG, target)
    ix.export(LONG[2:5], target, overwrite=True)
    assert files_in(tmp_path) == [f"{float(z):06.0f}.png" for z in LONG.z[2:5]]


def test_a_finished_stack_consists_of_its_pictures_and_one_hidden_folder(tmp_path):
    ix.export(LONG, tmp_path / "z{z:02d}.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".imageryxr", *slice_names(*range(9))]


def test_stacks_of_two_patterns_share_a_hidden_folder(tmp_path):
    ix.export(LONG, tmp_path / "z{z:02d}.png")
    ix.export(LONG, tmp_path / "a{z:02d}.tif")
    assert len([p for p in (tmp_path / ".imageryxr").iterdir() if p.suffix == ".json"]) == 2
    assert ix.export(LONG, tmp_path / "a{z:02d}.tif").tasks == 0


def test_a_failed_export_leaves_no_hidden_folder(tmp_path):
    broken = array_of(Computed((9, 16, 16), fail_above=-1))
    with pytest.raises(ix.errors.ChunkReadError):
        ix.export(broken, tmp_path / "z{z:02d}.png", retries=0)
    assert list(tmp_path.iterdir()) == []


def test_slices_can_be_named_by_their_index_in_the_volume(tmp_path):
    image = volume(np.zeros((3, 4, 4), np.uint8), (8, 8, 40), (7, 11, -1))
    ix.export(image, tmp_path / "z{z_index:03d}.png")
    ix.export(image, tmp_path / "x{x}_{x_index}_{x_nm:.0f}.tif", square=False)
    ix.export(image.isel(z=slice(1, 3)), tmp_path / "part{z_index}.png")
    found = sorted(p.name for p in tmp_path.iterdir() if p.is_file())
    assert found == [
        "part0.png",
        "part1.png",
        *(f"x{i}_{7 + i}_{(7.5 + i) * 8:.0f}.tif" for i in range(4)),
        "z-01.png",
        "z000.png",
        "z001.png",
    ]
