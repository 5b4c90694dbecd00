"""Unsupported formats: the error names the format and contains code that opens the file lazily."""

from __future__ import annotations

import gzip
import json
import re
import struct
from pathlib import Path

import dask.array as da
import numpy as np
import psutil
import pytest
from PIL import Image

import imageryxr as ix
from imageryxr.errors import SourceError
from imageryxr.sources import other_formats

VALUES = np.random.default_rng(0).integers(0, 2**16, (6, 20, 24), dtype="uint16")


def write_h5(folder: Path, values: np.ndarray) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("volumes/raw", data=values, chunks=(2, 8, 8))
        file.create_dataset("names", data=np.arange(3))
    return folder / "x.h5"


def write_tif(folder: Path, values: np.ndarray) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(folder / "x.tif", values)
    return folder / "x.tif"


def write_ome_tif(folder: Path, values: np.ndarray) -> Path:
    """Write a tiled pyramid with a channel axis."""
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(folder / "x.ome.tif", ome=True) as out:
        out.write(values[None], subifds=1, tile=(16, 16), metadata={"axes": "CZYX"})
        out.write(values[None, :, ::2, ::2], subfiletype=1, tile=(16, 16))
    return folder / "x.ome.tif"


def write_nrrd(folder: Path, values: np.ndarray) -> Path:
    head = f"NRRD0004\n# made by hand\ntype: uint16\ndimension: 3\nsizes: {' '.join(map(str, values.shape[::-1]))}\nendian: big\nencoding: raw\nspace: left-posterior-superior\n\n"
    (folder / "x.nrrd").write_bytes(head.encode() + values.astype(">u2").tobytes())
    return folder / "x.nrrd"


def write_mrc(folder: Path, values: np.ndarray) -> Path:
    head = bytearray(1024)
    head[:16] = struct.pack("<4i", *values.shape[::-1], 6)
    head[92:96] = struct.pack("<i", 80)
    (folder / "x.mrc").write_bytes(bytes(head) + bytes(80) + values.tobytes())
    return folder / "x.mrc"


def write_npy(folder: Path, values: np.ndarray) -> Path:
    np.save(folder / "x.npy", values)
    return folder / "x.npy"


def write_n5(folder: Path, values: np.ndarray) -> Path:
    ts = pytest.importorskip("tensorstore")
    metadata = {
        "dimensions": values.shape[::-1],
        "blockSize": [16, 16, 4],
        "dataType": "uint16",
        "compression": {"type": "gzip"},
    }
    (folder / "x.n5").mkdir()
    (folder / "x.n5" / "attributes.json").write_text('{"n5": "2.0.0"}')
    for level, voxels in enumerate((values, values[:, ::2, ::2])):
        spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{folder}/x.n5/c0/s{level}/"}}
        stored = {**metadata, "dimensions": voxels.shape[::-1]}
        ts.open({**spec, "metadata": stored}, create=True).result().write(voxels.T).result()
    return folder / "x.n5"


def write_slices(folder: Path, values: np.ndarray) -> Path:
    (folder / "slices").mkdir()
    for i, plane in enumerate(values):
        Image.fromarray(plane).save(folder / "slices" / f"z{i:03d}.png")
    return folder / "slices"


def write_tiff_slices(folder: Path, values: np.ndarray) -> Path:
    tifffile = pytest.importorskip("tifffile")
    (folder / "slices").mkdir()
    for i, plane in enumerate(values):
        tifffile.imwrite(folder / "slices" / f"z{i:03d}.tif", plane)
    return folder / "slices"


def write_npz(folder: Path, values: np.ndarray) -> Path:
    np.savez_compressed(folder / "x.npz", names=np.arange(3), volume=values, half=values[::2])
    return folder / "x.npz"


WRITERS = {
    "an HDF5 file": write_h5, "a TIFF file": write_tif, "a TIFF file of a pyramid": write_ome_tif, "an NRRD file": write_nrrd,
    "an MRC file": write_mrc, "a NumPy file": write_npy, "a NumPy archive": write_npz, "an N5 container": write_n5, "a folder of slices": write_slices,
    "a folder of slices in TIFF": write_tiff_slices,
}  # fmt: skip


def run_code_in(message: str) -> dict[str, object]:
    """Run the code in an error message unchanged, and return the variables that it defines."""
    names: dict[str, object] = {}
    exec(message.partition("in place of (8, 8, 40): ")[2], names)
    return names


@pytest.mark.fast_forms(9)
@pytest.mark.parametrize("prefix", ["", "precomputed://", "zarr://", "file://"])
@pytest.mark.parametrize("called", WRITERS)
def test_the_code_in_the_error_opens_the_file_lazily(tmp_path, called, prefix):
    path = WRITERS[called](tmp_path, VALUES)
    with pytest.raises(SourceError) as caught:
        ix.open_image(f"{prefix}{path}")
    message = str(caught.value)
    assert re.search(
        rf"is {called.partition(' of a pyramid')[0].partition(' in TIFF')[0]}, an unsupported format", message
    )
    assert "pip install" not in message
    em = run_code_in(message)["em"]
    assert isinstance(em.data, da.Array)
    assert em.dims == ("z", "y", "x")
    opened = ix.open_image(em)
    assert opened.attrs["resolution"] == (8, 8, 40)
    np.testing.assert_array_equal(opened.values, VALUES)
    np.testing.assert_array_equal(
        em.imagery.crop(ix.BBox((3, 2, 1), (9, 7, 4), resolution=(8, 8, 40))).values, VALUES[1:4, 2:7, 3:9]
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_slices_are_ordered_by_the_numbers_in_their_names(tmp_path, suffix):
    """Names without leading zeros, as from the pattern em_{z_index}.png, do not sort by name: 9 must precede 10."""
    if suffix == "tif":
        pytest.importorskip("tifffile")
    (tmp_path / "stack12").mkdir()
    for i in (10, 8, 100, 9, 99):
        Image.fromarray(np.full((5, 7), i, np.uint8)).save(tmp_path / "stack12" / f"em_{i}.{suffix}")
    with pytest.raises(SourceError) as caught:
        ix.open_image(tmp_path / "stack12")
    assert run_code_in(str(caught.value))["em"][:, 0, 0].values.tolist() == [8, 9, 10, 99, 100]


def test_the_code_in_the_error_reads_nothing_until_an_array_is_computed(tmp_path):
    """The file has 8 GB, of which the file system stores only the header."""
    head = bytearray(1024)
    head[:16] = struct.pack("<4i", 2000, 2000, 2000, 0)
    with open(tmp_path / "x.mrc", "wb") as file:
        file.write(head)
        file.truncate(1024 + 2000**3)
    with pytest.raises(SourceError) as caught:
        ix.open_image(tmp_path / "x.mrc")
    before = psutil.Process().memory_info().rss
    em = run_code_in(str(caught.value))["em"]
    assert em.shape == (2000, 2000, 2000)
    assert int(em[1000, 1000, 1000]) == 0
    assert psutil.Process().memory_info().rss - before < 1e9


@pytest.mark.parametrize("values", [VALUES[0], VALUES[None], VALUES[None, None]])
@pytest.mark.parametrize("write", [write_npy, write_npz, write_tif])
def test_arrays_with_other_than_three_axes_open_as_three(tmp_path, write, values):
    path = write(tmp_path, values)
    with pytest.raises(SourceError) as caught:
        ix.open_image(path)
    em = run_code_in(str(caught.value))["em"]
    assert em.ndim == 3
    np.testing.assert_array_equal(em.values.squeeze(), values.squeeze())


def test_of_several_volumes_in_an_archive_the_first_opens(tmp_path):
    np.savez(tmp_path / "x.npz", em=VALUES, supervoxels=VALUES + 1, half=VALUES[::2])
    with pytest.raises(SourceError) as caught:
        ix.open_image(tmp_path / "x.npz")
    np.testing.assert_array_equal(run_code_in(str(caught.value))["em"], VALUES)


@pytest.mark.parametrize(("module", "write"), [("h5py", write_h5), ("tensorstore", write_n5)])
def test_the_error_names_a_missing_package_to_install(tmp_path, monkeypatch, module, write):
    path = write(tmp_path, VALUES)
    inner = other_formats.find_spec
    monkeypatch.setattr(other_formats, "find_spec", lambda name: None if name == module else inner(name))
    assert f"pip install {module}, then run" in other_formats.format_problem(str(path))


def test_the_error_for_compressed_nrrd_and_nifti_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(other_formats, "find_spec", lambda name: None)
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 3 2\nencoding: gzip\n\n"
    (tmp_path / "x.nrrd").write_bytes(head + gzip.compress(bytes(24)))
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(352)))
    assert "pip install pynrrd, then run" in other_formats.format_problem(str(tmp_path / "x.nrrd"))
    assert "pip install nibabel, then run" in other_formats.format_problem(str(tmp_path / "x.nii.gz"))


@pytest.mark.parametrize("name", ["x.h5", "x.tif", "x.nrrd", "x.mrc", "x.npy", "x.npz", "x.png"])
def test_a_file_whose_content_does_not_match_its_name_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0\1\2 nothing")
    with pytest.raises(SourceError, match="its header is not valid: .* Copy or download it again"):
        ix.open_image(tmp_path / name)


def test_a_file_of_an_unknown_format_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SourceError, match="is a file, but volumes are folders"):
        ix.open_image(tmp_path / "notes.txt")
    with pytest.raises(SourceError, match="is an HDF5 file, an unsupported format; download it"):
        ix.open_image("https://127.0.0.1:1/x.h5")


def test_a_layer_in_a_folder_named_like_an_unsupported_file_is_opened(tmp_path):
    folder = tmp_path / "layer.tif"
    (folder / "a").mkdir(parents=True)
    scale = {"key": "a", "size": [8, 6, 4], "resolution": [8, 8, 40], "chunk_sizes": [[8, 6, 4]]}
    (folder / "info").write_text(json.dumps({"data_type": "uint8", "scales": [scale]}))
    (folder / "a" / "0-8_0-6_0-4").write_bytes(bytes(range(192)))
    (folder / "slice.png").write_bytes(b"")
    assert ix.open_image(folder).values.ravel()[5] == 5
