"""Rules of when a stored copy of an object may be used: RFC 9111 for a private cache, and RFC 9110 for ETags.

A copy is used without a request for as long as the server permitted (``Cache-Control: max-age``). Otherwise a
conditional request validates it, which transfers no body if the object did not change.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,200}"')
_LONGEST_SECONDS = 365 * 86400


class Validator(NamedTuple):
    """Headers by which a server recognizes one version of an object."""

    etag: str = ""
    """Value of the ETag header."""
    modified: str = ""
    """Value of the Last-Modified header, used if there is no ETag."""
    fresh_until: float = 0.0
    """Time (Unix, seconds) until which the object may be used without a request."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request that the server answers with 304 if it still has this version."""
        return {"If-None-Match": self.etag} if self.etag else {"If-Modified-Since": self.modified}

    def is_same_version(self, other: Validator) -> bool:
        """Return whether two validators belong to one version of an object."""
        return (self.etag, self.modified) == (other.etag, other.modified)


def validator_of(headers: Mapping[str, str], *, is_part: bool, is_public: bool) -> Validator | None:
    """Return the validator of a response, or None if the response must not be stored or could not be validated later.

    A weak ETag does not identify the bytes of a part of an object. `is_public` is whether the request had no
    credential. Copies of objects that were read with a credential are always validated, so that the server decides each
    time whether the user still has access.
    """
    rules = _cache_control(headers.get("cache-control", ""))
    if "no-store" in rules or headers.get("vary", "").strip() == "*":
        return None
    etag, modified = headers.get("etag", "").strip(), headers.get("last-modified", "").strip()
    found = _ETAG.fullmatch(etag)
    if found is None or (is_part and found[1]):
        etag = ""
    if not etag and not _is_reliable(modified, headers.get("date", "")):
        return None
    lifetime = rules.get("max-age", "") if is_public and "no-cache" not in rules else ""
    seconds = min(int(lifetime), _LONGEST_SECONDS) if re.fullmatch("[0-9]{1,12}", lifetime) else 0
    age = headers.get("age", "").strip()
    seconds -= int(age) if re.fullmatch("[0-9]{1,12}", age) else 0
    return Validator(etag, "" if etag else modified, time.time() + seconds if seconds > 0 else 0.0)


def _cache_control(text: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in text.split(","))
    return {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def _is_reliable(modified: str, date: str) -> bool:
    # The time has a resolution of one second. An object that was just written may change within the same second.
    try:
        return (parsedate_to_datetime(date) - parsedate_to_datetime(modified)).total_seconds() >= 1
    except (TypeError, ValueError, OverflowError):
        return False
