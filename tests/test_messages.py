"""Errors for invalid input state what was given and what to write instead."""

from __future__ import annotations

import numpy as np
import pytest

import imageryxr as ix
from tests.conftest import volume
from tests.support.volumes import FINE, IMAGE, as_source

DEEP = volume(np.zeros((2, 3, 4), np.uint16), (8, 8, 40))
EM = as_source(IMAGE)

CASES = {
    "unknown scheme": (lambda s: ix.open_image("ftp://host/em"), ix.errors.SourceError, ValueError, ["'ftp'", "precomputed://"]),
    "no info": (lambda s: ix.open_image("precomputed://file:///nowhere/em"), ix.errors.SourceNotFoundError, FileNotFoundError, ["/nowhere/em/info"]),
    "nothing there": (lambda s: ix.open_image("/nowhere/em"), ix.errors.SourceNotFoundError, FileNotFoundError, ["/nowhere/em", "no such folder"]),
    "no such mip": (lambda s: ix.open_image(s.image, mip=9), ix.errors.MipError, KeyError, ["mip=9", "0 (8 × 8 × 40 nm)", "2 (32 × 32 × 40 nm)"]),
    "no such resolution": (lambda s: ix.open_image(s.image, mip=(5, 5, 40)), ix.errors.MipError, KeyError, ["(5, 5, 40)", "0 (8"]),
    "a level by a word": (lambda s: ix.open_image(s.image, mip="coarsest"), ix.errors.MipError, KeyError, ["mip='coarsest'", "2 (32 × 32 × 40 nm), by its number or resolution"]),
    "a level by a float": (lambda s: ix.open_image(s.image, mip=1.0), ix.errors.MipError, KeyError, ["mip=1.0", "1 (16 × 16 × 40 nm)"]),
    "wholly outside": (lambda s: ix.open_image(s.image, bbox=ix.BBox((0, 0, 0), (9, 9, 9))), ix.errors.OutOfVolumeError, ValueError, ["wholly outside", "(4,096, 2,048, 100)"]),
    "voxels given as nm": (lambda s: ix.open_image(s.image, bbox=ix.BBox((4200, 2200, 110), (4300, 2300, 111))), ix.errors.OutOfVolumeError, ValueError, ["resolution=(8, 8, 40)"]),
    "nm given as voxels": (lambda s: ix.open_image(s.image, bbox=ix.BBox((33600, 17600, 4400), (34400, 18400, 4440), resolution=(8, 8, 40))), ix.errors.OutOfVolumeError, ValueError, ["resolution=(1, 1, 1)"]),
    "corners as (z, y, x)": (lambda s: ix.open_image(s.image, bbox=ix.BBox((110, 2200, 4200), (111, 2300, 4300), resolution=(8, 8, 40))), ix.errors.OutOfVolumeError, ValueError, ["other way round: points are (x, y, z)"]),
    "corners and voxels as (z, y, x)": (lambda s: ix.open_image(s.image, bbox=ix.BBox((110, 2200, 4200), (111, 2300, 4300), resolution=(40, 8, 8))), ix.errors.OutOfVolumeError, ValueError, ["other way round, with resolution=(8, 8, 40): points are (x, y, z)"]),
    "corners as (z, y, x), as if in nm": (lambda s: ix.open_image(s.image, bbox=ix.BBox((110, 2200, 4200), (111, 2300, 4300))), ix.errors.OutOfVolumeError, ValueError, ["other way round, with resolution=(8, 8, 40)"]),
    "voxels as (z, y, x)": (lambda s: ix.open_image(s.image, bbox=ix.BBox((4200, 2200, 110), (4300, 2300, 111), resolution=(40, 8, 8))), ix.errors.OutOfVolumeError, ValueError, ["give resolution=(8, 8, 40)"]),
    "one number for three": (lambda s: ix.BBox((1, 2, 3), (4, 5, 6), resolution=8), ix.errors.BoxError, ValueError, ["resolution=(8, 8, 8)", "resolution=(8, 8, 40)"]),
    "two numbers for three": (lambda s: ix.BBox((1, 2, 3), (4, 5, 6), resolution=(8, 8)), ix.errors.BoxError, ValueError, ["write e.g. resolution=(8, 8, 40)"]),
    "one number for a size": (lambda s: ix.BBox.around((1, 2, 3), 64), ix.errors.BoxError, ValueError, ["write e.g. size=(512, 512)"]),
    "no box": (lambda s: ix.crop(EM, ((0, 0, 0), (1, 1, 1))), ix.errors.BoxError, ValueError, ["BBox(lo, hi"]),
    "segmentation as image": (lambda s: ix.open_image(s.segmentation), ix.errors.LayerError, TypeError, ["open_segmentation"]),
    "float segmentation": (lambda s: ix.overlay(IMAGE, FINE.astype(float)), ix.errors.LayerError, TypeError, ["float64", "uint64"]),
    "unnamed deep image": (lambda s: ix.to_rgba(DEEP.rename(None)), ix.errors.LayerError, TypeError, ["the image has dtype uint16"]),
    "unnamed image as ids": (lambda s: ix.unique_ids(IMAGE.rename(None)), ix.errors.LayerError, TypeError, ["the array is an image"]),
    "unnamed array outside": (lambda s: ix.crop(IMAGE.rename(None), ix.BBox((-9, -9, -9), (-8, -8, -8))), ix.errors.OutOfVolumeError, ValueError, ["wholly outside the array, which"]),
    "deep image": (lambda s: ix.to_rgba(DEEP), ix.errors.LayerError, TypeError, ["uint16", "contrast_limits=(low, high)"]),
    "unaligned": (lambda s: ix.overlay(IMAGE, FINE.isel(x=slice(1, None))), ix.errors.GridMismatchError, ValueError, ["align("]),
    "bad colour": (lambda s: ix.overlay(IMAGE, FINE, colors={5: "rde"}), ix.errors.ColorError, ValueError, ["'rde'"]),
    "bad palette": (lambda s: ix.overlay(IMAGE, FINE, colors="tab11"), ix.errors.ColorError, ValueError, ["'tab11'"]),
    "no colour": (lambda s: ix.overlay(IMAGE, FINE, ids=[5, 6], colors={5: "red"}), ix.errors.ColorError, ValueError, ["6"]),
    "float id": (lambda s: ix.select_ids(FINE, [1.0]), ix.errors.SegmentError, KeyError, ["1.0", "2**53"]),
    "negative id": (lambda s: ix.select_ids(FINE, [-1]), ix.errors.SegmentError, KeyError, ["-1"]),
    "averaged ids": (lambda s: ix.regrid(FINE, IMAGE, method="linear"), ix.errors.OptionError, ValueError, ["'nearest' or 'mode'"]),
    "alpha": (lambda s: ix.overlay(IMAGE, FINE, alpha=51), ix.errors.OptionError, ValueError, ["51", "0 (nothing) to 1"]),
    "width": (lambda s: ix.outline(FINE, width=0), ix.errors.OptionError, ValueError, ["width=0", "above 0"]),
    "side": (lambda s: ix.Outline(side="outside"), ix.errors.OptionError, ValueError, ["'outside'", "'out' or 'in'"]),
    "outline": (lambda s: ix.overlay(IMAGE, FINE, outline="thick"), ix.errors.OptionError, ValueError, ["'thick'", "outline=3"]),
    "policy": (lambda s: ix.open_image(s.image, missing="black"), ix.errors.OptionError, ValueError, ["'black'", "'fill'"]),
    "timestamp": (lambda s: ix.open_segmentation(s.segmentation, timestamp="2024-01-01"), ix.errors.OptionError, ValueError, ["timestamp"]),
    "bare numpy": (lambda s: ix.open_image(np.zeros((2, 3, 4))), ix.errors.GridError, ValueError, ["coordinates in nm", "Grid("]),
    "too many dims": (lambda s: ix.to_rgba(ix.split_masks(FINE, [1])), ix.errors.LayerError, TypeError, ["'segment'", ".isel(segment=0)"]),
    "target format": (lambda s: ix.export(EM, "out.jpg"), ix.errors.OptionError, ValueError, ["'out.jpg'", ".ome.zarr"]),
    "no axis": (lambda s: ix.export(EM, "out.png"), ix.errors.OptionError, ValueError, ["{z:04d}"]),
    "same name": (lambda s: ix.export(EM, "{z_nm:.0e}.png"), ix.errors.OptionError, ValueError, ["the same name"]),
    "ids as png": (lambda s: ix.export(FINE, "z{z}.png"), ix.errors.OptionError, ValueError, ["overlay"]),
    "remote target": (lambda s: ix.export(EM, "ftp://b/o.zarr"), ix.errors.OptionError, ValueError, ["'ftp'", "local path", "s3://"]),
    "dataset": (lambda s: ix.export(IMAGE.to_dataset(name="image"), "o.zarr"), ix.errors.LayerError, TypeError, ["DataArray"]),
    "far apart": (lambda s: ix.align(IMAGE, FINE.assign_coords(x=FINE.x + 1e6)), ix.errors.GridMismatchError, ValueError, ["do not overlap"]),
    "no graphene table": (lambda s: ix.open_segmentation("graphene://https://h/tables/t"), ix.errors.SourceError, ValueError, ["graphene://https://HOST/segmentation/table/TABLE"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_error_has_its_class_and_names_the_correction(case, sample):
    act, ours, builtin, words = CASES[case]
    with pytest.raises(ours) as caught:
        act(sample)
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, ix.ImageryError)
    for word in words:
        assert word in str(caught.value)


def test_the_error_for_a_missing_codec_names_the_package_to_install(tmp_path, monkeypatch):
    from cloudvolume import CloudVolume

    from imageryxr.sources.precomputed import source

    info = CloudVolume.create_new_info(1, "segmentation", "uint64", "crackle", [8, 8, 40], [0, 0, 0], [8, 8, 8])
    CloudVolume(f"file://{tmp_path}", info=info).commit_info()
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(ix.errors.CodecError, match=r"pip install crackle-codec, or pip install 'imageryxr\[codecs\]'"):
        ix.open_segmentation(tmp_path)


@pytest.mark.parametrize("link", ['{"layers": "abc', '{"layers": [{"a": "b]'])
def test_the_error_for_a_truncated_link_names_the_character(link):
    with pytest.raises(ix.errors.LinkError, match=r"Unterminated string starting at character \d+;"):
        ix.open_neuroglancer(link)


def test_dir_lists_only_public_names():
    listed = dir(ix)
    assert {name for name in listed if not name.startswith("__")} == set(ix.__all__)
    assert "__version__" in listed


def test_the_feature_of_future_is_not_an_attribute_of_the_package():
    with pytest.raises(AttributeError, match="has no attribute 'annotations'"):
        _ = ix.annotations
