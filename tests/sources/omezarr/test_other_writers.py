"""OME-Zarr written by other tools, and groups of images."""

from __future__ import annotations

import json
import zipfile

import dask.array
import numpy as np
import pytest
import xarray
import zarr

import imageryxr
from imageryxr.errors import ChunkReadError, CodecError, LayerError, SourceError
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.source_suite import noise
from tests.support.zarr_metadata import BYTES, files_v2, files_v3, image, write

SHAPE = (4, 8, 8)


def write_with_chunk(folder, files, data: bytes):
    place = write(folder, files)
    chunk = folder / "0" / ("c/0/0/0" if "zarr.json" in files else "0/0/0")
    chunk.parent.mkdir(parents=True, exist_ok=True)
    chunk.write_bytes(data)
    return place


@pytest.mark.parametrize("dtype", [">u1", "<u1", "|u1", "uint8", "u1"])
def test_uint8_is_read_with_any_stated_byte_order(tmp_path, dtype):
    values = noise(SHAPE)
    place = write_with_chunk(tmp_path, files_v2(dtype=dtype), values.tobytes())
    np.testing.assert_array_equal(imageryxr.open_image(place).values, values)


@pytest.mark.parametrize("version", [2, 3])
def test_unknown_options_of_a_codec_are_ignored(tmp_path, version):
    from numcodecs import Blosc

    values = noise(SHAPE)
    options = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": 1, "blocksize": 0, "nthreads": 4}
    old = {"id": "blosc", **options, "shuffle": 1}
    files = (
        files_v2(compressor=old)
        if version == 2
        else files_v3(codecs=[BYTES, {"name": "blosc", "configuration": options}])
    )
    place = write_with_chunk(tmp_path, files, Blosc("zstd", 1, 1).encode(values))
    np.testing.assert_array_equal(imageryxr.open_image(place).values, values)


def test_a_codec_that_runs_code_is_an_error(tmp_path):
    import pickle

    place = write_with_chunk(tmp_path, files_v2(compressor={"id": "pickle"}), pickle.dumps(noise(SHAPE)))
    with pytest.raises(CodecError, match="'pickle', which would run code"):
        imageryxr.open_image(place)


def test_jpeg_xl_of_imagecodecs_is_decoded(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    values = noise((1, 8, 8))
    files = files_v2(shape=[1, 8, 8], chunks=[1, 8, 8], compressor={"id": "imagecodecs_jpegxl"})
    place = write_with_chunk(tmp_path, files, imagecodecs.jpegxl_encode(values[0], lossless=True))
    np.testing.assert_array_equal(imageryxr.open_image(place).values, values)


@pytest.mark.parametrize("path", ["0", "./0", "/0", "0/", 0, ".//0"])
def test_paths_of_datasets_may_have_any_form(tmp_path, path):
    files = files_v2({"multiscales": [image(version="0.4")]})
    files[".zattrs"]["multiscales"][0]["datasets"] = [{**image()["datasets"][0], "path": path}]
    place = write_with_chunk(tmp_path, files, noise(SHAPE).tobytes())
    np.testing.assert_array_equal(imageryxr.open_image(place, missing="raise").values, noise(SHAPE))


@pytest.mark.parametrize(
    ("units", "resolution"),
    [
        (["micrometers"] * 3, (8, 8, 40)), (["micrometre"] * 3, (8, 8, 40)), ([None, "µm", "um"], (8, 8, 40)),
        (["", "micrometer", "micrometer"], (8, 8, 40)), (["micrometer", " ", None], (8, 8, 40)),
        (["nanometer", "micrometer", "micrometer"], (8, 8, 0.04)),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*states no unit for")
def test_an_axis_without_a_unit_uses_the_unit_of_the_others(tmp_path, units, resolution):
    axes = [{"name": n, "type": "space", "unit": u} for n, u in zip("zyx", units, strict=True)]
    steps = [{"type": "scale", "scale": [0.04, 0.008, 0.008]}]
    files = files_v2({"multiscales": [{**image(steps), "axes": axes}]})
    assert imageryxr.open_image(write(tmp_path, files)).attrs["resolution"] == resolution


@pytest.mark.parametrize("unit", [{"units": "micrometer"}, {"unit": None, "units": "µm"}])
def test_the_unit_of_an_axis_may_be_called_units(tmp_path, unit):
    axes = [{"name": n, "type": "space", **unit} for n in "zyx"]
    files = files_v2({"multiscales": [{**image([{"type": "scale", "scale": [0.04, 0.008, 0.008]}]), "axes": axes}]})
    assert imageryxr.open_image(write(tmp_path, files)).attrs["resolution"] == (8, 8, 40)


def test_chunks_that_are_absent_for_lack_of_a_separator_are_an_error(tmp_path):
    files = files_v2()
    del files["0/.zarray"]["dimension_separator"]
    place = write_with_chunk(tmp_path, files, noise(SHAPE).tobytes())
    with pytest.raises(ChunkReadError, match="has no dimension_separator.*#dimension_separator=/"):
        imageryxr.open_image(place).load()
    opened = imageryxr.open_image(f"zarr2://{place}#dimension_separator=/")
    np.testing.assert_array_equal(opened.values, noise(SHAPE))


@pytest.mark.parametrize(
    ("window", "limits"),
    [
        ({"start": 0, "end": None}, None), ({"start": 5, "end": 5}, None), ({"start": 9, "end": 1}, None), (None, None), ("x", None),
        ({"start": "0", "end": "100"}, (0.0, 100.0)), ({"start": 3, "end": 7.5}, (3.0, 7.5)), ({"start": 0, "end": float("nan")}, None),
    ],
)  # fmt: skip
def test_contrast_limits_need_both_ends_of_the_window(tmp_path, window, limits):
    files = files_v2({"multiscales": [image(version="0.4")], "omero": {"channels": [{"window": window}]}})
    assert imageryxr.open_image(write(tmp_path, files)).attrs.get("contrast_limits") == limits


# ---------------------------------------------------------------------------------------------------------
# kinds and groups


def one_image(folder, values, **kwargs):
    write_ome(folder, [values], {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]}, **kwargs)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_an_image_in_a_folder_called_labels_is_an_image(tmp_path, dtype):
    values = noise(SHAPE).astype(dtype)
    one_image(tmp_path / "labels" / "em.ome.zarr", values)
    np.testing.assert_array_equal(imageryxr.open_image(tmp_path / "labels" / "em.ome.zarr").values, values)


def test_float_labels_open_as_an_image(tmp_path):
    values = noise(SHAPE).astype("float32")
    one_image(tmp_path, values, more={"image-label": {}})
    np.testing.assert_array_equal(imageryxr.open_image(tmp_path).values, values)
    assert list(imageryxr.open_multiscale(tmp_path)["0"].data_vars) == ["image"]
    with pytest.raises(LayerError, match="open_image"):
        imageryxr.open_segmentation(tmp_path)


@pytest.mark.parametrize(("name", "inner"), [("em.ozx", ""), ("em.zarr.zip", ""), ("em.zarr.zip", "em.zarr/")])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_zip_archive_opens_as_a_folder_does(tmp_path, name, inner, version):
    one_image(tmp_path / "folder", noise(SHAPE), version=version)
    one_image(tmp_path / "folder" / "sub" / "cells", noise(SHAPE, "uint64"), version=version, more={"image-label": {}})
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for file in sorted(p for p in (tmp_path / "folder").rglob("*") if p.is_file()):
            archive.write(file, inner + str(file.relative_to(tmp_path / "folder")))
    em = imageryxr.open_image(tmp_path / name)
    np.testing.assert_array_equal(em.values, noise(SHAPE))
    np.testing.assert_array_equal(imageryxr.open_image(em.attrs["source"]).values, noise(SHAPE))
    cells = imageryxr.open_segmentation(tmp_path / name / inner / "sub" / "cells")
    np.testing.assert_array_equal(cells.values, noise(SHAPE, "uint64"))
    piped = imageryxr.open_segmentation(f"file://{tmp_path / name}|zip:{inner}|zarr:sub/cells/")
    np.testing.assert_array_equal(piped.values, noise(SHAPE, "uint64"))


def test_a_damaged_zip_archive_is_a_source_error(tmp_path):
    one_image(tmp_path / "folder", noise(SHAPE))
    with zipfile.ZipFile(tmp_path / "em.ozx", "w") as archive:
        archive.write(tmp_path / "folder" / "zarr.json", "zarr.json")
    data = (tmp_path / "em.ozx").read_bytes()
    (tmp_path / "em.ozx").write_bytes(data[:40] + b"XX" + data[42:])
    with pytest.raises(SourceError):
        imageryxr.open_image(tmp_path / "em.ozx")


def addresses_in(message: str) -> list[str]:
    return [word.strip(",;") for word in message.split() if word.startswith("zarr://")][1:]


@pytest.mark.parametrize("kind", ["plate", "well", "bioformats2raw", "plain"])
def test_the_error_for_a_group_of_images_contains_an_address_that_opens(tmp_path, kind):
    place = {"plate": "A/1/7", "well": "7", "bioformats2raw": "7", "plain": "em"}[kind]
    one_image(tmp_path / place, noise(SHAPE), version="0.4")
    well = {"well": {"images": [{"path": "7"}]}}
    attributes = {"plate": {"plate": {"wells": [{"path": "A/1"}]}}, "well": well, "plain": {}}.get(
        kind, {"bioformats2raw.layout": 3}
    )
    for folder, attrs in ((tmp_path, attributes), (tmp_path / "A" / "1", well), (tmp_path / "OME", {"series": ["7"]})):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps(attrs))
    with pytest.raises(SourceError) as caught:
        imageryxr.open_image(tmp_path)
    (address,) = addresses_in(str(caught.value))
    np.testing.assert_array_equal(imageryxr.open_image(address).values, noise(SHAPE))


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 4, 8, 8)])
def test_the_code_in_the_error_for_a_bare_array_runs_and_is_lazy(tmp_path, shape):
    zarr.create_array(str(tmp_path / "a"), shape=shape, chunks=shape, dtype="u1")[...] = noise(shape)
    with pytest.raises(SourceError, match="bare Zarr array") as caught:
        imageryxr.open_image(tmp_path / "a")
    lines = str(caught.value).partition("add coordinates: ")[2].partition(", with the size")[0]
    names = {"dask": dask, "xarray": xarray, "imageryxr": imageryxr}
    exec(lines, names)
    assert isinstance(names["em"].data, dask.array.Array)
    np.testing.assert_array_equal(names["em"].values, noise(shape) if len(shape) == 3 else noise(shape)[0])
    assert imageryxr.open_image(names["em"]).attrs["resolution"] == (8, 8, 40)
