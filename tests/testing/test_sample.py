"""The generated sample volume: its files, its tissue, and its errors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imageryxr.errors import OptionError, TargetError, TargetExistsError
from imageryxr.testing.sample import Sample, sample

SMALL = (34, 256, 256)
MARKER = "imageryxr-sample.json"


def read(cloudpath: str, mip: int = 0) -> np.ndarray:
    """Return all voxels of a level (z, y, x)."""
    from cloudvolume import CloudVolume

    return np.asarray(CloudVolume(cloudpath, mip=mip, progress=False)[:])[..., 0].T


def info(cloudpath: str) -> dict:
    return json.loads(Path(cloudpath.removeprefix("precomputed://file://"), "info").read_text())


def digest(folder: Path) -> str:
    """Return a hash of the names and bytes of all files in a folder."""
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def voxel_digest(block: Sample) -> str:
    total = hashlib.sha256()
    for cloudpath, mips in ((block.image, 3), (block.segmentation, 2)):
        for mip in range(mips):
            total.update(np.ascontiguousarray(read(cloudpath, mip)).tobytes())
    return total.hexdigest()


def read_on_one_grid(block: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return the image (at 16 nm) and the segmentation on the grid of the segmentation."""
    image, labels = read(block.image, 1), read(block.segmentation, 0)
    start = info(block.image)["scales"][1]["voxel_offset"][::-1]
    begin = info(block.segmentation)["scales"][0]["voxel_offset"][::-1]
    shift = [b - s for b, s in zip(begin, start, strict=True)]
    window = tuple(slice(a, a + n) for a, n in zip(shift, labels.shape, strict=True))
    return image[window], labels


def borders(labels: np.ndarray) -> np.ndarray:
    """Return whether the right or lower neighbour of each voxel is another cell."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :, :-1] |= labels[:, :, :-1] != labels[:, :, 1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edge


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return sample(tmp_path_factory.mktemp("sample") / "block", shape=SMALL)


def test_a_sample_is_immutable_and_states_its_addresses(block: Sample) -> None:
    folder = block.path.as_posix()
    assert block.path.is_absolute()
    assert block.image == f"precomputed://file://{folder}/image"
    assert block.segmentation == f"precomputed://file://{folder}/segmentation"
    assert block == Sample(block.path, SMALL)
    assert block.image in repr(block)
    assert block.segmentation in repr(block)
    assert "256 x 256 x 34" in repr(block)
    with pytest.raises(dataclasses.FrozenInstanceError):
        block.shape = (1, 1, 1)  # type: ignore[misc]


def test_the_folder_contains_two_layers_and_the_marker(block: Sample) -> None:
    assert {p.name for p in block.path.iterdir()} == {"image", "segmentation", MARKER}
    assert [p.name for p in block.path.parent.iterdir()] == ["block"]  # no temporary folder is left behind


def test_the_image_has_three_levels(block: Sample) -> None:
    layer = info(block.image)
    assert (layer["type"], layer["data_type"], layer["num_channels"]) == ("image", "uint8", 1)
    assert [s["resolution"] for s in layer["scales"]] == [[8, 8, 40], [16, 16, 40], [32, 32, 40]]
    assert [s["voxel_offset"] for s in layer["scales"]] == [[4096, 2048, 100], [2048, 1024, 100], [1024, 512, 100]]
    assert [s["size"] for s in layer["scales"]] == [[256, 256, 34], [128, 128, 34], [64, 64, 34]]
    assert {s["encoding"] for s in layer["scales"]} == {"raw"}
    assert all(s["chunk_sizes"] == [[128, 128, 16]] for s in layer["scales"])


def test_the_segmentation_has_two_levels(block: Sample) -> None:
    layer = info(block.segmentation)
    assert (layer["type"], layer["data_type"]) == ("segmentation", "uint64")
    assert [s["resolution"] for s in layer["scales"]] == [[16, 16, 40], [32, 32, 40]]
    assert [s["voxel_offset"] for s in layer["scales"]] == [[2052, 1028, 101], [1026, 514, 101]]
    assert [s["size"] for s in layer["scales"]] == [[120, 120, 32], [60, 60, 32]]
    assert {s["encoding"] for s in layer["scales"]} == {"compressed_segmentation"}
    assert all(s["chunk_sizes"] == [[64, 64, 16]] for s in layer["scales"])


def test_levels_of_a_layer_begin_at_the_same_place(block: Sample) -> None:
    for cloudpath in (block.image, block.segmentation):
        corners = {
            tuple(o * r for o, r in zip(s["voxel_offset"], s["resolution"], strict=True))
            for s in info(cloudpath)["scales"]
        }
        assert len(corners) == 1


def test_segmentation_lies_within_the_image(block: Sample) -> None:
    (a, b), (c, d) = (
        [
            [(o + n) * r for o, n, r in zip(s["voxel_offset"], size, s["resolution"], strict=True)]
            for size in ([0, 0, 0], s["size"])
        ]
        for s in (info(block.image)["scales"][0], info(block.segmentation)["scales"][0])
    )
    assert all(outer < inner for outer, inner in zip(a, c, strict=True))
    assert all(outer > inner for outer, inner in zip(b, d, strict=True))


def test_coarse_image_levels_are_means(block: Sample) -> None:
    for mip in (0, 1):
        fine, coarse = read(block.image, mip).astype(int), read(block.image, mip + 1).astype(int)
        z, y, x = coarse.shape
        assert np.array_equal(coarse, (fine.reshape(z, y, 2, x, 2).sum(axis=(2, 4)) + 2) // 4)


def test_coarse_segmentation_level_is_the_mode(block: Sample) -> None:
    fine, coarse = read(block.segmentation, 0), read(block.segmentation, 1)
    z, y, x = coarse.shape
    four = fine.reshape(z, y, 2, x, 2).transpose(0, 1, 3, 2, 4).reshape(z, y, x, 4)
    votes = (four[..., :, None] == four[..., None, :]).sum(axis=-1)
    chosen = (four == coarse[..., None]).sum(axis=-1)
    assert np.array_equal(chosen, votes.max(axis=-1))


def test_ids_resemble_root_ids_and_exceed_float64(block: Sample) -> None:
    ids = np.unique(read(block.segmentation))
    cells = ids[ids != 0]
    assert ids.dtype == np.uint64
    assert len(cells) > 10
    assert cells.min() > 2**53
    assert all(str(i).startswith("864691135") and len(str(i)) == 18 for i in cells)
    assert (cells.astype(np.float64).astype(np.uint64) != cells).any()


def test_grey_values_are_like_those_of_tissue(block: Sample) -> None:
    image = read(block.image)
    assert image.dtype == np.uint8
    assert 130 < image.mean() < 190
    assert np.percentile(image, 3) < 90
    assert np.percentile(image, 90) < 230
    sections = image.mean(axis=(1, 2))
    assert sections.std() > 0.5  # sections differ a little in brightness


def test_membranes_at_the_borders_of_cells_are_dark(block: Sample) -> None:
    image, labels = read_on_one_grid(block)
    edge = borders(labels) & (labels != 0)
    dark, pale = image[edge].mean(), image[~edge].mean()
    assert dark < 115 < 145 < pale


@pytest.mark.parametrize("shift", [(0, 0, 4), (0, 0, -4), (0, 4, 0), (0, -4, 0), (3, 0, 0), (-3, 0, 0)])
def test_a_shifted_image_fits_the_segmentation_worse(block: Sample, shift: tuple[int, int, int]) -> None:
    image, labels = read_on_one_grid(block)
    edge = borders(labels)
    assert image[edge].mean() + 5 < np.roll(image, shift, axis=(0, 1, 2))[edge].mean()


def test_cells_continue_from_slice_to_slice(block: Sample) -> None:
    labels = read(block.segmentation)
    assert (labels[1:] == labels[:-1]).mean() > 0.8
    assert (labels[-1] == labels[0]).mean() < 0.8


@pytest.mark.slow
def test_two_samples_are_byte_identical(block: Sample, tmp_path: Path) -> None:
    again = sample(tmp_path / "again", shape=SMALL)
    assert digest(again.path) == digest(block.path)


def test_voxels_are_the_same_on_every_machine(tmp_path: Path) -> None:
    golden = "74102764072f51e66bf39f7ac0f521e85d2d932f16497df6821cbe71ed2b2cc1"
    assert voxel_digest(sample(tmp_path / "golden", shape=(20, 128, 192))) == golden


@pytest.mark.parametrize("shape", [(4, 64, 64), (5, 68, 132), (33, 200, 64)])
def test_samples_of_other_shapes_are_complete(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    block = sample(tmp_path / "other", shape=shape)
    assert read(block.image).shape == shape
    for mip in range(2):
        size = info(block.segmentation)["scales"][mip]["size"]
        labels = read(block.segmentation, mip)
        assert list(labels.shape) == size[::-1]
        assert labels.any()
    assert read(block.image, 2).shape == (shape[0], -(-shape[1] // 4), -(-shape[2] // 4))


def test_a_second_call_writes_nothing(block: Sample) -> None:
    before = {p: p.stat().st_mtime_ns for p in block.path.rglob("*")}
    assert sample(str(block.path), shape=SMALL) == block
    assert {p: p.stat().st_mtime_ns for p in block.path.rglob("*")} == before


def test_a_second_call_ignores_other_files_next_to_a_complete_sample(tmp_path: Path) -> None:
    block = sample(tmp_path / "block", shape=(4, 64, 64))
    (block.path / "figure.png").write_bytes(b"mine")
    assert sample(block.path, shape=(4, 64, 64)) == block
    assert (block.path / "figure.png").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", ["layer", "version"])
def test_incomplete_or_outdated_sample_is_rewritten(tmp_path: Path, damage: str) -> None:
    block = sample(tmp_path / "block", shape=(4, 64, 64))
    whole = digest(block.path)
    if damage == "layer":
        (block.path / "segmentation" / "info").unlink()
    else:
        (block.path / MARKER).write_text(json.dumps({"imageryxr_sample": 0, "shape": [4, 64, 64]}))
    assert digest(block.path) != whole
    sample(block.path, shape=(4, 64, 64))
    assert digest(block.path) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["block"]


def test_an_incomplete_sample_with_other_files_is_not_changed(tmp_path: Path) -> None:
    block = sample(tmp_path / "block", shape=(4, 64, 64))
    (block.path / "image" / "info").unlink()
    (block.path / "notes.txt").write_text("mine")
    with pytest.raises(TargetExistsError, match=r"notes\.txt"):
        sample(block.path, shape=(4, 64, 64))
    assert (block.path / "notes.txt").read_text() == "mine"


def test_a_sample_of_another_shape_is_not_changed(block: Sample) -> None:
    before = digest(block.path)
    with pytest.raises(TargetExistsError, match=r"shape \(34, 256, 256\), not \(4, 64, 64\)"):
        sample(block.path, shape=(4, 64, 64))
    assert digest(block.path) == before


@pytest.mark.parametrize("name", ["notes.txt", "image"])
def test_a_folder_with_other_files_raises(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(TargetExistsError, match="contains other files"):
        sample(tmp_path, shape=(4, 64, 64))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("marker", ["", "[]", "{}", '{"imageryxr_sample": 1, "shape": 3}'])
def test_a_folder_with_an_invalid_marker_raises(tmp_path: Path, marker: str) -> None:
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(TargetExistsError):
        sample(tmp_path, shape=(4, 64, 64))


def test_a_file_in_place_of_the_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TargetExistsError, match="is a file"):
        sample(tmp_path / "file", shape=(4, 64, 64))


def test_a_path_that_cannot_be_written_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TargetError, match="cannot be written"):
        sample(tmp_path / "file" / "block", shape=(4, 64, 64))


def test_links_that_form_a_loop_raise(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(TargetError, match="cannot be written"):
        sample(tmp_path / "loop" / "block", shape=(4, 64, 64))


def test_empty_folders_missing_parents_and_unusual_names_work(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b" / "ein Würfel, 1%"):
        block = sample(path, shape=(4, 64, 64))
        assert read(block.image).any()
        assert read(block.segmentation).any()


def test_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sample("here", shape=(4, 64, 64)).path == (tmp_path / "here").resolve()


@pytest.mark.parametrize(
    "shape",
    [(64, 1024), (3, 64, 64), (4, 62, 64), (4, 64, 66), (4, 0, 64), (4.5, 64, 64), "big", None, ("4", "64", "64")],
)
def test_invalid_shapes_raise(tmp_path: Path, shape: object) -> None:
    with pytest.raises(OptionError, match="shape="):
        sample(tmp_path / "block", shape=shape)  # type: ignore[arg-type]
    assert not (tmp_path / "block").exists()


def test_a_failed_sample_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules[sample.__module__], "_write_slices", full)
    with pytest.raises(TargetError, match="No space left"):
        sample(tmp_path / "block", shape=(4, 64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_progress_bar_is_shown_only_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sample(tmp_path / "quiet", shape=(4, 64, 64))
    assert capfd.readouterr() == ("", "")
    sample(tmp_path / "shown", shape=(4, 64, 64), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "sample" in err


def test_importing_sample_does_not_import_heavy_packages() -> None:
    code = (
        "import sys, types; package = types.ModuleType('imageryxr'); package.__path__ = sys.argv[1:]; "
        "sys.modules['imageryxr'] = package; import imageryxr.testing.sample; "
        "print(sorted({'cloudvolume', 'scipy', 'tqdm', 'dask', 'xarray'} & set(sys.modules)))"
    )
    folder = Path(sys.modules[sample.__module__].__file__ or "").parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_default_sample_has_the_documented_properties(sample_path: Path) -> None:
    block = sample(sample_path)
    assert block.shape == (64, 1024, 1024)
    image, labels = read_on_one_grid(block)
    assert image.shape == labels.shape == (60, 480, 480)
    scales = info(block.segmentation)["scales"]
    assert [s["voxel_offset"] for s in scales] == [[2064, 1040, 102], [1032, 520, 102]]
    ids, sizes = np.unique(labels, return_counts=True)
    assert 180 < len(ids) < 350
    assert (np.diff(ids) == 1).any()  # as float64 these two ids are equal
    assert 0.01 < sizes[ids == 0] / labels.size < 0.08
    cells = sizes[ids != 0]
    assert cells.max() > 30 * np.median(cells)
    edge = borders(labels) & (labels != 0)
    assert image[edge].mean() < 115 < 145 < image[~edge].mean()
