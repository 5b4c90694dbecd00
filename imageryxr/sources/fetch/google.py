"""Access to private and requester-pays buckets of Google Cloud Storage: bearer tokens for the web client.

Formats: https://cloud.google.com/storage/docs/authentication (tokens), and
https://cloud.google.com/storage/docs/requester-pays (the header that names the project to bill).
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import Any

from imageryxr.core.lazy_import import import_package
from imageryxr.errors import AuthError
from imageryxr.sources.fetch.attempt import SecretText
from imageryxr.sources.fetch.policy import Access, can_receive
from imageryxr.sources.fetch.url import parse_web_url

STORAGE = "https://storage.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)


class GoogleCredential:
    """Credentials of Google. Only Google's storage server receives their token, which permits reading only.

    Parameters
    ----------
    credentials : google.auth.credentials.Credentials
        Source of the tokens.
    identity : str
        Where the credentials come from, without secrets.
    """

    __slots__ = ("_credentials", "identity")

    def __init__(self, credentials: Any, identity: str) -> None:
        self._credentials, self.identity = credentials, identity
        """Where the credentials come from; unlike the token, it does not change every hour."""

    def header_for(self, url: str, access: Access) -> str | None:
        """Return the value of the Authorization header for a request to a URL, or None if the URL may not have it.

        Requests a token if there is none or it expires.

        Raises
        ------
        AuthError
            If there is no token.
        """
        if not can_receive(url, access, given_for=[parse_web_url(STORAGE).origin], is_cave_token=False):
            return None
        with _refresh_lock(os.getpid()):
            if not self._credentials.valid:
                self._refresh()
            return SecretText(f"Bearer {self._credentials.token}")

    def _refresh(self) -> None:
        import_package("google.auth")
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.urllib3 import Request
        from urllib3 import PoolManager

        try:
            self._credentials.refresh(Request(PoolManager()))  # type: ignore[no-untyped-call]
        except GoogleAuthError as error:
            raise AuthError(
                f"the credentials from {self.identity} were rejected ({str(error.args[0])[:200]}); correct or remove "
                "them, or log in again with: gcloud auth application-default login"
            ) from None

    def __repr__(self) -> str:
        return f"<Google credentials from {self.identity}>"


@lru_cache(maxsize=1)
def _refresh_lock(pid: int) -> threading.Lock:
    return threading.Lock()  # a forked child needs its own lock: another thread of the parent may hold the parent's


def find_google_credential(bucket: str, *, login: bool) -> GoogleCredential | None:
    """Return the credential for a bucket, or None if there is none.

    The places searched are ``BUCKET-google-secret.json`` and ``google-secret.json`` in ``~/.cloudvolume/secrets``, then
    ``GOOGLE_APPLICATION_CREDENTIALS``, then, if `login`, the login of gcloud and the metadata service of Google Cloud.

    Raises
    ------
    AuthError
        If a file is not valid.
    """
    from cloudfiles import secrets

    names = (f"{bucket}-google-secret.json", "google-secret.json")
    path = next((path for path in map(secrets.secretpath, names) if os.path.isfile(path)), None)
    where = path or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    if not where and not login:
        return None
    changed = os.stat(where).st_mtime_ns if where and os.path.isfile(where) else 0
    return _load(path, where, changed)


@lru_cache(maxsize=64)
def _load(path: str | None, where: str, changed: int) -> GoogleCredential | None:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        if path is None:
            found, _ = google.auth.default(scopes=_SCOPES)
        else:
            found, _ = google.auth.load_credentials_from_file(path, scopes=_SCOPES)  # type: ignore[no-untyped-call]
    except DefaultCredentialsError as error:
        if not where:
            return None
        raise AuthError(
            f"{where} holds no credentials of Google ({str(error)[:200]}); download the key file again"
        ) from None
    except (OSError, ValueError) as error:
        raise AuthError(f"{where or 'the login of gcloud'} cannot be read as credentials of Google ({error})") from None
    return GoogleCredential(found, where or "the login of gcloud")
