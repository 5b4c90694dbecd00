"""Addresses: what people type to name a volume, taken apart once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from imageryxr.errors import AddressError

Format = Literal["precomputed", "zarr", "graphene"]

FORMAT_NAMES: dict[str, Format] = {
    "precomputed": "precomputed",
    "neuroglancer-precomputed": "precomputed",
    "zarr": "zarr",
    "zarr2": "zarr",
    "zarr3": "zarr",
    "graphene": "graphene",
}
PROTOCOLS = ("file", "http", "https", "gs", "s3", "mem", "middleauth+https", "middleauth+http", "ngauth+https")
_WEB = ("http", "https", "middleauth+https", "middleauth+http", "ngauth+https")


@dataclass(frozen=True, slots=True)
class Address:
    """A place and, where it was said, the format of what lies there."""

    format: Format | None
    """The format that was named, or None: to be found out."""
    url: str
    """``protocol://…`` without a format and without a trailing slash."""

    @property
    def protocol(self) -> str:
        """The part before ``://``."""
        return self.url.split("://", 1)[0]

    @property
    def public(self) -> str:
        """The address without user, password or query: what may be shown and stored."""
        scheme, _, rest = self.url.partition("://")
        if scheme not in _WEB:
            return self.url  # a bucket's keys and a folder's names may hold any character
        host, slash, path = re.split("[?#]", rest)[0].partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    @property
    def local_path(self) -> Path | None:
        """The path of a ``file://`` address, else None."""
        return Path(self.url.removeprefix("file://")) if self.protocol == "file" else None


def _on_disk(path: str, given: str) -> str:
    try:
        if "\0" in path:
            raise ValueError("no name of a file has a NUL character")
        return "file://" + os.path.abspath(os.path.expanduser(path))
    except ValueError as error:  # letters that no file system has, too
        raise AddressError(f"source={given!r} is no path ({error}); give a URL or a path as files are named") from None


def parse_address(text: str | os.PathLike[str]) -> Address:
    """Return the address that a string or path names.

    Understood are ``precomputed://…``, ``zarr://…`` and ``graphene://…`` before a URL or a local path, the newer
    Neuroglancer form ``URL|precomputed:`` behind it, and a bare URL or path, whose format is found out later.

    Raises
    ------
    AddressError
        If the scheme is not known, or there is a query.
    """
    given = os.fspath(text).strip()
    rest, pipe, suffix = given.partition("|")
    form = FORMAT_NAMES.get(suffix.split(":")[0]) if pipe else None
    if pipe and form is None:
        raise _unknown(given, suffix.split(":")[0])
    scheme, separator, tail = rest.partition("://")
    if separator and scheme in FORMAT_NAMES:
        form, rest = FORMAT_NAMES[scheme], tail
        scheme, separator, _ = rest.partition("://")
    if not rest or (separator and not rest.partition("://")[2].strip("/")):
        raise AddressError(
            f"source={given!r} names no place; give a URL or a path, such as precomputed://gs://bucket/layer"
        )
    if not separator:
        return Address(form, _on_disk(rest, given))
    if scheme not in PROTOCOLS:
        raise _unknown(given, scheme)
    if scheme in _WEB and re.search("[?#]", rest):
        shown = Address(form, rest).public
        raise AddressError(
            f"the address {shown} goes on with a query, which would be lost: a volume is a folder of many files, so a "
            "signed link to one of them cannot open it; give the folder's address and, where it is needed, token=…"
        )
    if scheme in _WEB and not is_web_address(rest):
        raise AddressError(f"source={Address(form, rest).public!r} is no web address: its host makes no sense")
    if scheme == "file":
        rest = _on_disk(rest.removeprefix("file://"), given)
    return Address(form, re.sub(r"(?<!/)/+$", "", rest))


def is_web_address(url: str) -> bool:
    """Tell whether a URL names a host, and a port that can be, if any."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def reads_anonymously(url: str) -> bool:
    """Tell whether a bucket is best read over plain https: nobody left credentials for it."""
    from cloudvolume.secrets import CLOUD_VOLUME_DIR

    if not url.startswith(("gs://", "s3://")):
        return False
    kind = "google" if url.startswith("gs://") else "aws"
    folder = os.path.join(CLOUD_VOLUME_DIR, "secrets")
    variables = {"google": ["GOOGLE_APPLICATION_CREDENTIALS"], "aws": ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"]}[kind]
    stored = os.path.isdir(folder) and any(name.endswith(f"{kind}-secret.json") for name in os.listdir(folder))
    return not stored and not any(name in os.environ for name in variables)


def _unknown(given: str, scheme: str) -> AddressError:
    formats = ", ".join(f"{name}://" for name in ("precomputed", "zarr", "graphene"))
    places = ", ".join(f"{name}://" for name in PROTOCOLS)
    return AddressError(
        f"source={given!r} has the unknown scheme {scheme!r}; the formats are {formats} and the places {places}, "
        "or a local path: e.g. precomputed://gs://bucket/layer, zarr://s3://bucket/image.ome.zarr, data/em.ome.zarr"
    )
