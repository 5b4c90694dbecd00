"""Which addresses a connection may go to: checked once a name is resolved, and before anything is sent.

A link may name a public host that resolves to this machine, or redirect to one. So the check is made on the resolved
addresses of every connection, and the connection goes to exactly those: the name is not resolved a second time.
"""

from __future__ import annotations

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from imageryxr.errors import ServerError
from imageryxr.sources.fetch.url import is_local_host

# Beyond what `ipaddress` calls private, multicast or reserved: protocol assignments (with Oracle's metadata server),
# relays of 6to4, and the address at which Azure's hosts answer.
_CLOSED_4 = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "100.64.0.0/10")))
_CLOSED_6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
# Forms of IPv6 that hold an IPv4 address in their last 32 bits: mapped, and NAT64.
_HOLD_4 = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))
_ISATAP = (0x00005EFE, 0x02005EFE)


class Candidate(NamedTuple):
    """An address that a host resolved to."""

    family: int
    address: tuple[Any, ...]
    """As `socket.connect` takes it: numbers, no name."""


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, as do all IPv4 addresses that it embeds.

    Loopback, private, link-local (with the metadata services of clouds), shared (100.64.0.0/10), unspecified,
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


def check_candidates(host: str, found: list[Candidate]) -> None:
    """Raise unless every address of a host is public.

    Raises
    ------
    ServerError
        If one is not: a name with a public and a private address may be meant to pass a check that sees only the first.
    """
    for candidate in found:
        address = candidate.address
        zone = len(address) == 4 and address[3] != 0
        if candidate.family not in (socket.AF_INET, socket.AF_INET6) or zone or not is_public(str(address[0])):
            raise private_host_error(host)


def check_host_name(host: str) -> None:
    """Raise if the name of a host, which a proxy will resolve, is that of this machine or its network.

    Raises
    ------
    ServerError
        If it is.
    """
    if is_local_host(host):
        raise private_host_error(host)


def private_host_error(host: str) -> ServerError:
    """Return the error for a host that a link may not lead to."""
    return ServerError(
        f"the host {host} is this machine or in its network, where a link or a server from elsewhere may not lead; if "
        "it is your own, give its own address, or allow_local=True with the link"
    )


def resolve(host: str, port: int) -> list[Candidate]:
    """Return the addresses of a host, in the order in which to try them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Candidate(family, tuple(address)) for family, _, _, _, address in found))
