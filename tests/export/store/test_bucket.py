"""Objects of a bucket: which uploads replace which objects, broken connections, and servers without conditional writes."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import pytest
import zarr

import imageryxr as ix
from imageryxr.export.store import bucket as buckets
from imageryxr.export.store.bucket import Bucket
from imageryxr.export.store.lease import Lease
from imageryxr.export.store.local import FileRecord
from tests.support.export_jobs import Computed, array_of, picture

pytestmark = pytest.mark.slow  # most of these tests start processes or servers

OPTIONS = {"chunks": (2, 16, 16), "levels": 1}
NOT_IMPLEMENTED = (
    "<?xml version='1.0'?><Error><Code>NotImplemented</Code><Message>A header is not implemented</Message></Error>"
)


TRANSIENT = "<?xml version='1.0'?><Error><Code>RequestTimeout</Code><Message>Too slow</Message></Error>"


class Proxy(ThreadingHTTPServer):
    """A proxy that forwards requests to a server, and can break connections or ignore conditions."""

    daemon_threads = True
    request_queue_size = 128  # connections beyond the queue are retried after a second

    def __init__(self, server):
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.server_at = urlsplit(server).netloc
        self.break_before = self.break_after = self.bad = 0
        """Numbers of uploads whose connection breaks before and after the server receives them, or that get a 400."""
        self.conditions = "known"
        """How conditional uploads are answered: "known" (as S3 does), "refused" (501), another status, without one or
        both of the conditions ("ignored", "If-Match ignored", …), or with weak entity tags ("odd")."""
        self.uploads = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def breaks(self, name):
        left = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return left > 0

    def handle_error(self, request, client_address):
        """Print nothing about connections that were broken on purpose."""


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upload = self.command == "PUT"
        condition = self.headers.get("If-None-Match") or self.headers.get("If-Match")
        if upload:
            self.server.uploads.append((self.path, condition))
            if self.server.breaks("break_before"):
                return self.cut()
            if condition and self.server.conditions == "refused":
                return self.answer(501, [("Content-Type", "application/xml")], NOT_IMPLEMENTED.encode())
            if condition and self.server.bad > 0:
                self.server.bad -= 1
                return self.answer(400, [("Content-Type", "application/xml")], TRANSIENT.encode())
            if condition and self.server.conditions in (400, 405, 501):
                return self.answer(self.server.conditions, [], b"")
        headers = dict(self.headers.items())
        ignored = {"ignored": "if-", "If-Match ignored": "if-match", "If-None-Match ignored": "if-none-match"}
        if self.server.conditions in ignored:
            start = ignored[self.server.conditions]
            headers = {k: v for k, v in headers.items() if not k.lower().startswith(start)}
        link = http.client.HTTPConnection(self.server.server_at)
        link.request(self.command, self.path, body, headers)
        answer = link.getresponse()
        data = answer.read()
        if upload and self.server.breaks("break_after"):
            return self.cut()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("content-length", "transfer-encoding")]
        if self.server.conditions == "odd":
            kept = [(k, 'W/"odd"' if k.lower() == "etag" else v) for k, v in kept]
        return self.answer(answer.status, kept, data, answer.getheader("Content-Length"))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def answer(self, status, headers, data, length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else data)

    def cut(self):
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class LeaseLostAtCheck:
    """A replacement of a lease that is lost at the n-th check."""

    def __init__(self, last):
        self.calls, self.last = 0, last

    def ensure(self):
        self.calls += 1
        if self.calls == self.last:
            raise ix.errors.TargetError("another took over")

    check = ensure


@pytest.fixture
def proxy(s3, bucket, monkeypatch):
    """Start a proxy between imageryxr and the server; requests of the tests themselves bypass it."""
    server = Proxy(s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()


def test_an_object_is_replaced_only_by_the_lease_holder(proxy, bucket):
    place = Bucket(bucket.url("x"))
    assert place.put([("a", b"1"), ("b.gz", b"22")]) == {"a": FileRecord.of(b"1"), "b.gz": FileRecord.of(b"22")}
    assert place.put([("a", b"3")])["a"] == FileRecord.of(b"3")
    assert {name: bucket.read(name) for name in bucket.names()} == {"x/a": b"3", "x/b": b"22"}
    sent_conditions = [condition for path, condition in proxy.uploads if path.endswith("x/a")]
    assert sent_conditions[:2] == ["*", "*"]
    assert len(sent_conditions) == 3
    assert sent_conditions[2].strip('"').isalnum()
    assert place.create("a", b"4") is False
    assert place.create("c", b"5") is True
    _, mark = place.get_with_mark("a")
    assert place.replace("a", b"6", mark) is True
    assert place.replace("a", b"7", mark) is False
    assert place.get_with_mark("nothing") == (None, None)
    assert bucket.read("x/a") == b"6"


@pytest.mark.parametrize("there", [False, True])
def test_an_object_created_before_the_upload_is_not_replaced(bucket, monkeypatch, there):
    """Another writer may have taken over the target, so this process checks its lease before each attempt."""
    watch = LeaseLostAtCheck(3)
    place = Bucket(bucket.url("x"), watch)
    if there:
        bucket.client.put_object(Bucket=bucket.name, Key="x/a", Body=b"old")
    send = Bucket._send

    def send_after_another_upload(self, name, *args):
        bucket.client.put_object(Bucket=bucket.name, Key="x/a", Body=f"theirs {watch.calls}".encode())
        return send(self, name, *args)

    monkeypatch.setattr(Bucket, "_send", send_after_another_upload)
    with pytest.raises(ix.errors.TargetError, match="another took over"):
        place.put([("a", b"mine")])
    assert bucket.read("x/a") == b"theirs 2"


@pytest.mark.parametrize("when", ["break_before", "break_after"])
@pytest.mark.parametrize("there", [False, True])
def test_uploads_survive_broken_connections(proxy, bucket, when, there):
    place = Bucket(bucket.url("x"))
    if there:
        place.put([("a", b"old")])
    setattr(proxy, when, 3)
    assert place.put([("a", b"new")])["a"].size == 3
    assert getattr(proxy, when) == 0
    assert bucket.read("x/a") == b"new"


def test_long_outages_end_the_export(proxy, bucket, monkeypatch):
    monkeypatch.setattr(buckets, "_WAITS", (0.01, 0.01, None))
    proxy.break_before = 3
    with pytest.raises(ix.errors.TargetError, match="could not write s3://.*x: Generic S3 error"):
        Bucket(bucket.url("x")).put([("a", b"new")])
    assert len(proxy.uploads) == 3
    assert bucket.names() == []


def test_uploads_are_not_retried_after_the_lease_is_lost(proxy, bucket):
    proxy.break_before = 2
    with pytest.raises(ix.errors.TargetError, match="another took over"):
        Bucket(bucket.url("x"), LeaseLostAtCheck(2)).put([("a", b"new")])
    assert len(proxy.uploads) == 1


def test_manifests_are_not_cached_by_proxies(bucket):
    """Google's servers cache public objects for an hour unless their metadata forbid it."""
    ix.export(picture(), bucket.url("o.zarr"))
    heads = {name: bucket.client.head_object(Bucket=bucket.name, Key=name) for name in bucket.names()}
    assert {name for name, head in heads.items() if head.get("CacheControl") == "no-store"} == {
        name for name in heads if "manifest" in name
    }


def test_an_object_that_exists_is_not_created_again(bucket):
    place = Bucket(bucket.url("x"))
    bucket.client.put_object(Bucket=bucket.name, Key="x/a", Body=b"theirs")
    for name, made in (("a", False), ("b", True), ("a", False), ("b", False)):
        assert place.create(name, b"mine") is made
    assert (bucket.read("x/a"), bucket.read("x/b")) == (b"theirs", b"mine")


def test_a_transient_bad_request_is_not_reported_as_missing_conditional_writes(proxy, bucket):
    place = Bucket(bucket.url("x"))
    place.put([("a", b"1")])
    proxy.bad = 1
    with pytest.raises(ix.errors.TargetError, match="RequestTimeout"):
        place.put([("b", b"2")])
    place.put([("b", b"2")])
    assert bucket.read("x/b") == b"2"


def test_an_object_is_not_replaced_when_the_server_stops_supporting_conditions(proxy, bucket):
    place = Bucket(bucket.url("x"))
    place.put([("a", b"1")])
    _, mark = place.get_with_mark("a")
    bucket.client.put_object(Bucket=bucket.name, Key="x/a", Body=b"theirs")
    proxy.conditions = 400
    with pytest.raises(ix.errors.TargetError, match="does not support conditional writes"):
        place.replace("a", b"late", mark)
    assert bucket.read("x/a") == b"theirs"


def test_an_object_that_others_keep_changing_is_an_error(bucket, monkeypatch):
    send, writes = Bucket._send, []

    def send_after_another_upload(self, name, *args):
        writes.append(name)
        bucket.client.put_object(Bucket=bucket.name, Key="x/a", Body=f"theirs {len(writes)}".encode())
        return send(self, name, *args)

    monkeypatch.setattr(Bucket, "_send", send_after_another_upload)
    with pytest.raises(
        ix.errors.TargetError, match=r"x/a: another program changed this object during each of 4 attempts"
    ):
        Bucket(bucket.url("x")).put([("a", b"mine")])
    assert bucket.read("x/a") == b"theirs 4"


def test_a_live_holder_keeps_its_lease_and_a_dead_one_loses_it(bucket, impatient):
    place = Bucket(bucket.url("o").rpartition("/")[0])
    place.put([("o.lock", json.dumps({"key": "theirs", "host": "another-machine", "pid": 1}).encode())])
    with Lease(place, "o.lock").hold():
        for _ in range(2):
            time.sleep(1.5)
            other = Lease(place, "o.lock")
            assert other.holder()
        with pytest.raises(ix.errors.TargetError, match="another process is exporting"), other.hold():
            pass
    assert bucket.names() == []


@pytest.mark.parametrize(
    "conditions", ["refused", "ignored", "If-Match ignored", "If-None-Match ignored", "odd", 400, 405, 501]
)
def test_a_server_without_conditional_writes_is_refused_before_anything_is_written(proxy, bucket, conditions):
    proxy.conditions = conditions
    with pytest.raises(ix.errors.TargetError) as caught:
        ix.export(picture(), bucket.url("o.zarr"), workers=1, **OPTIONS)
    message = str(caught.value)
    assert message.startswith(f"could not write s3://{bucket.name}: its server does not support conditional writes")
    assert "export to a local folder and copy the result, or use a service with conditional writes" in message
    assert bucket.names() == []
    assert all("probe" in path for path, _ in proxy.uploads)


def test_an_existing_result_is_kept_if_the_server_lacks_conditional_writes(proxy, bucket):
    ix.export(picture(seed=1), bucket.url("o.zarr"), workers=1, **OPTIONS)
    before = bucket.contents()
    proxy.conditions = "ignored"
    with pytest.raises(ix.errors.TargetError, match="does not support conditional writes"):
        ix.export(picture(), bucket.url("o.zarr"), workers=1, overwrite=True, **OPTIONS)
    assert bucket.contents() == before


@pytest.mark.parametrize("when", ["break_before", "break_after"])
@pytest.mark.parametrize("count", range(1, 6))
def test_broken_connections_are_not_reported_as_missing_conditional_writes(proxy, bucket, when, count):
    setattr(proxy, when, count)
    Bucket(bucket.url("x")).check_conditional_writes("probe")
    assert bucket.names() == []


def test_large_objects_are_uploaded_in_parts(proxy, bucket, monkeypatch):
    monkeypatch.setattr(buckets, "ONE_REQUEST", 1 << 20)
    place, data = Bucket(bucket.url("x")), np.random.default_rng(0).bytes(12 << 20)
    for _ in range(2):
        assert place.put([("a", data)])["a"] == FileRecord.of(data)
    assert bucket.read("x/a") == data
    assert sum("partNumber" in path for path, _ in proxy.uploads) >= 4


def test_one_of_several_exports_takes_a_free_lease(bucket, monkeypatch):
    monkeypatch.setattr(Lease, "BEAT", 0.5)
    place, create = Bucket(bucket.url("o").rpartition("/")[0]), Lease._create
    for _ in range(4):
        begin, ended, held = threading.Barrier(3), threading.Barrier(3), []

        def late(lease, begin=begin):
            begin.wait()  # at this point, all processes have found no lease
            return create(lease)

        def take(ended=ended, held=held):
            try:
                with Lease(place, "o.lock").hold():
                    held.append(True)
                    ended.wait()
            except ix.errors.TargetError:
                ended.wait()

        monkeypatch.setattr(Lease, "_create", late)
        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(held) == 1
        for name in bucket.names():
            bucket.client.delete_object(Bucket=bucket.name, Key=name)


def test_objects_are_deleted_only_while_the_lease_is_held(bucket, monkeypatch):
    monkeypatch.setattr(buckets, "MAX_DELETE", 4)
    names = [f"{i:02d}" for i in range(10)]
    Bucket(bucket.url("x")).put((name, b"1") for name in names)
    with pytest.raises(ix.errors.TargetError, match="another took over"):
        Bucket(bucket.url("x"), LeaseLostAtCheck(3)).delete(names)
    assert bucket.names() == ["x/08", "x/09"]
    Bucket(bucket.url("x"), LeaseLostAtCheck(4)).delete(names)
    assert bucket.names() == []


def test_a_silent_server_is_an_error_after_a_time_limit(proxy, bucket, monkeypatch):
    """The limit is a time, not a number of attempts, each of which may take minutes."""
    monkeypatch.setattr(buckets, "_WAITS", (*[0.01] * 100, None))
    monkeypatch.setattr(buckets, "_PATIENCE", 0.5)
    proxy.break_before = 1000
    with pytest.raises(ix.errors.TargetError, match="could not write"):
        Bucket(bucket.url("x")).put([("a", b"new")])
    assert 1 < len(proxy.uploads) < 90


@pytest.mark.parametrize("there", [False, True])
def test_files_beyond_the_copy_limit_are_uploaded_again(proxy, bucket, monkeypatch, tmp_path, there):
    """From 5 GiB on, the object is downloaded and uploaded in a limited number of parts."""
    if there:
        ix.export(picture(seed=1), bucket.url("o.tif"))
    monkeypatch.setattr(buckets, "MAX_COPY", 1000)
    monkeypatch.setattr(buckets, "MAX_PARTS", 2)
    large = array_of(Computed((12, 1024, 1024)))
    report = ix.export(large, bucket.url("o.tif"), overwrite=there, compression=None)
    ix.export(large, tmp_path / "o.tif", compression=None)
    assert bucket.read("o.tif") == (tmp_path / "o.tif").read_bytes()
    assert report.bytes_written == len(bucket.read("o.tif"))
    parts = [path for path, _ in proxy.uploads if "partNumber" in path]
    assert len(parts) == 4
    assert not [name for name in bucket.names() if "-work-" in name]


def test_a_large_file_is_cut_into_parts_within_the_limits():
    assert buckets._part_size(1) == 5 << 20
    size = 300 << 30
    assert -(-size // buckets._part_size(size)) <= 10_000


def test_an_invalid_lease_is_replaced(bucket, impatient):
    for text in (b"", b"[]", b"{", b"null"):
        bucket.client.put_object(Bucket=bucket.name, Key="o.lock", Body=text)
        with Lease(Bucket(bucket.url("o").rpartition("/")[0]), "o.lock").hold():
            assert json.loads(bucket.read("o.lock"))["beat"]
        assert bucket.names() == []


def test_one_of_several_processes_takes_over_a_dead_lease(proxy, bucket, impatient):
    """No other process takes the lease over again, however late it tries."""
    place = Bucket(bucket.url("o").rpartition("/")[0])
    dead = json.dumps({"key": "theirs", "host": "another-machine", "pid": 1}).encode()
    place.put([("o.lock", dead)])
    leases, begin = [Lease(place, "o.lock") for _ in range(4)], threading.Barrier(4)
    held, refused = [], []

    def take(lease):
        begin.wait()
        try:
            with lease.hold():
                held.append(lease)
                time.sleep(3)  # while the other processes wait for a renewal
                lease.check()
        except ix.errors.TargetError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(held) == 1
    assert len(refused) == 3
    assert all("another process is exporting to this target" in message for message in refused), refused
    assert bucket.names() == []


def test_zarr_reads_a_result_whose_uploads_were_repeated(proxy, bucket, tmp_path):
    proxy.break_before, proxy.break_after = 2, 2
    assert ix.export(picture(), bucket.url("o.zarr"), workers=2, **OPTIONS).complete
    bucket.fetch(tmp_path)
    found = zarr.open_group(tmp_path / "o.zarr", mode="r")["0"][:]
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1), picture().values)
