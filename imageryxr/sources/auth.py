"""Tokens of CAVE servers: where they come from, how they stay secret, and what a server's refusal means."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from imageryxr.errors import AuthError, ForbiddenError, InvalidTokenError, MissingTokenError, TermsError
from imageryxr.sources.access import Access
from imageryxr.sources.web import Hidden, Reply

_ARGUMENT, _CLIENT, _VARIABLE = "token=", "the client", "CAVE_TOKEN"


class Token:
    """A token that no repr, message or attribute shows.

    Pickled, it travels only if somebody gave it as an argument; else a worker looks for its own where tokens are kept.
    """

    __slots__ = ("_handle", "_hosts", "_value", "origin")

    def __init__(self, value: str, origin: str, hosts: tuple[str, ...] = ()) -> None:
        value = value.strip() if isinstance(value, str) else ""
        if not value.isascii() or not value.isprintable() or " " in value or not value:
            raise InvalidTokenError(
                f"the token from {origin} is no token: it is empty or holds blanks or other characters that none has; "
                "copy it again from your CAVE server's page of tokens"
            )
        self._value, self._hosts, self._handle = value, hosts, uuid4().hex
        self.origin = origin
        """Where it comes from, in words."""
        if origin == _CLIENT:
            _of_clients[self._handle] = self

    @property
    def headers(self) -> dict[str, str]:
        """What a request is made with."""
        return {"Authorization": Hidden(f"Bearer {self._value}")}

    def header_for(self, url: str, access: Access) -> str | None:
        """Return the value of the Authorization header for a request to a URL, or None if the URL may not have it."""
        return Hidden(f"Bearer {self._value}")

    def hide(self, text: str) -> str:
        """Return a text without the token, should a server have echoed it."""
        return text.replace(self._value, "<token>")

    def __repr__(self) -> str:
        return f"<token from {self.origin}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin == _ARGUMENT:
            return (Token, (self._value, _ARGUMENT, self._hosts))
        return (_found_again, (self._handle, self._hosts))


class Password:
    """A user's name and password for a web server, which no repr, message or attribute shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = Hidden(value)

    def header_for(self, url: str, access: Access) -> str | None:
        """Return the value of the Authorization header for a request to a URL, or None if the URL may not have it."""
        return Hidden("Basic " + base64.b64encode(self._value.encode()).decode())

    def __repr__(self) -> str:
        return "<password>"


# Tokens of clients: a source that was pickled within this process finds its own again. They never leave it.
_of_clients: dict[str, Token] = {}


def _found_again(handle: str, hosts: tuple[str, ...]) -> Token | None:
    return _of_clients.get(handle) or find_token(*hosts)


def find_token(*hosts: str, given: Any = None, client: Any = None) -> Token | None:
    """Return the token for servers, or None where there is none.

    It is looked for in the argument, the client, ``CAVE_TOKEN``, and the files in ``~/.cloudvolume/secrets`` that
    caveclient and CloudVolume use: ``HOST-cave-secret.json``, ``cave-secret.json``, ``chunkedgraph-secret.json``.

    Parameters
    ----------
    *hosts : str
        Names, with ports, of the servers that it is for.
    given : str or Token, optional
        What the caller gave.
    client : object, optional
        A CAVEclient.

    Raises
    ------
    AuthError
        If it cannot be read, or is none.
    """
    if isinstance(given, Token):
        return given
    if given is not None:
        return Token(given, _ARGUMENT, hosts)
    held = getattr(getattr(client, "auth", None), "token", None)
    kept = _kept_token(hosts)
    if held is not None and (kept is None or kept.headers != {"Authorization": f"Bearer {held}"}):
        return Token(held, _CLIENT, hosts)
    return kept


def _kept_token(hosts: tuple[str, ...]) -> Token | None:
    if os.environ.get(_VARIABLE):
        return Token(os.environ[_VARIABLE], _VARIABLE, hosts)
    # CloudVolume looks where this variable says; caveclient, which writes these files, knows the home directory only.
    folders = dict.fromkeys([os.environ.get("CLOUD_VOLUME_DIR") or "~/.cloudvolume", "~/.cloudvolume"])
    names = [*(f"{host}-cave-secret.json" for host in hosts), "cave-secret.json", "chunkedgraph-secret.json"]
    for path in (Path(folder).expanduser() / "secrets" / name for folder in folders for name in names):
        if path.is_file():
            return Token(_token_in(path), str(path), hosts)
    return None


def _token_in(path: Path) -> str:
    problem = 'write {"token": "…"} into it'
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise AuthError(f"the token file {path} cannot be read: {error.strerror}; mend its rights") from None
    except ValueError:
        raise AuthError(f"the token file {path} is not JSON; {problem}") from None
    token = found.get("token") if isinstance(found, dict) else None
    if not isinstance(token, str):
        raise AuthError(f"the token file {path} holds no token; {problem}")
    return token


def check_allowed(reply: Reply, name: str, host: str, token: Token | None) -> None:
    """Raise what a server's refusal means; do nothing where it did not refuse.

    Raises
    ------
    MissingTokenError, InvalidTokenError, ForbiddenError, TermsError
        According to the answer and to whether a token was sent.
    """
    pages = f"https://{host}/sticky_auth/settings/tokens"
    lost = bool(reply.sent_on) and reply.status in (403, 404)
    login = reply.went_elsewhere or lost or (reply.is_page and reply.status == 200)
    if reply.status != 401 and reply.status != 403 and not login:
        return
    if token is None:
        raise MissingTokenError(
            f"{name} asks for a token, and none was found; get one from {pages}, then give token=…, set {_VARIABLE}, "
            f'or write {{"token": "…"}} to ~/.cloudvolume/secrets/{host}-cave-secret.json (on every worker, too)'
        )
    if login:
        raise InvalidTokenError(
            f"{name} answered with a login page, or the way to one, although {token.origin} gave a token: the "
            f"server does not take it; get another from {pages}"
        )
    said = _words(reply, token)
    if reply.status == 401:
        raise InvalidTokenError(
            f"{host} does not know the token from {token.origin} ({name}: HTTP 401); it is wrong or was revoked: get "
            f"another from {pages}"
        )
    if said.get("error") == "missing_tos":
        form = said.get("data", {}).get("tos_form_url") if isinstance(said.get("data"), dict) else None
        where = str(form) if form else f"https://{host}"
        raise TermsError(
            f"the owner of the token from {token.origin} has not accepted the terms of service of {name}; do so at "
            f"{where}, then try again"
        )
    words = str(said.get("message") or said.get("error") or "")[:200]
    raise ForbiddenError(
        f"the token from {token.origin} has no right to read {name} (HTTP 403{': ' + words if words else ''}); ask "
        "whoever runs the dataset for it, or give the token of another account"
    )


def _words(reply: Reply, token: Token) -> dict[str, Any]:
    try:
        found = json.loads(token.hide(reply.body.decode(errors="replace")))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
