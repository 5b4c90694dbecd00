from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageryxr.errors import ImageryError, SourceError
from imageryxr.sources.address import PROTOCOLS, parse_address, reads_anonymously


@pytest.mark.parametrize(
    ("text", "form", "url"),
    [
        ("precomputed://gs://bucket/em", "precomputed", "gs://bucket/em"),
        ("precomputed://https://host:81/a/b/", "precomputed", "https://host:81/a/b"),
        ("neuroglancer-precomputed://s3://b/c", "precomputed", "s3://b/c"),
        ("zarr://s3://bucket/a.ome.zarr/", "zarr", "s3://bucket/a.ome.zarr"),
        ("zarr2://http://h/a", "zarr", "http://h/a"),
        ("zarr3://http://h/a", "zarr", "http://h/a"),
        (
            "graphene://middleauth+https://h/segmentation/table/t",
            "graphene",
            "middleauth+https://h/segmentation/table/t",
        ),
        ("gs://bucket/em|precomputed:", "precomputed", "gs://bucket/em"),
        ("https://h/x.zarr|zarr3:", "zarr", "https://h/x.zarr"),
        ("s3://bucket/what", None, "s3://bucket/what"),
        ("  gs://bucket/em\n", None, "gs://bucket/em"),
        ("file:///data/em/", None, "file:///data/em"),
        ("precomputed://file:///data/em", "precomputed", "file:///data/em"),
        ("/data/em", None, "file:///data/em"),
        ("zarr:///data/em.zarr", "zarr", "file:///data/em.zarr"),
        ("s3://bucket/a#b?c", None, "s3://bucket/a#b?c"),
    ],
)
def test_what_people_type(text, form, url):
    address = parse_address(text)
    assert (address.format, address.url) == (form, url)


def test_relative_paths_and_homes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_address("data/em").url == f"file://{tmp_path}/data/em"
    assert parse_address("precomputed://data/em").url == f"file://{tmp_path}/data/em"
    assert parse_address("file://data/em").url == f"file://{tmp_path}/data/em"
    assert parse_address(Path("em")).local_path == tmp_path / "em"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_address("~/em").url == f"file://{tmp_path}/em"
    assert parse_address("zarr://~/em").local_path == tmp_path / "em"


@pytest.mark.parametrize(
    "text",
    ["", "  ", "gs://", "precomputed://", "precomputed://gs://", "https://", "file://", "zarr://s3:///", "|zarr:"],
)
def test_no_place(text):
    with pytest.raises(SourceError, match="names no place"):
        parse_address(text)


@pytest.mark.parametrize("text", ["n5://gs://b/c", "ftp://host/a", "gs://b/c|n5:", "precomputed://dvid://h/a"])
def test_unknown_schemes_name_the_known_ones(text):
    with pytest.raises(SourceError, match="unknown scheme '(n5|ftp|dvid)'.*precomputed://.*gs://"):
        parse_address(text)


@pytest.mark.parametrize("protocol", ["http", "https", "middleauth+https"])
def test_a_signed_link_is_refused_and_not_shown(protocol):
    with pytest.raises(SourceError, match="goes on with a query") as caught:
        parse_address(f"precomputed://{protocol}://host/em?X-Signature=verysecret")
    assert "verysecret" not in str(caught.value)


def test_public_hides_user_and_password():
    address = parse_address("https://me:verysecret@host:8080/em")
    assert address.public == "https://host:8080/em"
    assert address.url.startswith("https://me:verysecret@")
    assert parse_address("/data/a@b/em").public == "file:///data/a@b/em"


@given(
    st.sampled_from([p for p in PROTOCOLS if p != "file"]),
    st.sampled_from(["", "precomputed://", "zarr://", "graphene://"]),
    st.lists(st.text("abcXYZ019._-", min_size=1), min_size=1, max_size=4),
)
def test_formats_and_places_come_apart_again(protocol, form, parts):
    url = f"{protocol}://{'/'.join(parts)}"
    address = parse_address(f"{form}{url}/")
    assert address.url == address.public == url
    assert address.protocol == protocol
    assert (address.format or "") == form.removesuffix("://")


@pytest.mark.parametrize("text", ["~\0", "a\0b", "file://~\0", "precomputed://~\0x", "~\ud800/a"])
def test_what_no_file_is_called(text):
    with pytest.raises(ImageryError, match="is no path"):
        parse_address(text)


@given(st.text())
def test_any_text_is_an_address_or_an_error_of_ours(text):
    try:
        address = parse_address(text)
    except ImageryError:
        return
    assert address.protocol in PROTOCOLS


def test_without_credentials_buckets_are_read_anonymously(monkeypatch, tmp_path):
    import cloudvolume.secrets

    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cloudvolume.secrets, "CLOUD_VOLUME_DIR", str(tmp_path))
    assert reads_anonymously("gs://b/c")
    assert reads_anonymously("s3://b/c")
    assert not reads_anonymously("https://h/c")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    assert not reads_anonymously("s3://b/c")
    os.makedirs(tmp_path / "secrets")
    (tmp_path / "secrets" / "b-google-secret.json").write_text("{}")
    assert not reads_anonymously("gs://b/c")
