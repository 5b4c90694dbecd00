"""Buckets of Amazon and Google: which client reads a bucket, with which credentials, and who pays.

`client` reads public buckets and all buckets of Google. obstore reads buckets of Amazon and of compatible servers with
credentials, because it signs requests and supports the environment variables that name another server.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from imageryxr.core.fork import run_after_fork
from imageryxr.core.lazy_import import import_package
from imageryxr.errors import AuthError, ChunkReadError, OptionError, ServerError, param
from imageryxr.sources.address import bucket_folder, has_no_bucket_credentials, web_folder
from imageryxr.sources.base import clean_message, stamp_of
from imageryxr.sources.fetch import ip_filter
from imageryxr.sources.fetch.attempt import Reply, request_slot
from imageryxr.sources.fetch.auth import find_password
from imageryxr.sources.fetch.budget import FILE_REQUESTS
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import TooLargeError
from imageryxr.sources.fetch.disk_reads import DiskPlace, disk_place
from imageryxr.sources.fetch.google import find_google_credential
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.object_stores import DeniedError, ForbiddenObjectError
from imageryxr.sources.fetch.policy import Credential
from imageryxr.sources.fetch.sockets import RequestLimits, resolve, run
from imageryxr.sources.fetch.traffic import count
from imageryxr.sources.fetch.url import parse_web_url
from imageryxr.sources.fetch.validators import validator_of

# Retries of transient errors of object stores.
RETRY: dict[str, Any] = {
    "max_retries": 7,
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=8), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}


# Environment variables that name another server for buckets.
ENDPOINTS = {"AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}


class WebPlace(NamedTuple):
    """A folder that is read over http(s)."""

    folder: str
    """Its address, ``http(s)://…``."""
    credential: Credential | None = None
    """A password, or a credential of Google."""
    headers: tuple[tuple[str, str], ...] = ()
    """Further headers of each request."""


def web_place(url: str, connection: Connection) -> WebPlace | None:
    """Return the http(s) address of a folder and its credential; None for local folders and those of `BucketFolder`.

    Raises
    ------
    AuthError, OptionError
        If `requester_pays` cannot be used.
    ServerError
        If the environment names a local server for the buckets of a link.
    """
    payer = _payer(connection)
    if url.startswith("gs://") and (payer or not has_no_bucket_credentials(url)):
        return _google_place(url, payer)
    if url.startswith("s3://") and (payer or ENDPOINTS & set(os.environ)):
        if not connection.access.allow_local:
            _check_endpoints(connection)
        return None
    folder = web_folder(url)
    return None if folder is None else WebPlace(folder, find_password(folder))


def _payer(connection: Connection) -> str | bool:
    # The author of a link must not choose what the reader pays for.
    return False if connection.access.from_link else connection.requester_pays


def _google_place(url: str, payer: str | bool) -> WebPlace:
    if payer is True:
        raise OptionError(
            param("requester_pays", payer),
            f" does not name the project that Google bills for {url}; write ",
            param("requester_pays", "PROJECT"),
        )
    credential = find_google_credential(url.partition("://")[2].partition("/")[0], login=bool(payer))
    if payer and credential is None:
        raise AuthError(
            param("requester_pays", payer),
            f" requires credentials of Google for {url}, and none were found; store google-secret.json in "
            "~/.cloudvolume/secrets, or run: gcloud auth application-default login",
        )
    return WebPlace(bucket_folder(url), credential, (("x-goog-user-project", str(payer)),) if payer else ())


@dataclass(frozen=True)
class BucketFolder:
    """A folder in a bucket that obstore reads."""

    url: str = field(repr=False)
    connection: Connection
    version: str = ""
    """Text that changes if the objects change."""
    is_403_missing: bool = False
    """Whether denied access means that the object is missing; see `WebFolder`."""

    @property
    def identity(self) -> Hashable:
        """Key in the memory cache, with the variables of the environment that name another server."""
        return (self.url, self.version, *(os.environ.get(name) for name in sorted(ENDPOINTS)))

    @property
    def width(self) -> int:
        """Number of simultaneous requests."""
        return self.connection.concurrency or FILE_REQUESTS

    @property
    def disk_place(self) -> DiskPlace | None:
        """Where the objects are cached on a disk; see `ObjectStore`."""
        endpoints = [_public_endpoint(os.environ.get(name, "")) for name in sorted(ENDPOINTS)]
        return disk_place(self.connection, self.version, self.url, *endpoints)

    def get(
        self, key: str, part: ByteRange | None, limit: int, stop: threading.Event | None, known: Stored | None = None
    ) -> Stored | None:
        """Return an object or a range of it, or None if it does not exist; see `ConditionalStore`."""
        server = self.url.partition("://")[2].partition("/")[0]
        stop, from_link = stop or threading.Event(), self.connection.access.from_link
        for last in (False, False, True):
            count(requests=1)
            try:
                with request_slot(server, self.width, stop, from_link=from_link):
                    return self._request(key, part, limit, known)
            except FileNotFoundError:
                return None
            except (ServerError, ChunkReadError, TooLargeError):
                raise
            except Exception as error:
                kind = type(error).__name__
                if kind == "NotModifiedError" and known is not None:
                    return known
                if kind in ("PermissionDeniedError", "UnauthenticatedError"):
                    is_forbidden = kind == "PermissionDeniedError"
                    if is_forbidden and self.is_403_missing:
                        return None
                    status = Reply(403 if is_forbidden else 401, {}, b"")
                    raise (ForbiddenObjectError if is_forbidden else DeniedError)(key, status) from error
                # obstore does not retry a transfer that is interrupted.
                if last or "body error" not in str(error):
                    # The rest of the message is internal state of the client.
                    message = clean_message(str(error).split("Debug source:")[0])
                    raise ServerError(message or kind) from error
        raise AssertionError

    def _request(self, key: str, part: ByteRange | None, limit: int, known: Stored | None) -> Stored:
        import obstore

        options: Any = {"range": _obstore_range(part)} if part is not None else {}
        if known is not None and known.validator is not None:
            options["if_none_match"] = known.validator.etag
        found = obstore.get(open_bucket(self.url, self.connection), key, options=options or None)
        if part is None and found.meta["size"] > limit:
            raise TooLargeError(f"{key} has {found.meta['size']:,} bytes; the limit is {limit:,}")
        encoding = "" if part is not None else str(found.attributes.get("Content-Encoding", ""))
        validator = validator_of({"etag": found.meta["e_tag"] or ""}, is_part=part is not None, is_public=False)
        body = bytes(found.bytes())
        count(received=len(body))
        return Stored(body, encoding, _stamp(found.meta), validator)


def _public_endpoint(text: str) -> str:
    return parse_web_url(text if "://" in text else f"https://{text}").public if text else ""


def _stamp(meta: Any) -> str:
    return stamp_of({"etag": meta["e_tag"] or "", "last-modified": str(meta["last_modified"] or "")})


def _obstore_range(part: ByteRange) -> Any:
    if part.suffix is not None:
        return {"suffix": part.suffix}
    return {"offset": part.start} if part.stop is None else (part.start, part.stop)


def _check_endpoints(connection: Connection) -> None:
    """Raise `ServerError` if the environment names a local server for buckets."""
    for text in (os.environ[name] for name in ENDPOINTS if os.environ.get(name)):
        server = parse_web_url(text if "://" in text else f"https://{text}")
        ip_filter.check_host_name(server.host)
        try:
            limits = RequestLimits(connection.timeout, threading.Event())
            found = run(resolve(server.host, server.port, limits))
        except socket.gaierror:
            continue  # a host without an address cannot be reached either
        ip_filter.check_candidates(server.host, found)


def open_bucket(url: str, connection: Connection) -> Any:
    """Return obstore's store of a folder in a bucket; calls with equal options share it."""
    if _fork_marks():
        raise ChunkReadError(
            "this process was forked from one that had already read from a bucket, and its connections do not survive "
            "a fork; start workers with multiprocessing's 'spawn' or 'forkserver', like dask.distributed"
        )
    variables = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
    times = (connection.timeout, connection.retries, connection.backoff)
    return _open_bucket(url, times, bool(_payer(connection)), variables)


@lru_cache(maxsize=64)
def _open_bucket(url: str, times: tuple[float, int, float], payer: bool, variables: object) -> Any:
    import_package("obstore")
    from obstore.store import S3Store

    timeout, retries, backoff = times
    client: dict[str, Any] = {
        "allow_http": True,
        # Whole milliseconds, because obstore before 0.9 does not parse fractions.
        "connect_timeout": f"{max(1, round(1e3 * min(15.0, timeout)))}ms",
        "timeout": f"{max(1, round(3e3 * timeout))}ms",  # for a whole body, which may take longer than an answer
    }
    retry = {
        "max_retries": retries,
        "backoff": {
            "init_backoff": timedelta(seconds=max(1e-3, backoff)),  # obstore panics when it doubles a pause of 0
            "max_backoff": timedelta(seconds=max(8.0, backoff)),
            "base": 2,
        },
        "retry_timeout": timedelta(seconds=timeout),
    }
    bucket, _, prefix = url.partition("://")[2].partition("/")
    options = bucket_options(url, bucket, is_signed=payer)
    if payer:
        options["request_payer"] = True
    return S3Store(bucket, prefix=prefix or None, client_options=client, retry_config=retry, **options)  # type: ignore[arg-type]


def bucket_options(url: str, bucket: str, *, is_signed: bool = False) -> dict[str, Any]:
    """Return the options of obstore with the credentials that CloudVolume would use for a bucket.

    Without stored credentials, requests are not signed. With `is_signed` they always are: boto3 then searches for the
    credentials.
    """
    from cloudfiles import secrets

    is_anonymous = not is_signed and has_no_bucket_credentials(url)

    if url.startswith("gs://"):
        key = next((p for p in map(secrets.secretpath, _secret_files(bucket, "google")) if os.path.exists(p)), None)
        return {"skip_signature": True} if is_anonymous else ({"service_account": key} if key else {})
    if is_anonymous:
        variables = ENDPOINTS | {"AWS_REGION", "AWS_DEFAULT_REGION"}
        if variables & set(os.environ) or "." in bucket:
            return {"skip_signature": True}
        # Unsigned requests to the bucket's own host need no region.
        host = {"virtual_hosted_style_request": True, "endpoint": f"https://{bucket}.s3.amazonaws.com"}
        return {"skip_signature": True, **host}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    if any(os.path.exists(secrets.secretpath(name)) for name in _secret_files(bucket, "aws")):
        return {name.lower(): value for name, value in secrets.aws_credentials(bucket).items() if value}
    import boto3  # type: ignore[import-untyped]

    import_package("obstore")
    from obstore.auth.boto3 import Boto3CredentialProvider

    return {"credential_provider": Boto3CredentialProvider(boto3.Session())}


def _secret_files(bucket: str, kind: str) -> tuple[str, str]:
    return (f"{bucket}-{kind}-secret.json", f"{kind}-secret.json")


@lru_cache(maxsize=1)
def _fork_marks() -> list[bool]:
    # obstore's threads do not exist in a forked child, which would wait for them forever. Forking fills the list.
    marks: list[bool] = []
    run_after_fork(lambda: marks.append(True))
    return marks
