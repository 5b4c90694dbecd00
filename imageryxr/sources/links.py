"""From a Neuroglancer link, or what else people share, to the JSON state that it stands for.

A link is untrusted input: it is bounded in size and depth before anything looks at it, names of files in it are not
followed, and no token goes to a server that the user has not had to do with.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import urllib.parse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from imageryxr.errors import AuthError, LinkError, LinkServerError
from imageryxr.sources.checks import closing_quote

MAX_BYTES = 64 << 20
MAX_DEPTH = 64

# Pairs of what may stand around a link that somebody pastes.
_WRAPPINGS = ('""', "''", "<>", "``", "“”", "‘’", "()")

# Anything that holds braces or quotes is a state that lost its "#!", and no address to ask a server for.
_STATE_URL = re.compile(r"((middleauth\+)?https?|gs|s3)://(?!.*%7b)[^\s{}\"'<>|\\]{1,2000}", re.IGNORECASE)

#: Servers of CAVE, to which the token in ``cave-secret.json`` belongs.
CAVE_DOMAINS = ("daf-apis.com", "microns-daf.com", "flywire-daf.com", "fanc-fly.com", "cave-explorer.org")


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
    if isinstance(link, Mapping):
        return _checked(dict(link))
    if hasattr(link, "to_json"):
        return state_of(link.to_json())
    if isinstance(link, os.PathLike):
        return _of_text(_unwrapped(_read_file(Path(link))), allow_local, trusted_hosts)
    if not isinstance(link, str):
        raise LinkError(
            f"{type(link).__name__} is no Neuroglancer link; give the link, its JSON state, or the path of a file "
            "that holds it"
        )
    text = _unwrapped(link)
    if not _looks_like_link(text):
        return _of_text(_unwrapped(_read_file(Path(text))), allow_local, trusted_hosts)
    return _of_text(text, allow_local, trusted_hosts)


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


def _of_text(text: str, allow_local: bool, trusted_hosts: Collection[str], hops: int = 0) -> dict[str, Any]:
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
    return _of_text(_fetch(target, allow_local, trusted_hosts).strip(), allow_local, trusted_hosts, hops + 1)


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


def is_local_host(host: str) -> bool:
    """Tell whether a host is this machine or stands in a private network, by its name."""
    name = host.rstrip(".").lower()
    if name in ("", "localhost") or name.endswith((".localhost", ".local", ".internal")):
        return True
    if "." not in name and ":" not in name:
        return True  # a name that only the user's own network knows
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        # Browsers and the C library read 2130706433, 0x7f.1 and 127.1 as addresses, too.
        return re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*", name) is not None
    return not address.is_global


def check_trusted(url: str, what: str, *, allow_local: bool, trusted_hosts: Collection[str]) -> None:
    """Raise `AuthError` unless a URL's host may have the user's CAVE token."""
    host = host_of(url)
    known = any(host == domain or host.endswith("." + domain) for domain in CAVE_DOMAINS)
    if known or host in trusted_hosts or (allow_local and is_local_host(host)) or _has_own_secret(url):
        return
    raise AuthError(
        f"{what} would send your CAVE token to {host}, which is none of CAVE's servers and has no token of its own in "
        f"~/.cloudvolume/secrets; if you trust it, give trusted_hosts=[{host!r}]"
    )


def host_of(url: str) -> str:
    """Return the host that a URL names, or raise `LinkError`."""
    try:
        return (urllib.parse.urlsplit(url.removeprefix("middleauth+")).hostname or "").lower()
    except ValueError as error:
        raise LinkError(f"{_shown(url)} is no URL ({error})") from None


def _has_own_secret(url: str) -> bool:
    netloc = urllib.parse.urlsplit(url.removeprefix("middleauth+")).netloc.rpartition("@")[2]
    folder = Path(os.environ.get("CLOUD_VOLUME_DIR", "~/.cloudvolume")).expanduser() / "secrets"
    return bool(netloc) and "/" not in netloc and (folder / f"{netloc}-cave-secret.json").exists()


def _fetch(url: str, allow_local: bool, trusted_hosts: Collection[str]) -> str:
    """Return the text at the URL of a state, through caveclient's state service."""
    if url.startswith("gs://"):
        url = "https://storage.googleapis.com/" + url.removeprefix("gs://")
    elif url.startswith("s3://"):
        bucket, _, key = url.removeprefix("s3://").partition("/")
        url = f"https://{bucket}.s3.amazonaws.com/{key}"
    address = url.removeprefix("middleauth+")
    host = host_of(address)
    if is_local_host(host) and not allow_local:
        raise LinkError(
            f"the state lies at {host}, on this machine or its network, where a link from elsewhere should not reach; "
            "if it is your own, give allow_local=True"
        )
    try:
        check_trusted(address, f"the state at {host}", allow_local=allow_local, trusted_hosts=trusted_hosts)
        trusted = True
    except AuthError:
        if url.startswith("middleauth+"):
            raise
        trusted = False  # a public state: fetched without the token
    return _download(address, host, trusted)


def _download(address: str, host: str, with_token: bool) -> str:
    import requests
    import urllib3
    from caveclient.auth import AuthClient
    from caveclient.jsonservice import JSONService

    server = "{0.scheme}://{0.netloc}".format(urllib.parse.urlsplit(address))
    auth = AuthClient(server_address=server, token=None if with_token else "")
    service = JSONService(server_address=server, auth_client=auth, api_version=0, max_retries=1)
    if not with_token:
        service.session.headers.pop("Authorization", None)
        service.session.cookies.clear()
    # Not followed: a redirect is either the login page, or leads where nobody has looked.
    options: dict[str, Any] = {"stream": True, "timeout": 30, "allow_redirects": False}
    try:
        with service.session.get(address, **options) as response:
            if response.status_code in (301, 302, 303, 307, 308, 401, 403):
                raise AuthError(
                    f"the state at {host} asks for a token that it accepts (status {response.status_code}); save one "
                    "with caveclient: CAVEclient(server_address=…).auth.setup_token()"
                )
            if response.status_code != 200:
                kind = LinkServerError if response.status_code in (408, 429, *range(500, 600)) else LinkError
                raise kind(f"there is no state at {_shown(address)}: status {response.status_code}")
            return _bounded(response, host)
    except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
        raise LinkServerError(f"the state at {host} could not be fetched: {type(error).__name__}") from None


def _bounded(response: Any, host: str) -> str:
    parts, size = [], 0
    for part in response.iter_content(1 << 16):
        size += len(part)
        if size > MAX_BYTES:
            raise LinkError(f"the state at {host} is larger than {MAX_BYTES >> 20} MB, which no state is")
        parts.append(part)
    try:
        return b"".join(parts).decode("utf-8")
    except UnicodeDecodeError:
        raise LinkError(f"what lies at {host} is no text, so no state") from None
