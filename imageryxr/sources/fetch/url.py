r"""Parsing of web addresses.

Parsers disagree about unusual URLs: ``http://evil.example\@trusted.org/`` has the host ``trusted.org`` for one parser
and ``evil.example`` for another. Every decision about a host uses `parse_web_url`, which rejects ambiguous URLs. The
HTTP client connects to the same host.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from imageryxr.core.lazy_import import import_package
from imageryxr.errors import AddressError

MIDDLEAUTH = "middleauth+"
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#]*)(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(r"(?:([^@\[\]]+)@)?([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")


class Origin(NamedTuple):
    """A server: the unit that a credential belongs to."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class WebURL:
    """The parts of a web address."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """Lower-case ASCII; an IPv6 address without brackets."""
    port: int
    """Port of the address, or the default of the scheme."""
    userinfo: str = field(repr=False)
    """``user:password``, percent-encoded, or empty."""
    path: str = field(repr=False)
    """Everything after the host, including query and fragment."""

    @property
    def origin(self) -> Origin:
        """Scheme, host and port."""
        return Origin(self.scheme, self.host, self.port)

    @property
    def netloc(self) -> str:
        """Host, and port unless it is the default of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def public(self) -> str:
        """Address without user, password, query and fragment, safe to show in messages."""
        return f"{self.scheme}://{self.netloc}{re.split('[?#]', self.path)[0]}"

    @property
    def is_loopback(self) -> bool:
        """Whether the name of the host is that of this machine."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_web_url(url: str) -> WebURL:
    """Return the parts of an ``http(s)://`` or ``middleauth+http(s)://`` URL.

    Raises
    ------
    AddressError
        If the URL has no host, or if parsers could disagree about the host because of backslashes, percent signs,
        non-ASCII characters, several ``@``, control characters, ports out of range or zones of IPv6 addresses.
    """
    plain = url.removeprefix(MIDDLEAUTH)
    found = _URL.fullmatch(plain)
    if found is None:
        raise AddressError(f"{hide_secrets(plain)!r} is not a web address: write https://HOST/PATH")
    scheme, authority, path = found.groups()
    # The server is parsed once for all chunks of a volume, but a server with a password is not kept in the cache.
    parse = _parse_server.__wrapped__ if "@" in authority else _parse_server
    problem = _text_problem(authority, path)
    server = problem or parse(scheme, authority)
    if isinstance(server, str):
        raise AddressError(f"{hide_secrets(plain)!r} is not a web address: {server}")
    return WebURL(scheme, *server, path)


@lru_cache(maxsize=256)
def _parse_server(scheme: str, authority: str) -> tuple[str, int, str] | str:
    """Return the host, port and userinfo of a URL, or why they are not valid."""
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        return _authority_problem(authority)
    userinfo, written, port = parts.groups()
    host = written.strip("[]").lower()
    problem = _host_problem(written) or _port_problem(port) or _client_problem(f"{scheme}://{authority}/", host, port)
    if problem:
        return problem
    host = str(ipaddress.IPv6Address(host)) if ":" in host else host
    return host, int(port or _PORTS[scheme]), userinfo or ""


def origins_of(server: str) -> tuple[Origin, ...]:
    """Return the origins of ``HOST`` or ``HOST:PORT`` over http and https, or none if the text is not valid."""
    found = []
    for scheme in _PORTS:
        try:
            found.append(parse_web_url(f"{scheme}://{server}").origin)
        except AddressError:
            return ()
    return tuple(found)


def is_local_host(host: str) -> bool:
    """Return whether the name of a host belongs to this machine or a private network."""
    name = host.rstrip(".").lower()
    if name in ("", "localhost") or name.endswith((".localhost", ".local", ".internal")):
        return True
    if "." not in name and ":" not in name:
        return True  # such a name resolves only in the user's own network
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        # Browsers and the C library read 2130706433, 0x7f.1 and 127.1 as addresses.
        return re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*", name) is not None
    return not address.is_global


def _text_problem(authority: str, path: str) -> str:
    if "\\" in authority or "\\" in path:
        return "it has a backslash, which some programs treat as '/'; write %5C in a path"
    if _CONTROL.search(authority) or _CONTROL.search(path):
        return "it has a control character or a line break"
    if not authority.isascii():
        return "its host has characters that are not ASCII; write the host as punycode (xn--…)"
    return ""


def _authority_problem(authority: str) -> str:
    host = authority.rpartition("@")[2]
    if authority.count("@") > 1:
        return "it has several '@' before its path; write %40 in a user name or password"
    if "%" in host:
        return "its host has a percent sign; write the host in plain letters, and an IPv6 address without a zone"
    if not host.strip(":"):
        return "it has no host"
    if re.search(r"\s", authority):
        return "its host has a blank"
    if re.search(r":[^:\]]*$", host) and not re.search(r":[0-9]{1,5}$", host):
        return "its port is not a number from 1 to 65535"
    return "its host is not valid"


def _host_problem(host: str) -> str:
    if not host.startswith("["):
        return ""
    try:
        ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        return "its host in brackets is not an IPv6 address"
    return ""


def _port_problem(port: str | None) -> str:
    return "" if port is None or 1 <= int(port) <= 65535 else "its port is not a number from 1 to 65535"


def _client_problem(url: str, host: str, port: str | None) -> str:
    import_package("urllib3")
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    try:
        parts = parse_url(url)
    except LocationParseError:
        return "urllib3 cannot parse it; check the host and the port"
    same = (parts.host or "").strip("[]").lower() == host and parts.port == (None if port is None else int(port))
    return "" if same else "programs disagree about its host"


def hide_secrets(text: str) -> str:
    """Return text for a message, shortened, and without user, password and query of an address in it."""
    scheme, separator, rest = text[:4096].partition("://")
    if separator and scheme.rpartition("+")[2] not in ("file", "gs", "s3", "mem"):
        inner = hide_secrets(rest) if "://" in rest else _public_rest(rest)
        text = f"{scheme}://{inner}"
    elif separator and "://" in rest:
        text = f"{scheme}://{hide_secrets(rest)}"
    text = re.sub(r":[^:/|@\s]{1,200}@", ":…@", text)
    return text if len(text) <= 300 else text[:300] + "…"


def _public_rest(rest: str) -> str:
    # A password may contain unencoded '/' and '?', so everything before the last '@' is removed.
    return re.split(r"[?#]", rest.rpartition("@")[2])[0]
