"""Encodings whose decoders do not check their input: truncated and corrupted chunks, threads and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from imageryxr.core.grid import Grid
from imageryxr.errors import ChunkReadError
from imageryxr.sources.codecs import chunk_decoder, isolated
from imageryxr.sources.precomputed import source
from tests.support.precomputed import open_layer, write_layer
from tests.support.source_suite import serving

pytestmark = pytest.mark.slow  # most of these tests start processes or servers

KINDS = [
    ("compresso", "uint8"), ("compresso", "uint16"), ("compresso", "uint32"), ("compresso", "uint64"),
    ("crackle", "uint8"), ("crackle", "uint16"), ("crackle", "uint32"), ("crackle", "uint64"),
    ("fpzip", "float32"), ("kempressed", "float32"), ("zfpc", "float32"),
]  # fmt: skip
SHAPE = (16, 12, 10, 1)
GRID = Grid(SHAPE[2::-1], (8, 8, 40), (3, 4, 5))


def voxels(dtype: str, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        smooth = np.cumsum(rng.normal(size=shape), 0) + 100
        return np.asfortranarray(smooth.astype(dtype))
    top = np.iinfo(dtype).max
    ids = np.r_[0, top, top - 3, rng.integers(1, top, 20, dtype=dtype)].astype(dtype)
    cells = rng.integers(0, len(ids), tuple(-(-s // 4) for s in shape[:3]))
    for axis, size in enumerate(shape[:3]):
        cells = cells.repeat(4, axis).take(range(size), axis)
    return np.asfortranarray(ids[cells][..., None])


def encode(encoding: str, values: np.ndarray) -> bytes:
    pytest.importorskip(source.CODECS[encoding][0])
    from cloudvolume import chunks

    return bytes(chunks.encode(values, encoding, block_size=(8, 8, 8)))


def decode(stored: bytes, encoding: str, values: np.ndarray) -> np.ndarray:
    return chunk_decoder.decode_chunk(stored, encoding, values.shape, values.dtype)


@pytest.mark.parametrize(("encoding", "dtype"), KINDS)
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 1), (64, 3, 1, 1), (5, 7, 33, 1), (128, 96, 16, 1)])
def test_decoded_voxels_equal_those_of_cloudvolume(encoding, dtype, shape):
    from cloudvolume import chunks

    values = voxels(dtype, shape)
    stored = encode(encoding, values)
    theirs = chunks.decode(stored, encoding, shape=shape, dtype=values.dtype, block_size=(8, 8, 8))
    ours = decode(stored, encoding, values)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
    if encoding in ("compresso", "crackle", "fpzip"):
        np.testing.assert_array_equal(ours, values)


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
@pytest.mark.parametrize("flags", [{"connectivity": 4}, {"connectivity": 6}, {"steps": (8, 8, 1)}, {"random_access_z_index": False}])  # fmt: skip
@pytest.mark.parametrize("kind", ["cells", "one id", "background", "noise"])
def test_intact_compresso_of_every_form_has_the_length_that_its_header_implies(dtype, flags, kind):
    compresso = pytest.importorskip("compresso")
    for shape in [(5, 7, 3), (1, 1, 1), (33, 17, 70), (128, 128, 64)]:
        values = voxels(dtype, (*shape, 1))[..., 0]
        if kind == "noise":
            values = np.random.default_rng(1).integers(0, 5, shape).astype(dtype)
        elif kind != "cells":
            values = np.full(shape, 7 if kind == "one id" else 0, dtype)
        stored = compresso.compress(np.asfortranarray(values), **flags)
        assert chunk_decoder.stream_problem(stored, "compresso", (*shape, 1)) == ""
        for cut in {1, 2, 3, 4, 8, len(stored) // 2, len(stored) - 30}:
            if cut < len(stored):
                assert chunk_decoder.stream_problem(stored[:-cut], "compresso", (*shape, 1)), cut


@pytest.mark.parametrize(("encoding", "dtype"), KINDS)
def test_a_truncated_chunk_never_decodes_to_wrong_voxels(encoding, dtype):
    """A truncated chunk is an error. Truncated fpzip may still decode: its decoder ignores some of the last bytes."""
    values = voxels(dtype, (9, 6, 5, 1))
    stored = encode(encoding, values)
    whole = decode(stored, encoding, values)
    # Each truncated fpzip stream crashes the decoder, and restarting it is slow, so fewer lengths are tried.
    step = 97 if encoding in ("fpzip", "kempressed") else 1 if len(stored) < 400 else 7
    lengths = sorted(
        {*range(0, 40, min(step, 9)), *range(40, len(stored), step), *range(len(stored) - 20, len(stored))}
    )
    survived = 0
    for length in lengths:
        try:
            found = decode(stored[:length], encoding, values)
        except chunk_decoder.DamagedChunkError:
            continue
        survived += 1
        assert encoding in ("fpzip", "kempressed")
        np.testing.assert_array_equal(found, whole)
    assert survived <= 16


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "dtype"), KINDS)
def test_a_corrupted_chunk_does_not_end_the_process(encoding, dtype, monkeypatch):
    """Corruptions are flipped bits, and replaced, removed and inserted bytes."""
    monkeypatch.setattr(isolated, "TIMEOUT_SECONDS", 20.0)
    values = voxels(dtype, (9, 6, 5, 1))
    stored = encode(encoding, values)
    rng = np.random.default_rng(5)
    detected = 0
    for turn in range(40 if encoding in ("fpzip", "kempressed") else 120):
        damaged = bytearray(stored)
        for _ in range(1 + turn % 4):
            place = int(rng.integers(len(damaged)))
            if turn % 3 == 0:
                damaged[place] ^= 1 << int(rng.integers(8))
            elif turn % 3 == 1:
                damaged[place : place + 9] = rng.bytes(9)
            else:
                damaged[place : place + int(rng.integers(9))] = rng.bytes(int(rng.integers(9)))
        try:
            assert decode(bytes(damaged), encoding, values).size == values.size
        except chunk_decoder.DamagedChunkError:
            detected += 1
    assert detected
    np.testing.assert_array_equal(decode(stored, encoding, values), decode(stored, encoding, values))


@pytest.mark.parametrize("pins", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
def test_crackle_of_every_format_is_decoded(dtype, order, pins):
    """Every label format and Markov model order is tested; order 1 does not fill its last byte."""
    crackle = pytest.importorskip("crackle")
    for shape in [(9, 6, 5), (33, 31, 8), (1, 1, 1), (64, 64, 3)]:
        values = voxels("uint8" if dtype == "uint8" else "uint64", (*shape, 1)).astype(dtype)
        stored = bytes(crackle.compress(values[..., 0], allow_pins=pins, markov_model_order=order))
        np.testing.assert_array_equal(decode(stored, "crackle", values), values)
        for cut in (1, 2, 3, 4, 9):
            assert chunk_decoder.stream_problem(stored[:-cut], "crackle", values.shape)


def test_crackle_of_version_0_is_decoded():
    """Version 0 is version 1 without checksums. Current encoders write only version 1, so the test removes them."""
    crackle = pytest.importorskip("crackle")
    values = voxels("uint64")
    slices = SHAPE[2]
    new = bytes(crackle.compress(values[..., 0]))
    index = 29 + 4 * slices
    old = new[:4] + b"\0" + new[5:24] + new[29:index] + new[index + 4 : len(new) - 4 * (slices + 1)]
    np.testing.assert_array_equal(decode(old, "crackle", values), values)
    for cut in (1, 4, 40):
        with pytest.raises(chunk_decoder.DamagedChunkError, match="bytes, but its header states"):
            decode(old[:-cut], "crackle", values)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
@pytest.mark.parametrize("pins", [False, True])
def test_crackle_with_a_flipped_bit_never_decodes_to_wrong_voxels(dtype, pins):
    """For damaged slices the decoder raises nothing and leaves the voxels of the previous chunk."""
    crackle = pytest.importorskip("crackle")
    values = voxels(dtype, (9, 6, 5, 1))
    stored = bytes(crackle.compress(values[..., 0], allow_pins=pins))
    lengths = crackle.component_lengths(stored)
    begin = 29 + lengths["z_index"]
    codes = begin + lengths["labels"]
    # A checksum detects a changed label quickly. A changed code often crashes the decoder, and restarting it is slow.
    places = [*range(8 * 29, 8 * codes, 3), *range(8 * codes, 8 * len(stored), 61)]
    detected = 0
    for place in places:
        damaged = bytearray(stored)
        damaged[place // 8] ^= 1 << place % 8
        try:
            np.testing.assert_array_equal(decode(bytes(damaged), "crackle", values), values)
        except chunk_decoder.DamagedChunkError:
            detected += 1
    assert detected > 0.9 * len(places)


@pytest.mark.parametrize("encoding", ["fpzip", "kempressed", "zfpc"])
def test_a_header_that_states_another_shape_is_damage(encoding, monkeypatch):
    """The header is checked first, because a decoder allocates as much memory as the header states."""
    monkeypatch.setattr(
        chunk_decoder, "decode_in_process", lambda *a: pytest.fail("the damaged chunk reached the decoder")
    )
    values = voxels("float32", (9, 6, 5, 1))
    stored = encode(encoding, values)
    for shape in ((10, 6, 5, 1), (9, 6, 1, 1), (9, 6, 5, 2)):
        with pytest.raises(chunk_decoder.DamagedChunkError, match=r"its header states \(.* voxels instead of \("):
            chunk_decoder.decode_chunk(stored, encoding, shape, values.dtype)
    if encoding == "zfpc":
        begin = int.from_bytes(stored[23:31], "little")
        damaged = bytearray(stored)
        damaged[begin + 8] ^= 1
        with pytest.raises(chunk_decoder.DamagedChunkError, match="the header of one of its"):
            decode(bytes(damaged), encoding, values)


@pytest.mark.parametrize("options", [{}, {"tolerance": 0.1}, {"rate": 8}, {"correlated_dims": [True, True, False, False]}, {"correlated_dims": [False] * 4}])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_truncated_zfpc_and_types_other_than_float32_are_damage(dtype, options):
    zfpc = pytest.importorskip("zfpc")
    for shape in [(9, 6, 5, 1), (16, 8, 8, 3), (1, 1, 1, 1), (5, 4, 3, 2)]:
        values = np.asfortranarray((voxels("float32", shape) * 100).astype(dtype))
        try:
            stored = bytes(zfpc.compress(values, **options))
        except Exception:  # noqa: S112, PERF203, RUF100 - of zfp, not every type has every option
            continue
        # The decoder returns float32 for every stored type, so other types are reported as damage.
        problem = "" if dtype == "float32" else "its header states another type than float32"
        assert chunk_decoder.stream_problem(stored, "zfpc", shape) == problem
        assert all(chunk_decoder.stream_problem(stored[:-cut], "zfpc", shape) for cut in range(1, min(len(stored), 40)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_shape_in_an_fpzip_header_is_checked(dtype):
    fpzip = pytest.importorskip("fpzip")
    rng = np.random.default_rng(0)
    sizes = [1, 2, 3, 8, 16, 31, 64, 127, 128, 255, 256, 257, 300, 70000]
    for _ in range(300):
        shape = tuple(int(s) for s in rng.choice(sizes, 4))
        if np.prod(shape) > 200_000:
            continue
        stored = bytes(fpzip.compress(np.full(shape, 3, dtype, order="F"), order="F"))
        assert chunk_decoder.stream_problem(stored, "fpzip", shape) == ""
        assert chunk_decoder.stream_problem(stored, "fpzip", (*shape[:3], shape[3] + 1))
        assert all(chunk_decoder.stream_problem(stored[:size], "fpzip", shape) for size in range(22))


def test_a_killed_decoder_is_replaced():
    values = voxels("uint64")
    stored = encode("crackle", values)
    decode(stored, "crackle", values)
    assert isolated._POOL.idle
    for decoder in isolated._POOL.idle:
        decoder.process.kill()
        decoder.process.wait()
    for _ in range(3):
        np.testing.assert_array_equal(decode(stored, "crackle", values), values)


def test_a_decoder_that_exceeds_the_timeout_is_killed(monkeypatch):
    """With a timeout of 0 s every chunk takes too long, which is reported as damage."""
    monkeypatch.setattr(isolated, "TIMEOUT_SECONDS", 0.0)
    with pytest.raises(isolated.StreamError, match=r"crashed \(signal 9\)"):
        isolated.decode_in_process(encode("fpzip", voxels("float32", (128, 128, 64, 1))), "fpzip", 4 << 20)


def layer(folder: Path, encoding: str, dtype: str) -> np.ndarray:
    values = voxels(dtype)[..., 0].T
    kind = "image" if dtype == "float32" else "segmentation"
    write_layer(folder, [values], [GRID], kind=kind, encoding=encoding, compress=False)
    return values


def read(folder: Path) -> np.ndarray:
    return open_layer(folder).read(0, GRID.box)


def test_chunks_are_decoded_in_threads_and_processes(tmp_path):
    pytest.importorskip("crackle")
    values = layer(tmp_path, "crackle", "uint64")
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(read, [tmp_path] * 12):
            np.testing.assert_array_equal(found, values)
    assert len(isolated._POOL.idle) <= os.cpu_count()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        for found in processes.map(read, [tmp_path] * 4):
            np.testing.assert_array_equal(found, values)


FORKED = """
import os, sys
from imageryxr.sources.codecs import isolated
from tests.sources.codecs.test_isolated import encode, decode, voxels
values = voxels("uint64")
stored = encode("crackle", values)
assert (decode(stored, "crackle", values) == values).all()
child = os.fork()
if not child:
    try:
        assert not isolated._POOL.idle
        good = all((decode(stored, "crackle", values) == values).all() for _ in range(3))
        isolated._POOL.close()
        os._exit(0 if good else 1)
    finally:
        os._exit(2)
for _ in range(20):
    assert (decode(stored, "crackle", values) == values).all()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), isolated._POOL.idle[0].process.pid)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=root, timeout=120, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_and_ends_its_own_decoders():
    pytest.importorskip("crackle")
    done = run(FORKED)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    code, pid = map(int, done.stdout.split())
    assert code == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_decoders_end_when_their_process_is_killed():
    pytest.importorskip("crackle")
    done = run(
        FORKED.split("child =")[0] + "print(isolated._POOL.idle[0].process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    gone = threading.Event()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        gone.wait(0.1)
    else:
        pytest.fail("the decoder still runs")


@pytest.mark.parametrize(("encoding", "dtype"), [k for k in KINDS if k[1] in ("uint64", "float32")])
def test_damage_is_an_error_that_names_the_layer(tmp_path, encoding, dtype):
    pytest.importorskip(source.CODECS[encoding][0])
    layer(tmp_path, encoding, dtype)
    file = next((tmp_path / "8_8_40").iterdir())
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ChunkReadError, match=r"box \(3, 4, 5\) to .* is damaged: it"):
        read(tmp_path)


@pytest.mark.parametrize("served", [False, True])
def test_a_decoder_that_cannot_start_is_not_a_damaged_chunk(tmp_path, monkeypatch, served):
    """Starting a decoder fails, for example, at a limit of processes or open files; the chunk itself is intact."""
    values = layer(tmp_path, "crackle", "uint64")
    monkeypatch.setattr(isolated, "_POOL", isolated._Pool())
    monkeypatch.setattr(isolated.sys, "executable", str(tmp_path / "nothing"))
    with serving(tmp_path) as server, pytest.raises(ChunkReadError) as caught:
        open_layer(server.url if served else tmp_path).read(0, GRID.box)
    assert "the decoder process cannot be started (No such file" in str(caught.value)
    assert "damaged" not in str(caught.value)
    monkeypatch.undo()
    np.testing.assert_array_equal(read(tmp_path), values)
