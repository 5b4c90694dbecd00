"""Resolution of addresses: Neuroglancer pipelines, Zarr versions and invalid paths."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from dask.base import tokenize

import imageryxr as ix
from imageryxr.errors import AddressError, SourceError
from imageryxr.sources.resolve import resolve_source
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.source_suite import noise, serving

EM, CELLS = noise((8, 16, 16), "uint8", 1), noise((8, 16, 16), "uint32", 2)
VERSIONS = {2: "0.4", 3: "0.5"}


def write(folder, values, version, **more):
    scale = (40.0, 8.0, 8.0)
    multiscale = {"axes": axes_of("zyx"), "datasets": [level("0", scale, scale)]}
    write_ome(folder, [values], multiscale, version=VERSIONS[version], **more)


@pytest.fixture(params=[2, 3])
def root(tmp_path, request):
    write(tmp_path / "root.zarr", EM, request.param)
    write(tmp_path / "root.zarr" / "labels" / "my cells", CELLS, request.param, more={"image-label": {}})
    return tmp_path / "root.zarr", request.param


@pytest.mark.fast_forms(3)
@pytest.mark.parametrize("inner", ["labels/my cells/", "labels/my cells", "/labels/my cells"])
def test_the_path_after_the_format_of_a_pipeline_is_opened(root, inner):
    folder, version = root
    with serving(folder.parent) as server:
        for place in (f"file://{folder}/", f"{folder}", f"{server.url}/root.zarr/"):
            for name in ("zarr", f"zarr{version}"):
                seg = ix.open_segmentation(f"{place}|{name}:{inner}")
                np.testing.assert_array_equal(seg.values, CELLS)
                again = ix.open_segmentation(seg.attrs["source"])
                np.testing.assert_array_equal(again.values, CELLS)
                np.testing.assert_array_equal(ix.open_image(f"{place}|{name}:").values, EM)


def test_sources_of_different_inner_paths_have_different_names_and_tokens(root):
    folder, version = root
    sources = [resolve_source(f"{folder}|zarr{v}:{i}", None) for v in ("", version) for i in ("", "labels/my cells")]
    assert len({source.name for source in sources}) == 4
    assert len({tokenize(source) for source in sources[:2]}) == 2
    link = {
        "layers": [{"type": "segmentation", "name": "s", "source": f"file://{folder}/|zarr{version}:labels/my cells/"}]
    }
    tree = ix.open_neuroglancer(link, allow_local=True)
    np.testing.assert_array_equal(tree["s"].segmentation.values, CELLS)
    back = ix.open_neuroglancer(ix.neuroglancer_link(tree, allow_local=True), allow_local=True)
    np.testing.assert_array_equal(back["s"].segmentation.values, CELLS)


def test_the_zarr_version_in_an_address_is_opened(tmp_path):
    for version, values in ((2, EM), (3, EM + 1)):
        write(tmp_path / f"v{version}", values, version)
    shutil.copytree(tmp_path / "v2", tmp_path / "both")
    shutil.copytree(tmp_path / "v3", tmp_path / "both", dirs_exist_ok=True)
    for version, values in ((2, EM), (3, EM + 1)):
        for address in (f"{tmp_path}/both|zarr{version}:", f"zarr{version}://{tmp_path}/both"):
            image = ix.open_image(address)
            np.testing.assert_array_equal(image.values, values)
            assert image.attrs["source"] == f"zarr{version}://file://{tmp_path}/both"
        other = 5 - version
        with pytest.raises(SourceError, match=rf"no Zarr v{other} image at .*but Zarr v{version}.*zarr{version}://"):
            ix.open_image(f"{tmp_path}/v{version}|zarr{other}:")


def test_the_address_supplies_a_separator_that_the_metadata_lack(tmp_path):
    write(tmp_path / "x", EM, 2, chunk_key_encoding={"name": "v2", "separator": "/"})
    zarray = tmp_path / "x" / "0" / ".zarray"
    document = json.loads(zarray.read_text())
    del document["dimension_separator"]
    zarray.write_text(json.dumps(document))
    for address in (
        f"{tmp_path}/x|zarr2:#dimension_separator=/",
        f"zarr://{tmp_path}/x?dimension_separator=/",
        f"zarr2://file://{tmp_path}/x#dimension_separator=%2F",
    ):
        image = ix.open_image(address)
        np.testing.assert_array_equal(image.values, EM)
        np.testing.assert_array_equal(ix.open_image(image.attrs["source"]).values, EM)
    zarray.write_text(json.dumps({**document, "dimension_separator": "/"}))
    with pytest.raises(SourceError, match=r"has dimension_separator='/'.*leave #dimension_separator=\. out"):
        ix.open_image(f"{tmp_path}/x|zarr:#dimension_separator=.")
    write(tmp_path / "y", EM, 3)
    with pytest.raises(SourceError, match="is Zarr v3.*leave #dimension_separator=/ out"):
        ix.open_image(f"{tmp_path}/y|zarr:#dimension_separator=/")


def test_paths_that_the_file_system_rejects_are_errors(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    places = [f"{tmp_path}/{'x' * 300}", "x/" * 3000, f"{tmp_path}/a", f"{tmp_path}/a/inner", f"file://{tmp_path}/a"]
    for place in places:
        for form in ("", "precomputed://", "zarr://", "zarr2://"):
            for way in (ix.open_image, ix.open_segmentation, ix.open_multiscale):
                with pytest.raises(ix.errors.SourceError) as caught:
                    way(form + place)
                assert len(str(caught.value)) < 1500
    with pytest.raises(AddressError, match="cannot be opened: Too many levels of symbolic links"):
        ix.open_image(f"{tmp_path}/a")


def test_a_deleted_working_folder_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(AddressError, match="is not a valid path"):
        ix.open_image("em")


def test_a_path_of_bytes_is_an_error():
    class Odd:
        def __fspath__(self):
            return b"/tmp"

    assert isinstance(Odd(), os.PathLike)
    with pytest.raises(ix.errors.SourceError):
        ix.open_image(Odd())
