"""The disk cache: the requests that it avoids, damaged entries, its size and folder, and use by many processes."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.core.grid import Grid
from imageryxr.errors import CacheWarning, OptionError
from imageryxr.sources.fetch import disk_cache, disk_reads, memory_cache
from imageryxr.sources.fetch.disk_cache import DiskCache
from imageryxr.sources.fetch.disk_entry import entry_name
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.traffic import Traffic, traffic
from imageryxr.sources.fetch.validators import Validator, validator_of
from imageryxr.sources.resolve import resolve_source
from tests.support import annotations, shards
from tests.support.omezarr import axes_of, level, write_ome
from tests.support.precomputed import write_layer
from tests.support.processes import python
from tests.support.recorder import Recorder, recording
from tests.support.s3_server import SECRET
from tests.support.slow import slow_except
from tests.support.source_suite import noise

GRID = Grid((16, 32, 32), (8, 8, 40), (0, 0, 0))
TAG = Validator('"1"')


class ValidatingServer:
    """A folder on a web server that sends ETags and counts responses with chunks and responses 304."""

    def __init__(self, server: Recorder, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.headers: dict[str, str] = {}
        self.has_etags = True
        self.unchanged = self.bodies = 0
        self.lock = threading.Lock()
        server.answer = self.answer

    def answer(self, request):
        file = self.folder / request.path.partition("?")[0].lstrip("/")
        if not file.is_file():
            return None
        whole = file.read_bytes()
        sent = dict(line.split(": ", 1) for line in request.text.lower().splitlines() if ": " in line)
        etag = f'"{hash(whole):x}"'
        headers = {**({"ETag": etag} if self.has_etags else {}), **self.headers}
        with self.lock:
            if sent.get("if-none-match") == etag:
                self.unchanged += 1
                return 304, b"", headers
            self.bodies += file.name not in ("info", "zarr.json")
        if "range" not in sent:
            return 200, whole, headers
        first, _, last = sent["range"].removeprefix("bytes=").partition("-")
        start = int(first) if first else len(whole) - int(last)
        stop = int(last) + 1 if first and last else len(whole)
        return 206, whole[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(whole)}"}

    def counts(self) -> tuple[int, int]:
        """Return the numbers of responses with chunks and of responses 304 since the last call."""
        found, self.bodies, self.unchanged = (self.bodies, self.unchanged), 0, 0
        return found

    @property
    def url(self) -> str:
        return self.server.url()


@pytest.fixture
def served(tmp_path):
    (tmp_path / "served").mkdir()
    with recording() as server:
        yield ValidatingServer(server, tmp_path / "served")


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch):
    monkeypatch.delenv(disk_cache.VARIABLE, raising=False)
    clear_memory_caches()


def clear_memory_caches() -> None:
    """Clear all caches in memory, as if the process were new."""
    memory_cache.cache.clear()
    disk_reads.clear()
    disk_cache._caches.clear()


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if len(p.name) == 40)


def write_volume(folder: Path, kind: str, *, inverted: bool = False) -> np.ndarray:
    """Write a volume with chunks of 16 × 16 × 8 voxels."""
    values = noise(GRID.shape, "uint8")
    values = 255 - values if inverted else values
    if kind == "precomputed":
        write_layer(folder, [values], [GRID], encoding="raw", compress=False)
    elif kind == "sharded":
        values = noise(shards.GRID.shape, "uint64") + np.uint64(inverted)
        shards.write(folder, values, shards.spec())
    else:
        codecs = {"shards": (16, 32, 32)} if kind == "zarr shards" else {}
        multiscale = {"axes": axes_of("zyx"), "datasets": [level("s0", (40, 8, 8))]}
        write_ome(folder, [values], multiscale, chunks=(8, 16, 16), **codecs)
    return values


def read(served: ValidatingServer, cache: Path | None, **options) -> np.ndarray:
    """Read a volume with empty memory caches, as a new process does."""
    clear_memory_caches()
    connection = ix.Connection(disk_cache=cache, retries=0, **options)
    source = resolve_source(served.url, None, connection=connection)
    return source.read(0, source.levels[0].grid.box)


KINDS = ["precomputed", "sharded", "zarr", "zarr shards"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_process_receives_no_chunk_that_is_in_the_disk_cache(served, tmp_path, kind):
    values, cache = write_volume(served.folder, kind), tmp_path / "cache"
    np.testing.assert_array_equal(read(served, cache), values)
    bodies, unchanged = served.counts()
    assert bodies >= 2
    assert unchanged == 0
    np.testing.assert_array_equal(read(served, cache), values)
    bodies, unchanged = served.counts()
    assert bodies == 0
    assert unchanged > 0


@pytest.mark.parametrize("kind", KINDS)
def test_changed_objects_are_fetched_again(served, tmp_path, kind):
    write_volume(served.folder, kind)
    cache = tmp_path / "cache"
    read(served, cache)
    shutil.rmtree(served.folder)
    served.folder.mkdir()
    values = write_volume(served.folder, kind, inverted=True)
    np.testing.assert_array_equal(read(served, cache), values)
    np.testing.assert_array_equal(read(served, cache), values)


def test_one_request_validates_the_cached_chunks_of_a_shard(served, tmp_path):
    write_volume(served.folder, "zarr shards")
    read(served, tmp_path / "cache")
    served.counts()
    read(served, tmp_path / "cache")
    assert served.counts() == (0, 2)  # one request validates the index, and one the 8 chunks


def test_the_chunks_of_a_changed_shard_are_fetched_together(served, tmp_path):
    values = write_volume(served.folder, "zarr shards")
    read(served, tmp_path / "cache")
    (file,) = (p for p in served.folder.rglob("c/*/*/*"))
    shard = file.read_bytes()
    file.write_bytes(shard + b"\0" * 8 + shard[-(16 * 8 + 4) :])  # longer, with the same chunks and index
    served.counts()
    np.testing.assert_array_equal(read(served, tmp_path / "cache"), values)
    assert served.counts() == (3, 0)  # three responses: the index, the first chunk, and all other chunks


ANNOTATION_SHARDS = {"@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 1,
                     "minishard_bits": 1, "shard_bits": 1}  # fmt: skip


def open_points(served: ValidatingServer, cache: Path) -> xr.Dataset:
    """Open annotations with empty memory caches, as a new process does."""
    clear_memory_caches()
    return ix.open_annotations(served.url, connection=ix.Connection(disk_cache=cache, retries=0))


@pytest.mark.parametrize("sharding", [None, ANNOTATION_SHARDS])
def test_annotations_are_cached(served, tmp_path, sharding):
    annotations.write_levels(served.folder, "point", annotations.random_annotations("point"), sharding)
    first = open_points(served, tmp_path / "cache")
    bodies, unchanged = served.counts()
    assert bodies > 0
    assert unchanged == 0
    entries(tmp_path / "cache")[0].write_bytes(b"damaged")
    xr.testing.assert_identical(open_points(served, tmp_path / "cache"), first)
    assert served.counts()[0] == 1
    xr.testing.assert_identical(open_points(served, tmp_path / "cache"), first)
    assert served.counts() == (0, bodies)


def test_annotations_that_cannot_be_decoded_are_not_cached(served, tmp_path):
    annotations.write_levels(served.folder, "point", annotations.random_annotations("point", 5))
    for file in served.folder.glob("spatial*/*"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ix.errors.ChunkReadError, match="is damaged"):
        open_points(served, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_entries_younger_than_max_age_are_used_without_a_request(served, tmp_path):
    write_volume(served.folder, "precomputed")
    served.headers = {"Cache-Control": "public, max-age=60"}
    read(served, tmp_path / "cache")
    served.counts()
    read(served, tmp_path / "cache")
    assert served.counts() == (0, 0)


@pytest.mark.parametrize("rule", ["no-store", "max-age=0", "no-cache, max-age=60", "max-age=60 with Age: 60"])
def test_cache_control_of_the_server_is_followed(served, tmp_path, rule):
    write_volume(served.folder, "precomputed")
    rule, _, age = rule.partition(" with Age: ")
    served.headers = {"Cache-Control": rule, **({"Age": age} if age else {})}
    read(served, tmp_path / "cache")
    served.counts()
    read(served, tmp_path / "cache")
    assert served.counts() == ((8, 0) if rule == "no-store" else (0, 8))


def test_objects_that_cannot_be_validated_are_not_stored(served, tmp_path):
    write_volume(served.folder, "precomputed")
    served.has_etags = False
    read(served, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_last_modified_validates_if_it_is_older_than_the_response():
    date = "Tue, 01 Dec 2026 20:00:01 GMT"
    for modified, is_stored in (("Tue, 01 Dec 2026 20:00:00 GMT", True), (date, False), ("yesterday", False)):
        found = validator_of({"date": date, "last-modified": modified}, is_part=False, is_public=True)
        assert (found is not None) == is_stored
        assert found is None or found.headers == {"If-Modified-Since": modified}


@pytest.mark.parametrize("is_part", [False, True])
def test_a_weak_etag_identifies_whole_objects_only(is_part):
    found = validator_of({"etag": 'W/"1"'}, is_part=is_part, is_public=True)
    assert (found is None) == is_part


def test_missing_chunks_are_not_stored(served, tmp_path):
    write_volume(served.folder, "precomputed")
    lost = next(p for p in (served.folder / "8_8_40").iterdir())
    body = lost.read_bytes()
    lost.unlink()
    clear_memory_caches()
    connection = ix.Connection(disk_cache=tmp_path / "cache", retries=0)
    assert (ix.open_image(served.url, connection=connection, missing="fill").values == 0).any()
    lost.write_bytes(body)
    np.testing.assert_array_equal(read(served, tmp_path / "cache"), noise(GRID.shape, "uint8"))


def test_a_chunk_that_was_deleted_is_missing(served, tmp_path):
    write_volume(served.folder, "precomputed")
    read(served, tmp_path / "cache")
    next(p for p in (served.folder / "8_8_40").iterdir()).unlink()
    with pytest.raises(ix.errors.MissingChunkError):
        read(served, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) < 8


def test_the_environment_names_the_folder_and_false_disables_the_cache(served, tmp_path, monkeypatch):
    write_volume(served.folder, "precomputed")
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path / "cache"))
    read(served, False)
    assert not (tmp_path / "cache").exists()
    read(served, None)
    assert len(entries(tmp_path / "cache")) == 8
    assert len(entries(tmp_path)) == 8


def test_local_files_are_not_stored(tmp_path):
    values = write_volume(tmp_path / "layer", "precomputed")
    connection = ix.Connection(disk_cache=tmp_path / "cache")
    np.testing.assert_array_equal(ix.open_image(tmp_path / "layer", connection=connection).values, values)
    assert not (tmp_path / "cache").exists()


def test_the_memory_cache_is_used_first(served, tmp_path):
    write_volume(served.folder, "precomputed")
    array = ix.open_image(served.url, connection=ix.Connection(disk_cache=tmp_path / "cache"))
    array.compute()
    served.counts()
    array.compute()
    assert served.counts() == (0, 0)


def test_secrets_are_not_stored(served, tmp_path):
    write_volume(served.folder, "precomputed")
    url = served.url.replace("://", "://someone:verysecret@")
    clear_memory_caches()
    connection = ix.Connection(disk_cache=tmp_path / "cache")
    ix.open_image(url, connection=connection).compute()
    assert len(entries(tmp_path / "cache")) == 8
    for path in (tmp_path / "cache").rglob("*"):
        for secret in (b"verysecret", b"someone", b"c29tZW9uZTp2ZXJ5c2VjcmV0"):
            assert secret not in str(path).encode()
            assert path.is_dir() or secret not in path.read_bytes()


def test_objects_read_with_a_password_are_validated_in_spite_of_max_age(served, tmp_path):
    write_volume(served.folder, "precomputed")
    served.headers = {"Cache-Control": "max-age=60"}
    url = served.url.replace("://", "://someone:verysecret@")
    connection = ix.Connection(disk_cache=tmp_path / "cache")
    for _ in range(2):
        clear_memory_caches()
        served.counts()
        ix.open_image(url, connection=connection).compute()
    assert served.counts() == (0, 8)
    before = served.server.answer
    served.server.answer = lambda request: before(request) if request.path == "/info" else (401, b"", {})
    clear_memory_caches()
    with pytest.raises(ix.errors.AuthError):
        ix.open_image(url, connection=connection).compute()


@pytest.mark.parametrize("kind", slow_except(["precomputed", "zarr", "zarr shards"], "zarr"))
def test_objects_in_a_bucket_with_credentials_are_validated(bucket, tmp_path, kind):
    values = write_volume(tmp_path / "layer", kind)

    def upload():
        for file in (tmp_path / "layer").rglob("*"):
            if file.is_file():
                bucket.client.upload_file(str(file), bucket.name, f"em/{file.relative_to(tmp_path / 'layer')}")

    def read_again() -> tuple[np.ndarray, Traffic]:
        clear_memory_caches()
        connection = ix.Connection(disk_cache=tmp_path / "cache")
        source = resolve_source(f"{kind.split()[0]}://{bucket.url('em')}", None, connection=connection)
        before = traffic()
        return source.read(0, GRID.box), traffic().since(before)

    upload()
    np.testing.assert_array_equal(read_again()[0], values)
    found, counts = read_again()
    np.testing.assert_array_equal(found, values)
    assert counts.received == 0
    assert counts.requests == (2 if kind == "zarr shards" else 8)
    assert counts.on_disk == (9 if kind == "zarr shards" else 8)
    shutil.rmtree(tmp_path / "layer")
    write_volume(tmp_path / "layer", kind, inverted=True)
    upload()
    np.testing.assert_array_equal(read_again()[0], 255 - values)
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


# ---------------------------------------------------------------------------------------------------------
# entries


def damage_entry(file: Path, kind: str) -> None:
    whole = file.read_bytes()
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "directory":
        file.unlink()
        file.mkdir()
    elif kind == "symlink":
        file.rename(file.with_suffix(".moved"))
        file.symlink_to(file.with_suffix(".moved"))
    elif kind == "fifo":
        file.unlink()
        os.mkfifo(file)
    elif kind == "foreign":
        file.write_bytes(b"\0" * len(whole))
    elif kind == "longer":
        file.write_bytes(whole + b"\0")
    else:
        place = {"magic": 3, "checksum": 25, "header size": 52, "body size": 58, "header": 70, "body": len(whole) - 5}[
            kind
        ]
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize(
    "kind",
    ["empty", "directory", "symlink", "fifo", "foreign", "longer", "magic", "checksum", "header size", "body size", "header", "body"],
)  # fmt: skip
def test_a_damaged_entry_is_fetched_again(served, tmp_path, kind):
    values = write_volume(served.folder, "precomputed")
    read(served, tmp_path / "cache")
    damage_entry(entries(tmp_path / "cache")[3], kind)
    served.counts()
    if kind == "directory":
        with pytest.warns(CacheWarning, match="chunks are read without adding them"):
            np.testing.assert_array_equal(read(served, tmp_path / "cache"), values)
        return
    np.testing.assert_array_equal(read(served, tmp_path / "cache"), values)
    assert served.counts() == (1, 7)
    np.testing.assert_array_equal(read(served, tmp_path / "cache"), values)
    assert served.counts() == (0, 8)


def test_an_entry_with_a_flipped_bit_or_a_missing_end_is_removed(tmp_path):
    cache, name = DiskCache(str(tmp_path)), entry_name("a")
    cache.put(name, Stored(b"some voxels", "gzip", validator=TAG), 1 << 20)
    (file,) = entries(tmp_path)
    whole = file.read_bytes()
    assert cache.get(name, 100) == Stored(b"some voxels", "gzip", validator=TAG)
    for place in range(len(whole)):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]):
            file.write_bytes(content)
            assert cache.get(name, 100) is None
            assert not file.exists()


def test_an_entry_that_was_copied_to_another_name_is_not_used(served, tmp_path):
    values = write_volume(served.folder, "precomputed")
    read(served, tmp_path / "cache")
    first, second = entries(tmp_path / "cache")[:2]
    shutil.copy(first, second)
    np.testing.assert_array_equal(read(served, tmp_path / "cache"), values)


def test_an_entry_that_cannot_be_decoded_is_fetched_again(served, tmp_path):
    values = write_volume(served.folder, "precomputed")
    read(served, tmp_path / "cache")
    cache = DiskCache(str(tmp_path / "cache"))
    name = entries(tmp_path / "cache")[0].name
    good = cache.get(name, 1 << 20)
    cache.put(name, good._replace(body=b"short"), 1 << 30)
    np.testing.assert_array_equal(read(served, tmp_path / "cache"), values)
    assert cache.get(name, 1 << 20) == good


def test_a_folder_that_is_removed_during_use_is_created_again(served, tmp_path):
    values = write_volume(served.folder, "precomputed")
    connection = ix.Connection(disk_cache=tmp_path / "cache", memory_cache=0)
    source = resolve_source(served.url, None, connection=connection)
    for _ in range(2):
        np.testing.assert_array_equal(source.read(0, GRID.box), values)
        assert len(entries(tmp_path / "cache")) == 8
        shutil.rmtree(tmp_path / "cache")


# ---------------------------------------------------------------------------------------------------------
# processes

READER = """
import sys
import numpy as np
import imageryxr as ix
from imageryxr.sources.resolve import resolve_source
url, folder, expected, times = sys.argv[1:]
right = np.load(expected)
for _ in range(int(times)):
    options = ix.Connection(disk_cache=folder, disk_cache_size="300 kB", memory_cache=0, retries=0, concurrency=4)
    source = resolve_source(url, None, connection=options)
    assert np.array_equal(source.read(0, source.levels[0].grid.box), right)
    print("right", flush=True)
"""


@pytest.mark.slow
def test_processes_share_a_folder_that_is_smaller_than_the_volume(served, tmp_path):
    values = noise((32, 64, 64), "uint64")
    write_layer(served.folder, [values], [Grid(values.shape, (8, 8, 40), (0, 0, 0))], encoding="raw", compress=False)
    np.save(tmp_path / "expected.npy", values)
    given = ("-c", READER, served.url, tmp_path / "cache", tmp_path / "expected.npy", 2)
    started = [python(*given, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for process in started:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert output.count("right") == 2
    assert size_of(tmp_path / "cache") <= 300_000
    assert served.counts()[1] > 0


@pytest.mark.slow
def test_killed_processes_leave_no_wrong_byte_in_a_shared_folder(served, tmp_path):
    values = noise((32, 64, 64), "uint64")
    write_layer(served.folder, [values], [Grid(values.shape, (8, 8, 40), (0, 0, 0))], encoding="raw", compress=False)
    np.save(tmp_path / "expected.npy", values)
    rng = np.random.default_rng(19)
    given = ("-c", READER, served.url, tmp_path / "cache", tmp_path / "expected.npy", 1000)

    def start():
        return python(*given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    running = [start() for _ in range(3)]
    for kill in range(30):
        victim = running[kill % 3]
        assert "right" in victim.stdout.readline()  # the process is reading and writing entries
        time.sleep(rng.uniform(0, 0.1))
        victim.send_signal(signal.SIGKILL)
        _, error = victim.communicate(timeout=60)
        assert "AssertionError" not in (error or "")
        running[kill % 3] = start()
    for process in running:
        assert "right" in process.stdout.readline()
        process.kill()
        _, error = process.communicate(timeout=60)
        assert "Error" not in (error or "")
    np.testing.assert_array_equal(read(served, tmp_path / "cache"), values)
    cache = DiskCache(str(tmp_path / "cache"))
    for entry in entries(tmp_path / "cache"):
        assert cache.get(entry.name, 1 << 20) is not None


# ---------------------------------------------------------------------------------------------------------
# size


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_the_least_recently_used_entries_are_dropped(tmp_path):
    cache = DiskCache(str(tmp_path))
    names = [entry_name(i) for i in range(60)]
    first = names[0]
    now = time.time() - 1000
    for number, name in enumerate(names):
        cache.put(name, Stored(bytes(28_000), validator=TAG), 1_000_000)
        os.utime(tmp_path / "imageryxr-chunks-1" / name[:2] / name, (now + number, now + number))
        assert cache.get(first, 28_000) is not None  # an entry that is used is kept
        os.utime(tmp_path / "imageryxr-chunks-1" / first[:2] / first, (now + number, now + number))
        assert size_of(tmp_path) <= 1_000_000
    left = [name for name in names if cache.has(name)]
    assert left == [first, *names[-len(left) + 1 :]]
    assert len(left) > 20


def test_the_number_of_entries_is_estimated_if_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "_FEW", 100)
    cache = DiskCache(str(tmp_path))
    for number in range(250):
        cache.put(entry_name(number), Stored(bytes(100), validator=TAG), 4096 * 150)
    assert 75 < cache.usage().entries < 190


def test_entries_are_added_while_another_process_holds_the_lock(tmp_path):
    import fcntl

    cache = DiskCache(str(tmp_path))
    with open(tmp_path / "imageryxr-chunks-1" / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for number in range(6):
            cache.put(entry_name(number), Stored(bytes(20_000), validator=TAG), 100_000)
        assert cache.usage().entries == 6
    cache.put(entry_name(11), Stored(bytes(20_000), validator=TAG), 100_000)
    assert size_of(tmp_path) <= 100_000


def test_an_object_larger_than_a_quarter_of_the_cache_is_not_stored(tmp_path):
    cache = DiskCache(str(tmp_path))
    cache.put(entry_name(1), Stored(bytes(30_000), validator=TAG), 100_000)
    assert cache.usage().entries == 0


def test_abandoned_temporary_files_are_removed(tmp_path):
    cache = DiskCache(str(tmp_path))
    cache.put(entry_name(1), Stored(b"1", validator=TAG), 100_000)
    (file,) = entries(tmp_path)
    abandoned, recent = (file.with_name(f"{file.name}-{c * 16}") for c in "ab")
    for path in (abandoned, recent):
        path.write_bytes(b"x")
    os.utime(abandoned, (1, 1))
    cache.drop_until(100_000)
    assert not abandoned.exists()
    assert recent.exists()


# ---------------------------------------------------------------------------------------------------------
# folder


def test_only_the_owner_can_read_entries(tmp_path):
    before = os.umask(0)
    try:
        cache = DiskCache(str(tmp_path / "new" / "cache"))
        cache.put(entry_name(1), Stored(b"1", validator=TAG), 100_000)
        cache.drop_until(0)
        cache.put(entry_name(1), Stored(b"1", validator=TAG), 100_000)
    finally:
        os.umask(before)
    for path in (tmp_path / "new" / "cache").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_folder_that_others_can_change_is_refused(served, tmp_path):
    write_volume(served.folder, "precomputed")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(OptionError, match=r"can be changed by other users; run chmod go-w"):
        read(served, tmp_path / "cache")
    (tmp_path / "cache").chmod(0o1777)  # the permissions of /tmp
    with pytest.raises(OptionError, match=r"is shared with other users; name a folder of your own, e.g. .*/imageryxr"):
        DiskCache(str(tmp_path / "cache"))
    (tmp_path / "cache").chmod(0o755)
    read(served, tmp_path / "cache")
    assert stat.S_IMODE((tmp_path / "cache" / "imageryxr-chunks-1").stat().st_mode) == 0o700


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(OptionError, match="belongs to another user"):
        DiskCache(str(tmp_path))


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="is a file"):
        DiskCache(str(tmp_path / "file"))


@pytest.mark.parametrize("value", [7, "s3://bucket/cache", "", True])
def test_an_invalid_disk_cache_is_an_error(value):
    with pytest.raises(OptionError, match="is not a folder on this machine"):
        ix.Connection(disk_cache=value)


def test_reading_goes_on_with_one_warning_if_the_folder_cannot_be_written_to(served, tmp_path):
    values = write_volume(served.folder, "precomputed")
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning, match="cannot be written to .*Not a directory.*, so chunks are read") as caught:
        np.testing.assert_array_equal(read(served, tmp_path / "file" / "cache"), values)
    assert len(caught) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_reading_goes_on_with_one_warning_if_the_disk_is_full(served, tmp_path, monkeypatch):
    values = write_volume(served.folder, "precomputed")
    real = disk_cache._write_all

    def write_all(file, data):
        with open("/dev/full", "wb", buffering=0) as full:
            real(full, data)

    monkeypatch.setattr(disk_cache, "_write_all", write_all)
    with pytest.warns(CacheWarning, match=r"No space left on device.*free some space") as caught:
        np.testing.assert_array_equal(read(served, tmp_path / "cache"), values)
    assert len(caught) == 1
    assert not [p for p in (tmp_path / "cache").rglob("*-*") if p.is_file()]
