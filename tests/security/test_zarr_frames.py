"""Zarr chunks whose headers contradict the metadata of the array are errors."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numcodecs
import numpy as np
import pytest
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import ChunkReadError, MissingChunkError
from imageryxr.sources.codecs.frame_headers import frame_problem
from imageryxr.sources.resolve import resolve_source
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.slow import slow_except
from tests.support.source_suite import noise

BOX = IndexBox((0, 0, 0), (8, 16, 16))
SMOOTH = (np.indices(BOX.shape).sum(0) // 3).astype("uint16")
FORMS = {
    "v2 blosc": ("0.4", {"compressors": numcodecs.Blosc("lz4"), "chunks": (8, 16, 16)}),
    "v3 blosc": ("0.5", {"compressors": BloscCodec(cname="lz4"), "chunks": (8, 16, 16)}),
    "v2 lz4": ("0.4", {"compressors": numcodecs.LZ4(), "chunks": (8, 16, 16)}),
    "v2 zstd": ("0.4", {"compressors": numcodecs.Zstd(checksum=True), "chunks": (8, 16, 16)}),
    "v3 zstd": ("0.5", {"compressors": ZstdCodec(checksum=True), "chunks": (8, 16, 16)}),
    "v2 gzip": ("0.4", {"compressors": numcodecs.GZip(), "chunks": (8, 16, 16)}),
    "v2 zlib": ("0.4", {"compressors": numcodecs.Zlib(), "chunks": (8, 16, 16)}),
    "v3 gzip": ("0.5", {"compressors": GzipCodec(), "chunks": (8, 16, 16)}),
}


def write(folder: Path, form: str, values: np.ndarray = SMOOTH) -> Path:
    version, options = FORMS[form]
    write_ome(folder, [values], {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]}, version=version, **options)  # fmt: skip
    (file,) = [p for p in (folder / "0").rglob("*") if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs")]  # fmt: skip
    return file


def read(folder: Path) -> np.ndarray:
    return resolve_source(folder, "image", missing="fill").read(0, BOX)


def number(frame: bytes, start: int, value: int, size: int = 4) -> bytes:
    return frame[:start] + value.to_bytes(size, "little") + frame[start + size :]


def check_refused(folder: Path, file: Path, frame: bytes, message: str = "") -> None:
    file.write_bytes(frame)
    with pytest.raises(ChunkReadError, match="mip 0 .*box") as caught:
        read(folder)
    assert not isinstance(caught.value, MissingChunkError)
    assert message in str(caught.value)


@pytest.mark.parametrize("form", ["v2 blosc", "v3 blosc"])
def test_every_field_of_a_blosc_header_is_compared(tmp_path, form):
    file = write(tmp_path, form)
    frame = file.read_bytes()
    np.testing.assert_array_equal(read(tmp_path), SMOOTH)
    for size in (0, 1, 2048, 4094, 4098, 8192, 2**31 - 1, 2**32 - 1):
        check_refused(tmp_path, file, number(frame, 4, size), f"states {size} decompressed bytes instead of 4096")
    for length in (0, 15, 16, len(frame) - 1, len(frame) + 1, 2**32 - 1):
        check_refused(tmp_path, file, number(frame, 12, length))
    for item in (0, 3, 4, 8, 255):
        check_refused(tmp_path, file, number(frame, 3, item, 1), f"items of {item} bytes instead of 2")
    for block in (0, 1, 5000, 2**32 - 1):
        check_refused(tmp_path, file, number(frame, 8, block))
    check_refused(tmp_path, file, number(frame, 16, 2**31 - 1), "a block of its Blosc frame lies outside the frame")
    check_refused(tmp_path, file, number(frame, 0, 77, 1), "does not start with the header of a Blosc frame")


def test_an_uncompressed_blosc_frame_of_another_length_is_an_error(tmp_path):
    values = noise(BOX.shape, "uint16")
    file = write(tmp_path, "v2 blosc", values)
    frame = numcodecs.Blosc("lz4", clevel=0).encode(values)
    file.write_bytes(frame)
    np.testing.assert_array_equal(read(tmp_path), values)
    check_refused(tmp_path, file, number(frame, 12, len(frame) - 2)[:-2])


def test_a_blosc_frame_padded_with_zeros_is_read(tmp_path):
    """z5py writes such frames."""
    file = write(tmp_path, "v2 blosc")
    frame = file.read_bytes()
    file.write_bytes(frame + bytes(16))
    np.testing.assert_array_equal(read(tmp_path), SMOOTH)
    check_refused(tmp_path, file, frame + b"\0\1")


@pytest.mark.parametrize("shuffle", [0, 1, 2])
@pytest.mark.parametrize("item", [1, 2])
def test_a_blosc_frame_of_items_of_one_byte_is_read(tmp_path, item, shuffle):
    """Several writers state 1 for all data types."""
    file = write(tmp_path, "v3 blosc")
    view = np.ascontiguousarray(SMOOTH).view(f"u{item}")
    file.write_bytes(numcodecs.Blosc("zstd", shuffle=shuffle).encode(view))
    np.testing.assert_array_equal(read(tmp_path), SMOOTH)


def test_the_size_in_an_lz4_header_is_compared(tmp_path):
    file = write(tmp_path, "v2 lz4")
    frame = file.read_bytes()
    for size in (0, 4095, 4097, 2**31 - 1, 2**32 - 1):
        check_refused(tmp_path, file, number(frame, 0, size), "instead of 4096")
    for cut in (1, 2, 5, len(frame) - 3):
        check_refused(tmp_path, file, frame[:-cut])


@pytest.mark.parametrize("form", ["v2 zstd", "v3 zstd"])
def test_the_content_size_and_the_checksum_of_a_zstd_frame_are_compared(tmp_path, form):
    file = write(tmp_path, form)
    frame = file.read_bytes()
    np.testing.assert_array_equal(read(tmp_path), SMOOTH)
    check_refused(tmp_path, file, number(frame, 5, 2**15 - 256, 2), "states 32768 decompressed bytes instead of 4096")
    check_refused(
        tmp_path, file, numcodecs.Zstd().encode(np.zeros(1 << 26, "u1")), "67108864 decompressed bytes instead of 4096"
    )
    check_refused(tmp_path, file, frame[:-1] + bytes([frame[-1] ^ 1]))
    for cut in range(1, 12):
        check_refused(tmp_path, file, frame[:-cut])


def test_a_zstd_frame_without_a_content_size_is_read_and_its_blocks_are_counted(tmp_path):
    """Streaming writers do not know the size in advance."""
    import imagecodecs  # noqa: F401 - numcodecs alone always states the size

    file = write(tmp_path, "v2 zstd")
    raw = SMOOTH.tobytes()
    head, first = b"\x28\xb5\x2f\xfd\x00\x58", (len(raw) << 3).to_bytes(3, "little")
    last = b"\x01\0\0"
    file.write_bytes(head + first + raw + last)
    np.testing.assert_array_equal(read(tmp_path), SMOOTH)
    bomb = head + ((128 << 10) << 3 | 2).to_bytes(3, "little") + b"\0"
    repeated = bomb + (((128 << 10) << 3 | 2).to_bytes(3, "little") + b"\0") * 1000 + last
    check_refused(tmp_path, file, repeated, "decompresses to more than")
    check_refused(tmp_path, file, head + first + raw, "ends before its last block")


@pytest.mark.parametrize("form", ["v2 gzip", "v2 zlib", "v3 gzip"])
def test_the_checksum_and_the_length_behind_a_deflate_stream_are_compared(tmp_path, form):
    file = write(tmp_path, form)
    frame = file.read_bytes()
    np.testing.assert_array_equal(read(tmp_path), SMOOTH)
    for place in range(1, 9 if "gzip" in form else 5):
        check_refused(tmp_path, file, frame[:-place] + bytes([frame[-place] ^ 1]) + frame[len(frame) - place + 1 :])
        check_refused(tmp_path, file, frame[:-place])


@pytest.mark.parametrize("form", slow_except(FORMS, "v3 blosc"))
def test_any_byte_of_a_chunk_changed_gives_an_error_or_voxels_of_the_right_number(tmp_path, form):
    file = write(tmp_path, form)
    frame = file.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(frame)
        damaged[int(rng.integers(min(len(damaged), 40)))] = int(rng.integers(256))
        file.write_bytes(damaged)
        with suppress(ChunkReadError):
            assert read(tmp_path).shape == BOX.shape


@pytest.mark.slow
def test_the_check_accepts_frames_of_numcodecs():
    rng = np.random.default_rng(0)
    for count in (1, 7, 500, 5000, 300_000):
        for values in (np.zeros(count, "u2"), rng.integers(0, 4, count).astype("u2"), rng.integers(0, 2**16, count).astype("u2")):  # fmt: skip
            for name in ("lz4", "zstd", "blosclz", "zlib", "lz4hc"):
                for level_ in (0, 1, 9):
                    frame = numcodecs.Blosc(name, clevel=level_).encode(values)
                    assert frame_problem(frame, "blosc", values.nbytes, (1, 2)) == ""
            for level_ in (-5, 1, 19):
                for checksum in (False, True):
                    frame = numcodecs.Zstd(level_, checksum=checksum).encode(values)
                    assert frame_problem(frame, "zstd", values.nbytes, ()) == ""
            assert frame_problem(numcodecs.LZ4().encode(values), "lz4", values.nbytes, ()) == ""
