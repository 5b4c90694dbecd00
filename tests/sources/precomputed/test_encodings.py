"""Every encoding of precomputed layers, with every data type and number of channels that the format allows.

Other libraries (TensorStore, imagecodecs, Pillow, CloudVolume) write the layers and return the expected values.
The table of the format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.rst.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import ChunkReadError, CodecError, SourceError
from imageryxr.sources.codecs.images import picture_problem
from imageryxr.sources.resolve import resolve_source
from tests.support.encodings import CHUNK, OFFSET, SIZE, values, write
from tests.support.slow import slow_except, slow_unless
from tests.support.source_suite import serving

BOXES = [IndexBox((0, 0, 0), SIZE[::-1]), IndexBox((4, 10, 12), (5, 11, 13)), IndexBox((1, 3, 5), (5, 9, 12))]
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def pixels(part: np.ndarray) -> np.ndarray:
    """Return a chunk as a picture (row, column, component) whose rows lie along x, ordered by z and then y."""
    channels, z, y, x = part.shape
    return np.ascontiguousarray(part.transpose(1, 2, 3, 0).reshape(z * y, x, channels))


def compare(folder: Path, wanted: np.ndarray, tolerance: float = 0) -> None:
    with serving(folder) as server:
        for address in (str(folder), f"precomputed://{server.url}"):
            for channel in range(len(wanted)):
                source = resolve_source(address, "image", channel=channel)
                for box in BOXES:
                    found = source.read(0, box)
                    assert found.dtype == wanted.dtype
                    expected = wanted[channel][box.slices()]
                    if tolerance:
                        np.testing.assert_allclose(found.astype(float), expected, atol=tolerance)
                    else:
                        np.testing.assert_array_equal(found, expected, err_msg=f"channel {channel}, {box}")


def tensorstore_values(folder: Path) -> np.ndarray:
    """Return the voxels (channel, z, y, x) that TensorStore reads."""
    ts = pytest.importorskip("tensorstore")
    kvstore = {"driver": "file", "path": str(folder)}
    return ts.open({"driver": "neuroglancer_precomputed", "kvstore": kvstore}).result().read().result().T


TENSORSTORE = [
    *(("raw", dtype, channels) for dtype in (*INTEGERS[:-1], "float32") for channels in (1, 2, 3, 5)),
    *(("compressed_segmentation", dtype, channels) for dtype in ("uint32", "uint64") for channels in (1, 2, 3)),
    *(("png", dtype, channels) for dtype in ("uint8", "uint16") for channels in (1, 2, 3, 4)),
    *(("jpeg", "uint8", channels) for channels in (1, 3)),
]


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize(
    ("encoding", "dtype", "channels"), slow_unless(lambda encoding, dtype, channels: channels == 3, TENSORSTORE)
)
def test_a_layer_written_by_tensorstore_is_read(tmp_path, encoding, dtype, channels):
    ts = pytest.importorskip("tensorstore")
    stored = values(dtype, channels, smooth=encoding == "jpeg", few=encoding == "compressed_segmentation")
    scale = {"size": SIZE, "chunk_size": CHUNK, "resolution": [8, 8, 40], "voxel_offset": OFFSET, "encoding": encoding}
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [4, 4, 4]
    layer = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": str(tmp_path)},
            "multiscale_metadata": {"type": "image", "data_type": dtype, "num_channels": channels},
            "scale_metadata": scale,
        },
        create=True,
    ).result()
    layer.write(stored.T).result()
    compare(tmp_path, tensorstore_values(tmp_path), tolerance=2 if encoding == "jpeg" else 0)
    if encoding != "jpeg":
        compare(tmp_path, stored)


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("encoding", slow_except(["jxl", "JXL"], "jxl"))
@pytest.mark.parametrize("options", [{}, {"usecontainer": True}, {"lossless": False, "distance": 0.1}])
@pytest.mark.parametrize(
    ("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("uint8", 4), ("uint16", 1), ("uint16", 3)]
)
def test_a_jpeg_xl_written_by_imagecodecs_is_read(tmp_path, encoding, dtype, channels, options):
    imagecodecs = pytest.importorskip("imagecodecs")
    lossy = options.get("lossless") is False
    stored = values(dtype, channels, smooth=lossy)
    write(tmp_path, stored, encoding, lambda part: imagecodecs.jpegxl_encode(pixels(part).squeeze(), **{"lossless": True, **options}))  # fmt: skip
    compare(tmp_path, stored, tolerance=np.iinfo(dtype).max / (10 if channels > 1 else 32) if lossy else 0)


@pytest.mark.fast_forms(5)
@pytest.mark.parametrize("order", ["rows", "columns", "one row"])
@pytest.mark.parametrize("encoding", ["jxl", "png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_of_any_width_and_height_with_the_right_number_of_pixels_is_read(tmp_path, order, encoding, channels):
    imagecodecs = pytest.importorskip("imagecodecs")
    stored = values("uint8", channels)

    def encode(part: np.ndarray) -> bytes:
        picture = pixels(part)
        count, x, y = picture.shape[0] * picture.shape[1], picture.shape[1], part.shape[2]
        width = {"rows": x, "columns": x * y, "one row": count}[order]
        picture = picture.reshape(count // width, width, channels)
        picture = picture[..., 0] if channels == 1 else picture
        return (
            imagecodecs.png_encode(picture) if encoding == "png" else imagecodecs.jpegxl_encode(picture, lossless=True)
        )

    write(tmp_path, stored, encoding, encode)
    compare(tmp_path, stored)


PILLOW = [("L", "png"), ("LA", "png"), ("RGB", "png"), ("RGBA", "png"), ("I;16", "png"), ("L", "jpeg"), ("RGB", "jpeg")]


@pytest.mark.fast_forms(6)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
@pytest.mark.parametrize(("mode", "encoding"), PILLOW)
def test_a_picture_written_by_pillow_is_read(tmp_path, mode, encoding, options):
    image = pytest.importorskip("PIL.Image")
    channels = 1 if mode == "I;16" else len(mode)
    stored = values("uint16" if mode == "I;16" else "uint8", channels, smooth=encoding == "jpeg")

    def encode(part: np.ndarray) -> bytes:
        out = io.BytesIO()
        quality = {"quality": 95, "subsampling": 0, **options} if encoding == "jpeg" else {}
        image.fromarray(pixels(part).squeeze()).save(out, format=encoding, **quality)
        return out.getvalue()

    write(tmp_path, stored, encoding, encode)
    if encoding == "jpeg":
        stored = tensorstore_values(tmp_path)
    compare(tmp_path, stored, tolerance=2 if encoding == "jpeg" else 0)


CLOUDVOLUME = [
    *(("raw", dtype, channels) for dtype in (*INTEGERS, "float32") for channels in (1, 3)),
    *((encoding, dtype, 1) for encoding in ("compresso", "crackle") for dtype in ("uint8", "uint16", "uint32", "uint64")),
    ("compressed_segmentation", "uint32", 1), ("compressed_segmentation", "uint64", 1),
    *((encoding, "float32", channels) for encoding in ("fpzip", "kempressed", "zfpc") for channels in (1, 2, 3)),
    ("fpzip", "float64", 1),
    ("jxl", "uint8", 1), ("jxl", "uint8", 3), ("png", "uint8", 1), ("png", "uint8", 3), ("png", "uint16", 2),
    ("jpeg", "uint8", 1), ("jpeg", "uint8", 3),
]  # fmt: skip


@pytest.mark.fast_forms(8)
@pytest.mark.parametrize(
    ("encoding", "dtype", "channels"), slow_unless(lambda encoding, dtype, channels: channels == 1, CLOUDVOLUME)
)
def test_a_chunk_written_by_cloudvolume_is_read(tmp_path, encoding, dtype, channels):
    from cloudvolume import chunks

    if encoding == "compresso" and dtype == "uint8":
        pytest.importorskip("compresso")
    few = encoding in ("compresso", "crackle", "compressed_segmentation")
    stored = values(dtype, channels, smooth=encoding == "jpeg" or (encoding == "zfpc" and dtype[0] == "i"), few=few)

    def encode(part: np.ndarray) -> bytes:
        level = {"level": 100} if encoding == "jxl" else {}
        cube = np.asfortranarray(part.T)
        try:
            return bytes(chunks.encode(cube, encoding, block_size=(8, 8, 8), compression_params=level))
        except NotImplementedError as error:
            pytest.skip(f"CloudVolume cannot write it with this release of imagecodecs: {error}")

    block = {"compressed_segmentation_block_size": [8, 8, 8]} if encoding == "compressed_segmentation" else {}
    write(tmp_path, stored, encoding, encode, **block)
    if encoding == "jpeg":
        stored = tensorstore_values(tmp_path)
    compare(tmp_path, stored, tolerance={"jpeg": 2, "kempressed": 1e-6, "zfpc": 1e-3}.get(encoding, 0))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def test_a_png_with_a_palette_is_decoded_to_rgb():
    from imageryxr.sources.codecs.chunk_decoder import decode_chunk

    palette = bytes(range(30))
    picture = png(4, 2, 8, 3, b"\0\1\2\3\4\0\5\6\7\0", (b"PLTE", palette))
    found = decode_chunk(picture, "png", (4, 2, 1, 3), np.dtype("uint8"))
    indexes = np.array([[1, 2, 3, 4], [5, 6, 7, 0]])
    np.testing.assert_array_equal(found[:, :, 0].transpose(1, 0, 2), np.stack([3 * indexes + c for c in range(3)], 2))


@pytest.mark.parametrize(
    ("picture", "dtype", "channels", "message"),
    [
        (png(4, 2, 16, 0, b"\0" * 18), "uint8", 1, "16 bits per component instead of uint8"),
        (png(4, 2, 8, 0, b"\0" * 10), "uint16", 1, "8 bits per component instead of uint16"),
        (png(4, 2, 1, 0, b"\0" * 4), "uint8", 1, "1 bits per component instead of uint8"),
        (png(4, 2, 8, 0, b"\0" * 10), "uint8", 3, "1 components instead of 3"),
        (png(4, 2, 8, 2, b"\0" * 26), "uint8", 1, "3 components instead of 1"),
        (png(4, 2, 8, 6, b"\0" * 34), "uint8", 3, "4 components instead of 3"),
        (png(4, 2, 8, 5, b"\0" * 34), "uint8", 3, "colour type 5"),
        (png(4, 3, 8, 0, b"\0" * 15), "uint8", 1, "4 × 3 pixels instead of 8 voxels"),
        (png(2**31 - 1, 2**31 - 1, 8, 0, b"\0"), "uint8", 1, "pixels instead of 8 voxels"),
        (png(4, 2, 8, 0, b"\0" * 10), "float32", 1, "PNG holds uint8 and uint16, not float32"),
    ],
)
def test_a_png_header_that_contradicts_the_metadata_is_damage(picture, dtype, channels, message):
    assert message in picture_problem(picture, "png", (4, 2, 1, channels), np.dtype(dtype))


def test_jpeg_and_jpeg_xl_headers_that_contradict_the_metadata_are_damage(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    simplejpeg = pytest.importorskip("simplejpeg")
    gray, color = np.zeros((6, 8, 1), "uint8"), np.zeros((6, 8, 3), "uint8")
    u8, u16 = np.dtype("uint8"), np.dtype("uint16")
    one = simplejpeg.encode_jpeg(gray, colorspace="GRAY", colorsubsampling="GRAY")
    three = simplejpeg.encode_jpeg(color, colorspace="RGB")
    assert picture_problem(one, "jpeg", (8, 3, 2, 1), u8) == ""
    assert "1 components instead of 3" in picture_problem(one, "jpeg", (8, 3, 2, 3), u8)
    assert "3 components instead of 1" in picture_problem(three, "jpeg", (8, 3, 2, 1), u8)
    assert "8 × 6 pixels instead of 24 voxels" in picture_problem(one, "jpeg", (8, 3, 1, 1), u8)
    assert "JPEG holds uint8" in picture_problem(one, "jpeg", (8, 3, 2, 1), u16)
    assert "JPEG holds 1 or 3 channels" in picture_problem(one, "jpeg", (8, 3, 2, 4), u8)
    assert all(picture_problem(one[:cut], "jpeg", (8, 3, 2, 1), u8) for cut in range(1, one.index(b"\xff\xc0") + 8))
    wide = bytearray(one)
    wide[one.index(b"\xff\xc0") + 5 : one.index(b"\xff\xc0") + 9] = b"\xff\xff\xff\xff"
    assert "its JPEG header cannot be read" in picture_problem(bytes(wide), "jpeg", (8, 3, 2, 1), u8)
    wide[one.index(b"\xff\xc0") + 5 : one.index(b"\xff\xc0") + 9] = b"\xff\xdc\xff\xdc"
    assert "65500 × 65500 pixels" in picture_problem(bytes(wide), "jpeg", (8, 3, 2, 1), u8)
    for container in (False, True):
        stored = imagecodecs.jpegxl_encode(gray[..., 0], lossless=True, usecontainer=container)
        assert picture_problem(stored, "jxl", (8, 3, 2, 1), u8) == ""
        assert "8 × 6 pixels instead of 24 voxels" in picture_problem(stored, "jxl", (8, 3, 1, 1), u8)
    assert "ends within a box" in picture_problem(stored[:-1], "jxl", (8, 3, 2, 1), u8)


@pytest.mark.parametrize(("dtype", "channels", "other"), [("uint8", 1, ("uint8", 3)), ("uint8", 3, ("uint8", 1)), ("uint8", 4, ("uint8", 3)), ("uint16", 1, ("uint8", 1)), ("uint8", 1, ("uint16", 1))])  # fmt: skip
def test_a_jpeg_xl_with_another_number_of_components_or_bits_is_damage(tmp_path, dtype, channels, other):
    imagecodecs = pytest.importorskip("imagecodecs")
    write(tmp_path, values(dtype, channels), "jxl", lambda part: imagecodecs.jpegxl_encode(pixels(values(*other)[:, : part.shape[1], : part.shape[2], : part.shape[3]]).squeeze(), lossless=True))  # fmt: skip
    with pytest.raises(ChunkReadError, match="is damaged"):
        resolve_source(tmp_path, "image", channel=0).read(0, BOXES[0])


@pytest.mark.parametrize("encoding", ["jxl", "png", "jpeg"])
def test_a_picture_truncated_at_any_byte_is_damage(tmp_path, encoding):
    from imageryxr.sources.codecs.chunk_decoder import DamagedChunkError, decode_chunk

    imagecodecs = pytest.importorskip("imagecodecs")
    simplejpeg = pytest.importorskip("simplejpeg")
    picture = pixels(values("uint8", 3))
    shape = (picture.shape[1], picture.shape[0], 1, 3)
    stored = {"jxl": lambda: imagecodecs.jpegxl_encode(picture, lossless=True), "png": lambda: imagecodecs.png_encode(picture), "jpeg": lambda: simplejpeg.encode_jpeg(picture)}[encoding]()  # fmt: skip
    for size in [*range(40), *range(40, len(stored), 29), *range(len(stored) - 16, len(stored))]:
        with pytest.raises(DamagedChunkError):
            decode_chunk(stored[:size], encoding, shape, np.dtype("uint8"))


def test_any_flipped_bit_of_a_png_is_damage(tmp_path):
    from imageryxr.sources.codecs.chunk_decoder import DamagedChunkError, decode_chunk

    imagecodecs = pytest.importorskip("imagecodecs")
    picture = pixels(values("uint16", 1, smooth=True))
    stored = imagecodecs.png_encode(picture[..., 0])
    for place in range(8 * len(stored)):
        damaged = bytearray(stored)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedChunkError):
            decode_chunk(bytes(damaged), "png", (picture.shape[1], picture.shape[0], 1, 1), np.dtype("uint16"))


def test_the_error_for_a_16_bit_png_names_the_package_to_install(tmp_path, monkeypatch):
    from imageryxr.sources.precomputed import source as precomputed

    write(tmp_path, values("uint16", 1), "png", lambda part: b"")
    inner = precomputed.find_spec
    monkeypatch.setattr(precomputed, "find_spec", lambda name: None if name == "imagecodecs" else inner(name))
    with pytest.raises(CodecError, match="pip install imagecodecs"):
        resolve_source(tmp_path, "image").check(0)


@pytest.mark.parametrize(("encoding", "dtype", "channels"), [("jpeg", "uint16", 1), ("jpeg", "uint8", 2), ("png", "uint32", 1), ("png", "uint8", 5), ("jxl", "float32", 1), ("compressed_segmentation", "uint8", 1), ("compresso", "uint64", 2), ("crackle", "float32", 1), ("fpzip", "uint8", 1), ("zfpc", "float64", 1), ("zfpc", "int32", 1)])  # fmt: skip
def test_an_encoding_that_cannot_hold_the_type_is_an_error_when_opening(tmp_path, encoding, dtype, channels):
    write(tmp_path, values(dtype, channels), encoding, lambda part: b"", compressed_segmentation_block_size=[8, 8, 8])
    with pytest.raises(SourceError, match=f"{encoding}.* holds .*, not"):
        resolve_source(tmp_path, "image", channel=0)
