"""Fuzz tests of addresses: they are parsed or raise an `ImageryError`, and all URL parsers find the same host."""

from __future__ import annotations

import random
import string
from ipaddress import ip_address
from urllib.parse import urlsplit

import pytest
import urllib3.util

import imageryxr as ix
from imageryxr.errors import AddressError, ImageryError
from imageryxr.sources.address import WEB_PROTOCOLS, Address, parse_address
from imageryxr.sources.fetch.auth import Token
from imageryxr.sources.fetch.policy import Access
from imageryxr.sources.fetch.url import is_local_host, parse_web_url

SEEDS = [
    "precomputed://gs://bucket/em", "zarr://s3://bucket/a.zarr/", "zarr2://https://h.example:81/x", "graphene://middleauth+https://h.example/segmentation/table/t",
    "https://me:hunter2@h.example/x|zarr2:labels/cells/#dimension_separator=/", "s3+https://h.example/b/|zarr3:a", "gs+https://h/b|precomputed:",
    "zarr://s3://http://h.example/x", "s3://b/x.zip|zip:a/|zarr:", "file:///data/x", "~/data", "../x", "mem://x/y", "precomputed://http://[::1]:80/x", "gs+ngauth+https://h/b/x",
]  # fmt: skip
PIECES = ["://", "|", ":", "#", "?", "@", "%", "%2f", "%00", "\\", "\0", "\n", "\t", " ", "..", "/", "//", "[", "]", "[::1]", "s3://", "http://", "gs://", "zarr2:", "zip:",
          "#dimension_separator=/", "é", "１", "。", "\ud800", "\u202e", "𝟙", "'", '"', "<", "{", "~", "~root", "-1", "65536", "0x7f.1", "x" * 300, "xn--", ".", "*", "$", "&amp;"]  # fmt: skip


def mutate(rng: random.Random) -> str:
    text = rng.choice(SEEDS)
    for _ in range(rng.randint(1, 5)):
        at = rng.randint(0, len(text))
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 6) :]
        elif kind == 2:
            text = text[:at] + rng.choice(string.printable) + text[at + 1 :]
        elif kind == 3:
            other = rng.choice(SEEDS)
            text = text[:at] + other[rng.randint(0, len(other)) :]
        else:
            text = text[:at] + text[at : at + 12].upper() + text[at + 12 :]
    return text


def parse_or_message(text: str) -> tuple[Address | None, str]:
    """Return a parsed address and its public form, or the message of the error."""
    try:
        address = parse_address(text)
    except ImageryError as error:
        return None, str(error)
    return address, f"{address.public} {address.zarr_name}"


def test_mutated_addresses_are_parsed_or_raise_an_imagery_error():
    rng, good = random.Random(1), 0
    for _ in range(10_000):
        text = mutate(rng)
        address, shown = parse_or_message(text)
        assert len(shown) < 3000
        assert "://me:hunter2@" not in text or "hunter2" not in shown, text
        if address is None:
            continue
        good += 1
        if address.format == "zarr" and address.url.strip("/") != "file:":
            assert parse_address(address.zarr_name).public.rstrip() == address.public.rstrip()
        if address.protocol in WEB_PROTOCOLS:
            url = address.url.removeprefix("middleauth+")
            hosts = {parse_web_url(url).host, urllib3.util.parse_url(url).host.strip("[]"), urlsplit(url).hostname}
            assert len({str(ip_address(host)) if ":" in host else host for host in hosts}) == 1, url
    assert good > 2000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::imageryxr.errors.ImageryWarning")
def test_opening_mutated_addresses_raises_an_imagery_error(tmp_path, monkeypatch):
    import socket

    def nowhere(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.chdir(tmp_path)
    rng, connection = random.Random(2), ix.Connection(retries=0, timeout=1)
    local = ["", "precomputed://", "zarr://", "zarr3://", "graphene://", "file://", "zarr://file://"]
    for number in range(10_000):
        text = mutate(rng)
        text = rng.choice(local) + text.rpartition("://")[2] if number % 3 else text
        try:
            parse = parse_address(text)
            if number % 3 == 0 and parse.protocol in ("s3", "gs", "https", "http") and parse.format in ("zarr", None):
                continue  # zarr-python retries requests itself, which takes long
        except ImageryError:
            pass
        with pytest.raises(ImageryError):
            ix.open_image(text, connection=connection)


FOLLOWED = [
    r"middleauth+http://evil.example\@trusted.org/x",
    r"middleauth+https://evil.example\@minnie.microns-daf.com/x",
    r"https://evil.example\.minnie.microns-daf.com/x",
    "https://minnie.microns-daf.com%2f@evil.example%2f/",
    "https://evil.example%23@minnie.microns-daf.com%2f",
    "https://minnie.microns-daf.com%2eevil.example/x",
    "https://minnie.microns-daf.com%00.evil.example/x",
    "https://minnie.microns-daf.com\n.evil.example/x",
    "https://minnie.microns-daf.com\t@evil.example /x",
    "https://127.0.0.%31/x",
    "https://１２７.0.0.1/x",
    "https://127。0。0。1/x",
    "https://ⓛocalhost/x",
    "https://[fe80::1%25eth0]/x",
    "https://[::1/x",
    "https://[127.0.0.1]/x",
    "https://a@b@c/x",
    "https://:443/x",
    "https://h:0/x",
    "https://h:65536/x",
    "https://h:-1/x",
    "https://h:4 43/x",
    "https://münchen.example/x",
    "https://h\u00adx.example/x",
    "https:///x",
    "https://",
]


@pytest.mark.parametrize("url", FOLLOWED)
def test_ambiguous_addresses_are_errors(url):
    for form in ("", "precomputed://", "zarr://", "graphene://"):
        with pytest.raises(AddressError):
            parse_address(form + url)
    with pytest.raises(AddressError):
        parse_web_url(url)
    assert (
        Token("0" * 32, "a test", ("trusted.org", "h")).header_for(url, Access(trusted_hosts=("trusted.org", "h")))
        is None
    )
    link = {"layers": [{"type": "image", "name": "x", "source": f"precomputed://{url}"}]}
    with pytest.warns(ix.errors.LinkWarning, match="left out"):
        assert list(ix.open_neuroglancer(link, trusted_hosts=["trusted.org", "minnie.microns-daf.com"]).children) == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "x.localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "017700000001", "0", "[::1]", "::1", "[::]",
                                  "::ffff:127.0.0.1", "::ffff:7f00:1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "fe80::1", "fc00::1", "intranet", "printer.local", "metadata.google.internal", "100.64.0.1", "0.0.0.0", ".", ""])  # fmt: skip
def test_local_names_are_recognized(host):
    assert is_local_host(host)
