"""Load the JSON state behind a Neuroglancer link, URL, file or viewer object.

A link is untrusted input: its size and depth are limited before it is parsed, file names inside it are not opened, and
tokens are sent only to servers that the user already trusts.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from imageryxr.core.validate import to_whole
from imageryxr.errors import AddressError, AuthError, LinkError, LinkServerError, ServerError, Wording, param
from imageryxr.neuroglancer.state_json import (
    DEFAULT_SIZE,
    decode_text,
    normalize_state,
    parse_json,
    parse_size_limit,
    size_error,
)
from imageryxr.sources.address import FORMAT_NAMES, bucket_url
from imageryxr.sources.fetch.attempt import Reply
from imageryxr.sources.fetch.auth import find_password, find_token, unsent_token_reason
from imageryxr.sources.fetch.client import METADATA_BYTES, decompress_body, send_interruptible_request
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.policy import Access, Credential, can_receive, is_cave_server
from imageryxr.sources.fetch.url import MIDDLEAUTH, WebURL, is_local_host, parse_web_url

#: A short link may redirect to a link that contains the URL of a state.
MAX_FETCHES = 3
MAX_REDIRECTS = 5

# Pairs of characters that often surround a pasted link.
_WRAPPINGS = ('""', "''", "<>", "``", "“”", "‘’", "()")

# Byte-order marks of files, and zero-width characters that mail programs and web pages put around links.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"

# Text with braces or quotes is a state without its "#!", not a URL to request.
_STATE_URL = re.compile(r"((middleauth\+)?https?|gs|s3)://(?!.*%7b)[^\s{}\"'<>|\\]{1,2000}", re.IGNORECASE)

_ENCODED_STATE = re.compile(r"(?:%2B|\+)?%7B[^\s<>\"|]*%7D(?![^\s<>\"|.,;:!?)\]}])", re.IGNORECASE)


def load_state(link: Any, access: Access | None = None, *, max_state_size: int | str = DEFAULT_SIZE) -> dict[str, Any]:
    """Return the JSON state of a link, text, path, mapping or viewer state.

    Parameters
    ----------
    link : str, path, mapping or viewer state
        A link with ``#!{…}`` or ``#!URL``, the JSON text itself, the URL of a state, a file that contains one of
        these, the parsed state, or an object with a ``to_json`` method such as ``neuroglancer.ViewerState``.
    access : Access, optional
        Whether a state may be fetched from this machine or a private network, and which hosts, besides those of CAVE,
        may receive the user's token. Default: neither.
    max_state_size : int or str
        Maximum number of characters of the link, the file or the state.

    Raises
    ------
    LinkError, AuthError
        If there is no state, or access to it is denied.
    OptionError
        If ``max_state_size`` is not a size.
    """
    limit = parse_size_limit(max_state_size)
    access = access or Access(allow_local=False, from_link=True)
    if isinstance(link, Mapping):
        return normalize_state(link, limit)
    if hasattr(link, "to_json"):
        return load_state(link.to_json(), max_state_size=limit)
    number = to_whole(link)
    if number is not None:
        link = str(number) if 0 <= number < 1 << 70 else f"{number:#x}"
    if isinstance(link, os.PathLike):
        return _state_from_text(_unwrap(_read_file(link, limit)), access, limit)
    if not isinstance(link, str):
        raise LinkError(
            f"{type(link).__name__} is not a Neuroglancer link; give the link, its JSON state, or the path of a file "
            "that contains it"
        )
    if len(link) > limit:
        raise size_error("the link", len(link), limit)
    text = _unwrap(link)
    if not _is_link(text):
        text = _unwrap(_read_file(text, limit))
    return _state_from_text(text, access, limit)


def _unwrap(text: str) -> str:
    """Return a pasted link without surrounding whitespace, quotes, <…> from mails and Markdown's […](…)."""
    for _ in range(8):  # links are never wrapped deeper
        text = text.strip().strip(_INVISIBLE).strip()
        named = re.match(r"!?\[[^\[\]{}]{0,1000}\]\(", text)
        inner = text[1:-1].strip() if text[:1] + text[-1:] in _WRAPPINGS else ""
        if named and text.endswith(")"):
            text = text[named.end() : -1]
        elif "://" in inner[:200]:
            text = inner
        else:
            break
    return text


def _is_link(text: str) -> bool:
    return text.startswith(("{", "[", "#!")) or "://" in text[:200] or len(text) > 4096 or "\n" in text or not text


def _read_file(path: str | os.PathLike[str], limit: int) -> str:
    name = os.fspath(path)
    if isinstance(name, str) and re.fullmatch(r"\d{8,22}", name) and not os.path.exists(name):
        raise LinkError(
            f"{name!r} seems to be the id of a state on a server; give the URL of the state, "
            f"such as https://global.daf-apis.com/nglstate/api/v1/{name}"
        )
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(limit + 1)
        text = None if len(data) > limit else decode_text(data)
    except (OSError, ValueError) as error:
        raise LinkError(
            f"{_public_link(str(name))} is not a link, JSON or a readable file ({type(error).__name__}); give "
            "https://…#!…, the JSON state, or the path of a file that contains one of them"
        ) from None
    if text is None:
        raise size_error(f"the file {_public_link(str(name))}", None, limit)
    return text


def _state_from_text(text: str, access: Access, limit: int, fetched: int = 0) -> dict[str, Any]:
    if text.startswith(("{", "[")):
        return parse_json(text)
    scheme, *rest = re.split("#(?:!|%21)", text, maxsplit=1)
    if rest and rest[0]:
        encoded = _ENCODED_STATE.match(rest[0])  # without the text of a chat or web page after the link
        inner = urllib.parse.unquote(encoded[0] if encoded else rest[0]).removeprefix("+").strip()
        if inner.startswith("{"):
            return parse_json(inner)
        target = inner
    else:
        target = _json_url(scheme) or scheme
    if text.split("://")[0] in FORMAT_NAMES:
        raise LinkError(
            f"{_public_link(text)} is the address of a layer, not a link; open it with ",
            Wording("imageryxr.open_image", "--image"),
            " or ",
            Wording("imageryxr.open_segmentation", "--segmentation"),
        )
    if fetched == MAX_FETCHES or not _STATE_URL.fullmatch(target):
        raise LinkError(
            f"the link {_public_link(text)} contains no state; '#!' must be followed by the state, {{…}}, or its URL"
        )
    try:
        found = _fetch(target, access, limit)
    except AddressError as error:
        raise LinkError(f"the address of the state is invalid: {error}") from None
    return _state_from_text(_unwrap(found), access, limit, fetched + 1)


def _json_url(text: str) -> str | None:
    try:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(text).query)
    except ValueError as error:
        raise LinkError(f"{_public_link(text)} is not a URL ({error})") from None
    return query.get("json_url", [None])[0]


def _public_link(text: str) -> str:
    """Return the start of a link for messages, without user names, passwords and queries."""
    public = re.sub(r"\?[^#]+", "?…", re.sub(r"//[^/\s@]{1,2000}@", "//", text[:4096]))
    return repr(public if len(public) <= 120 else public[:120] + "…")


# ---------------------------------------------------------------------------------------------------------
# states on servers


def check_trusted(url: str, what: str, access: Access) -> None:
    """Raise `AuthError` unless the server of a URL may receive the user's CAVE token."""
    server = parse_web_url(url)
    token = find_token(server.netloc)
    if can_receive(url, access, given_for=(), is_cave_token=True):
        return
    if token is None or token.header_for(url, access) is None:
        raise AuthError(
            f"{what} requires your CAVE token, which was not sent to {server.netloc}: "
            f"{unsent_token_reason(server, access)}"
        )


def _fetch(url: str, access: Access, limit: int) -> str:
    """Return the text at the URL of a state, or the target of a short link."""
    address = bucket_url(url) if url.startswith(("gs://", "s3://")) else url.removeprefix(MIDDLEAUTH)
    server = _check_server(address, access)
    if url.startswith(MIDDLEAUTH):
        check_trusted(address, f"the state at {server.netloc}", access)
    token = find_token(server.netloc)
    with_token = token is not None and token.header_for(address, access) is not None
    credential: Credential | None = token if with_token else find_password(address)
    # A state server redirects a request without a valid token to its login page.
    may_redirect = not with_token and not is_cave_server(server)
    for _ in range(MAX_REDIRECTS):
        found, place = _download(address, credential, access, limit, may_redirect)
        if place is None:
            return found
        if re.search("#(!|%21)", place) or _json_url(place):
            return place
        address, credential = place, None  # credentials are never sent to a redirect's target
        _check_server(address, access)
    raise LinkError(f"{_public_link(url)} is redirected more than {MAX_REDIRECTS} times; give the final link")


def _check_server(address: str, access: Access) -> WebURL:
    server = parse_web_url(address)
    if is_local_host(server.host) and not access.allow_local:
        raise LinkError(
            f"the state is at {server.netloc}, on this machine or its network, which links may not ",
            "access by default; if you trust the link, give ",
            param("allow_local", True),
        )
    return server


def _download(
    address: str, credential: Credential | None, access: Access, limit: int, may_redirect: bool = True
) -> tuple[str, str | None]:
    """Return the text at a web address, and the target of a redirect or None."""
    server = parse_web_url(address)
    host = server.netloc
    connection = Connection(timeout=30, retries=1, access=access)
    options: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}, "credential": credential, "follow": False}
    options["limit"] = max(limit + 1, METADATA_BYTES)
    try:
        reply = send_interruptible_request("GET", urllib.parse.urldefrag(address)[0], connection, **options)
    except ServerError as error:
        raise LinkServerError(f"the state at {host} could not be fetched: {error}") from None
    place = ""
    with suppress(ValueError):  # an invalid Location header
        place = urllib.parse.urljoin(address, reply.headers.get("location", "")) if reply.is_redirect else ""
    if place.startswith(("http://", "https://")) and (may_redirect or "#!" in place):
        return "", place
    if reply.is_redirect or reply.status in (401, 403):
        raise AuthError(
            f"the state at {host} requires a valid token (status {reply.status}); save one with caveclient: "
            f"CAVEclient(server_address=…).auth.setup_token(), or in ~/.cloudvolume/secrets/{host}-cave-secret.json"
        )
    if reply.status != 200:
        kind = LinkServerError if reply.status in (408, 429, *range(500, 600)) else LinkError
        raise kind(f"there is no state at {server.public}: status {reply.status}")
    return _reply_text(reply, server, limit), None


def _reply_text(reply: Reply, server: WebURL, limit: int) -> str:
    if len(reply.body) > limit:
        raise size_error(f"the state at {server.netloc}", None, limit)
    try:
        text = decode_text(decompress_body(reply, max(limit + 1, METADATA_BYTES)))
    except UnicodeDecodeError:
        raise LinkError(f"the reply of {server.netloc} is not text, so it contains no state") from None
    except ValueError as error:
        raise LinkError(f"the state at {server.netloc} cannot be decompressed: {error}") from None
    if len(text) > limit:
        raise size_error(f"the state at {server.netloc}", len(text), limit)
    if text.lstrip().startswith("<"):
        raise LinkError(
            f"{server.public} returned a web page instead of a state; open it in a browser and copy the address that "
            "contains '#!'"
        )
    return text
