"""What a request may reach and which credential it may carry: the policy that travels with every source."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from imageryxr.errors import AddressError
from imageryxr.sources.weburl import Origin, WebURL, origins_of, parse_web_url

#: Servers of CAVE, to which the token in ``cave-secret.json`` belongs.
CAVE_DOMAINS = ("daf-apis.com", "microns-daf.com", "flywire-daf.com", "fanc-fly.com", "cave-explorer.org")


@dataclass(frozen=True, slots=True)
class Access:
    """The limits of one source's requests.

    A source that the caller named has no limits. A source that came from a link may not connect to this machine or its
    network unless the caller allowed it.
    """

    allow_local: bool = True
    """Whether a connection may go to a loopback, private, link-local or otherwise non-public address."""
    trusted_hosts: tuple[str, ...] = ()
    """Hosts, besides CAVE's, that may receive the user's CAVE token; ``HOST:PORT`` is that port only."""
    from_link: bool = False
    """Whether somebody else's link named the source."""


class Credential(Protocol):
    """A secret that decides itself which server may receive it."""

    def header_for(self, url: str, access: Access) -> str | None:
        """Return the value of the Authorization header for a request to a URL, or None if the URL may not have it."""


def may_receive(url: str, access: Access, *, given_for: Collection[Origin], is_cave_token: bool) -> bool:
    """Return whether a server may receive a credential: the only place where that is decided.

    Credentials go over https; over plain http to this machine only, and only if the caller allowed local access.

    Parameters
    ----------
    url : str
        Of the request.
    access : Access
        Of the source that makes the request.
    given_for : collection of Origin
        Servers that the credential was stored or typed for.
    is_cave_token : bool
        Whether CAVE's own servers, trusted hosts and (if local access is allowed) this machine may have it as well.
    """
    try:
        parts = parse_web_url(url)
    except AddressError:
        return False
    own_machine = parts.is_loopback and access.allow_local
    if parts.scheme != "https" and not own_machine:
        return False
    if parts.origin in given_for:
        return True
    return is_cave_token and (own_machine or is_cave_server(parts) or _is_trusted(parts, access))


def is_cave_server(url: WebURL) -> bool:
    """Return whether a URL's server is one of CAVE's own."""
    known = any(url.host == domain or url.host.endswith("." + domain) for domain in CAVE_DOMAINS)
    return known and (url.scheme, url.port) == ("https", 443)


def _is_trusted(url: WebURL, access: Access) -> bool:
    for entry in access.trusted_hosts:
        host = entry.strip().lower()
        if host.strip("[]") == url.host or url.origin in origins_of(host):
            return True
    return False
