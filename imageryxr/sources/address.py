"""Parsing of the addresses of volumes.

The syntax is Neuroglancer's: ``BASE|format:inner/path/#option=value``, and the older ``format://BASE``.
https://neuroglancer-docs.web.app/datasource/index.html
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote

from imageryxr.core.lazy_import import import_package
from imageryxr.errors import AddressError, Message, Param, param
from imageryxr.sources.fetch.url import MIDDLEAUTH, hide_secrets, parse_web_url

Format = Literal["precomputed", "zarr", "graphene"]

# Characters, besides letters and digits, that are not percent-encoded in the path of a URL.
SAFE = "/!$&'()*+,;=:@-._~"
FORMAT_NAMES: dict[str, Format] = {
    "precomputed": "precomputed",
    "neuroglancer-precomputed": "precomputed",
    "zarr": "zarr",
    "zarr2": "zarr",
    "zarr3": "zarr",
    "graphene": "graphene",
}
PROTOCOLS = ("file", "http", "https", "gs", "s3", "mem", "middleauth+https", "middleauth+http")
WEB_PROTOCOLS = ("http", "https", "middleauth+https", "middleauth+http")
# Buckets on servers other than Amazon's and Google's; read without credentials, like web servers.
_BUCKET_SERVERS = re.compile(r"(?:s3\+|gs\+|s3://)(https?://.*)", re.DOTALL)
_STAGE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?::(.*))?", re.DOTALL)
_SUFFIX = re.compile(r"([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_ZARR_OPTIONS = re.compile(r"(.*?)/?([?#])(dimension_separator=[^?#]*)", re.DOTALL)
# Characters that Neuroglancer leaves unencoded: those of `encodeURI` except "?", "#" and "@".
_UNQUOTED = "/:;,&=+$-_.!~*'()"

_ADAPTERS = {
    "zip": "archives are read from local paths only: download the archive, or unpack it and give the folder",
    "gzip": "compressed files are not volumes: unpack the file",
    "byte-range": "a range of a file is not a volume: give the folder of the volume",
    "ocdbt": "OCDBT is not supported: copy the array to OME-Zarr or precomputed, for example with TensorStore",
    "icechunk": "Icechunk is not supported: copy the array to OME-Zarr, for example with zarr-python",
}


@dataclass(frozen=True, slots=True)
class Address:
    """The location of a volume and, if the address names it, its format."""

    format: Format | None
    """Format that the address names; None if it must be detected."""
    url: str
    """Location ``protocol://…`` without a format and without a trailing slash."""
    version: Literal[2, 3] | None = None
    """Zarr version to open; None for either."""
    separator: Literal["/", "."] | None = None
    """Separator of the indexes in Zarr v2 chunk names, if the metadata do not state it."""

    @property
    def protocol(self) -> str:
        """Part of the URL before ``://``."""
        return self.url.split("://", 1)[0]

    @property
    def public(self) -> str:
        """Address without user, password or query, safe to show and store."""
        if self.protocol not in WEB_PROTOCOLS:
            return self.url  # keys in buckets and file names may contain any character
        scheme, _, rest = self.url.partition("://")
        host, slash, path = re.split("[?#]", rest)[0].partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    @property
    def zarr_name(self) -> str:
        """Public address of a Zarr, with its version and options."""
        option = f"#dimension_separator={self.separator}" if self.separator else ""
        return f"zarr{self.version or ''}://{self.public}{option}"

    @property
    def local_path(self) -> Path | None:
        """Path of a ``file://`` address; None for other protocols."""
        return Path(self.url.removeprefix("file://")) if self.protocol == "file" else None

    def check_path(self) -> None:
        """Raise `AddressError` if the file system rejects the path, for example as too long or as a loop of links."""
        try:
            if self.local_path is not None:
                os.stat(self.local_path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return
        except (OSError, ValueError) as error:
            shown = str(self.local_path)
            shown = shown if len(shown) <= 200 else shown[:200] + "…"
            reason = getattr(error, "strerror", None) or error
            raise AddressError(f"the path {shown!r} cannot be opened: {reason}; check the path") from None


def parse_address(text: str | os.PathLike[str]) -> Address:
    """Return the address that a string or path names.

    Supported forms are ``precomputed://…``, ``zarr://…`` and ``graphene://…`` followed by a URL or a local path, the
    newer Neuroglancer form ``URL|zarr:inner/path/``, and a bare URL or path, whose format is detected later.

    Raises
    ------
    AddressError
        If a part is unknown or unsupported, the host is not valid, or there is a query.
    """
    if not isinstance(text, str | bytes | os.PathLike):
        raise AddressError(param("source", text), f" ({type(text).__name__}) is not an address; give a URL or a path")
    given = os.fspath(text)
    if not isinstance(given, str):
        raise AddressError(param("source", given), " is bytes; give the path as text")
    base, *stages = given.strip().split("|")
    base, stages = _join_archive_path(base, stages)
    name, rest = _split_format(base)
    suffix = ""
    if stages:
        if name:
            raise AddressError(
                _format_source(given),
                f" names a format twice, {name}:// before the place and '|' after it; write "
                "PLACE|FORMAT: or FORMAT://PLACE",
            )
        name, suffix = _last_stage(stages, given)
    elif FORMAT_NAMES.get(name) == "zarr" and (option := _ZARR_OPTIONS.fullmatch(rest)):
        rest, suffix = option[1], "#" + option[3]
    if not rest or ("://" in rest and not rest.partition("://")[2].strip("/")):
        raise AddressError(
            _format_source(given), " has no location; give a URL or a path, such as precomputed://gs://bucket/layer"
        )
    if re.search("[?#]dimension_separator=", rest):
        raise AddressError(
            _format_source(given),
            ": the Zarr option dimension_separator must come last; write PLACE|zarr2:#dimension_separator=/",
        )
    inner, separator = _suffix_parts(name, suffix, given)
    url = _base_url(_decode_key(rest, given) if stages else rest, given)
    if not url.startswith("file://") and re.search("[\ud800-\udfff]", given):
        raise AddressError(_format_source(given), " has an incomplete character (a lone surrogate); copy it again")
    if inner:
        url = _join_path(url, inner, given)
    version: Literal[2, 3] | None = 2 if name == "zarr2" else 3 if name == "zarr3" else None
    if not url.startswith("file://"):  # local paths are already normalised, and may be the root
        url = re.sub(r"(?<!/)/+$", "", url)
    return Address(FORMAT_NAMES.get(name), url, version, separator)


def _join_archive_path(base: str, stages: list[str]) -> tuple[str, list[str]]:
    """Append the path within a local zip archive to the path of the archive, the form in which archives are opened."""
    is_local = "://" not in base or base.startswith("file://")
    if not stages or not is_local or not re.match("zip(:|$)", stages[0]) or ".." in stages[0].split("/"):
        return base, stages
    return f"{base}/{unquote(stages[0].partition(':')[2])}".rstrip("/"), stages[1:]


def _split_format(text: str) -> tuple[str, str]:
    scheme, separator, tail = text.partition("://")
    return (scheme, tail) if separator and scheme in FORMAT_NAMES else ("", text)


def _last_stage(stages: list[str], given: str) -> tuple[str, str]:
    """Return the format after the last ``|``, and the text after its colon."""
    scheme = suffix = ""
    for number, stage in enumerate(stages):
        found = _STAGE.fullmatch(stage)
        scheme = found[1] if found else stage.partition(":")[0]
        if scheme in _ADAPTERS:
            raise AddressError(_format_source(given), f": '|{scheme}:' is not supported; {_ADAPTERS[scheme]}")
        if found is None or scheme not in FORMAT_NAMES:
            raise _unknown_scheme_error(given, scheme)
        suffix = found[2] or ""
        if number < len(stages) - 1:
            raise AddressError(
                _format_source(given),
                f": '|{stages[number + 1]}' follows the format '|{scheme}:', which must be the "
                f"last part; write a path inside after its colon: PLACE|{scheme}:inner/path/",
            )
    return scheme, suffix


def _suffix_parts(name: str, suffix: str, given: str) -> tuple[str, Literal["/", "."] | None]:
    """Return the inner path and the dimension separator after a format's colon."""
    if not suffix:
        return "", None
    found = _SUFFIX.fullmatch(suffix)
    path, query, fragment = found.groups() if found else ("", None, None)
    part = Message(_format_source(given), ": ")
    if FORMAT_NAMES.get(name) != "zarr":
        inner = f"PLACE/{path.strip('/')}|{name}:" if path.strip("/") else f"PLACE|{name}:"
        raise AddressError(part, f"'|{name}:' takes nothing after its colon; write {inner}")
    if query is not None:
        raise AddressError(part, f"'|{name}:' takes no query; options come after a '#'")
    if ".." in path.split("/"):
        raise AddressError(
            part, f"the path {path!r} after '|{name}:' contains '..'; write the address of the folder itself"
        )
    inner = "/".join(piece for piece in path.split("/") if piece not in ("", "."))
    options = dict(parse_qsl(fragment or "", keep_blank_values=True))
    unknown = [key for key in options if key != "dimension_separator"] or (
        [fragment] if fragment and not options else []
    )
    if unknown:
        raise AddressError(part, f"the option {unknown[0]!r} is unknown; '|{name}:' takes #dimension_separator=/ or .")
    separator = options.get("dimension_separator")
    if separator is None:
        return inner, None
    if name == "zarr3":
        raise AddressError(part, "dimension_separator is an option of Zarr v2; zarr3 metadata contain it: leave it out")
    if separator not in ("/", "."):
        raise AddressError(part, f"dimension_separator={separator!r} is neither '/' nor '.'")
    return inner, separator


def _base_url(rest: str, given: str) -> str:
    """Return a base URL or path as ``protocol://…``."""
    server = _BUCKET_SERVERS.fullmatch(rest)
    if server:
        rest = server[1]
    scheme, separator, tail = rest.partition("://")
    # The look-ahead keeps the search linear in the length of the path.
    parts = re.findall(r":/+(?=([^/]*))", tail if separator else rest)
    if any("@" in part.partition(":")[2] for part in parts):
        raise AddressError(
            _format_source(given), " contains a second address with a password in its path; give that address alone"
        )
    if not separator:
        if re.match(r"[a-z+]*https?:|(gs|s3):/", rest):
            raise AddressError(_format_source(given), " is neither a web address nor a path; write https://HOST/PATH")
        return _file_url(rest, given)
    if scheme.startswith(("ngauth+", "gs+ngauth+", "s3+ngauth+")):
        raise AddressError(
            _format_source(given),
            f": {scheme}:// needs an ngauth login, which is not supported; write "
            "gs://BUCKET/PATH, and for a private bucket store google-secret.json in ~/.cloudvolume/secrets",
        )
    if scheme not in PROTOCOLS:
        raise _unknown_scheme_error(given, scheme)
    if scheme == "file":
        return _file_url(tail, given)
    if scheme in WEB_PROTOCOLS:
        return _web_url(rest)
    if scheme in ("gs", "s3") and not re.fullmatch(r"[A-Za-z0-9._-]+", tail.split("/")[0]):
        raise AddressError(_format_source(given), f" names no bucket; write {scheme}://BUCKET/PATH")
    if re.search(r"[\x00-\x1f\x7f\\]", tail):
        raise AddressError(_format_source(given), " has a control character or a backslash; check the path")
    return rest


def _join_path(url: str, inner: str, given: str) -> str:
    folder = url if url.endswith("/") else f"{url}/"
    if url.startswith("file://"):
        return _file_url(folder.removeprefix("file://") + inner, given)
    return folder + (quote(inner, safe=_UNQUOTED) if url.split("://")[0] in WEB_PROTOCOLS else inner)


def _decode_key(rest: str, given: str) -> str:
    # In the form with '|', Neuroglancer decodes the keys of buckets but not the paths of web servers.
    if not rest.startswith(("gs://", "s3://")) or _BUCKET_SERVERS.fullmatch(rest):
        return rest
    key = unquote(rest, errors="replace")
    if "%" in key or "\ufffd" in key:
        raise AddressError(
            _format_source(given), " has a percent sign in its key, which is not supported; give the https:// address"
        )
    return key


def _web_url(url: str) -> str:
    if re.search("[?#]", url):
        shown = Address(None, url).public
        raise AddressError(
            f"the address {shown} has a query. A volume is a folder of many files, so a signed link to one file cannot "
            "open it; give the address of the folder, and token=… if the server needs one"
        )
    parse_web_url(url)
    return url


def _file_url(path: str, given: str) -> str:
    try:
        if "\0" in path:
            raise ValueError("file names cannot contain a NUL character")
        whole = os.path.abspath(os.path.expanduser(path))
        os.fsencode(whole)
        return "file://" + whole
    except (ValueError, OSError, RuntimeError) as error:  # such as unencodable characters, a deleted current folder
        raise AddressError(_format_source(given), f" is not a valid path ({error}); give a URL or a path") from None


def bucket_url(url: str) -> str:
    """Return the https address of an object in a public bucket, ``gs://BUCKET/KEY`` or ``s3://BUCKET/KEY``.

    Other addresses are only parsed.

    Raises
    ------
    AddressError
        If the name of the bucket is not valid.
    """
    address = parse_address(url).url
    return bucket_folder(address, _UNQUOTED + "%") if address.startswith(("gs://", "s3://")) else address


def has_no_bucket_credentials(url: str) -> bool:
    """Return whether a URL is a bucket for which no credentials are stored, so that it is read anonymously."""
    if not url.startswith(("gs://", "s3://")):
        return False
    import_package("cloudvolume")
    from cloudvolume.secrets import CLOUD_VOLUME_DIR

    kind = "google" if url.startswith("gs://") else "aws"
    folder = os.path.join(CLOUD_VOLUME_DIR, "secrets")
    variables = {"google": ["GOOGLE_APPLICATION_CREDENTIALS"], "aws": ["AWS_ACCESS_KEY_ID", "AWS_PROFILE"]}[kind]
    stored = os.path.isdir(folder) and any(name.endswith(f"{kind}-secret.json") for name in os.listdir(folder))
    return not stored and not any(name in os.environ for name in variables)


def _unknown_scheme_error(given: str, scheme: str) -> AddressError:
    formats = ", ".join(f"{name}://" for name in ("precomputed", "zarr", "graphene"))
    places = ", ".join(f"{name}://" for name in PROTOCOLS)
    return AddressError(
        _format_source(given),
        f" has the unknown scheme {scheme[:80]!r}; the formats are {formats} and the places "
        f"{places}, or a local path: e.g. precomputed://gs://bucket/layer, zarr://s3://bucket/image.ome.zarr, "
        "data/em.ome.zarr",
    )


def _format_source(given: str) -> Param:
    return param("source", hide_secrets(given))


def web_folder(url: str) -> str | None:
    """Return the http(s) address of a folder, or None if it is not read over http(s).

    Public buckets are read over https, with the same checks as other servers. Buckets with stored credentials are read
    by their own clients.
    """
    plain = url.removeprefix(MIDDLEAUTH)
    if plain.startswith(("http://", "https://")):
        return plain
    return bucket_folder(url) if has_no_bucket_credentials(url) else None


def bucket_folder(url: str, safe: str = SAFE) -> str:
    """Return the https address of a folder in a bucket, ``gs://BUCKET/KEY`` or ``s3://BUCKET/KEY``.

    ``safe`` are the characters of its key, besides letters and digits, that are not percent-encoded.
    """
    scheme, _, place = url.partition("://")
    bucket, _, key = place.partition("/")
    if scheme == "gs":
        folder = f"https://storage.googleapis.com/{bucket}"
    elif "." in bucket:  # the certificate of amazonaws.com does not cover host names with a further dot
        folder = f"https://s3.amazonaws.com/{bucket}"
    else:
        folder = f"https://{bucket}.s3.amazonaws.com"
    return f"{folder}/{quote(key, safe=safe)}" if key else folder
