"""Checks of the IP addresses of a connection after name resolution and before anything is sent.

A link may name a public host that resolves to this machine, or redirects to one. Therefore the resolved addresses of
every connection are checked, and the socket connects to exactly these addresses, without resolving the name again.
"""

from __future__ import annotations

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from imageryxr.errors import ServerError, param
from imageryxr.sources.fetch.url import is_local_host

# Networks that `ipaddress` does not report as private, multicast or reserved: protocol assignments (including Oracle's
# metadata server), 6to4 relays, Azure's host address and shared address space.
_CLOSED_4 = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "100.64.0.0/10")))
_CLOSED_6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
# IPv6 networks with an IPv4 address in the last 32 bits: IPv4-mapped and NAT64.
_HOLD_4 = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))
_ISATAP = (0x00005EFE, 0x02005EFE)


class Candidate(NamedTuple):
    """A resolved address of a host."""

    family: int
    address: tuple[Any, ...]
    """Numeric address as `socket.connect` takes it."""


def is_public(address: str) -> bool:
    """Return whether an IP address, and any IPv4 address that it embeds, belongs to the public internet.

    Loopback, private, link-local (including metadata services of clouds), shared (100.64.0.0/10), unspecified,
    multicast and reserved addresses do not, nor do IPv6 addresses with a zone.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return _is_public_4(found) if isinstance(found, IPv4Address) else _is_public_6(found)


def _is_public_4(address: IPv4Address) -> bool:
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return False
    return not any(address in network for network in _CLOSED_4)


def _is_public_6(address: IPv6Address) -> bool:
    number = int(address)
    last = IPv4Address(number & 0xFFFFFFFF)
    if address.scope_id is not None:
        return False
    if any(address in network for network in _HOLD_4):
        return _is_public_4(last)
    if address.sixtofour is not None:
        return _is_public_4(address.sixtofour)
    if number >> 32 & 0xFFFFFFFF in _ISATAP and not _is_public_4(last):
        return False
    if address not in _GLOBAL_6 or not address.is_global or address.is_multicast:
        return False
    return not any(address in network for network in _CLOSED_6)


def is_numeric(host: str) -> bool:
    """Return whether a host is an IP address, which needs no name resolution."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_candidates(host: str, found: list[Candidate]) -> None:
    """Raise unless every address of a host is public.

    Raises
    ------
    ServerError
        If any address is not public. An attacker may publish a private address after a public one to pass a check of
        the first address only.
    """
    for candidate in found:
        address = candidate.address
        zone = len(address) == 4 and address[3] != 0
        if candidate.family not in (socket.AF_INET, socket.AF_INET6) or zone or not is_public(str(address[0])):
            raise private_host_error(host)


def check_host_name(host: str) -> None:
    """Raise if the name of a host, which a proxy will resolve, belongs to this machine or its network.

    Raises
    ------
    ServerError
        If the name is local.
    """
    if is_local_host(host):
        raise private_host_error(host)


def private_host_error(host: str) -> ServerError:
    """Return the error for a private host in a link or a redirect."""
    return ServerError(
        f"the host {host} is this machine or in its network, which links and public ",
        "servers may not access; if it is your own server, open its address directly, ",
        "or give ",
        param("allow_local", True),
        " with the link",
    )


def resolve(host: str, port: int) -> list[Candidate]:
    """Return the addresses of a host in order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Candidate(family, tuple(address)) for family, _, _, _, address in found))
