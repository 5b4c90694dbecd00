"""Private, public and requester-pays buckets, on a real S3 server and on servers that record what they receive."""

from __future__ import annotations

import base64
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.core.grid import Grid
from imageryxr.sources.address import parse_address
from imageryxr.sources.annotations.folder import open_folder
from imageryxr.sources.fetch import buckets, google
from imageryxr.sources.fetch.memory_cache import cache
from imageryxr.sources.fetch.policy import Access
from imageryxr.sources.precomputed.source import fetch_info, open_precomputed
from tests.support import omezarr, precomputed, shards
from tests.support.recorder import certificate, own_connections, recording
from tests.support.s3_server import fresh_bucket, serving_s3
from tests.support.source_suite import noise

GRID = Grid((8, 20, 18), (8, 8, 40), (0, 0, 0))
WHOLE = IndexBox.of_shape(GRID.shape)
INFO = {"@type": "neuroglancer_multiscale_volume"}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    """Remove credentials from the environment."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def s3():
    with serving_s3() as url:
        yield url


@pytest.fixture
def bucket(s3, monkeypatch):
    return fresh_bucket(s3, monkeypatch)


def upload(bucket, folder: Path, prefix: str) -> None:
    """Upload files as CloudVolume does: ``NAME.gz`` becomes ``NAME`` with the Content-Encoding gzip."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        more = {"ContentEncoding": "gzip"} if name.endswith(".gz") else {}
        key = f"{prefix}/{name.removesuffix('.gz')}"
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=path.read_bytes(), **more)


def open_layer(url: str, **options):
    return open_precomputed(parse_address(f"precomputed://{url}"), **options)


# --- Amazon and compatible servers ----------------------------------------------------------------------------------


def test_a_private_precomputed_bucket_is_read_with_compressed_missing_and_sharded_chunks(bucket, tmp_path):
    values = noise(GRID.shape)
    precomputed.write_layer(tmp_path / "em", [values], [GRID])
    ids = noise(shards.GRID.shape, "uint64")
    shards.write(tmp_path / "cells", ids, shards.spec())
    upload(bucket, tmp_path, "x")
    source = open_layer(bucket.url("x/em"))
    np.testing.assert_array_equal(source.read(0, WHOLE), values)
    sharded = open_layer(bucket.url("x/cells"))
    np.testing.assert_array_equal(sharded.read(0, IndexBox.of_shape(ids.shape)), ids)
    assert fetch_info(parse_address(bucket.url("x/absent"))) is None
    bucket.client.delete_object(Bucket=bucket.name, Key=bucket.names()[-2])
    cache.clear()
    with pytest.raises(ix.errors.MissingChunkError):
        source.read(0, WHOLE)


def test_a_rewritten_layer_in_a_bucket_shows_its_new_voxels_when_it_is_opened_again(bucket, tmp_path):
    for seed in (1, 2):
        precomputed.write_layer(tmp_path / str(seed), [noise(GRID.shape, seed=seed)], [GRID])
        upload(bucket, tmp_path / str(seed), "em")
        # The metadata must differ: equal ones have equal ETags, and Last-Modified has a resolution of a second.
        info = tmp_path / str(seed) / "info"
        bucket.client.put_object(Bucket=bucket.name, Key="em/info", Body=info.read_bytes() + b" " * seed)
        np.testing.assert_array_equal(open_layer(bucket.url("em")).read(0, WHOLE), noise(GRID.shape, seed=seed))


def test_skeletons_in_a_private_bucket_are_read(bucket, tmp_path):
    (tmp_path / "info").write_text('{"@type": "neuroglancer_skeletons"}')
    (tmp_path / "7").write_bytes(b"abc")
    upload(bucket, tmp_path, "skeletons")
    folder, info = open_folder(bucket.url("skeletons"), None, None)
    assert info["@type"] == "neuroglancer_skeletons"
    assert folder.read(["7", "8"], lambda key, body: bytes(body)) == {"7": b"abc"}


def test_a_public_bucket_of_an_s3_compatible_server_is_read_without_credentials(bucket, tmp_path, monkeypatch):
    precomputed.write_layer(tmp_path, [noise(GRID.shape)], [GRID])
    upload(bucket, tmp_path, "em")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bucket.open_to_all()
    np.testing.assert_array_equal(open_layer(bucket.url("em")).read(0, WHOLE), noise(GRID.shape))


def record_s3(server, monkeypatch, **variables):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url())
    for name, value in {"ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "hunter2", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("form", ["precomputed", "zarr"])
def test_requests_to_s3_state_that_the_requester_pays(monkeypatch, pays, form):
    with recording() as server:
        record_s3(server, monkeypatch)
        with pytest.raises(ix.errors.SourceNotFoundError):
            ix.open_image(f"{form}://s3://bucket/em", connection=ix.Connection(requester_pays=pays))
        assert server.requests
        assert all(("x-amz-request-payer: requester" in r.text.lower()) == pays for r in server.requests)
        assert all("AWS4-HMAC-SHA256 Credential=me/" in r.authorization for r in server.requests)
        assert "hunter2" not in "".join(r.text for r in server.requests)


def test_layers_of_a_link_never_make_the_requester_pay(monkeypatch):
    link = ix.Connection(requester_pays=True, access=Access(from_link=True))
    with recording() as server:
        record_s3(server, monkeypatch)
        assert fetch_info(parse_address("s3://bucket/em"), link) is None
        assert "request-payer" not in "".join(r.text for r in server.requests).lower()
    assert buckets.web_place("gs://bucket/em", link).headers == ()


@pytest.mark.parametrize("status", [401, 403])
def test_metadata_in_a_bucket_are_absent_after_http_403_and_an_error_after_401(monkeypatch, status):
    with recording() as server:
        server.answer = lambda request: (status, b"", {})
        record_s3(server, monkeypatch)
        if status == 403:  # buckets also answer 403 for missing objects
            assert fetch_info(parse_address("s3://bucket/em")) is None
        else:
            with pytest.raises(ix.errors.AuthError, match="denied"):
                fetch_info(parse_address("s3://bucket/em"))


def test_retries_and_timeout_of_a_connection_apply_to_buckets(monkeypatch):
    with recording() as server:
        server.answer = lambda request: (503, b"", {})
        record_s3(server, monkeypatch)
        with pytest.raises(ix.ImageryError):
            fetch_info(parse_address("s3://bucket/em"), ix.Connection(retries=2, backoff=0.01))
        assert len(server.requests) == 3


# --- Google -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def google_keys(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("google"), "storage.googleapis.com")


@pytest.fixture
def storage(google_keys, monkeypatch):
    """Start a server on this machine to which storage.googleapis.com resolves."""
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(google_keys[0]))
    google._load.cache_clear()
    with recording(google_keys) as server, own_connections(monkeypatch):
        real = socket.getaddrinfo

        def getaddrinfo(host, port, *args, **options):
            name = host.decode() if isinstance(host, bytes) else host
            place = ("127.0.0.1", server.port) if name == "storage.googleapis.com" else (host, port)
            return real(*place, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield server


@pytest.fixture
def account(tmp_path, monkeypatch):
    """Start a server that issues tokens, and store the key file of a service account that names the server."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with recording() as server:
        server.files["/token"] = {"access_token": "t0ken", "expires_in": 3600, "token_type": "Bearer"}
        (tmp_path / "key.json").write_text(json.dumps({
            "type": "service_account", "project_id": "p", "private_key_id": "1", "client_email": "me@p.example",
            "private_key": key.private_bytes(*form).decode(), "token_uri": f"{server.url()}/token",
        }))  # fmt: skip
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        yield server


def test_a_private_google_bucket_receives_a_token_that_permits_reading_only(storage, account, tmp_path):
    precomputed.write_layer(tmp_path / "em", [noise(GRID.shape)], [GRID], compress=False)
    omezarr.one_level(tmp_path / "zarr")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        storage.files[f"/bucket/{path.relative_to(tmp_path).as_posix()}"] = path.read_bytes()
    source = open_layer("gs://bucket/em")
    np.testing.assert_array_equal(source.read(0, WHOLE), noise(GRID.shape))
    zarr = omezarr.open_ome("gs://bucket/zarr")
    np.testing.assert_array_equal(zarr.read(0, IndexBox.of_shape(omezarr.SHAPE)), noise(omezarr.SHAPE))
    assert {r.authorization for r in storage.requests} == {"Bearer t0ken"}
    assert len(account.requests) == 1
    assert b"devstorage.read_only" in base64.b64decode(account.requests[0].body.split(b".")[1] + b"===")
    assert not any("x-goog-user-project" in r.text.lower() for r in storage.requests)
    assert "t0ken" not in repr(source) + repr(source.__dict__) + repr(
        buckets.web_place("gs://bucket/em", ix.Connection())
    )


def test_the_project_that_pays_is_sent_to_google(storage, account):
    for form in ("precomputed", "zarr"):
        with pytest.raises(ix.errors.SourceNotFoundError):
            ix.open_image(f"{form}://gs://bucket/em", connection=ix.Connection(requester_pays="my-project"))
    assert storage.requests
    assert all("x-goog-user-project: my-project" in r.text.lower() for r in storage.requests)


def test_a_redirect_from_google_carries_no_token(storage, account):
    with recording() as other:
        storage.moved["/bucket/em/info"] = f"{other.url()}/bucket/em/info"
        with pytest.raises(ix.ImageryError):
            open_layer("gs://bucket/em")
        assert {r.authorization for r in storage.requests} == {"Bearer t0ken"}
        assert not other.secrets


def test_rejected_credentials_of_google_are_an_error_without_secrets(storage, account):
    account.files.clear()
    account.answer = lambda request: (400, b'{"error": "invalid_grant", "error_description": "gone"}', {})
    with pytest.raises(ix.errors.AuthError, match=r"key\.json were rejected") as caught:
        open_layer("gs://bucket/em")
    assert "PRIVATE" not in str(caught.value)


def test_a_damaged_key_file_is_an_error(storage, tmp_path, monkeypatch):
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(ix.errors.AuthError, match=r"key\.json"):
        open_layer("gs://bucket/em")


def test_a_public_google_bucket_is_read_without_credentials(storage):
    with pytest.raises(ix.errors.SourceNotFoundError):
        open_layer("gs://bucket/em")
    assert [r.authorization for r in storage.requests] == [None]


def test_requester_pays_on_google_requires_the_name_of_a_project(storage):
    with pytest.raises(ix.errors.OptionError, match="does not name the project"):
        open_layer("gs://bucket/em", connection=ix.Connection(requester_pays=True))


@pytest.mark.parametrize("value", [None, 1, "a\nb", "ä"])
def test_an_invalid_requester_pays_is_an_error(value):
    with pytest.raises(ix.errors.OptionError, match="requester_pays"):
        ix.Connection(requester_pays=value)
