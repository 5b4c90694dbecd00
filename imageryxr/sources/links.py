"""From a Neuroglancer link, or what else people share, to the JSON state that it stands for.

A link is untrusted input: it is bounded in size and depth before anything looks at it, names of files in it are not
followed, and no token goes to a server that the user has not had to do with.
"""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from imageryxr.errors import AddressError, AuthError, LinkError, LinkServerError, ServerError
from imageryxr.sources.access import Access, Credential, may_receive
from imageryxr.sources.address import bucket_url
from imageryxr.sources.auth import find_password, find_token, why_not_sent
from imageryxr.sources.checks import closing_quote
from imageryxr.sources.services import unpacked
from imageryxr.sources.web import Connection, ask_once
from imageryxr.sources.weburl import MIDDLEAUTH, is_local_host, parse_web_url

MAX_BYTES = 64 << 20
MAX_DEPTH = 64

# Pairs of what may stand around a link that somebody pastes.
_WRAPPINGS = ('""', "''", "<>", "``", "“”", "‘’", "()")

# Anything that holds braces or quotes is a state that lost its "#!", and no address to ask a server for.
_STATE_URL = re.compile(r"((middleauth\+)?https?|gs|s3)://(?!.*%7b)[^\s{}\"'<>|\\]{1,2000}", re.IGNORECASE)


def state_of(link: Any, *, allow_local: bool = False, trusted_hosts: Collection[str] = ()) -> dict[str, Any]:
    """Return the JSON state that a link, text, path, mapping or viewer state stands for.

    Parameters
    ----------
    link : str, path, mapping or viewer state
        A link with ``#!{…}`` or ``#!URL``; the JSON text itself; the URL of a state; a file that holds either; the
        parsed state; or anything with a ``to_json`` method, such as ``neuroglancer.ViewerState``.
    allow_local : bool
        Whether a state may be fetched from this machine or a private network.
    trusted_hosts : collection of str
        Hosts besides CAVE's that may have the user's token.

    Raises
    ------
    LinkError, AuthError
        If there is no state in it, or it may not be had.
    """
    access = Access(allow_local, tuple(trusted_hosts), from_link=True)
    if isinstance(link, Mapping):
        return _checked(dict(link))
    if hasattr(link, "to_json"):
        return state_of(link.to_json())
    if isinstance(link, os.PathLike):
        return _of_text(_unwrapped(_read_file(Path(link))), access)
    if not isinstance(link, str):
        raise LinkError(
            f"{type(link).__name__} is no Neuroglancer link; give the link, its JSON state, or the path of a file "
            "that holds it"
        )
    text = _unwrapped(link)
    if not _looks_like_link(text):
        return _of_text(_unwrapped(_read_file(Path(text))), access)
    return _of_text(text, access)


def _unwrapped(text: str) -> str:
    """Take off what a link is wrapped in where it is pasted from: blanks, quotes, <…> of mails, Markdown's […](…)."""
    for _ in range(8):  # deeper than anybody wraps a link
        text = text.strip()
        named = re.match(r"!?\[[^\[\]{}]{0,1000}\]\(", text)
        inner = text[1:-1].strip() if text[:1] + text[-1:] in _WRAPPINGS else ""
        if named and text.endswith(")"):
            text = text[named.end() : -1]
        elif "://" in inner[:200]:
            text = inner
        else:
            break
    return text


def _looks_like_link(text: str) -> bool:
    return text.startswith(("{", "[", "#!")) or "://" in text[:200] or len(text) > 4096 or "\n" in text or not text


def _read_file(path: Path) -> str:
    if re.fullmatch(r"\d{8,20}", str(path)) and not path.exists():
        raise LinkError(
            f"{str(path)!r} looks like the id of a state on a server, and does not say on which; give the state's URL, "
            f"such as https://global.daf-apis.com/nglstate/api/v1/{path}"
        )
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8").strip() if size <= MAX_BYTES else None
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) < 200 else str(path)[:200] + "…"
        raise LinkError(
            f"{shown!r} is neither a link, nor JSON, nor a file that can be read ({type(error).__name__}); give "
            "https://…#!…, the JSON state, or the path of a file with either"
        ) from None
    if text is None:
        raise LinkError(f"the file {path} has {size:,} bytes, and is larger than any link: {MAX_BYTES:,}")
    return text


def _of_text(text: str, access: Access, hops: int = 0) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise LinkError(f"the link is {len(text):,} characters long, more than the {MAX_BYTES:,} that are read")
    if text.startswith(("{", "[")):
        return _parsed(text)
    scheme, _, rest = text.partition("#!")
    if rest:
        inner = urllib.parse.unquote(rest).removeprefix("+").strip()
        if inner.startswith("{"):
            return _parsed(inner)
        target = inner
    else:
        target = _json_url(scheme) or scheme
    if hops or not _STATE_URL.fullmatch(target):
        raise LinkError(f"there is no state in the link {_shown(text)}: after '#!' stands the state, {{…}}, or its URL")
    try:
        fetched = _fetch(target, access)
    except AddressError as error:
        raise LinkError(f"the address of the state makes no sense: {error}") from None
    return _of_text(fetched.strip(), access, hops + 1)


def _json_url(text: str) -> str | None:
    try:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(text).query)
    except ValueError as error:
        raise LinkError(f"{_shown(text)} is no URL ({error})") from None
    return query.get("json_url", [None])[0]


def _shown(text: str) -> str:
    short = text if len(text) <= 120 else text[:120] + "…"
    return repr(re.sub(r"//[^/\s@]+@", "//", short))


# ---------------------------------------------------------------------------------------------------------
# JSON


def _parsed(text: str) -> dict[str, Any]:
    if _depth(text) > MAX_DEPTH:
        raise LinkError(f"the state is nested deeper than {MAX_DEPTH} levels, which no state is")
    problems = []
    for candidate in (text, url_safe_to_json(text)):
        try:
            return _checked(json.loads(candidate, parse_constant=_no_constant))
        except json.JSONDecodeError as error:
            problems.append(f"{error.msg} at character {error.pos}")
        except (ValueError, RecursionError) as error:
            problems.append(str(error)[:200])
    raise LinkError(f"the state is no JSON: {problems[0]}; copy the whole link again")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _depth(text: str) -> int:
    """Return an upper bound of how deep JSON is nested: brackets count even inside of strings."""
    depth = deepest = 0
    for match in re.finditer(r"[\[{]+|[\]}]+", text):
        run = match.group()
        depth += len(run) if run[0] in "[{" else -len(run)
        deepest = max(deepest, depth)
    return deepest


def _checked(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise LinkError(f"the state is a {type(state).__name__}, and must be a JSON object {{…}} with layers")
    level: dict[int, Any] = {id(state): state}
    for _ in range(MAX_DEPTH):
        # Each once: a mapping from elsewhere may hold itself, which JSON cannot.
        inner = [v for item in level.values() for v in _values(item) if isinstance(v, dict | list)]
        level = {id(v): v for v in inner}
        if not level:
            return state
    raise LinkError(f"the state is nested deeper than {MAX_DEPTH} levels, which no state is")


def _values(item: dict[Any, Any] | list[Any]) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else item


def url_safe_to_json(text: str) -> str:
    """Turn the form of JSON that Neuroglancer makes for URLs, with ``'`` for ``"`` and ``_`` for ``,``, into JSON."""
    out: list[str] = []
    unclosed: set[str] = set()
    position = 0
    while found := re.compile("['\"]").search(text, position):
        quote, start = found.group(), found.end()
        out.append(re.sub("[&_]", ",", text[position : found.start()]))
        # Where one quote has no end, no later one of its kind has: each is looked for once.
        end = -1 if quote in unclosed else closing_quote(text, start, quote)
        if end < 0:
            unclosed.add(quote)
            out.append(quote)
            position = start
            continue
        inner = text[start:end]
        out.append('"' + (_double_quoted(inner) if quote == "'" else inner) + '"')
        position = end + 1
    return "".join([*out, re.sub("[&_]", ",", text[position:])])


def _double_quoted(inner: str) -> str:
    """Return what stands between single quotes as it stands between double ones."""
    changed = {"\\'": "'", '"': '\\"'}
    return re.sub(r"\\.|\"", lambda m: changed.get(m.group(), m.group()), inner, flags=re.DOTALL)


# ---------------------------------------------------------------------------------------------------------
# states on servers


def check_trusted(url: str, what: str, access: Access) -> None:
    """Raise `AuthError` unless a URL's server may have the user's CAVE token."""
    server = parse_web_url(url)
    held = find_token(server.netloc)
    if may_receive(url, access, given_for=(), is_cave_token=True):
        return
    if held is None or held.header_for(url, access) is None:
        raise AuthError(f"{what} would send your CAVE token to {server.netloc}: {why_not_sent(server, access)}")


def _fetch(url: str, access: Access) -> str:
    """Return the text at the URL of a state."""
    address = bucket_url(url) if url.startswith(("gs://", "s3://")) else url.removeprefix(MIDDLEAUTH)
    server = parse_web_url(address)
    if is_local_host(server.host) and not access.allow_local:
        raise LinkError(
            f"the state lies at {server.netloc}, on this machine or its network, where a link from elsewhere should "
            "not reach; if it is your own, give allow_local=True"
        )
    if url.startswith(MIDDLEAUTH):
        check_trusted(address, f"the state at {server.netloc}", access)
    held = find_token(server.netloc)
    with_token = held is not None and held.header_for(address, access) is not None
    return _download(address, server.netloc, with_token, access)


def _download(address: str, host: str, with_token: bool, access: Access | None = None) -> str:
    # Without redirects: one is either the way to a login page, or leads where no link named.
    server = parse_web_url(address)
    connection = Connection(timeout=30, retries=1, access=access or Access())
    credential: Credential | None = find_token(server.netloc) if with_token else find_password(address)
    try:
        reply = ask_once(
            "GET", address, connection, headers={"Accept-Encoding": "identity"}, credential=credential, follow=False
        )
    except ServerError as error:
        raise LinkServerError(f"the state at {host} could not be fetched: {error}") from None
    if reply.went_elsewhere or reply.status in (401, 403):
        raise AuthError(
            f"the state at {host} asks for a token that it accepts (status {reply.status}); save one with caveclient: "
            f"CAVEclient(server_address=…).auth.setup_token(), or in ~/.cloudvolume/secrets/{host}-cave-secret.json"
        )
    if reply.status != 200:
        kind = LinkServerError if reply.status in (408, 429, *range(500, 600)) else LinkError
        raise kind(f"there is no state at {server.public}: status {reply.status}")
    if len(reply.body) > MAX_BYTES:
        raise LinkError(f"the state at {host} is larger than {MAX_BYTES >> 20} MB, which no state is")
    try:
        return unpacked(reply).decode("utf-8")
    except ValueError:
        raise LinkError(f"what lies at {host} is no text, so no state") from None
