"""Credentials are sent only over https, to CAVE servers, to servers for which they were given, and to trusted hosts."""

from __future__ import annotations

import base64
import json

import pytest

import imageryxr as ix
from imageryxr.sources.fetch import auth
from imageryxr.sources.fetch.auth import Password, Token, find_password, find_token
from imageryxr.sources.fetch.policy import Access, can_receive
from imageryxr.sources.fetch.url import parse_web_url
from tests.security.conftest import TOKEN, graph_info
from tests.support.recorder import recording

LINK = Access(allow_local=False, from_link=True)
CALLER = Access()

CAVE = [
    ("https://global.daf-apis.com/x", True),
    ("https://daf-apis.com/x", True),
    ("https://MINNIE.microns-DAF.com/x", True),
    ("https://minnie.microns-daf.com:443/x", True),
    ("http://global.daf-apis.com/x", False),
    ("https://global.daf-apis.com:8443/x", False),
    ("https://daf-apis.com.evil.example/x", False),
    ("https://evildaf-apis.com/x", False),
    ("https://daf-apis.com./x", False),
    ("https://.daf-apis.com/x", False),
    ("https://evil..daf-apis.com/x", False),
    ("https://evil.example/daf-apis.com", False),
    ("https://evil.example#@daf-apis.com/", False),
    ("https://evil.example?@daf-apis.com/", False),
    ("https://evil.example/@daf-apis.com/", False),
    ("https://daf-apis.com@evil.example/x", False),
    ("https://daf-apis.com:443@evil.example/x", False),
    ("https://evil.example\\@daf-apis.com/x", False),
    ("https://evil.example%2f@daf-apis.com/x", True),  # a user name for every parser
    ("https://daf-apis.com%2f.evil.example/x", False),
    ("https://daf-apis.com%00.evil.example/x", False),
    ("https://daf-apis.com\t.evil.example/x", False),
    ("https://a@evil.example@daf-apis.com/x", False),
    ("https://ｄaf-apis.com/x", False),
    ("https://daf-apis。com/x", False),
    ("https:/daf-apis.com/x", False),
    ("https:daf-apis.com/x", False),
    ("ftp://daf-apis.com/x", False),
    ("gs://daf-apis.com/x", False),
    ("//daf-apis.com/x", False),
    ("https://[::ffff:127.0.0.1%25daf-apis.com]/x", False),
    ("https://daf-apis.com:99999/x", False),
    ("https://daf-apis.com:0/x", False),
    ("https://daf-apis.com:４43/x", False),
    ("", False),
]


@pytest.mark.parametrize(("url", "allowed"), CAVE)
def test_cave_tokens_go_to_the_hosts_of_cave_over_https_only(url, allowed):
    assert (Token(TOKEN, "a test").header_for(url, LINK) is not None) == allowed
    assert (Token(TOKEN, "a test").header_for(url, CALLER) is not None) == allowed


def test_the_server_in_the_name_of_a_token_file_receives_the_token(secrets):
    (secrets / "lab.example-cave-secret.json").write_text(json.dumps({"token": "5" * 32}))
    (secrets / "lab.example:8443-cave-secret.json").write_text(json.dumps({"token": "6" * 32}))
    token = find_token("lab.example")
    assert token.header_for("https://lab.example/x", LINK) == "Bearer " + "5" * 32
    for url in (
        "http://lab.example/x",
        "https://lab.example:8443/x",
        "https://www.lab.example/x",
        "http://lab.example:443/",
    ):
        assert token.header_for(url, LINK) is None
    token = find_token("lab.example:8443")
    assert token.header_for("https://lab.example:8443/x", LINK) == "Bearer " + "6" * 32
    assert token.header_for("https://lab.example/x", LINK) is None


def test_a_server_that_the_caller_names_does_not_receive_the_stored_cave_token(secrets, monkeypatch):
    # users paste addresses from e-mails, so an address alone is not trusted
    assert find_token("lab.example").header_for("https://lab.example/x", CALLER) is None
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    assert find_token("lab.example").header_for("https://lab.example/x", CALLER) is None
    assert find_token("lab.example").header_for("https://minnie.microns-daf.com/x", CALLER)


def test_a_token_argument_trusts_its_server_for_the_caller_but_not_for_a_link(secrets):
    token = find_token("lab.example", given=TOKEN)
    assert token.header_for("https://lab.example/x", CALLER)
    assert token.header_for("https://lab.example/x", LINK) is None
    assert token.header_for("http://lab.example/x", CALLER) is None
    assert token.header_for("https://lab.example:444/x", CALLER) is None


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_plain_http_to_this_machine_needs_local_access(host):
    for credential in (Token(TOKEN, "a test"), Password("a:b", parse_web_url(f"http://{host}/").origin)):
        assert credential.header_for(f"http://{host}/x", CALLER)
        assert credential.header_for(f"http://{host}/x", Access(allow_local=True, from_link=True))
        assert credential.header_for(f"http://{host}/x", LINK) is None
    assert Token(TOKEN, "a test").header_for("http://10.0.0.7/x", CALLER) is None
    assert Token(TOKEN, "a test").header_for("https://10.0.0.7/x", Access(allow_local=True, from_link=True)) is None


def test_trusted_hosts_are_whole_names():
    access = Access(
        allow_local=False, trusted_hosts=("good.example", "ported.example:8443", "[2001:db8::1]"), from_link=True
    )
    token = Token(TOKEN, "a test")
    for url in (
        "https://good.example/x",
        "https://GOOD.example:8443/x",
        "https://ported.example:8443/",
        "https://[2001:db8:0::1]/",
    ):
        assert token.header_for(url, access), url
    for url in (
        "http://good.example/",
        "https://ported.example/",
        "https://x.good.example/",
        "https://good.example.evil.example/",
        "https://good.example@evil.example/",
    ):
        assert token.header_for(url, access) is None, url


def test_passwords_go_only_to_the_server_they_were_given_for():
    origin = parse_web_url("https://lab.example:8443/").origin
    password = Password("me:secret", origin)
    assert base64.b64decode(password.header_for("https://lab.example:8443/x", LINK).split()[1]) == b"me:secret"
    trusting = Access(trusted_hosts=("evil.example",))
    for url in (
        "http://lab.example:8443/",
        "https://lab.example/",
        "https://evil.example/",
        "https://global.daf-apis.com/",
    ):
        assert password.header_for(url, trusting) is None
    assert not can_receive(
        "http://127.0.0.1/", LINK, given_for=[parse_web_url("http://127.0.0.1/").origin], is_cave_token=False
    )
    assert "secret" not in repr(password)


# --- Basic credentials ----------------------------------------------------------------------------------------------


def layer(url):
    return {"layers": [{"type": "image", "name": "em", "source": url}]}


def test_http_secrets_go_to_no_host_of_a_link(secrets, tls):
    (secrets / "http-secret.json").write_text(json.dumps({"user": "me", "password": "hunter2"}))
    for source in ("precomputed://{}/x", "zarr://{}/x", "{}/x", "{}/x|neuroglancer-precomputed:", "{}/x/|zarr2:"):
        for caller in (ix.open_image, lambda s: ix.open_neuroglancer(layer(s), allow_local=True)):
            with pytest.raises(ix.ImageryError):
                caller(source.format(tls.url("evil.example")))
    assert len(tls.requests) >= 10
    assert not tls.secrets


def test_http_secrets_go_to_the_host_that_they_name(secrets, tls):
    host = f"good.example:{tls.port}"
    for name, more in ((f"{host}-http-secret.json", {}), ("http-secret.json", {"host": host})):
        (secrets / name).write_text(json.dumps({"user": "me", "password": "hunter2", **more}))
        tls.requests.clear()
        with pytest.raises(ix.ImageryError):
            ix.open_image(f"precomputed://{tls.url('good.example')}/x")
        assert {r.authorization for r in tls.requests} == {"Basic " + base64.b64encode(b"me:hunter2").decode()}
        tls.requests.clear()
        with pytest.raises(ix.ImageryError):
            ix.open_image(f"precomputed://{tls.url('evil.example')}/x")
        assert tls.requests
        assert not tls.secrets
        (secrets / name).unlink()


def test_an_error_explains_why_http_secret_was_not_sent(secrets, tls):
    (secrets / "http-secret.json").write_text(json.dumps({"user": "me", "password": "hunter2"}))
    tls.answer = lambda request: (401, b"", {})
    with pytest.raises(ix.errors.AuthError, match=r"names no host.*rename it to HOST-http-secret.json") as caught:
        ix.open_image(f"precomputed://{tls.url('good.example')}/x")
    assert "hunter2" not in str(caught.value)


def test_a_password_in_an_address_goes_to_its_own_server_only(secrets, tls):
    with recording() as second:
        tls.moved["/x/info"] = f"{second.url('evil.example')}/x/info"
        with pytest.raises(ix.ImageryError):
            ix.open_image(f"precomputed://https://me:hunter2@good.example:{tls.port}/x")
        assert set(tls.secrets) == {"Basic " + base64.b64encode(b"me:hunter2").decode()}
        assert {r.path for r in second.requests} == {"/x/info"}
        assert "hunter2" not in "".join(r.text for r in second.requests)
        with pytest.raises(ix.ImageryError):
            ix.open_image(f"precomputed://http://me:hunter2@good.example:{second.port}/x")
        assert not second.secrets


def test_find_password_reads_no_file_for_an_invalid_host(secrets):
    assert find_password("https://../../x") is None
    assert find_password("nothing") is None
    assert auth.unsent_password_hint() == ""


# --- redirects --------------------------------------------------------------------------------------------------------


def test_a_redirect_to_another_origin_carries_no_token(secrets, tls, keys):
    # The token is stored for both servers. Still, a redirect does not carry it from one to the other.
    with recording(keys) as second, recording() as plain:
        for server in (tls, second):
            (secrets / f"good.example:{server.port}-cave-secret.json").write_text(json.dumps({"token": TOKEN}))
        for target in (second.url("good.example"), second.url("evil.example"), plain.url("good.example")):
            graph_info(tls, "good.example", "precomputed://gs://b/x")
            tls.moved["/segmentation/table/t/info"] = f"{target}/elsewhere/info"
            with pytest.raises(ix.ImageryError):
                ix.open_segmentation(
                    f"graphene://{tls.url('good.example')}/segmentation/table/t", connection=ix.Connection(retries=0)
                )
        assert tls.secrets
        assert len(second.requests) + len(plain.requests) == 3
        assert not second.secrets + plain.secrets
