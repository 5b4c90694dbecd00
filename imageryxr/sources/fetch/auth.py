"""Tokens of CAVE servers and passwords of web servers: lookup, protection, and errors for denied requests."""

from __future__ import annotations

import base64
import os
from copy import copy
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from imageryxr.core.validate import parse_json
from imageryxr.errors import (
    AddressError,
    AuthError,
    ForbiddenError,
    InvalidTokenError,
    MissingTokenError,
    TermsError,
    Wording,
)
from imageryxr.sources.fetch.attempt import Reply, SecretText
from imageryxr.sources.fetch.policy import Access, can_receive
from imageryxr.sources.fetch.url import Origin, WebURL, origins_of, parse_web_url

_ARGUMENT, _CLIENT, _VARIABLE = "token=", "the client", "CAVE_TOKEN"
HTTP_SECRET = "http-secret.json"


class Token:
    """A CAVE token, hidden in every repr, message and attribute.

    A pickle contains the token only if the caller passed it as an argument. Workers look up other tokens in the
    environment or in their own files.

    Parameters
    ----------
    value : str
        The token.
    origin : str
        Description of where the token comes from.
    hosts : tuple of str
        Servers that the caller gave the token for, as ``HOST`` or ``HOST:PORT``.
    stored_for : str
        Server in the name of the file that contains the token.
    looked_up : tuple of str
        Servers that the token was looked up for. A look-up alone does not permit them to receive the token, because a
        link from another person may contain the address.
    """

    __slots__ = ("_handle", "_hosts", "_looked_up", "_stored_for", "_value", "origin")

    def __init__(
        self,
        value: str,
        origin: str,
        hosts: tuple[str, ...] = (),
        stored_for: str = "",
        looked_up: tuple[str, ...] = (),
    ) -> None:
        value = value.strip() if isinstance(value, str) else ""
        if not value.isascii() or not value.isprintable() or " " in value or not value:
            raise InvalidTokenError(
                f"the token from {origin} is not valid: it is empty or contains blanks or other invalid characters; "
                "copy it again from the token page of your CAVE server"
            )
        self._value, self._hosts, self._stored_for, self._handle = SecretText(value), hosts, stored_for, uuid4().hex
        self._looked_up = looked_up
        self.origin = origin
        """Description of where the token comes from."""
        if origin == _CLIENT:
            _client_tokens[self._handle] = self

    def header_for(self, url: str, access: Access) -> str | None:
        """Return the value of the Authorization header for a request to a URL, or None if the URL may not have it."""
        # The caller did not name the servers in a link.
        named = () if access.from_link else self._hosts
        given_for = [origin for host in (self._stored_for, *named) for origin in origins_of(host)]
        if not can_receive(url, access, given_for=given_for, is_cave_token=True):
            return None
        return SecretText(f"Bearer {self._value}")

    @property
    def headers(self) -> dict[str, str]:
        """The Authorization header. Requests must use `header_for`, which checks whether the server may receive it."""
        return {"Authorization": SecretText(f"Bearer {self._value}")}

    def with_hosts(self, *hosts: str) -> Token:
        """Return the token with further servers that may receive it."""
        if set(hosts) <= set(self._hosts):
            return self
        found = copy(self)
        found._hosts = tuple(dict.fromkeys((*self._hosts, *hosts)))
        return found

    def is_same(self, value: object) -> bool:
        """Return whether a value is the text of the token."""
        return value == str(self._value)

    def hide(self, text: str) -> str:
        """Return text without the token, which a server may repeat in its messages."""
        return text.replace(self._value, "<token>")

    def __copy__(self) -> Token:
        found = Token.__new__(Token)
        for name in Token.__slots__:
            setattr(found, name, getattr(self, name))
        return found

    def __repr__(self) -> str:
        return f"<token from {self.origin}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin == _ARGUMENT:
            return (Token, (str(self._value), _ARGUMENT, self._hosts))
        return (_restore_token, (self._handle, self._looked_up, self._hosts))


class Password:
    """A user name and password for one web server, hidden in every repr, message and attribute.

    Parameters
    ----------
    value : str
        ``user:password``.
    server : Origin
        The only server that may receive it.
    """

    __slots__ = ("_server", "_value")

    def __init__(self, value: str, server: Origin) -> None:
        self._value, self._server = SecretText(value), server

    def header_for(self, url: str, access: Access) -> str | None:
        """Return the value of the Authorization header for a request to a URL, or None if the URL may not have it."""
        if not can_receive(url, access, given_for=[self._server], is_cave_token=False):
            return None
        return SecretText("Basic " + base64.b64encode(self._value.encode()).decode())

    def __repr__(self) -> str:
        return "<password>"


def find_password(url: str) -> Password | None:
    """Return the user and password for the server of a web address, or None if there are none.

    The places searched are the address itself and, in ``~/.cloudvolume/secrets``, the file ``HOST-http-secret.json``
    and ``http-secret.json`` if it names that host, ``{"host": …, "user": …, "password": …}``.
    """
    try:
        parts = parse_web_url(url)
    except AddressError:
        return None
    if parts.userinfo:
        return Password(unquote(parts.userinfo), parts.origin)
    for folder in _secret_folders():
        for name in dict.fromkeys((f"{parts.netloc}-{HTTP_SECRET}", f"{parts.host}-{HTTP_SECRET}", HTTP_SECRET)):
            found = _json_object(folder / name)
            server = found.get("host") if name == HTTP_SECRET else name.removesuffix(f"-{HTTP_SECRET}")
            if isinstance(server, str) and parts.origin in origins_of(server) and {"user", "password"} <= set(found):
                return Password(f"{found['user']}:{found['password']}", parts.origin)
    return None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def unsent_password_hint() -> str:
    """Return a hint if there is an ``http-secret.json`` without a host, which is never sent."""
    for path in (folder / HTTP_SECRET for folder in _secret_folders()):
        found = _json_object(path)
        if found and "host" not in found:
            return f"; {path} names no host, so it is never sent: rename it to HOST-{HTTP_SECRET}"
    return ""


def _secret_folders() -> list[Path]:
    # CloudVolume reads the folder in this variable; caveclient, which writes these files, uses only the home directory.
    folders = dict.fromkeys([os.environ.get("CLOUD_VOLUME_DIR") or "~/.cloudvolume", "~/.cloudvolume"])
    found = (os.path.join(os.path.expanduser(folder), "secrets") for folder in folders)
    return [Path(folder) for folder in found if os.path.isdir(folder)]


# Tokens of CAVEclients are not pickled. A source that is unpickled in the same process finds its token here.
_client_tokens: dict[str, Token] = {}


def _restore_token(handle: str, looked_up: tuple[str, ...], hosts: tuple[str, ...]) -> Token | None:
    token = _client_tokens.get(handle) or find_token(*looked_up)
    return None if token is None else token.with_hosts(*hosts)


def find_token(*hosts: str, given: Any = None, client: Any = None) -> Token | None:
    """Return the token for servers, or None if there is none.

    The places searched are the argument `given`, the CAVEclient `client`, ``CAVE_TOKEN``, and the files in
    ``~/.cloudvolume/secrets`` that caveclient and CloudVolume use: ``HOST-cave-secret.json``, ``cave-secret.json``,
    ``chunkedgraph-secret.json``. The servers `hosts` (with ports) may receive a token that the caller or the client
    gave. A server receives a stored token only if it was stored for that server, or the server is one of CAVE's own.
    """
    if isinstance(given, Token):
        return given
    if given is not None:
        return Token(given, _ARGUMENT, hosts)
    client_token = getattr(getattr(client, "auth", None), "token", None)
    stored_token = _stored_token(hosts)
    if client_token is not None and (stored_token is None or not stored_token.is_same(client_token)):
        return Token(client_token, _CLIENT, hosts, looked_up=hosts)
    return stored_token


def _stored_token(hosts: tuple[str, ...]) -> Token | None:
    if os.environ.get(_VARIABLE):
        return Token(os.environ[_VARIABLE], _VARIABLE, looked_up=hosts)
    for folder in _secret_folders():
        for host in (*hosts, ""):
            names = [f"{host}-cave-secret.json"] if host else ["cave-secret.json", "chunkedgraph-secret.json"]
            for path in (folder / name for name in names if "/" not in name):
                if path.is_file():
                    return Token(_read_token(path), str(path), stored_for=host, looked_up=hosts)
    return None


def _read_token(path: Path) -> str:
    problem = 'write {"token": "…"} into it'
    try:
        found = parse_json(path.read_text())
    except OSError as error:
        raise AuthError(f"the token file {path} cannot be read: {error.strerror}; correct its permissions") from None
    except ValueError:
        raise AuthError(f"the token file {path} is not JSON; {problem}") from None
    token = found.get("token") if isinstance(found, dict) else None
    if not isinstance(token, str):
        raise AuthError(f"the token file {path} contains no token; {problem}")
    return token


def check_allowed(reply: Reply, name: str, url: str, token: Token | None, access: Access) -> None:
    """Raise the error for a response that denies access; do nothing for other responses.

    `name` is the requested object in messages, `url` the address of the server, and `token` the token of the request,
    which was sent only if the server may receive it.
    """
    is_login_page = (
        reply.is_redirect
        or (reply.is_html and reply.status == 200)
        or (reply.redirected_to != "" and reply.status in (403, 404))
    )
    if reply.status not in (401, 403) and not is_login_page:
        return
    server = parse_web_url(url)
    host = server.netloc
    pages = f"https://{host}/sticky_auth/settings/tokens"
    if token is not None and token.header_for(url, access) is None:
        raise MissingTokenError(
            f"{name} requires a token, and the token from {token.origin} was not sent: "
            f"{unsent_token_reason(server, access)}"
        )
    if token is None:
        raise MissingTokenError(
            f"{name} requires a token, and none was found; get one from {pages}, then ",
            Wording("give token=…, set ", "set "),
            f'{_VARIABLE}, or write {{"token": "…"}} to ~/.cloudvolume/secrets/{host}-cave-secret.json ',
            "(also on every worker)",
        )
    if is_login_page:
        raise InvalidTokenError(
            f"{name} answered with a login page or a redirect to one, so the server rejected the token from "
            f"{token.origin}; get another from {pages}"
        )
    document = _error_document(reply, token)
    if reply.status == 401:
        raise InvalidTokenError(
            f"{host} rejected the token from {token.origin} ({name}: HTTP 401), which is wrong or was revoked; get "
            f"another from {pages}"
        )
    if document.get("error") == "missing_tos":
        form = document.get("data", {}).get("tos_form_url") if isinstance(document.get("data"), dict) else None
        where = str(form) if form else f"https://{host}"
        raise TermsError(
            f"the owner of the token from {token.origin} has not accepted the terms of service of {name}; do so at "
            f"{where}, then try again"
        )
    reason = str(document.get("message") or document.get("error") or "")[:200]
    raise ForbiddenError(
        f"the token from {token.origin} has no permission to read {name} (HTTP 403{': ' + reason if reason else ''}); "
        "request it from the owners of the dataset, or give the token of another account"
    )


def unsent_token_reason(server: WebURL, access: Access) -> str:
    """Return why a server may not receive the CAVE token, and how to allow it."""
    if server.scheme != "https" and not (server.is_loopback and access.allow_local):
        return f"tokens are sent over https only, but the address begins with http://; write https://{server.netloc}"
    return (
        f"{server.netloc} is not one of CAVE's servers, and no token is stored for it; if you trust it, "
        + (f"give trusted_hosts=[{server.netloc!r}] or " if access.from_link else "give token=… for it or ")
        + f"store its token in ~/.cloudvolume/secrets/{server.netloc}-cave-secret.json"
    )


def _error_document(reply: Reply, token: Token) -> dict[str, Any]:
    try:
        found = parse_json(token.hide(reply.body.decode(errors="replace")))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
