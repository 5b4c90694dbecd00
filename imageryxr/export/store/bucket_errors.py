"""Errors of buckets: what a failed request means, from the text of obstore's exceptions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from imageryxr.errors import ImageryError, TargetError
from imageryxr.sources.base import clean_message

# Error codes for a full disk: XMinioStorageFull, QuotaExceeded, ….
_FULL_CODE = re.compile("StorageFull|QuotaExceeded|InsufficientStorage", re.IGNORECASE)
# How servers without conditional writes answer one: by status, or by 400 with one of these codes. Other codes of a 400
# (RequestTimeout, …) are transient.
_REFUSED_STATUS = (405, 501)
_REFUSED_CODES = (None, "NotImplemented", "InvalidArgument", "InvalidRequest")


@contextmanager
def bucket_errors(url: str) -> Iterator[None]:
    """Raise `TargetError` with advice in place of an error of a bucket."""
    try:
        yield
    except (FileNotFoundError, ImageryError):
        raise
    except Exception as error:
        code, message = _error_fields(error)
        full = code is not None and _FULL_CODE.search(code) is not None
        raise TargetError(f"could not write {url}: {_error_reason(url, error, code, message)}", full=full) from error


def _status(error: Exception) -> int | None:
    """Return the HTTP status of a bucket's response."""
    found = re.search(r"status code: (\d+)", str(error).split("Debug source:")[0])
    return int(found[1]) if found else None


def is_condition_refused(error: Exception) -> bool:
    """Return whether a server refused a request because of its condition."""
    status = _status(error)
    return status in _REFUSED_STATUS or (status == 400 and _error_fields(error)[0] in _REFUSED_CODES)


def is_broken_connection(error: Exception) -> bool:
    """Return whether a connection broke and obstore did not retry: it retries only idempotent requests."""
    text = str(error).split("Debug source:")[0]
    return "HTTP error" in text and " retries," not in text


def _error_fields(error: Exception) -> tuple[str | None, str | None]:
    """Return the code and message in the XML of a bucket's response."""
    text = str(error).split("Debug source:")[0]
    code, message = (re.search(f"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message"))
    return code and clean_message(code[1]), message and clean_message(message[1])


def _error_reason(url: str, error: Exception, code: str | None, message: str | None) -> str:
    """Return the reason of a failed request, and advice."""
    if code == "NoSuchBucket":
        scheme, _, rest = url.partition("://")
        bucket = rest.partition("/")[0]
        return f"the bucket {scheme}://{bucket} does not exist; create it, or check its name"
    if code:
        status = _status(error)
        answer = f"{code}{f' ({message})' if message else ''}{f', status {status}' if status else ''}"
        return f"the server returned {answer}; check the bucket's name and your credentials"
    reason = clean_message(str(error).split("Debug source:")[0].partition("<?xml")[0]) or type(error).__name__
    return f"{reason}; check the bucket's name and your credentials"
