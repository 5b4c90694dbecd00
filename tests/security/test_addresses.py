"""With allow_local=False, no host name, form of an address or redirect leads to this machine or its network."""

from __future__ import annotations

import functools
import json
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import zarr

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.sources.fetch import client, ip_filter
from imageryxr.sources.fetch.object_stores import WebFolder
from imageryxr.sources.fetch.policy import Access
from imageryxr.sources.resolve import resolve_source
from tests.support.hostile import HostileServer, reply

CLOSED = ix.Connection(timeout=5, retries=0, access=Access(allow_local=False, from_link=True))
OPEN = ix.Connection(timeout=5, retries=0)
ALLOWED = ix.Connection(timeout=5, retries=0, access=Access(allow_local=True, from_link=True))

PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "169.254.0.1", "100.64.0.1", "100.127.255.255", "100.100.100.200", "192.0.0.192", "192.0.2.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("192.88.99.1", "168.63.129.16"),
    *("::", "::1", "fe80::1", "febf::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1", "::8.8.8.8"),
    *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "::ffff:0:127.0.0.1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    *("2001:0:7f00:1::", "fe80::5efe:7f00:1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1"),
    *("2606:4700::1%eth0", "fe80::1%lo", "5f00::1", "3fff::1", "4000::1", "localhost", "", "127.1", "2130706433"),
]
PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.169.0.1", "223.255.255.255"),
    *("2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address):
    assert not ip_filter.is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address):
    assert ip_filter.is_public(address)


@pytest.fixture
def local():
    """Start a server on this machine that must not be reached."""
    with HostileServer(lambda sock, head: reply(sock, b"{}")) as server:
        yield server


@pytest.fixture
def names(monkeypatch):
    """Replace name resolution by a table: a list of answers for each name, used in order; the last one repeats."""
    table: dict[str, list[list[str]]] = {}
    resolved: list[str] = []
    real = socket.getaddrinfo

    def resolve(host, port, *args, **kwargs):
        resolved.append(host)
        if host not in table:
            return real(host, port, *args, **kwargs)
        answers = table[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [info for address in found for info in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    table["resolved"] = resolved
    return table


def request(url, connection=CLOSED):
    return client.send_interruptible_request("GET", url, connection)


FORMS = [
    *(
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.000.000.001",
    ),
    *("0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]"),
    *("localhost", "LOCALHOST", "localhost.", "127.0.0.1.", "127.0.0.%31", "%31%32%37.0.0.1", "[::1%25lo]", "[::1%lo]"),
    *(
        "１２７.０.０.１",
        "127。0。0。1",
        "ⓛocalhost",
        "ｌｏｃａｌｈｏｓｔ",
        "127.0.0.1\u00ad",
        "①②⑦.0.0.1",
        "localhost\u200b",
    ),
    *("user@127.0.0.1", "public.example@127.0.0.1", "a:b@localhost"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_form_of_the_address_of_this_machine_is_reached(local, form, scheme):
    with pytest.raises(ix.ImageryError):
        request(f"{scheme}://{form}:{local.port}/info")
    assert local.connections == 0


@pytest.mark.parametrize("form", [r"http://127.0.0.1:{0}\@public.example/x", r"http://public.example\@127.0.0.1:{0}/x"])
def test_hosts_that_parsers_read_differently_are_refused(local, form):
    for connection in (CLOSED, OPEN):
        with pytest.raises(ix.ImageryError):
            request(form.format(local.port), connection)
    assert local.connections == 0


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["::ffff:127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "127.0.0.1"]]
)
def test_a_public_name_of_a_private_address_is_refused(local, names, addresses):
    names["public.example"] = [addresses]
    with pytest.raises(ix.errors.ServerError, match="host public.example is this machine or in its network") as caught:
        request(f"http://public.example:{local.port}/secret/path")
    assert local.connections == 0
    assert "allow_local=True" in str(caught.value)


def test_a_name_is_resolved_once_and_the_checked_address_is_used(local, names, monkeypatch):
    # DNS rebinding: the first answer is a public address, and all later ones are this machine.
    names["rebinding.example"] = [["8.8.8.8"], ["127.0.0.1"]]
    dialled = []

    def refuse(candidate, limits):
        dialled.append(candidate.address)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr("imageryxr.sources.fetch.sockets._begin_connection", refuse)
    with pytest.raises(ix.errors.ServerError, match="refused"):
        request(f"http://rebinding.example:{local.port}/")
    assert dialled == [("8.8.8.8", local.port)]
    assert names["resolved"].count("rebinding.example") == 1
    with pytest.raises(ix.errors.ServerError, match="this machine"):
        request(f"http://rebinding.example:{local.port}/")
    assert len(dialled) == 1


def test_a_resolver_that_answers_with_a_name_is_not_resolved_again(local, monkeypatch):
    fake = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("localhost", local.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: fake)
    with pytest.raises(ix.errors.ServerError, match="this machine"):
        request("http://public.example/")
    assert local.connections == 0


@pytest.fixture
def public(names, monkeypatch):
    """Start a server that counts as public under the name public.example; return it and its answers."""
    monkeypatch.setattr(
        ip_filter, "is_public", lambda address, real=ip_filter.is_public: address == "127.0.0.2" or real(address)
    )
    listening = []
    accepted = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda address, **options: accepted(("127.0.0.2", 0), **options))
    server = HostileServer(lambda sock, head: listening[0](sock, head))
    monkeypatch.setattr(socket, "create_server", accepted)
    names["public.example"] = [["127.0.0.2"]]
    server.name = f"http://public.example:{server.port}"
    server.use = lambda answer: listening.__setitem__(slice(None), [answer])
    with server:
        yield server


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "form", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "public2.example", "127.0.0.%31"]
)
def test_a_redirect_to_this_machine_is_not_followed(local, public, names, status, form):
    names["public2.example"] = [["127.0.0.1"]]
    public.use(lambda sock, head: reply(sock, status=f"{status} Moved", Location=f"http://{form}:{local.port}/x"))
    with pytest.raises(ix.ImageryError):
        request(public.name + "/info")
    assert (local.connections, len(public.requests)) == (0, 1)
    if form == "127.0.0.1":
        with pytest.raises(
            ix.errors.ServerError, match="this machine"
        ):  # this also applies to an address that the user typed
            request(public.name + "/info", OPEN)
        assert local.connections == 0
        assert request(public.name + "/info", ALLOWED).body == b"{}"


def test_connections_are_not_shared_between_access_policies(local):
    assert request(local.url, OPEN).status == 200
    with pytest.raises(ix.errors.ServerError, match="this machine"):
        request(local.url)
    assert local.connections == 1


@pytest.mark.parametrize("form", ["precomputed://{0}", "zarr://{0}", "graphene://{0}/segmentation/table/t", "{0}"])
def test_no_source_of_a_link_reaches_this_machine(local, names, form):
    names["public.example"] = [["127.0.0.1"]]
    for host in ("127.0.0.1", "localhost", "public.example"):
        with pytest.raises(ix.ImageryError):
            resolve_source(form.format(f"http://{host}:{local.port}/x"), None, connection=CLOSED)
    assert local.connections == 0


@pytest.mark.parametrize(
    "form", ["s3://{0}", "s3+{0}", "gs+{0}", "zarr://s3://{0}", "precomputed://s3://{0}", "zarr://s3+{0}"]
)
def test_no_bucket_of_a_link_is_on_this_machine(local, form):
    with pytest.raises(ix.ImageryError):
        resolve_source(form.format(f"http://127.0.0.1:{local.port}/x"), None, connection=CLOSED)
    assert local.connections == 0


@pytest.mark.parametrize("name", ["{0}.s3.amazonaws.com", "s3.amazonaws.com", "storage.googleapis.com"])
@pytest.mark.parametrize("form", ["zarr", "precomputed"])
def test_a_bucket_whose_host_resolves_to_this_machine_is_not_read(names, monkeypatch, name, form):
    for variable in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(variable, raising=False)
    bucket = "dotted.bucket" if name == "s3.amazonaws.com" else "bucket"
    names[name.format(bucket)] = [["127.0.0.1"]]
    scheme = "gs" if "google" in name else "s3"
    with pytest.raises(ix.ImageryError, match="this machine"):
        resolve_source(f"{form}://{scheme}://{bucket}/layer", None, connection=CLOSED)
    assert name.format(bucket) in names["resolved"]


def zarr_folder(path):
    values = np.random.default_rng(0).integers(1, 255, (32, 32, 32)).astype("u1")
    group = zarr.open_group(path, mode="w", zarr_format=3)
    transforms = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": transforms}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    array = group.create_array("0", shape=(32, 32, 32), chunks=(16, 16, 16), dtype="u1", compressors=None)
    array[:] = values
    return values


@pytest.fixture
def zarr_server(tmp_path):
    values = zarr_folder(tmp_path)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *args: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port, values
        server.shutdown()


def test_a_zarr_chunk_redirected_to_this_machine_is_not_read(zarr_server, public):
    port, values = zarr_server

    def answer(sock, head):
        return reply(sock, status="302 Found", Location=f"http://127.0.0.1:{port}{head.split()[1]}")

    public.use(answer)
    opened = resolve_source(f"zarr://{public.name}", "image", connection=ALLOWED)
    np.testing.assert_array_equal(opened.read(0, IndexBox.of_shape((32, 32, 32))), values)
    for connection in (OPEN, CLOSED):
        with pytest.raises(ix.ImageryError, match="this machine"):
            resolve_source(f"zarr://{public.name}", "image", connection=connection)


def test_a_proxy_does_not_lead_to_this_machine(local, names, monkeypatch):
    monkeypatch.setenv("http_proxy", local.url)
    monkeypatch.setenv("no_proxy", "")
    names["public.example"] = [["127.0.0.1"]]
    for host in (
        "127.0.0.1",
        "localhost",
        "printer",
        "server.local",
        "2130706433",
        "[::1]",
        "10.0.0.1",
        "public.example",
    ):
        with pytest.raises(ix.errors.ServerError, match="this machine"):
            request(f"http://{host}/info")
    assert local.connections == 0
    # A name that only the proxy can resolve is sent to the proxy.
    assert request("http://imageryxr.invalid/info").status == 200
    assert local.requests[0].startswith("GET http://imageryxr.invalid/info HTTP/1.1")


def test_https_goes_through_a_tunnel_of_the_proxy(local, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://me:se%20cret@127.0.0.1:{local.port}")
    monkeypatch.setenv("no_proxy", "")
    local.answer = lambda sock, head: reply(sock, status="407 Proxy Authentication Required")
    with pytest.raises(ix.errors.ServerError, match="HTTP 407") as caught:
        request("https://imageryxr.invalid/info")
    assert local.requests[0].startswith("CONNECT imageryxr.invalid:443 HTTP/1.1")
    assert "Proxy-Authorization: Basic bWU6c2UgY3JldA==" in local.requests[0]
    assert "cret" not in str(caught.value)


def test_messages_show_no_secret_of_an_address(local):
    url = f"http://me:secret1@127.0.0.1:{local.port}/x?key=secret2"
    for connection in (CLOSED, OPEN):
        local.answer = lambda sock, head: reply(sock, status="500 Oops")
        with pytest.raises(ix.errors.ServerError) as caught:
            request(url, connection)
        assert "secret" not in str(caught.value)
        assert "secret" not in repr(caught.value.__cause__) + repr(caught.value.__context__)


def test_no_log_shows_a_query_or_a_secret(local, caplog):
    local.answer = lambda sock, head: (
        reply(sock, status="302 Found", Location="/y?key=secret3")
        if "/x" in head
        else reply(sock, status="503 Busy", x="y: z")
    )
    again = ix.Connection(timeout=5, retries=1, backoff=0)
    with caplog.at_level("DEBUG"), pytest.raises(ix.errors.ServerError):
        request(f"http://me:secret1@127.0.0.1:{local.port}/x?key=secret2", again)
    shown = [record.getMessage() + repr(record.args) + repr(record.__dict__) for record in caplog.records]
    assert shown
    assert not any("secret" in line for line in shown)


def test_a_zarr_store_requests_keys_unchanged(local):
    local.answer = lambda sock, head: reply(sock, head.split()[1].encode())
    for key in ("a b/c", "a?b#c", "a%41", "é", "a;b=c"):
        found = WebFolder(local.url, OPEN).get(key, None, 1000, None).body
        assert "?" not in found.decode()
        assert "#" not in found.decode()
    assert json.loads(json.dumps(local.requests[2].split()[1])) == "/a%2541"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.usefixtures("hasty_links")
def test_a_bucket_of_a_link_is_not_read_from_a_server_of_this_machine(local, names, monkeypatch, variable, keys):
    names["private.example"] = [["127.0.0.1"]]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if keys else ():
        monkeypatch.setenv(name, "secret")
    for host in ("127.0.0.1", "localhost", "private.example"):
        monkeypatch.setenv(variable, f"http://{host}:{local.port}")
        with pytest.raises(ix.ImageryError, match="this machine"):
            resolve_source("zarr://s3://bucket/image.zarr", None, connection=CLOSED)
        with pytest.raises(ix.ImageryError, match="this machine"):
            ix.open_neuroglancer({"layers": [{"type": "image", "name": "a", "source": "zarr://s3://bucket/x"}]})
    assert local.connections == 0


def test_a_redirect_within_the_users_own_network_is_followed(local):
    with HostileServer(lambda sock, head: reply(sock, status="302 Found", Location=f"{local.url}/x")) as other:
        assert request(other.url + "/info", OPEN).body == b"{}"
