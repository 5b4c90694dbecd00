"""What a request may reach and which credential it may carry: the policy that travels with every source."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Protocol

from imageryxr.errors import AddressError, SourceError
from imageryxr.sources.address import WEB_PROTOCOLS, Address
from imageryxr.sources.fetch.url import Origin, WebURL, is_local_host, origins_of, parse_web_url

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


def can_receive(url: str, access: Access, *, given_for: Collection[Origin], is_cave_token: bool) -> bool:
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
    if "" in parts.host.split("."):
        return False  # resolvers differ about empty labels and a dot at the end
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


def is_local_address(address: Address) -> bool:
    """Return whether an address is on this machine or in its network, by its name."""
    if address.protocol in WEB_PROTOCOLS:
        return is_local_host(parse_web_url(address.url).host)
    return address.protocol in ("file", "mem")


def access_for_named_address(address: Address, server: str, access: Access, what: str) -> Access:
    """Return the limits for a place that a server's answer names, which is a stranger's word.

    Only this machine's own servers may name its files, and only servers of a private network others of that network.

    Parameters
    ----------
    address : Address
        The place.
    server : str
        URL of the server that named it.
    access : Access
        The limits of the source that asked the server.
    what : str
        What messages call the answer.

    Raises
    ------
    SourceError
        If the place is on this machine or in its network, and the server is not.
    """
    named_by = parse_web_url(server)
    if named_by.is_loopback and access.allow_local:
        return access
    web = parse_web_url(address.url) if address.protocol in WEB_PROTOCOLS else None
    if web is not None and web.host == named_by.host:
        return access
    limits = access if is_local_host(named_by.host) else replace(access, allow_local=False)
    on_this_machine = is_local_address(address) if web is None else web.is_loopback
    if on_this_machine or (is_local_address(address) and not limits.allow_local):
        raise SourceError(
            f"{what} on {named_by.netloc} names {address.public}, on this machine or its network, which a server "
            "elsewhere may not; open that address itself if it is what you want"
        )
    return limits
