from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageryxr.errors import AddressError, ImageryError, SourceError
from imageryxr.sources.address import PROTOCOLS, has_no_bucket_credentials, parse_address


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
def test_addresses_of_every_format_are_parsed(text, form, url):
    address = parse_address(text)
    assert (address.format, address.url) == (form, url)


def test_relative_paths_and_home_folders_are_expanded(monkeypatch, tmp_path):
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
def test_an_address_without_a_location_is_an_error(text):
    with pytest.raises(SourceError, match="has no location"):
        parse_address(text)


@pytest.mark.parametrize("text", ["n5://gs://b/c", "ftp://host/a", "gs://b/c|n5:", "precomputed://dvid://h/a"])
def test_unknown_schemes_name_the_known_ones(text):
    with pytest.raises(SourceError, match="unknown scheme '(n5|ftp|dvid)'.*precomputed://.*gs://"):
        parse_address(text)


@pytest.mark.parametrize("protocol", ["http", "https", "middleauth+https"])
def test_a_signed_url_is_an_error_that_does_not_show_the_signature(protocol):
    with pytest.raises(SourceError, match="has a query") as caught:
        parse_address(f"precomputed://{protocol}://host/em?X-Signature=verysecret")
    assert "verysecret" not in str(caught.value)


def test_the_public_form_of_an_address_has_no_user_or_password():
    address = parse_address("https://me:verysecret@host:8080/em")
    assert address.public == "https://host:8080/em"
    assert address.url.startswith("https://me:verysecret@")
    assert parse_address("/data/a@b/em").public == "file:///data/a@b/em"


@given(
    st.sampled_from([p for p in PROTOCOLS if p != "file"]),
    st.sampled_from(["", "precomputed://", "zarr://", "graphene://"]),
    st.lists(st.text("abcXYZ019._-", min_size=1), min_size=1, max_size=4),
)
def test_the_public_address_parses_to_the_same_address(protocol, form, parts):
    url = f"{protocol}://{'/'.join(parts)}"
    address = parse_address(f"{form}{url}/")
    assert address.url == address.public == url
    assert address.protocol == protocol
    assert (address.format or "") == form.removesuffix("://")


@pytest.mark.parametrize("text", ["~\0", "a\0b", "file://~\0", "precomputed://~\0x", "~\ud800/a"])
def test_invalid_paths_are_errors(text):
    with pytest.raises(ImageryError, match="is not a valid path"):
        parse_address(text)


@given(st.text())
def test_any_text_is_parsed_or_raises_an_imagery_error(text):
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
    assert has_no_bucket_credentials("gs://b/c")
    assert has_no_bucket_credentials("s3://b/c")
    assert not has_no_bucket_credentials("https://h/c")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    assert not has_no_bucket_credentials("s3://b/c")
    os.makedirs(tmp_path / "secrets")
    (tmp_path / "secrets" / "b-google-secret.json").write_text("{}")
    assert not has_no_bucket_credentials("gs://b/c")


# --- Neuroglancer's URL pipelines -------------------------------------------------------------------------------------

PIPELINES = [
    ("https://h/root.zarr/|zarr2:labels/cells/", ("zarr", "https://h/root.zarr/labels/cells", 2, None)),
    ("https://h/root.zarr|zarr3:labels/cells", ("zarr", "https://h/root.zarr/labels/cells", 3, None)),
    ("https://h/root.zarr/|zarr:/labels//./cells/", ("zarr", "https://h/root.zarr/labels/cells", None, None)),
    ("https://h/root.zarr/|zarr2", ("zarr", "https://h/root.zarr", 2, None)),
    ("https://h/root.zarr/|zarr:#dimension_separator=/", ("zarr", "https://h/root.zarr", None, "/")),
    ("gs://b/root.zarr/|zarr2:a/#dimension_separator=%2F", ("zarr", "gs://b/root.zarr/a", 2, "/")),
    ("gs://b/root.zarr/|zarr2:a#dimension_separator=.", ("zarr", "gs://b/root.zarr/a", 2, ".")),
    ("zarr2://https://h/root.zarr#dimension_separator=/", ("zarr", "https://h/root.zarr", 2, "/")),
    ("zarr://s3://b/root.zarr/?dimension_separator=/", ("zarr", "s3://b/root.zarr", None, "/")),
    ("/data/x.zarr|zarr3:s0 of em", ("zarr", "file:///data/x.zarr/s0 of em", 3, None)),
    # The path after the format is not percent-encoded: Neuroglancer encodes it.
    ("https://h/root.zarr/|zarr2:my cells/é", ("zarr", "https://h/root.zarr/my%20cells/%C3%A9", 2, None)),
    ("https://h/root.zarr/|zarr2:50%25", ("zarr", "https://h/root.zarr/50%2525", 2, None)),
    ("https://h/my%20root/|zarr2:", ("zarr", "https://h/my%20root", 2, None)),
    ("s3://b/my%20root/|zarr2:", ("zarr", "s3://b/my root", 2, None)),
    ("s3+https://minio.h:9000/b/em/|neuroglancer-precomputed:", ("precomputed", "https://minio.h:9000/b/em", None, None)),
    ("precomputed://s3+http://h/b/em", ("precomputed", "http://h/b/em", None, None)),
    ("precomputed://s3://https://h/b/em", ("precomputed", "https://h/b/em", None, None)),
    ("gs+https://h/b/em/|zarr:a", ("zarr", "https://h/b/em/a", None, None)),
    ("middleauth+https://h/segmentation/table/t|graphene:", ("graphene", "middleauth+https://h/segmentation/table/t", None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), PIPELINES)
def test_pipelines_are_parsed_into_format_location_version_and_separator(text, parts):
    address = parse_address(text)
    assert (address.format, address.url, address.version, address.separator) == parts


@pytest.mark.parametrize(("text", "parts"), [case for case in PIPELINES if case[1][0] == "zarr"])
def test_zarr_name_parses_to_the_same_address(text, parts):
    address = parse_address(text)
    assert parse_address(address.zarr_name) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://b/a.zip|zip:x/|zarr2:", r"'\|zip:' is not supported; .*unpack"),
        ("s3://b/a.gz|gzip:|zarr2:", r"'\|gzip:' is not supported; .*unpack"),
        ("s3://b/a|byte-range:0-10|zarr2:", r"'\|byte-range:' is not supported"),
        ("s3://b/a|ocdbt:x|zarr3:", r"'\|ocdbt:' is not supported; .*copy"),
        ("s3://b/a|icechunk:|zarr3:x", r"'\|icechunk:' is not supported; .*copy"),
        ("s3://b/a|zarr2:x|zarr3:y", r"'\|zarr3:y' follows the format '\|zarr2:'.*PLACE\|zarr2:inner/path/"),
        ("s3://b/a|n5:x", "unknown scheme 'n5'"),
        ("s3://b/a||zarr:", "unknown scheme ''"),
        ("s3://b/a|", "unknown scheme ''"),
        ("s3://b/a|zarr2:?x=1", "takes no query"),
        ("s3://b/a|zarr2:../x", "contains"),
        ("s3://b/a|zarr2:#dimension_separator=_", "neither '/' nor '.'"),
        ("s3://b/a|zarr2:#dimension_separator=", "neither '/' nor '.'"),
        ("s3://b/a|zarr3:#dimension_separator=/", "option of Zarr v2"),
        ("s3://b/a|zarr2:#separator=/", "the option 'separator' is unknown"),
        ("s3://b/a|zarr2:#x", "the option 'x' is unknown"),
        ("gs://b/em|precomputed:inner/", r"takes nothing after its colon.*write PLACE/inner\|precomputed:"),
        ("gs://b/em|precomputed:#type=mesh", "takes nothing after its colon"),
        ("https://h/segmentation/table/t|graphene:x", "takes nothing after its colon"),
        ("precomputed://gs://b/em|zarr:", "names a format twice"),
        ("gs+ngauth+https://h/b/em", "needs an ngauth login.*gs://BUCKET/PATH"),
        ("precomputed://ngauth+https://h/b", "needs an ngauth login"),
        ("zarr://s3://http://", "not a web address|has no location"),
        ("s3://b@evil/x", "names no bucket"),
        ("s3://evil.example#/x", "names no bucket"),
        ("gs://b\x00/x", "names no bucket"),
    ],
)
def test_the_error_names_the_unsupported_part_of_a_pipeline(text, message):
    with pytest.raises(AddressError, match=message):
        parse_address(text)


@pytest.mark.parametrize(
    ("given", "secret"),
    [
        ("https://me:hunter2@h:port/x", "hunter2"),
        ("https://me:hun/ter2@h/x", "ter2"),
        ("https://me:hun?ter2@h/x", "ter2"),
        ("ftp://me:hunter2@h/x", "hunter2"),
        ("s3+https://me:hunter2@h%20/x", "hunter2"),
        ("zarr://https://me:hunter2@h\\/x|zip:", "hunter2"),
        ("https://h/x?token=hunter2|zip:a", "hunter2"),
        ("https://h/x?token=hunter2", "hunter2"),
        ("zarr://s3://https://me:hunter2@h:0/x", "hunter2"),
        ("n5://https://me:hunter2@h/x", "hunter2"),
        ("n5+https://me:hunter2@h/x", "hunter2"),
    ],
)
def test_errors_about_addresses_show_no_password_or_token(given, secret):
    with pytest.raises(AddressError) as caught:
        parse_address(given)
    assert secret not in str(caught.value)
