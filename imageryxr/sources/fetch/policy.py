"""The security policy of a source: the servers that its requests may reach, and the credentials they may send."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Protocol

from imageryxr.core.validate import check_flag, check_texts
from imageryxr.errors import AddressError, SourceError
from imageryxr.sources.address import WEB_PROTOCOLS, Address
from imageryxr.sources.fetch.url import Origin, WebURL, is_local_host, origins_of, parse_web_url

#: Domains of CAVE, whose servers may receive the token in ``cave-secret.json``.
CAVE_DOMAINS = ("daf-apis.com", "microns-daf.com", "flywire-daf.com", "fanc-fly.com", "cave-explorer.org")


@dataclass(frozen=True, slots=True)
class Access:
    """The limits of the requests of a source.

    A source that the caller named has no limits. A source from a link may not connect to this machine or its network
    unless the caller allowed it.
    """

    allow_local: bool = True
    """Whether connections to loopback, private, link-local or other non-public addresses are allowed."""
    trusted_hosts: tuple[str, ...] = ()
    """Hosts, in addition to CAVE's, that may receive the user's CAVE token; ``HOST:PORT`` is only that port."""
    from_link: bool = False
    """Whether the source comes from a link."""

    @classmethod
    def of_link(cls, allow_local: Any, trusted_hosts: Any) -> Access:
        """Return the limits of a link, after checking the caller's options."""
        hosts = check_texts("trusted_hosts", trusted_hosts, "a list of hosts, such as ['cave.example.org']")
        return cls(check_flag("allow_local", allow_local), tuple(hosts), from_link=True)


class Credential(Protocol):
    """A secret, and the rule which servers may receive it."""

    def header_for(self, url: str, access: Access) -> str | None:
        """Return the value of the Authorization header for a request to a URL, or None if the URL may not have it."""


def can_receive(url: str, access: Access, *, given_for: Collection[Origin], is_cave_token: bool) -> bool:
    """Return whether a server may receive a credential. All such decisions are made here.

    Credentials are sent over https. Plain http is allowed only to this machine, if the caller allowed local access.
    `given_for` are the servers that the credential was stored or given for. CAVE's own servers, trusted hosts and (if
    local access is allowed) this machine may also receive a CAVE token.
    """
    try:
        parts = parse_web_url(url)
    except AddressError:
        return False
    if "" in parts.host.split("."):
        return False  # resolvers disagree about empty labels and a trailing dot
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
    """Return whether the name of an address belongs to this machine or its network."""
    if address.protocol in WEB_PROTOCOLS:
        return is_local_host(parse_web_url(address.url).host)
    return address.protocol in ("file", "mem")


def access_for_named_address(address: Address, server: str, access: Access, what: str) -> Access:
    """Return the limits for an address in the response `what` of a server, which is not trusted.

    Only servers on this machine may name its files, and only servers in a private network may name others in it;
    otherwise `SourceError` is raised. `access` are the limits of the source that made the request.
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
            f"{what} on {named_by.netloc} names {address.public} on this machine or its network, which a remote "
            "server may not; open that address directly if you trust it"
        )
    return limits
