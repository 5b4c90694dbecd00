"""What a request may reach and which credential it may carry: the policy that travels with every source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Access:
    """The limits of one source's requests.

    A source that the caller named has no limits. A source that came from a link may not connect to this machine or its
    network unless the caller allowed it.
    """

    allow_local: bool = True
    """Whether a connection may go to a loopback, private, link-local or otherwise non-public address."""
    trusted_hosts: tuple[str, ...] = ()
    """Hosts, besides CAVE's, that may receive the user's CAVE token."""
    from_link: bool = False
    """Whether somebody else's link named the source."""


class Credential(Protocol):
    """A secret that decides itself which server may receive it."""

    def header_for(self, url: str, access: Access) -> str | None:
        """Return the value of the Authorization header for a request to a URL, or None if the URL may not have it."""
